"""No octets make the stack raise, and none that are not meant for it change anything."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair import SERVER, Recorder
from segments import FULL, PEER_PORT, PORT, Peer, frame

from netstack.xio.constants import ACK, FIN, PSH, RST, SYN

ANY_FLAGS = st.integers(0, 255)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_any_options_in_a_syn(options: bytes) -> None:
    peer = Peer(Recorder(bytes(20_000)))
    answers = peer.send(SYN, options=options)
    assert len(answers) == 1 - peer.stack.statistics()["malformed"]
    for answer in answers:
        peer.send(ACK, seq=peer.seq + 1, ack=answer.seq + 1)


@pytest.mark.parametrize(
    "options",
    [b"\x02", b"\x02\0", b"\x02\x01", b"\x02\x05\0\0", b"\x01\x01\x01\x08", b"\x08\x0a\0\0", b"\x05\xff\0\0"],
)
def test_malformed_options_are_counted(options: bytes) -> None:
    peer = Peer()
    options = bytes([1]) * (-len(options) % 4) + options
    assert peer.send(SYN, options=options) == [] and peer.stack.statistics()["malformed"] == 1


@pytest.mark.parametrize("options", [b"\0\x02\x01\xff", b"\x01\x01\x01\0", b"\xfe\x04\0\0", b"\x02\x03\0\x01"])
def test_unknown_options_and_what_follows_the_end_are_passed_over(options: bytes) -> None:
    assert len(Peer().send(SYN, options=options)) == 1


@pytest.mark.parametrize("told", [0, 1, 63, 64, 1459, 1461, 65535])
def test_any_mss(told: int) -> None:
    peer = Peer(Recorder(bytes(100_000)))
    peer.open(b"\x02\x04" + struct.pack(">H", told))
    assert sum(len(segment.data) for segment in peer.after) == 10 * (536 if told < 64 else min(told, 1460))


def test_a_scale_above_fourteen_is_fourteen() -> None:
    peer = Peer()
    peer.open(b"\x02\x04\x05\xb4\x03\x03\xff\0")
    peer.send(ACK, wnd=65535)
    assert peer.application.tcb.snd_wnd == 65535 << 14


def good(peer: Peer) -> list[bytes]:
    """Frames that mean something to the peer's connection."""
    return [
        frame(ACK | PSH, peer.seq, peer.ack, b"some text"),
        frame(ACK | FIN, peer.seq, peer.ack, b"x", options=b"\x01\x01\x08\x0a" + bytes(8)),
        frame(SYN, 99, options=FULL + bytes(8), ports=(7777, PORT)),
        frame(RST, peer.seq, 0),
        frame(ACK, 0, 0, ports=(1, 2)),
    ]


@pytest.mark.parametrize("vouched", [False, True])
def test_no_octets_make_it_raise(vouched: bool) -> None:
    dice = random.Random(17)
    handed = []
    peer = Peer(Recorder(bytes(5000)))
    peer.stack.set_other(handed.append)
    peer.open()
    frames = good(peer)
    for _ in range(20_000):
        octets = bytearray(dice.choice(frames))
        octets[0] = vouched
        for _ in range(dice.randrange(4)):
            octets[dice.randrange(10, len(octets))] = dice.randrange(256)
        if dice.random() < 0.2:
            del octets[dice.randrange(len(octets)) :]
        peer.stack.feed(bytes(octets))
        peer.link.frames.clear()
    found = peer.stack.statistics()
    assert found["malformed"] > 2000 and handed


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ANY_FLAGS, st.integers(-3, 70_000), st.integers(-70_000, 5003), st.binary(max_size=30))))
def test_no_sequence_of_segments_makes_it_raise(segments: list[tuple[int, int, int, bytes]]) -> None:
    peer = Peer(Recorder(bytes(5000)))
    peer.open()
    for flags, seq, ack, data in segments:
        peer.send(flags, data, seq=peer.seq + seq, ack=peer.ack + ack)
        peer.wait(0.01)
    peer.wait(700)
    assert peer.connections == 0 or peer.application.tcb.unacked() == 0


def test_a_wrong_checksum_is_dropped_unless_the_device_vouches() -> None:
    peer = Peer()
    for at, dropped in ((34, True), (60, True), (36, True)):  # IP checksum, TCP checksum, source
        octets = bytearray(frame(SYN, 1))
        octets[at] ^= 0x40
        peer.stack.feed(bytes(octets))
        assert (peer.take() == []) == dropped
    octets = bytearray(frame(SYN, 1))
    octets[60] ^= 0x40
    for flags in (1, 2):
        octets[0] = flags
        peer.stack.feed(bytes(octets))
        assert len(peer.take()) == 1


@pytest.mark.parametrize("source", [0, 0x00000005, 0xFFFFFFFF, 0xE0000001, 0xF0000001, SERVER])
@pytest.mark.parametrize("flags", [SYN, ACK])
def test_nothing_is_said_to_what_is_no_host(source: int, flags: int) -> None:
    peer = Peer()
    peer.stack.feed(frame(flags, 1, 1, source=source))
    assert peer.link.frames == [] and peer.connections == 0


@pytest.mark.parametrize("mac", [b"\xff" * 6, b"\x01\0\x5e\0\0\x01"])
@pytest.mark.parametrize("port", [PORT, 81])
def test_nothing_is_said_to_what_came_to_everybody(mac: bytes, port: int) -> None:
    peer = Peer()
    peer.stack.feed(frame(SYN, 1, mac=mac, ports=(PEER_PORT, port)))
    assert peer.link.frames == [] and peer.connections == 0


def test_what_is_not_tcp_to_us_goes_to_the_other() -> None:
    peer = Peer()
    handed: list[bytes] = []
    peer.stack.set_other(handed.append)
    arp = bytes(10) + b"\xff" * 6 + bytes(6) + b"\x08\x06" + bytes(28)
    whole = frame(SYN, 1)
    udp = whole[:33] + b"\x11" + whole[34:]
    fragment = whole[:30] + b"\x20\0" + whole[32:]
    elsewhere = whole[:43] + b"\x09" + whole[44:]
    for octets in (arp, udp, fragment, elsewhere):
        peer.stack.feed(octets)
    assert handed == [arp, udp, fragment, elsewhere]
    peer.stack.set_other(None)
    peer.stack.feed(arp)
    assert len(handed) == 4 and peer.link.frames == []


def test_padding_behind_the_datagram_is_not_text() -> None:
    peer = Peer()
    peer.open()
    peer.stack.feed(frame(ACK | PSH, peer.seq, peer.ack, b"ab") + bytes(20))
    assert peer.application.received == b"ab"
