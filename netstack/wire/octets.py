"""Octets on the wire: big-endian loads and stores, copies, and the Internet checksum (RFC 1071).

Two bodies of the same functions: this file for uncompiled Python, `octets.pxd` as C inline functions for compiled
modules, which cimport them and import this file only `if not cython.compiled`. `buffer` is a `const uint8_t *` in
the one and any bytes-like object in the other; that is why every function takes (buffer, offset) and never a slice.
tests/xio/test_twins.py runs the same traffic through both and compares every frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    Octets = Sequence[int] | bytes | bytearray | memoryview
    Writable = bytearray | memoryview


def get16(buffer: Octets, offset: int) -> int:
    """The big-endian 16-bit number at `offset`."""
    return buffer[offset] << 8 | buffer[offset + 1]


def get32(buffer: Octets, offset: int) -> int:
    """The big-endian 32-bit number at `offset`."""
    return buffer[offset] << 24 | buffer[offset + 1] << 16 | buffer[offset + 2] << 8 | buffer[offset + 3]


def put16(buffer: Writable, offset: int, value: int) -> None:
    """Store the low 16 bits of `value`, big-endian."""
    buffer[offset] = value >> 8 & 0xFF
    buffer[offset + 1] = value & 0xFF


def put32(buffer: Writable, offset: int, value: int) -> None:
    """Store the low 32 bits of `value`, big-endian."""
    put16(buffer, offset, value >> 16)
    put16(buffer, offset + 2, value)


def get16le(buffer: Octets, offset: int) -> int:
    """The little-endian 16-bit number at `offset` (virtio headers)."""
    return buffer[offset] | buffer[offset + 1] << 8


def put16le(buffer: Writable, offset: int, value: int) -> None:
    """Store the low 16 bits of `value`, little-endian (virtio headers)."""
    buffer[offset] = value & 0xFF
    buffer[offset + 1] = value >> 8 & 0xFF


def copy(target: Writable, at_target: int, source: Octets, at_source: int, length: int) -> None:
    """Copy `length` octets between buffers that do not overlap."""
    target[at_target : at_target + length] = bytes(memoryview(source)[at_source : at_source + length])  # type: ignore[arg-type]


def at(buffer: Octets, offset: int) -> memoryview:
    """The buffer from `offset` on, without a copy: pointer arithmetic in C, a view here."""
    return memoryview(buffer)[offset:]  # type: ignore[arg-type]


def to_bytes(buffer: Octets, offset: int, length: int) -> bytes:
    """A copy of `length` octets from `offset` as bytes."""
    return bytes(memoryview(buffer)[offset : offset + length])  # type: ignore[arg-type]


def sum16(buffer: Octets, offset: int, length: int, start: int) -> int:
    """`start` plus the sum of `length` octets as big-endian 16-bit words, an odd last octet padded with zero; at most
    64 KB, not folded (fits 32 bits when `start` is folded)."""
    piece = bytes(memoryview(buffer)[offset : offset + length])  # type: ignore[arg-type]
    if length & 1:
        piece += b"\0"
    return start + sum(piece[0::2]) * 256 + sum(piece[1::2])


def fold(total: int) -> int:
    """A sum of 16-bit words folded to 16 bits with end-around carry. The checksum is its complement."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def w32(value: int) -> int:
    """`value` modulo 2**32 (what an uint32_t keeps)."""
    return value & 0xFFFFFFFF


def w64(value: int) -> int:
    """`value` modulo 2**64 (what an uint64_t keeps)."""
    return value & 0xFFFFFFFFFFFFFFFF
