# C-level declarations of txn.py.
from xok_host.kernel.xn cimport apply, methods, plan, udf, verify
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.registry cimport Cached
from xok_host.kernel.xn.shadow cimport Claim, Move, Shadow, Touched, Transaction
from xok_host.kernel.xn.types cimport XnType


cpdef run(Transaction t, bytes data, int call)
cdef parse(Transaction t, bytes data, int call)
cdef Shadow shadow_of(Transaction t, unsigned long long da, bint plain)
cdef name_extent(
    Transaction t, int kind, Touched touched, unsigned long long db, unsigned long long count, unsigned int type_id,
    unsigned long long page, int flags
)
cdef bint root_data(
    Transaction t, unsigned long long da, unsigned long long db, unsigned long long count, unsigned long long page, int nvec
) except -1
cdef show(Transaction t, unsigned long long da, long nvec)
cdef Touched touch(Transaction t, Shadow shadow, unsigned int part)
cdef write_bytes(Shadow shadow, unsigned int part, long offset, bytes data, long at, long nbytes)
cdef bint within(windows, unsigned long long offset, unsigned long long end) except -1
cdef Device on_device(Transaction t, unsigned long long da)
cdef check(Transaction t)
