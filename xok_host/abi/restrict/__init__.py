"""Restricted Python: UDFs written as functions (docs/udf.md, "In Python").

    @udf(node=Place(NODE, step=512))
    def owns(node: Any, part: int) -> None:
        for extent in node.extents:
            if extent.count != 0:
                emit(extent.start, extent.count, DATA)

    owns.program                       the eBPF, for a template
    owns.python(block, part=3)         the same function run by Python itself: (r0, output)

RPY-1  A function that compiles says the same both ways, on any bytes: the same output and result, or a fault in both
       (the budget excepted: it counts instructions).  Integers are as `oracle` says.
RPY-2  What is not restricted Python is refused with its file and line, and with what to write instead.
RPY-3  Helper functions are inlined; a program is bounded by MAX_INLINED, MAX_DEPTH and the interpreter's own bounds.

Allowed: integers; `+ - * // % & | ^ << >> ~`, comparisons also in chains, `and or not`, `x in (1, 2)`, `a if c else b`;
local variables; if, while, `for … in range(…)` and over array fields, break, continue, return; fields of structures
(`node.extents[i].count`), bytes of raw fields (`entry.name[0]`); constants of the file or of an enclosing function;
helper functions, nested or of a file; `len`, `min`, `max`, `int`; and the words of `words`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from xok_host.abi.declare import Structure
from xok_host.abi.restrict import words
from xok_host.abi.restrict.compile import MAX_DEPTH, MAX_INLINED, compile_function
from xok_host.abi.restrict.oracle import U64, Fault, Memory, Run, View
from xok_host.abi.restrict.source import Restricted, Source, parameters
from xok_host.abi.restrict.words import (
    Place,
    at,
    context_at,
    emit,
    emit_cap,
    emit_ref,
    less_signed,
    load,
    load_context,
    load_new,
    new_at,
    offset_of,
)
from xok_host.abi.udf import META_BASE, NEW_BASE


class Udf:
    """One compiled function."""

    def __init__(self, function: FunctionType, places: dict[str, Place]) -> None:
        self._source = Source(function)
        self._places = places
        self._parameters = parameters(self._source, self._source.node)
        absent = [name for name in places if name not in self._parameters]
        if absent:
            self._source.refuse(self._source.node, f"there is no parameter {absent[0]}", "name it in the function")
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.program = compile_function(self._source, places)
        """The eBPF."""

    def python(
        self,
        meta: bytes | bytearray | memoryview,
        part: int = 0,
        *,
        new: bytes | bytearray | memoryview | None = None,
        context: bytes | bytearray | memoryview | None = None,
        r4: int = 0,
        r5: int = 0,
        windows: list[tuple[int, int]] | None = None,
    ) -> tuple[int, list[tuple[int, int, int]]]:
        """Run the function as Python, with what the program would be given.  Raises `Fault`."""
        memory = Memory(bytes(meta), bytes(new or b""), bytes(context or b""), windows)
        run = Run(memory)
        given = {"part": part, "length": len(meta), "tree": r4, "address": r5}
        arguments: list[Any] = []
        for name in self._parameters:
            if name in self._places:
                place = self._places[name]
                base = (NEW_BASE if place.new else META_BASE) + place.start + part * place.step
                arguments.append(View(memory, place.structure, base))
            else:
                arguments.append(U64(given[words.INPUTS[name]]))
        result = run.function(self._source)(*arguments)
        return (0 if result is None else int(result)), run.output


def udf(function: Callable[..., Any] | None = None, /, **places: Place | Structure) -> Any:
    """Compile a function, as a decorator (`@udf`, `@udf(node=Place(NODE))`) or a call (`udf(function, node=NODE)`).

    Keywords say where the structures lie that parameters stand for; the other parameters are inputs: `part`, `length`,
    `tree` (guard), `caller` and `now` (acl, method), `da` (refs, refcnt).  Raises Restricted."""
    given = {name: Place(place) if isinstance(place, Structure) else place for name, place in places.items()}
    if function is None:
        return lambda later: Udf(later, given)
    return Udf(function, given)  # type: ignore[arg-type]


__all__ = [
    "MAX_DEPTH",
    "MAX_INLINED",
    "Fault",
    "Place",
    "Restricted",
    "Udf",
    "at",
    "context_at",
    "emit",
    "emit_cap",
    "emit_ref",
    "less_signed",
    "load",
    "load_context",
    "load_new",
    "new_at",
    "offset_of",
    "udf",
]
