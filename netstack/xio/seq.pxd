# The C bodies of seq.py. Unsigned wrap-around and the signed cast are what the Python bodies spell out.
from libc.stdint cimport int32_t, uint32_t, int64_t

cdef inline uint32_t seq_add(uint32_t a, int64_t n) noexcept nogil:
    return a + <uint32_t> n

cdef inline int32_t seq_diff(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t> (a - b)

cdef inline bint seq_lt(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t> (a - b) < 0

cdef inline bint seq_le(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t> (a - b) <= 0
