# C-level declarations of freemap.py.
cdef class FreeMap:
    cdef public object memory
    cdef unsigned char[::1] _bytes
    cdef public unsigned long long nblocks, start
    cdef set _dirty
    cdef bytearray _temporary
    cdef object _view
    cdef public long long free
    cpdef bint is_free(self, unsigned long long db, unsigned long long count=*) except -1
    cpdef allocate(self, unsigned long long db, unsigned long long count, bint temporary=*)
    cpdef release(self, unsigned long long db, unsigned long long count)
    cdef _touch(self, unsigned long long db, unsigned long long count)
