# C-level declarations of interp.py.
cdef class Program:
    cdef readonly bytes code
    cdef readonly frozenset helpers
    cdef readonly int length
    cdef readonly long long executed
    cdef object _steps, _registers, _trace
    cdef unsigned long long _r0
    cdef int _count, _pc
    cpdef ask(self, meta, unsigned long long part, unsigned long long r5, windows)
    cdef void _start(
        self, bytearray out, meta, unsigned long long part, new, context, unsigned long long r4,
        unsigned long long r5, long long budget, int max_out, windows
    ) except *
    cdef int _loop(
        self, unsigned long long *out, unsigned char *meta, unsigned long long meta_length, unsigned char *new,
        unsigned long long new_length, unsigned char *context, unsigned long long context_length,
        unsigned long long *windows, int window_count, unsigned long long part, unsigned long long r4,
        unsigned long long r5, long long budget, int max_out
    ) noexcept
