# cython: language_level=3
"""io_uring through raw system calls: vectored reads and writes, data syncs, completions through an eventfd.

One thread uses a `Ring`.  Buffers are held (exported) from `queue` until their completion has been reaped, so they can
neither move nor go away while the device works on them.

    ring.queue_rw(write, fd, offset, buffers, token, flags); ring.queue_sync(fd, token)
    ring.submit()              one system call for all that is queued
    ring.fileno()              readable when there are completions
    ring.reap(most)            [(token, bytes transferred or −errno), …]

No more may be in flight than the ring has room for completions of (`room`): what overflows it is not told before somebody
asks the kernel for it, and this module asks for nothing.
"""

cimport cython
from libc.errno cimport EAGAIN, EBUSY, EINTR, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strerror
from cpython.buffer cimport Py_buffer, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

cdef extern from *:
    """
    #include <linux/io_uring.h>
    #include <sys/eventfd.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <unistd.h>
    #define xok_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define xok_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    """
    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len
    ctypedef struct io_uring_sqe "struct io_uring_sqe":
        uint8_t opcode
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t rw_flags
        uint32_t fsync_flags
        uint64_t user_data
    ctypedef struct io_uring_cqe "struct io_uring_cqe":
        uint64_t user_data
        int32_t res
    ctypedef struct io_sqring_offsets "struct io_sqring_offsets":
        uint32_t head, tail, ring_mask, array
    ctypedef struct io_cqring_offsets "struct io_cqring_offsets":
        uint32_t head, tail, ring_mask, cqes
    ctypedef struct io_uring_params "struct io_uring_params":
        uint32_t flags, features, sq_entries, cq_entries
        io_sqring_offsets sq_off
        io_cqring_offsets cq_off
    enum:
        IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ, IORING_OP_WRITE, IORING_OP_FSYNC
        IORING_FSYNC_DATASYNC, IORING_OFF_SQ_RING, IORING_OFF_SQES
        IORING_FEAT_SINGLE_MMAP, IORING_FEAT_SUBMIT_STABLE, IORING_REGISTER_EVENTFD
        SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register
        EFD_CLOEXEC, EFD_NONBLOCK, PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE
    void *MAP_FAILED
    long syscall(long number, ...) nogil
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    int close(int fd)
    int eventfd(unsigned int initial, int flags)
    ssize_t read(int fd, void *buffer, size_t count)
    uint32_t xok_load(uint32_t *p) nogil
    void xok_store(uint32_t *p, uint32_t value) nogil

MAX_VECTORS = 1024
"""Buffers in one request: the kernel's IOV_MAX."""


cdef int _raise(what) except -1:
    cdef int code = errno
    raise OSError(code, (<bytes>strerror(code)).decode(), what)


@cython.final
@cython.no_gc
cdef class _Request:
    """Buffers and vectors of one request, until it is reaped.  A single buffer needs no memory beside it."""

    cdef iovec *vectors
    cdef Py_buffer *buffers
    cdef Py_buffer one
    cdef Py_ssize_t count
    cdef object token

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            PyBuffer_Release(&self.buffers[i])
        if self.buffers != &self.one:
            free(self.vectors)
            free(self.buffers)


