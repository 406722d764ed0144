# C-level declarations of capability.py.
cdef class CapabilityTable:
    cdef list _slots
    cdef unsigned long long[::1] _numbers, _rights
    cpdef unsigned long long tree(self, long long index, unsigned long long rights) except? 0
