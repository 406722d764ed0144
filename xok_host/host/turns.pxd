# C-level declarations of turns.py.
from xok_host.abi.channel cimport Completion, Entry
from xok_host.host.callloop cimport CallLoop
from xok_host.host.callloop cimport Kernel as Served
from xok_host.host.carrier cimport Carrier
from xok_host.kernel.kernel cimport Kernel


cdef class Turns(Served):
    cdef Kernel _kernel
    cdef Carrier _carrier
    cdef object _chunks, _own_slot, _on_own
    cdef public CallLoop loop
    cpdef before_turn(self)
    cpdef Completion execute(self, long env, Entry entry)
    cpdef after_turn(self)
    cpdef double wait_seconds(self) except? -2
