"""The Internet checksum (RFC 1071) as sums that compose.

A *sum* is the folded ones'-complement sum of octets read as big-endian 16-bit words, 0..0xFFFF. Sums of parts are kept
and put together later: of a page of a file, of a header, of a pseudo header. A *checksum* is the complement of a sum
and is what a header carries.

SUM-1  total(a + b) is join(total(a), total(b), len(a)) up to the two zeros 0 and 0xFFFF, at any place one cuts.
SUM-2  Octets that carry their own right checksum sum to 0xFFFF.
SUM-3  Offload: with NEEDS_CSUM a transport header carries the *sum* of its pseudo header, not complemented, and whoever
       finishes it sums from the transport header to the end, that field included (virtio 1.2 section 5.1.6.2).
"""

from __future__ import annotations

from typing import Final

from netstack.wire.header import Octets
from netstack.wire.octets import fold, sum16

PIECE: Final = 1 << 16  # octets that one sum16 takes; even


def total(octets: Octets, start: int = 0) -> int:
    """The sum of any number of octets, added to the sum `start`; an odd last octet counts as if a zero followed."""
    for offset in range(0, len(octets), PIECE):
        start = fold(sum16(octets, offset, min(PIECE, len(octets) - offset), start))
    return start


def join(first: int, second: int, first_length: int) -> int:
    """The sum of two runs of octets end to end, from their sums and the first one's length (RFC 1071 section 2(B))."""
    if first_length & 1:
        second = (second & 0xFF) << 8 | second >> 8
    return fold(first + second)


def finish(value: int) -> int:
    """The checksum for a sum."""
    return fold(value) ^ 0xFFFF


def finish_udp(value: int) -> int:
    """The checksum for a sum, 0 written as 0xFFFF because 0 means none (RFC 768)."""
    return finish(value) or 0xFFFF


def right(octets: Octets, start: int = 0) -> bool:
    """Whether octets that carry their checksum, with the sum `start` of a pseudo header, are intact."""
    return total(octets, start) == 0xFFFF


def pseudo(source: int, destination: int, protocol: int, length: int) -> int:
    """The sum of the IPv4 pseudo header (RFC 9293 section 3.1, RFC 768); `length` is transport header and data.

    Also exactly what a partial checksum holds (SUM-3).
    """
    return fold(
        (source >> 16) + (source & 0xFFFF) + (destination >> 16) + (destination & 0xFFFF) + protocol + (length & 0xFFFF)
    )


def update(checksum: int, old: int, new: int) -> int:
    """The checksum after one of its 16-bit words changed from `old` to `new` (RFC 1624 section 3, equation 3)."""
    return finish((checksum ^ 0xFFFF) + (old ^ 0xFFFF) + new)
