cdef bytes fetch(int fd, unsigned long request, bytes initial, str what)
cdef int store(int fd, unsigned long request, bytes data, str what) except -1
cdef int refused(str what) except -1
