# C-level declarations of dispatch.py, and the classes that its loops over blocks use.
from xok_host.kernel.core cimport Core
from xok_host.kernel.env cimport Environment
from xok_host.kernel.extents cimport Extents
from xok_host.kernel.xn cimport bind, txn, udf
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.io cimport DeviceIo
from xok_host.kernel.xn.pending cimport Pending, new_pending
from xok_host.kernel.xn.registry cimport Cached, Registry
from xok_host.kernel.xn.shadow cimport Transaction


cdef class Dispatch:
    cdef Core _kernel
    cdef public dict handlers
    cdef unsigned long long _tree(self, Environment env, long long index, int rights) except? 0
    cdef _write(self, dev, Extents extents)
    cdef long transaction(self, Environment env, long long cap, bytes data, int number) except -1


cdef _check_blocks(unsigned long long db, unsigned long long count)
