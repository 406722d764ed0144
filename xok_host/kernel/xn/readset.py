"""Read sets of types whose partitions are traced (thesis 4.1.1): which bytes the programs of a partition look at.

Partitions that `access` does not declare are found out: XN runs `owns`, `refs` and `refcnt` of a partition and marks
what they load.  R(p, S) is what partition p reads of the bytes S; it depends on S, so partitions grow and shrink.

READ-1  *Locality.*  The programs are deterministic (INTERP-1) and R(p, S) is all that they saw of S (INTERP-6).  So if
        S' has the bytes of R(p, S) as S has them, every load gives the same, the run is the same, and so are its output
        and its read set: R(p, S') = R(p, S).
READ-2  A partition lies in one sector for ever: the one in which it reads on the empty instance, where it must read
        something.  Other sectors are not shown to it.  So what it says is whole after a crash (TYPE-1), and there are
        at most 512 bytes in a read set, however it grows.
READ-3  Read sets are disjoint in every state, or, of overlapping partitions (4.1.2), `uses` says of every byte how many
        partitions read it.  `uses` is shown its sector alone, and is asked again whenever the sector changes.
READ-4  An element is counted by a partition that reads the byte at its address and is the only one that does.

A read set is an integer, bit b for byte b of the sector.  How many of a number of sets have each byte is a *tally*: bit
b of its plane i is bit i of the count of byte b.  512 counts are then added and compared in a few operations on
integers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from xok_host.abi.errors import TypeInvalid, UdfFailed
from xok_host.abi.types import BLOCK, SECTOR, SECTORS
from xok_host.kernel.xn import udf
from xok_host.kernel.xn.interp import Program

MAX_READERS = 512
"""Partitions in one sector, so that all that share a byte can be named in one transaction."""
MAX_USES = 512
"""Ranges that `uses` may give for one sector."""

Bytes = bytes | bytearray | memoryview
Answers: TypeAlias = "tuple[array[int], array[int], array[int]]"
"""owns, canonical; refs; refcnt."""
Tally = tuple[int, ...]
"""Its planes, the highest not zero."""

NOBODY: Tally = ()
_NOTHING = array("Q")


def add(one: Tally, other: Tally) -> Tally:
    """The sum, byte by byte."""
    planes = []
    carry = 0
    for index in range(max(len(one), len(other))):
        a = one[index] if index < len(one) else 0
        b = other[index] if index < len(other) else 0
        planes.append(a ^ b ^ carry)
        carry = a & b | carry & (a ^ b)
    if carry:
        planes.append(carry)
    return tuple(planes)


def tally(sets: Iterable[int]) -> Tally:
    """How many of the sets have each byte."""
    out = NOBODY
    for one in sets:
        if one:
            out = add(out, (one,))
    return out


def differ(one: Tally, other: Tally) -> int:
    """The bytes whose counts are not the same."""
    longer, shorter = (one, other) if len(one) > len(other) else (other, one)
    out = 0
    for index, plane in enumerate(longer):
        out |= plane ^ (shorter[index] if index < len(shorter) else 0)
    return out


def count(of: Tally, byte: int) -> int:
    return sum((plane >> byte & 1) << index for index, plane in enumerate(of))


def union(sets: Iterable[int]) -> int:
    out = 0
    for one in sets:
        out |= one
    return out


def first(of: int) -> int:
    """The lowest byte of a set that is not empty."""
    return (of & -of).bit_length() - 1


def ranges(of: int, start: int = 0) -> list[tuple[int, int]]:
    """(first, past last) of the bytes of a set, counted from `start`."""
    out = []
    while of:
        low = first(of)
        length = first(~(of >> low))
        out.append((start + low, start + low + length))
        of &= ~((1 << length) - 1 << low)
    return out


def changed(before: Bytes, after: Bytes, sector: int) -> int:
    """The bytes of a sector that differ."""
    at = sector * SECTOR
    old, new = bytes(before[at : at + SECTOR]), bytes(after[at : at + SECTOR])
    if old == new:
        return 0
    return sum(1 << byte for byte in range(SECTOR) if old[byte] != new[byte])


class ReadSets:
    """What one type's partitions read.  Asked only for types whose partitions are traced.

    Between two calls of `begin`, everything that is run takes at most the instructions given there (UdfFailed)."""

    __slots__ = ("_limit", "_owns", "_refcnt", "_refs", "_uses", "_windows", "members", "runs", "sector_of", "spent")

    def __init__(self, programs: Mapping[str, Program], parts: int, limit: int) -> None:
        """Finds out, on the empty instance, where partitions lie (READ-2).  Raises TypeInvalid."""
        self._owns = programs["owns"]
        self._refs = programs.get("refs")
        self._refcnt = programs.get("refcnt")
        self._uses = programs.get("uses")
        self._windows = [array("Q", (at, at + SECTOR)) for at in range(0, BLOCK, SECTOR)]
        self.members: list[list[int]] = [[] for _ in range(SECTORS)]
        """Partitions by sector."""
        self.sector_of: list[int] = []
        self.begin(limit)
        for part in range(parts):
            sector = self._sector(part)
            self.members[sector].append(part)
            self.sector_of.append(sector)
            if len(self.members[sector]) > MAX_READERS:
                raise TypeInvalid(f"more than {MAX_READERS} partitions read in sector {sector}")

    @property
    def overlapping(self) -> bool:
        return self._uses is not None

    def begin(self, limit: int) -> None:
        """Count from here on, up to `limit` instructions."""
        self.spent = self.runs = 0
        self._limit = limit

    def window(self, part: int) -> array[int]:
        """All that a partition is shown: its sector."""
        return self._windows[self.sector_of[part]]

    def ask(self, meta: Bytes, part: int, db: int) -> tuple[Answers, int]:
        """What a partition of the block `db` says, and its read set.  Raises UdfFailed."""
        window = self.window(part)
        answers, bits = self._trace(meta, part, window, db)
        reads = int.from_bytes(bits, "little")
        counted = answers[2][0::3]
        start = udf.element(db << 12) + window[0]
        for element in counted:
            if not start <= element < start + SECTOR or not reads >> element - start & 1:
                raise UdfFailed(f"refcnt counts {element:#x}, which partition {part} does not read")
        if len(set(counted)) != len(counted):
            raise UdfFailed("refcnt gives one element two counts")
        return answers, reads

    def uses(self, meta: Bytes, sector: int) -> Tally:
        """How many partitions read each byte of a sector, as `uses` claims.  Raises UdfFailed."""
        assert self._uses is not None
        try:
            said = self._uses.run_raw(meta, sector, windows=self._windows[sector], max_out=MAX_USES)
        finally:
            self._charge(self._uses)
        planes = [0] * MAX_READERS.bit_length()
        seen = 0
        for start, length, number in udf.extents(said):
            at = start - sector * SECTOR
            if not 0 <= at <= at + length <= SECTOR or not length:
                raise UdfFailed(f"uses({sector}) speaks of {length} bytes at {start}, which are not in the sector")
            if not 1 <= number <= MAX_READERS:
                raise UdfFailed(f"uses({sector}) gives byte {start} {number} users, not 1 to {MAX_READERS}")
            place = (1 << length) - 1 << at
            if seen & place:
                raise UdfFailed(f"uses({sector}) speaks of byte {sector * SECTOR + first(seen & place)} twice")
            seen |= place
            for index in range(len(planes)):
                if number >> index & 1:
                    planes[index] |= place
        while planes and not planes[-1]:
            planes.pop()
        return tuple(planes)

    def survey(self, meta: Bytes, sector: int, db: int) -> Tally:
        """How many partitions read each byte of a sector of the block `db`: all are asked.

        Raises UdfFailed if they break READ-3 or READ-4."""
        found = [self.ask(meta, part, db) for part in self.members[sector]]
        readers = tally(reads for _, reads in found)
        start = sector * SECTOR
        if self._uses is None:
            if len(readers) > 1:
                byte = first(union(readers[1:]))
                raise UdfFailed(f"byte {start + byte} is read by {count(readers, byte)} partitions")
        else:
            claimed = self.uses(meta, sector)
            wrong = differ(claimed, readers)
            if wrong:
                byte = first(wrong)
                raise UdfFailed(
                    f"uses says that {count(claimed, byte)} partitions read byte {start + byte}; "
                    f"{count(readers, byte)} do"
                )
        for (_, _, counts), _ in found:
            self.check_counts(counts, readers, sector, db)
        return readers

    def check_counts(self, counts: array[int], readers: Tally, sector: int, db: int) -> None:
        """READ-4, of what one partition counts.  Raises UdfFailed."""
        start = udf.element(db << 12) + sector * SECTOR
        for element in counts[0::3]:
            if count(readers, element - start) != 1:
                raise UdfFailed(f"refcnt counts {element:#x}, which several partitions read")

    def _trace(self, meta: Bytes, part: int, window: array[int], db: int) -> tuple[Answers, bytearray]:
        bits = bytearray((window[1] - window[0]) // 8)
        da = udf.element(db << 12)
        owned = udf.canonical(self._run(self._owns, meta, part, window, bits, 0))  # not where it lies: DET-4
        references = udf.elements(self._run(self._refs, meta, part, window, bits, da))
        counts = udf.elements(self._run(self._refcnt, meta, part, window, bits, da))
        return (owned, references, counts), bits

    def _run(
        self, program: Program | None, meta: Bytes, part: int, window: array[int], bits: bytearray, da: int
    ) -> array[int]:
        if program is None:
            return _NOTHING
        try:
            return program.run_traced(meta, part, window, bits, r5=da)
        finally:
            self._charge(program)

    def _charge(self, program: Program) -> None:
        self.runs += 1
        self.spent += program.executed
        if self.spent > self._limit:
            raise UdfFailed("tracing the partitions takes more instructions than may be spent")

    def _sector(self, part: int) -> int:
        try:
            _, bits = self._trace(bytes(BLOCK), part, array("Q", (0, BLOCK)), 1)
        except UdfFailed as fault:
            raise TypeInvalid(f"partition {part} of the empty instance cannot be traced: {fault.detail}") from None
        width = SECTOR // 8
        found = [sector for sector in range(SECTORS) if any(bits[sector * width : (sector + 1) * width])]
        if len(found) != 1:
            where = f"in the sectors {', '.join(map(str, found))}" if found else "nowhere"
            raise TypeInvalid(f"partition {part} of the empty instance reads {where}; it must read in one sector")
        return found[0]
