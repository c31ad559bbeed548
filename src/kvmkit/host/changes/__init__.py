"""What `kvmkit host` can change, one file each: functions of a Context and a Journal that give a Plan."""
