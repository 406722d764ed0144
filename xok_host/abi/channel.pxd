# C-level declarations of channel.py.
cdef class Entry:
    cdef public unsigned short number, flags
    cdef public unsigned int cap, out_offset, out_bytes
    cdef public unsigned long long cookie, a0, a1, a2, a3
    cdef public bytes data


cdef class Completion:
    cdef public unsigned long long cookie
    cdef public int code
    cdef public object r0, r1, data


cdef unsigned int _wrap(long long index) noexcept
cdef unsigned long long _low64(value) except? 0xFFFFFFFFFFFFFFFF
cdef long _whole_words(long nbytes) noexcept


cdef class _Ring:
    cdef public object memory
    cdef unsigned int[::1] _words
    cdef char *_start
    cpdef unsigned int _load(self, long at) except? 0xFFFFFFFF
    cpdef _store(self, long at, unsigned int value)
    cdef char *_base(self) except NULL
    cdef bytes _copy_out(self, long offset, long nbytes)
    cdef _copy_in(self, long offset, bytes data)


cdef class KernelRing(_Ring):
    cdef public unsigned int _sq_head, _cq_tail
    cdef public long owed
    cdef bint _news
    cpdef unsigned int pending(self) except? 0xFFFFFFFF
    cpdef long room(self) except -1
    cpdef Entry take(self)
    cpdef bint wake(self) except -1
    cpdef complete(self, Entry entry, int code, object r0=*, object r1=*, bytes data=*)
    cdef _push(self, unsigned long long cookie, int code, unsigned int nbytes, r0, r1)


cdef class _Area:
    cdef public long begin, end, out_offset, out_bytes
    cdef public bint done


cdef class ClientRing(_Ring):
    cdef public unsigned int _sq_tail, _cq_head
    cdef public unsigned long long _next_cookie, _oldest
    cdef public list _areas
    cdef public long _begin, _free_at, _held, unanswered
    cpdef unsigned long long push(
        self, int number, tuple scalars=*, unsigned int cap=*, bytes data=*, long out_bytes=*, int flags=*
    ) except 0
    cpdef bint queued(self) except -1
    cpdef publish(self)
    cpdef bint wait_here(self, bint here) except -1
    cpdef bint sleep(self, long long ns, unsigned int wanted=*) except -1
    cpdef Completion pop(self)
    cdef long _reserve(self, long nbytes) except -1
    cdef _release(self)
