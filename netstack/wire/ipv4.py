"""IPv4 headers (RFC 791, RFC 1122 section 3.2.1). Options are octets, checked for form; nothing here acts on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from netstack.wire import checksum as sums
from netstack.wire.header import Malformed, Number, Octets, View, check
from netstack.wire.octets import put16, put32

VERSION_IHL: Final = 0  # version and header length in words
TOS: Final = 1
TOTAL_LENGTH: Final = 2
IDENTIFICATION: Final = 4
FRAGMENT: Final = 6  # three flags and the offset in 8 octets
TTL: Final = 8
PROTOCOL: Final = 9
CHECKSUM: Final = 10
SOURCE: Final = 12
DESTINATION: Final = 16
HEADER: Final = 20

RESERVED: Final = 0x8000
DONT_FRAGMENT: Final = 0x4000
MORE_FRAGMENTS: Final = 0x2000
OFFSET_MASK: Final = 0x1FFF

PROTOCOL_ICMP: Final = 1
PROTOCOL_TCP: Final = 6
PROTOCOL_UDP: Final = 17

OPTION_END: Final = 0
OPTION_NOP: Final = 1
OPTION_LSRR: Final = 131
OPTION_SSRR: Final = 137

MAX_OPTIONS: Final = 40
MAX_DATAGRAM: Final = 0xFFFF
DEFAULT_TTL: Final = 64
MULTICAST: Final = 0xE0000000
RESERVED_BLOCK: Final = 0xF0000000  # class E
BROADCAST: Final = 0xFFFFFFFF


def check_source(field: str, address: int) -> None:
    """Raise Malformed for an address that nobody may send from: multicast or the limited broadcast."""
    check(field, address, 0, 0xFFFFFFFF, "RFC 791 section 3.1")
    if MULTICAST <= address < RESERVED_BLOCK or address == BROADCAST:
        raise Malformed(field, f"is {address:#010x}: multicast or broadcast", "RFC 1122 section 3.2.1.3")


def walk_options(octets: Octets) -> Iterator[tuple[int, bytes]]:
    """Each option but end and no-operation, as (type, data). Raises Malformed at one that does not fit."""
    at = 0
    while at < len(octets) and octets[at] != OPTION_END:
        if octets[at] == OPTION_NOP:
            at += 1
            continue
        length = octets[at + 1] if at + 1 < len(octets) else 0
        if length < 2 or at + length > len(octets):
            raise Malformed("ipv4.options", f"type {octets[at]} has length {length}", "RFC 791 section 3.1")
        yield octets[at], bytes(octets[at + 2 : at + length])
        at += length


class Ipv4View(View):
    """A received datagram. With `quoted`, one inside an ICMP error: cut short, its checksum not looked at."""

    __slots__ = ("header_length",)

    tos = Number(TOS, 1)
    total_length = Number(TOTAL_LENGTH, 2)
    identification = Number(IDENTIFICATION, 2)
    _fragment = Number(FRAGMENT, 2)
    ttl = Number(TTL, 1)
    protocol = Number(PROTOCOL, 1)
    source = Number(SOURCE, 4)
    destination = Number(DESTINATION, 4)

    def __init__(self, octets: Octets, *, quoted: bool = False) -> None:
        super().__init__(octets, "ipv4", HEADER, "RFC 791 section 3.1")
        check("ipv4.version", self.octets[VERSION_IHL] >> 4, 4, 4, "RFC 791 section 3.1")
        self.header_length = (self.octets[VERSION_IHL] & 15) * 4
        check("ipv4.header_length", self.header_length, HEADER, len(self.octets), "RFC 791 section 3.1")
        most = MAX_DATAGRAM if quoted else len(self.octets)
        check("ipv4.total_length", self.total_length, self.header_length, most, "RFC 791 section 3.1")
        if not quoted and not sums.right(self.octets[: self.header_length]):
            raise Malformed("ipv4.checksum", "is wrong", "RFC 1122 section 3.2.1.2")
        if self._fragment & RESERVED:
            raise Malformed("ipv4.flags", "have the reserved bit set", "RFC 791 section 3.1")
        self.value()

    @property
    def dont_fragment(self) -> bool:
        return bool(self._fragment & DONT_FRAGMENT)

    @property
    def more_fragments(self) -> bool:
        return bool(self._fragment & MORE_FRAGMENTS)

    @property
    def fragment_offset(self) -> int:
        """In octets."""
        return (self._fragment & OFFSET_MASK) * 8

    @property
    def is_fragment(self) -> bool:
        """Whether this is less than a whole datagram."""
        return bool(self._fragment & (MORE_FRAGMENTS | OFFSET_MASK))

    @property
    def options(self) -> bytes:
        return bytes(self.octets[HEADER : self.header_length])

    @property
    def payload(self) -> memoryview:
        """What follows the header, without the link's padding."""
        return self.octets[self.header_length : self.total_length]

    def pseudo(self) -> int:
        """The sum of the pseudo header of what this carries."""
        return sums.pseudo(self.source, self.destination, self.protocol, self.total_length - self.header_length)

    def value(self) -> Ipv4:
        """The header as a value."""
        return Ipv4(
            source=self.source,
            destination=self.destination,
            protocol=self.protocol,
            length=self.total_length - self.header_length,
            ttl=self.ttl,
            tos=self.tos,
            identification=self.identification,
            dont_fragment=self.dont_fragment,
            more_fragments=self.more_fragments,
            fragment_offset=self.fragment_offset,
            options=self.options,
        )


