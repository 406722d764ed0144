"""What all wire formats share: the one error, numbers at declared offsets, and the base of the checked views.

Every protocol module holds, in this order:

* each field's offset, declared once as a constant, and `HEADER`, the octets of the shortest header. The `.pxd` beside
  it has the same as C enums for compiled modules (`from netstack.wire cimport tcp`), held equal by
  tests/wire/test_wire_offsets.py.
* a view: constructed over received octets, it either raises Malformed or stands over a header that is legal and whole.
* a value: a frozen dataclass that cannot hold an illegal header, with `pack()`. `View.value()` gives it.

WIRE-1  Received octets raise Malformed or nothing. Whatever the octets are, no other exception leaves a view.
WIRE-2  A value's constructor raises Malformed for a header that must not be sent; so `pack()` always gives a legal one.
WIRE-3  `View(value.pack(...)).value() == value`.

A view refers to the octets and copies none: who changes them afterwards has an unchecked header. Numbers are ints in
host order; so are IPv4 addresses (32 bits). MACs are 6 bytes. Sequence numbers are compared elsewhere, never here.
"""

from __future__ import annotations

from typing import Final

Octets = bytes | bytearray | memoryview

MAC_BYTES: Final = 6


class Malformed(ValueError):
    """A header breaks a rule: `field` with its protocol, `problem` with the value, `source` where the rule stands."""

    def __init__(self, field: str, problem: str, source: str) -> None:
        super().__init__(f"{field} {problem} ({source})")
        self.field = field
        self.problem = problem
        self.source = source


class Number:
    """A big-endian number of `width` octets at `offset` of a view."""

    __slots__ = ("end", "offset")

    def __init__(self, offset: int, width: int) -> None:
        self.offset = offset
        self.end = offset + width

    def __get__(self, view: View, owner: type[View] | None = None) -> int:
        return int.from_bytes(view.octets[self.offset : self.end], "big")


class View:
    """Octets that start with a header. Subclasses check the whole header in their constructor."""

    __slots__ = ("octets",)

    def __init__(self, octets: Octets, protocol: str, header: int, source: str) -> None:
        self.octets = memoryview(octets)
        if len(self.octets) < header:
            raise Malformed(f"{protocol}.header", f"has {header} octets, got {len(self.octets)}", source)


def check(field: str, value: int, low: int, high: int, source: str) -> None:
    """Raise Malformed unless low <= value <= high."""
    if not low <= value <= high:
        raise Malformed(field, f"is {value}, not in {low}..{high}", source)


def check_mac(field: str, mac: bytes, source: str, *, group: bool = True) -> None:
    """Raise Malformed unless `mac` has 6 octets; without `group` it must name one station."""
    if len(mac) != MAC_BYTES:
        raise Malformed(field, f"has {len(mac)} octets, not {MAC_BYTES}", source)
    if mac[0] & 1 and not group:
        raise Malformed(field, f"is the group address {mac.hex(':')}", source)
