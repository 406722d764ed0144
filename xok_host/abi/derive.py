"""Templates from declarations: a structure says what it owns, refers to and counts, and the UDFs follow.

    EXTENT = Structure("extent", u64("start"), u32("count"), pad(4), meaning=[owns("start", "count", type="data")])
    INODE = Structure("inode", u32("nlink"), pad(4), array("extents", EXTENT, 3), meaning=[counts("nlink")])
    ENTRY = Structure("entry", u64("ino"), chars("name", 24), meaning=[refers("ino", shift=7)])
    NODE = Structure("node", u32("used"), pad(4), array("inodes", INODE, 4), array("entries", ENTRY, 8), size=512,
                     meaning=[only_first("inodes", "used")])

    template = derive(NODE, b"example-node", types={"data": TYPE_XN_DB})

`derive` puts one structure into each partition, `step` bytes apart.  Meanings of nested structures and of array
elements count too; those of a union's arms when the discriminator says so, and XN is told of the discriminators.

With `each="inodes"` every element of that array is a partition of its own: element e of the structure at i * step is
partition i * count + e.  A modification of one then asks nothing about the others.  What decides for all of them
(`only_if`, `used` of `only_first`, the bits of `only_marked`) all of them read: partitions overlap there, and who
changes it names the other elements of the structure as dependents.

DERIVE-1  A derived UDF never faults on its own partition: loops are bounded by the declaration, not by the bytes.
DERIVE-2  The bytes of all zeros own, refer to, count and report nothing: what is zero is absent.
DERIVE-3  With `each`, a partition reads its whole element and all fields that decide, whatever the bytes are: `owns`
          begins by loading them.  So what `uses` says is constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xok_host.abi.declare import Field, Structure
from xok_host.abi.template import MAX_DISCRIMINATORS, Kind, Partitions, Template
from xok_host.abi.types import BLOCK, SECTOR, Right
from xok_host.abi.udf import META, Cond, Expr, Fields, Function, Operand, Var, load

_DEVICE = 0xFF << 56
_ADDRESS = (1 << 56) - 1


def _integer(structure: Structure, name: str) -> None:
    try:
        field = structure[name]
    except KeyError:
        raise ValueError(f"{structure.name} has no field {name!r}, which its meaning names") from None
    if field.kind != "int" or field.count:
        raise ValueError(f"{structure.name}.{name} is not an integer, as its meaning needs")


@dataclass(frozen=True, slots=True)
class Owns:
    """`count` blocks from `start`, of a type; nothing while the count is zero (the start, if the count is a number)."""

    start: str
    count: str | int
    type: str | int
    type_field: str

    def check(self, structure: Structure) -> None:
        for name in (self.start, self.count, self.type_field):
            if isinstance(name, str) and name:
                _integer(structure, name)
        if bool(self.type) == bool(self.type_field) or self.count == 0:
            raise ValueError(f"{structure.name}: owns takes type or type_field, and a count that is not 0")

    def __str__(self) -> str:
        what = f"type `{self.type_field}`" if self.type_field else f"type {self.type}"
        return f"owns `{self.count}` blocks from `{self.start}`, of {what}"


@dataclass(frozen=True, slots=True)
class Refers:
    """To the element at `field << shift`; zero refers to nothing."""

    field: str
    shift: int
    same_device: bool

    def check(self, structure: Structure) -> None:
        _integer(structure, self.field)

    def __str__(self) -> str:
        shifted = f"`{self.field}` << {self.shift}" if self.shift else f"`{self.field}`"
        return f"refers to the element at {shifted}" + (" on its own device" if self.same_device else "")


@dataclass(frozen=True, slots=True)
class Counts:
    """The structure is an element, and `field` is how many references it has."""

    field: str

    def check(self, structure: Structure) -> None:
        _integer(structure, self.field)

    def __str__(self) -> str:
        return f"is an element with `{self.field}` references"


@dataclass(frozen=True, slots=True)
class Reports:
    """A log's entry (thesis 4.6): what may never have been written; nothing while `holder` is zero."""

    holder: str
    block: str
    session: str

    def check(self, structure: Structure) -> None:
        for name in (self.holder, self.block, self.session):
            _integer(structure, name)

    def __str__(self) -> str:
        return f"reports the pointer to `{self.block}` in the sector of `{self.holder}`, in session `{self.session}`"


