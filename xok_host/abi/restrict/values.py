"""What expressions of restricted Python stand for while they are compiled, and what is known of each function."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from xok_host.abi.declare import Field, Structure
from xok_host.abi.expr import Cond, Const, Expr, Var, bit, load
from xok_host.abi.restrict.source import Source


@dataclass(frozen=True, slots=True)
class View:
    """A structure at an address."""

    structure: Structure
    base: Expr


@dataclass(frozen=True, slots=True)
class Array:
    """An array field, or one of raw bytes, whose elements are bytes."""

    field: Field
    base: Expr

    @property
    def count(self) -> int:
        return self.field.count or self.field.width

    @property
    def width(self) -> int:
        return 1 if self.field.kind == "bytes" else self.field.width


@dataclass(slots=True)
class Slot:
    """A local variable: a number, or the address of what `shape` says."""

    variable: Var
    shape: Any = None


@dataclass(slots=True)
class Frame:
    """One function being inlined (the outermost has no `done`)."""

    source: Source
    node: ast.FunctionDef
    outer: Frame | None
    names: dict[str, Any] = field(default_factory=dict)
    done: str = ""
    result: Slot | None = None
    loops: list[tuple[str, str]] = field(default_factory=list)
    """(where continue goes, where break goes)."""
    begins: dict[int, list[str]] = field(default_factory=dict)
    locals: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Helper:
    """A function to be inlined; `frame` is where it was defined, None for one of the file."""

    node: ast.FunctionDef
    source: Source
    frame: Frame | None


def opened(slot: Slot) -> Any:
    """What a variable stands for."""
    if isinstance(slot.shape, Structure):
        return View(slot.shape, slot.variable)
    return Array(slot.shape, slot.variable) if isinstance(slot.shape, Field) else slot.variable


def element(over: Array, base: Expr) -> Any:
    if over.field.inner is not None:
        return View(over.field.inner, base)
    return load(base, over.width)


def not_zero(number: Expr) -> Cond:
    """The shortest test: one instruction for `x & MASK`."""
    name, left, right = (getattr(number, part, None) for part in ("name", "left", "right"))
    if name == "and" and isinstance(left, Expr) and isinstance(right, Const):
        return bit(left, right.value)
    return number != 0
