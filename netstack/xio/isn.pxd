cimport cython
from libc.stdint cimport uint32_t, uint64_t, int64_t
from netstack.wire.octets cimport w32, w64

cdef extern from *:
    """
    #define SIP_0 0x736F6D6570736575ULL
    #define SIP_1 0x646F72616E646F6DULL
    #define SIP_2 0x6C7967656E657261ULL
    #define SIP_3 0x7465646279746573ULL
    #define SIP_4 0x1000000000000000ULL
    """
    const uint64_t S0 "SIP_0"
    const uint64_t S1 "SIP_1"
    const uint64_t S2 "SIP_2"
    const uint64_t S3 "SIP_3"
    const uint64_t S4 "SIP_4"

cdef uint64_t siphash(uint64_t k0, uint64_t k1, uint64_t m0, uint64_t m1) noexcept
cdef uint32_t initial_sequence(uint64_t k0, uint64_t k1, uint32_t local, uint32_t remote, uint32_t ports, int64_t now) noexcept
