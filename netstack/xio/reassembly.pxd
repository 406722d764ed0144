cimport cython
from libc.stdint cimport uint32_t
from netstack.xio.seq cimport seq_add, seq_diff, seq_lt, seq_le

@cython.final
cdef class Reassembly:
    cdef readonly Py_ssize_t held
    cdef list pieces
    cpdef int insert(self, uint32_t seq, bytes data, uint32_t edge) except -1
    cpdef bytes take(self, uint32_t seq)
    cpdef int clear(self) except -1
