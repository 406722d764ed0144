from libc.stdint cimport uint8_t
from netstack.xio.gather cimport Iov

cdef class Link:
    cdef public long long sent
    cdef public long long refused
    cdef int send(self, Iov iov) except -1

cdef class PythonLink(Link):
    cpdef transmit(self, bytes frame)
