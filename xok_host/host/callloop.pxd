# C-level declarations of callloop.py.
from xok_host.abi.channel cimport Completion, Entry, KernelRing


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
    cdef public object cookie


cdef class LoopStatistics:
    cdef public long crossings, entries, faults, refusals, turns


cdef class CallLoop:
    cdef public object _kernel, _on_flood, _epoll, _ready
    cdef public dict _clients, _by_fd, _handlers, _pending
    cdef public list _to_wake
    cdef public object _next_token
    cdef public LoopStatistics counts
    cpdef complete(self, Completion answer)
    cdef _make_ready(self, _Client client)
    cdef _serve(self, _Client client)
    cdef _carry_out(self, _Client client, Entry entry)
    cdef _answer(self, _Client client, Entry entry, object cookie, Completion answer)
    cdef _wake(self, _Client client)
    cdef _wake_all(self)
