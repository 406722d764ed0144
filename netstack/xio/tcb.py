# cython: language_level=3, annotation_typing=False, infer_types=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False
"""The transmission control block, and the two parties it stands between: the Application above, the Endpoint below.

THE INTERFACE FOR APPLICATIONS (C-level signatures in tcb.pxd; a compiled server cimports from there):

* Subclass `Application`. The stack calls it; each method returns 0. Override `new_tcb` to return a subclass of `Tcb`
  with the application's own fields (parser state …): then a connection is one object. TCBs are recycled: reset your
  fields in `on_open`.
* `stack.listen(port, application)` and `stack.connect(application, address, port)` (stack.py).
* Within `on_data` and every other callback, `tcb.send(gather, offset, length, flags)` only queues; the stack sends once
  at the end of the callback, so that the answer carries the acknowledgement and several pieces share segments. Outside
  a callback `send` sends.
* What is sent stays where it lies: `Gather` (gather.py) is pinned until the last of it is acknowledged. A cached
  document is one Gather made once; a keep-alive answer is `send(head, 0, n, SEND_MORE)`, `send(pages, 0, m, 0)`, with
  SEND_FIN on the last to close.

TCB-1  A callback never runs inside another callback of the same TCB.
TCB-2  `on_data` gets every octet once and in order, as a pointer that is valid during the call only. What the
       application cannot use at once it copies, and counts with `tcb.hold(n)`: the receive window shrinks by n until
       `tcb.release(n)`.
TCB-3  After `on_close` the TCB is never touched again by the stack and must not be by the application: it may be
       reused. Every TCB of which the application heard in `on_open`, or that it opened, gets exactly one `on_close`.
TCB-4  snd_una <= snd_nxt <= snd_max <= snd_end + 1 (sequence order); the octets [snd_una, snd_end) are in the send
       queue.

For Python code there is `PythonApplication`, which has the same events with bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cython

from netstack.xio.demux import Entry
from netstack.xio.gather import Gather, Iov
from netstack.xio.rto import Rto

if TYPE_CHECKING:
    from netstack.wire.octets import Octets

if not cython.compiled:
    from netstack.wire.octets import to_bytes
    from netstack.xio.constants import CLOSED, KIND_TCB
    from netstack.xio.seq import seq_add, seq_diff

RECEIVE_BUFFER = 262_144
HEADER_ROOM = 112  # vnet 10 (+2 unused), Ethernet 14, IPv4 20, TCP 20 + options 40, rounded up


class Application:
    """What a program does with its connections. Every method is called by the stack and returns 0."""

    def new_tcb(self) -> Tcb:
        """A fresh TCB of the class this application wants."""
        return Tcb()

    def on_open(self, tcb: Tcb) -> int:
        """The connection is established (either side opened it)."""
        return 0

    def on_data(self, tcb: Tcb, data: Octets, length: int) -> int:
        """`length` > 0 octets arrived in order; they are valid during this call only (TCB-2)."""
        return 0

    def on_sent(self, tcb: Tcb) -> int:
        """Everything queued so far was handed to the network (not yet acknowledged): time to queue more."""
        return 0

    def on_end(self, tcb: Tcb) -> int:
        """The peer sent FIN: no more data will come. The base closes our side as well, after what is queued."""
        return tcb.close()

    def on_close(self, tcb: Tcb, reason: int) -> int:
        """The connection is gone; `reason` is one of constants.CLOSE_* (TCB-3)."""
        return 0

    def on_alarm(self, tcb: Tcb) -> int:
        """The time given to `tcb.set_alarm` has come."""
        return 0


class PythonApplication(Application):
    """An Application whose events any Python class can override: bytes instead of pointers, one copy."""

    def on_data(self, tcb: Tcb, data: Octets, length: int) -> int:
        self.data_received(tcb, to_bytes(data, 0, length))
        return 0

    def on_open(self, tcb: Tcb) -> int:
        self.opened(tcb)
        return 0

    def on_sent(self, tcb: Tcb) -> int:
        self.sent(tcb)
        return 0

    def on_end(self, tcb: Tcb) -> int:
        self.ended(tcb)
        return 0

    def on_close(self, tcb: Tcb, reason: int) -> int:
        self.closed(tcb, reason)
        return 0

    def on_alarm(self, tcb: Tcb) -> int:
        self.alarm(tcb)
        return 0

    def opened(self, tcb: Tcb) -> object:
        """See Application.on_open."""

    def data_received(self, tcb: Tcb, data: bytes) -> object:
        """See Application.on_data."""

    def sent(self, tcb: Tcb) -> object:
        """See Application.on_sent."""

    def ended(self, tcb: Tcb) -> object:
        """See Application.on_end; closes our side."""
        return tcb.close()

    def closed(self, tcb: Tcb, reason: int) -> object:
        """See Application.on_close."""

    def alarm(self, tcb: Tcb) -> object:
        """See Application.on_alarm."""


class Endpoint:
    """What a TCB asks of the stack it lives in. `Stack` implements it; `now` is the caller's time in µs."""

    if not cython.compiled:
        now: int

    def send(self, tcb: Tcb, gather: Gather, offset: int, length: int, flags: int) -> int:
        """Queue and, outside callbacks, send. Raises ValueError after close."""
        raise NotImplementedError

    def shut(self, tcb: Tcb) -> int:
        """FIN after what is queued (CLOSE, RFC 9293 section 3.10.4)."""
        raise NotImplementedError

    def abort(self, tcb: Tcb) -> int:
        """RST now, forget everything (ABORT, RFC 9293 section 3.10.5)."""
        raise NotImplementedError

    def release(self, tcb: Tcb, length: int) -> int:
        """`length` held octets were consumed: the window may open."""
        raise NotImplementedError

    def alarm(self, tcb: Tcb, when: int) -> int:
        """Call on_alarm at `when` (µs; 0 cancels)."""
        raise NotImplementedError


