# C-level declarations of pending.py.
cdef class Pending:
    cdef public object finish, error
    cdef public bytes data
    cdef public unsigned long long r0, r1
    cdef public long held
    cdef public long long spent
    cdef begin(self, finish)
    cpdef hold(self)
    cpdef fail(self, error)
    cpdef release(self, int code=*)


cpdef Pending new_pending()
