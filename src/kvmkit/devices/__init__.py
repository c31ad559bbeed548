"""What the guest sees: each device is a small state object, its registers, and what is handed to it.

Nothing here starts a thread, opens a file or knows an engine. Times are nanoseconds from a clock that is handed in;
an interrupt line is a callable that takes a level.
"""
