# C-level declarations of tables.py.
cdef class Counters:
    cdef unsigned long long[::1] _words
    cpdef add(self, str name, long count=*)
    cdef count(self, int index, long count)
    cdef put(self, int index, unsigned long long value)
