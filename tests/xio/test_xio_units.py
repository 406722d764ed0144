"""The parts of the stack that stand alone: sequence numbers, ISNs, timers, table, RTO, congestion, reassembly, gathers.

Their C functions cannot be called from here: what Python cannot reach runs uncompiled, from the same source.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netstack.xio.gather import Gather
from netstack.xio.seq import seq_add, seq_diff, seq_le, seq_lt

XIO = Path(__file__).resolve().parents[2] / "netstack" / "xio"


def uncompiled(name: str) -> ModuleType:
    """A module's Python, whatever of it is loaded elsewhere (test_twins.py shows that both are the same)."""
    spec = importlib.util.spec_from_file_location(f"uncompiled_{name}", XIO / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


isn = uncompiled("isn")
timers = uncompiled("timers")
rto = uncompiled("rto")
congestion = uncompiled("congestion")
reassembly = uncompiled("reassembly")
MASK = 0xFFFFFFFF
numbers = st.integers(0, MASK)


# ---- sequence numbers (RFC 9293 section 3.4)


@given(numbers, st.integers(-(2**31) + 1, 2**31 - 1))
def test_differences_of_sequence_numbers(a: int, n: int) -> None:
    b = seq_add(a, n)
    assert 0 <= b <= MASK and seq_diff(b, a) == n
    assert seq_lt(a, b) == (n > 0) and seq_le(a, b) == (n >= 0)


# ---- initial sequence numbers

KEY0, KEY1 = 0x0706050403020100, 0x0F0E0D0C0B0A0908


def test_siphash_of_sixteen_octets() -> None:
    # The key 00 01 … 0f and the message 00 01 … 0f: vector 16 of the authors' reference implementation.
    assert isn.siphash(KEY0, KEY1, KEY0, KEY1).to_bytes(8, "little") == bytes.fromhex("db9bc2577fcc2a3f")


def test_initial_sequence_numbers_tick_and_differ() -> None:
    first = isn.initial_sequence(KEY0, KEY1, 1, 2, 3, 0)
    assert isn.initial_sequence(KEY0, KEY1, 1, 2, 3, 4000) == seq_add(first, 1000)
    others = {isn.initial_sequence(KEY0, KEY1, 1, 2, port, 0) for port in range(1000)}
    assert len(others) == 1000
    assert isn.initial_sequence(KEY0, KEY1 ^ 1, 1, 2, 3, 0) != first


# ---- the timer wheel


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60_000_000), st.booleans()), max_size=40), st.integers(0, 10**12))
def test_the_wheel_is_never_late(asked: list[tuple[int, bool]], start: int) -> None:
    wheel = timers.Wheel(start)
    wanted: dict[Any, int] = {}
    for wait, cancelled in asked:
        entry = timers.Timed()
        wheel.schedule(entry, start + wait)
        if cancelled:
            wheel.cancel(entry)
            wheel.cancel(entry)
        else:
            wanted[entry] = start + wait
    assert wheel.count == len(wanted)
    now, late = start, timers.TICK
    while wanted:
        due = wheel.next_due()
        assert now < due <= min(wanted.values()) + late
        now = due
        found = wheel.expire(now)
        assert found
        for entry in found:
            if wanted[entry] > now:
                wheel.schedule(entry, wanted[entry])  # early: beyond the horizon
            else:
                del wanted[entry]
    assert wheel.next_due() == 0 and wheel.expire(now + 10**9) == []


def test_an_earlier_time_replaces_a_later_one_only() -> None:
    wheel = timers.Wheel(0)
    entry = timers.Timed()
    wheel.schedule(entry, 5_000_000)
    wheel.schedule(entry, 9_000_000)
    first = wheel.next_due()
    wheel.schedule(entry, 1_000_000)
    assert wheel.next_due() < first <= 5_000_000 + timers.TICK and wheel.count == 1


# ---- the connection table


def test_the_table_finds_exactly_what_is_in_it() -> None:
    demux = uncompiled("demux")
    table = demux.Table(0x1234567890ABCDEF)
    dice = random.Random(5)
    model: dict[tuple[int, int, int, int], Any] = {}
    for _ in range(4000):
        key = (dice.randrange(2), dice.randrange(80, 83), dice.choice([7, MASK]), dice.randrange(300))
        found = table.find(*key)
        assert found is model.get(key)
        if found is not None:
            table.remove(found)
            table.remove(found)
            del model[key]
        else:
            entry = demux.Entry()
            entry.local_address, entry.local_port, entry.remote_address, entry.remote_port = key
            table.insert(entry)
            model[key] = entry
        assert table.count == len(model)
    assert set(table.entries()) == set(model.values()) and table.size >= table.count > 64


def test_chains_stay_short_whatever_ports_are_chosen() -> None:
    demux = uncompiled("demux")
    for step in (1, 64, 4096):
        table = demux.Table(random.Random(step).getrandbits(64))
        for i in range(1024):
            entry = demux.Entry()
            entry.local_address, entry.local_port = 1, 80
            entry.remote_address, entry.remote_port = 2 + (i * step >> 16), i * step & 0xFFFF
            table.insert(entry)
        longest = 0
        for entry in table.buckets:
            length = 0
            while entry is not None:
                length, entry = length + 1, entry.chain
            longest = max(longest, length)
        assert longest <= 9


