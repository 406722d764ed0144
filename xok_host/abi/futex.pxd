# C-level declarations of futex.pyx.
cdef extern from *:
    """
    #define xok_load(word) __atomic_load_n(word, __ATOMIC_ACQUIRE)
    #define xok_store(word, value) __atomic_store_n(word, value, __ATOMIC_RELEASE)
    #define xok_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    unsigned int load "xok_load"(unsigned int *word) noexcept nogil
    void store "xok_store"(unsigned int *word, unsigned int value) noexcept nogil


cpdef int sleep(unsigned int[::1] words, Py_ssize_t index, unsigned int expected, long long ns) except -1
cpdef int wake(unsigned int[::1] words, Py_ssize_t index) except -1
cpdef int exchange(unsigned int[::1] words, Py_ssize_t index, unsigned int expected, unsigned int value) except -1
cpdef int fence() except -1
cpdef int ring(int bell) except -1
