"""The same function as ordinary Python: what the compiled program is held against.

Python runs the function's own source.  Only its integers differ: each constant, field and input is a `U64`, which wraps
at 64 bits and is never negative, so that

* `+ - *`, `-x`, `~x` wrap; comparisons are of unsigned numbers; `less_signed` is the signed one;
* `a // 0` is 0 and `a % 0` is a; shifts take the low 6 bits of their count;
* an index is not checked against its array, but every access against the bytes that the UDF may see.

One thing is stricter here: an address so far off that it falls on the UDF's own stack is a fault.
"""

from __future__ import annotations

import ast
import builtins
import copy
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from xok_host.abi.declare import Field, Structure
from xok_host.abi.restrict import words
from xok_host.abi.restrict.source import Source, stored
from xok_host.abi.udf import CONTEXT_BASE, META_BASE, NEW_BASE

_M64 = (1 << 64) - 1
MAX_TURNS = 1 << 16
"""Turns of all loops in one run: no program within its budget takes more."""


class Fault(Exception):
    """The program would fault here."""


class U64(int):
    """An integer as a UDF has it."""

    def __new__(cls, value: int) -> U64:
        return super().__new__(cls, value & _M64)

    def __add__(self, other: int) -> U64:
        return U64(int(self) + int(other))

    __radd__ = __add__

    def __sub__(self, other: int) -> U64:
        return U64(int(self) - int(other))

    def __rsub__(self, other: int) -> U64:
        return U64(int(other) - int(self))

    def __mul__(self, other: int) -> U64:
        return U64(int(self) * int(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> U64:
        return U64(int(self) // int(other) if other else 0)

    def __mod__(self, other: int) -> U64:
        return U64(int(self) % int(other) if other else int(self))

    def __lshift__(self, other: int) -> U64:
        return U64(int(self) << (int(other) & 63))

    def __rshift__(self, other: int) -> U64:
        return U64(int(self) >> (int(other) & 63))

    def __and__(self, other: int) -> U64:
        return U64(int(self) & int(other))

    def __or__(self, other: int) -> U64:
        return U64(int(self) | int(other))

    def __xor__(self, other: int) -> U64:
        return U64(int(self) ^ int(other))

    def __pow__(self, other: int) -> U64:  # type: ignore[override]
        return U64(pow(int(self), int(other), 1 << 64))

    def __neg__(self) -> U64:
        return U64(-int(self))

    def __invert__(self) -> U64:
        return U64(~int(self))

    def __pos__(self) -> U64:
        return self


class Memory:
    """What the run may read: META, or windows of it, NEW and CONTEXT."""

    def __init__(self, meta: bytes, new: bytes, context: bytes, windows: list[tuple[int, int]] | None) -> None:
        self._meta, self._others = meta, {NEW_BASE >> 32: new, CONTEXT_BASE >> 32: context}
        self._windows = [(0, len(meta))] if windows is None else windows

    def load(self, address: int, width: int) -> U64:
        at = address & 0xFFFF_FFFF
        if address >> 32 == META_BASE >> 32:
            for start, end in self._windows:
                if start <= at and at + width <= min(end, len(self._meta)):
                    return U64(int.from_bytes(self._meta[at : at + width], "little"))
        elif at + width <= len(self._others.get(address >> 32, b"")):
            return U64(int.from_bytes(self._others[address >> 32][at : at + width], "little"))
        raise Fault(f"{width} bytes at {address:#x}")


class View:
    """A structure in a `Memory`: attributes are numbers, views and arrays."""

    def __init__(self, memory: Memory, structure: Structure, base: int) -> None:
        self._memory, self._structure, self._base = memory, structure, base & _M64

    def __getattr__(self, name: str) -> Any:
        found = self._structure[name]
        at = self._base + found.offset & _M64
        if found.count or found.kind == "bytes":
            return Array(self._memory, found, at)
        return View(self._memory, found.inner, at) if found.inner is not None else self._memory.load(at, found.width)


class Array:
    def __init__(self, memory: Memory, field: Field, base: int) -> None:
        self._memory, self._field, self._base = memory, field, base
        self._width = 1 if field.kind == "bytes" else field.width

    def __len__(self) -> int:
        return self._field.count or self._field.width

    def __getitem__(self, index: int) -> Any:
        at = self._base + int(index) * self._width & _M64
        if self._field.inner is not None:
            return View(self._memory, self._field.inner, at)
        return self._memory.load(at, self._width)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in builtins.range(len(self)))


class Run:
    """One run: memory, what was emitted, and how far loops have gone."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.output: list[tuple[int, int, int]] = []
        self._turns = 0
        self._functions: dict[FunctionType, Any] = {}
        self._meanings: dict[Any, Callable[..., Any]] = {
            words.emit: lambda a, b, c: self.output.append((int(a), int(b), int(c))),
            words.emit_ref: lambda a: self.output.append((int(a), 1, 0)),
            words.emit_cap: lambda a, b: self.output.append((int(a), int(b), 0)),
            words.at: lambda structure, offset: View(memory, structure, META_BASE + int(offset)),
            words.new_at: lambda structure, offset: View(memory, structure, NEW_BASE + int(offset)),
            words.load: lambda offset, width: memory.load(META_BASE + int(offset) & _M64, int(width)),
            words.load_new: lambda offset, width: memory.load(NEW_BASE + int(offset) & _M64, int(width)),
            words.context_at: lambda structure, offset: View(memory, structure, CONTEXT_BASE + int(offset)),
            words.load_context: lambda offset, width: memory.load(CONTEXT_BASE + int(offset) & _M64, int(width)),
            words.offset_of: lambda view: U64(view._base & 0xFFFF_FFFF),
            words.less_signed: lambda a, b: _signed(a) < _signed(b),
            builtins.len: lambda array: U64(len(array)),
            builtins.int: lambda number: number,
            builtins.range: self._range,
        }

    def tick(self) -> None:
        self._turns += 1
        if self._turns > MAX_TURNS:
            raise Fault("too many turns of loops")

    def _range(self, first: int, stop: int | None = None, step: int = 1) -> Iterator[U64]:
        here, end = (U64(0), U64(first)) if stop is None else (U64(first), U64(stop))
        while here < end:
            yield here
            here = here + step

    def meaning(self, value: Any) -> Any:
        """What a constant, or a name of the file, stands for while running."""
        if isinstance(value, int):
            return U64(value)
        if isinstance(value, (FunctionType, type(len), type)) and value in self._meanings:
            return self._meanings[value]
        if isinstance(value, FunctionType) and value.__module__ != __name__:
            if value not in self._functions:
                self._functions[value] = self.function(Source(value))
            return self._functions[value]
        return value

    def function(self, source: Source) -> Any:
        """The function, with this run's integers and words."""
        tree = copy.deepcopy(source.node)
        tree.decorator_list = []
        wrapped = ast.fix_missing_locations(_Wrap().visit(tree))
        names = {**source._names, "_meaning_": self.meaning, "_tick_": self.tick}
        code = compile(ast.Module([wrapped], []), source.file, "exec")
        exec(code, names)
        return names[source.node.name]


def _signed(value: int) -> int:
    return int(value) - (1 << 64) if int(value) >> 63 else int(value)


class _Wrap(ast.NodeTransformer):
    """Sends constants and the file's names through `_meaning_`, and counts the turns of loops."""

    def __init__(self) -> None:
        self._bound: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        around = self._bound
        self._bound = around | {argument.arg for argument in node.args.args} | stored(node.body)
        node.body = [self.visit(statement) for statement in node.body]
        self._bound = around
        node.returns = None
        for argument in node.args.posonlyargs + node.args.args:
            argument.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        return ast.Assign([node.target], self.visit(node.value)) if node.value else ast.Pass()

    def visit_Name(self, node: ast.Name) -> Any:
        outside = isinstance(node.ctx, ast.Load) and node.id not in self._bound
        return _call("_meaning_", node) if outside else node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        self.generic_visit(node)
        return _call("_meaning_", node)

    def visit_Constant(self, node: ast.Constant) -> Any:
        return _call("_meaning_", node) if isinstance(node.value, int) else node

    def visit_While(self, node: ast.While) -> Any:
        return self._looped(node)

    def visit_For(self, node: ast.For) -> Any:
        return self._looped(node)

    def _looped(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(_call("_tick_")))
        return node


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])