@dataclass(frozen=True, slots=True)
class OnlyIf:
    """All meaning of the structure, and of what is in it, holds only if `field & mask == equals`."""

    field: str
    equals: int | None
    mask: int | None

    def check(self, structure: Structure) -> None:
        _integer(structure, self.field)

    def condition(self, fields: Fields) -> Cond:
        value = fields.get(self.field)
        if self.mask is not None:
            value = value & self.mask
        return value != 0 if self.equals is None else value == self.equals

    def __str__(self) -> str:
        masked = f"`{self.field}`" if self.mask is None else f"`{self.field}` & {self.mask:#x}"
        return f"means something only if {masked} is " + ("not 0" if self.equals is None else f"{self.equals:#x}")


@dataclass(frozen=True, slots=True)
class OnlyFirst:
    """Of an array, the first `used` elements mean something (all, if `used` is more than it has)."""

    array: str
    used: str

    def check(self, structure: Structure) -> None:
        _integer(structure, self.used)
        _structures(structure, self.array)

    def __str__(self) -> str:
        return f"of `{self.array}` the first `{self.used}`"


@dataclass(frozen=True, slots=True)
class OnlyMarked:
    """Of an array, element i means something if bit `first + i` of `bits` is set."""

    array: str
    bits: str
    first: int

    def check(self, structure: Structure) -> None:
        _integer(structure, self.bits)
        if _structures(structure, self.array).count + self.first > structure[self.bits].width * 8:
            raise ValueError(f"{structure.name}.{self.bits} has fewer bits than {self.array} elements")

    def __str__(self) -> str:
        return f"of `{self.array}` those whose bit in `{self.bits}` is set, from bit {self.first}"


_KINDS = (Owns, Refers, Counts)


def _structures(structure: Structure, name: str) -> Field:
    field = next((f for f in structure.fields if f.name == name), None)
    if field is None or field.inner is None or not field.count:
        raise ValueError(f"{structure.name} has no array of structures {name!r}, which its meaning names")
    return field


def owns(start: str, count: str | int = 1, *, type: str | int = 0, type_field: str = "") -> Owns:
    """`count` is a field or a number; the type a name given to `derive`, an id, or (type_field) a field."""
    return Owns(start, count, type, type_field)


def refers(field: str, *, shift: int = 0, same_device: bool | None = None) -> Refers:
    """The field holds a whole da, or (shift) one without its device and low bits."""
    return Refers(field, shift, bool(shift) if same_device is None else same_device)


def counts(field: str) -> Counts:
    return Counts(field)


def reports(holder: str, block: str, session: str) -> Reports:
    """`holder` is a disk address in the sector that points to `block`; `session` that of the disk (INFO) then."""
    return Reports(holder, block, session)


def only_if(field: str, equals: int | None = None, *, mask: int | None = None) -> OnlyIf:
    """Without `equals`: if it is not zero."""
    return OnlyIf(field, equals, mask)


def only_first(array: str, used: str) -> OnlyFirst:
    return OnlyFirst(array, used)


def only_marked(array: str, bits: str, first: int = 0) -> OnlyMarked:
    return OnlyMarked(array, bits, first)


def derive(
    structure: Structure,
    name: bytes,
    *,
    types: Mapping[str, int] | None = None,
    parts: int = 0,
    step: int = SECTOR,
    guard: bytes | None = None,
    each: str = "",
) -> Template:
    """The template of a block with a `structure` at every `step` bytes, `parts` of them (default: as many as fit); with
    `each`, that array's elements are the partitions.

    `guard` defaults to: who holds the tree's capability may read and write.  Raises ValueError."""
    if step < 1 or SECTOR % step or structure.size > step:
        raise ValueError(
            f"{structure.name} has {structure.size} bytes, step {step}; it must fit, and step divide {SECTOR}"
        )
    count = parts or BLOCK // step
    if not 0 < count <= BLOCK // step:
        raise ValueError(f"{parts} partitions of {step} bytes are not in a block")
    discriminators = [
        (part * step + offset, width) for part in range(count) for offset, width in _discriminators(structure)
    ]
    if len(discriminators) > MAX_DISCRIMINATORS:
        least = f"{len(discriminators)} discriminators, at most {MAX_DISCRIMINATORS}"
        raise ValueError(f"{least}: take fewer partitions, or no unions in arrays")
    writer = _Elements(structure, each, count, step, types or {}) if each else _Writer(step, types or {})
    return Template(
        name=name,
        kind=Kind.UNION if discriminators else Kind.STRUCT,
        discriminators=tuple(discriminators),
        owns=writer.program(structure, Owns),
        refs=writer.program(structure, Refers) if _says(structure, Refers) else b"",
        refcnt=writer.program(structure, Counts) if _says(structure, Counts) else b"",
        guard=_tree_guard() if guard is None else guard,
        reboot=writer.program(structure, Reports) if _says(structure, Reports) else b"",
        **writer.partitions(count),
    )


