# C-level declarations of interp.py.
cdef class Program:
    cdef readonly bytes code
    cdef readonly frozenset helpers
    cdef readonly int length
    cdef readonly long long executed
    cdef object _steps, _registers, _trace
    cdef char *_code
    cdef unsigned long long *_first
    cdef unsigned long long _r0
    cdef int _count, _pc
    cpdef int ask(self, unsigned long long part, unsigned long long r5) except -1
    cdef void _start(
        self, bytearray out, meta, unsigned long long part, new, context, unsigned long long r4,
        unsigned long long r5, long long budget, int max_out, windows
    ) except *


cdef unsigned char *_STACK
cdef unsigned long long *_OUT
cdef unsigned long long *output() noexcept
cpdef show(meta, windows)
