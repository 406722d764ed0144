# C-level declarations of kernel.py: itself, and the classes that it uses for each request and when it makes room.
from xok_host.kernel.core cimport Core
from xok_host.kernel.env cimport Environment
from xok_host.kernel.pages cimport Access, Arena
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.io cimport DeviceIo
from xok_host.kernel.xn.pending cimport Pending
from xok_host.kernel.xn.registry cimport Cached, Registry


cdef class Kernel(Core):
    cdef public dict environments
    cdef public object completions, locks
    cdef public Environment running
    cdef object _random_id
    cdef readonly dict _handlers
    cdef set _ids
    cpdef execute(self, Environment env, object entry)
    cpdef _run(self, Environment env, object entry, object group)
    cpdef _refusal(self, object entry, object error)
    cpdef bint make_room(self, long count) except -1
