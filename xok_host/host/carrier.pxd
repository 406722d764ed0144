# C-level declarations of carrier.py.
from xok_host.host.blockdev cimport BlockDevice
from xok_host.kernel.kernel cimport Kernel
from xok_host.kernel.pages cimport Pages
from xok_host.kernel.request cimport IoRequest


cdef class Ended:
    cdef Kernel kernel
    cdef unsigned long long token


cdef class Carrier:
    cdef Kernel _kernel
    cdef dict _disks
    cpdef start(self)
