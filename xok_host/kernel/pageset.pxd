# C-level declarations of pageset.py.
cdef class PageSet:
    cdef dict _chunks
    cdef long _count
    cpdef add(self, unsigned long long first, unsigned long long count)
    cpdef remove(self, unsigned long long first, unsigned long long count)
    cdef _mark(self, unsigned long long first, unsigned long long count, unsigned char mark)
    cpdef bint holds(self, unsigned long long first, unsigned long long count) except -1
