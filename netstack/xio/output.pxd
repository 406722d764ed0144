cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t
from netstack.wire.octets cimport put16, put32, put16le, copy, sum16, fold, w32
from netstack.xio.constants cimport *
from netstack.xio.congestion cimport Congestion
from netstack.xio.gather cimport Gather, Iov
from netstack.xio.link cimport Link
from netstack.xio.seq cimport seq_add, seq_diff
from netstack.xio.tcb cimport Endpoint, Tcb

cdef enum:
    AT_VNET = 2
    AT_ETHERNET = 12
    AT_IP = 26
    AT_TCP = 46
    AT_OPTIONS = 66
    HEADERS = 64
    TIMESTAMP_OPTION = 12
    LARGEST_SEGMENT = 65160

cdef int64_t PERSIST_MAX

cdef class Output(Endpoint):
    cdef readonly Link link
    cdef readonly uint32_t address
    cdef uint8_t[6] mac
    cdef readonly uint32_t mtu
    cdef Iov iov
    cdef uint8_t[128] scratch
    cdef readonly int64_t segments_out
    cdef readonly int64_t octets_out
    cdef readonly int64_t retransmitted
    cdef readonly int64_t resets_out
    cdef int prepare(self, Tcb tcb) except -1
    cdef uint32_t window(self, Tcb tcb) except? 0xFFFFFFFF
    cdef uint32_t timestamp(self, Tcb tcb) noexcept
    cdef Py_ssize_t segment(self, Tcb tcb, uint32_t seq, Py_ssize_t length, int flags) except -1
    cdef int synchronise(self, Tcb tcb, int flags) except -1
    cdef int push(self, Tcb tcb) except -1
    cdef int transmit_again(self, Tcb tcb) except -1
    cdef int probe(self, Tcb tcb) except -1
    cdef int acknowledge(self, Tcb tcb) except -1
    cdef int reset_connection(self, Tcb tcb) except -1
    cdef int control(self, const uint8_t *mac, uint32_t remote, uint32_t ports, uint32_t seq, uint32_t ack, int flags,
                     uint32_t window, uint32_t tsval, uint32_t tsecr, bint timestamps) except -1
    cdef int arm(self, Tcb tcb) except -1
