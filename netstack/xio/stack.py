# cython: language_level=3, annotation_typing=False, infer_types=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, cdivision=True
"""A stack: one IPv4 address on one link, its connections, listeners and timers.

The owner of the loop does, in this order: `advance(now)` with the time in µs on a monotonic clock, then `feed` or
`input` for each frame that has come, and waits until `next_deadline()` or the next frame.  There is no clock, no
descriptor and no randomness here; `secret` is 16 random octets.

STACK-1  A frame that is not whole, not for this address, or whose checksum is wrong is counted and dropped.
STACK-2  Connections being opened are bounded by each listener's backlog, remnants by REMNANTS (the oldest goes first).
STACK-3  What is not TCP goes to `on_other` as bytes, if there is one (the owner of an address answers there).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import cython

from netstack.xio.demux import Entry, Table
from netstack.xio.states import Machine
from netstack.xio.tcb import Application, Tcb
from netstack.xio.timers import Wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    from netstack.wire.octets import Octets
    from netstack.xio.gather import Gather
    from netstack.xio.link import Link

if not cython.compiled:
    from netstack.wire.octets import at, copy, fold, get16, get32, put32, sum16, to_bytes, w32
    from netstack.xio.constants import (
        ACK,
        CLOSE_ABORTED,
        CLOSE_DONE,
        CLOSE_TIMEOUT,
        CLOSE_UNREACHABLE,
        CLOSE_WAIT,
        CLOSED,
        ESTABLISHED,
        FIN,
        FIN_WAIT_1,
        FIN_WAIT_2,
        KIND_REMNANT,
        KIND_TCB,
        LAST_ACK,
        RST,
        SEND_FIN,
        SEND_MORE,
        SYN,
        SYN_RECEIVED,
        SYN_SENT,
    )
    from netstack.xio.isn import initial_sequence, siphash
    from netstack.xio.seq import seq_add, seq_diff

SCALE = 4
"""Our window scale: enough for the receive buffer."""
BACKLOG = 1024
CONNECTIONS = 65536
"""Connections and remnants together, from which on no SYN is answered."""
REMNANTS = 32768
IDLE_TCBS = 1024
TIME_WAIT_TIME = 60_000_000
SYN_RETRIES = 6
RETRIES = 12
PERSIST_RETRIES = 12
EPHEMERAL = 32768
RESOLVE_TRIES = 3
RESOLVE_WAIT = 1_000_000
BROADCAST = b"\xff" * 6


class Remnant(Entry):
    """TIME-WAIT without a TCB: enough to answer a late FIN and to tell a new SYN from an old one (RFC 6191)."""

    if not cython.compiled:

        def __init__(self) -> None:
            Entry.__init__(self)
            self.remote_mac = bytearray(6)
            self.snd_nxt = self.rcv_nxt = self.ts_recent = self.ts_offset = 0
            self.timestamps = False
            self.until = 0


class Listener:
    """A port that is open to everybody; at most `backlog` connections are being opened."""

    def __init__(self, application: Application, port: int, backlog: int) -> None:
        self.application = application
        self.port = port
        self.backlog = backlog
        self.waiting = 0


class Stack(Machine):
    """TCP for one address."""

    def __init__(self, link: Link, address: int, mac: bytes, now: int, secret: bytes, mtu: int = 1500) -> None:
        Machine.__init__(self, link, address, mac, mtu, now)
        if len(secret) != 16:
            raise ValueError("the secret has 16 octets")
        self.key0 = int.from_bytes(secret[:8], "little")
        self.key1 = int.from_bytes(secret[8:], "little")
        self.table = Table(siphash(self.key0, self.key1, 0, 0))
        self.wheel = Wheel(now)
        self.listeners: dict[int, Listener] = {}
        self.last_listener: Listener | None = None
        self.idle: list[Tcb] = []
        self.remnants: deque[Remnant] = deque()
        self.resting = 0
        self.on_other: Callable[[bytes], object] | None = None
        self.neighbours: dict[int, bytes] = {}
        self.resolving: dict[int, list[Tcb]] = {}
        self.next_port = int(siphash(self.key1, self.key0, 1, 1) % (65536 - EPHEMERAL))
        self.challenges = self.duplicates = 0
        self.segments_in = self.octets_in = self.malformed = 0
        self.opened_passive = self.opened_active = self.refused = self.timeouts = 0

    # ---- for the program

    def listen(self, port: int, application: Application, backlog: int = BACKLOG) -> Listener:
        """Open a port (PASSIVE OPEN, section 3.10.1).  ValueError when it is open already."""
        if port in self.listeners:
            raise ValueError(f"port {port} is open already")
        listener = self.listeners[port] = Listener(application, port, backlog)
        return listener

    def unlisten(self, port: int) -> None:
        """Accept no more on a port; what is open stays."""
        del self.listeners[port]
        self.last_listener = None

    def set_other(self, handler: Callable[[bytes], object] | None) -> None:
        """Who gets frames that are not TCP to this address (STACK-3)."""
        self.on_other = handler

    @cython.locals(tcb=Tcb)
    def connect(self, application: Application, address: int, port: int, local_port: int = 0) -> Tcb:
        """Open a connection (ACTIVE OPEN).  The neighbour is asked for by ARP first.  ValueError: no free port."""
        tries = 0
        while local_port == 0 or self.table.find(self.address, local_port, address, port) is not None:
            if tries > 65536 - EPHEMERAL or (tries == 0 and local_port):
                raise ValueError("no free port" if not local_port else f"port {local_port} is in use")
            tries += 1
            self.next_port = (self.next_port + 1) % (65536 - EPHEMERAL)
            local_port = EPHEMERAL + self.next_port
        tcb = self.make(application, address, local_port, port)
        tcb.state = SYN_SENT
        tcb.passive = False
        tcb.retries = 0
        self.opened_active += 1
        mac = self.neighbours.get(address)
        if mac is None:
            self.resolving.setdefault(address, []).append(tcb)
            self._ask(address)
            tcb.state_at = self.now + RESOLVE_WAIT
            self.arm(tcb)
        else:
            copy(tcb.remote_mac, 0, mac, 0, 6)
            self._send_syn(tcb)
        return tcb

    @cython.locals(tcb=Tcb)
    def _send_syn(self, tcb: Tcb) -> None:
        tcb.state_at = 0
        self.prepare(tcb)
        tcb.rtt_at = self.now
        self.synchronise(tcb, SYN)

    @cython.locals(tcb=Tcb)
    def learn(self, address: int, mac: bytes) -> None:
        """A neighbour's address, from ARP: connections that wait for it go on."""
        self.neighbours[address] = mac
        for tcb in self.resolving.pop(address, ()):
            # It may have been aborted meanwhile, and be another connection now.
            if tcb.state == SYN_SENT and tcb.remote_address == address and tcb.state_at:
                tcb.retries = 0
                copy(tcb.remote_mac, 0, mac, 0, 6)
                self._send_syn(tcb)

    def _ask(self, address: int) -> None:
        request = bytearray(52)
        request[10:16] = BROADCAST
        request[16:22] = to_bytes(self.mac, 0, 6)
        request[22:32] = b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01"
        request[32:38] = to_bytes(self.mac, 0, 6)
        put32(request, 38, self.address)
        put32(request, 48, address)
        self.transmit_bytes(bytes(request))

    def transmit_bytes(self, frame: bytes) -> int:
        """Send one whole frame, virtio header first."""
        self.iov.clear()
        self.iov.add(frame, 0, len(frame))
        self.link.send(self.iov)
        return 0

    def statistics(self) -> dict[str, Any]:
        """Counters since the start."""
        return {
            "connections": self.table.count - self.resting,
            "remnants": self.resting,
            "segments_in": self.segments_in,
            "segments_out": self.segments_out,
            "octets_in": self.octets_in,
            "octets_out": self.octets_out,
            "retransmitted": self.retransmitted,
            "timeouts": self.timeouts,
            "duplicates": self.duplicates,
            "challenges": self.challenges,
            "resets_out": self.resets_out,
            "malformed": self.malformed,
            "refused": self.refused,
            "opened_passive": self.opened_passive,
            "opened_active": self.opened_active,
            "frames_refused_by_link": self.link.refused,
        }

    def shut_down(self) -> None:
        """Reset every connection and forget everything: the program ends."""
        for entry in self.table.entries():
            if entry.kind == KIND_TCB:
                self.abort(entry)  # type: ignore[arg-type]

    # ---- what a TCB asks for (Endpoint)

    def send(self, tcb: Tcb, gather: Gather, offset: int, length: int, flags: int) -> int:
        """See Endpoint."""
        if tcb.fin_queued or tcb.state < ESTABLISHED:
            raise ValueError("this side of the connection is closed")
        if offset < 0 or length < 0 or offset + length > gather.length:
            raise ValueError("the range is not inside the gather")
        if length:
            tcb.enqueue(gather, offset, length)
            tcb.owes_sent = True
        tcb.more = (flags & SEND_MORE) != 0
        if flags & SEND_FIN:
            return self.shut(tcb)
        if not tcb.in_callback:
            return self.settle(tcb)
        return 0

    def shut(self, tcb: Tcb) -> int:
        """See Endpoint (CLOSE, section 3.10.4)."""
        if tcb.fin_queued or tcb.state == CLOSED:
            return 0
        if tcb.state == SYN_SENT:
            return self.abort(tcb)  # there is nobody yet to tell
        tcb.fin_queued = True
        tcb.more = False
        if tcb.state == SYN_RECEIVED:
            return 0  # `open` goes on
        tcb.state = LAST_ACK if tcb.state == CLOSE_WAIT else FIN_WAIT_1
        if not tcb.in_callback:
            return self.settle(tcb)
        return 0

    def abort(self, tcb: Tcb) -> int:
        """See Endpoint (ABORT, section 3.10.5)."""
        if tcb.state == CLOSED:
            return 0
        if tcb.in_callback:
            tcb.doomed = True
            return 0
        if tcb.state != SYN_SENT:
            self.reset_connection(tcb)
        return self.finish(tcb, CLOSE_ABORTED)

    def release(self, tcb: Tcb, length: int) -> int:
        """See Endpoint; the peer hears of it when the window grew by two segments or half the buffer."""
        tcb.rcv_held -= length if tcb.rcv_held > length else tcb.rcv_held
        grown = seq_diff(tcb.rcv_buffer, tcb.rcv_held) - seq_diff(tcb.rcv_edge, tcb.rcv_nxt)
        if grown >= 2 * tcb.rcv_mss or grown >= tcb.rcv_buffer // 2:
            tcb.ack_now = True
            if not tcb.in_callback:
                return self.settle(tcb)
        return 0

    def alarm(self, tcb: Tcb, when: int) -> int:
        """See Endpoint."""
        tcb.alarm_at = when
        if when:
            self.arm(tcb)
        return 0

    # ---- frames in

    def feed(self, frame: bytes) -> int:
        """One frame as bytes, virtio header first."""
        return self.input(frame, len(frame))

    def input(self, frame: Octets, size: int) -> int:
        """One frame."""
        if size < 44:
            self.malformed += 1
            return 0
        if get16(frame, 22) != 0x0800 or frame[33] != 6:
            return self.other(frame, size)
        header = (frame[24] & 15) * 4
        if frame[24] >> 4 != 4 or header < 20 or size < 44 + header or get32(frame, 40) != self.address:
            return self.other(frame, size)
        if get16(frame, 30) & 0x3FFF:
            return self.other(frame, size)  # a fragment
        end = 24 + get16(frame, 26)
        if end > size or end < 44 + header or fold(sum16(frame, 24, header, 0)) != 0xFFFF:
            self.malformed += 1
            return 0
        if frame[0] & 3 == 0:
            # Nobody vouches for the checksum (neither “partial” nor “checked” in the virtio header).
            tcp_length = end - 24 - header
            if fold(sum16(frame, 24 + header, tcp_length, sum16(frame, 36, 8, 6 + tcp_length))) != 0xFFFF:
                self.malformed += 1
                return 0
        return self.tcp(frame, end, 24 + header)

    def tcp(self, frame: Octets, end: int, header: int) -> int:
        """The TCP segment at `header`, to `end`."""
        offset = (frame[header + 12] >> 4) * 4
        if offset < 20 or header + offset > end:
            self.malformed += 1
            return 0
        self.seq = get32(frame, header + 4)
        self.ack = get32(frame, header + 8)
        self.flags = frame[header + 13] & 0x3F
        self.wnd = get16(frame, header + 14)
        self.length = end - header - offset
        self.text = at(frame, header + offset)
        self.has_timestamp = False
        if offset == 32 and not self.flags & SYN and get32(frame, header + 20) == 0x0101080A:
            self.has_timestamp = True
            self.tsval = get32(frame, header + 24)
            self.tsecr = get32(frame, header + 28)
        elif offset > 20 or self.flags & SYN:
            if not self.read_options(at(frame, header + 20), offset - 20):
                self.malformed += 1
                return 0
        self.segments_in += 1
        self.octets_in += self.length
        remote = get32(frame, 36)
        remote_port = get16(frame, header)
        local_port = get16(frame, header + 2)
        entry = self.table.find(self.address, local_port, remote, remote_port)
        if entry is None:
            return self.unknown(frame, remote, local_port, remote_port)
        if entry.kind == KIND_TCB:
            return self.process(entry)  # type: ignore[arg-type]
        return self.remnant_input(entry, frame)  # type: ignore[arg-type]

    def read_options(self, options: Octets, length: int) -> bool:
        """MSS, window scale, timestamps; False when they are malformed (section 3.1)."""
        self.mss_option = 536
        self.scale_option = -1
        i = 0
        while i < length:
            kind = options[i]
            if kind == 0:
                break
            if kind == 1:
                i += 1
                continue
            if i + 1 >= length:
                return False
            size = options[i + 1]
            if size < 2 or i + size > length:
                return False
            if kind == 2 and size == 4:
                self.mss_option = get16(options, i + 2)
            elif kind == 3 and size == 3:
                self.scale_option = options[i + 2]
            elif kind == 8 and size == 10:
                self.has_timestamp = True
                self.tsval = get32(options, i + 2)
                self.tsecr = get32(options, i + 6)
            i += size
        return True

    def other(self, frame: Octets, size: int) -> int:
        """Not TCP to this address."""
        if get16(frame, 22) == 0x0806 and size >= 52 and self.opened_active:
            sender = get32(frame, 38)
            if sender in self.resolving or sender in self.neighbours:
                self.learn(sender, to_bytes(frame, 32, 6))
        if self.on_other is not None:
            self.on_other(to_bytes(frame, 0, size))
        return 0

    def unknown(self, frame: Octets, remote: int, local_port: int, remote_port: int) -> int:
        """No connection: a listener's SYN, or a reset (section 3.10.7.1, 3.10.7.2)."""
        listener = self.last_listener
        if listener is None or listener.port != local_port:
            listener = self.listeners.get(local_port)
            self.last_listener = listener
        if self.flags & RST:
            return 0
        if frame[10] & 1 or remote >> 28 >= 14 or remote >> 24 == 0 or remote == self.address:
            self.malformed += 1  # to everybody, or from nobody's address (RFC 1122 section 4.2.3.10)
            return 0
        if listener is not None and self.flags & (SYN | ACK) == SYN:
            return self.arrive(listener, frame, remote, local_port, remote_port)
        ports = w32(local_port << 16 | remote_port)
        mac = to_bytes(frame, 16, 6)
        if self.flags & ACK:
            return self.control(mac, remote, ports, self.ack, 0, RST, 0, 0, 0, False)
        span = self.length + (1 if self.flags & SYN else 0) + (1 if self.flags & FIN else 0)
        return self.control(mac, remote, ports, 0, seq_add(self.seq, span), RST | ACK, 0, 0, 0, False)

    def arrive(self, listener: Listener, frame: Octets, remote: int, local_port: int, remote_port: int) -> int:
        """A SYN for a listener: SYN-RECEIVED (section 3.10.7.2)."""
        if listener.waiting >= listener.backlog or self.table.count >= CONNECTIONS:
            self.refused += 1
            return 0
        tcb = self.make(listener.application, remote, local_port, remote_port)
        copy(tcb.remote_mac, 0, frame, 16, 6)
        tcb.passive = True
        tcb.listener = listener
        listener.waiting += 1
        tcb.irs = self.seq
        tcb.rcv_nxt = seq_add(self.seq, 1)
        self.take_options(tcb)
        self.prepare(tcb)
        tcb.state = SYN_RECEIVED
        tcb.rtt_at = self.now
        self.opened_passive += 1
        return self.synchronise(tcb, SYN | ACK)

    def make(self, application: Application, remote: int, local_port: int, remote_port: int) -> Tcb:
        """A TCB in the table, its sequence numbers chosen."""
        idle = self.idle
        tcb = idle[len(idle) - 1] if idle else None
        if tcb is not None and tcb.application is application:
            idle.pop()
        else:
            tcb = application.new_tcb()
            tcb.endpoint = self
            tcb.application = application
        tcb.reset()
        tcb.local_address = self.address
        tcb.remote_address = remote
        tcb.local_port = local_port
        tcb.remote_port = remote_port
        ports = w32(local_port << 16 | remote_port)
        tcb.iss = initial_sequence(self.key0, self.key1, self.address, remote, ports, self.now)
        tcb.ts_offset = w32(siphash(self.key1, self.key0, remote, self.address))
        tcb.snd_una = tcb.recover = tcb.iss
        tcb.snd_nxt = tcb.snd_max = tcb.snd_end = tcb.cursor_seq = seq_add(tcb.iss, 1)
        tcb.rcv_scale = SCALE
        self.table.insert(tcb)
        return tcb

    def remnant_input(self, remnant: Remnant, frame: Octets) -> int:
        """TIME-WAIT (section 3.10.7.4; a new SYN by RFC 6191)."""
        if self.flags & RST:
            if self.seq == remnant.rcv_nxt:
                self._wake(remnant)  # RFC 5961's way: only the exact number
            return 0
        if self.flags & (SYN | ACK) == SYN:
            newer = seq_diff(self.seq, remnant.rcv_nxt) > 0
            if remnant.timestamps and self.has_timestamp:
                newer = newer or seq_diff(self.tsval, remnant.ts_recent) > 0
            if newer:
                local_port, remote_port, remote = remnant.local_port, remnant.remote_port, remnant.remote_address
                self._wake(remnant)
                return self.unknown(frame, remote, local_port, remote_port)
        ports = w32(remnant.local_port << 16 | remnant.remote_port)
        if self.flags & FIN:
            remnant.until = self.now + TIME_WAIT_TIME
        elif self.length == 0 and self.seq == remnant.rcv_nxt:
            return 0  # only an acknowledgement: two remnants must not answer each other for ever
        return self.control(
            remnant.remote_mac,
            remnant.remote_address,
            ports,
            remnant.snd_nxt,
            remnant.rcv_nxt,
            ACK,
            0,
            w32(self.now // 1000 + remnant.ts_offset),
            remnant.ts_recent,
            remnant.timestamps,
        )

    # ---- the end of a step, and of a connection

    def settle(self, tcb: Tcb) -> int:
        """See Machine."""
        if tcb.state == CLOSED:
            return 0
        while not tcb.doomed:
            self.push(tcb)
            if not tcb.owes_sent or tcb.fin_queued or seq_diff(tcb.snd_end, tcb.snd_nxt) > 0:
                break
            tcb.owes_sent = False
            tcb.in_callback += 1
            tcb.application.on_sent(tcb)
            tcb.in_callback -= 1
            if not tcb.owes_sent and not tcb.fin_queued and not tcb.ack_now:
                break
        if tcb.doomed:
            tcb.doomed = False
            return self.abort(tcb)
        return 0

    def admitted(self, tcb: Tcb) -> int:
        """See Machine: it leaves its listener's backlog."""
        if tcb.listener is not None:
            listener = tcb.listener
            listener.waiting -= 1
            tcb.listener = None
        return 0

    def finish(self, tcb: Tcb, reason: int) -> int:
        """See Machine (TCB-3)."""
        if tcb.state == CLOSED:
            return 0
        heard = tcb.opened or not tcb.passive
        self.admitted(tcb)
        self.table.remove(tcb)
        tcb.state = CLOSED
        self.wheel.cancel(tcb)
        if heard:
            tcb.opened = False
            tcb.in_callback += 1
            tcb.application.on_close(tcb, reason)
            tcb.in_callback -= 1
        return self.forget(tcb)

    def rest(self, tcb: Tcb) -> int:
        """See Machine: the FIN of the peer is acknowledged, then only numbers are kept."""
        if tcb.doomed:
            tcb.doomed = False
            return self.abort(tcb)
        if tcb.ack_now:
            self.acknowledge(tcb)
        remnant = Remnant()
        remnant.kind = KIND_REMNANT
        remnant.local_address = tcb.local_address
        remnant.remote_address = tcb.remote_address
        remnant.local_port = tcb.local_port
        remnant.remote_port = tcb.remote_port
        remnant.snd_nxt = tcb.snd_max
        remnant.rcv_nxt = tcb.rcv_nxt
        remnant.timestamps = tcb.timestamps
        remnant.ts_recent = tcb.ts_recent
        remnant.ts_offset = tcb.ts_offset
        remnant.until = self.now + TIME_WAIT_TIME
        copy(remnant.remote_mac, 0, tcb.remote_mac, 0, 6)
        self.finish(tcb, CLOSE_DONE)
        self.table.insert(remnant)
        self.resting += 1
        self.remnants.append(remnant)
        if len(self.remnants) > REMNANTS:
            self._drop_remnant()
        return 0

    @cython.locals(remnant=Remnant)
    def _drop_remnant(self) -> None:
        remnant = self.remnants.popleft()
        if remnant.until >= 0:
            self._wake(remnant)

    @cython.locals(remnant=Remnant)
    def _wake(self, remnant: Remnant) -> None:
        """Its connection is forgotten, or is there again; in the queue of remnants it stays until its time."""
        self.table.remove(remnant)
        remnant.until = -1
        self.resting -= 1

    def forget(self, tcb: Tcb) -> int:
        """Let go of what the TCB refers to; keep the object for the next connection."""
        tcb.clear_queue()
        tcb.context = None
        tcb.reassembly = None
        if len(self.idle) < IDLE_TCBS:
            self.idle.append(tcb)
        return 0

    # ---- time

    def arm(self, tcb: Tcb) -> int:
        """See Output."""
        when = tcb.rexmit_at
        if tcb.persist_at and (when == 0 or tcb.persist_at < when):
            when = tcb.persist_at
        if tcb.delack_at and (when == 0 or tcb.delack_at < when):
            when = tcb.delack_at
        if tcb.state_at and (when == 0 or tcb.state_at < when):
            when = tcb.state_at
        if tcb.alarm_at and (when == 0 or tcb.alarm_at < when):
            when = tcb.alarm_at
        if when:
            self.wheel.schedule(tcb, when)
        return 0

    def advance(self, now: int) -> int:
        """Tell the time, and do what is due."""
        self.now = now
        for entry in self.wheel.expire(now):
            self.expired(entry)  # type: ignore[arg-type]
        while self.remnants:
            oldest = self.remnants[0]
            if oldest.until > now:
                break
            self._drop_remnant()
        return 0

    def next_deadline(self) -> int:
        """When `advance` has something to do, in µs; 0: not foreseen."""
        return self.wheel.next_due()

    def expired(self, tcb: Tcb) -> int:
        """Look at a TCB's deadlines (section 3.10.8)."""
        now = self.now
        if tcb.state == CLOSED:
            return 0
        if tcb.rexmit_at and tcb.rexmit_at <= now:
            tcb.rexmit_at = 0
            self.timeouts += 1
            tcb.retries += 1
            if tcb.retries > (SYN_RETRIES if tcb.state <= SYN_RECEIVED else RETRIES):
                return self.finish(tcb, CLOSE_TIMEOUT)
            tcb.rto.back_off()
            tcb.rtt_at = 0
            if tcb.state == SYN_SENT:
                self.retransmitted += 1
                return self.synchronise(tcb, SYN)
            if tcb.state == SYN_RECEIVED:
                self.retransmitted += 1
                return self.synchronise(tcb, SYN | ACK)
            if tcb.snd_una != tcb.snd_max:
                tcb.congestion.timed_out(seq_diff(tcb.snd_nxt, tcb.snd_una), tcb.retries > 1)
                tcb.recovering = False
                tcb.dup_acks = 0
                tcb.recover = tcb.snd_max
                tcb.snd_nxt = tcb.snd_una
                if seq_diff(tcb.snd_una, tcb.snd_end) <= 0:
                    tcb.seek(tcb.snd_una)
                self.push(tcb)
                if tcb.rexmit_at == 0 and tcb.persist_at == 0:
                    tcb.rexmit_at = now + tcb.rto.current()
        if tcb.persist_at and tcb.persist_at <= now:
            tcb.persist_at = 0
            tcb.retries += 1
            if tcb.retries > PERSIST_RETRIES:
                self.reset_connection(tcb)
                return self.finish(tcb, CLOSE_TIMEOUT)
            self.probe(tcb)
        if tcb.delack_at and tcb.delack_at <= now:
            tcb.delack_at = 0
            self.acknowledge(tcb)
        if tcb.state_at and tcb.state_at <= now:
            tcb.state_at = 0
            if tcb.state == FIN_WAIT_2:
                return self.finish(tcb, CLOSE_DONE)
            if tcb.state == SYN_SENT:
                tcb.retries += 1
                if tcb.retries > RESOLVE_TRIES:
                    self.resolving.pop(tcb.remote_address, None)
                    return self.finish(tcb, CLOSE_UNREACHABLE)
                self._ask(tcb.remote_address)
                tcb.state_at = now + RESOLVE_WAIT
        if tcb.alarm_at and tcb.alarm_at <= now:
            tcb.alarm_at = 0
            tcb.in_callback += 1
            tcb.application.on_alarm(tcb)
            tcb.in_callback -= 1
            self.settle(tcb)
            if tcb.state == CLOSED:
                return 0
        return self.arm(tcb)
