# C-level declarations of locks.py.
cdef class Locks:
    cdef object _kernel
    cdef public object _waiting
    cdef public object _earliest
    cpdef next_deadline(self)