class Span:
    """A part of a Gather in a send queue."""

    if not cython.compiled:
        gather: Gather
        offset: int
        length: int
        later: Any  # a Span or None


class Tcb(Entry):
    """One connection. Applications use the methods down to `unacked`; the fields are the stack's."""

    if not cython.compiled:

        def __init__(self) -> None:
            Entry.__init__(self)
            self.header = bytearray(HEADER_ROOM)
            self.remote_mac = bytearray(6)
            self.rto = None
            self.congestion = None
            self.dirty = False
            self.reset()

        endpoint: Endpoint
        application: Application
        context: Any
        congestion: Any  # a Congestion, once the peer's SYN is here
        reassembly: Any  # a Reassembly, once something came out of order
        listener: Any  # the Listener in whose backlog it is
        rto: Any
        head: Any  # of Spans, as the next two; None when there is none
        tail: Any
        cursor: Any
        ip_sum: int
        pseudo_sum: int

    def send(self, gather: Gather, offset: int, length: int, flags: int) -> int:
        """Queue `length` octets of `gather` from `offset`; `flags` of constants.SEND_*. 0 octets with SEND_FIN close.
        Raises ValueError when this side is closed already or the range is not inside the gather."""
        return self.endpoint.send(self, gather, offset, length, flags)

    def send_bytes(self, data: bytes, flags: int = 0) -> int:
        """Queue a bytes object (kept, not copied)."""
        return self.endpoint.send(self, Gather(data), 0, len(data), flags)

    def close(self) -> int:
        """Close our side once the queue is sent; does nothing when it is closed already."""
        return self.endpoint.shut(self)

    def abort(self) -> int:
        """Reset the connection. on_close(CLOSE_ABORTED) is called before this returns; in a callback, after that."""
        return self.endpoint.abort(self)

    def hold(self, length: int) -> int:
        """The application keeps `length` octets it was given and has not used: shrink the window."""
        self.rcv_held += length
        return 0

    def release(self, length: int) -> int:
        """`length` held octets are used: open the window, telling the peer when it matters (section 3.8.6.2.2)."""
        return self.endpoint.release(self, length)

    def set_alarm(self, when: int) -> int:
        """Ask for one on_alarm at `when` (µs by `tcb.endpoint.now`); 0 cancels; a new time replaces the old."""
        return self.endpoint.alarm(self, when)

    def unsent(self) -> int:
        """Octets queued and not handed to the network."""
        n = seq_diff(self.snd_end, self.snd_nxt)
        return n if n > 0 else 0

    def unacked(self) -> int:
        """Octets queued and not acknowledged."""
        n = seq_diff(self.snd_end, self.snd_una)
        return n if n > 0 else 0

    # ---- the send queue (the stack's business)

    def reset(self) -> int:
        """Everything as for a new connection; the buffers are kept."""
        self.kind = KIND_TCB
        self.state = CLOSED
        self.passive = False
        self.listener = None
        self.opened = False
        self.snd_una = self.snd_nxt = self.snd_max = self.snd_end = self.iss = 0
        self.snd_wnd = self.snd_wl1 = self.snd_wl2 = self.snd_wnd_max = 0
        self.snd_scale = self.rcv_scale = 0
        self.mss = 536
        self.gso_limit = 536
        self.irs = self.rcv_nxt = self.rcv_edge = 0
        self.fin_at = -1
        self.rcv_buffer = RECEIVE_BUFFER
        self.rcv_held = self.rcv_unacked = 0
        self.rcv_mss = 536
        self.reassembly = None
        self.timestamps = False
        self.ts_offset = self.ts_recent = 0
        self.ts_recent_at = 0
        self.head = self.tail = self.cursor = None
        self.head_done = self.cursor_done = 0
        self.cursor_seq = 0
        self.more = self.fin_queued = False
        self.in_callback = 0
        self.ack_now = self.doomed = self.owes_sent = False
        self.quick_acks = 0
        if self.rto is None:
            self.rto = Rto()
        else:
            self.rto.reset()
        self.dup_acks = self.retries = self.persist_shift = 0
        self.recovering = False
        self.recover = 0
        self.rtt_seq = 0
        self.rtt_at = 0
        self.rexmit_at = self.persist_at = self.delack_at = self.state_at = self.alarm_at = 0
        self.last_sent_at = self.challenge_at = 0
        return 0

    def enqueue(self, gather: Gather, offset: int, length: int) -> int:
        """Append a range of `gather` to the send queue; it is pinned (GATHER-1)."""
        gather.pin()
        span = Span.__new__(Span)  # as C does it: no arguments to box
        span.gather = gather
        span.offset = offset
        span.length = length
        span.later = None
        if self.head is None:
            self.head = span
            self.head_done = 0
        else:
            self.tail.later = span
        self.tail = span
        if self.cursor is None and self.cursor_seq == self.snd_end:
            self.cursor = span
            self.cursor_done = 0
        self.snd_end = seq_add(self.snd_end, length)
        return 0

    def dequeue(self, length: int) -> int:
        """`length` octets at the head were acknowledged."""
        while length > 0:
            span = self.head
            left = span.length - self.head_done
            if length < left:
                self.head_done += length
                return 0
            length -= left
            self.head = span.later
            self.head_done = 0
            if self.cursor is span:
                self.cursor = span.later
                self.cursor_done = 0
            if self.head is None:
                self.tail = None
            span.gather.unpin()
        return 0

    def clear_queue(self) -> int:
        """Let go of everything queued."""
        while self.head is not None:
            span = self.head
            self.head = span.later
            span.gather.unpin()
        self.tail = self.cursor = None
        self.head_done = self.cursor_done = 0
        return 0

    def seek(self, seq: int) -> int:
        """Put the cursor on the octet `seq`, which is queued or `snd_end`."""
        skip = seq_diff(seq, self.snd_una) + self.head_done
        span = self.head
        while span is not None and skip >= span.length:
            skip -= span.length
            span = span.later
        self.cursor = span
        self.cursor_done = skip if span is not None else 0
        self.cursor_seq = seq
        return 0

    def gather_into(self, iov: Iov, length: int) -> int:
        """Append up to `length` octets from the cursor to `iov` and move the cursor; how many there were."""
        done = 0
        while done < length and self.cursor is not None:
            span = self.cursor
            n = span.length - self.cursor_done
            if n > length - done:
                n = length - done
            got = span.gather.fill(iov, span.offset + self.cursor_done, n)
            done += got
            self.cursor_done += got
            if self.cursor_done == span.length:
                self.cursor = span.later
                self.cursor_done = 0
            if got < n:
                break
        self.cursor_seq = seq_add(self.cursor_seq, done)
        return done
