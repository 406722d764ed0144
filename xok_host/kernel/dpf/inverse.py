"""The inverse filter: what a sender may send (thesis 3.2; DESIGN.md 5), as portable code.

The same rules, in the same order, are compiled to eBPF by inverse_compile.py; `Reason` is the counter of both.

INV-1  The source MAC is the sender's.
INV-2  No VLAN tag.  IPv4, ARP and IPv6 only; of IPv6 no extension header but the fragment header, because what follows
       one could not be judged.
INV-3  The IP source is one of the sender's addresses.  IPv6 also allows :: to ask whether an own address is taken.
INV-4  ARP: Ethernet and IPv4, sender MAC and address are the sender's (or 0.0.0.0, a probe).
INV-5  Neighbour discovery: solicitations, and advertisements of own addresses, with no link-layer address but the own
       one.  No router advertisement, no redirect, of ICMP neither; no ICMP in fragments, where one could hide.
INV-6  The offload header asks for one checksum at most: that of an unfragmented TCP or UDP packet, where its header
       has it.  Elsewhere the host kernel would store it over what was checked.
INV-7  Segmentation only of TCP, with that checksum, into at least MIN_GSO bytes each, so that one write cannot become
       tens of thousands of packets.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from xok_host.abi.dpf import ETH, ETH_ARP, ETH_IP, ETH_IP6, PROTO_ICMP, PROTO_ICMP6, PROTO_TCP, PROTO_UDP

Frame = bytes | bytearray | memoryview

MIN_GSO: Final = 536
"""Bytes: the default MSS of RFC 9293 section 3.7.1."""
VNET: Final = struct.Struct("<BBHHHH")
"""flags, segmentation type, header bytes, segment bytes, checksum start, checksum offset: struct virtio_net_hdr"""
NEEDS_CSUM: Final = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_ECN = 0, 1, 4, 0x80

IP6_FRAGMENT: Final = 44
ETH_VLAN: Final = (0x8100, 0x88A8)
CHECKSUM_AT: Final = {PROTO_TCP: 16, PROTO_UDP: 6}
"""Offset of the checksum in the header that follows IP's."""
ICMP_REDIRECT, ICMP_ROUTER = 5, 9
ND_ROUTER_SOLICITATION, ND_ROUTER, ND_SOLICITATION, ND_ADVERTISEMENT, ND_REDIRECT = 133, 134, 135, 136, 137
ND_OPTION_SOURCE, ND_OPTION_TARGET = 1, 2
IP6_ANY: Final = bytes(16)


class Reason(IntEnum):
    """Why a packet was dropped; 0 is that it passed."""

    PASSED = 0
    NO_SENDER = 1
    """The queue has no sender: revoked, or never given out."""
    SOURCE_MAC = 2
    VLAN = 3
    PROTOCOL = 4
    SOURCE_ADDRESS = 5
    ARP = 6
    NEIGHBOUR = 7
    SEGMENTATION = 8
    CHECKSUM = 9
    MALFORMED = 10


def mapped(address: str) -> bytes:
    """An address as the maps have it: 16 bytes, IPv4 as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2)."""
    parsed = ipaddress.ip_address(address)
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed


@dataclass(frozen=True, slots=True)
class Sender:
    """What one sender may put its name to."""

    mac: bytes
    addresses: frozenset[bytes]
    """`mapped`"""

    @classmethod
    def of(cls, mac: bytes, addresses: Iterable[str]) -> Sender:
        if len(mac) != 6:
            raise ValueError(f"a MAC has 6 bytes, not {len(mac)}")
        return cls(mac, frozenset(mapped(address) for address in addresses))


def check(sender: Sender | None, header: Frame, frame: Frame) -> Reason:
    """Judge one packet: its virtio header (10 bytes) and its frame.  Works on a private copy, not on shared memory."""
    if sender is None:
        return Reason.NO_SENDER
    if len(header) != VNET.size or len(frame) < ETH:
        return Reason.MALFORMED
    if frame[6:12] != sender.mac:
        return Reason.SOURCE_MAC
    kind = frame[12] << 8 | frame[13]
    if kind in ETH_VLAN:
        return Reason.VLAN
    protocol = 0
    transport = 0
    if kind == ETH_IP:
        reason, protocol, transport = _ip(sender, frame)
    elif kind == ETH_IP6:
        reason, protocol, transport = _ip6(sender, frame)
    elif kind == ETH_ARP:
        reason = _arp(sender, frame)
    else:
        return Reason.PROTOCOL
    return reason or _offload(header, kind, protocol, transport)


