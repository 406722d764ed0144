# C-level declarations of bind.py.
from xok_host.kernel.pages cimport Access, Arena
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.registry cimport Cached


cpdef _start(Device device, Cached entry, unsigned long long page, object pending)
cdef _adopt(Device device, Cached entry, Cached parent, unsigned int part, unsigned int type_id)
