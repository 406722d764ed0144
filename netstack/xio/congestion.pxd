cimport cython
from libc.stdint cimport uint32_t, int64_t

cdef int64_t INITIAL_SEGMENTS, NO_THRESHOLD, MAX_WINDOW

cdef class Congestion:
    cdef readonly int64_t cwnd
    cdef readonly int64_t ssthresh
    cdef int64_t credit
    cdef uint32_t mss
    cdef int begin(self, uint32_t mss) except -1
    cdef int acked(self, int64_t octets) except -1
    cdef int lost(self, int64_t flight) except -1
    cdef int inflate(self) except -1
    cdef int partial(self, int64_t octets) except -1
    @cython.locals(limit=int64_t)
    cdef int recovered(self, int64_t flight) except -1
    cdef int timed_out(self, int64_t flight, bint again) except -1
    @cython.locals(restart=int64_t)
    cdef int idle(self) except -1
    cdef int halve(self, int64_t flight) except -1
