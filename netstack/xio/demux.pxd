cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from netstack.wire.octets cimport w64
from netstack.xio.timers cimport Timed

cdef extern from *:
    """
    #define XIO_MIX 0x9E3779B97F4A7C15ULL
    """
    const uint64_t MIX "XIO_MIX"

cdef class Entry(Timed):
    cdef readonly int kind
    cdef uint64_t hash
    cdef Entry chain
    cdef readonly uint32_t local_address
    cdef readonly uint32_t remote_address
    cdef readonly uint16_t local_port
    cdef readonly uint16_t remote_port

@cython.final
cdef class Table:
    cdef uint64_t secret
    cdef uint64_t size
    cdef readonly uint64_t count
    cdef list buckets
    @cython.locals(h=uint64_t)
    cdef uint64_t hash_of(self, uint32_t local_address, uint32_t local_port, uint32_t remote_address, uint32_t remote_port) noexcept
    @cython.locals(h=uint64_t, entry=Entry)
    cdef Entry find(self, uint32_t local_address, uint32_t local_port, uint32_t remote_address, uint32_t remote_port)
    @cython.locals(i=uint64_t)
    cdef int insert(self, Entry entry) except -1
    @cython.locals(i=uint64_t, at=Entry)
    cdef int remove(self, Entry entry) except -1
    @cython.locals(i=uint64_t, entry=Entry, chain=Entry)
    cdef int grow(self) except -1
    @cython.locals(entry=Entry)
    cpdef list entries(self)
