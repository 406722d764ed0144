"""RFC 9293 section 3.10.7, RFC 5961 and RFC 7323 by hand-made segments: what is acceptable, opens, closes, windows."""

from __future__ import annotations

from typing import Any

import pytest
from pair import Recorder
from segments import FULL, PEER_PORT, PORT, SECOND, Peer

from netstack.xio.constants import (
    ACK,
    CLOSE_DONE,
    CLOSE_REFUSED,
    CLOSE_RESET,
    CLOSE_TIMEOUT,
    CLOSE_UNREACHABLE,
    FIN,
    PSH,
    RST,
    SYN,
)

BUFFER = 262_144  # Without window scaling only 65,535 of it can be told.
WINDOW = 65_535
CLIENT_ADDRESS = 0x0A2A0001


class Quiet(Recorder):
    """Does not close when the peer does."""

    def ended(self, tcb: Any) -> None:
        self.events.append("end")


class Holding(Recorder):
    """Uses nothing of what it gets."""

    def data_received(self, tcb: Any, data: bytes) -> None:
        super().data_received(tcb, data)
        tcb.hold(len(data))


def active() -> tuple[Peer, Recorder]:
    """A connection that the stack opens, its SYN sent."""
    peer = Peer(listening=False)
    application = Recorder()
    peer.stack.learn(CLIENT_ADDRESS, b"\x02\0\0\0\0\x01")
    peer.ports = (PORT, PEER_PORT)
    peer.stack.connect(application, CLIENT_ADDRESS, PORT, PEER_PORT)
    (syn,) = peer.take()
    assert syn.flags == SYN and syn.ack == 0
    peer.ack = syn.seq + 1
    return peer, application


def in_state(state: str) -> Peer:
    """A connection that the peer opened, in any state from SYN-RECEIVED on."""
    peer = Peer(Quiet())
    if state == "SYN-RECEIVED":
        (answer,) = peer.send(SYN, options=b"\x02\x04\x05\xb4")
        peer.seq += 1
        peer.ack = answer.seq + 1
        return peer
    peer.open()
    tcb = peer.application.tcb
    if state in ("CLOSE-WAIT", "LAST-ACK"):
        peer.say(FIN | ACK)
    if state not in ("ESTABLISHED", "CLOSE-WAIT"):
        tcb.close()
        (fin,) = peer.take()
        assert fin.flags & FIN
    if state == "FIN-WAIT-2":
        peer.ack += 1
        peer.say(ACK)
    if state == "CLOSING":
        peer.say(FIN | ACK)
    return peer


STATES = ["SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING", "LAST-ACK"]


# ---- acceptability (section 3.10.7.4, table 6)


@pytest.mark.parametrize(
    ("begin", "length", "delivered"),
    [
        (0, 1, 1),
        (0, 100, 100),
        (-1, 1, 0),
        (-100, 100, 0),
        (-100, 101, 1),
        (-100, 200, 100),
        (WINDOW, 1, 0),
        (WINDOW + 1, 10, 0),
        (-0x7FFFFFFF, 1, 0),
        (0x7FFFFFFF, 1, 0),
    ],
)
def test_text_is_taken_only_inside_the_window(begin: int, length: int, delivered: int) -> None:
    peer = Peer()
    peer.open()
    answers = peer.send(ACK, bytes(length), seq=peer.seq + begin)
    assert len(peer.application.received) == delivered
    assert [a.ack for a in answers] == [peer.seq + delivered]


def test_text_beyond_the_window_is_cut_off_and_its_fin_with_it() -> None:
    peer = Peer()
    peer.open()
    (answer,) = peer.send(ACK | FIN, bytes(1000), seq=peer.seq + WINDOW - 10)
    assert answer.ack == peer.seq and not peer.application.received
    for at in range(0, WINDOW - 10, 1000):
        peer.send(ACK, bytes(min(1000, WINDOW - 10 - at)), seq=peer.seq + at)
    assert len(peer.application.received) == WINDOW
    assert "end" not in peer.application.events


@pytest.mark.parametrize(("begin", "answered"), [(0, False), (10, False), (-1, True), (-1000, True), (WINDOW, True)])
def test_what_only_acknowledges_is_answered_when_it_is_outside(begin: int, answered: bool) -> None:
    peer = Peer()
    peer.open()
    answers = peer.send(ACK, seq=peer.seq + begin)
    assert [(a.flags, a.ack) for a in answers] == [(ACK, peer.seq)] * answered


