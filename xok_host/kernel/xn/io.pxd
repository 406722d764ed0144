# C-level declarations of io.py.
from xok_host.kernel.pages cimport Arena, Pages
from xok_host.kernel.request cimport IoRequest, Piece, requests
from xok_host.kernel.tables cimport Counters
from xok_host.kernel.xn.pending cimport Pending
from xok_host.kernel.xn.registry cimport Cached, Registry
from xok_host.kernel.xn.types cimport XnType

cdef extern from *:
    """
    /* Whether the tuple has that one element. */
    static inline int just(PyObject *all, PyObject *one) {
        return PyTuple_GET_SIZE(all) == 1 && PyTuple_GET_ITEM(all, 0) == one;
    }
    """
    bint just(tuple all, object one) noexcept


cdef class Flight(Piece):
    cdef public list blocks
    cdef public Pending pending
    cdef public DeviceIo io
    cdef public unsigned long long sequence
    cdef public int mask, parts, error
    cdef public bint written
    cdef begin(self, DeviceIo io, blocks, int mask, Pending pending)


cdef class Part(Piece):
    cdef Flight flight


cdef class ReadIn(Piece):
    cdef public list blocks
    cdef public Pending pending
    cdef DeviceIo io
    cdef begin(self, DeviceIo io, blocks, Pending pending)


cdef class OwnSector(Piece):
    cdef DeviceIo io
    cdef object what, then


cdef class Barrier(Piece):
    cdef object then


cdef class DeviceIo:
    cdef public object device
    cdef unsigned long long _number
    cdef Pages _pages
    cdef Registry _registry
    cdef Counters _counters
    cdef Arena _own
    cdef list _reads, _writes, _barriers, _written, _covered, _flushing, _flush_next
    cdef list _own_freed, _own_roots, _own_sectors
    cdef dict _tokens
    cdef unsigned long long _next_token
    cdef long _own_left
    cdef int _own_error
    cdef public object _failing_since, _failing_blocks
    cpdef list take(self)
    cpdef done(self, unsigned long long token, int errno)
    cpdef await_read(self, Cached entry, Pending pending)
    cdef read_in(self, ReadIn read, int errno)
    cpdef read(self, blocks, Pending pending)
    cpdef write_blocks(self, found, int mask, Pending pending)
    cpdef long write(self, Cached entry, int mask, Pending pending) except -1
    cdef int _tainted(self, Cached entry, int wanted, Pending pending) except -1
    cdef _send(self, run, Pending pending)
    cdef landed(self, Flight flight)
    cdef _changed(self, Cached entry)
    cdef _settle(self, Cached entry)
    cdef _show_written(self, Cached entry)


cdef _ended(Cached entry, Flight flight)

