# The C bodies of octets.py, inlined into every compiled module that cimports them. Same names, same meaning.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "arpa/inet.h" nogil:
    uint16_t ntohs(uint16_t)
    uint32_t ntohl(uint32_t)
    uint16_t htons(uint16_t)
    uint32_t htonl(uint32_t)

cdef inline uint32_t get16(const uint8_t *buffer, Py_ssize_t offset) noexcept nogil:
    cdef uint16_t v
    memcpy(&v, buffer + offset, 2)
    return ntohs(v)

cdef inline uint32_t get32(const uint8_t *buffer, Py_ssize_t offset) noexcept nogil:
    cdef uint32_t v
    memcpy(&v, buffer + offset, 4)
    return ntohl(v)

cdef inline void put16(uint8_t *buffer, Py_ssize_t offset, uint32_t value) noexcept nogil:
    cdef uint16_t v = htons(<uint16_t> value)
    memcpy(buffer + offset, &v, 2)

cdef inline void put32(uint8_t *buffer, Py_ssize_t offset, uint32_t value) noexcept nogil:
    cdef uint32_t v = htonl(value)
    memcpy(buffer + offset, &v, 4)

cdef inline uint32_t get16le(const uint8_t *buffer, Py_ssize_t offset) noexcept nogil:
    return <uint32_t> buffer[offset] | <uint32_t> buffer[offset + 1] << 8

cdef inline void put16le(uint8_t *buffer, Py_ssize_t offset, uint32_t value) noexcept nogil:
    buffer[offset] = <uint8_t> value
    buffer[offset + 1] = <uint8_t> (value >> 8)

cdef inline void copy(uint8_t *target, Py_ssize_t at_target, const uint8_t *source, Py_ssize_t at_source,
                      Py_ssize_t length) noexcept nogil:
    memcpy(target + at_target, source + at_source, length)

cdef inline const uint8_t *at(const uint8_t *buffer, Py_ssize_t offset) noexcept nogil:
    return buffer + offset

cdef inline bytes to_bytes(const uint8_t *buffer, Py_ssize_t offset, Py_ssize_t length):
    return (<const char *> (buffer + offset))[:length]

cdef inline uint32_t sum16(const uint8_t *buffer, Py_ssize_t offset, Py_ssize_t length, uint32_t start) noexcept nogil:
    cdef const uint8_t *p = buffer + offset
    cdef uint32_t total = start
    while length > 1:
        total += <uint32_t> p[0] << 8 | p[1]
        p += 2
        length -= 2
    if length:
        total += <uint32_t> p[0] << 8
    return total

cdef inline uint32_t fold(uint32_t total) noexcept nogil:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total

cdef inline uint32_t w32(uint64_t value) noexcept nogil:
    return <uint32_t> value

cdef inline uint64_t w64(uint64_t value) noexcept nogil:
    return value
