"""Trees of files as images are made of them: read from tar archives, written as EROFS, read back."""