@dataclass(frozen=True, slots=True)
class Ipv4:
    """A header for `length` octets of payload. A TTL of 0 may arrive and may not be sent (RFC 1122 section 3.2.1.7)."""

    source: int
    destination: int
    protocol: int
    length: int
    ttl: int = DEFAULT_TTL
    tos: int = 0
    identification: int = 0
    dont_fragment: bool = False
    more_fragments: bool = False
    fragment_offset: int = 0
    options: bytes = b""

    def __post_init__(self) -> None:
        check_source("ipv4.source", self.source)
        check("ipv4.destination", self.destination, 1, 0xFFFFFFFF, "RFC 1122 section 3.2.1.3")
        check("ipv4.protocol", self.protocol, 0, 0xFF, "RFC 791 section 3.1")
        check("ipv4.ttl", self.ttl, 0, 0xFF, "RFC 791 section 3.1")
        check("ipv4.tos", self.tos, 0, 0xFF, "RFC 791 section 3.1")
        check("ipv4.identification", self.identification, 0, 0xFFFF, "RFC 791 section 3.1")
        check("ipv4.options length", len(self.options), 0, MAX_OPTIONS, "RFC 791 section 3.1")
        if len(self.options) % 4:
            raise Malformed("ipv4.options", "are not padded to words", "RFC 791 section 3.1")
        for _ in walk_options(self.options):
            pass
        check("ipv4.fragment_offset", self.fragment_offset, 0, OFFSET_MASK * 8, "RFC 791 section 3.1")
        if self.fragment_offset % 8 or (self.more_fragments and self.length % 8):
            raise Malformed("ipv4.fragment", "does not begin and end at 8 octets", "RFC 791 section 3.2")
        # The end of the reassembled datagram, too: a fragment that reaches beyond is the ping of death.
        end = HEADER + len(self.options) + self.fragment_offset + self.length
        check("ipv4.length", self.length, 0, self.length + MAX_DATAGRAM - end, "RFC 791 section 3.2")

    def pack(self) -> bytes:
        """The header with its checksum; Malformed for a TTL of 0."""
        check("ipv4.ttl", self.ttl, 1, 0xFF, "RFC 1122 section 3.2.1.7")
        header_length = HEADER + len(self.options)
        out = bytearray(header_length)
        out[VERSION_IHL] = 4 << 4 | header_length // 4
        out[TOS] = self.tos
        put16(out, TOTAL_LENGTH, header_length + self.length)
        put16(out, IDENTIFICATION, self.identification)
        flags = DONT_FRAGMENT * self.dont_fragment | MORE_FRAGMENTS * self.more_fragments
        put16(out, FRAGMENT, flags | self.fragment_offset // 8)
        out[TTL] = self.ttl
        out[PROTOCOL] = self.protocol
        put32(out, SOURCE, self.source)
        put32(out, DESTINATION, self.destination)
        out[HEADER:] = self.options
        put16(out, CHECKSUM, sums.finish(sums.total(out)))
        return bytes(out)

    def pseudo(self) -> int:
        """The sum of the pseudo header of what this carries."""
        return sums.pseudo(self.source, self.destination, self.protocol, self.length)
