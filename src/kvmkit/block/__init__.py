"""What stands behind a disk: files and block devices of the host, and io_uring by which they are read and written."""
