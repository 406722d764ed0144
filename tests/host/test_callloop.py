"""The call loop against clients that behave and clients that do not, with a kernel of a few lines."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from xok_host.abi import channel
from xok_host.abi.calls import CallNumber, Event
from xok_host.abi.channel import ClientRing, Completion, Entry
from xok_host.abi.client import CHUNK_MESSAGE
from xok_host.abi.errors import LimitReached, NotFound, XokError
from xok_host.host import callloop
from xok_host.host.callloop import CallLoop
from xok_host.host.memory import Shared, allocate


class EchoKernel(callloop.Kernel):
    """NULL answers at once, FLUSH when told to, INFO is refused, ROOT is a bug."""

    def __init__(self) -> None:
        self.order: list[tuple[int, int]] = []
        self.waiting: list[Entry] = []
        self.chunk: Shared | None = None

    def execute(self, env: int, entry: Entry) -> Completion | None:
        self.order.append((env, entry.a0))
        match entry.number:
            case CallNumber.FLUSH:
                self.waiting.append(entry)
                return None
            case CallNumber.INFO:
                return Completion(entry.cookie, NotFound.code, 0, 0, b"device 9")
            case CallNumber.ROOT:
                raise KeyError("a bug")
        return Completion(entry.cookie, 0, entry.a0, env, entry.data)

    def finish(self, loop: CallLoop, r0: int = 0) -> None:
        entry = self.waiting.pop(0)
        loop.complete(Completion(entry.cookie, 0, r0, 0, entry.data))

    def chunk_descriptor(self, chunk: int, writable: bool) -> int:
        self.chunk = self.chunk or allocate("chunk", 4096, private=False)
        return self.chunk.writer if writable else self.chunk.reader


class Peer:
    """A libOS's side: the ring and the socket."""

    def __init__(self, loop: CallLoop, env: int) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.shared: Shared = allocate("ring", channel.RING_BYTES, private=False)
        self.doorbell = os.eventfd(0, os.EFD_NONBLOCK)
        loop.add(env, theirs, os.dup(self.doorbell), self.shared)
        self.memory = self.shared.memory
        self.ring = ClientRing(self.memory)

    def submit(self, number: int, a0: int = 0, **options: int) -> int:
        return self.ring.push(number, (a0,), out_bytes=256, **options)

    def bell(self) -> None:
        self.ring.publish()
        os.eventfd_write(self.doorbell, 1)

    def take(self) -> list[channel.Completion]:
        return list(iter(self.ring.pop, None))


@pytest.fixture
def kernel() -> EchoKernel:
    return EchoKernel()


@pytest.fixture
def flooded() -> list[int]:
    return []


@pytest.fixture
def loop(kernel: EchoKernel, flooded: list[int]) -> Iterator[CallLoop]:
    loop = CallLoop(kernel, flooded.append)
    yield loop
    loop.close()


def turns(loop: CallLoop, count: int = 8) -> None:
    for _ in range(count):
        loop.turn(0)


def test_a_batch_is_one_crossing(loop: CallLoop) -> None:
    peer = Peer(loop, 1)
    for value in range(10):
        peer.submit(CallNumber.NULL, value)
    peer.bell()
    loop.turn(0)
    assert [done.r0 for done in peer.take()] == list(range(10))
    assert (loop.counts.crossings, loop.counts.entries) == (1, 10)
    assert peer.sock.recv(16) == b"\1"
    with pytest.raises(BlockingIOError):
        peer.sock.recv(16, socket.MSG_DONTWAIT)


def test_a_flood_gets_one_share_of_a_turn(loop: CallLoop, kernel: EchoKernel) -> None:
    flood, modest = Peer(loop, 1), Peer(loop, 2)
    for _ in range(channel.SUBMISSIONS):
        flood.submit(CallNumber.NULL)
    flood.bell()
    modest.submit(CallNumber.NULL)
    modest.bell()
    loop.turn(0)
    assert [env for env, _ in kernel.order].count(1) == callloop.TURN_ENTRIES
    assert modest.take()
    turns(loop)
    assert [env for env, _ in kernel.order].count(1) == channel.SUBMISSIONS


def test_a_refusal_carries_code_and_sentence(loop: CallLoop) -> None:
    peer = Peer(loop, 1)
    peer.submit(CallNumber.INFO)
    peer.bell()
    loop.turn(0)
    (refused,) = peer.take()
    assert (refused.code, refused.data) == (NotFound.code, b"device 9")
    assert loop.counts.refusals == 1


def test_a_fault_inside_xokd_answers_and_harms_nobody_else(loop: CallLoop) -> None:
    peer = Peer(loop, 1)
    peer.submit(CallNumber.ROOT)
    peer.submit(CallNumber.NULL, 5)
    peer.bell()
    answers = []
    for _ in range(2):  # writing the log may take a turn's time
        loop.turn(0)
        answers += peer.take()
    assert [(done.code, done.r0) for done in answers] == [(XokError.code, 0), (0, 5)]
    assert loop.counts.faults == 1


