# C-level declarations of pending.py.
cdef class Pending:
    cdef public object finish, error, r0, r1, data
    cdef public long held
    cdef public long long spent
    cpdef hold(self)
    cpdef fail(self, error)
    cpdef release(self, int code=*)
