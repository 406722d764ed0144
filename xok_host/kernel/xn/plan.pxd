# C-level declarations of plan.py.
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.registry cimport Cached
from xok_host.kernel.xn.shadow cimport Move, Shadow, Touched, Transaction


cpdef order_of(Transaction t)
