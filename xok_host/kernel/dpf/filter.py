"""A filter as the kernel sees it: shapes and values, and what it says bit by bit.

The trie merges filters by *shape*: where a step looks, without what it compares to.  A shape takes in what comes before
its field: shifts, and *guards*.  A guard compares a short field at the front of the packet, which says what protocol
follows and has one of few values whoever asks; like DPF's, it is compared with a constant in the program and costs no
lookup.  So a normal filter is a plain sequence of (shape, value).

`claims` is the same filter as a set of bits with known values, which is what overlap is decided on (overlap.py).  Bits
behind a shift count from another base; two bases are the same if the same shifts lead to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xok_host.abi.dpf import Atom, BadFilter, Filter, Match, Shift
from xok_host.abi.errors import BadCall

Base = tuple[Shift, ...]
Claims = dict[tuple[Base, int], tuple[int, int]]
"""(base, byte from it) → (mask, value): the bits of that byte that the filter fixes."""


GUARD_END: Final = 24
"""Guards lie before this byte: the Ethernet type, IPv4's fragment and protocol, IPv6's next header, ARP's operation."""
GUARD_WIDTH: Final = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """Where a step looks: the prelude in order, then the field."""

    prelude: tuple[Atom, ...]
    """Guards (matches) and shifts."""
    offset: int
    width: int
    mask: int

    @property
    def shifts(self) -> Base:
        return tuple(atom for atom in self.prelude if isinstance(atom, Shift))

    @property
    def guards(self) -> tuple[Match, ...]:
        return tuple(atom for atom in self.prelude if isinstance(atom, Match))


@dataclass(frozen=True, slots=True)
class NormalFilter:
    """A verified filter.  `weight` is the number of bits it fixes: of two nested filters the heavier is inside."""

    steps: tuple[tuple[Shape, int], ...]
    claims: Claims
    weight: int


def normalise(source: Filter) -> NormalFilter:
    """Raises BadFilter if two atoms contradict each other, so that no packet could match."""
    steps: list[tuple[Shape, int]] = []
    claims: Claims = {}
    base: Base = ()
    prelude: tuple[Atom, ...] = ()
    last = len(source.atoms) - 1
    for number, atom in enumerate(source.atoms):
        if isinstance(atom, Shift):
            base += (atom,)
            prelude += (atom,)
            continue
        _claim(claims, base, atom)
        if not base and number < last and _is_guard(atom):
            prelude += (atom,)
        else:
            steps.append((Shape(prelude, atom.offset, atom.width, atom.mask), atom.value))
            prelude = ()
    weight = sum(mask.bit_count() for mask, _ in claims.values())
    return NormalFilter(tuple(steps), claims, weight)


def _is_guard(atom: Match) -> bool:
    return atom.width <= GUARD_WIDTH and atom.offset + atom.width <= GUARD_END


def _claim(claims: Claims, base: Base, atom: Match) -> None:
    for byte in range(atom.width):
        shift = 8 * (atom.width - 1 - byte)
        mask, value = atom.mask >> shift & 0xFF, atom.value >> shift & 0xFF
        if not mask:
            continue
        key = (base, atom.offset + byte)
        old_mask, old_value = claims.get(key, (0, 0))
        if (old_value ^ value) & old_mask & mask:
            raise BadFilter(f"byte {atom.offset + byte} is compared to two values")
        claims[key] = (old_mask | mask, old_value | value)


def import_filter(wire: bytes) -> tuple[Filter, NormalFilter]:
    """The filter in an operand of `FILTER_INSERT`.  Raises BadCall with the reason."""
    try:
        source = Filter.unpack(wire)
        return source, normalise(source)
    except BadFilter as reason:
        raise BadCall(str(reason)) from None
