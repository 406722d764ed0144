cimport cython
from libc.stdint cimport uint8_t, uint32_t, int64_t
from netstack.wire.octets cimport at, get16, get32, to_bytes, w32
from netstack.xio.constants cimport *
from netstack.xio.congestion cimport Congestion
from netstack.xio.output cimport Output, LARGEST_SEGMENT, TIMESTAMP_OPTION
from netstack.xio.reassembly cimport Reassembly
from netstack.xio.seq cimport seq_add, seq_diff, seq_lt, seq_le
from netstack.xio.tcb cimport Application, Tcb

cdef int QUICK_ACKS
cdef int64_t CHALLENGE_INTERVAL, DELAYED_ACK, FIN_WAIT_2_TIME, PAWS_IDLE

cdef class Machine(Output):
    # The segment in hand.
    cdef uint32_t seq
    cdef uint32_t ack
    cdef uint32_t wnd
    cdef int flags
    cdef const uint8_t *text
    cdef Py_ssize_t length
    cdef bint has_timestamp
    cdef uint32_t tsval
    cdef uint32_t tsecr
    cdef int mss_option
    cdef int scale_option
    cdef readonly int64_t challenges
    cdef readonly int64_t duplicates
    cdef int process(self, Tcb tcb) except -1
    cdef int syn_sent(self, Tcb tcb) except -1
    cdef int syn_received(self, Tcb tcb) except -1
    cdef int established(self, Tcb tcb) except -1
    cdef int fin_wait_1(self, Tcb tcb) except -1
    cdef int fin_wait_2(self, Tcb tcb) except -1
    cdef int close_wait(self, Tcb tcb) except -1
    cdef int closing(self, Tcb tcb) except -1
    cdef int last_ack(self, Tcb tcb) except -1
    cdef bint acceptable(self, Tcb tcb) except -1
    cdef bint reject(self, Tcb tcb) except -1
    cdef int challenge(self, Tcb tcb) except -1
    cdef int take_options(self, Tcb tcb) except -1
    cdef int open(self, Tcb tcb) except -1
    cdef bint take_ack(self, Tcb tcb) except -1
    cdef int take_new_ack(self, Tcb tcb, Py_ssize_t acked) except -1
    cdef int take_text(self, Tcb tcb) except -1
    cdef int deliver(self, Tcb tcb, const uint8_t *data, Py_ssize_t length) except -1
    cdef bint take_fin(self, Tcb tcb) except -1
    cdef int admitted(self, Tcb tcb) except -1
    cdef int settle(self, Tcb tcb) except -1
    cdef int finish(self, Tcb tcb, int reason) except -1
    cdef int rest(self, Tcb tcb) except -1
