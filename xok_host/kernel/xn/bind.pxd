# C-level declarations of bind.py.
from xok_host.kernel.pages cimport Access, Arena
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.io cimport DeviceIo
from xok_host.kernel.xn.pending cimport Pending
from xok_host.kernel.xn.registry cimport Cached
from xok_host.kernel.xn.types cimport XnType


cpdef _start(Device device, Cached entry, unsigned long long page, Pending pending)
cdef _adopt(Device device, Cached entry, Cached parent, unsigned int part, XnType xtype)
cdef _leave_quarantine(Device device, Cached entry, Access access)
