cimport cython
from libc.stdint cimport int64_t

cdef int64_t INITIAL, MIN, MAX, GRANULARITY

@cython.final
cdef class Rto:
    cdef readonly int64_t srtt
    cdef readonly int64_t rttvar
    cdef readonly int64_t rto
    cdef readonly int shift
    cdef int reset(self) except -1
    @cython.locals(delta=int64_t, spread=int64_t)
    cdef int sample(self, int64_t rtt) except -1
    cdef int back_off(self) except -1
    cdef int progress(self) except -1
    @cython.locals(value=int64_t)
    cdef int64_t current(self) noexcept
