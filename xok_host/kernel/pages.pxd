# C-level declarations of pages.py.
cdef class Access:
    cdef public frozenset read, write


cdef class Arena:
    cdef public Access access
    cdef public unsigned int writer
    cdef public str kind
    cdef public list free, chunks


cdef class Chunk:
    cdef public long number, held
    cdef public object view, mapped
    cdef public str kind
    cdef public Arena arena
    cdef public unsigned short[::1] users


cdef class Pages:
    cdef object _memory
    cdef dict _chunks, _access, _arenas
    cdef bint _exhausted
    cdef public object reclaim, reclaim_chunk
    cdef public long in_use
    cpdef Arena arena(self, Access access, unsigned int writer=*, str kind=*)
    cpdef unsigned long long alloc(self, Arena arena) except *
    cpdef hold(self, unsigned long long page)
    cpdef drop(self, unsigned long long page)
    cpdef bint shared(self, unsigned long long page) except -1
    cpdef view(self, unsigned long long page)
    cpdef zero(self, unsigned long long page)
    cpdef Arena arena_of(self, unsigned long long page)
