# C-level declarations of capability.py.
cdef class CapabilityTable:
    cdef list _slots
    cdef public dict trees
