# cython: language_level=3, annotation_typing=False, infer_types=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, cdivision=True
"""Segments out (RFC 9293 section 3.8, 3.10): what may be sent now, and how a frame is put together.

Every TCB carries the header of its frames; a segment fills in what differs and names the data where it lies.  Up to
64 KB go out as one frame: the virtio header asks whoever needs it to cut it up and to finish the checksum.

OUT-1  Nothing is sent beyond min(SND.WND, cwnd), except a window probe.
OUT-2  A segment that is shorter than the MSS is sent only if it empties the queue, or (silly window) when nothing else
       can move: RFC 9293 section 3.8.6.2.1.  There is no Nagle delay: the application says what belongs together.
OUT-3  The right edge of the receive window never moves left (section 3.8.6).
OUT-4  Whatever is outstanding has a running timer: retransmission, or persist when the window is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cython

from netstack.xio.gather import Iov
from netstack.xio.tcb import Endpoint, Tcb

if TYPE_CHECKING:
    from netstack.wire.octets import Octets
    from netstack.xio.link import Link

if not cython.compiled:
    from netstack.wire.octets import copy, fold, put16, put16le, put32, sum16, w32
    from netstack.xio.constants import (
        ACK,
        ESTABLISHED,
        FIN,
        PSH,
        RST,
    )
    from netstack.xio.seq import seq_add, seq_diff

    # Where things are in a frame's header; the virtio header starts at 2, so that the rest is aligned.
    AT_VNET = 2
    AT_ETHERNET = 12
    AT_IP = 26
    AT_TCP = 46
    AT_OPTIONS = 66
    HEADERS = 64  # virtio, Ethernet, IPv4, TCP without options
    TIMESTAMP_OPTION = 12
    LARGEST_SEGMENT = 65160  # 45 × 1448: a frame must stay below 64 KB

PERSIST_MAX = 60_000_000


class Output(Endpoint):
    """Everything that sends.  `now` is the time in µs that the caller last told."""

    def __init__(self, link: Link, address: int, mac: bytes, mtu: int, now: int) -> None:
        self.link = link
        self.address = address
        self.mtu = mtu
        self.now = now
        self.iov = Iov()
        if not cython.compiled:
            self.scratch = bytearray(128)
            self.mac = bytearray(6)
        copy(self.mac, 0, mac, 0, 6)
        self.segments_out = 0
        self.octets_out = 0
        self.retransmitted = 0
        self.resets_out = 0

    # ---- headers

    def prepare(self, tcb: Tcb) -> int:
        """Fill in what is the same in all frames of a connection; addresses, ports and remote_mac are set."""
        header = tcb.header
        for i in range(112):
            header[i] = 0
        header[AT_VNET] = 1  # NEEDS_CSUM
        put16le(header, AT_VNET + 6, 34)
        put16le(header, AT_VNET + 8, 16)
        copy(header, AT_ETHERNET, tcb.remote_mac, 0, 6)
        copy(header, AT_ETHERNET + 6, self.mac, 0, 6)
        put16(header, AT_ETHERNET + 12, 0x0800)
        header[AT_IP] = 0x45
        header[AT_IP + 6] = 0x40  # do not fragment: then the identification means nothing (RFC 6864)
        header[AT_IP + 8] = 64
        header[AT_IP + 9] = 6
        put32(header, AT_IP + 12, tcb.local_address)
        put32(header, AT_IP + 16, tcb.remote_address)
        put16(header, AT_TCP, tcb.local_port)
        put16(header, AT_TCP + 2, tcb.remote_port)
        tcb.ip_sum = sum16(header, AT_IP, 20, 0)
        tcb.pseudo_sum = sum16(header, AT_IP + 12, 8, 6)
        return 0

    def timestamp(self, tcb: Tcb) -> int:
        """TSval: milliseconds with an offset of the connection's own (RFC 7323 section 5.4)."""
        return w32(self.now // 1000 + tcb.ts_offset)

    def window(self, tcb: Tcb) -> int:
        """SEG.WND to announce (OUT-3)."""
        free = seq_diff(tcb.rcv_buffer, tcb.rcv_held)  # signed: more may be held than the buffer has
        if tcb.reassembly is not None:
            free -= tcb.reassembly.held
        if free < 0:
            free = 0
        if free >> tcb.rcv_scale > 65535:
            free = 65535 << tcb.rcv_scale  # what the field can say
        edge = seq_add(tcb.rcv_nxt, free)
        grown = seq_diff(edge, tcb.rcv_edge)
        if grown > 0 and (grown >= tcb.rcv_mss or tcb.rcv_held == 0):
            tcb.rcv_edge = edge  # not by a little when the buffer is short (section 3.8.6.2.2)
        announced = seq_diff(tcb.rcv_edge, tcb.rcv_nxt) >> tcb.rcv_scale
        return announced if announced < 65535 else 65535

    def segment(self, tcb: Tcb, seq: int, length: int, flags: int) -> int:
        """Send one segment with up to `length` octets from `seq`; the FIN in `flags` only if all of them went."""
        header = tcb.header
        options = TIMESTAMP_OPTION if tcb.timestamps else 0
        iov = self.iov
        iov.clear()
        iov.add(header, AT_VNET, HEADERS + options)
        if length:
            if seq != tcb.cursor_seq:
                tcb.seek(seq)
            wanted = length
            length = tcb.gather_into(iov, length)
            if length < wanted:
                flags &= ~FIN
        tcp_length = 20 + options + length
        put16(header, AT_IP + 2, 20 + tcp_length)
        put16(header, AT_IP + 10, fold(tcb.ip_sum + 20 + tcp_length) ^ 0xFFFF)
        put32(header, AT_TCP + 4, seq)
        put32(header, AT_TCP + 8, tcb.rcv_nxt)
        header[AT_TCP + 12] = (20 + options) << 2
        header[AT_TCP + 13] = flags
        put16(header, AT_TCP + 14, self.window(tcb))
        put16(header, AT_TCP + 16, fold(tcb.pseudo_sum + tcp_length))
        if options:
            put32(header, AT_OPTIONS, 0x0101080A)
            put32(header, AT_OPTIONS + 4, self.timestamp(tcb))
            put32(header, AT_OPTIONS + 8, tcb.ts_recent)
        header[AT_VNET + 1] = 1 if length > tcb.mss else 0
        put16le(header, AT_VNET + 2, 54 + options)
        put16le(header, AT_VNET + 4, tcb.mss if length > tcb.mss else 0)
        tcb.ack_now = False
        tcb.rcv_unacked = 0
        tcb.delack_at = 0
        if tcb.quick_acks > 0:
            tcb.quick_acks -= 1
        self.segments_out += 1
        self.octets_out += length
        self.link.send(iov)
        return length

    def synchronise(self, tcb: Tcb, flags: int) -> int:
        """Send SYN or SYN-ACK with our options: MSS, window scale, timestamps."""
        header = self.scratch
        copy(header, 0, tcb.header, 0, AT_OPTIONS)
        put16(header, AT_OPTIONS, 0x0204)
        put16(header, AT_OPTIONS + 2, self.mtu - 40)
        options = 4
        if tcb.rcv_scale >= 0 and (flags & ACK == 0 or tcb.snd_scale >= 0):
            put32(header, AT_OPTIONS + options, 0x01030300 | tcb.rcv_scale)
            options += 4
        if flags & ACK == 0 or tcb.timestamps:
            put32(header, AT_OPTIONS + options, 0x0101080A)
            put32(header, AT_OPTIONS + options + 4, self.timestamp(tcb))
            put32(header, AT_OPTIONS + options + 8, tcb.ts_recent)
            options += 12
        window = tcb.rcv_buffer if tcb.rcv_buffer < 65535 else 65535
        tcb.rcv_edge = seq_add(tcb.rcv_nxt, window)
        tcp_length = 20 + options
        put16(header, AT_IP + 2, 20 + tcp_length)
        put16(header, AT_IP + 10, fold(tcb.ip_sum + 20 + tcp_length) ^ 0xFFFF)
        put32(header, AT_TCP + 4, tcb.iss)
        put32(header, AT_TCP + 8, tcb.rcv_nxt if flags & ACK else 0)
        header[AT_TCP + 12] = tcp_length << 2
        header[AT_TCP + 13] = flags
        put16(header, AT_TCP + 14, window)
        put16(header, AT_TCP + 16, fold(tcb.pseudo_sum + tcp_length))
        put16le(header, AT_VNET + 2, 34 + tcp_length)
        iov = self.iov
        iov.clear()
        iov.add(header, AT_VNET, 44 + tcp_length)
        self.segments_out += 1
        self.link.send(iov)
        tcb.rexmit_at = self.now + tcb.rto.current()
        return self.arm(tcb)

    def control(
        self,
        mac: Octets,
        remote: int,
        ports: int,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        tsval: int,
        tsecr: int,
        timestamps: bool,
    ) -> int:
        """A segment that belongs to no TCB (a reset, the last acknowledgement); `ports` is local << 16 | remote."""
        header = self.scratch
        for i in range(112):
            header[i] = 0
        tcp_length = 32 if timestamps else 20
        header[AT_VNET] = 1
        put16le(header, AT_VNET + 2, 34 + tcp_length)
        put16le(header, AT_VNET + 6, 34)
        put16le(header, AT_VNET + 8, 16)
        copy(header, AT_ETHERNET, mac, 0, 6)
        copy(header, AT_ETHERNET + 6, self.mac, 0, 6)
        put16(header, AT_ETHERNET + 12, 0x0800)
        header[AT_IP] = 0x45
        put16(header, AT_IP + 2, 20 + tcp_length)
        header[AT_IP + 6] = 0x40
        header[AT_IP + 8] = 64
        header[AT_IP + 9] = 6
        put32(header, AT_IP + 12, self.address)
        put32(header, AT_IP + 16, remote)
        put16(header, AT_IP + 10, fold(sum16(header, AT_IP, 20, 0)) ^ 0xFFFF)
        put32(header, AT_TCP, ports)
        put32(header, AT_TCP + 4, seq)
        put32(header, AT_TCP + 8, ack)
        header[AT_TCP + 12] = tcp_length << 2
        header[AT_TCP + 13] = flags
        put16(header, AT_TCP + 14, window)
        put16(header, AT_TCP + 16, fold(sum16(header, AT_IP + 12, 8, 6 + tcp_length)))
        if timestamps:
            put32(header, AT_OPTIONS, 0x0101080A)
            put32(header, AT_OPTIONS + 4, tsval)
            put32(header, AT_OPTIONS + 8, tsecr)
        iov = self.iov
        iov.clear()
        iov.add(header, AT_VNET, 44 + tcp_length)
        self.segments_out += 1
        if flags & RST:
            self.resets_out += 1
        return self.link.send(iov)

    # ---- what may be sent

    def push(self, tcb: Tcb) -> int:
        """Send all that the windows allow, and an acknowledgement if one is owed and nothing carried it."""
        if tcb.state < ESTABLISHED:
            return 0
        sent = False
        mss = tcb.mss
        if tcb.snd_nxt == tcb.snd_una and tcb.last_sent_at and self.now - tcb.last_sent_at > tcb.rto.current():
            tcb.congestion.idle()
        while True:
            unsent = seq_diff(tcb.snd_end, tcb.snd_nxt)
            if unsent < 0:
                break  # the FIN is out
            limit = tcb.congestion.cwnd
            if tcb.snd_wnd < limit:
                limit = tcb.snd_wnd
            usable = limit - seq_diff(tcb.snd_nxt, tcb.snd_una)
            fin = tcb.fin_queued
            if unsent == 0:
                if not fin or (usable <= 0 and tcb.snd_nxt != tcb.snd_una):
                    break
                n = 0
            else:
                n = unsent if unsent < usable else usable
                if n > tcb.gso_limit:
                    n = tcb.gso_limit
                if n <= 0:
                    break
                if n < unsent:
                    if n >= mss:
                        n -= n % mss
                    elif tcb.snd_nxt != tcb.snd_una and n < tcb.snd_wnd_max // 2:
                        break
                elif tcb.more and not fin and n % mss:
                    n -= n % mss
                    if n == 0:
                        break
            flags = ACK
            if n == unsent:
                flags |= PSH
                if fin:
                    flags |= FIN
            again = tcb.snd_nxt != tcb.snd_max
            start = tcb.snd_nxt
            if n:
                n = self.segment(tcb, start, n, flags)
                if n < unsent:
                    flags &= ~FIN
            else:
                self.segment(tcb, start, 0, FIN | ACK)
                flags = FIN
            sent = True
            if flags & FIN:
                n += 1
            tcb.snd_nxt = seq_add(start, n)
            if seq_diff(tcb.snd_nxt, tcb.snd_max) > 0:
                tcb.snd_max = tcb.snd_nxt
            if again:
                self.retransmitted += 1
            elif tcb.rtt_at == 0:
                tcb.rtt_at = self.now
                tcb.rtt_seq = tcb.snd_nxt
        if sent:
            tcb.last_sent_at = self.now
            tcb.persist_at = 0
            if tcb.rexmit_at == 0:
                tcb.rexmit_at = self.now + tcb.rto.current()
                self.arm(tcb)
        else:
            if tcb.ack_now:
                self.acknowledge(tcb)
            if (
                tcb.snd_nxt == tcb.snd_una
                and tcb.persist_at == 0
                and (seq_diff(tcb.snd_end, tcb.snd_nxt) > 0 and not tcb.more)
            ):
                tcb.persist_shift = 0
                tcb.persist_at = self.now + tcb.rto.current()
                self.arm(tcb)
        return 0

    def acknowledge(self, tcb: Tcb) -> int:
        """A segment without data."""
        self.segment(tcb, tcb.snd_nxt, 0, ACK)
        return 0

    def transmit_again(self, tcb: Tcb) -> int:
        """Retransmit the first unacknowledged segment (fast retransmit, partial acknowledgement)."""
        n = seq_diff(tcb.snd_end, tcb.snd_una)
        flags = ACK
        if n > tcb.mss:
            n = tcb.mss
        elif tcb.fin_queued and seq_diff(tcb.snd_max, tcb.snd_end) > 0:
            flags |= FIN
        self.retransmitted += 1
        tcb.rtt_at = 0
        if n > 0:
            self.segment(tcb, tcb.snd_una, n, flags)
            tcb.seek(tcb.snd_nxt if seq_diff(tcb.snd_nxt, tcb.snd_end) < 0 else tcb.snd_end)
        elif flags & FIN:
            self.segment(tcb, tcb.snd_una, 0, flags)
        tcb.rexmit_at = self.now + tcb.rto.current()
        return self.arm(tcb)

    def probe(self, tcb: Tcb) -> int:
        """One octet beyond a closed window (section 3.8.6.1); it counts as sent when it is acknowledged."""
        if seq_diff(tcb.snd_end, tcb.snd_nxt) > 0:
            self.segment(tcb, tcb.snd_nxt, 1, ACK)
            tcb.seek(tcb.snd_nxt)
            beyond = seq_add(tcb.snd_nxt, 1)
            if seq_diff(beyond, tcb.snd_max) > 0:
                tcb.snd_max = beyond
        if tcb.persist_shift < 10:
            tcb.persist_shift += 1
        wait = tcb.rto.current() << tcb.persist_shift
        tcb.persist_at = self.now + (wait if wait < PERSIST_MAX else PERSIST_MAX)
        return self.arm(tcb)

    def reset_connection(self, tcb: Tcb) -> int:
        """RST with the next sequence number."""
        ports = w32(tcb.local_port << 16 | tcb.remote_port)
        return self.control(
            tcb.remote_mac, tcb.remote_address, ports, tcb.snd_nxt, tcb.rcv_nxt, RST | ACK, 0, 0, 0, False
        )

    def arm(self, tcb: Tcb) -> int:
        """Have the wheel look at the TCB at its earliest deadline."""
        raise NotImplementedError
