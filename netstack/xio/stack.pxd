cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t
from netstack.wire.octets cimport at, copy, fold, get16, get16le, get32, put16, put32, sum16, to_bytes, w32, w64
from netstack.xio.constants cimport *
from netstack.xio.demux cimport Entry, Table
from netstack.xio.gather cimport Gather, Iov
from netstack.xio.isn cimport initial_sequence, siphash
from netstack.xio.seq cimport seq_add, seq_diff
from netstack.xio.states cimport Machine
from netstack.xio.tcb cimport Application, Tcb
from netstack.xio.timers cimport Timed, Wheel

cdef int SCALE, REMNANTS, IDLE_TCBS, SYN_RETRIES, RETRIES, PERSIST_RETRIES, RESOLVE_TRIES
cdef uint64_t CONNECTIONS
cdef int64_t TIME_WAIT_TIME, RESOLVE_WAIT

cdef class Remnant(Entry):
    cdef uint32_t snd_nxt
    cdef uint32_t rcv_nxt
    cdef uint32_t ts_recent
    cdef uint32_t ts_offset
    cdef bint timestamps
    cdef int64_t until
    cdef uint8_t[6] remote_mac

cdef class Listener:
    cdef readonly Application application
    cdef readonly uint16_t port
    cdef int waiting
    cdef int backlog

cdef class Stack(Machine):
    cdef readonly Table table
    cdef Wheel wheel
    cdef uint64_t key0
    cdef uint64_t key1
    cdef dict listeners
    cdef Listener last_listener
    cdef list idle
    cdef object remnants
    cdef int resting
    cdef object on_other
    cdef dict neighbours
    cdef dict resolving
    cdef int next_port
    cdef readonly int64_t segments_in
    cdef readonly int64_t octets_in
    cdef readonly int64_t malformed
    cdef readonly int64_t opened_passive
    cdef readonly int64_t opened_active
    cdef readonly int64_t refused
    cdef readonly int64_t timeouts
    cpdef int feed(self, bytes frame) except -1
    cdef int input(self, const uint8_t *frame, Py_ssize_t size) except -1
    cdef int tcp(self, const uint8_t *frame, Py_ssize_t end, Py_ssize_t header) except -1
    cdef bint read_options(self, const uint8_t *options, Py_ssize_t length) noexcept
    cdef int other(self, const uint8_t *frame, Py_ssize_t size) except -1
    @cython.locals(listener=Listener)
    cdef int unknown(self, const uint8_t *frame, uint32_t remote, uint32_t local_port, uint32_t remote_port) except -1
    cdef int arrive(self, Listener listener, const uint8_t *frame, uint32_t remote, uint32_t local_port, uint32_t remote_port) except -1
    @cython.locals(tcb=Tcb, idle=list)
    cdef Tcb make(self, Application application, uint32_t remote, uint32_t local_port, uint32_t remote_port)
    cdef int remnant_input(self, Remnant remnant, const uint8_t *frame) except -1
    @cython.locals(listener=Listener)
    cdef int admitted(self, Tcb tcb) except -1
    cdef int forget(self, Tcb tcb) except -1
    cdef int expired(self, Tcb tcb) except -1
    @cython.locals(oldest=Remnant)
    cpdef int advance(self, int64_t now) except -1
    cpdef int64_t next_deadline(self) except -1
