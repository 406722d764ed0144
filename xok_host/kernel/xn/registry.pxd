# C-level declarations of registry.py: fields without a Python object behind each number.
from xok_host.kernel.pages cimport Access
from xok_host.kernel.xn.types cimport XnType


cdef class Cached:
    cdef public object device, parent, will_free, charged
    cdef public XnType xtype
    cdef public Access access, child_access
    cdef public object memo, changed, taint, kids, fresh, waits, waiters, deferred, readers
    cdef public tuple flights
    cdef public object lock_holders, lock_queue
    cdef public unsigned long long db, key, page, landing, tree, parent_da, sequence, link_sequence
    cdef public long index
    cdef public unsigned int generation, type, flags, pins, writer, lock
    cdef public int dirty, in_flight, written, durable, parent_sector, total_taint
    cdef public bint linked, anchored, counted, dead, busy
    cpdef begin(self, object device, unsigned long long db, unsigned long long key)
    cpdef become_metadata(self)
    cpdef bint attached(self)
    cpdef bint evictable(self)
    cpdef bint settled(self)


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
    cdef long _at(self, Cached entry)
    cdef long _bucket(self, unsigned long long key)
    cpdef Cached get(self, unsigned long long key)
    cpdef Cached after(self, Cached entry, unsigned long long key)
    cdef bint _is_at(self, long index, unsigned long long key) except -1
    cpdef touch(self, Cached entry)
    cdef _chain(self, int index)
    cdef _unchain(self, int index)
    cpdef Cached oldest(self)
    cpdef Cached newer(self, Cached entry)
    cdef Cached _at_place(self, int index)
    cpdef long in_core(self)
    cpdef bint full(self)
    cpdef long room(self)
    cpdef insert(self, Cached entry)
    cpdef remove(self, Cached entry)
    cpdef publish(self, Cached entry)
    cpdef show_state(self, Cached entry)
    cpdef renew(self, Cached entry)
