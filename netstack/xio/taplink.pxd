# C-level declarations and the system calls of taplink.py.
cimport cython
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.uio cimport writev
from posix.unistd cimport read

from netstack.xio.gather cimport Iov
from netstack.xio.link cimport Link
from netstack.xio.stack cimport Stack

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    enum:
        POLLIN

cdef enum:
    ROOM = 70000

cpdef inline int64_t clock_us() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * 1000000 + now.tv_nsec // 1000

cdef inline Py_ssize_t receive(int fd, uint8_t *buffer) except -1:
    cdef Py_ssize_t size
    while True:
        size = read(fd, buffer, ROOM)
        if size >= 0:
            return size
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            raise OSError(errno, "reading the TAP queue")

cdef inline bint transmit(int fd, Iov iov) noexcept:
    return writev(fd, iov.vector, iov.count) >= 0

cdef inline bint wait_for(int fd, int other_fd, int64_t until, int64_t spin_us) noexcept nogil:
    cdef pollfd fds[2]
    cdef int64_t start = clock_us()
    cdef int64_t now = start
    cdef int64_t timeout
    fds[0].fd = fd
    fds[0].events = POLLIN
    fds[1].fd = other_fd  # a negative one is passed over
    fds[1].events = POLLIN
    fds[1].revents = 0
    while now - start < spin_us:
        if poll(fds, 2, 0) > 0:
            return fds[1].revents != 0
        now = clock_us()
    timeout = -1
    if until:
        timeout = 0 if until <= now else (until - now + 999) // 1000
    poll(fds, 2, <int> timeout if timeout < 1000000 else 1000000)
    return fds[1].revents != 0

cdef class TapLink(Link):
    cdef readonly int fd
    cdef uint8_t[70000] buffer
    @cython.locals(size=Py_ssize_t, count=int)
    cpdef int pump(self, Stack stack, int most) except -1
    cpdef bint wait(self, int other_fd, int64_t until, int64_t spin_us) except -1