def test_with_a_closed_window_only_acknowledgements_are_heard() -> None:
    peer = Peer(Holding())
    peer.open()
    wnd, filled = WINDOW, 0
    while wnd:
        (answer,) = peer.send(ACK | PSH, bytes(1400))
        filled += answer.ack - peer.seq
        peer.seq, wnd = answer.ack, answer.wnd
        assert filled <= BUFFER
    assert BUFFER - 1460 < filled == len(peer.application.received)
    peer.application.tcb.send_bytes(b"hello")
    (sent,) = peer.take()
    assert sent.data == b"hello" and sent.wnd == 0
    before = len(peer.application.received)
    (again,) = peer.send(ACK, b"x", ack=peer.ack + 5)
    assert again.ack == peer.seq and len(peer.application.received) == before
    assert peer.send(ACK, ack=peer.ack + 5) == []
    assert peer.application.tcb.unacked() == 0


def test_two_that_disagree_do_not_answer_each_other_for_ever() -> None:
    peer = Peer()
    peer.open()
    assert sum(len(peer.send(ACK, seq=peer.seq - 7)) for _ in range(50)) == 1
    peer.wait(0.2)
    assert len(peer.send(ACK, seq=peer.seq - 7)) == 1


# ---- RST (section 3.10.7, RFC 5961 section 3) and SYN (RFC 5961 section 4)


@pytest.mark.parametrize("state", STATES)
def test_only_the_exact_number_resets(state: str) -> None:
    peer = in_state(state)
    for outside in (-1, WINDOW + 1):
        assert peer.send(RST, seq=peer.seq + outside) == []
    assert peer.connections == 1
    (challenge,) = peer.send(RST, seq=peer.seq + 1)
    assert (challenge.flags, challenge.ack) == (ACK, peer.seq)
    assert peer.connections == 1
    assert peer.send(RST) == []
    assert peer.connections == 0
    assert peer.application.reason == (None if state == "SYN-RECEIVED" else CLOSE_RESET)


@pytest.mark.parametrize("state", [state for state in STATES if state != "SYN-RECEIVED"])
def test_a_syn_is_challenged(state: str) -> None:
    peer = in_state(state)
    (challenge,) = peer.send(SYN)
    assert (challenge.flags, challenge.ack) == (ACK, peer.seq)
    assert peer.connections == 1 and peer.send(SYN) == []
    assert peer.stack.statistics()["challenges"] == 1


@pytest.mark.parametrize("state", STATES)
def test_a_segment_without_ack_is_dropped(state: str) -> None:
    peer = in_state(state)
    assert peer.send(0, b"text") == [] and not peer.application.received
    assert peer.connections == 1


def test_acknowledgements_of_what_cannot_be_are_challenged() -> None:
    peer = Peer(Recorder(bytes(3000)))
    peer.open()
    for wrong in (3001, 100_000, -WINDOW - 1, -0x7FFFFFFF):
        peer.wait(0.15)
        (answer,) = peer.send(ACK, b"x", ack=peer.ack + wrong)
        assert (answer.flags, answer.ack, answer.data) == (ACK, peer.seq, b"")
    assert not peer.application.received
    peer.send(ACK, b"x", ack=peer.ack - WINDOW)
    assert peer.application.received == b"x"


def test_an_unknown_connection_is_reset() -> None:
    peer = Peer()
    (answer,) = peer.send(ACK, b"abc", ack=77)
    assert (answer.flags, answer.seq) == (RST, 77)
    (answer,) = peer.send(FIN, b"abc")
    assert (answer.flags, answer.seq, answer.ack) == (RST | ACK, 0, peer.seq + 4)
    peer.ports = (PEER_PORT, 81)
    (answer,) = peer.send(SYN)
    assert (answer.flags, answer.ack) == (RST | ACK, peer.seq + 1)
    assert peer.send(RST) == [] and peer.send(RST | ACK) == []


def test_syn_received_refuses_a_wrong_acknowledgement() -> None:
    peer = in_state("SYN-RECEIVED")
    for wrong in (-1, 1):
        (answer,) = peer.send(ACK, ack=peer.ack + wrong)
        assert (answer.flags, answer.seq) == (RST, peer.ack + wrong)
    assert peer.send(ACK) == [] and peer.application.events == ["open"]


