"""The structure declarer: each structure on disk or in shared memory is declared once.

A declaration is a list of fields in order; from it come the offsets (also for the UDF builder), pack and unpack, views
that read and write a buffer in place, and the table of the format page.

    EXTENT = Structure("extent", u64("block", "first block"), u32("count", "blocks"), u32("type", "type id"))
    INODE = Structure("inode", u16("mode"), pad(6), array("extents", EXTENT, 4), chars("name", 16))

    INODE.size                             80
    INODE.offset("extents[2].count")       48
    raw = INODE.pack(mode=0o644, extents=[{"block": 9, "count": 1}])
    INODE.unpack(raw).extents[0].block     9
    view = INODE.view(page, 256); view.mode = 0o600; view.extents[1].block

`union("body", "kind", {1: FILE, 2: LINK})` is bytes that mean what the field `kind` says; they are packed, unpacked and
viewed as that arm.  What a structure owns, refers to and counts can be declared with it: `meaning`, see
`xok_host.abi.derive`, which makes the template.

Everything is little-endian and unsigned, and nothing is aligned implicitly: padding is a field that one can see.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

Buffer = bytes | bytearray | memoryview

_INTEGER_CODE = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: `kind` is "int", "bytes", "pad", "struct" or "union"; `count` > 0 makes it an array."""

    name: str
    kind: str
    width: int
    """Bytes of one element."""
    count: int
    doc: str
    inner: Structure | None = None
    offset: int = -1
    """Bytes from the start of the structure; set by the declaration."""
    arms: tuple[tuple[int, Structure], ...] = ()
    """Of a union: (discriminator's value, what the bytes are then)."""
    by: str = ""
    """Of a union: the discriminator, a field of the same structure."""

    @property
    def size(self) -> int:
        return self.width * max(self.count, 1)

    @property
    def type_name(self) -> str:
        base = {
            "int": f"u{self.width * 8}",
            "bytes": f"bytes[{self.width}]",
            "pad": f"pad[{self.width}]",
            "union": f"union by {self.by}: " + ", ".join(f"{value} {arm.name}" for value, arm in self.arms),
        }.get(self.kind, self.inner.name if self.inner else "")
        return f"{base} × {self.count}" if self.count else base


def u8(name: str, doc: str = "") -> Field:
    return Field(name, "int", 1, 0, doc)


def u16(name: str, doc: str = "") -> Field:
    return Field(name, "int", 2, 0, doc)


def u32(name: str, doc: str = "") -> Field:
    return Field(name, "int", 4, 0, doc)


def u64(name: str, doc: str = "") -> Field:
    return Field(name, "int", 8, 0, doc)


def chars(name: str, length: int, doc: str = "") -> Field:
    """`length` raw bytes; packing pads with zeros, unpacking keeps them."""
    return Field(name, "bytes", length, 0, doc)


def pad(length: int, doc: str = "zero") -> Field:
    """Bytes that are zero when packed and not looked at when unpacked."""
    return Field("", "pad", length, 0, doc)


def nested(name: str, inner: Structure, doc: str = "") -> Field:
    return Field(name, "struct", inner.size, 0, doc, inner)


def array(name: str, element: Structure | Field, count: int, doc: str = "") -> Field:
    """`count` elements of a structure or of an integer field (whose own name is not used): `array("p", u64(""), 8)`."""
    if count < 1:
        raise ValueError(f"array {name!r} needs at least one element")
    if isinstance(element, Structure):
        return Field(name, "struct", element.size, count, doc, element)
    if element.kind != "int" or element.count:
        raise ValueError(f"array {name!r} can hold integers or structures")
    return Field(name, "int", element.width, count, doc)


def union(name: str, by: str, arms: Mapping[int, Structure], doc: str = "") -> Field:
    """Bytes that are one of several structures, as the integer field `by` says; as long as the longest."""
    if not arms:
        raise ValueError(f"union {name!r} needs at least one arm")
    width = max(arm.size for arm in arms.values())
    return Field(name, "union", width, 0, doc, arms=tuple(sorted(arms.items(), key=lambda arm: arm[0])), by=by)


