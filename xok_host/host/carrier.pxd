# C-level declarations of carrier.py.
from xok_host.kernel.pages cimport Pages
from xok_host.kernel.request cimport IoRequest


cdef class Carrier:
    cdef object _kernel
    cdef dict _disks
    cpdef start(self)
