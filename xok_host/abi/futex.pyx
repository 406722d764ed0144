# cython: language_level=3
"""Sleeping on a word of shared memory, waking who sleeps there (futex(2)), and ringing a doorbell (eventfd(2)).

`words` is memory that both sides map, as unsigned 32-bit words; `index` names the one that is meant.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t
from posix.unistd cimport write
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno

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
    static int xok_exchange(unsigned *word, unsigned expected, unsigned value) {
        return __atomic_compare_exchange_n(word, &expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    """
    int xok_futex_wait(unsigned int *word, unsigned int expected, long long ns) nogil
    void xok_futex_wake(unsigned int *word) nogil
    int xok_exchange(unsigned int *word, unsigned int expected, unsigned int value) nogil
    void xok_fence() nogil


cpdef int sleep(unsigned int[::1] words, Py_ssize_t index, unsigned int expected, long long ns) except -1:
    """Sleep while the word is `expected`, at most `ns` nanoseconds; 1 if it was woken or need not sleep, 0 if not."""
    cdef int failed
    with nogil:
        failed = xok_futex_wait(&words[index], expected, ns)
    if failed and errno == EINTR:
        PyErr_CheckSignals()
        return 0
    return not failed or errno == EAGAIN


cpdef int wake(unsigned int[::1] words, Py_ssize_t index) except -1:
    """Wake one that sleeps on the word.  Does not wait."""
    xok_futex_wake(&words[index])
    return 0


cpdef int exchange(unsigned int[::1] words, Py_ssize_t index, unsigned int expected, unsigned int value) except -1:
    """Store `value` if the word is `expected`, in one step; whether it was."""
    return xok_exchange(&words[index], expected, value)


cpdef int fence() except -1:
    """What was stored before is visible to the other side before anything after is loaded."""
    xok_fence()
    return 0


cpdef int ring(int bell) except -1:
    """Add one to an eventfd.  Raises OSError."""
    cdef uint64_t one = 1
    if write(bell, &one, 8) != 8:
        PyErr_SetFromErrno(OSError)
        return -1
    return 0
