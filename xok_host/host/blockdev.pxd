# C-level declarations of blockdev.py.
from xok_host.host.uring cimport Ring


cdef class _Operation:
    cdef public bint write, durable
    cdef public long long sector, size
    cdef public list buffers
    cdef public object done
    cdef begin(self, bint write, bint durable, long long sector, list buffers, done)
    cdef long long end(self) noexcept


cdef class _Request:
    cdef public list operations
    cdef public long long size, skip
    cdef begin(self, list operations)


cdef class _Flush:
    cdef public object done


cdef class BlockDevice:
    cdef public int fd
    cdef public str path
    cdef public long long nblocks
    cdef public int sector_bytes
    cdef public bint direct
    cdef public object engine
    cdef Ring _ring
    cdef list _queued, _flushes
    cdef long long _operations, _reads, _writes, _syncs, _bytes_read, _bytes_written, _errors
    cdef long _in_flight, _running
    cdef object _backlog
    cpdef transfer(self, bint write, long long sector, list buffers, done, bint durable=*)
    cpdef flush(self, done)
    cpdef submit(self)
    cpdef long poll(self) except -1
    cdef _start(self, request)
    cdef _issue(self, request)
    cdef _transfer(self, _Request request)
    cdef long _finish(self, _Request request, long result) except -1
    cdef long _deliver(self, done, int code) except -1


cdef _Request _request(list operations)
cdef bint _sorted(list queued) except -1
cdef list _merge(list queued)
