# C-level declarations of bind.py.
from xok_host.kernel.extents cimport Extents
from xok_host.kernel.pages cimport Access, Arena, Pages
from xok_host.kernel.xn cimport udf
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.io cimport DeviceIo
from xok_host.kernel.xn.pending cimport Pending
from xok_host.kernel.xn.registry cimport Cached, Registry
from xok_host.kernel.xn.types cimport XnType


cdef class Owned:
    cdef Cached _parent
    cdef dict _asked
    cdef long long _since
    cdef by(self, unsigned int part)


cpdef check_extents(Device device, Extents extents)
cpdef long bind(
    Device device, Cached parent, capability, Extents extents, Pending pending, bint quarantined_only
) except -1
cdef _check_owned(
    Device device, Cached parent, Owned asked, unsigned int part, unsigned long long db, unsigned long long count
)
cpdef _start(Device device, Cached entry, unsigned long long page)
cdef unsigned long long _absent(Device device, unsigned long long block, unsigned long long end) except? 0
cdef _bring_in(
    Device device,
    Cached parent,
    unsigned int part,
    XnType child,
    Access access,
    unsigned long long block,
    unsigned long long count,
    Pending pending,
)
cdef _adopt(Device device, Cached entry, Cached parent, unsigned int part, XnType xtype)
cdef _leave_quarantine(Device device, Cached entry, Access access)
