"""The virtio network header before each frame on a TAP (virtio 1.2 section 5.1.6; struct virtio_net_hdr, 10 octets).

It tells what is left to do: finish a checksum, cut a large segment. The numbers are little-endian (a TAP uses the
host's order; the hosts here are little-endian). Positions count from the start of the frame, behind this header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from netstack.wire import checksum as sums
from netstack.wire.header import Malformed, Octets, View, check
from netstack.wire.octets import get16le, put16, put16le

FLAGS: Final = 0
GSO_TYPE: Final = 1
HDR_LEN: Final = 2  # a hint: octets of all headers of a segment that will be cut
GSO_SIZE: Final = 4
CSUM_START: Final = 6
CSUM_OFFSET: Final = 8  # from CSUM_START
HEADER: Final = 10

NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_UDP: Final = 3
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

GSO_TYPES: Final = (GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4)

_SOURCE: Final = "virtio 1.2 section 5.1.6"


class VnetView(View):
    """The header of a received packet, checked against the frame behind it."""

    __slots__ = ()

    def __init__(self, packet: Octets) -> None:
        super().__init__(packet, "vnet", HEADER, _SOURCE)
        self.value().check_frame(len(self.octets) - HEADER)

    @property
    def frame(self) -> memoryview:
        return self.octets[HEADER:]

    def value(self) -> Vnet:
        """The header as a value."""
        return Vnet(
            flags=self.octets[FLAGS],
            gso_type=self.octets[GSO_TYPE],
            hdr_len=get16le(self.octets, HDR_LEN),
            gso_size=get16le(self.octets, GSO_SIZE),
            csum_start=get16le(self.octets, CSUM_START),
            csum_offset=get16le(self.octets, CSUM_OFFSET),
        )


@dataclass(frozen=True, slots=True)
class Vnet:
    """What is left to do for a frame; all zero: nothing."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def __post_init__(self) -> None:
        check("vnet.flags", self.flags, 0, NEEDS_CSUM | DATA_VALID, _SOURCE)
        if self.gso_type & ~GSO_ECN not in GSO_TYPES or self.gso_type == GSO_ECN:
            raise Malformed("vnet.gso_type", f"is {self.gso_type:#x}", _SOURCE)
        for name in ("hdr_len", "gso_size", "csum_start", "csum_offset"):
            check(f"vnet.{name}", getattr(self, name), 0, 0xFFFF, _SOURCE)
        if self.gso_type != GSO_NONE:
            check("vnet.gso_size", self.gso_size, 1, 0xFFFF, "virtio 1.2 section 5.1.6.2")
            # Each segment that is cut gets its own checksum, so it must be left open.
            if not self.flags & NEEDS_CSUM:
                raise Malformed("vnet.flags", "lack NEEDS_CSUM for a segment to cut", "virtio 1.2 section 5.1.6.2")

    @property
    def needs_csum(self) -> bool:
        return bool(self.flags & NEEDS_CSUM)

    @property
    def vouched(self) -> bool:
        """Whether the transport checksum is not to be verified: it is partial, or was verified before."""
        return self.flags != 0

    def check_frame(self, length: int) -> None:
        """Raise Malformed if the checksum to finish does not lie inside a frame of `length` octets."""
        if self.needs_csum and self.csum_start + self.csum_offset + 2 > length:
            raise Malformed(
                "vnet.csum_start",
                f"{self.csum_start} and csum_offset {self.csum_offset} end beyond the frame's {length} octets",
                "virtio 1.2 section 5.1.6.2",
            )

    def complete(self, frame: Octets) -> bytes:
        """A copy of the frame with its checksum finished, which is what a device does (a large segment stays one)."""
        self.check_frame(len(frame))
        out = bytearray(frame)
        if self.needs_csum:
            # 0 is written as 0xFFFF: the same number, and for UDP 0 would mean none.
            put16(out, self.csum_start + self.csum_offset, sums.finish_udp(sums.total(out[self.csum_start :])))
        return bytes(out)

    def pack(self) -> bytes:
        """The header, HEADER octets."""
        out = bytearray(HEADER)
        out[FLAGS] = self.flags
        out[GSO_TYPE] = self.gso_type
        put16le(out, HDR_LEN, self.hdr_len)
        put16le(out, GSO_SIZE, self.gso_size)
        put16le(out, CSUM_START, self.csum_start)
        put16le(out, CSUM_OFFSET, self.csum_offset)
        return bytes(out)


NOTHING: Final = Vnet()
