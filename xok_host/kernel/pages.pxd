# C-level declarations of pages.py.
cdef class Access:
    cdef public frozenset read, write
    cdef public Arena own
    cdef unsigned long long _writer
    cpdef bint may_write(self, unsigned long long capability) except -1


cdef class Arena:
    cdef public Access access
    cdef public unsigned int writer
    cdef public str kind
    cdef public list open, chunks


cdef class Chunk:
    cdef public long number, held, low
    cdef public long long payer
    cdef public object view, mapped
    cdef public str kind
    cdef public Arena arena
    cdef public unsigned short[::1] users
    cdef unsigned char[::1] bytes
    cdef long first_free(self) except -1
    cdef long take(self) except -1
    cdef long find_run(self, long count) except -2


cdef class Pages:
    cdef object _memory
    cdef list _chunks
    cdef long _existing
    cdef dict _access, _arenas
    cdef bint _exhausted
    cdef public object reclaim, reclaim_chunk
    cdef public long long payer
    cdef public long in_use
    cpdef Arena arena(self, Access access, unsigned int writer=*, str kind=*)
    cdef Chunk _of(self, unsigned long long page)
    cpdef unsigned long long alloc(self, Arena arena) except? 0
    cpdef list alloc_runs(self, Arena arena, long count)
    cdef tuple _take_run(self, Chunk chunk, long slot, long end)
    cpdef hold(self, unsigned long long page)
    cpdef hold_run(self, unsigned long long page, long count)
    cpdef drop_run(self, unsigned long long page, long count)
    cpdef drop(self, unsigned long long page)
    cpdef bint shared(self, unsigned long long page) except -1
    cpdef view(self, unsigned long long page)
    cpdef span(self, unsigned long long page, unsigned long long first, unsigned long long count)
    cpdef take_sectors(self, unsigned long long page, bytearray into, int mask)
    cpdef put_sectors(self, unsigned long long page, bytearray new, int mask)
    cpdef zero(self, unsigned long long page)
    cpdef Arena arena_of(self, unsigned long long page)
