"""DPF's filter language: how a libOS says which packets it wants (thesis 3.2 and 6.1).

A filter is a list of atoms over an Ethernet frame, all of which must hold.  There are two kinds:

    Match(offset, width, mask, value)   the big-endian field of `width` bytes at base + offset, masked, equals value
    Shift(offset, width, mask, shift)   base += (field & mask) << shift, for headers of variable length

The base starts at 0, the first byte of the destination MAC.  A field that lies beyond the packet does not match.
There are no branches, loops or stores: that is what lets xokd decide whether two filters overlap.

Most filters are written with field names; what a field needs (the Ethernet type, the protocol, that the packet is no
fragment, the length of the IP header) is added, and the order is canonical, so that filters share a trie:

    where({"ip.dst": "10.42.0.2", "tcp.dport": 80})
    env.call("filter_insert", cap=address, data=listener("10.42.0.2", 80).pack())

What crosses to xokd is `Filter.pack()`: u8 version, u8 number of atoms, then 16 bytes an atom.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

VERSION: Final = 1
MAX_ATOMS: Final = 16
MAX_OFFSET: Final = 255
"""Furthest an atom reaches from its base."""
MAX_BASE: Final = 1024
"""Most that all shifts of one filter can add up to."""

HEADER: Final = struct.Struct("<BB")
ATOM: Final = struct.Struct("<BBHIIi")
"""kind, width, offset, mask, value (0 in a shift), shift (0 in a match)."""
_MATCH, _SHIFT = 1, 2


class BadFilter(ValueError):
    """The filter is malformed; the message names the atom and the reason."""


@dataclass(frozen=True, slots=True)
class Match:
    """The big-endian field of `width` bytes (1, 2 or 4) at base + `offset`, and-ed with `mask`, equals `value`."""

    offset: int
    width: int
    mask: int
    value: int


@dataclass(frozen=True, slots=True)
class Shift:
    """base += (field & mask) << shift; a negative shift goes right."""

    offset: int
    width: int
    mask: int
    shift: int


Atom = Match | Shift


def _check(number: int, atom: Atom) -> None:
    if atom.width not in (1, 2, 4):
        raise BadFilter(f"atom {number}: a field has 1, 2 or 4 bytes, not {atom.width}")
    if not 0 <= atom.offset <= MAX_OFFSET:
        raise BadFilter(f"atom {number}: offset {atom.offset} is beyond {MAX_OFFSET}")
    if not 0 < atom.mask < 1 << 8 * atom.width:
        raise BadFilter(f"atom {number}: mask {atom.mask:#x} does not fit {atom.width} bytes")
    if isinstance(atom, Match):
        if atom.value & ~atom.mask:
            raise BadFilter(f"atom {number}: value {atom.value:#x} has bits outside the mask {atom.mask:#x}")
    elif not -31 <= atom.shift <= 10:
        raise BadFilter(f"atom {number}: shift {atom.shift} is not in -31 … 10")


def shifted(field: int, shift: int) -> int:
    """What a `Shift` adds for a masked field."""
    return field << shift if shift >= 0 else field >> -shift


@dataclass(frozen=True, slots=True)
class Filter:
    """A well-formed filter.  Raises BadFilter otherwise."""

    atoms: tuple[Atom, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.atoms) <= MAX_ATOMS:
            raise BadFilter(f"a filter has 1 to {MAX_ATOMS} atoms, not {len(self.atoms)}")
        for number, atom in enumerate(self.atoms):
            _check(number, atom)
        if not isinstance(self.atoms[-1], Match):
            raise BadFilter("the last atom compares nothing")
        if sum(shifted(atom.mask, atom.shift) for atom in self.atoms if isinstance(atom, Shift)) > MAX_BASE:
            raise BadFilter(f"the shifts can add up to more than {MAX_BASE}")

    def pack(self) -> bytes:
        out = HEADER.pack(VERSION, len(self.atoms))
        for atom in self.atoms:
            if isinstance(atom, Match):
                out += ATOM.pack(_MATCH, atom.width, atom.offset, atom.mask, atom.value, 0)
            else:
                out += ATOM.pack(_SHIFT, atom.width, atom.offset, atom.mask, 0, atom.shift)
        return out

    @classmethod
    def unpack(cls, raw: bytes) -> Filter:
        """Raises BadFilter for anything `pack` does not write."""
        if len(raw) < HEADER.size:
            raise BadFilter(f"{len(raw)} bytes are no filter")
        version, count = HEADER.unpack_from(raw)
        if version != VERSION:
            raise BadFilter(f"version {version} of the filter language is not known")
        if len(raw) != HEADER.size + count * ATOM.size:
            raise BadFilter(f"{len(raw)} bytes do not hold {count} atoms")
        atoms: list[Atom] = []
        for number, (kind, width, offset, mask, value, shift) in enumerate(ATOM.iter_unpack(raw[HEADER.size :])):
            if kind == _MATCH and not shift:
                atoms.append(Match(offset, width, mask, value))
            elif kind == _SHIFT and not value:
                atoms.append(Shift(offset, width, mask, shift))
            else:
                raise BadFilter(f"atom {number}: kind {kind} is not known")
        return cls(tuple(atoms))


# ---- names for fields -----------------------------------------------------------------------------

ETH: Final = 14
"""Bytes of the Ethernet header; VLAN tags never reach a filter."""
ETH_IP, ETH_ARP, ETH_IP6 = 0x0800, 0x0806, 0x86DD
PROTO_ICMP, PROTO_TCP, PROTO_UDP, PROTO_ICMP6 = 1, 6, 17, 58


@dataclass(frozen=True, slots=True)
class Field:
    """A named field: `offset` from the start of its header, `needs` what must hold for it to be there."""

    rank: int
    """Canonical place: what most filters share comes first, what tells connections apart last."""
    offset: int
    width: int
    mask: int
    needs: tuple[tuple[str, int], ...] = ()
    after_ip: bool = False
    """Counted from the end of the IPv4 header, options included."""
    address: int = 0
    """4 or 6: the value may be written as an IP address."""


_IP = (("eth.type", ETH_IP),)
_IP6 = (("eth.type", ETH_IP6),)
_ARP = (("eth.type", ETH_ARP),)
_IP_TCP = (*_IP, ("ip.proto", PROTO_TCP), ("ip.fragment", 0))
_IP_UDP = (*_IP, ("ip.proto", PROTO_UDP), ("ip.fragment", 0))
_IP_ICMP = (*_IP, ("ip.proto", PROTO_ICMP), ("ip.fragment", 0))
_IP6_TCP = (*_IP6, ("ip6.next", PROTO_TCP))
_IP6_UDP = (*_IP6, ("ip6.next", PROTO_UDP))
_IP6_ICMP = (*_IP6, ("ip6.next", PROTO_ICMP6))
_ALL16, _ALL32 = 0xFFFF, 0xFFFF_FFFF

FIELDS: Final[dict[str, Field]] = {
    "eth.type": Field(0, 12, 2, _ALL16),
    "arp.tpa": Field(10, ETH + 24, 4, _ALL32, _ARP, address=4),
    "arp.spa": Field(30, ETH + 14, 4, _ALL32, _ARP, address=4),
    "arp.op": Field(20, ETH + 6, 2, _ALL16, _ARP),
    "ip.dst": Field(10, ETH + 16, 4, _ALL32, _IP, address=4),
    "ip.proto": Field(11, ETH + 9, 1, 0xFF, _IP),
    "ip.fragment": Field(12, ETH + 6, 2, 0x3FFF, _IP),
    "ip.src": Field(30, ETH + 12, 4, _ALL32, _IP, address=4),
    "icmp.type": Field(20, 0, 1, 0xFF, _IP_ICMP, after_ip=True),
    "tcp.dport": Field(20, 2, 2, _ALL16, _IP_TCP, after_ip=True),
    "tcp.sport": Field(31, 0, 2, _ALL16, _IP_TCP, after_ip=True),
    "udp.dport": Field(20, 2, 2, _ALL16, _IP_UDP, after_ip=True),
    "udp.sport": Field(31, 0, 2, _ALL16, _IP_UDP, after_ip=True),
    "ip6.dst": Field(10, ETH + 24, 16, _ALL32, _IP6, address=6),
    "ip6.next": Field(11, ETH + 6, 1, 0xFF, _IP6),
    "ip6.src": Field(30, ETH + 8, 16, _ALL32, _IP6, address=6),
    "icmp6.type": Field(20, ETH + 40, 1, 0xFF, _IP6_ICMP),
    "nd.target": Field(21, ETH + 48, 16, _ALL32, _IP6_ICMP, address=6),
    "tcp6.dport": Field(20, ETH + 42, 2, _ALL16, _IP6_TCP),
    "tcp6.sport": Field(31, ETH + 40, 2, _ALL16, _IP6_TCP),
    "udp6.dport": Field(20, ETH + 42, 2, _ALL16, _IP6_UDP),
    "udp6.sport": Field(31, ETH + 40, 2, _ALL16, _IP6_UDP),
}
IP_HEADER_LENGTH: Final = Shift(ETH, 1, 0x0F, 2)
"""base += length of the IPv4 header in bytes."""

Value = int | str | bytes


def _number(name: str, field: Field, value: Value) -> int:
    if isinstance(value, int):
        number = value
    elif isinstance(value, str) and field.address:
        address = ipaddress.ip_address(value)
        if address.version != field.address:
            raise BadFilter(f"{name}: {value} is not an IPv{field.address} address")
        number = int(address)
    elif isinstance(value, bytes) and len(value) == field.width:
        number = int.from_bytes(value, "big")
    else:
        raise BadFilter(f"{name}: {value!r} is no value of this field")
    if not 0 <= number < 1 << 8 * field.width:
        raise BadFilter(f"{name}: {number} does not fit {field.width} bytes")
    return number


def where(fields: Mapping[str, Value]) -> Filter:
    """The filter that requires each named field to have the value given, and what those fields imply.

    Addresses may be text.  Raises BadFilter for unknown names and for fields that no packet has together.
    """
    wanted: dict[str, int] = {}
    for name, value in fields.items():
        if name not in FIELDS:
            raise BadFilter(f"there is no field {name!r}")
        field = FIELDS[name]
        for implied, number in (*field.needs, (name, _number(name, field, value))):
            if wanted.setdefault(implied, number) != number:
                raise BadFilter(f"{name} needs {implied} = {number:#x}, which is {wanted[implied]:#x}")
    atoms: list[Atom] = []
    # What lies behind the IPv4 header's options comes after all that lies before them: the base moves once.
    for name in sorted(wanted, key=lambda name: (FIELDS[name].after_ip, FIELDS[name].rank)):
        field, number = FIELDS[name], wanted[name]
        if field.after_ip and IP_HEADER_LENGTH not in atoms:
            atoms.append(IP_HEADER_LENGTH)
        offset = field.offset + (ETH if field.after_ip else 0)
        if field.width == 16:
            for part in range(4):
                atoms.append(Match(offset + 4 * part, 4, _ALL32, number >> 32 * (3 - part) & _ALL32))
        else:
            atoms.append(Match(offset, field.width, field.mask, number & field.mask))
    return Filter(tuple(atoms))


# ---- the filters most programs need ---------------------------------------------------------------


def solicited_node(address: str) -> str:
    """The multicast address that neighbour discovery asks `address` under (RFC 4291 section 2.7.1)."""
    low = int(ipaddress.IPv6Address(address)) & 0xFF_FFFF
    return str(ipaddress.IPv6Address(int(ipaddress.IPv6Address("ff02::1:ff00:0")) | low))


def wildcard(address: str) -> list[Filter]:
    """All that concerns an IP address: its packets, fragments too, and who asks for its MAC (ARP, ND)."""
    if ipaddress.ip_address(address).version == 4:
        return [where({"ip.dst": address}), where({"arp.tpa": address})]
    asked: dict[str, Value] = {"ip6.dst": solicited_node(address), "icmp6.type": 135, "nd.target": address}
    return [where({"ip6.dst": address}), where(asked)]


def listener(address: str, port: int, protocol: str = "tcp") -> Filter:
    """Everything for one port of one address; accepted connections ride on it.  `protocol` is "tcp" or "udp"."""
    if ipaddress.ip_address(address).version == 4:
        return where({"ip.dst": address, f"{protocol}.dport": port})
    return where({"ip6.dst": address, f"{protocol}6.dport": port})


def connection(address: str, port: int, peer: str, peer_port: int, protocol: str = "tcp") -> Filter:
    """One connection, named by all four of its numbers: what `connect` inserts."""
    ip, proto = ("ip", protocol) if ipaddress.ip_address(address).version == 4 else ("ip6", f"{protocol}6")
    return where({f"{ip}.dst": address, f"{ip}.src": peer, f"{proto}.dport": port, f"{proto}.sport": peer_port})
