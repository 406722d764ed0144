"""Sums compose wherever one cuts (SUM-1), prove what carries them (SUM-2), and finish as a device would (SUM-3)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, in4_chksum
from scapy.packet import Raw
from scapy.utils import checksum as scapy_checksum

from netstack.wire import checksum as sums
from netstack.wire import tcp, udp
from netstack.wire.ipv4 import PROTOCOL_TCP, PROTOCOL_UDP
from netstack.wire.tcp import Tcp
from netstack.wire.vnet import NEEDS_CSUM, Vnet
from tests.wire.wire_values import data, sources, tcps, u16


def same(a: int, b: int) -> bool:
    """Equal as ones'-complement numbers: 0 and 0xFFFF are the two zeros."""
    return a % 0xFFFF == b % 0xFFFF


def test_the_example_of_rfc_1071() -> None:
    octets = bytes.fromhex("0001f203f4f5f6f7")
    assert sums.total(octets) == 0xDDF2
    assert sums.finish(0xDDF2) == 0x220D
    assert sums.join(sums.total(octets[:3]), sums.total(octets[3:]), 3) == 0xDDF2


@given(data)
def test_agrees_with_scapy(octets: bytes) -> None:
    assert sums.finish(sums.total(octets)) == scapy_checksum(octets)


def test_more_octets_than_one_piece() -> None:
    octets = bytes(range(256)) * 700 + b"\xff\xfe\xfd"
    assert len(octets) > 2 * sums.PIECE
    assert sums.finish(sums.total(octets)) == scapy_checksum(octets)
    assert sums.finish(sums.total(b"\xff" * (3 * sums.PIECE))) == 0


@given(data, st.integers(0, 200))
def test_composes_at_any_place(octets: bytes, at: int) -> None:
    """SUM-1."""
    first, second = octets[:at], octets[at:]
    assert same(sums.join(sums.total(first), sums.total(second), len(first)), sums.total(octets))


@given(data, data, data)
def test_three_parts_compose_in_either_order(a: bytes, b: bytes, c: bytes) -> None:
    left = sums.join(sums.join(sums.total(a), sums.total(b), len(a)), sums.total(c), len(a) + len(b))
    right = sums.join(sums.total(a), sums.join(sums.total(b), sums.total(c), len(b)), len(a))
    assert same(left, right)
    assert same(left, sums.total(a + b + c))


@given(data.filter(lambda octets: len(octets) % 2 == 0 and any(octets)))
def test_what_carries_its_checksum_is_right(octets: bytes) -> None:
    """SUM-2."""
    whole = octets + sums.finish(sums.total(octets)).to_bytes(2, "big")
    assert sums.right(whole)
    assert not sums.right(bytes([whole[0] ^ 1]) + whole[1:])


@given(st.lists(u16, min_size=1, max_size=30), st.data(), u16)
def test_update_is_a_new_sum(words: list[int], which: st.DataObject, new: int) -> None:
    at = which.draw(st.integers(0, len(words) - 1))
    old = words[at]
    before = sums.finish(sums.fold(sum(words)))
    words[at] = new
    assert same(sums.update(before, old, new), sums.finish(sums.fold(sum(words))))


@given(sources, sources, data)
def test_pseudo_header(source: int, destination: int, payload: bytes) -> None:
    start = sums.pseudo(source, destination, PROTOCOL_TCP, len(payload))
    packet = IP(src=dotted(source), dst=dotted(destination))
    assert sums.finish(sums.total(payload, start)) == in4_chksum(PROTOCOL_TCP, packet, payload)


@given(sources, sources, tcps(), data)
def test_a_partial_checksum_is_finished_into_the_whole_one(
    source: int, destination: int, header: Tcp, payload: bytes
) -> None:
    """SUM-3, with 34 octets of Ethernet and IP in front that do not count."""
    length = len(header.pack()) + len(payload)
    pseudo = sums.pseudo(source, destination, PROTOCOL_TCP, length)
    front = b"\x5a" * 34
    offload = Vnet(flags=NEEDS_CSUM, csum_start=34, csum_offset=tcp.CHECKSUM)
    finished = offload.complete(front + header.pack_partial(pseudo) + payload)
    whole = front + header.pack(payload, pseudo) + payload
    assert same(*(int.from_bytes(frame[50:52], "big") for frame in (finished, whole)))
    assert finished[:50] + finished[52:] == whole[:50] + whole[52:]
    ip = IP(src=dotted(source), dst=dotted(destination), proto=PROTOCOL_TCP) / Raw(bytes(finished[34:]))
    seen = IP(bytes(ip))
    carried = seen[TCP].chksum
    del seen[TCP].chksum
    assert same(carried, IP(bytes(seen))[TCP].chksum)


def test_udp_never_carries_none_by_chance() -> None:
    """A sum of 0xFFFF would make the checksum 0, which says there is none."""
    source, destination = 0x0A000001, 0x0A000002
    for first in range(0x10000):
        payload = first.to_bytes(2, "big")
        pseudo = sums.pseudo(source, destination, PROTOCOL_UDP, udp.HEADER + 2)
        if sums.total(udp.Udp(1000, 2000).pack(b"", 0)[:4] + b"\0\x0a" + payload, pseudo) == 0xFFFF:
            break
    header = udp.Udp(1000, 2000).pack(payload, pseudo)
    assert header[udp.CHECKSUM :] == b"\xff\xff"
    made = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1000, dport=2000) / Raw(payload)
    assert IP(bytes(made))[UDP].chksum == 0xFFFF


def dotted(address: int) -> str:
    return ".".join(str(octet) for octet in address.to_bytes(4, "big"))
