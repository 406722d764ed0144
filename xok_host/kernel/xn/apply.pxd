# C-level declarations of apply.py.
from xok_host.kernel.env cimport Environment
from xok_host.kernel.pages cimport Access, Arena, Pages
from xok_host.kernel.pageset cimport PageSet
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.registry cimport Cached, Registry
from xok_host.kernel.xn.shadow cimport Move, Shadow, Touched, Transaction
from xok_host.kernel.xn.types cimport XnType


cpdef charge(Environment env, Cached entry)
cpdef reserve(Transaction t)
cpdef apply(Transaction t)
cdef Access child_access(Transaction t, Shadow shadow)
cdef apply_alloc(Transaction t, Device device, Move move)
cdef check_own_pages(Transaction t, unsigned long long page, unsigned long long count, Access access)
cdef apply_publish(Transaction t, Device device, Move move)
cdef apply_shadow(Transaction t, Device device, Shadow shadow)
cdef remember(Touched touched)
cdef bint copies(Transaction t) except -1