def test_a_repeated_syn_gets_its_answer_again() -> None:
    peer = Peer()
    (first,) = peer.send(SYN)
    (second,) = peer.send(SYN)
    assert (first.flags, first.seq, first.ack) == (second.flags, second.seq, second.ack)
    assert peer.stack.statistics()["opened_passive"] == 1


# ---- opening


def test_active_open() -> None:
    peer, application = active()
    (answer,) = peer.send(SYN | ACK, options=b"\x02\x04\x05\xb4")
    assert (answer.flags, answer.seq, answer.ack) == (ACK, peer.ack, peer.seq + 1)
    assert application.events == ["open"]


def test_syn_sent_and_wrong_acknowledgements() -> None:
    peer, application = active()
    for flags in (SYN | ACK, ACK):
        for wrong in (-1, 1):
            (answer,) = peer.send(flags, ack=peer.ack + wrong)
            assert (answer.flags, answer.seq) == (RST, peer.ack + wrong)
    assert peer.send(RST | ACK, ack=peer.ack + 1) == [] and peer.send(RST) == []
    assert peer.connections == 1
    assert peer.send(RST | ACK) == []
    assert application.events == ["close"] and application.reason == CLOSE_REFUSED


def test_simultaneous_open() -> None:
    peer, application = active()
    (answer,) = peer.send(SYN, ack=0, options=b"\x02\x04\x05\xb4")
    assert (answer.flags, answer.seq, answer.ack) == (SYN | ACK, peer.ack - 1, peer.seq + 1)
    # The peer's SYN-ACK repeats its SYN: it opens, and is not answered with another SYN-ACK.
    answers = peer.send(SYN | ACK)
    assert application.events == ["open"] and not any(a.flags & SYN for a in answers)
    peer.seq += 1
    peer.send(ACK | PSH, b"text")
    assert application.received == b"text"


def test_the_syn_is_sent_again_and_given_up() -> None:
    peer, application = active()
    times = [round(when) for when, segment in peer.wait(400) if segment.flags == SYN]
    assert times == [1, 3, 7, 15, 31, 63]
    assert application.events == ["close"] and application.reason == CLOSE_TIMEOUT


def test_the_answer_to_a_syn_is_sent_again_and_given_up() -> None:
    peer = in_state("SYN-RECEIVED")
    times = [round(when) for when, segment in peer.wait(400) if segment.flags == SYN | ACK]
    assert times == [1, 3, 7, 15, 31, 63]
    assert peer.connections == 0 and peer.application.events == []


class Impatient(Recorder):
    """Closes while it is still connecting, in a callback, and tries again at once."""

    stack: Any = None

    def alarm(self, tcb: Any) -> None:
        tcb.close()
        self.stack.connect(self, CLIENT_ADDRESS, PORT, PEER_PORT + 1)


def test_closing_before_it_is_open_and_opening_another() -> None:
    peer = Peer(listening=False)
    application = Impatient()
    application.stack = peer.stack
    peer.stack.learn(CLIENT_ADDRESS, b"\x02\0\0\0\0\x01")
    peer.ports = (PORT, PEER_PORT)
    peer.stack.connect(application, CLIENT_ADDRESS, PORT, PEER_PORT).set_alarm(peer.now + 1000)
    (first,) = peer.take()
    peer.ports = (PORT, PEER_PORT + 1)
    ((_, second),) = peer.wait(0.5)
    assert (first.flags, second.flags) == (SYN, SYN) and second.seq != first.seq
    assert application.events == ["close"] and peer.connections == 1
    peer.ack = second.seq + 1
    peer.say(SYN | ACK)
    application.tcb.send_bytes(b"hello")
    (sent,) = peer.take()
    assert sent.data == b"hello"


def test_nobody_has_the_address() -> None:
    peer = Peer(listening=False)
    application = Recorder()
    peer.stack.connect(application, CLIENT_ADDRESS, PORT)
    asked = peer.link.frames.pop()
    assert asked[22:24] == b"\x08\x06" and asked[10:16] == b"\xff" * 6 and asked[48:52] == b"\x0a\x2a\0\x01"
    for _ in range(60):
        peer.now += SECOND // 4
        peer.stack.advance(peer.now)
    assert application.reason == CLOSE_UNREACHABLE
    assert len(peer.link.frames) == 3


