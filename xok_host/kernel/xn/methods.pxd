# C-level declarations of methods.py.
from xok_host.kernel.xn.registry cimport Cached
from xok_host.kernel.xn.shadow cimport Shadow, Transaction
from xok_host.kernel.xn.types cimport XnType


cpdef approve(Transaction t)
