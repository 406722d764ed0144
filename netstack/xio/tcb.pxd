# C-level declarations of tcb.py. A compiled application (Cheetah) cimports Application, Tcb and Endpoint from here.
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, int32_t, int64_t
from netstack.wire.octets cimport to_bytes
from netstack.xio.constants cimport *
from netstack.xio.seq cimport seq_add, seq_diff
from netstack.xio.demux cimport Entry
from netstack.xio.gather cimport Gather, Iov
from netstack.xio.congestion cimport Congestion
from netstack.xio.rto cimport Rto
from netstack.xio.reassembly cimport Reassembly

cdef uint32_t RECEIVE_BUFFER

cdef class Application:
    cdef Tcb new_tcb(self)
    cdef int on_open(self, Tcb tcb) except -1
    cdef int on_data(self, Tcb tcb, const uint8_t *data, Py_ssize_t length) except -1
    cdef int on_sent(self, Tcb tcb) except -1
    cdef int on_end(self, Tcb tcb) except -1
    cdef int on_close(self, Tcb tcb, int reason) except -1
    cdef int on_alarm(self, Tcb tcb) except -1

cdef class PythonApplication(Application):
    cpdef data_received(self, Tcb tcb, bytes data)
    cpdef opened(self, Tcb tcb)
    cpdef sent(self, Tcb tcb)
    cpdef ended(self, Tcb tcb)
    cpdef closed(self, Tcb tcb, int reason)
    cpdef alarm(self, Tcb tcb)

cdef class Endpoint:
    cdef public int64_t now
    cdef int send(self, Tcb tcb, Gather gather, Py_ssize_t offset, Py_ssize_t length, int flags) except -1
    cdef int shut(self, Tcb tcb) except -1
    cdef int abort(self, Tcb tcb) except -1
    cdef int release(self, Tcb tcb, uint32_t length) except -1
    cdef int alarm(self, Tcb tcb, int64_t when) except -1

cdef class Span:
    cdef Gather gather
    cdef Py_ssize_t offset
    cdef Py_ssize_t length
    cdef Span later

cdef class Tcb(Entry):
    cdef readonly Endpoint endpoint
    cdef readonly Application application
    cdef public object context
    cdef readonly int state
    cdef bint passive
    cdef object listener
    # Send sequence variables (RFC 9293 section 3.3.1).
    cdef readonly uint32_t iss
    cdef readonly uint32_t snd_una
    cdef readonly uint32_t snd_nxt
    cdef readonly uint32_t snd_max
    cdef readonly uint32_t snd_end
    cdef readonly uint32_t snd_wnd
    cdef uint32_t snd_wl1
    cdef uint32_t snd_wl2
    cdef uint32_t snd_wnd_max
    cdef int snd_scale
    cdef readonly uint32_t mss
    cdef uint32_t gso_limit
    # Receive sequence variables.
    cdef readonly uint32_t irs
    cdef readonly uint32_t rcv_nxt
    cdef uint32_t rcv_edge
    cdef readonly uint32_t rcv_buffer
    cdef readonly uint32_t rcv_held
    cdef int rcv_scale
    cdef uint32_t rcv_mss
    cdef uint32_t rcv_unacked
    cdef Reassembly reassembly
    cdef int64_t fin_at
    # Timestamps (RFC 7323).
    cdef readonly bint timestamps
    cdef uint32_t ts_offset
    cdef uint32_t ts_recent
    cdef int64_t ts_recent_at
    # The send queue: [snd_una, snd_end) in gather buffers, and the place of snd_nxt in it.
    cdef Span head
    cdef Span tail
    cdef Py_ssize_t head_done
    cdef Span cursor
    cdef Py_ssize_t cursor_done
    cdef uint32_t cursor_seq
    cdef bint more
    cdef bint fin_queued
    # What is to be sent at the end of the current step.
    cdef int in_callback
    cdef bint ack_now
    cdef bint opened
    cdef bint doomed
    cdef bint owes_sent
    cdef bint dirty
    cdef int quick_acks
    # Loss recovery and timers; a time is µs, 0 is off.
    cdef Congestion congestion
    cdef Rto rto
    cdef int dup_acks
    cdef bint recovering
    cdef uint32_t recover
    cdef int retries
    cdef uint32_t rtt_seq
    cdef int64_t rtt_at
    cdef int64_t rexmit_at
    cdef int64_t persist_at
    cdef int persist_shift
    cdef int64_t delack_at
    cdef int64_t state_at
    cdef int64_t alarm_at
    cdef int64_t last_sent_at
    cdef int64_t challenge_at
    # The header every frame starts with: vnet, Ethernet, IPv4, TCP, timestamp option.
    cdef uint8_t[112] header
    cdef uint32_t ip_sum
    cdef uint32_t pseudo_sum
    cdef uint8_t[6] remote_mac

    cpdef int send(self, Gather gather, Py_ssize_t offset, Py_ssize_t length, int flags) except -1
    cpdef int send_bytes(self, bytes data, int flags=*) except -1
    cpdef int close(self) except -1
    cpdef int abort(self) except -1
    cpdef int hold(self, uint32_t length) except -1
    cpdef int release(self, uint32_t length) except -1
    cpdef int set_alarm(self, int64_t when) except -1
    cpdef int reset(self) except -1
    cpdef uint32_t unsent(self) noexcept
    cpdef uint32_t unacked(self) noexcept
    @cython.locals(span=Span)
    cdef int enqueue(self, Gather gather, Py_ssize_t offset, Py_ssize_t length) except -1
    cdef int dequeue(self, Py_ssize_t length) except -1
    cdef int clear_queue(self) except -1
    cdef int seek(self, uint32_t seq) except -1
    cdef Py_ssize_t gather_into(self, Iov iov, Py_ssize_t length) except -1