class Structure:
    """A declared structure.  `size` is in bytes; a `size` given is checked against (or padded up from) the fields."""

    __slots__ = ("_by_name", "_view_type", "doc", "fields", "meaning", "name", "size")

    def __init__(
        self, name: str, *fields: Field, size: int | None = None, doc: str = "", meaning: Sequence[Any] = ()
    ) -> None:
        placed: list[Field] = []
        offset = 0
        for field in fields:
            placed.append(replace(field, offset=offset))
            offset += field.size
        if size is not None:
            if offset > size:
                raise ValueError(f"{name}: its fields take {offset} bytes, not {size}")
            if offset < size:
                placed.append(Field("", "pad", size - offset, 0, "zero", None, offset))
                offset = size
        self.name = name
        self.doc = doc
        self.size = offset
        self.fields = tuple(placed)
        # Unions last: unpacking one looks at its discriminator.
        ordered = sorted(placed, key=lambda field: field.kind == "union")
        self._by_name = {field.name: field for field in ordered if field.name}
        if len(self._by_name) != sum(1 for field in placed if field.name):
            raise ValueError(f"{name}: a field name occurs twice")
        for field in placed:
            by = self._by_name.get(field.by) if field.kind == "union" else None
            if field.kind == "union" and (by is None or by.kind != "int" or by.count):
                raise ValueError(f"{name}.{field.name}: its discriminator {field.by!r} is no integer field of {name}")
        self._view_type = _view_type(self)
        self.meaning = tuple(meaning)
        for item in self.meaning:
            item.check(self)

    def __repr__(self) -> str:
        return f"Structure({self.name!r}, {self.size} bytes)"

    def __getitem__(self, name: str) -> Field:
        """The field `name`, with its offset and width."""
        return self._by_name[name]

    def locate(self, path: str) -> Field:
        """The field at a path such as `extents[2].count`, its offset counted from this structure's start."""
        base, here = 0, self
        steps = path.split(".")
        for number, step in enumerate(steps):
            name, _, index_text = step.partition("[")
            field = here._by_name[name]
            base += field.offset
            count = field.count
            if index_text:
                index = int(index_text.rstrip("]"))
                if not 0 <= index < count:
                    raise IndexError(f"{self.name}.{path}: index {index} of {count}")
                base += index * field.width
                count = 0
            if number + 1 == len(steps):
                return replace(field, count=count, offset=base)
            if field.inner is None:
                raise KeyError(f"{self.name}.{path}: {name} has no fields")
            here = field.inner
        raise KeyError(path)

    def name_at(self, offset: int) -> str:
        """The path of the innermost field that holds this byte; empty for padding and bytes outside."""
        for field in self.fields:
            inside = offset - field.offset
            if not field.name or not 0 <= inside < field.size:
                continue
            name = f"{field.name}[{inside // field.width}]" if field.count else field.name
            rest = field.inner.name_at(inside % field.width) if field.inner is not None else ""
            return f"{name}.{rest}" if rest else name
        return ""

    def offset(self, path: str) -> int:
        """Byte offset of the field at `path`."""
        return self.locate(path).offset

    def pack(self, /, **values: Any) -> bytes:
        """The structure as bytes; what is not given is zero."""
        out = bytearray(self.size)
        self.pack_into(out, 0, **values)
        return bytes(out)

    def pack_into(self, buffer: bytearray | memoryview, offset: int = 0, /, **values: Any) -> None:
        """Write every field, zeros where none is given.  Raises ValueError for what does not fit."""
        unknown = values.keys() - self._by_name.keys()
        if unknown:
            raise ValueError(f"{self.name} has no field {', '.join(sorted(unknown))}")
        if offset < 0 or offset + self.size > len(buffer):
            raise ValueError(f"{self.name} does not fit into {len(buffer)} bytes at {offset}")
        buffer[offset : offset + self.size] = bytes(self.size)
        for name, value in values.items():
            field = self._by_name[name]
            at = offset + field.offset
            if not field.count:
                _pack_one(field, buffer, at, value, values.get(field.by, 0))
                continue
            if len(value) > field.count:
                raise ValueError(f"{self.name}.{name}: {len(value)} elements, at most {field.count}")
            for index, element in enumerate(value):
                _pack_one(field, buffer, at + index * field.width, element)

    def unpack(self, buffer: Buffer, offset: int = 0) -> SimpleNamespace:
        """All fields as attributes: integers, bytes, nested namespaces, lists for arrays."""
        if offset < 0 or offset + self.size > len(buffer):
            raise ValueError(f"{self.name} needs {self.size} bytes at {offset} of {len(buffer)}")
        values: dict[str, Any] = {}
        for name, field in self._by_name.items():
            at = offset + field.offset
            if field.count:
                values[name] = [_unpack_one(field, buffer, at + i * field.width) for i in range(field.count)]
            else:
                values[name] = _unpack_one(field, buffer, at, values.get(field.by, 0))
        return SimpleNamespace(**values)

    def view(self, buffer: Buffer, offset: int = 0) -> Any:
        """An object whose attributes read and write `buffer` in place; it holds the buffer and copies nothing."""
        if offset < 0 or offset + self.size > len(buffer):
            raise ValueError(f"{self.name} needs {self.size} bytes at {offset} of {len(buffer)}")
        return self._view_type(buffer, offset)

    def rows(self) -> Iterator[tuple[int, int, str, str, str]]:
        """(offset, size, type, name, meaning) of each field."""
        for field in self.fields:
            yield field.offset, field.size, field.type_name, field.name, field.doc

    def format_page(self) -> str:
        """The structure as a Markdown table."""
        lines = [f"### {self.name} ({self.size} bytes)", ""]
        if self.doc:
            lines += [self.doc, ""]
        lines += ["| offset | bytes | type | field | meaning |", "|---:|---:|---|---|---|"]
        lines += [f"| {o} | {s} | {t} | {n or '—'} | {d} |" for o, s, t, n, d in self.rows()]
        if self.meaning:
            lines += ["", *(f"* {item}" for item in self.meaning)]
        return "\n".join(lines) + "\n"


