"""TCP headers (RFC 9293 section 3.1); the options are in tcpoptions.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from netstack.wire import checksum as sums
from netstack.wire.header import Malformed, Number, Octets, View, check
from netstack.wire.octets import put16, put32
from netstack.wire.tcpoptions import NO_OPTIONS, Options

SOURCE: Final = 0
DESTINATION: Final = 2
SEQUENCE: Final = 4
ACKNOWLEDGMENT: Final = 8
DATA_OFFSET: Final = 12  # header length in words, in the upper four bits
FLAGS: Final = 13
WINDOW: Final = 14
CHECKSUM: Final = 16
URGENT: Final = 18
HEADER: Final = 20

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40
CWR: Final = 0x80


class TcpView(View):
    """A received segment. `pseudo` is the sum of its pseudo header; None: offloaded, the checksum is not looked at."""

    __slots__ = ("header_length", "options")

    source = Number(SOURCE, 2)
    destination = Number(DESTINATION, 2)
    sequence = Number(SEQUENCE, 4)
    acknowledgment = Number(ACKNOWLEDGMENT, 4)
    flags = Number(FLAGS, 1)
    window = Number(WINDOW, 2)
    urgent = Number(URGENT, 2)

    def __init__(self, octets: Octets, pseudo: int | None) -> None:
        super().__init__(octets, "tcp", HEADER, "RFC 9293 section 3.1")
        self.header_length = (self.octets[DATA_OFFSET] >> 4) * 4
        check("tcp.data_offset", self.header_length, HEADER, len(self.octets), "RFC 9293 section 3.1")
        if pseudo is not None and not sums.right(self.octets, pseudo):
            raise Malformed("tcp.checksum", "is wrong", "RFC 9293 section 3.1 MUST-3")
        self.options = Options.parse(self.octets[HEADER : self.header_length], syn=bool(self.flags & SYN))

    @property
    def payload(self) -> memoryview:
        return self.octets[self.header_length :]

    @property
    def segment_length(self) -> int:
        """SEG.LEN: octets of sequence space, SYN and FIN counted (RFC 9293 section 3.3.1)."""
        flags = self.flags
        return len(self.octets) - self.header_length + bool(flags & SYN) + bool(flags & FIN)

    def value(self) -> Tcp:
        """The header as a value."""
        return Tcp(
            source=self.source,
            destination=self.destination,
            sequence=self.sequence,
            acknowledgment=self.acknowledgment,
            flags=self.flags,
            window=self.window,
            urgent=self.urgent,
            options=self.options,
        )


@dataclass(frozen=True, slots=True)
class Tcp:
    """The header of a segment. `window` is as on the wire, not scaled."""

    source: int
    destination: int
    sequence: int
    acknowledgment: int
    flags: int
    window: int
    urgent: int = 0
    options: Options = field(default=NO_OPTIONS)

    def __post_init__(self) -> None:
        for name, most in (
            ("source", 0xFFFF),
            ("destination", 0xFFFF),
            ("sequence", 0xFFFFFFFF),
            ("acknowledgment", 0xFFFFFFFF),
            ("flags", 0xFF),
            ("window", 0xFFFF),
            ("urgent", 0xFFFF),
        ):
            check(f"tcp.{name}", getattr(self, name), 0, most, "RFC 9293 section 3.1")
        asks = self.options.mss is not None or self.options.window_scale is not None or self.options.sack_permitted
        if asks and not self.flags & SYN:
            raise Malformed(
                "tcp.options", "of a SYN stand in another segment", "RFC 9293 section 3.1, RFC 7323 section 2.2"
            )

    def pack(self, payload: Octets = b"", pseudo: int = 0) -> bytes:
        """The header for `payload` with the whole checksum; `pseudo` is the sum of the pseudo header."""
        out = self._header()
        put16(out, CHECKSUM, sums.finish(sums.total(payload, sums.total(out, pseudo))))
        return bytes(out)

    def pack_partial(self, pseudo: int) -> bytes:
        """The header with the partial checksum of NEEDS_CSUM: the sum of the pseudo header, not complemented."""
        out = self._header()
        put16(out, CHECKSUM, pseudo)
        return bytes(out)

    def _header(self) -> bytearray:
        options = self.options.pack()
        out = bytearray(HEADER)
        put16(out, SOURCE, self.source)
        put16(out, DESTINATION, self.destination)
        put32(out, SEQUENCE, self.sequence)
        put32(out, ACKNOWLEDGMENT, self.acknowledgment)
        out[DATA_OFFSET] = (HEADER + len(options)) // 4 << 4
        out[FLAGS] = self.flags
        put16(out, WINDOW, self.window)
        put16(out, URGENT, self.urgent)
        return out + options
