cimport cython
from libc.stdint cimport int64_t

cdef enum:
    TICK = 4096
    SLOTS = 4096

cdef class Timed:
    cdef int64_t due
    cdef int slot
    cdef Timed earlier
    cdef Timed later

@cython.final
cdef class Wheel:
    cdef list slots
    cdef list nothing
    cdef int64_t position
    cdef int64_t earliest
    cdef readonly int count
    @cython.locals(tick=int64_t, slot=int, head=Timed)
    cdef int schedule(self, Timed entry, int64_t when) except -1
    cdef int cancel(self, Timed entry) except -1
    @cython.locals(tick=int64_t, first=int64_t, entry=Timed, later=Timed)
    cpdef list expire(self, int64_t now)
    @cython.locals(tick=int64_t)
    cpdef int64_t next_due(self) except -1