# ---- the retransmission timer (RFC 6298)


def test_rto_by_the_formulae() -> None:
    timer = rto.Rto()
    assert timer.current() == 1_000_000
    timer.sample(400_000)
    assert (timer.srtt, timer.rttvar, timer.current()) == (400_000, 200_000, 1_200_000)
    timer.sample(200_000)
    # RTTVAR = 3/4 · 200 + 1/4 · |400 - 200|; SRTT = 7/8 · 400 + 1/8 · 200
    assert (timer.srtt, timer.rttvar) == (375_000, 200_000)


@given(st.lists(st.one_of(st.integers(0, 10**8), st.sampled_from(["back off", "progress"]))))
def test_rto_stays_within_its_bounds(events: list[Any]) -> None:
    timer = rto.Rto()
    for event in events:
        before = timer.current()
        if event == "back off":
            timer.back_off()
            assert timer.current() >= before
        elif event == "progress":
            timer.progress()
        else:
            timer.sample(event)
        assert rto.MIN <= timer.current() <= rto.MAX


# ---- congestion (RFC 5681, 6582, 6928)


def test_slow_start_avoidance_and_fast_recovery() -> None:
    control = congestion.Congestion()
    control.begin(1000)
    assert control.cwnd == 10_000
    for _ in range(10):
        control.acked(1000)
    assert control.cwnd == 20_000
    control.lost(20_000)
    assert (control.ssthresh, control.cwnd) == (10_000, 13_000)
    control.inflate()
    assert control.cwnd == 14_000
    control.partial(3000)
    assert control.cwnd == 12_000
    control.recovered(50_000)
    assert control.cwnd == 10_000
    for _ in range(10):
        control.acked(1000)
    assert control.cwnd == 11_000  # one segment for a window's worth
    control.timed_out(11_000, False)
    assert (control.ssthresh, control.cwnd) == (5500, 1000)
    control.timed_out(1000, True)
    assert (control.ssthresh, control.cwnd) == (5500, 1000)


@given(st.integers(64, 9000), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 10**7))))
def test_the_window_holds_a_segment_whatever_happens(mss: int, events: list[tuple[int, int]]) -> None:
    control = congestion.Congestion()
    control.begin(mss)
    for kind, amount in events:
        if kind == 0:
            control.acked(amount)
        elif kind == 1:
            control.lost(amount)
        elif kind == 2:
            control.inflate()
        elif kind == 3:
            control.partial(amount)
        elif kind == 4:
            control.recovered(amount)
        elif kind == 5:
            control.timed_out(amount, bool(amount & 1))
        else:
            control.idle()
        assert control.cwnd >= mss and control.ssthresh >= 2 * mss


# ---- reassembly

STREAM = random.Random(1).randbytes(600)


@given(numbers, st.lists(st.tuples(st.integers(0, 599), st.integers(1, 200)), max_size=40), st.integers(0, 700))
def test_pieces_in_any_order_make_the_stream(start: int, pieces: list[tuple[int, int]], window: int) -> None:
    held = reassembly.Reassembly()
    known = [False] * 600
    for at, length in pieces:
        data = STREAM[at : at + length]
        held.insert(seq_add(start, at), data, seq_add(start, window))
        for i in range(at, min(at + len(data), window)):
            known[i] = True
        starts = [seq_diff(seq, start) for seq, _ in held.pieces]
        ends = [seq_diff(seq, start) + len(data) for seq, data in held.pieces]
        assert all(end <= later for end, later in zip(ends, starts[1:], strict=False))  # REASM-1
        assert held.held == sum(len(data) for _, data in held.pieces) == sum(known)
    at = 0
    got = b""
    while piece := held.take(seq_add(start, at)):
        got += piece
        at += len(piece)
    assert got == STREAM[: (known + [False]).index(False)]


def test_pieces_are_bounded() -> None:
    held = reassembly.Reassembly()
    for i in range(2 * reassembly.PIECES):
        held.insert(10 + 3 * i, b"x", 10_000)
    assert len(held.pieces) == held.held == reassembly.PIECES
    held.clear()
    assert held.held == 0 and held.take(10) == b""


# ---- gathers


class Watched(Gather):
    letting_go = 0

    def released(self) -> int:
        self.letting_go += 1
        return 0


def test_a_gather_says_when_nobody_uses_it() -> None:
    gather = Watched(b"abc", b"", bytearray(b"defg"))
    assert gather.length == 7
    gather.pin()
    gather.pin()
    gather.unpin()
    assert (gather.pins, gather.letting_go) == (1, 0)
    gather.unpin()
    assert (gather.pins, gather.letting_go) == (0, 1)
    with pytest.raises((TypeError, BufferError, ValueError)):
        gather.add("text")  # type: ignore[arg-type]
