"""ICMP for IPv4 (RFC 792): echo, and the errors a host hears and sends.

The kinds are told apart by `IcmpView.type`; `echo()` and `error()` give the values. Other types are legal, checked for
length and checksum only, and have no value here: a host may discard them silently (RFC 1122 section 3.2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from netstack.wire import checksum as sums
from netstack.wire import ipv4
from netstack.wire.header import Malformed, Number, Octets, View, check
from netstack.wire.octets import get16, put16

TYPE: Final = 0
CODE: Final = 1
CHECKSUM: Final = 2
IDENTIFIER: Final = 4  # of an echo
SEQUENCE: Final = 6  # of an echo
MTU: Final = 6  # of the next hop, in FRAGMENTATION_NEEDED (RFC 1191 section 4)
HEADER: Final = 8

ECHO_REPLY: Final = 0
UNREACHABLE: Final = 3
ECHO_REQUEST: Final = 8
TIME_EXCEEDED: Final = 11

PROTOCOL_UNREACHABLE: Final = 2
PORT_UNREACHABLE: Final = 3
FRAGMENTATION_NEEDED: Final = 4

MOST_CODE: Final = {ECHO_REPLY: 0, ECHO_REQUEST: 0, UNREACHABLE: 15, TIME_EXCEEDED: 1}
LEAST_QUOTED: Final = 8  # octets of the offending datagram's payload (RFC 792)
MAX_ERROR: Final = 576  # octets of the datagram that carries an error (RFC 1812 section 4.3.2.3)
MAX_QUOTED: Final = MAX_ERROR - ipv4.HEADER - HEADER


class IcmpView(View):
    """A received message: the whole payload of a datagram."""

    __slots__ = ()

    type = Number(TYPE, 1)
    code = Number(CODE, 1)

    def __init__(self, octets: Octets) -> None:
        super().__init__(octets, "icmp", HEADER, "RFC 792")
        if not sums.right(self.octets):
            raise Malformed("icmp.checksum", "is wrong", "RFC 792")
        check("icmp.code", self.code, 0, MOST_CODE.get(self.type, 0xFF), "RFC 792, RFC 1812 section 5.2.7.1")
        if self.type in (UNREACHABLE, TIME_EXCEEDED):
            self.error()

    @property
    def is_echo(self) -> bool:
        return self.type in (ECHO_REQUEST, ECHO_REPLY)

    def echo(self) -> Echo:
        """The message as a value, if `is_echo`; Malformed otherwise."""
        return Echo(
            type=self.type,
            identifier=get16(self.octets, IDENTIFIER),
            sequence=get16(self.octets, SEQUENCE),
            data=bytes(self.octets[HEADER:]),
        )

    def error(self) -> Error:
        """The message as a value, if it is UNREACHABLE or TIME_EXCEEDED; Malformed otherwise."""
        frag = self.type == UNREACHABLE and self.code == FRAGMENTATION_NEEDED
        mtu = get16(self.octets, MTU) if frag else 0
        return Error(self.type, self.code, bytes(self.octets[HEADER:]), mtu)


@dataclass(frozen=True, slots=True)
class Echo:
    """A request or a reply."""

    type: int
    identifier: int
    sequence: int
    data: bytes

    def __post_init__(self) -> None:
        if self.type not in (ECHO_REQUEST, ECHO_REPLY):
            raise Malformed("icmp.type", f"is {self.type}, no echo", "RFC 792")
        check("icmp.identifier", self.identifier, 0, 0xFFFF, "RFC 792")
        check("icmp.sequence", self.sequence, 0, 0xFFFF, "RFC 792")
        check("icmp.data length", len(self.data), 0, ipv4.MAX_DATAGRAM - ipv4.HEADER - HEADER, "RFC 791 section 3.1")

    def pack(self) -> bytes:
        """The message."""
        out = bytearray(HEADER)
        put16(out, IDENTIFIER, self.identifier)
        put16(out, SEQUENCE, self.sequence)
        return _pack(out, self.type, 0, self.data)


@dataclass(frozen=True, slots=True)
class Error:
    """A report on the datagram that begins with `quoted`. `mtu` is the next hop's, 0 if an old router does not say."""

    type: int
    code: int
    quoted: bytes
    mtu: int = 0

    def __post_init__(self) -> None:
        if self.type not in (UNREACHABLE, TIME_EXCEEDED):
            raise Malformed("icmp.type", f"is {self.type}, no error", "RFC 792")
        check("icmp.code", self.code, 0, MOST_CODE[self.type], "RFC 792, RFC 1812 section 5.2.7.1")
        frag = self.type == UNREACHABLE and self.code == FRAGMENTATION_NEEDED
        check("icmp.mtu", self.mtu, 0, 0xFFFF if frag else 0, "RFC 1191 section 4")
        check(
            "icmp.quoted length", len(self.quoted), 0, ipv4.MAX_DATAGRAM - ipv4.HEADER - HEADER, "RFC 791 section 3.1"
        )
        inner = self.inner()
        least = inner.header_length + min(LEAST_QUOTED, inner.total_length - inner.header_length)
        if len(self.quoted) < least:
            raise Malformed(
                "icmp.quoted", f"has {len(self.quoted)} octets, fewer than {least}", "RFC 1122 section 3.2.2"
            )

    def inner(self) -> ipv4.Ipv4View:
        """The header of the datagram that is reported on; what follows it in `octets` may be cut short."""
        return ipv4.Ipv4View(self.quoted, quoted=True)

    def pack(self) -> bytes:
        """The message."""
        out = bytearray(HEADER)
        put16(out, MTU, self.mtu)
        return _pack(out, self.type, self.code, self.quoted)


def _pack(header: bytearray, kind: int, code: int, body: bytes) -> bytes:
    header[TYPE] = kind
    header[CODE] = code
    put16(header, CHECKSUM, sums.finish(sums.total(body, sums.total(header))))
    return bytes(header) + body
