"""The groups of `kvmkit doctor`, one file each: a function of a Context that gives rows."""
