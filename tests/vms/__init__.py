"""VMs that are kept: their processes, directories and control sockets."""
