# C-level declarations of locks.py.
cdef class Locks:
    cdef public object _kernel, _earliest
    cdef public object _waiting
    cpdef next_deadline(self)
