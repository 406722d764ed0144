"""Packet rings: both ends, and what a hostile end can do to xokd (nothing)."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dpf.frames import HOST, IP, OTHER, OWN, UDP, Ether
from xok_host.abi import pktring as layout
from xok_host.abi.pktring import AREA_BYTES, MAX_PACKET, RING_BYTES, TX_AREA, TX_TAIL, WRAP, ClientPacketRing
from xok_host.kernel.dpf.inverse import Reason, Sender
from xok_host.kernel.dpf.pktring import KernelPacketRing

MAC = "02:00:00:00:00:02"
VNET = bytes(10)


def frame(source: str = OWN, size: int = 10) -> bytes:
    return bytes(Ether(src=MAC, dst="02:00:00:00:00:01") / IP(src=source, dst=HOST) / UDP() / bytes(size))


@pytest.fixture
def ends() -> tuple[KernelPacketRing, ClientPacketRing, memoryview]:
    memory = memoryview(bytearray(RING_BYTES))
    kernel = KernelPacketRing(memory)
    kernel.sender = Sender.of(bytes.fromhex(MAC.replace(":", "")), [OWN])
    return kernel, ClientPacketRing(memory), memory


Ends = tuple[KernelPacketRing, ClientPacketRing, memoryview]


def test_packets_go_both_ways_in_order_round_and_round(ends: Ends) -> None:
    kernel, client, _ = ends
    dice = random.Random(3)
    buffer = bytearray(MAX_PACKET)
    waiting: list[bytes] = []
    for _ in range(4000):
        packet = VNET + frame(size=dice.choice([0, 1, 7, 1400, 40000]))
        if kernel.deliver(packet):
            waiting.append(packet)
        elif dice.random() < 0.9:
            length = client.recv_into(buffer)
            assert buffer[:length] == waiting.pop(0)
        if dice.random() < 0.4 and waiting:
            length = client.recv_into(buffer)
            assert buffer[:length] == waiting.pop(0)
    assert kernel.overrun
    sent = []
    for _ in range(600):
        packet = VNET + frame(size=dice.choice([0, 3, 1400, 60000]))
        while not client.send((packet[:10], packet[10:30], packet[30:])):
            assert kernel.take() == sent[:64]
            del sent[:64]
        sent.append(packet)
    while sent:
        assert kernel.take() == sent[:64]
        del sent[:64]
    assert kernel.take() == [] and not kernel.broken and client.refused


def test_what_is_sent_is_judged(ends: Ends) -> None:
    kernel, client, _ = ends
    assert client.send((VNET, frame()))
    assert client.send((VNET, frame(OTHER)))
    assert client.send((struct.pack("<BBHHHH", 1, 0, 0, 0, 14, 12), frame()))
    assert kernel.take() == [VNET + frame()]
    assert kernel.sent == {Reason.PASSED: 1, Reason.SOURCE_ADDRESS: 1, Reason.CHECKSUM: 1}
    kernel.sender = None
    assert client.send((VNET, frame()))
    assert kernel.take() == []


def test_a_packet_changed_after_it_was_taken_goes_out_as_it_was_checked(ends: Ends) -> None:
    kernel, client, memory = ends
    client.send((VNET, frame()))
    (taken,) = kernel.take()
    memory[TX_AREA : TX_AREA + 200] = b"\xff" * 200
    assert taken == VNET + frame()


def test_a_sleeper_is_woken_once(ends: Ends) -> None:
    kernel, client, _ = ends
    assert not kernel.wants_doorbell()
    assert client.sleep()
    kernel.deliver(VNET + frame())
    assert kernel.wants_doorbell() and not kernel.wants_doorbell()
    assert not client.sleep() and not kernel.wants_doorbell()


def test_a_full_ring_drops_and_counts(ends: Ends) -> None:
    kernel, client, _ = ends
    packet = VNET + frame(size=60000)
    delivered = 0
    while kernel.deliver(packet):
        delivered += 1
    assert AREA_BYTES - 2 * len(packet) < delivered * len(packet) <= AREA_BYTES
    assert kernel.overrun == 1
    buffer = bytearray(MAX_PACKET)
    assert client.recv_into(buffer) == len(packet)
    assert client.recv_into(buffer) == len(packet)
    assert kernel.deliver(packet)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    tail=st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 64).map(lambda n: n * 8)),
    words=st.lists(st.sampled_from([0, 23, 24, 60, MAX_PACKET, MAX_PACKET + 1, WRAP, 1 << 31]), max_size=16),
    indices=st.lists(st.tuples(st.sampled_from(range(64, 384, 64)), st.integers(0, 2**32 - 1)), max_size=4),
)
def test_nonsense_breaks_the_ring_and_nothing_else(tail: int, words: list[int], indices: list[tuple[int, int]]) -> None:
    memory = memoryview(bytearray(RING_BYTES))
    kernel = KernelPacketRing(memory)
    for number, word in enumerate(words):
        struct.pack_into("<I", memory, TX_AREA + 8 * number, word)
    for at, value in indices:
        struct.pack_into("<I", memory, at, value)
    struct.pack_into("<I", memory, TX_TAIL, tail)
    for _ in range(4):
        assert len(kernel.take()) <= 64
    for _ in range(20):
        kernel.deliver(bytes(MAX_PACKET))
    assert kernel.sent[Reason.PASSED] == 0


@pytest.mark.parametrize("tail", [4, AREA_BYTES + 8, 8])
def test_an_impossible_tail_breaks_the_ring(ends: Ends, tail: int) -> None:
    kernel, _, memory = ends
    struct.pack_into("<I", memory, TX_TAIL, tail)
    assert kernel.take() == [] and kernel.broken and not kernel.pending()
    assert not kernel.deliver(VNET + frame())


def test_the_client_refuses_another_layout() -> None:
    with pytest.raises(ValueError):
        ClientPacketRing(memoryview(bytearray(RING_BYTES)))
    with pytest.raises(ValueError):
        ClientPacketRing(memoryview(bytearray(100)))
    assert layout.record_bytes(1) == 8 and layout.record_bytes(4) == 8 and layout.record_bytes(5) == 16