def _arp(sender: Sender, frame: Frame) -> Reason:
    if len(frame) < ETH + 28:
        return Reason.MALFORMED
    if frame[14:20] != b"\0\1\x08\0\6\4" or frame[20] or frame[21] not in (1, 2):
        return Reason.ARP
    if frame[22:28] != sender.mac:
        return Reason.ARP
    address = bytes(frame[28:32])
    probe = address == bytes(4) and frame[21] == 1
    if not probe and bytes(10) + b"\xff\xff" + address not in sender.addresses:
        return Reason.ARP
    return Reason.PASSED


def _ip(sender: Sender, frame: Frame) -> tuple[Reason, int, int]:
    """Also gives the protocol whose checksum may be asked for, and where its header is."""
    if len(frame) < ETH + 20:
        return Reason.MALFORMED, 0, 0
    length = (frame[14] & 15) * 4
    if frame[14] >> 4 != 4 or length < 20 or len(frame) < ETH + length:
        return Reason.MALFORMED, 0, 0
    if bytes(10) + b"\xff\xff" + bytes(frame[26:30]) not in sender.addresses:
        return Reason.SOURCE_ADDRESS, 0, 0
    protocol, transport = frame[23], ETH + length
    if (frame[20] << 8 | frame[21]) & 0x3FFF:
        # The host puts fragments together before ICMP sees them, so a redirect could hide in them.
        return Reason.NEIGHBOUR if protocol == PROTO_ICMP else Reason.PASSED, 0, transport
    if protocol == PROTO_ICMP:
        if len(frame) <= transport:
            return Reason.MALFORMED, 0, 0
        if frame[transport] in (ICMP_REDIRECT, ICMP_ROUTER):
            return Reason.NEIGHBOUR, 0, 0
    return Reason.PASSED, protocol, transport


def _ip6(sender: Sender, frame: Frame) -> tuple[Reason, int, int]:
    if len(frame) < ETH + 40:
        return Reason.MALFORMED, 0, 0
    if frame[14] >> 4 != 6:
        return Reason.MALFORMED, 0, 0
    source = bytes(frame[22:38])
    anonymous = source == IP6_ANY
    if not anonymous and source not in sender.addresses:
        return Reason.SOURCE_ADDRESS, 0, 0
    protocol, transport = frame[20], ETH + 40
    if protocol == PROTO_ICMP6:
        return _icmp6(sender, frame, anonymous), protocol, transport
    if anonymous:
        return Reason.SOURCE_ADDRESS, 0, 0
    if protocol == IP6_FRAGMENT:
        return Reason.PASSED, 0, transport
    if protocol not in (PROTO_TCP, PROTO_UDP):
        return Reason.PROTOCOL, 0, 0
    return Reason.PASSED, protocol, transport


_ND_OPTION: Final = {
    ND_ROUTER_SOLICITATION: (8, ND_OPTION_SOURCE),
    ND_SOLICITATION: (24, ND_OPTION_SOURCE),
    ND_ADVERTISEMENT: (24, ND_OPTION_TARGET),
}
"""type → (bytes before the options, the one option that may follow)"""


def _icmp6(sender: Sender, frame: Frame, anonymous: bool) -> Reason:
    at = ETH + 40
    if len(frame) <= at:
        return Reason.MALFORMED
    kind = frame[at]
    if kind not in _ND_OPTION:
        if anonymous:
            return Reason.SOURCE_ADDRESS
        return Reason.NEIGHBOUR if kind in (ND_ROUTER, ND_REDIRECT) else Reason.PASSED
    body, option = _ND_OPTION[kind]
    length = frame[18] << 8 | frame[19]
    if len(frame) < at + length:
        return Reason.MALFORMED
    if length == body + 8:
        if anonymous or frame[at + body] != option or frame[at + body + 1] != 1:
            return Reason.NEIGHBOUR
        if frame[at + body + 2 : at + body + 8] != sender.mac:
            return Reason.NEIGHBOUR
    elif length != body:
        return Reason.NEIGHBOUR
    target = bytes(frame[at + 8 : at + 24])
    if kind == ND_ADVERTISEMENT and (anonymous or target not in sender.addresses):
        return Reason.NEIGHBOUR
    if anonymous and (kind != ND_SOLICITATION or target not in sender.addresses):
        return Reason.NEIGHBOUR
    return Reason.PASSED


def _offload(header: Frame, kind: int, protocol: int, transport: int) -> Reason:
    flags, gso, _, size, start, offset = VNET.unpack(header)
    partial = flags & NEEDS_CSUM
    if partial and (protocol not in CHECKSUM_AT or start != transport or offset != CHECKSUM_AT[protocol]):
        return Reason.CHECKSUM
    if gso & ~GSO_ECN != GSO_NONE:
        wanted = GSO_TCPV4 if kind == ETH_IP else GSO_TCPV6
        if not partial or protocol != PROTO_TCP or gso & ~GSO_ECN != wanted or size < MIN_GSO:
            return Reason.SEGMENTATION
    return Reason.PASSED
