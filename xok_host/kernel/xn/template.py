"""Types as XN holds them: a template that passed every check, ready to be asked what an instance owns.

Import is the base of the induction (thesis 4.1): a type is accepted only if its empty instance is valid, so that every
later state is reached from a valid one by verified modifications.

TMPL-1  Declared partitions are constant (`access` is run with nothing to read), inside the instance, and disjoint.
        Others are traced: `readset` says what holds of them, and `traced` why it goes on to hold.
TMPL-2  `owns`, `refs`, `refcnt` and `reboot` of a declared partition read its bytes and no others: they are run with
        just these visible.  So a modification inside one partition cannot change what another says.
TMPL-3  The instance of all zeros owns nothing, refers to nothing, counts nothing, and reports nothing.
TMPL-4  A discriminator lies inside one partition (inside one sector, if partitions are traced), and discriminators are
        disjoint.
TMPL-5  Programs call no helper but their own, so that one kind of output cannot be taken for another.

A template never changes after import; what is derived here is computed once.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from xok_host.abi import template as form
from xok_host.abi.ebpf import BadProgram
from xok_host.abi.errors import BogusPartition, TypeInvalid, UdfFailed
from xok_host.abi.template import BadTemplate, Kind, Partitions
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, Right
from xok_host.abi.udf import EMIT, EMIT_CAP, EMIT_REF
from xok_host.kernel.xn import udf
from xok_host.kernel.xn.interp import BUDGET, Program, UdfFault
from xok_host.kernel.xn.readset import ReadSets, union

MAX_BLOCKS = 16
"""Blocks of one structured instance."""
MAX_PARTS = 4096
MAX_REGIONS = 64
"""Regions of one partition."""
MAX_GUARDS = 32
"""Capabilities of one guard."""
MAX_PART_REPORTS = 256
"""Pointers that `reboot` reports of one partition."""
IMPORT_BUDGET = 1 << 22
"""Instructions of all runs that an import takes."""
CALL_BUDGET = 1 << 22
"""Instructions of the runs that one call takes, of all partitions that it asks about."""
_NO_LIMIT = 1 << 62
_BLOCKS = (1 << 44) - 1

_READ, _WRITE = int(Right.READ), int(Right.WRITE)
_RIGHTS = _READ | _WRITE

Bytes = bytes | bytearray | memoryview

_HELPER = {
    "access": EMIT,
    "owns": EMIT,
    "refs": EMIT_REF,
    "refcnt": EMIT,
    "guard": EMIT_CAP,
    "acl": 0,
    "size": 0,
    "method": 0,
    "uses": EMIT,
    "reboot": EMIT,
}


class Template:
    """One accepted type.  Made by `import_template`.

    All methods that run a UDF raise `UdfFault` or `UdfFailed` if it faults or its output is malformed, and add the
    instructions executed to `spent`, which the caller may take and reset: UDF time is bounded per environment.
    """

    __slots__ = (
        "_limit",
        "_owner",
        "blocks",
        "described",
        "discriminators",
        "kind",
        "name",
        "parts",
        "programs",
        "read_sets",
        "regions",
        "reserved",
        "spent",
        "windows",
    )

    def __init__(self, described: form.Template, programs: dict[str, Program]) -> None:
        self.described = described
        self.name = described.name
        self.kind = described.kind
        self.blocks = described.blocks
        """Blocks of an instance; 0 if `size_of` computes them."""
        self.parts = described.parts
        self.programs = programs
        self.discriminators = described.discriminators
        self.spent = 0
        self._limit = IMPORT_BUDGET
        self.read_sets: ReadSets | None = None
        """What finds out the bytes of partitions that are traced."""
        if described.partitions != Partitions.EXPLICIT:
            self.read_sets = ReadSets(programs, described.parts, IMPORT_BUDGET)
        self.regions: tuple[tuple[tuple[int, int], ...], ...] = tuple(
            self._access(part) if self.read_sets is None else ((self.read_sets.sector_of[part] * SECTOR, SECTOR),)
            for part in range(described.parts)
        )
        """(offset, nbytes) of each partition's bytes; of a traced one, of all that it may come to have."""
        self.reserved = self.regions if self.read_sets is None else ()
        """Regions that are always a partition's."""
        self.windows = tuple(
            array("Q", [edge for start, length in regions for edge in (start, start + length)])
            for regions in self.regions
        )
        self._owner: list[tuple[int, int, int]] = sorted(
            (start, start + length, part) for part, regions in enumerate(self.reserved) for start, length in regions
        )

    @property
    def first_bytes(self) -> int:
        """Bytes in which the partitions lie: all of a constant-size instance, the first block of any other."""
        return (self.blocks or 1) * BLOCK

    def partition(self, part: int) -> int:
        """`part` if there is such a partition; BogusPartition otherwise."""
        if not 0 <= part < self.parts:
            raise BogusPartition(
                f"{self.name.decode(errors='replace')} has partitions 0 to {self.parts - 1}, not {part}"
            )
        return part

    def partition_of(self, offset: int, length: int) -> int:
        """The declared partition that holds all of [offset, offset + length); -1 if none does."""
        low, high = 0, len(self._owner)
        while low < high:
            middle = (low + high) // 2
            if self._owner[middle][0] <= offset:
                low = middle + 1
            else:
                high = middle
        if not low or length < 1:
            return -1
        _, end, part = self._owner[low - 1]
        position = low
        while end < offset + length and position < len(self._owner):
            start, next_end, next_part = self._owner[position]
            if start != end or next_part != part:
                return -1
            end = next_end
            position += 1
        return part if offset < self._owner[low - 1][1] and offset + length <= end else -1

    def counting(self, meta: Bytes, offset: int, da: int) -> int:
        """The partition that counts the element at that byte, if any does; -1 if none could."""
        if self.read_sets is None:
            return self.partition_of(offset, 1)
        element = udf.element(da) + offset
        self.read_sets.begin(IMPORT_BUDGET)
        for part in self.read_sets.members[offset // SECTOR]:
            (_, _, counts), _ = self.read_sets.ask(meta, part, da >> 12 & _BLOCKS)
            if element in counts[0::3]:
                return part
        return -1

    def is_inside(self, meta: Bytes, part: int, offset: int, length: int, da: int) -> bool:
        """Whether [offset, offset + length) of the instance at `da` is the partition's, and nobody else's."""
        sets = self.read_sets
        if sets is None:
            return self.partition_of(offset, length) == part
        sector = sets.sector_of[part]
        at = offset - sector * SECTOR
        if length < 1 or not 0 <= at <= at + length <= SECTOR:
            return False
        sets.begin(IMPORT_BUDGET)
        _, reads = sets.ask(meta, part, da >> 12 & _BLOCKS)
        readers = sets.survey(meta, sector, da >> 12 & _BLOCKS)
        alone = reads & ~union(readers[1:])
        return all(alone >> byte & 1 for byte in range(at, at + length))

    def survey(self, meta: Bytes, sector: int, da: int) -> None:
        """That partitions of a sector obey READ-3 and READ-4, if they are traced.  Raises UdfFailed."""
        if self.read_sets is not None:
            self.read_sets.begin(IMPORT_BUDGET)
            self.read_sets.survey(meta, sector, da >> 12 & _BLOCKS)

    def is_discriminator(self, offset: int, length: int) -> bool:
        """Whether [offset, offset + length) touches a discriminator."""
        return any(start < offset + length and offset < start + size for start, size in self.discriminators)

    def owns(self, meta: Bytes, part: int) -> array[int]:
        """The canonical extent set of one partition."""
        return udf.canonical(self._raw("owns", meta, part, 0))

    def owns_all(self, meta: Bytes, since: int) -> array[int]:
        """The canonical extent set of the whole instance; no block twice.  `since`: as of `bound`."""
        out = array("Q")
        for part in range(self.parts):
            out += self._raw("owns", meta, part, 0)
            self.bound(since)
        return udf.canonical(out)

    def bound(self, since: int) -> None:
        """Raises UdfFailed if one call has taken too many instructions since `spent` was `since`."""
        if self.spent - since > CALL_BUDGET:
            raise UdfFailed(f"this call asks UDFs that take more than {CALL_BUDGET} instructions")

    def refs(self, meta: Bytes, part: int, da: int) -> array[int]:
        """References of one partition, (element, 1, 0) each; `da` is the instance's own address."""
        return udf.elements(self._raw("refs", meta, part, udf.element(da)))

    def refcnt(self, meta: Bytes, part: int, da: int) -> array[int]:
        """Counts of one partition's elements, (element, count, 0) each; each lies in the partition and is counted once.

        Raises UdfFailed otherwise: a count belongs to the bytes that hold it."""
        da = udf.element(da)
        out = udf.elements(self._raw("refcnt", meta, part, da))
        if not udf.counted_within(out, da, self.windows[part]):
            raise UdfFailed(f"refcnt({part}) counts an element twice or one outside the partition")
        return out

    def reboot(self, meta: Bytes, part: int) -> array[int]:
        """What one partition reports (thesis 4.6), as triples: address in the holder's sector, block, session."""
        run = self.programs.get("reboot")
        if run is None:
            return array("Q")
        windows = self.windows[self.partition(part)]
        try:
            return run.run_raw(meta, part, windows=windows, max_out=MAX_PART_REPORTS)
        finally:
            self._charge(run)

    def unchanged(self, program: str, before: Bytes, after: Bytes, part: int, da: int = 0) -> bool:
        """Whether `owns`, `refs` or `refcnt` says exactly the same of both: what most modifications want to hear."""
        run = self.programs.get(program)
        if run is None:
            return True
        windows = self.windows[self.partition(part)]
        try:
            return run.same_output(before, after, part, r5=da, windows=windows)
        finally:
            self._charge(run)

    def guard(self, meta: Bytes, tree: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(read, write): the capabilities that may, ascending; a type without `guard` is guarded by its tree's."""
        run = self.programs.get("guard")
        if run is None:
            return (tree,), (tree,)
        try:
            flat = run.run_raw(meta, 0, r4=tree, max_out=MAX_GUARDS)
        finally:
            self._charge(run)
        read, write = set(), set()
        for capability, rights, _ in udf.extents(flat):
            if rights & ~_RIGHTS or not rights:
                raise UdfFailed(f"guard gives the rights {rights:#x}")
            if rights & _READ:
                read.add(capability)
            if rights & _WRITE:
                write.add(capability)
        return tuple(sorted(read)), tuple(sorted(write))

    def approves(self, before: Bytes, after: Bytes, part: int, capability: int, now: int) -> bool:
        """What `acl` says of a modification; without `acl`, yes."""
        run = self.programs.get("acl")
        if run is None:
            return True
        try:
            return run.run(before, part, new=after, r4=capability, r5=now)[0] != 0
        finally:
            self._charge(run)

    def size_of(self, first: Bytes) -> int:
        """Blocks of the instance whose first block this is."""
        run = self.programs.get("size")
        if run is None:
            return self.blocks
        try:
            result, _ = run.run(first[:BLOCK])
        finally:
            self._charge(run)
        if not 1 <= result <= MAX_BLOCKS:
            raise UdfFailed(f"size says {result} blocks, not 1 to {MAX_BLOCKS}")
        return result

    def _raw(self, program: str, meta: Bytes, part: int, da: int) -> array[int]:
        run = self.programs.get(program)
        if run is None:
            return array("Q")
        windows = self.windows[self.partition(part)]
        try:
            return run.run_raw(meta, part, r5=da, windows=windows)
        finally:
            self._charge(run)

    def _charge(self, run: Program) -> None:
        self.spent += run.executed
        if self.spent > self._limit:
            raise TypeInvalid(f"checking it takes more than {IMPORT_BUDGET} instructions")

    def _access(self, part: int) -> tuple[tuple[int, int], ...]:
        """Run `access` with nothing to read (TMPL-1)."""
        run = self.programs["access"]
        try:
            nothing = array("Q")
            flat = run.run_raw(bytes(self.first_bytes), part, windows=nothing, max_out=MAX_REGIONS)
        except UdfFault as fault:
            raise TypeInvalid(f"access({part}) {fault.reason}; it must be constant") from None
        self._charge(run)
        out = []
        for start, length, zero in udf.extents(flat):
            if zero:
                raise TypeInvalid(f"access({part}) gives a third value")
            if not length or start + length > self.first_bytes:
                raise TypeInvalid(f"access({part}) gives {length} bytes at {start} of {self.first_bytes}")
            out.append((start, length))
        if not out:
            raise TypeInvalid(f"access({part}) gives no bytes")
        return tuple(sorted(out))


def import_template(raw: Bytes) -> Template:
    """Check a packed template in every way; gives the type, or raises TypeInvalid, which names the reason."""
    try:
        described = form.Template.unpack(raw)
    except BadTemplate as error:
        raise TypeInvalid(str(error)) from None
    _check_shape(described)
    programs = {}
    for name in form.PROGRAMS:
        code: bytes = getattr(described, name)
        if code:
            programs[name] = _program(name, code)
    template = Template(described, programs)
    for check in (_check_disjoint, _check_discriminators, _check_empty_instance):
        check(template)
    template.spent = 0
    template._limit = _NO_LIMIT
    return template


def _check_shape(described: form.Template) -> None:
    """What the header alone tells: which programs and sizes go with which kind."""
    given = {name for name in form.PROGRAMS if getattr(described, name)}
    try:
        described.name.decode()
    except UnicodeDecodeError:
        raise TypeInvalid("the name is not UTF-8") from None
    if described.kind == Kind.BASE:
        if given or described.parts or described.discriminators or described.blocks != 1 or described.partitions:
            raise TypeInvalid("a BASE type is one block without partitions, discriminators and programs")
        return
    if described.parts < 1 or described.parts > MAX_PARTS:
        raise TypeInvalid(f"{described.parts} partitions, not 1 to {MAX_PARTS}")
    first = {Partitions.EXPLICIT: ("access",), Partitions.TRACED: (), Partitions.OVERLAPPING: ("uses",)}
    for name in (*first[described.partitions], "owns"):
        if name not in given:
            raise TypeInvalid(f"no {name} program")
    if described.partitions != Partitions.EXPLICIT and described.blocks != 1:
        raise TypeInvalid("partitions are traced in types of one block")
    if described.blocks > MAX_BLOCKS:
        raise TypeInvalid(f"{described.blocks} blocks, at most {MAX_BLOCKS}")
    if (described.blocks == 0) != ("size" in given):
        raise TypeInvalid("either a constant size or a size program")
    if (described.kind == Kind.UNION) != bool(described.discriminators):
        raise TypeInvalid("a UNION has discriminators and a STRUCT has none")


def _program(name: str, code: bytes) -> Program:
    try:
        program = Program(code)
    except BadProgram as error:
        raise TypeInvalid(f"{name}: {error}") from None
    foreign = program.helpers - {_HELPER[name]}
    if foreign:
        raise TypeInvalid(f"{name} calls helper {min(foreign)}, which is not for it")
    return program


def _overlaps(intervals: list[tuple[int, int]]) -> Iterator[int]:
    intervals.sort()
    for (_, end), (start, _) in zip(intervals, intervals[1:], strict=False):
        if start < end:
            yield start


def _check_disjoint(template: Template) -> None:
    if template.kind == Kind.BASE:
        return
    for byte in _overlaps([(start, end) for start, end, _ in template._owner]):
        raise TypeInvalid(f"partitions overlap at byte {byte}")


def _check_discriminators(template: Template) -> None:
    for start, length in template.discriminators:
        if template.read_sets is None:
            place, inside = "partition", template.partition_of(start, length) >= 0
        else:
            place, inside = "sector", start // SECTOR == (start + length - 1) // SECTOR < SECTORS
        if not length or not inside:
            raise TypeInvalid(f"discriminator of {length} bytes at {start} does not lie in one {place}")
    for byte in _overlaps([(start, start + length) for start, length in template.discriminators]):
        raise TypeInvalid(f"discriminators overlap at byte {byte}")


def _check_empty_instance(template: Template) -> None:
    """TMPL-3, and that every program runs on it at all."""
    zero = bytes(template.first_bytes)
    da = 1 << 56 | 1 << 12
    questions: list[tuple[str, Callable[[int], object]]] = [
        ("owns", lambda part: len(template.owns(zero, part))),
        ("refs", lambda part: len(template.refs(zero, part, da))),
        ("refcnt", lambda part: sum(template.refcnt(zero, part, da)[1::3])),
        ("reboot", lambda part: len(template.reboot(zero, part))),
    ]
    for name, ask in questions:
        for part in range(template.parts):
            try:
                answer = ask(part)
            except UdfFailed as fault:
                raise TypeInvalid(f"{name}({part}) of the empty instance fails: {fault.detail}") from None
            if answer:
                raise TypeInvalid(f"{name}({part}) of the empty instance is not empty")
    if template.read_sets is not None:
        template.read_sets.begin(IMPORT_BUDGET)
        for sector in range(SECTORS):
            try:
                template.read_sets.survey(zero, sector, 1)
            except UdfFailed as fault:
                raise TypeInvalid(f"the empty instance: {fault.detail}") from None
    for name, attempt in (("guard", lambda: template.guard(zero, 0)), ("size", lambda: template.size_of(zero))):
        try:
            attempt()
        except UdfFailed as fault:
            raise TypeInvalid(f"{name} of the empty instance fails: {fault.detail}") from None


__all__ = [
    "BUDGET",
    "IMPORT_BUDGET",
    "MAX_BLOCKS",
    "MAX_GUARDS",
    "MAX_PARTS",
    "MAX_PART_REPORTS",
    "MAX_REGIONS",
    "Template",
    "import_template",
]
