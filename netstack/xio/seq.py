"""Sequence numbers: 32 bits that wrap (RFC 9293 section 3.4). Never compare two of them with `<`.

`Seq` keeps them apart from plain integers for the type checker. As with `wire.octets`, `seq.pxd` holds the C bodies.
"""

from __future__ import annotations

from typing import NewType

Seq = NewType("Seq", int)


def seq_add(a: int, n: int) -> Seq:
    """The number `n` (which may be negative) after `a`."""
    return Seq((a + n) & 0xFFFFFFFF)


def seq_diff(a: int, b: int) -> int:
    """a - b as a signed distance, -2**31 .. 2**31-1: positive when `a` comes after `b`."""
    return ((a - b + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def seq_lt(a: int, b: int) -> bool:
    """`a` comes before `b`."""
    return seq_diff(a, b) < 0


def seq_le(a: int, b: int) -> bool:
    """`a` comes before `b` or is equal to it."""
    return seq_diff(a, b) <= 0
