"""UDP headers (RFC 768)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from netstack.wire import checksum as sums
from netstack.wire.header import Malformed, Number, Octets, View, check
from netstack.wire.octets import put16

SOURCE: Final = 0
DESTINATION: Final = 2
LENGTH: Final = 4
CHECKSUM: Final = 6
HEADER: Final = 8

MAX_PAYLOAD: Final = 0xFFFF - HEADER


class UdpView(View):
    """A received datagram. `pseudo` is the sum of the pseudo header for all of `octets` (Ipv4View.pseudo); None:
    offloaded, the checksum is not looked at."""

    __slots__ = ()

    source = Number(SOURCE, 2)
    destination = Number(DESTINATION, 2)
    length = Number(LENGTH, 2)
    checksum = Number(CHECKSUM, 2)

    def __init__(self, octets: Octets, pseudo: int | None) -> None:
        super().__init__(octets, "udp", HEADER, "RFC 768")
        check("udp.length", self.length, HEADER, len(self.octets), "RFC 768")
        # The pseudo header of UDP has UDP's length, the caller's sum has that of IP's payload, which may be longer.
        if pseudo is not None and self.checksum:
            changed = sums.total(self.octets[: self.length], pseudo + self.length + (~len(self.octets) & 0xFFFF))
            if changed != 0xFFFF:
                raise Malformed("udp.checksum", "is wrong", "RFC 768, RFC 1122 section 4.1.3.4")
        self.value()

    @property
    def payload(self) -> memoryview:
        return self.octets[HEADER : self.length]

    def value(self) -> Udp:
        """The header as a value."""
        return Udp(self.source, self.destination)


@dataclass(frozen=True, slots=True)
class Udp:
    """The two ports. A source of 0 expects no answer (RFC 768); a destination of 0 is nobody's (RFC 8085 5.1)."""

    source: int
    destination: int

    def __post_init__(self) -> None:
        check("udp.source", self.source, 0, 0xFFFF, "RFC 768")
        check("udp.destination", self.destination, 1, 0xFFFF, "RFC 8085 section 5.1")

    def pack(self, payload: Octets, pseudo: int) -> bytes:
        """The header for `payload`; `pseudo` is the sum of its pseudo header."""
        check("udp.payload length", len(payload), 0, MAX_PAYLOAD, "RFC 768")
        out = bytearray(HEADER)
        put16(out, SOURCE, self.source)
        put16(out, DESTINATION, self.destination)
        put16(out, LENGTH, HEADER + len(payload))
        put16(out, CHECKSUM, sums.finish_udp(sums.total(payload, sums.total(out, pseudo))))
        return bytes(out)
