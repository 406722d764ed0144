"""The words of restricted Python beside Python's own.  They mean something inside a UDF only.

A UDF imports them, so that editors and type checkers know them; the compiler and the oracle know them by identity.
Offsets are bytes from the instance's first one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from xok_host.abi.declare import Structure

_M64 = (1 << 64) - 1


def _outside(word: str) -> NoReturn:
    raise TypeError(f"{word} is a word of restricted Python: compile the function with `udf`, or run it with `.python`")


def emit(block: int, count: int, type: int) -> None:
    """One element of the output: `owns` (block, count, type id), `refcnt` (da, count, 0), `access` (offset, n, 0)."""
    _outside("emit")


def emit_ref(da: int) -> None:
    """`refs`: the da of an element referred to."""
    _outside("emit_ref")


def emit_cap(capability: int, rights: int) -> None:
    """`guard`: a capability and what it allows."""
    _outside("emit_cap")


def at(structure: Structure, offset: int) -> Any:
    """The structure at an offset of the instance."""
    _outside("at")


def new_at(structure: Structure, offset: int) -> Any:
    """`acl`: the structure at an offset of the proposed bytes."""
    _outside("new_at")


def load(offset: int, width: int) -> int:
    """The integer of 1, 2, 4 or 8 bytes at an offset of the instance."""
    _outside("load")


def load_new(offset: int, width: int) -> int:
    """`acl`: the integer at an offset of the proposed bytes."""
    _outside("load_new")


def context_at(structure: Structure, offset: int) -> Any:
    """`method`: the structure at an offset of what it is told besides (`xok_host.abi.method`)."""
    _outside("context_at")


def load_context(offset: int, width: int) -> int:
    """`method`: the integer at an offset of what it is told besides."""
    _outside("load_context")


def offset_of(view: Any) -> int:
    """The offset of a structure, an array or a field of raw bytes: `da + offset_of(inode)` is its disk address."""
    _outside("offset_of")


def less_signed(left: int, right: int) -> bool:
    """`left < right` as signed numbers; `<` itself is unsigned."""
    _outside("less_signed")


INPUTS = {
    "part": "part",
    "length": "length",
    "tree": "tree",
    "caller": "tree",
    "da": "address",
    "now": "address",
}
"""Parameters that are inputs, and the builder's name for each (r3, r2, r4, r4, r5, r5)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter's structure lies: `start + part * step` in the instance, or (`new`) in the proposed bytes."""

    structure: Structure
    start: int = 0
    step: int = 0
    new: bool = False