def _arm(field: Field, selected: int) -> Structure | None:
    """What the bytes of a union are."""
    return next((arm for value, arm in field.arms if value == selected), None)


def _pack_one(field: Field, buffer: bytearray | memoryview, at: int, value: Any, selected: int = 0) -> None:
    if field.kind == "int":
        if not 0 <= value < 1 << field.width * 8:
            raise ValueError(f"{field.name}: {value} does not fit into {field.width} bytes")
        struct.pack_into(_INTEGER_CODE[field.width], buffer, at, value)
    elif field.kind == "bytes" or (field.kind == "union" and isinstance(value, (bytes, bytearray, memoryview))):
        if len(value) > field.width:
            raise ValueError(f"{field.name}: {len(value)} bytes, at most {field.width}")
        buffer[at : at + len(value)] = value
    else:
        inner = _arm(field, selected) if field.kind == "union" else field.inner
        if inner is None:
            raise ValueError(f"{field.name}: {field.by} is {selected}, for which it has no arm")
        values = value if isinstance(value, Mapping) else vars(value)
        inner.pack_into(buffer, at, **values)


def _unpack_one(field: Field, buffer: Buffer, at: int, selected: int = 0) -> Any:
    if field.kind == "int":
        return struct.unpack_from(_INTEGER_CODE[field.width], buffer, at)[0]
    if field.kind == "bytes":
        return bytes(buffer[at : at + field.width])
    inner = _arm(field, selected) if field.kind == "union" else field.inner
    return bytes(buffer[at : at + field.width]) if inner is None else inner.unpack(buffer, at)