def test_calls_complete_in_any_order_under_the_cookies_of_their_libos(loop: CallLoop, kernel: EchoKernel) -> None:
    """CL-4: two libOSes use the same cookies, and one uses one twice; every answer reaches its own entry."""
    peers = [Peer(loop, 1), Peer(loop, 2)]
    for peer in peers:
        for _ in range(2):
            peer.ring.push(CallNumber.FLUSH, (0,), out_bytes=256)
        at = channel.SQ_OFFSET + channel.ENTRY.size
        struct.pack_into("<Q", peer.memory, at + 8, 1)  # the second entry's cookie becomes the first's
        peer.bell()
    loop.turn(0)
    kernel.waiting.reverse()
    for value in range(4):
        kernel.finish(loop, value)
    turns(loop)
    for peer, expected in zip(peers, ([3, 2], [1, 0]), strict=True):
        raw = peer.memory[channel.CQ_OFFSET : channel.CQ_OFFSET + 2 * channel.COMPLETION.size]
        found = list(channel.COMPLETION.iter_unpack(raw))
        assert [fields[0] for fields in found] == [1, 1]
        assert sorted(fields[3] for fields in found) == sorted(expected)


def test_a_client_that_reads_nothing_stops_only_itself(loop: CallLoop, kernel: EchoKernel) -> None:
    """CH-3: no more entries are taken than can be answered, whatever the tail says, and the loop goes idle."""
    peer = Peer(loop, 1)
    for tail in range(1, 64):
        struct.pack_into("<I", peer.memory, channel.SQ_TAIL, tail * channel.SUBMISSIONS)
        peer.sock.send(b"\1")
        turns(loop, 6)
    assert loop.counts.entries == channel.COMPLETIONS
    before = loop.counts.turns
    loop.turn(0)
    assert loop.counts.entries == channel.COMPLETIONS and loop.counts.turns == before + 1
    assert not loop._ready


