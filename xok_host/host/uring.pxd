# C-level declarations of uring.pyx.
from libc.stdint cimport uint32_t, uint64_t


cdef class Ring:
    cdef int _fd, _event
    cdef void *_rings
    cdef size_t _rings_bytes, _sqes_bytes
    cdef void *_sqes
    cdef void *_cqes
    cdef uint32_t *_sq_head
    cdef uint32_t *_sq_tail
    cdef uint32_t *_sq_array
    cdef uint32_t *_cq_head
    cdef uint32_t *_cq_tail
    cdef uint32_t _sq_mask, _cq_mask, _entries, _queued
    cdef uint64_t _next
    cdef dict _requests
    cdef readonly uint32_t room
    cdef readonly uint64_t submissions
    cdef void *_entry(self, token_request) except NULL
    cpdef queue_rw(self, bint write, int fd, uint64_t offset, list buffers, token, uint32_t flags=*)
    cpdef submit(self)
    cpdef list reap(self, uint32_t most, uint64_t most_bytes=*)
    cdef uint32_t _some(self, uint32_t head, uint32_t tail, uint32_t most, uint64_t most_bytes) noexcept