class _View:
    """Base of the generated view classes: `buffer_`, and `base_`, where in it the structure starts."""

    __slots__ = ("base_", "buffer_")

    def __init__(self, buffer: Buffer, offset: int) -> None:
        self.buffer_ = buffer
        self.base_ = offset


class _ArrayView(Sequence[Any]):
    """The elements of an array field, read and written in place."""

    __slots__ = ("buffer", "field", "offset")

    def __init__(self, field: Field, buffer: Buffer, offset: int) -> None:
        self.field = field
        self.buffer = buffer
        self.offset = offset

    def __len__(self) -> int:
        return self.field.count

    def _at(self, index: int) -> int:
        if not 0 <= index < self.field.count:
            raise IndexError(f"{self.field.name}[{index}] of {self.field.count}")
        return self.offset + index * self.field.width

    def __getitem__(self, index: Any) -> Any:
        field = self.field
        at = self._at(index)
        if field.inner is not None:
            return field.inner._view_type(self.buffer, at)
        return struct.unpack_from(_INTEGER_CODE[field.width], self.buffer, at)[0]

    def __setitem__(self, index: int, value: Any) -> None:
        assert not isinstance(self.buffer, bytes)
        _pack_one(self.field, self.buffer, self._at(index), value)


def _view_type(structure: Structure) -> type[_View]:
    members: dict[str, Any] = {"__slots__": (), "structure_": structure}
    for field in structure.fields:
        if field.name in ("buffer_", "base_", "structure_"):
            raise ValueError(f"{structure.name}: a field cannot be called {field.name!r}")
        if field.name:
            members[field.name] = _property(field)
    return type(f"{structure.name}_view", (_View,), members)


def _property(field: Field) -> property:
    """Closures over the field's constants: this is on libFSes' paths, so nothing is looked up at run time."""
    at, width, inner = field.offset, field.width, field.inner
    get: Any
    put: Any
    if field.count:

        def get(self: _View) -> Any:
            return _ArrayView(field, self.buffer_, self.base_ + at)

        def put(self: _View, value: Any) -> None:
            target = _ArrayView(field, self.buffer_, self.base_ + at)
            for index, element in enumerate(value):
                target[index] = element

    elif field.kind == "union":

        def get(self: _View) -> Any:
            arm = _arm(field, getattr(self, field.by))
            start = self.base_ + at
            return bytes(self.buffer_[start : start + width]) if arm is None else arm._view_type(self.buffer_, start)

        def put(self: _View, value: Any) -> None:
            start = self.base_ + at
            self.buffer_[start : start + width] = bytes(width)  # type: ignore[index]
            _pack_one(field, self.buffer_, start, value, getattr(self, field.by))  # type: ignore[arg-type]

    elif inner is not None:

        def get(self: _View) -> Any:
            return inner._view_type(self.buffer_, self.base_ + at)

        def put(self: _View, value: Any) -> None:
            _pack_one(field, self.buffer_, self.base_ + at, value)  # type: ignore[arg-type]

    elif field.kind == "bytes":

        def get(self: _View) -> Any:
            start = self.base_ + at
            return bytes(self.buffer_[start : start + width])

        def put(self: _View, value: Any) -> None:
            start = self.base_ + at
            if len(value) > width:
                raise ValueError(f"{field.name}: {len(value)} bytes, at most {width}")
            self.buffer_[start : start + width] = bytes(value).ljust(width, b"\0")  # type: ignore[index]

    else:
        code = struct.Struct(_INTEGER_CODE[width])
        unpack_from, pack_into = code.unpack_from, code.pack_into

        def get(self: _View) -> Any:
            return unpack_from(self.buffer_, self.base_ + at)[0]

        def put(self: _View, value: Any) -> None:
            pack_into(self.buffer_, self.base_ + at, value)

    return property(get, put, doc=field.doc)