def test_a_reply_to_arp_sets_waiting_connections_going() -> None:
    peer = Peer(listening=False)
    application = Recorder()
    peer.stack.connect(application, CLIENT_ADDRESS, PORT, 999)
    peer.link.frames.clear()
    reply = b"\0\x01\x08\0\x06\x04\0\x02" + b"\x02\0\0\0\0\x01\x0a\x2a\0\x01" + b"\x02\0\0\0\0\x02\x0a\x2a\0\x02"
    other = reply.replace(b"\x0a\x2a\0\x01", b"\x0a\x2a\0\x09")
    peer.stack.feed(bytes(10) + b"\x02\0\0\0\0\x02" + b"\x02\0\0\0\0\x01" + b"\x08\x06" + other)
    assert peer.link.frames == []
    peer.stack.feed(bytes(10) + b"\x02\0\0\0\0\x02" + b"\x02\0\0\0\0\x01" + b"\x08\x06" + reply)
    peer.ports = (PORT, 999)
    (syn,) = peer.take()
    assert syn.flags == SYN


def test_ports_in_use() -> None:
    peer, _ = active()
    with pytest.raises(ValueError, match="in use"):
        peer.stack.connect(Recorder(), CLIENT_ADDRESS, PORT, PEER_PORT)
    peer.stack.listen(7, Recorder())
    with pytest.raises(ValueError, match="open already"):
        peer.stack.listen(7, Recorder())


class Contextual(Recorder):
    """Uses the TCB's context, as any application may."""

    def opened(self, tcb: Any) -> None:
        tcb.context = ["mine"]
        super().opened(tcb)


@pytest.mark.parametrize("how", ["open", "reset", "time"])
def test_the_backlog_is_bounded_and_empties(how: str) -> None:
    peer = Peer(Contextual(), backlog=4)
    for turn in range(3):
        answers = {}
        for port in range(6):
            peer.ports = (1000 + 100 * turn + port, PORT)
            answers[port] = peer.send(SYN, ack=0)
        assert [len(found) for found in answers.values()] == [1, 1, 1, 1, 0, 0]
        assert peer.stack.statistics()["refused"] == 2 * (turn + 1)
        for port in range(4):
            peer.ports = (1000 + 100 * turn + port, PORT)
            if how == "open":
                peer.send(ACK, seq=peer.seq + 1, ack=answers[port][0].seq + 1)
            elif how == "reset":
                peer.send(RST, seq=peer.seq + 1)
        if how == "time":
            peer.stack.advance(peer.now)
            for _ in range(200):
                peer.now += SECOND
                peer.stack.advance(peer.now)
            peer.link.frames.clear()
    assert peer.connections == (12 if how == "open" else 0)


@pytest.mark.parametrize("options", [b"", b"\x01\x01\x08\x0a\0\0\0\x01\0\0\0\0"], ids=["none", "timestamps only"])
def test_a_syn_without_mss_means_536_whoever_spoke_before(options: bytes) -> None:
    peer = Peer(Recorder(bytes(100_000)))
    other = Peer()
    other.stack, other.link, other.ports = peer.stack, peer.link, (999, PORT)
    other.open(FULL)
    peer.link.frames.clear()
    peer.open(options)
    data = [segment.data for segment in peer.after if segment.data]
    told = 536 - (12 if options else 0)
    assert sum(map(len, data)) == 10 * told
    assert b"\x03\x03" not in peer.send(SYN, seq=1, ack=0, options=options)[0].options


# ---- closing


def test_simultaneous_close() -> None:
    peer = in_state("FIN-WAIT-1")
    (answer,) = peer.say(FIN | ACK)
    assert answer.ack == peer.seq and peer.application.events == ["open", "end"]
    peer.ack += 1
    assert peer.say(ACK) == []
    assert peer.stack.statistics()["remnants"] == 1 and peer.application.reason == CLOSE_DONE


def test_fin_with_the_acknowledgement_of_ours() -> None:
    peer = in_state("FIN-WAIT-1")
    peer.ack += 1
    (answer,) = peer.say(FIN | ACK)
    assert answer.ack == peer.seq
    assert peer.stack.statistics()["remnants"] == 1 and peer.application.reason == CLOSE_DONE


def test_passive_close() -> None:
    peer = in_state("LAST-ACK")
    peer.ack += 1
    assert peer.say(ACK) == []
    assert peer.stack.statistics() | {"remnants": 0, "connections": 0} == peer.stack.statistics()
    assert peer.application.reason == CLOSE_DONE


