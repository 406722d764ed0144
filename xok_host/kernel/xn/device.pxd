# C-level declarations of device.py.
from xok_host.kernel.pages cimport Access, Arena, Pages
from xok_host.kernel.tables cimport Counters
from xok_host.kernel.xn.freemap cimport FreeMap
from xok_host.kernel.xn.io cimport DeviceIo
from xok_host.kernel.xn.registry cimport Cached, Registry
from xok_host.kernel.xn.types cimport XnType


cdef class Device:
    cdef public object kernel, superblock, catalogue, own_arena, quarantine, reports
    cdef public unsigned long long number, first, end
    cdef public DeviceIo io
    cdef public Registry registry
    cdef public Pages pages
    cdef public Counters counters
    cdef public FreeMap freemap
    cdef public dict types, roots, logs
    cdef public list catalogue_frees, moves
    cdef public long long waiting_frees
    cpdef Cached get(self, unsigned long long db)
    cpdef XnType type_of(self, unsigned long long type_id)
    cpdef Cached new_entry(self, unsigned long long db, XnType xtype, Access access)
    cpdef set_type(self, Cached entry, XnType xtype)
    cpdef set_parent(self, Cached entry, Cached parent, unsigned int part)
    cpdef insert(self, Cached entry)
    cpdef set_page(self, Cached entry, unsigned long long page)
    cpdef Access access_to_children(self, Cached entry)
    cpdef forget(self, Cached entry)
    cpdef Cached metadata(self, unsigned long long da)
