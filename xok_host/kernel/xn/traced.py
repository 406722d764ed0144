"""Modifications of blocks whose partitions are traced: who depends on the bytes changed (thesis 4.1.1, 4.1.2).

S is a block before a transaction and S' after it, R(p, S) what partition p reads of S (`readset`), T the partitions
that the transaction names, D the bytes that differ.  What must hold is that whatever p not in T says is the same of S'
as of S; then it is enough to ask T, as for declared partitions.  By READ-1 that is so if D meets no R(p, S) of such p.

PART-1  XN knows c(b), how many partitions read byte b of S: of overlapping partitions because `uses` of S says so,
        which was true when S was made (PART-4); of others, where c is 0 or 1, because all partitions of the sector were
        asked when it was first modified in core, and c has been carried on since (`Cached.memo`: 64 bytes a sector).
PART-2  For each b in D, c(b) partitions of T read b in S.  Since no more than c(b) partitions read b at all, they are
        all in T; so D meets no R(p, S) with p outside T, and these say of S' what they said of S, and read the same.
        If fewer do, the libFS has hidden somebody: `DependentsMissing`, or, of partitions that do not overlap,
        `BogusPartition`, because the byte is another's.
PART-3  Each b in D is in R(p, S) or R(p, S') for some p of T: it was read by a partition named, or is now.  A byte that
        nobody read and nobody reads is no partition's, and is changed as such (NO_PARTITION, which `acl` is asked
        about); that nobody reads it follows from PART-2 with c(b) = 0.
PART-4  *Growing and shrinking.*  By PART-2 only the read sets of T change, so the readers of b in S' are
        c(b) - |p in T: b in R(p, S)| + |p in T: b in R(p, S')|, for every byte b of the sector, changed or not (the sum
        rule).  Of overlapping partitions that is what `uses` must say of S': thus PART-1 holds again.  Of others it is
        at most 1: p may gain bytes that nobody read or that a partition of T gives up, and none that somebody else
        has; bytes that it loses become nobody's.
PART-5  The first states of a block obey: the import surveys the empty instance, and so does every allocation if what is
        read could depend on where the block lies (`refs` and `refcnt` are told; `owns` and `uses` are not).
        Reconstruction surveys what it finds.
PART-6  No partition reads outside its sector (READ-2), and sectors are checked one by one: after a crash, the sectors
        of several states stand side by side, and each obeys PART-1.

Bounds: at most 64 operations, MAX_DEPENDENTS partitions besides, 512 bytes in a read set, MAX_READERS partitions to
survey in a sector, and the instructions of one transaction (`verify.UDF_BUDGET`), which stop it in the middle.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from xok_host.abi.calls import MAX_DEPENDENTS
from xok_host.abi.errors import BadCall, BogusPartition, BogusUpdate, DependentsMissing, UdfFailed, WrongType
from xok_host.abi.types import BLOCK, SECTOR, SECTORS
from xok_host.kernel.xn.readset import (
    NOBODY,
    Answers,
    ReadSets,
    Tally,
    add,
    changed,
    count,
    differ,
    first,
    ranges,
    union,
)
from xok_host.kernel.xn.readset import tally as tally_of
from xok_host.kernel.xn.shadow import Shadow, Touched, Transaction
from xok_host.kernel.xn.types import XnType

_ZEROS = bytes(BLOCK)
_TALLY = 1 << 20
"""Keys of `Cached.memo`: p for what partition p says, -1 - p for what it reads, _TALLY + s for readers in sector s."""


def name_dependents(t: Transaction, shadow: Shadow, data: bytes, touch: Callable[[int], object]) -> None:
    """Partitions that an operation says depend on what it changes; `touch` makes them the transaction's."""
    xtype = shadow.entry.xtype
    assert xtype is not None
    sets = None if shadow.plain else xtype.template.read_sets
    if sets is None or not sets.overlapping:
        raise WrongType(f"partitions of block {shadow.entry.db} do not overlap: there are no dependents to name")
    if not data or len(data) % 4:
        raise BadCall(f"dependents are {len(data)} bytes, not four for each")
    t.dependents += len(data) // 4
    if t.dependents > MAX_DEPENDENTS:
        raise BadCall(f"more than {MAX_DEPENDENTS} dependents in one transaction")
    for (part,) in struct.iter_unpack("<I", data):
        if touch(part) is None:
            raise BogusPartition(f"{part:#x} is no partition that could depend on anything")


def ask(xtype: XnType, meta: bytes | bytearray | memoryview, part: int, db: int, budget: int) -> Answers:
    """What a partition says.  Raises UdfFailed."""
    sets: ReadSets = xtype.template.read_sets
    sets.begin(budget)
    try:
        return sets.ask(meta, part, db)[0]
    finally:
        _take(xtype, sets)


def survey(xtype: XnType, meta: bytes | bytearray | memoryview, db: int, budget: int) -> None:
    """That a whole block obeys READ-3 and READ-4.  Raises UdfFailed."""
    sets: ReadSets = xtype.template.read_sets
    sets.begin(budget)
    try:
        for sector in range(SECTORS):
            sets.survey(meta, sector, db)
    finally:
        _take(xtype, sets)


def check_new(t: Transaction, xtype: XnType, db: int, budget: int) -> None:
    """PART-5, of a block that is being allocated."""
    try:
        check_empty(xtype, db, 1, budget - t.spent)
    finally:
        t.spent += xtype.spent
        t.kernel.counters.add("udf_instructions", xtype.spent)
        xtype.spent = 0


