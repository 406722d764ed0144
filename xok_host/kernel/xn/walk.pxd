# C-level declarations of walk.py.
from xok_host.kernel.xn cimport verify
from xok_host.kernel.xn.types cimport XnType


cdef class Place:
    cdef public object root
    cdef public XnType xtype


cdef class Walk:
    cdef object _report, _patches, _watch, _roots, _lost
    cdef dict _types, _excess, _referrer, _unwritten
    cdef bint _watching
    cpdef bint _claim(self, root, parent, unsigned long long db, unsigned long long count) except -1
    cpdef bint _reports(self, type_id) except -1
    cpdef _place(self, root, type_id)
    cpdef _block(self, Place place, unsigned long long db, meta, list todo)
    cpdef _take(self, Place place, unsigned long long parent, owned, list todo, unwritten)
    cpdef _weigh(self, Place place, unsigned long long db, references, counts)
