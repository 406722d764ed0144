# C-level declarations of verify.py.
from xok_host.kernel.xn cimport udf
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.registry cimport Cached
from xok_host.kernel.xn.shadow cimport Claim, Move, Shadow, Touched, Transaction
from xok_host.kernel.xn.types cimport XnType


cpdef ask(XnType xtype, meta, unsigned int part, unsigned long long db)
cpdef check_counts(XnType xtype, counts, unsigned int part, unsigned long long da)
cdef settle(Transaction t)
cdef settle_type(Transaction t, XnType xtype)
cdef pay(Transaction t, long long spent)
cdef charge(Transaction t)
cpdef modifications(Transaction t)
cpdef question(Transaction t)
cpdef ownership(Transaction t)
cpdef references(Transaction t)
cpdef frees(Transaction t)
cpdef claims(Transaction t)
cdef tuple remembered(Touched touched)
cdef owned(XnType xtype, unsigned int part, said)
cdef referred(XnType xtype, unsigned int part, unsigned long long db, said)
cdef counted(XnType xtype, unsigned int part, unsigned long long db, said)
cdef Py_ssize_t one_more(before, after) except -2
