"""The libOS's end of the channel, against a ring whose other end the test holds."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from launchkit import start_message

from xok_host.abi import channel, client
from xok_host.abi.calls import Event
from xok_host.abi.client import Environment
from xok_host.abi.errors import Gone


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Environment]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    start_message(ours, None, [], {})
    yield ours, Environment.from_socket(theirs.detach())
    ours.close()


def test_who_sleeps_in_the_ring_notices_that_xokd_is_gone(
    ends: tuple[socket.socket, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_NS", 50_000_000)
    xokd, env = ends
    threading.Timer(0.2, xokd.close).start()
    began = time.monotonic()
    with pytest.raises(Gone):
        env.call("null")
    assert 0.1 < time.monotonic() - began < 20


def test_a_full_ring_waits_for_an_answer(ends: tuple[socket.socket, Environment]) -> None:
    _, env = ends
    ring = channel.KernelRing(env.ring.memory)

    def xokd() -> None:
        for _ in range(channel.SUBMISSIONS + 1):
            while (entry := ring.take()) is None:
                time.sleep(0.001)
            ring.complete(entry, 0, entry.a0)
            ring.wake()

    thread = threading.Thread(target=xokd)
    cookies = [env.submit("null", number) for number in range(channel.SUBMISSIONS)]
    thread.start()
    cookies.append(env.submit("null", channel.SUBMISSIONS))
    assert [env.wait(cookie).r0 for cookie in cookies] == list(range(channel.SUBMISSIONS + 1))
    thread.join(20)


def test_who_has_several_calls_on_their_way_waits_for_any(ends: tuple[socket.socket, Environment]) -> None:
    """The second is answered first; what came before the wait is enough, and what is queued crosses with it."""
    _, env = ends
    ring = channel.KernelRing(env.ring.memory)
    came: list[int] = []
    for number in (1, 2):
        env.submit("null", number, then=lambda answer: came.append(answer.r0))

    def xokd() -> None:
        entries = []
        while len(entries) < 2:
            if (entry := ring.take()) is not None:
                entries.append(entry)
            time.sleep(0.001)
        for entry in reversed(entries):
            time.sleep(0.05)
            ring.complete(entry, 0, entry.a0)
            ring.wake()

    thread = threading.Thread(target=xokd)
    thread.start()
    env.wait_any()
    assert came == [2]
    thread.join(20)
    env.wait_any()
    assert came == [2, 1]


@pytest.mark.parametrize(("least", "event_at", "expected"), [(3, 9, 3), (99, 9, 5), (4, 2, 2), (1, 9, 1)])
def test_who_waits_for_several_answers_is_woken_once(
    ends: tuple[socket.socket, Environment], least: int, event_at: int, expected: int
) -> None:
    """By as many as it wants, by all that are to come, or by an event (CH-7)."""
    _, env = ends
    ring = channel.KernelRing(env.ring.memory)
    came: list[int] = []
    asleep: list[bool] = []
    events: list[Event] = []
    env.on_event = lambda event, r0, r1: events.append(event)
    for number in range(5):
        env.submit("null", number, then=lambda answer: came.append(answer.r0))
    returned = threading.Event()

    def xokd() -> None:
        entries: list[channel.Entry] = []
        while len(entries) < 5:
            if (entry := ring.take()) is not None:
                entries.append(entry)
            time.sleep(0.001)
        for number, entry in enumerate(entries, 1):
            while env.ring._load(channel.CQ_SLEEP) != channel.ASLEEP and not returned.is_set():
                time.sleep(0.001)
            ring.complete(entry, 0, entry.a0)
            if number == event_at:
                ring.event(Event.LOCK_WANTED, 7)
            ring.wake()
            asleep.append(env.ring._load(channel.CQ_SLEEP) == channel.ASLEEP)
            if number == expected:
                returned.wait(20)

    thread = threading.Thread(target=xokd)
    thread.start()
    env.wait_any(least)
    assert came == list(range(expected)) and events == [Event.LOCK_WANTED] * (event_at == expected)
    assert asleep[: expected - 1] == [True] * (expected - 1), "it was woken before"
    returned.set()
    thread.join(20)
    env.dispatch()
    assert came == list(range(5))


def test_who_wants_more_answers_than_are_to_come_gets_those(ends: tuple[socket.socket, Environment]) -> None:
    """Not when it runs out of patience, and not never: those that were answered out of order do not count as to come,
    and when all were there before the wait there is nothing to wait for."""
    _, env = ends
    ring = channel.KernelRing(env.ring.memory)
    came: list[int] = []
    for number in range(4):
        env.submit("null", number, then=lambda answer: came.append(answer.r0))
    env.ring_doorbell()
    first, *others = [ring.take() for _ in range(4)]
    assert first is not None
    for entry in others:
        assert entry is not None
        ring.complete(entry, 0, entry.a0)
    env.dispatch()

    def answer() -> None:
        while env.ring._load(channel.CQ_SLEEP) != channel.ASLEEP:
            time.sleep(0.001)
        ring.complete(first, 0, first.a0)
        ring.wake()

    thread = threading.Thread(target=answer)
    thread.start()
    began = time.monotonic()
    env.wait_any(3)
    assert came == [1, 2, 3, 0] and time.monotonic() - began < client.PATIENCE_NS / 2e9
    thread.join(20)

    env.submit("null", 4, then=lambda answer: came.append(answer.r0))
    env.ring_doorbell()
    last = ring.take()
    assert last is not None
    ring.complete(last, 0, last.a0)
    env.wait_any(2)  # which would wait for ever
    assert came[4:] == [4]


def test_numbers_that_do_not_fit_are_not_counted_as_to_come(ends: tuple[socket.socket, Environment]) -> None:
    _, env = ends
    ring = channel.KernelRing(env.ring.memory)
    for number in (-1, 1 << 64):
        with pytest.raises((OverflowError, struct.error)):
            env.submit("null", number)
    assert not env.ring.unanswered and not env.ring.queued()
    env.submit("null", 1, then=lambda answer: None)
    env.ring_doorbell()
    entry = ring.take()
    assert entry is not None and entry.a0 == 1
    ring.complete(entry, 0)
    env.wait_any(2)  # which would wait for ever


def test_what_is_queued_crosses_with_a_wait_that_need_not_wait(ends: tuple[socket.socket, Environment]) -> None:
    _, env = ends
    ring = channel.KernelRing(env.ring.memory)
    env.submit("null", 1, then=lambda answer: None)
    env.ring_doorbell()
    entry = ring.take()
    assert entry is not None
    ring.complete(entry, 0)
    env.submit("null", 2, then=lambda answer: None)
    env.wait_any()
    assert ring.pending() == 1


def test_a_signal_does_not_leave_it_waiting_in_the_ring(ends: tuple[socket.socket, Environment]) -> None:
    """What its handler raises comes through, and doorbells ring again."""

    class Interrupted(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    _, env = ends
    former = signal.signal(signal.SIGUSR1, interrupt)
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(Interrupted):
            env.call("null")
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert env.ring._load(channel.CQ_SLEEP) == 0
