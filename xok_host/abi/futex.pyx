# cython: language_level=3
"""Sleeping on a word of shared memory, and waking who sleeps there (futex(2)).

`words` is memory that both sides map, as unsigned 32-bit words; `index` names the one that is meant.
"""

from libc.errno cimport EINTR, errno
from cpython.exc cimport PyErr_CheckSignals

cdef extern from *:
    """
    #include <linux/futex.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    static int xok_futex_wait(unsigned *word, unsigned expected, long long ns) {
        struct timespec limit = {ns / 1000000000, ns % 1000000000};
        return (int)syscall(SYS_futex, word, FUTEX_WAIT, expected, &limit, 0, 0);
    }
    static void xok_futex_wake(unsigned *word) { syscall(SYS_futex, word, FUTEX_WAKE, 1, 0, 0, 0); }
    #define xok_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    int xok_futex_wait(unsigned int *word, unsigned int expected, long long ns) nogil
    void xok_futex_wake(unsigned int *word) nogil
    void xok_fence() nogil


cpdef int sleep(unsigned int[::1] words, Py_ssize_t index, unsigned int expected, long long ns) except -1:
    """Sleep while the word is `expected`, at most `ns` nanoseconds; 1 if it was woken or need not sleep, 0 if not."""
    cdef int failed
    with nogil:
        failed = xok_futex_wait(&words[index], expected, ns)
    if failed and errno == EINTR:
        PyErr_CheckSignals()
        return 0
    return failed == 0


cpdef int wake(unsigned int[::1] words, Py_ssize_t index) except -1:
    """Wake one that sleeps on the word.  Does not wait."""
    xok_futex_wake(&words[index])
    return 0


cpdef int fence() except -1:
    """What was stored before is visible to the other side before anything after is loaded."""
    xok_fence()
    return 0
