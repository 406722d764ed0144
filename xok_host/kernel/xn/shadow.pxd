# C-level declarations of shadow.py.
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.registry cimport Cached


cdef class Shadow:
    cdef public Cached entry
    cdef public object before
    cdef public bytearray bytes
    cdef public int changed
    cdef public bint fresh, loose, plain, set_type
    cdef public dict parts, reading
    cdef public unsigned long long copy_to


cdef class Touched:
    cdef public Shadow shadow
    cdef public unsigned int part
    cdef public int sector
    cdef public object before, after, references, counts, gained, lost


cdef class Move:
    cdef public Touched touched
    cdef public unsigned long long db, count, page
    cdef public unsigned int type
    cdef public int flags
    cdef public list zeroed


cdef class Claim:
    cdef public Touched touched
    cdef public int at, change
    cdef public unsigned long long db, count, source
    cdef public unsigned int type


cdef class Transaction:
    cdef public object kernel, env, capability, now
    cdef public Device device
    cdef public dict shadows, children, freed
    cdef public list claims, kinds, touched, allocs, frees, publishes, moved, reference_order, edges, new_pages
    cdef public list witnesses
    cdef public int at, dependents, nops
    cdef public long long spent
