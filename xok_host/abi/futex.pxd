# C-level declarations of futex.pyx.
cpdef int sleep(unsigned int[::1] words, Py_ssize_t index, unsigned int expected, long long ns) except -1
cpdef int wake(unsigned int[::1] words, Py_ssize_t index) except -1
cpdef int fence() except -1
