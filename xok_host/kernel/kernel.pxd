# C-level declarations of kernel.py: itself, and the classes that it uses for each request and when it makes room.
from xok_host.abi.channel cimport Completion, Entry
from xok_host.kernel.core cimport Core
from xok_host.kernel.dispatch cimport Dispatch
from xok_host.kernel.env cimport Environment
from xok_host.kernel.pages cimport Access, Arena
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.io cimport DeviceIo
from xok_host.kernel.xn.locks cimport Locks
from xok_host.kernel.xn.pending cimport Pending
from xok_host.kernel.xn.registry cimport Cached, Registry


cdef class _Group:
    cdef public object queue
    cdef public bint waiting, failed


cdef class _Waiting:
    cdef Kernel kernel
    cdef Environment env
    cdef Entry entry
    cdef _Group group


cdef class Kernel(Core):
    cdef public dict environments
    cdef public object completions
    cdef public Locks locks
    cdef public Environment running
    cdef object _random_id
    cdef Dispatch _dispatch
    cdef readonly dict _handlers
    cdef set _ids
    cpdef tick(self, long long now_ns)
    cpdef list take_io(self)
    cpdef Completion execute(self, Environment env, Entry entry)
    cdef Completion _run(self, Environment env, Entry entry, _Group group)
    cdef Completion _wait(self, Environment env, Entry entry, _Group group, Pending pending)
    cdef _finish(self, Environment env, Entry entry, _Group group, Pending pending)
    cdef _complete(self, Environment env, Completion completion)
    cdef Completion _answer(self, Entry entry, Pending pending)
    cpdef io_done(self, unsigned long long token, int errno)
    cpdef Completion _refusal(self, Entry entry, object error)
    cpdef bint make_room(self, long count) except -1