def test_every_byte_of_a_ring_may_be_garbage(loop: CallLoop) -> None:
    import random

    chance = random.Random(7)
    peer, other = Peer(loop, 1), Peer(loop, 2)
    for _ in range(50):
        peer.memory[64 : channel.DATA_OFFSET] = chance.randbytes(channel.DATA_OFFSET - 64)
        peer.sock.send(b"\1", socket.MSG_DONTWAIT)
        turns(loop, 2)
        while True:
            try:
                peer.sock.recv(16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
    other.submit(CallNumber.NULL, 3)
    other.bell()
    turns(loop)
    assert other.take()[0].r0 == 3


def test_an_entry_changed_after_submission_changes_nothing(loop: CallLoop, kernel: EchoKernel) -> None:
    peer = Peer(loop, 1)
    peer.ring.push(CallNumber.FLUSH, (1,), data=b"honest", out_bytes=256)
    peer.bell()
    loop.turn(0)
    peer.memory[channel.SQ_OFFSET : channel.SQ_OFFSET + channel.ENTRY.size] = bytes(channel.ENTRY.size)
    peer.memory[channel.DATA_OFFSET : channel.DATA_OFFSET + 1024] = bytes(1024)
    kernel.finish(loop)
    turns(loop)
    assert [done.data for done in peer.take()] == [b"honest"]


def test_a_hung_up_client_is_dropped_with_its_calls_in_flight(loop: CallLoop, kernel: EchoKernel) -> None:
    peer = Peer(loop, 1)
    peer.submit(CallNumber.FLUSH)
    peer.bell()
    loop.turn(0)
    peer.sock.close()
    turns(loop)
    loop.remove(1)
    kernel.finish(loop)
    turns(loop)


def test_events_wait_for_room_and_their_number_is_bounded(loop: CallLoop, flooded: list[int]) -> None:
    peer = Peer(loop, 1)
    for number in range(channel.COMPLETIONS + 10):
        loop.post(1, Event.LOCK_WANTED, number)
    assert not flooded
    seen = [event.r0 for event in peer.take()]
    peer.bell()
    turns(loop)
    seen += [event.r0 for event in peer.take()]
    assert seen == list(range(channel.COMPLETIONS + 10))
    for number in range(channel.COMPLETIONS + callloop.MAX_EVENTS + 1):
        loop.post(1, Event.LOCK_WANTED, number)
    assert flooded == [1]


def test_events_about_one_lock_do_not_add_up(loop: CallLoop, flooded: list[int]) -> None:
    """Others may ask for a stalled holder's locks as often as they like: the last word about each of them waits."""
    peer = Peer(loop, 1)
    for number in range(channel.COMPLETIONS):
        loop.post(1, Event.STOP, number)
    for mode in range(callloop.MAX_EVENTS // 64):
        for number in range(128):
            loop.post(1, Event.LOCK_WANTED, number, mode)
    loop.post(1, Event.LOCK_LOST, 7)
    loop.post(1, Event.LOCK_WANTED, 7, 77)
    assert not flooded
    assert len(peer.take()) == channel.COMPLETIONS
    peer.bell()
    turns(loop)
    last = callloop.MAX_EVENTS // 64 - 1
    expected = [(Event.LOCK_WANTED, number, last) for number in range(128) if number != 7]
    expected += [(Event.LOCK_LOST, 7, 0), (Event.LOCK_WANTED, 7, 77)]
    assert [(event.code, event.r0, event.r1) for event in peer.take()] == expected


def test_an_unread_doorbell_never_blocks_the_loop(loop: CallLoop) -> None:
    peer = Peer(loop, 1)
    for value in range(2000):
        peer.submit(CallNumber.NULL, value)
        peer.bell()
        loop.turn(0)
        assert peer.take()[0].r0 == value


def test_a_chunk_descriptor_comes_before_its_completion(loop: CallLoop) -> None:
    peer = Peer(loop, 1)
    peer.submit(CallNumber.CHUNK_MAP, 0)
    peer.bell()
    loop.turn(0)
    message, fds, _, _ = socket.recv_fds(peer.sock, 64, 1)
    assert message == CHUNK_MESSAGE.pack(2, 0, 0, 0)
    with pytest.raises(OSError):
        os.write(fds[0], b"x")
    os.close(fds[0])
    assert [(done.code, done.r0) for done in peer.take()] == [(0, 0)]


def test_descriptors_for_one_that_does_not_read_them_are_refused(loop: CallLoop) -> None:
    peer = Peer(loop, 1)
    codes: set[int] = set()
    for _ in range(2000):
        peer.submit(CallNumber.CHUNK_MAP, 0)
        peer.bell()
        loop.turn(0)
        codes |= {done.code for done in peer.take()}
    assert codes == {0, LimitReached.code}


def rung(peer: Peer) -> int:
    """How many doorbells are in the socket."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while peer.sock.recv(16, socket.MSG_DONTWAIT):
            count += 1
    return count


def test_who_waits_in_the_ring_is_woken_there_and_no_doorbell_rings(loop: CallLoop) -> None:
    """CH-6, from before the sleep to after it."""
    peer = Peer(loop, 1)
    for asleep in (False, True):
        assert not peer.ring.wait_here(True)
        woken: list[bool] = []
        sleeper = threading.Thread(target=lambda into=woken: into.append(peer.ring.sleep(60_000_000_000)))
        if asleep:
            sleeper.start()
            time.sleep(0.05)
        peer.submit(CallNumber.NULL, 5)
        peer.bell()
        loop.turn(0)
        if not asleep:
            sleeper.start()
        sleeper.join(30)
        assert woken == [True] and not rung(peer)
        assert [done.r0 for done in peer.take()] == [5]
        assert not peer.ring.wait_here(False)
    peer.submit(CallNumber.NULL, 6)
    peer.bell()
    loop.turn(0)
    assert rung(peer) == 1 and peer.ring.wait_here(False)


def test_a_sleep_ends_by_itself(loop: CallLoop) -> None:
    assert not Peer(loop, 1).ring.sleep(1_000_000)


@pytest.mark.parametrize("word", [channel.HERE, channel.ASLEEP, 3, 0xFFFF_FFFF])
def test_who_lies_about_sleeping_gets_what_it_claims_to_need(loop: CallLoop, word: int) -> None:
    """Nothing, a wake, or a doorbell whatever else is in the word; who slept is said to be awake."""
    peer = Peer(loop, 1)
    struct.pack_into("<I", peer.memory, channel.CQ_SLEEP, word)
    peer.submit(CallNumber.NULL, 1)
    peer.bell()
    loop.turn(0)
    assert rung(peer) == (word not in (channel.HERE, channel.ASLEEP))
    assert struct.unpack_from("<I", peer.memory, channel.CQ_SLEEP) == (
        channel.HERE if word == channel.ASLEEP else word,
    )
    assert len(peer.take()) == 1


def test_a_doorbell_that_can_take_no_more_keeps_only_its_owner_waiting(loop: CallLoop) -> None:
    peer, other = Peer(loop, 1), Peer(loop, 2)
    os.eventfd_write(peer.doorbell, (1 << 64) - 2)
    turns(loop, 2)
    with pytest.raises(BlockingIOError):
        os.eventfd_write(peer.doorbell, 1)
    before = loop.counts.crossings
    turns(loop)
    assert loop.counts.crossings == before  # an edge is seen once, though nobody reads
    other.submit(CallNumber.NULL, 3)
    other.bell()
    turns(loop)
    assert other.take()[0].r0 == 3
    peer.submit(CallNumber.NULL, 4)
    peer.ring.publish()
    peer.sock.send(b"\1")  # a message rings as well
    turns(loop)
    assert peer.take()[0].r0 == 4
