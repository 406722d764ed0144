# C-level declarations of callloop.py.
from xok_host.abi.channel cimport Completion, Entry, KernelRing
from xok_host.host.epoll cimport Epoll


cdef class Kernel:
    cpdef before_turn(self)
    cpdef Completion execute(self, long env, Entry entry)
    cpdef after_turn(self)


cdef class _Client:
    cdef public long env
    cdef public int bell
    cdef public object sock, memory
    cdef public KernelRing ring
    cdef public dict events
    cdef public bint ready, to_wake, gone


cdef class _Pending:
    cdef public _Client client
    cdef public Entry entry
    cdef public unsigned long long cookie


cdef class LoopStatistics:
    cdef public long crossings, entries, faults, refusals, turns


cdef class CallLoop:
    cdef Kernel _kernel
    cdef object _on_flood
    cdef Epoll _epoll
    cdef dict _clients, _by_fd, _handlers, _pending
    cdef public list _ready
    cdef list _to_wake
    cdef unsigned long long _next_token
    cdef public LoopStatistics counts
    cpdef complete(self, Completion answer)
    cdef _make_ready(self, _Client client)
    cdef _serve_all(self)
    cdef _serve(self, _Client client)
    cdef _carry_out(self, _Client client, Entry entry)
    cdef _answer(self, _Client client, Entry entry, unsigned long long cookie, Completion answer)
    cdef _wake(self, _Client client)
    cdef _wake_all(self)