def test_text_after_our_fin_is_still_received() -> None:
    peer = in_state("FIN-WAIT-2")
    peer.say(ACK, b"more")
    peer.say(ACK | FIN, b"last")
    assert peer.application.received == b"morelast" and peer.application.reason == CLOSE_DONE


def test_fin_wait_2_ends_by_itself() -> None:
    peer = in_state("FIN-WAIT-2")
    peer.wait(200)
    assert peer.connections == 0 and peer.application.reason == CLOSE_DONE


def test_a_fin_ahead_of_its_text_is_remembered() -> None:
    peer = Peer()
    peer.open()
    (answer,) = peer.send(ACK | FIN, b"world", seq=peer.seq + 6)
    assert answer.ack == peer.seq and not answer.flags & FIN
    (answer,) = peer.send(ACK, b"hello ")
    assert peer.application.received == b"hello world" and peer.application.events == ["open", "end"]
    assert answer.ack == peer.seq + 12 and answer.flags & FIN


def test_a_remnant_answers_a_late_fin_and_lets_a_new_connection_in() -> None:
    peer = in_state("FIN-WAIT-2")
    peer.say(FIN | ACK)
    (answer,) = peer.send(FIN | ACK, seq=peer.seq - 1)
    assert (answer.flags, answer.ack, answer.seq) == (ACK, peer.seq, peer.ack)
    assert peer.send(ACK) == []
    (answer,) = peer.send(SYN, seq=peer.seq - 1000, ack=0)
    assert answer.flags == ACK
    peer.application.events.clear()
    peer.seq += 1
    peer.open()
    assert peer.application.events == ["open"] and peer.stack.statistics()["connections"] == 1


def test_only_the_exact_number_resets_a_remnant() -> None:
    peer = in_state("FIN-WAIT-2")
    peer.say(FIN | ACK)
    peer.send(RST, seq=peer.seq + 1)
    (answer,) = peer.send(FIN | ACK, seq=peer.seq - 1)
    assert answer.flags == ACK
    peer.send(RST)
    (answer,) = peer.send(FIN | ACK, seq=peer.seq - 1)
    assert answer.flags == RST


# ---- timestamps (RFC 7323)


def test_timestamps_are_echoed_and_old_ones_rejected() -> None:
    peer = Peer(Recorder())
    peer.stamps = (0xFFFFFFF0, 0)
    answer = peer.open(FULL)
    assert answer.stamps is not None and answer.stamps[1] == 0xFFFFFFF0
    peer.stamps = (0x10, 0)  # later, modulo 2**32
    (answer,) = peer.say(ACK | PSH, b"new")
    assert answer.stamps is not None and answer.stamps[1] == 0x10
    peer.stamps = (0xFFFFFFF8, 0)
    (answer,) = peer.send(ACK | PSH, b"old")
    assert peer.application.received == b"new" and answer.ack == peer.seq
    # After 24 days without a word the clock may have wrapped (section 5.5).
    peer.now += 25 * 24 * 3600 * SECOND
    peer.stack.advance(peer.now)
    peer.say(ACK | PSH, b"old")
    assert peer.application.received == b"newold"


def test_a_segment_without_the_agreed_timestamps_is_dropped() -> None:
    peer = Peer()
    peer.open(FULL)
    peer.stamps = None
    assert peer.send(ACK | PSH, b"bare") == [] and not peer.application.received
    peer.send(RST)
    assert peer.connections == 0


def test_a_stamp_is_taken_only_from_what_covers_the_last_acknowledgement() -> None:
    peer = Peer()
    peer.open(FULL)
    peer.stamps = (500, 0)
    (answer,) = peer.send(ACK | PSH, b"ahead", seq=peer.seq + 10)
    assert answer.stamps is not None and answer.stamps[1] == 100
    peer.stamps = (400, 0)
    (answer,) = peer.send(ACK | PSH, b"0123456789")
    assert answer.stamps is not None and answer.stamps[1] == 400


# ---- the send window (section 3.10.7.4) and its probe (section 3.8.6.1)