def check_empty(xtype: XnType, first_db: int, blocks: int, budget: int) -> None:
    """That empty instances at these blocks obey PART-5 and say nothing.  Raises UdfFailed."""
    if not xtype.has_refs:
        return
    sets: ReadSets = xtype.template.read_sets
    sets.begin(budget)
    try:
        for db in range(first_db, first_db + blocks):
            for sector in range(SECTORS):
                sets.survey(_ZEROS, sector, db)
            for part in range(len(sets.sector_of)):
                (_, references, counts), _ = sets.ask(_ZEROS, part, db)
                if references or any(counts[1::3]):
                    raise UdfFailed(f"partition {part} of an empty block {db} is not empty")
    finally:
        _take(xtype, sets)


def check(t: Transaction, shadow: Shadow, budget: int) -> None:
    """PART-2 to PART-4 for a block; leaves in the partitions named what they say now."""
    xtype: XnType = shadow.entry.xtype
    sets: ReadSets = xtype.template.read_sets
    sets.begin(budget - t.spent - xtype.spent)
    shadow.reading = {}
    try:
        for sector in range(SECTORS):
            if shadow.changed >> sector & 1:
                named = [touched for touched in t.parts(shadow) if touched.sector == sector]
                _check_sector(shadow, named, sets, sector)
    finally:
        _take(xtype, sets)


def applied(shadow: Shadow) -> None:
    """The transaction has been applied: who reads what is so now."""
    shadow.entry.memo.update(shadow.reading)


def _check_sector(shadow: Shadow, named: list[Touched], sets: ReadSets, sector: int) -> None:
    entry = shadow.entry
    differs = changed(shadow.before, shadow.whole, sector)
    before = [_before(shadow, sets, touched.part) for touched in named]
    readers = _readers(shadow, sets, sector)
    if not differs:
        for touched in named:
            touched.after, touched.references, touched.counts = entry.memo[touched.part]
        return
    known = tally_of(before)
    missing = differs & differ(readers, known)
    if missing:
        _refuse_missing(shadow, sets, sector, missing, readers, known)
    after = []
    for touched in named:
        answers, reads = sets.ask(shadow.whole, touched.part, entry.db)
        touched.after, touched.references, touched.counts = answers
        after.append(reads)
        shadow.reading[-1 - touched.part] = reads
    stray = differs & ~union(before) & ~union(after)
    if stray and not shadow.loose:
        raise BogusPartition(f"bytes {_said(stray, sector)} of block {entry.db} are not in the partitions named")
    if sets.overlapping:
        now = _counted(shadow, sets, sector, add(readers, tally_of(after)), known)
    else:
        now = _disjoint(shadow, sector, union(readers) & ~union(before), named, after)
    shadow.reading[_TALLY + sector] = now
    for touched in named:
        sets.check_counts(touched.counts, now, sector, entry.db)


def _before(shadow: Shadow, sets: ReadSets, part: int) -> int:
    """What the partition reads before the transaction; what it says is remembered with it."""
    memo = shadow.entry.memo
    reads: int | None = memo.get(-1 - part)
    if reads is None:
        memo[part], reads = sets.ask(shadow.before, part, shadow.entry.db)
        memo[-1 - part] = reads
    return reads


def _readers(shadow: Shadow, sets: ReadSets, sector: int) -> Tally:
    """PART-1."""
    memo = shadow.entry.memo
    readers: Tally | None = memo.get(_TALLY + sector)
    if readers is None:
        if sets.overlapping:
            readers = sets.uses(shadow.before, sector)
        else:
            readers = sets.survey(shadow.before, sector, shadow.entry.db)
        memo[_TALLY + sector] = readers
    return readers


def _refuse_missing(shadow: Shadow, sets: ReadSets, sector: int, missing: int, readers: Tally, known: Tally) -> None:
    """PART-2 does not hold."""
    byte = first(missing)
    where = f"byte {sector * SECTOR + byte} of block {shadow.entry.db}"
    if not sets.overlapping:
        raise BogusPartition(f"bytes {_said(missing, sector)} of block {shadow.entry.db} are another partition's")
    total = count(readers, byte)
    raise DependentsMissing(f"{total} partitions read {where}, and {count(known, byte)} of them are named")


def _counted(shadow: Shadow, sets: ReadSets, sector: int, gained: Tally, known: Tally) -> Tally:
    """PART-4 of overlapping partitions: what `uses` says now, and that it is the sum."""
    claimed = sets.uses(shadow.whole, sector)
    wrong = differ(gained, add(claimed, known))
    if wrong:
        byte = first(wrong)
        raise BogusUpdate(
            f"uses says that {count(claimed, byte)} partitions read byte {sector * SECTOR + byte} of block "
            f"{shadow.entry.db}; {count(gained, byte) - count(known, byte)} do"
        )
    return claimed


def _disjoint(shadow: Shadow, sector: int, taken: int, named: list[Touched], after: list[int]) -> Tally:
    """PART-4 of others.  `taken` is what partitions that are not named read."""
    for touched, reads in zip(named, after, strict=True):
        if taken & reads:
            raise BogusPartition(
                f"partition {touched.part} of block {shadow.entry.db} would read bytes "
                f"{_said(taken & reads, sector)}, which are another's"
            )
        taken |= reads
    return (taken,) if taken else NOBODY


def _said(of: int, sector: int) -> str:
    return ", ".join(f"{a}" if b - a == 1 else f"{a} to {b - 1}" for a, b in ranges(of, sector * SECTOR))


def _take(xtype: XnType, sets: ReadSets) -> None:
    xtype.runs += sets.runs
    xtype.spent += sets.spent
    sets.begin(0)


__all__ = [
    "applied",
    "ask",
    "check",
    "check_empty",
    "check_new",
    "name_dependents",
    "survey",
]
