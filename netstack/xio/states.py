# cython: language_level=3, annotation_typing=False, infer_types=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, cdivision=True
"""The state machine of RFC 9293 section 3.10.7: one function per state, over steps that states share.

The segment in hand lies in the machine's own fields (`seq`, `ack`, `text` …), filled in by the stack's input; so no
object is made for a segment.  The order of the checks is the RFC's: sequence number, RST, SYN, ACK, text, FIN; with the
challenge acknowledgements of RFC 5961 and the timestamps of RFC 7323.

After `process` returns, the TCB may be gone (`finish`) or may have become a remnant (`rest`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cython

from netstack.xio.congestion import Congestion
from netstack.xio.output import Output
from netstack.xio.reassembly import Reassembly
from netstack.xio.tcb import Tcb

if TYPE_CHECKING:
    from netstack.wire.octets import Octets

if not cython.compiled:
    from netstack.wire.octets import at, to_bytes
    from netstack.xio.constants import (
        ACK,
        CLOSE_DONE,
        CLOSE_REFUSED,
        CLOSE_RESET,
        CLOSE_WAIT,
        CLOSING,
        ESTABLISHED,
        FIN,
        FIN_WAIT_1,
        FIN_WAIT_2,
        LAST_ACK,
        PSH,
        RST,
        SYN,
        SYN_RECEIVED,
        SYN_SENT,
    )
    from netstack.xio.output import LARGEST_SEGMENT, TIMESTAMP_OPTION
    from netstack.xio.seq import seq_add, seq_diff, seq_le, seq_lt

QUICK_ACKS = 16
CHALLENGE_INTERVAL = 100_000  # µs between challenge acknowledgements on one connection (RFC 5961 section 7)
DELAYED_ACK = 40_000
FIN_WAIT_2_TIME = 180_000_000
PAWS_IDLE = 24 * 24 * 3600 * 1_000_000  # RFC 7323 section 5.5


class Machine(Output):
    """Input on connections."""

    if not cython.compiled:
        # The segment in hand.
        seq: int
        ack: int
        wnd: int
        flags: int
        text: Octets
        length: int
        has_timestamp: bool
        tsval: int
        tsecr: int
        mss_option: int
        scale_option: int
        challenges: int
        duplicates: int

    # ---- the states

    def process(self, tcb: Tcb) -> int:
        """The segment in hand arrives for `tcb`."""
        state = tcb.state
        if state == SYN_SENT:
            return self.syn_sent(tcb)
        if not self.acceptable(tcb):
            return 0
        if state == ESTABLISHED:
            return self.established(tcb)
        if state == SYN_RECEIVED:
            return self.syn_received(tcb)
        if state == FIN_WAIT_1:
            return self.fin_wait_1(tcb)
        if state == FIN_WAIT_2:
            return self.fin_wait_2(tcb)
        if state == CLOSE_WAIT:
            return self.close_wait(tcb)
        if state == CLOSING:
            return self.closing(tcb)
        if state == LAST_ACK:
            return self.last_ack(tcb)
        return 0

    def syn_sent(self, tcb: Tcb) -> int:
        """SYN-SENT (section 3.10.7.3)."""
        if self.flags & ACK and self.ack != seq_add(tcb.iss, 1):
            if not self.flags & RST:
                ports = tcb.local_port << 16 | tcb.remote_port
                self.control(tcb.remote_mac, tcb.remote_address, ports, self.ack, 0, RST, 0, 0, 0, False)
            return 0
        if self.flags & RST:
            if self.flags & ACK:
                return self.finish(tcb, CLOSE_REFUSED)
            return 0
        if not self.flags & SYN:
            return 0
        tcb.irs = self.seq
        tcb.rcv_nxt = seq_add(self.seq, 1)
        tcb.rcv_edge = seq_add(tcb.rcv_nxt, tcb.rcv_buffer if tcb.rcv_buffer < 65535 else 65535)
        self.take_options(tcb)
        if self.flags & ACK:
            tcb.snd_una = self.ack
            self.seq = seq_add(self.seq, 1)
            self.open(tcb)
            tcb.ack_now = True
            self.take_text(tcb)
            if self.take_fin(tcb) and tcb.state == FIN_WAIT_1:
                tcb.state = CLOSING
            return self.settle(tcb)
        # Simultaneous open.
        tcb.state = SYN_RECEIVED
        return self.synchronise(tcb, SYN | ACK)

    def syn_received(self, tcb: Tcb) -> int:
        """SYN-RECEIVED: the acknowledgement of our SYN opens the connection."""
        if not (seq_lt(tcb.snd_una, self.ack) and seq_le(self.ack, tcb.snd_max)):
            ports = tcb.local_port << 16 | tcb.remote_port
            return self.control(tcb.remote_mac, tcb.remote_address, ports, self.ack, 0, RST, 0, 0, 0, False)
        tcb.snd_una = seq_add(tcb.iss, 1)
        self.open(tcb)
        if tcb.state == FIN_WAIT_1:
            return self.fin_wait_1(tcb)  # the application had but one thing to say
        return self.established(tcb)

    def established(self, tcb: Tcb) -> int:
        """ESTABLISHED."""
        if not self.take_ack(tcb):
            return 0
        self.take_text(tcb)
        if self.take_fin(tcb) and tcb.state == FIN_WAIT_1:
            tcb.state = CLOSING  # the application closed when it had the text
        return self.settle(tcb)

    def fin_wait_1(self, tcb: Tcb) -> int:
        """FIN-WAIT-1: our FIN is on its way."""
        if not self.take_ack(tcb):
            return 0
        done = tcb.snd_una == seq_add(tcb.snd_end, 1)
        self.take_text(tcb)
        fin = self.take_fin(tcb)
        if done and fin:
            return self.rest(tcb)
        if done:
            tcb.state = FIN_WAIT_2
            tcb.state_at = self.now + FIN_WAIT_2_TIME
            self.arm(tcb)
        elif fin:
            tcb.state = CLOSING
        return self.settle(tcb)

    def fin_wait_2(self, tcb: Tcb) -> int:
        """FIN-WAIT-2: only the peer has more to say; silence ends it after FIN_WAIT_2_TIME."""
        if not self.take_ack(tcb):
            return 0
        tcb.state_at = self.now + FIN_WAIT_2_TIME
        self.take_text(tcb)
        if self.take_fin(tcb):
            return self.rest(tcb)
        return self.settle(tcb)

    def close_wait(self, tcb: Tcb) -> int:
        """CLOSE-WAIT: the peer has said all; we go on."""
        if not self.take_ack(tcb):
            return 0
        return self.settle(tcb)

    def closing(self, tcb: Tcb) -> int:
        """CLOSING: both FINs crossed."""
        if not self.take_ack(tcb):
            return 0
        if tcb.snd_una == seq_add(tcb.snd_end, 1):
            return self.rest(tcb)
        return self.settle(tcb)

    def last_ack(self, tcb: Tcb) -> int:
        """LAST-ACK: gone when our FIN is acknowledged."""
        if not self.take_ack(tcb):
            return 0
        if tcb.snd_una == seq_add(tcb.snd_end, 1):
            return self.finish(tcb, CLOSE_DONE)
        return self.settle(tcb)

    # ---- the steps

    def acceptable(self, tcb: Tcb) -> bool:
        """First to fourth step: sequence number with PAWS, RST, SYN, and that there is an ACK at all."""
        flags = self.flags
        window = seq_diff(tcb.rcv_edge, tcb.rcv_nxt)
        begin = seq_diff(self.seq, tcb.rcv_nxt)
        span = self.length + (1 if flags & FIN else 0) + (1 if flags & SYN else 0)
        if tcb.timestamps:
            if self.has_timestamp:
                if (
                    seq_diff(self.tsval, tcb.ts_recent) < 0
                    and not flags & RST
                    and self.now - tcb.ts_recent_at < PAWS_IDLE
                ):
                    self.duplicates += 1
                    return self.reject(tcb)
            elif not flags & RST:
                return False  # RFC 7323 section 3.2: once agreed, every segment has them
        if span == 0:
            inside = begin == 0 if window == 0 else 0 <= begin < window
            if begin == -1 and not flags & RST:
                # A keep-alive probe: answered by the rejection below.
                inside = False
        else:
            inside = begin < window and begin + span > 0 and window > 0
        if not inside:
            if flags & RST:
                return False
            if tcb.state == SYN_RECEIVED and flags & SYN and begin == -1:
                if flags & ACK:
                    # Both opened: the peer's SYN again, with what acknowledges ours (section 3.5, figure 7).
                    self.flags &= ~SYN
                    self.seq = tcb.rcv_nxt
                    return True
                self.duplicates += 1
                self.synchronise(tcb, SYN | ACK)
                return False
            self.duplicates += 1
            # What only acknowledges is still news when the window is closed (section 3.10.7.4).
            if flags & ACK and span == 0 and begin == 0:
                return True
            return self.reject(tcb)
        if flags & RST:
            # RFC 5961 section 3.2: only the exact number resets.
            if begin == 0:
                self.finish(tcb, CLOSE_RESET)
            else:
                self.challenge(tcb)
            return False
        if flags & SYN:
            self.challenge(tcb)
            return False
        if not flags & ACK:
            return False
        if tcb.timestamps and seq_le(self.seq, seq_add(tcb.rcv_nxt, -tcb.rcv_unacked)):
            # RFC 7323 section 4.3: it covers what was acknowledged last.
            if seq_diff(self.tsval, tcb.ts_recent) >= 0:
                tcb.ts_recent = self.tsval
                tcb.ts_recent_at = self.now
        if begin < 0:
            # Trim what is known already (section 3.10.7.4).
            skip = -begin
            if skip > self.length:
                skip = self.length
            self.text = at(self.text, skip)
            self.length -= skip
            self.seq = seq_add(self.seq, skip)
            tcb.ack_now = True
        if self.length > 0:
            over = seq_diff(seq_add(self.seq, self.length), tcb.rcv_edge)
            if over > 0:
                self.length -= over
                self.flags &= ~FIN
        return True

    def reject(self, tcb: Tcb) -> bool:
        """An unacceptable segment is answered with what we expect (section 3.10.7.4), its ACK not looked at.

        One that is only an acknowledgement is answered as seldom as if it were forged: two ends that disagree must not
        go on about it for ever.
        """
        if self.length or self.flags & (SYN | FIN):
            self.acknowledge(tcb)
        else:
            self.challenge(tcb)
        return False

    def challenge(self, tcb: Tcb) -> int:
        """A challenge acknowledgement (RFC 5961), a few a second."""
        if self.now - tcb.challenge_at >= CHALLENGE_INTERVAL or tcb.challenge_at == 0:
            tcb.challenge_at = self.now
            self.challenges += 1
            self.acknowledge(tcb)
        return 0

    def take_options(self, tcb: Tcb) -> int:
        """What the peer's SYN says."""
        tcb.timestamps = self.has_timestamp
        if self.has_timestamp:
            tcb.ts_recent = self.tsval
            tcb.ts_recent_at = self.now
        mss = self.mss_option if self.mss_option >= 64 else 536
        if mss > self.mtu - 40:
            mss = self.mtu - 40
        if tcb.timestamps:
            mss -= TIMESTAMP_OPTION
        tcb.mss = mss
        tcb.rcv_mss = mss
        tcb.gso_limit = LARGEST_SEGMENT // mss * mss
        if self.scale_option >= 0:
            tcb.snd_scale = self.scale_option if self.scale_option < 14 else 14
        else:
            tcb.snd_scale = -1
            tcb.rcv_scale = 0
        tcb.snd_wnd = self.wnd
        tcb.snd_wnd_max = self.wnd
        tcb.snd_wl1 = self.seq
        tcb.snd_wl2 = self.ack
        if tcb.congestion is None:
            tcb.congestion = Congestion()
        tcb.congestion.begin(mss)
        return 0

    def open(self, tcb: Tcb) -> int:
        """Both SYNs are acknowledged: ESTABLISHED, and the application hears of it."""
        if tcb.snd_scale < 0:
            tcb.snd_scale = 0
        tcb.state = FIN_WAIT_1 if tcb.fin_queued else ESTABLISHED
        self.admitted(tcb)
        if tcb.retries == 0 and tcb.rtt_at:
            tcb.rto.sample(self.now - tcb.rtt_at)
        elif tcb.retries:
            tcb.congestion.cwnd = tcb.mss  # RFC 5681 section 3.1: a SYN was lost
        tcb.rtt_at = 0
        tcb.retries = 0
        tcb.rto.progress()
        tcb.rexmit_at = 0
        tcb.state_at = 0
        tcb.quick_acks = QUICK_ACKS
        tcb.opened = True
        # The window in a SYN is never scaled; the one in what opened the connection passively is.
        tcb.snd_wl2 = self.ack
        tcb.snd_wl1 = self.seq
        if not self.flags & SYN:
            tcb.snd_wnd = self.wnd << tcb.snd_scale
        tcb.snd_wnd_max = tcb.snd_wnd
        tcb.in_callback += 1
        tcb.application.on_open(tcb)
        tcb.in_callback -= 1
        return 0

    def take_ack(self, tcb: Tcb) -> bool:
        """Fifth step; False when the segment is to be dropped after all."""
        acked = seq_diff(self.ack, tcb.snd_una)
        if seq_diff(self.ack, tcb.snd_max) > 0 or (acked < 0 and seq_diff(tcb.snd_una, self.ack) > tcb.snd_wnd_max):
            self.challenge(tcb)  # not yet sent, or older than can be (RFC 5961 section 5.2)
            return False
        wnd = self.wnd << tcb.snd_scale
        if tcb.persist_at:
            tcb.retries = 0  # a closed window may stay closed for as long as the peer says so (section 3.8.6.1)
        if acked > 0:
            self.take_new_ack(tcb, acked)
        elif acked == 0 and self.length == 0 and not self.flags & FIN and wnd == tcb.snd_wnd:
            if seq_diff(tcb.snd_max, tcb.snd_una) > 0 and tcb.snd_nxt != tcb.snd_una:
                # A duplicate by RFC 5681 section 2.
                tcb.dup_acks += 1
                if tcb.recovering:
                    tcb.congestion.inflate()
                elif tcb.dup_acks == 3 and seq_diff(self.ack, tcb.recover) >= 0:
                    tcb.recovering = True
                    tcb.recover = tcb.snd_max
                    tcb.congestion.lost(seq_diff(tcb.snd_nxt, tcb.snd_una))
                    self.transmit_again(tcb)
        if acked >= 0 and (
            seq_lt(tcb.snd_wl1, self.seq) or (tcb.snd_wl1 == self.seq and seq_le(tcb.snd_wl2, self.ack))
        ):
            if wnd > 0 and tcb.persist_at:
                tcb.persist_at = 0
                tcb.persist_shift = 0
            tcb.snd_wnd = wnd
            if wnd > tcb.snd_wnd_max:
                tcb.snd_wnd_max = wnd
            tcb.snd_wl1 = self.seq
            tcb.snd_wl2 = self.ack
        return True

    def take_new_ack(self, tcb: Tcb, acked: int) -> int:
        """`acked` > 0 sequence numbers are newly acknowledged."""
        octets = acked
        if seq_diff(self.ack, tcb.snd_end) > 0:
            octets -= 1  # our FIN
        if octets:
            tcb.dequeue(octets)
        tcb.snd_una = self.ack
        tcb.dup_acks = 0
        tcb.retries = 0
        tcb.rto.progress()
        if seq_diff(tcb.snd_nxt, tcb.snd_una) < 0:
            tcb.snd_nxt = tcb.snd_una
            if seq_diff(tcb.snd_nxt, tcb.snd_end) <= 0:
                tcb.seek(tcb.snd_nxt)
        if tcb.rtt_at and seq_le(tcb.rtt_seq, self.ack):
            tcb.rto.sample(self.now - tcb.rtt_at)
            tcb.rtt_at = 0
        if tcb.recovering:
            if seq_diff(self.ack, tcb.recover) >= 0:
                tcb.recovering = False
                tcb.congestion.recovered(seq_diff(tcb.snd_nxt, tcb.snd_una))
            else:
                tcb.congestion.partial(octets)
                self.transmit_again(tcb)
        else:
            tcb.congestion.acked(octets)
        if tcb.snd_una == tcb.snd_max:
            tcb.rexmit_at = 0
        else:
            tcb.rexmit_at = self.now + tcb.rto.current()
            self.arm(tcb)
        return 0

    def take_text(self, tcb: Tcb) -> int:
        """Seventh step: what is in order goes to the application, what is not is kept."""
        length = self.length
        if length <= 0 or tcb.doomed:
            return 0
        if self.seq != tcb.rcv_nxt:
            if tcb.reassembly is None:
                tcb.reassembly = Reassembly()
            tcb.reassembly.insert(self.seq, to_bytes(self.text, 0, length), tcb.rcv_edge)
            if self.flags & FIN:
                tcb.fin_at = seq_add(self.seq, length)
            tcb.ack_now = True
            return 0
        if length > tcb.rcv_mss and length < 2000:
            tcb.rcv_mss = length
        self.deliver(tcb, self.text, length)
        if tcb.reassembly is not None and tcb.reassembly.held:
            tcb.ack_now = True
            while not tcb.doomed:
                piece = tcb.reassembly.take(tcb.rcv_nxt)
                if not piece:
                    break
                self.deliver(tcb, piece, len(piece))
        return 0

    def deliver(self, tcb: Tcb, data: Octets, length: int) -> int:
        """In-order data: count it, hand it over, decide when to acknowledge."""
        tcb.rcv_nxt = seq_add(tcb.rcv_nxt, length)
        tcb.rcv_unacked += length
        if tcb.rcv_unacked >= 2 * tcb.rcv_mss or tcb.quick_acks > 0 or self.flags & PSH:
            tcb.ack_now = True
        elif tcb.delack_at == 0:
            tcb.delack_at = self.now + DELAYED_ACK
            self.arm(tcb)
        tcb.in_callback += 1
        tcb.application.on_data(tcb, data, length)
        tcb.in_callback -= 1
        return 0

    def take_fin(self, tcb: Tcb) -> bool:
        """Eighth step: whether the peer's FIN has come, everything before it being here."""
        if tcb.doomed:
            return False
        if not self.flags & FIN or tcb.rcv_nxt != seq_add(self.seq, self.length):
            if tcb.fin_at != tcb.rcv_nxt:
                return False  # it did not come ahead of its time either
        tcb.rcv_nxt = seq_add(tcb.rcv_nxt, 1)
        tcb.ack_now = True
        if tcb.state == ESTABLISHED:
            tcb.state = CLOSE_WAIT
        tcb.in_callback += 1
        tcb.application.on_end(tcb)
        tcb.in_callback -= 1
        return True

    # ---- after a step

    def admitted(self, tcb: Tcb) -> int:
        """It is open, or gone: in either case no longer waiting to be."""
        raise NotImplementedError

    def settle(self, tcb: Tcb) -> int:
        """End of the step: send what the callbacks queued, tell the application when its queue is out."""
        raise NotImplementedError

    def finish(self, tcb: Tcb, reason: int) -> int:
        """The connection is over."""
        raise NotImplementedError

    def rest(self, tcb: Tcb) -> int:
        """TIME-WAIT: only a remnant stays."""
        raise NotImplementedError
