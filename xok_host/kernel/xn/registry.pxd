# C-level declarations of registry.py: fields without a Python object behind each number.
from xok_host.kernel.pages cimport Access
from xok_host.kernel.xn.types cimport XnType


cdef class Cached:
    # Together what every read and write of plain data touches, so that it takes few lines of the processor's cache.
    cdef public unsigned long long page, key, sequence
    cdef public long index
    cdef public unsigned int generation, flags, writer, pins, lock, type
    cdef public int dirty, in_flight, written, durable
    cdef public bint counted, dead
    cdef public tuple flights
    cdef public object charged, deferred, readers, parent, device
    # The others.
    cdef public object will_free
    cdef public Cached unlinked
    cdef public unsigned long long moves
    cdef public XnType xtype
    cdef public Access access, child_access
    cdef public object memo, changed, taint, kids, fresh, waits, waiters
    cdef public object lock_holders, lock_queue
    cdef public unsigned long long db, landing, tree, parent_da, link_sequence
    cdef public int parent_sector, total_taint
    cdef public bint linked, anchored, busy
    cpdef begin(self, object device, unsigned long long db, unsigned long long key)
    cpdef become_metadata(self)
    cpdef bint attached(self) except -1
    cpdef bint evictable(self) except -1
    cpdef bint settled(self) except -1


cdef class Registry:
    cdef object _table
    cdef unsigned int[::1] _words
    cdef unsigned long long[::1] _quads
    cdef public long nentries, nbuckets
    cdef long _entries, _buckets
    cdef list _free, _slots
    cdef int[::1] _newer, _older
    cdef public unsigned long long sequence
    cdef _header(self)
    cdef _count(self)
    cdef long _at(self, Cached entry) noexcept
    cdef long _bucket(self, unsigned long long key) noexcept
    cpdef Cached get(self, unsigned long long key)
    cpdef Cached after(self, Cached entry, unsigned long long key)
    cpdef list run(self, unsigned long long key, unsigned long long count, bint whole)
    cdef long _place(self, unsigned long long key, long near) except -2
    cpdef touch(self, Cached entry)
    cdef _chain(self, int index)
    cdef _unchain(self, int index)
    cdef void _show_newer(self, int index) noexcept
    cpdef Cached oldest(self)
    cpdef Cached newer(self, Cached entry)
    cdef Cached _at_place(self, int index)
    cpdef long in_core(self) except -1
    cpdef bint full(self) except -1
    cpdef long room(self) except -1
    cpdef insert(self, Cached entry)
    cpdef remove(self, Cached entry)
    cpdef publish(self, Cached entry)
    cpdef show_state(self, Cached entry)
    cpdef renew(self, Cached entry)
