# C-level declarations of request.py.
cdef class IoRequest:
    cdef public object op
    cdef public list iov, owners
    cdef public unsigned long long dev, sector, token


cdef class Piece:
    cdef public unsigned long long sector, page
    cdef public int first, count
    cpdef arrived(self, int errno)


cpdef list mask_runs(int mask)
cpdef list requests(op, unsigned long long dev, list pieces)
