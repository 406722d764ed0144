# C-level declarations of cache.py.
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp
from netstack.xio.gather cimport Gather

cdef extern from *:
    """
    #define CHEETAH_MIX 0x9E3779B97F4A7C15ULL
    static inline uint64_t cheetah_load(uintptr_t at) {
        return __atomic_load_n((const uint64_t *) at, __ATOMIC_ACQUIRE);
    }
    """
    const uint64_t MIX "CHEETAH_MIX"
    uint64_t load_word "cheetah_load" (uintptr_t at) noexcept nogil

cdef enum:
    WORDS = 16

cdef inline uint64_t wrap(uint64_t value) noexcept nogil:
    return value

cdef inline bint same(const uint8_t *data, Py_ssize_t at, Py_ssize_t length, bytes key):
    return len(key) == length and memcmp(data + at, <const char *> key, length) == 0

cdef class Response(Gather):
    cdef readonly object document
    cdef Py_ssize_t first
    cdef Py_ssize_t span
    cdef readonly bytearray head
    cdef int date_at
    cdef readonly int64_t second
    cdef readonly int status
    cdef public bint close
    cdef bint held
    cdef bint cached
    cdef bint asks
    cdef int64_t asked
    cdef int64_t used
    cdef uint64_t hash
    cdef int form
    cdef bytes key
    cdef int place
    cdef Response chain
    cdef int words
    cdef uintptr_t[16] word_at
    cdef uint64_t[16] word_is
    cpdef int released(self) except -1
    cpdef int put_date(self, bytes date, int64_t second) except -1
    @cython.locals(i=int)
    cpdef bint valid(self) noexcept
    cpdef int drop(self) except -1

@cython.final
cdef class Cache:
    cdef uint64_t secret
    cdef uint64_t mask
    cdef list buckets
    cdef list all
    cdef int hand
    cdef int most
    cdef int64_t most_bytes
    cdef readonly int64_t bytes
    cdef readonly int64_t evicted
    cdef readonly int64_t stale
    cdef readonly int64_t renewed
    @cython.locals(h=uint64_t, i=Py_ssize_t)
    cdef uint64_t hash_of(self, const uint8_t *data, Py_ssize_t at, Py_ssize_t length, int form) noexcept
    @cython.locals(h=uint64_t, entry=Response)
    cdef Response find(self, const uint8_t *data, Py_ssize_t at, Py_ssize_t length, int form)
    @cython.locals(i=uint64_t)
    cpdef int insert(self, Response entry, bytes key, int form, int64_t now) except -1
    @cython.locals(i=uint64_t, at=Response, moved=Response)
    cpdef int remove(self, Response entry) except -1
    @cython.locals(oldest=Response, entry=Response)
    cdef int evict(self) except -1
    @cython.locals(fresh=Response)
    cpdef Response renew(self, Response entry, bytes date, int64_t second)

@cython.locals(made=Response)
cpdef Response build(object reply, int64_t second)
@cython.locals(made=Response)
cpdef Response window(object document, Py_ssize_t first, Py_ssize_t length)
cpdef int append(Response made, Py_ssize_t first, Py_ssize_t length) except -1
@cython.locals(i=int)
cpdef bint watch(Response made) except -1
@cython.locals(fresh=Response)
cdef Response succeed(Response entry)
