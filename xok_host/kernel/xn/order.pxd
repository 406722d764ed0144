# C-level declarations of order.py.
from xok_host.kernel.xn.registry cimport Cached


cdef class Wait:
    cdef public Cached entry, on
    cdef public int sector, on_sector
    cdef public unsigned long long sequence
    cpdef bint waits_for(self, Cached on, int on_sector) except -1
    cpdef resolve(self)


cpdef bint attached(Cached entry) except -1
cpdef bint complete(Cached entry) except -1
cpdef recount(Cached entry)
cpdef count(Cached entry, Cached parent, bint wanted)
cpdef hang(Cached entry, Cached parent)
cpdef link(Cached entry, int mask)
cpdef durable(Cached entry, int mask, unsigned long long sequence)