def test_only_newer_segments_update_the_window() -> None:
    peer = Peer(Quiet())
    peer.open()
    peer.say(ACK, b"ab", wnd=20)
    tcb = peer.application.tcb
    assert tcb.snd_wnd == 20
    peer.send(ACK, b"ab", seq=peer.seq - 2, wnd=9000)  # older text
    assert tcb.snd_wnd == 20
    peer.send(ACK, wnd=30)
    assert tcb.snd_wnd == 30
    tcb.send_bytes(bytes(10))
    peer.send(ACK, ack=peer.ack + 10, wnd=40)
    peer.send(ACK, wnd=5000)  # an older acknowledgement
    assert tcb.snd_wnd == 40


def test_a_shrunk_window_is_respected() -> None:
    peer = Peer(Quiet())
    peer.open(wnd=3000)
    tcb = peer.application.tcb
    tcb.send_bytes(bytes(10_000))
    assert sum(len(s.data) for s in peer.take()) == 2920
    assert [s for s in peer.send(ACK, ack=peer.ack + 1460, wnd=0)] == []
    peer.send(ACK, ack=peer.ack + 2920, wnd=1000)
    assert tcb.snd_una == peer.ack + 2920


def test_a_closed_window_is_probed_for_as_long_as_the_peer_answers() -> None:
    peer = Peer(Recorder(b"text"))
    peer.open(wnd=0)
    times = []
    began = peer.now
    while peer.now < began + 1800 * SECOND:
        for _, segment in peer.wait(1):
            assert segment.data == b"t" and segment.seq == peer.ack
            times.append((peer.now - began) // SECOND)
            peer.send(ACK, wnd=0)
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert len(times) > 25 and gaps == sorted(gaps) and max(gaps) in (60, 61)
    assert peer.application.events == ["open"]
    (rest,) = peer.send(ACK, wnd=100)
    assert rest.data == b"text"


def test_a_peer_that_is_silent_behind_a_closed_window_is_given_up() -> None:
    peer = Peer(Recorder(b"text"))
    peer.open(wnd=0)
    found = peer.wait(1800)
    assert found[-1][1].flags & RST
    assert peer.application.reason == CLOSE_TIMEOUT and peer.connections == 0


def test_the_probe_that_is_accepted_counts() -> None:
    peer = Peer(Recorder(b"text"))
    peer.open(wnd=0)
    (_, probe), *_ = peer.wait(2)
    assert probe.data == b"t"
    (rest,) = peer.send(ACK, ack=peer.ack + 1, wnd=100)
    assert rest.data == b"ext" and rest.seq == peer.ack + 1


def test_our_window_never_moves_left() -> None:
    peer = Peer(Holding())
    peer.open(FULL)
    edge = 0
    for _ in range(120):
        for answer in peer.say(ACK | PSH, bytes(1448)):
            assert answer.ack + (answer.wnd << 4) >= edge - 15
            edge = max(edge, answer.ack + (answer.wnd << 4))
    peer.application.tcb.release(100)
    assert peer.take() == []  # not by a little
    peer.application.tcb.release(50_000)
    (answer,) = peer.take()
    assert answer.ack + (answer.wnd << 4) > edge + 40_000


# ---- retransmission


def test_an_unacknowledged_segment_is_sent_again_and_given_up() -> None:
    peer = Peer(Recorder(b"text"))
    peer.open()
    found = peer.wait(2000)
    gaps = [b[0] - a[0] for a, b in zip(found, found[1:], strict=False)]
    assert all(segment.data == b"text" for _, segment in found) and len(found) == 12
    assert all(1.9 <= later / earlier <= 2.1 for earlier, later in zip(gaps, gaps[1:], strict=False) if later < 50)
    assert peer.application.reason == CLOSE_TIMEOUT


def test_three_duplicates_retransmit_at_once() -> None:
    peer = Peer(Recorder(bytes(20_000)))
    peer.open()
    assert peer.after
    assert peer.send(ACK) == [] and peer.send(ACK) == []
    again = peer.send(ACK)
    assert again[0].seq == peer.ack and len(again[0].data) == 1460


def test_a_delayed_acknowledgement_comes_in_time() -> None:
    peer = Peer()
    peer.open()
    for _ in range(20):
        peer.say(ACK | PSH, b"x")  # the first ones are answered at once
    assert peer.say(ACK, b"y") == []
    ((when, answer),) = peer.wait(1)
    assert answer.ack == peer.seq and when <= 0.05
    peer.say(ACK, bytes(1460))
    (answer,) = peer.say(ACK, bytes(1460))
    assert answer.ack == peer.seq
