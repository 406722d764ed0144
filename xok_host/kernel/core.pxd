# C-level declarations of core.py.
from xok_host.kernel.pages cimport Pages
from xok_host.kernel.tables cimport Counters
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.registry cimport Registry


cdef class Core:
    cdef public object tables
    cdef public long long now
    cdef public Counters counters
    cdef public Registry registry
    cdef public Pages pages
    cdef public long share
    cdef public dict devices, starting, failed
    cpdef Device device(self, unsigned long long dev)
