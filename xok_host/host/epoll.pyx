# cython: language_level=3
"""What the call loop waits with, and its clocks, without the Python objects that `select` and `time` would make of each
answer (epoll(7), clock_gettime(2))."""

from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EINTR, errno
from libc.math cimport ceil
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport close

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLLET
        EPOLLIN
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int most, int timeout)

cdef enum:
    READY = 64
    LONGEST_MS = 86_400_000

READY_AT_ONCE = READY
"""Descriptors that one `wait` tells of; the others are ready for the next."""


cdef class Epoll:
    """Which descriptors can be read.  `wait` says how many of them are ready, `ready` which."""

    def __cinit__(self):
        self._fd = epoll_create1(EPOLL_CLOEXEC)
        if self._fd < 0:
            PyErr_SetFromErrno(OSError)

    cpdef register(self, int fd, bint edges=False):
        """Look after `fd`; with `edges`, only something new makes it ready.  Raises OSError."""
        cdef epoll_event event
        event.events = EPOLLIN | (EPOLLET if edges else 0)
        event.data.fd = fd
        if epoll_ctl(self._fd, EPOLL_CTL_ADD, fd, &event) < 0:
            PyErr_SetFromErrno(OSError)

    cpdef unregister(self, int fd):
        """Raises OSError."""
        cdef epoll_event event
        if epoll_ctl(self._fd, EPOLL_CTL_DEL, fd, &event) < 0:
            PyErr_SetFromErrno(OSError)

    cpdef int wait(self, double seconds) except -1:
        """Wait for ready descriptors, at most `seconds` (less than 0: for ever); how many.  A signal ends it with 0."""
        cdef int ms = -1 if seconds < 0 else <int>min(ceil(seconds * 1000), LONGEST_MS)  # a day at most
        with nogil:
            self._count = epoll_wait(self._fd, self._ready, READY, ms)
        if self._count < 0:
            self._count = 0
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
                return -1
            PyErr_CheckSignals()
        return self._count

    cpdef int ready(self, int index) except -1:
        """The descriptor number `index` of those that the last `wait` found."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._ready[index].data.fd

    cpdef close(self):
        if self._fd >= 0:
            close(self._fd)
        self._fd = -1

    def __dealloc__(self):
        if self._fd >= 0:
            close(self._fd)


cpdef long long monotonic_ns() noexcept:
    """As `time.monotonic_ns`."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1_000_000_000 + now.tv_nsec


cpdef long long time_ns() noexcept:
    """As `time.time_ns`."""
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return now.tv_sec * 1_000_000_000 + now.tv_nsec
