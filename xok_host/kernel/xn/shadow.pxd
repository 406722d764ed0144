# C-level declarations of shadow.py.
from xok_host.kernel.core cimport Core
from xok_host.kernel.env cimport Environment
from xok_host.kernel.pages cimport Pages
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.registry cimport Cached


cdef bytearray _SPARE


cdef class Shadow:
    cdef public Cached entry
    cdef Pages _pages
    cdef object _before
    cdef public bytearray held
    cdef public int changed, present
    cdef public bint fresh, loose, plain, set_type
    cdef public dict reading
    cdef public unsigned long long copy_to, key
    cdef Shadow begin(self, Cached entry, Pages pages)
    cpdef bring(self, int sectors)
    cpdef end(self)


cdef class Touched:
    cdef public Shadow shadow
    cdef public unsigned int part
    cdef public int sector
    cdef public tuple said
    cdef public object before, after, references, counts, gained, lost
    cdef Touched begin(self, Shadow shadow, unsigned int part, int sector)


cdef class Move:
    cdef public Touched touched
    cdef public unsigned long long db, count, page
    cdef public unsigned int type
    cdef public int flags
    cdef public list found, zeroed
    cdef Move begin(
        self, Touched touched, unsigned long long db, unsigned long long count, unsigned int type_id,
        unsigned long long page, int flags
    )


cdef class Claim:
    cdef public Touched touched
    cdef public int at, change
    cdef public unsigned long long db, count, source
    cdef public unsigned int type


cdef class Transaction:
    cdef public Core kernel
    cdef public Environment env
    cdef public unsigned long long capability
    cdef public Device device
    cdef public list shadows, touched
    cdef public dict children, freed
    cdef public list allocs, frees, publishes, claims, moved, reference_order, edges, new_pages, witnesses, kinds
    cdef public int at, dependents, nops
    cdef public long long spent
    cdef public bint differs
    cdef Transaction begin(self, Core kernel, Environment env, unsigned long long capability)
    cpdef Shadow shadow(self, unsigned long long key)
    cpdef list parts(self, Shadow shadow)


cpdef list noted(list known, item)
