# C-level declarations of env.py.
from xok_host.kernel.capability cimport CapabilityTable
from xok_host.kernel.pageset cimport PageSet


cdef class Environment:
    cdef public unsigned int id
    cdef public object name, group
    cdef public long long uid
    cdef public CapabilityTable capabilities
    cdef public PageSet pages
    cdef public set trees, locks
    cdef public dict pinned, unsettled
    cdef public long npins, pending
    cdef public bint alive