cdef class Ring:
    """`room`: requests that may be in flight.  `submissions`: system calls made to submit."""

    def __cinit__(self, unsigned int entries=256):
        cdef io_uring_params params
        memset(&params, 0, sizeof(params))
        self._fd = self._event = -1
        self._requests = {}
        self._fd = <int>syscall(SYS_io_uring_setup, entries, &params)
        if self._fd < 0:
            _raise("io_uring_setup")
        if not (params.features & IORING_FEAT_SINGLE_MMAP and params.features & IORING_FEAT_SUBMIT_STABLE):
            raise OSError(95, "this kernel's io_uring is too old")
        cdef size_t sq_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t)
        cdef size_t cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe)
        self._rings_bytes = max(sq_bytes, cq_bytes)
        self._sqes_bytes = params.sq_entries * 64
        self._rings = mmap(NULL, self._rings_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, self._fd,
                           IORING_OFF_SQ_RING)
        if self._rings == MAP_FAILED:
            self._rings = NULL
            _raise("io_uring rings")
        cdef void *sqes = mmap(NULL, self._sqes_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, self._fd,
                               IORING_OFF_SQES)
        if sqes == MAP_FAILED:
            _raise("io_uring entries")
        self._sqes = sqes
        cdef char *base = <char *>self._rings
        self._sq_head = <uint32_t *>(base + params.sq_off.head)
        self._sq_tail = <uint32_t *>(base + params.sq_off.tail)
        self._sq_array = <uint32_t *>(base + params.sq_off.array)
        self._sq_mask = (<uint32_t *>(base + params.sq_off.ring_mask))[0]
        self._cq_head = <uint32_t *>(base + params.cq_off.head)
        self._cq_tail = <uint32_t *>(base + params.cq_off.tail)
        self._cq_mask = (<uint32_t *>(base + params.cq_off.ring_mask))[0]
        self._cqes = base + params.cq_off.cqes
        self._entries = params.sq_entries
        self.room = params.cq_entries
        self._event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self._event < 0:
            _raise("eventfd")
        if syscall(SYS_io_uring_register, self._fd, IORING_REGISTER_EVENTFD, &self._event, 1) < 0:
            _raise("io_uring eventfd")

    def __dealloc__(self):
        self.close()

    def close(self):
        """Give the ring back.  Requests in flight must have been reaped before."""
        if self._rings != NULL:
            munmap(self._rings, self._rings_bytes)
            self._rings = NULL
        if self._sqes != NULL:
            munmap(self._sqes, self._sqes_bytes)
            self._sqes = NULL
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1
        if self._event >= 0:
            close(self._event)
            self._event = -1

    def fileno(self):
        return self._event

    @property
    def in_flight(self):
        return len(self._requests)

    cdef void *_entry(self, token_request) except NULL:
        """A zeroed submission entry; submits first when the queue is full."""
        if self._fd < 0:
            raise ValueError("the ring is closed")
        if <uint32_t>len(self._requests) >= self.room:
            raise ValueError(f"{self.room} requests are in flight: reap some first")
        while self._queued == self._entries:
            self.submit()
        cdef uint32_t tail = self._sq_tail[0] + self._queued
        cdef uint32_t index = tail & self._sq_mask
        cdef io_uring_sqe *sqe = &(<io_uring_sqe *>self._sqes)[index]
        memset(sqe, 0, 64)
        self._next += 1
        sqe.user_data = self._next
        self._sq_array[index] = index
        self._requests[self._next] = token_request
        return sqe

    cpdef queue_rw(self, bint write, int fd, uint64_t offset, list buffers, token, uint32_t flags=0):
        """Queue a vectored read or write of `buffers` at byte `offset`; `flags` are RWF_*."""
        cdef Py_ssize_t n = len(buffers), i
        if not 0 < n <= 1024:
            raise ValueError("1 to 1024 buffers a request")
        cdef _Request request = _Request.__new__(_Request)
        cdef io_uring_sqe *sqe
        cdef int access = PyBUF_SIMPLE if write else PyBUF_WRITABLE
        request.token = token
        if n == 1:
            request.buffers = &request.one
            PyObject_GetBuffer(buffers[0], &request.one, access)
            request.count = 1
            sqe = <io_uring_sqe *>self._entry(request)
            sqe.opcode = IORING_OP_WRITE if write else IORING_OP_READ
            sqe.addr = <uint64_t><size_t>request.one.buf
            sqe.len = <uint32_t>request.one.len
        else:
            request.vectors = <iovec *>calloc(n, sizeof(iovec))
            request.buffers = <Py_buffer *>calloc(n, sizeof(Py_buffer))
            if request.vectors == NULL or request.buffers == NULL:
                raise MemoryError
            for i in range(n):
                PyObject_GetBuffer(buffers[i], &request.buffers[i], access)
                request.count = i + 1
                request.vectors[i].iov_base = request.buffers[i].buf
                request.vectors[i].iov_len = request.buffers[i].len
            sqe = <io_uring_sqe *>self._entry(request)
            sqe.opcode = IORING_OP_WRITEV if write else IORING_OP_READV
            sqe.addr = <uint64_t><size_t>request.vectors
            sqe.len = <uint32_t>n
        sqe.fd = fd
        sqe.off = offset
        sqe.rw_flags = flags
        self._queued += 1

    def queue_sync(self, int fd, token):
        """Queue a data sync: what completed before it is durable when it completes."""
        cdef _Request request = _Request()
        request.token = token
        cdef io_uring_sqe *sqe = <io_uring_sqe *>self._entry(request)
        sqe.opcode = IORING_OP_FSYNC
        sqe.fd = fd
        sqe.fsync_flags = IORING_FSYNC_DATASYNC
        self._queued += 1

    cpdef submit(self):
        """Give everything queued to the kernel."""
        cdef long done
        cdef uint32_t count
        if self._queued == 0:
            return
        count = self._queued
        xok_store(self._sq_tail, self._sq_tail[0] + count)
        self._queued = 0
        while count:
            with nogil:
                done = syscall(SYS_io_uring_enter, self._fd, count, 0, 0, NULL, 0)
            if done < 0:
                if errno in (EINTR, EAGAIN, EBUSY):
                    continue
                _raise("io_uring_enter")
            count -= <uint32_t>done
            self.submissions += 1

    cpdef list reap(self, uint32_t most, uint64_t most_bytes=<uint64_t>-1):
        """Completions so far, without waiting: (token, result) each.  When there are more than `most`, or more bytes,
        as many of them, and the descriptor stays readable for the others."""
        cdef uint64_t ticks = 0
        cdef list out = []
        cdef uint32_t head = self._cq_head[0]
        cdef uint32_t tail = xok_load(self._cq_tail)
        cdef uint32_t end = self._some(head, tail, most, most_bytes)
        cdef io_uring_cqe *cqe
        cdef _Request request
        if end == tail:
            read(self._event, &ticks, 8)
            end = xok_load(self._cq_tail)  # with those that had made it readable meanwhile
        while head != end:
            cqe = &(<io_uring_cqe *>self._cqes)[head & self._cq_mask]
            request = self._requests.pop(cqe.user_data)
            out.append((request.token, cqe.res))
            head += 1
        xok_store(self._cq_head, head)
        return out

    cdef uint32_t _some(self, uint32_t head, uint32_t tail, uint32_t most, uint64_t most_bytes) noexcept:
        """The end of the completions from `head` on that are within both bounds, but at least one if there is one."""
        cdef uint64_t total = 0
        cdef uint32_t at = head
        cdef int32_t result
        while at != tail and at - head < most and (total < most_bytes):
            result = (<io_uring_cqe *>self._cqes)[at & self._cq_mask].res
            total += result if result > 0 else 0
            at += 1
        return at
