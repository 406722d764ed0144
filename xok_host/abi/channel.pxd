# C-level declarations of channel.py.
cdef class Entry:
    cdef public object number, flags, cap, cookie, a0, a1, a2, a3, data, out_offset, out_bytes


cdef class Completion:
    cdef public object cookie, code, r0, r1, data


cdef unsigned int _wrap(long long index) noexcept


cdef class _Ring:
    cdef public object memory
    cdef unsigned int[::1] _words
    cpdef unsigned int _load(self, long at) except? 0
    cpdef _store(self, long at, unsigned long long value)
    cdef char *_base(self) except NULL
    cdef bytes _copy_out(self, long offset, long nbytes)
    cdef _copy_in(self, long offset, bytes data)


cdef class KernelRing(_Ring):
    cdef public unsigned int _sq_head, _cq_tail
    cdef public long owed
    cpdef unsigned int pending(self) except? 0
    cpdef long room(self) except? 0
    cpdef take(self)
    cdef _push(self, cookie, code, nbytes, r0, r1)


cdef class _Area:
    cdef public long begin, end, out_offset, out_bytes
    cdef public bint done


cdef class ClientRing(_Ring):
    cdef public unsigned int _sq_tail, _cq_head
    cdef public object _next_cookie
    cdef public dict _areas
    cdef public object _order
    cdef public long _begin, _free_at, _held
    cpdef pop(self)
    cdef long _reserve(self, long nbytes) except -1
    cdef _release(self)
