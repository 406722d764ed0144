# C-level declarations of scan.py.
cimport cython
from libc.stdint cimport uint8_t, uint64_t

cdef extern from *:
    """
    #define SCAN_TOKEN_LOW 0x03FF6CFA00000000ULL
    #define SCAN_TOKEN_HIGH 0x57FFFFFFC7FFFFFEULL
    """
    const uint64_t TOKEN_LOW "SCAN_TOKEN_LOW"
    const uint64_t TOKEN_HIGH "SCAN_TOKEN_HIGH"

cdef enum:
    FORM_NEXT = 0
    FORM_CLOSE = 1
    FORM_KEEP = 2
    FORM_HEAD = 4
    LONGEST_LINE = 8192
    LONGEST_HEAD = 16384
    MOST_FIELDS = 100

cdef inline bint is_token(int c) noexcept nogil:
    return c < 128 and ((TOKEN_LOW if c < 64 else TOKEN_HIGH) >> (c & 63)) & 1

@cython.final
cdef class Scan:
    cdef readonly int path
    cdef readonly int path_length
    cdef readonly int form
    cdef readonly int end
    @cython.locals(at=int, c=int, minor=int, hosts=int, fields=int, name=int, size=int, option=int, head=int)
    cdef bint run(self, const uint8_t *data, Py_ssize_t length) noexcept

@cython.locals(i=int)
cdef bint is_word(const uint8_t *data, int at, const char *word, int size) noexcept
@cython.locals(c=int, digits=int)
cdef int skip_host(const uint8_t *data, int at, Py_ssize_t length) noexcept
