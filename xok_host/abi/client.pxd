# C-level declarations of client.py.
from xok_host.abi.channel cimport ClientRing, Completion


cdef class Environment:
    cdef public object _socket, id, name, args, caps, devices, registry, counters, freemaps, extra_fds, tap, on_event
    cdef public int _bell
    cdef public ClientRing ring
    cdef public bint stop_requested
    cdef bint _heard
    cdef Completion _last
    cdef public dict _done, _handlers, _chunks, _chunk_fds
    cdef public set _maps
    cdef public long _descriptors_due
    cpdef ring_doorbell(self)
    cpdef Completion wait(self, unsigned long long cookie)
    cpdef int dispatch(self) except -1
    cdef unsigned long long _submit(
        self, str name, tuple scalars, unsigned int cap, object data, long out_bytes, int flags, object then
    ) except 0
    cdef _wait_in_ring(self, unsigned long long cookie, long least=*)
    cdef Completion _take_done(self, unsigned long long cookie)
    cdef bint _is_done(self, unsigned long long cookie) except -1
    cdef _event(self, Completion completion)
