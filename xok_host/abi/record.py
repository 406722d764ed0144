"""Values with the fields of a declared structure: what a libFS keeps in core of what it has on the disk.

    class File(record(FILE, "number")):                     # FILE: an `xok_host.abi.declare.Structure`
        pass

    file = File(7, mode=0o644, name=b"a")                   # a frozen dataclass; what is not given is zero or empty
    other = dataclasses.replace(file, extents=((90, 2),))   # an array is a tuple, a structure in it is a tuple as well
    File.unpack(file.pack(), number=7) == file

The first fields (`number`) are in core only, and have no default.

REC-1  What is zero to the end is not there: bytes come without the zeros they were padded with, arrays without the
       elements at their end that are all zero.  Packing pads again, so nothing of the structure is lost.
REC-2  A record does not change, and two are equal when all their fields are.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

from xok_host.abi.declare import Buffer, Field, Structure


class Record:
    """What `record` gives is made of this."""

    layout: ClassVar[Structure]

    def pack(self) -> bytes:
        """The structure as bytes.  Raises ValueError for what does not fit."""
        return self.layout.pack(
            **{field.name: _packed(field, getattr(self, field.name)) for field in _named(self.layout)}
        )

    @classmethod
    def unpack(cls, raw: Buffer, **core: Any) -> Self:
        """REC-1; `core` gives the fields that are in core only.  Raises ValueError for too few bytes."""
        found = cls.layout.unpack(raw)
        return cls(**core, **{field.name: _value(field, getattr(found, field.name)) for field in _named(cls.layout)})


def record(layout: Structure, *core: str) -> Any:
    """The class of records of a structure, to be used or derived from.  Raises ValueError for a structure with a union,
    and for field names that are not those of a record."""
    fields: list[Any] = [(name, Any) for name in core]
    for field in _named(layout):
        if field.name in core or hasattr(Record, field.name) or field.name == "layout":
            raise ValueError(f"{layout.name}.{field.name}: a record has another use for that name")
        fields.append((field.name, Any, dataclasses.field(default=_zero(field))))
    return dataclasses.make_dataclass(layout.name, fields, bases=(Record,), namespace={"layout": layout}, frozen=True)


def _named(layout: Structure) -> list[Field]:
    return [field for field in layout.fields if field.name]


def _zero(field: Field, *, element: bool = False) -> Any:
    """The value of a field, or of an array's element, whose bytes are zero."""
    if field.kind == "union":
        raise ValueError(f"{field.name}: a record cannot have a union")
    if field.count and not element:
        return ()
    if field.inner is not None:
        return tuple(_zero(inner) for inner in _named(field.inner))
    return 0 if field.kind == "int" else b""


def _value(field: Field, raw: Any, *, element: bool = False) -> Any:
    """The record's value for what `Structure.unpack` gives."""
    if field.count and not element:
        values = [_value(field, one, element=True) for one in raw]
        nothing = _zero(field, element=True)
        while values and values[-1] == nothing:
            values.pop()
        return tuple(values)
    if field.inner is not None:
        return tuple(_value(inner, getattr(raw, inner.name)) for inner in _named(field.inner))
    return raw.rstrip(b"\0") if field.kind == "bytes" else raw


def _packed(field: Field, value: Any, *, element: bool = False) -> Any:
    """The reverse: what `Structure.pack` takes."""
    if field.count and not element:
        return [_packed(field, one, element=True) for one in value]
    if field.inner is None:
        return value
    inner = _named(field.inner)
    return {one.name: _packed(one, part) for one, part in zip(inner, value, strict=True)}