def _tree_guard() -> bytes:
    f = Function()
    f.emit_cap(f.tree, int(Right.READ | Right.WRITE))
    return f.finish()


def _inner(field: Field) -> list[Structure]:
    return [field.inner] if field.inner is not None else [arm for _, arm in field.arms]


def _says(structure: Structure, kind: type) -> bool:
    """Whether the structure, or anything in it, has a meaning of that kind."""
    return any(isinstance(item, kind) for item in structure.meaning) or any(
        _says(inner, kind) for field in structure.fields for inner in _inner(field)
    )


def _discriminators(structure: Structure) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of each discriminator, those of nested structures and arms included, each once."""
    seen: set[tuple[int, int]] = set()
    for field in structure.fields:
        found = []
        if field.kind == "union":
            by = structure[field.by]
            found.append((by.offset, by.width))
        for inner in _inner(field):
            for index in range(max(field.count, 1)):
                at = field.offset + index * field.width
                found += [(at + offset, width) for offset, width in _discriminators(inner)]
        for place in found:
            if place not in seen:
                seen.add(place)
                yield place


class _Writer:
    """Writes one program after another."""

    def __init__(self, step: int, types: Mapping[str, int]) -> None:
        self._step = step
        self._types = types

    def partitions(self, count: int) -> dict[str, Any]:
        """How many, and where they are."""
        f = Function()
        f.emit(f.part * self._step, self._step, 0)
        return {"parts": count, "access": f.finish()}

    def program(self, structure: Structure, kind: type) -> bytes:
        f = Function()
        if _says(structure, kind):
            start = f.var(META + f.part * self._step)
            self._structure(f, structure, start, kind)
        return f.finish()

    def _structure(self, f: Function, structure: Structure, base: Expr, kind: type) -> None:
        if not _says(structure, kind):
            return
        fields = f.at(structure, base)
        conditions = [item.condition(fields) for item in structure.meaning if isinstance(item, OnlyIf)]
        if not conditions:
            self._inside(f, structure, fields, kind)
            return
        together = conditions[0]
        for condition in conditions[1:]:
            together = together & condition
        with f.if_(together):
            self._inside(f, structure, fields, kind)

    def _inside(self, f: Function, structure: Structure, fields: Fields, kind: type) -> None:
        write: dict[type, Callable[[Function, Fields, Any], None]] = {
            Owns: self._owns,
            Refers: _refers,
            Counts: _counts,
            Reports: _reports,
        }
        for item in structure.meaning:
            if isinstance(item, kind):
                write[kind](f, fields, item)
        for field in structure.fields:
            base = fields.address() + field.offset
            if field.kind == "union":
                for value, arm in field.arms:
                    if _says(arm, kind):
                        with f.if_(fields.get(field.by) == value):
                            self._structure(f, arm, base, kind)
            elif field.inner is not None and _says(field.inner, kind):
                if field.count:
                    self._array(f, structure, fields, field, kind)
                else:
                    self._structure(f, field.inner, base, kind)

    def _array(self, f: Function, structure: Structure, fields: Fields, field: Field, kind: type) -> None:
        inner = field.inner
        assert inner is not None
        base = fields.address() + field.offset
        live = [m for m in structure.meaning if isinstance(m, (OnlyFirst, OnlyMarked)) and m.array == field.name]
        count: Operand = field.count
        for item in live:
            if isinstance(item, OnlyFirst):
                limit = f.var(fields.get(item.used))
                with f.if_(limit > field.count):
                    f.set(limit, field.count)
                count = limit
        marks = [item for item in live if isinstance(item, OnlyMarked)]
        if not marks:
            with f.for_each(inner, base, count) as element:
                self._structure(f, inner, element.address(), kind)
            return
        with f.for_range(0, count) as index:
            condition = ((fields.get(marks[0].bits) >> (index + marks[0].first)) & 1) != 0
            for mark in marks[1:]:
                condition = condition & (((fields.get(mark.bits) >> (index + mark.first)) & 1) != 0)
            with f.if_(condition):
                element_base = f.var(base + index * inner.size)
                self._structure(f, inner, element_base, kind)

    def _owns(self, f: Function, fields: Fields, item: Owns) -> None:
        if item.type_field:
            kind: Operand = fields.get(item.type_field)
        elif isinstance(item.type, str):
            if item.type not in self._types:
                raise ValueError(f"no id for the type {item.type!r}: give types={{{item.type!r}: …}}")
            kind = int(self._types[item.type])
        else:
            kind = int(item.type)
        start = fields.get(item.start)
        if isinstance(item.count, int):
            with f.if_(start != 0):
                f.emit(start, item.count, kind)
        else:
            count = fields.get(item.count)
            with f.if_(count != 0):
                f.emit(start, count, kind)


class _Elements(_Writer):
    """Writes programs whose partitions are the elements of an array (DERIVE-3)."""

    def __init__(self, structure: Structure, each: str, count: int, step: int, types: Mapping[str, int]) -> None:
        super().__init__(step, types)
        self._count = count
        self._array_field = _structures(structure, each)
        shared: dict[str, None] = {}
        for item in structure.meaning:
            if isinstance(item, OnlyIf):
                shared[item.field] = None
            elif isinstance(item, OnlyFirst) and item.array == each:
                shared[item.used] = None
            elif isinstance(item, OnlyMarked) and item.array == each:
                shared[item.bits] = None
            else:
                raise ValueError(f"{structure.name} {item}: with each={each!r} only the elements mean something")
        for field in structure.fields:
            if field.name != each and any(_says(inner, kind) for inner in _inner(field) for kind in _KINDS):
                raise ValueError(
                    f"{structure.name}.{field.name} means something besides {each}, whose partition has it?"
                )
        self._shared = [structure[name] for name in shared]

    def partitions(self, count: int) -> dict[str, Any]:
        number = self._array_field.count
        given: dict[str, Any] = {"parts": count * number, "partitions": Partitions.TRACED}
        if self._shared:
            given |= {"partitions": Partitions.OVERLAPPING, "uses": self._uses()}
        return given

    def program(self, structure: Structure, kind: type) -> bytes:
        f = Function()
        array = self._array_field
        assert array.inner is not None
        base = f.var(META + (f.part // array.count) * self._step)
        index = f.var(f.part % array.count)
        element = f.var(base + array.offset + index * array.inner.size)
        if kind is Owns:
            seen = f.var(0)
            for field in self._shared:
                _load_all(f, seen, base + field.offset, field.width)
            _load_all(f, seen, element, array.inner.size)
        fields = f.at(structure, base)
        together: Cond | None = None
        for condition in self._conditions(structure, fields, index):
            together = condition if together is None else together & condition
        if together is None:
            self._structure(f, array.inner, element, kind)
        else:
            with f.if_(together):
                self._structure(f, array.inner, element, kind)
        return f.finish()

    def _conditions(self, structure: Structure, fields: Fields, index: Var) -> Iterator[Cond]:
        for item in structure.meaning:
            if isinstance(item, OnlyIf):
                yield item.condition(fields)
            elif isinstance(item, OnlyFirst):
                yield index < fields.get(item.used)
            elif isinstance(item, OnlyMarked):
                yield ((fields.get(item.bits) >> (index + item.first)) & 1) != 0

    def _uses(self) -> bytes:
        f = Function()
        array = self._array_field
        in_sector = SECTOR // self._step
        with f.for_range(0, in_sector) as i:
            place = f.var(f.part * in_sector + i)
            with f.if_(place < self._count):
                start = f.var(place * self._step)
                for field in self._shared:
                    f.emit(start + field.offset, field.width, array.count)
                f.emit(start + array.offset, array.count * array.width, 1)
        return f.finish()


def _load_all(f: Function, into: Var, address: Expr, size: int) -> None:
    """Load `size` bytes, for the sake of having read them."""
    at = 0
    while at < size:
        width = next(width for width in (8, 4, 2, 1) if width <= size - at)
        f.set(into, load(address + at, width))
        at += width


def _refers(f: Function, fields: Fields, item: Refers) -> None:
    value = fields.get(item.field)
    with f.if_(value != 0):
        target = value << item.shift
        if item.same_device:
            target = (target & _ADDRESS) | (f.address & _DEVICE)
        f.emit_ref(target)


def _counts(f: Function, fields: Fields, item: Counts) -> None:
    number = fields.get(item.field)
    with f.if_(number != 0):
        f.emit(f.address + (fields.address() - META), number, 0)


def _reports(f: Function, fields: Fields, item: Reports) -> None:
    holder = fields.get(item.holder)
    with f.if_(holder != 0):
        f.emit(holder, fields.get(item.block), fields.get(item.session))
