# C-level declarations of epoll.pyx.
cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd

    struct epoll_event:
        unsigned int events
        epoll_data_t data


cdef class Epoll:
    cdef int _fd
    cdef int _count
    cdef epoll_event _ready[64]
    cpdef register(self, int fd, bint edges=*)
    cpdef unregister(self, int fd)
    cpdef int wait(self, double seconds) except -1
    cpdef int ready(self, int index) except -1
    cpdef close(self)


cpdef long long monotonic_ns() noexcept
cpdef long long time_ns() noexcept
