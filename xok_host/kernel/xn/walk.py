"""The walk of reconstruction: every tree from its root, in whatever order the disk reads fastest.

    walk = Walk(report, patches, watch)
    for `wanted` in walk.steps(): …                  a generator: it asks for blocks, and is sent what they hold

WALK-1  Each request is a sorted list of at most WALK_BATCH blocks, each asked for once: the host merges neighbours and
        keeps many in flight.  The answer has bytes, or the MediaError, for each.
WALK-2  A block belongs to the tree that claims it first, in the order of the catalogue.  Only that one descends into
        it, so the walk ends, whatever pointers say.
WALK-3  What is remembered is a map of blocks, the metadata blocks, and of references and counts those only that do not
        cancel: an element and its names in one partition, the commonest case, cost nothing.
WALK-4  Of a disk in whose superblock is a session, the logs of a tree are asked first (`reboot`): root blocks, and
        blocks that these own.  What the session's reports name, in the sector that they name, is taken to be all zeros,
        whatever the disk holds, and is in `report.unwritten`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import cython

from xok_host.abi.calls import CatalogueEntry, ErrorKind
from xok_host.abi.errors import BadCall, MediaError, XokError
from xok_host.abi.types import TYPE_XN_DB, TYPE_XN_TYPE, da_block, da_offset
from xok_host.kernel.xn import privileged, reboot, traced, types, verify
from xok_host.kernel.xn.types import XnType

if TYPE_CHECKING:
    from xok_host.kernel.xn.recover import Report

Answers = Sequence["bytes | MediaError"]
Steps = Generator[list[int], Answers, Any]

WALK_BATCH = 4096
"""Blocks asked for at once: 16 MiB."""
QUADRATIC = 64
"""References times counts of a partition up to which they are compared each with each."""
DEV = 1
"""Elements have the names that they have on device 1 (`udf.element`), whatever the disk's number is."""


NONE: Set[int] = frozenset()


class Place:
    """Blocks of one type in one tree."""

    __slots__ = ("root", "xtype")

    def __init__(self, root: str, xtype: XnType) -> None:
        self.root = root
        self.xtype = xtype


class Walk:
    """One walk over one disk."""

    def __init__(self, report: Report, patches: Mapping[int, bytes], watch: str) -> None:
        self._report = report
        self._patches = patches
        self._watch = watch
        """The root whose blocks `report.watched` collects."""
        self._types: dict[int, XnType] = types.builtin()
        self._excess: dict[int, int] = {}
        """Element → its count less the references seen, where that is not 0."""
        self._referrer: dict[int, tuple[str, int]] = {}
        """Element → (root, block) of the last reference from another partition, where the excess is not 0."""
        self._watching = False
        self._unwritten: dict[tuple[int, int], set[int]] = {}
        """(holder, sector) → blocks of the tree that are reported there."""
        self._lost: list[int] = []
        """Types that could not be read."""
        self._roots = range(0)
        """Root blocks of the tree."""

    def steps(self) -> Steps:
        entries = self._report.catalogue.entries()
        yield from self._load_types([entry for entry in entries if entry.kind == CatalogueEntry.TYPE])
        self._report.logs = bool(self._lost) or any(map(self._reports, self._types))
        for entry in entries:
            if entry.kind == CatalogueEntry.ROOT:
                self._watching = entry.name == self._watch
                yield from self._tree(entry)
                self._watching = False
        yield from self._compare_counts()

    def _claim(self, root: Any, parent: Any, db: cython.ulonglong, count: cython.ulonglong) -> cython.bint:
        """Mark as in use; False (and an error) if part of it is not on the disk or somebody's already."""
        report = self._report
        try:
            taken = privileged.db_alloc(report.superblock, report.bits, db, count)
        except BadCall as error:
            report.add(ErrorKind.RANGE, root, db, error.detail, parent=parent, count=count)
            return False
        for block in taken:
            report.add(ErrorKind.DOUBLE, root, block, "is owned twice", parent=parent)
        report.blocks += count
        report.trees[root] = report.trees.get(root, 0) + count
        if self._watching and not taken:
            privileged.db_alloc(report.superblock, report.watched, db, count)
        return not taken

    def _load_types(self, entries: list[CatalogueEntry]) -> Steps:
        wanted: list[int] = []
        mine: list[CatalogueEntry] = []
        for entry in entries:
            if self._claim(entry.name, 0, entry.db, entry.count):
                mine.append(entry)
                wanted += range(entry.db, entry.db + entry.count)
        held: dict[int, bytes | MediaError] = {}
        wanted.sort()
        for at in range(0, len(wanted), WALK_BATCH):
            batch = wanted[at : at + WALK_BATCH]
            held.update(zip(batch, (yield batch), strict=True))
        for entry in mine:
            blocks = [held[db] for db in range(entry.db, entry.db + entry.count)]
            lost = next((block for block in blocks if isinstance(block, MediaError)), None)
            try:
                if lost is not None:
                    raise lost
                self._types[entry.type] = types.load(entry.type, entry.name, b"".join(blocks))  # type: ignore[arg-type]
            except MediaError as error:
                self._lost.append(entry.db)
                self._report.add(ErrorKind.UNREADABLE, entry.name, entry.db, str(error))
            except XokError as error:
                self._report.add(ErrorKind.TYPE, entry.name, entry.db, str(error))

    def _tree(self, entry: CatalogueEntry) -> Steps:
        """Metadata blocks wait in `todo`, by number; of each round the first WALK_BATCH are read."""
        report = self._report
        report.trees.setdefault(entry.name, 0)
        report.walking = entry.name
        if not self._claim(entry.name, 0, entry.db, entry.count):
            return
        self._unwritten = {}
        self._roots = range(entry.db, entry.db + entry.count)
        if report.superblock.session and self._reports(entry.type):
            yield from self._ask_logs(entry)
        places: dict[int, Place | None] = {}
        todo = [(db, entry.type, 0) for db in range(entry.db, entry.db + entry.count)]
        while todo:
            todo.sort()
            now, todo = todo[:WALK_BATCH], todo[WALK_BATCH:]
            batch: list[tuple[int, Place, int]] = []
            for db, type_id, parent in now:
                if type_id not in places:
                    places[type_id] = self._place(entry.name, type_id)
                place = places[type_id]
                if place is not None:
                    batch.append((db, place, parent))
                elif type_id != TYPE_XN_DB:
                    detail = f"is of type {type_id}, which does not exist"
                    report.add(ErrorKind.TYPE, entry.name, db, detail, parent=parent)
            if not batch:
                continue
            answers = yield [db for db, _, _ in batch]
            for (db, place, parent), meta in zip(batch, answers, strict=True):
                if isinstance(meta, MediaError):
                    report.add(ErrorKind.UNREADABLE, entry.name, db, str(meta), parent=parent)
                    continue
                report.metadata[db] = place
                self._block(place, db, self._patches.get(db, meta), todo)

    def _reports(self, type_id: Any) -> cython.bint:
        xtype = self._types.get(type_id)
        return xtype is not None and xtype.reboot_program is not None

    def _ask_logs(self, entry: CatalogueEntry) -> Steps:
        """WALK-4.  A log that cannot be heard is in `report.unheard`."""
        report = self._report
        report.unheard += self._lost  # there may be logs of these types
        found: set[reboot.Edge] = set()
        logs = dict.fromkeys(self._roots, entry.type)
        while logs:
            below: dict[int, int] = {}
            here = sorted(logs)
            for at in range(0, len(here), WALK_BATCH):
                batch = here[at : at + WALK_BATCH]
                for db, meta in zip(batch, (yield batch), strict=True):
                    xtype = self._types[logs[db]]
                    if isinstance(meta, MediaError):
                        report.unheard.append(db)
                        continue
                    meta = self._patches.get(db, meta)
                    found |= self._reported(xtype, db, meta)
                    if db in self._roots:
                        below.update(self._logs_below(xtype, db, meta))
            logs = below
        if len(found) > reboot.MAX_REPORTS:
            detail = f"its logs report {len(found)} pointers, at most {reboot.MAX_REPORTS}"
            report.add(ErrorKind.UDF, entry.name, entry.db, detail, parent=entry.db)
        for holder, sector, block in sorted(found)[: reboot.MAX_REPORTS]:
            self._unwritten.setdefault((holder, sector), set()).add(block)

    def _reported(self, xtype: XnType, db: int, meta: bytes) -> set[reboot.Edge]:
        found = set()
        for part in range(xtype.nparts):
            try:
                found |= reboot.said(xtype, meta, part, self._report.superblock.session)
            except XokError:
                self._report.unheard.append(db)
        return found

    def _logs_below(self, xtype: XnType, db: int, meta: bytes) -> dict[int, int]:
        """The logs that a root block owns, with their types."""
        superblock = self._report.superblock
        logs: dict[int, int] = {}
        for part in range(xtype.nparts):
            try:
                owned, _, _ = verify.ask(xtype, meta, part, db)
            except XokError:
                continue  # it is said when the tree is walked
            for start, count, type_id in zip(owned[0::3], owned[1::3], owned[2::3], strict=True):
                if self._reports(type_id):
                    first, end = max(start, superblock.first), min(start + count, superblock.nblocks - 1)
                    logs.update((block, type_id) for block in range(first, end) if block not in self._roots)
        return logs

    def _place(self, root: Any, type_id: Any) -> Place | None:
        """None: nothing to look into."""
        xtype = self._types.get(type_id)
        if xtype is None or type_id in (TYPE_XN_TYPE, TYPE_XN_DB) or xtype.template is None:
            return None
        return Place(root, xtype)

    def _block(
        self,
        place: Place,
        db: cython.ulonglong,
        meta: Any,
        todo: list,  # type: ignore[type-arg]
    ) -> None:
        """Take stock of one metadata block; the metadata blocks that it owns are added to `todo`."""
        xtype = place.xtype
        part: cython.uint
        for part in range(xtype.nparts):
            try:
                owned, references, counts = verify.ask(xtype, meta, part, db)
            except XokError as error:
                self._report.add(ErrorKind.UDF, place.root, db, f"partition {part}: {error}", parent=db, part=part)
                continue
            if owned:
                unwritten = self._unwritten.get((db, xtype.sector_of[part])) if self._unwritten else None
                self._take(place, db, owned, todo, unwritten or NONE)
            if references or counts:
                self._weigh(place, db, references, counts)
        if xtype.traced:
            self._survey(place, db, meta)

    def _survey(self, place: Place, db: int, meta: bytes) -> None:
        """PART-5: what partitions of a traced type read, together."""
        try:
            traced.survey(place.xtype, meta, db, verify.UDF_BUDGET)
        except XokError as error:
            self._report.add(ErrorKind.UDF, place.root, db, str(error), parent=db)

    def _take(
        self,
        place: Place,
        parent: cython.ulonglong,
        owned: array[int],
        todo: list,  # type: ignore[type-arg]
        unwritten: Set[int],
    ) -> None:
        i: cython.Py_ssize_t
        for i in range(0, len(owned), 3):
            start, count, type_id = owned[i], owned[i + 1], owned[i + 2]
            if not self._claim(place.root, parent, start, count):
                continue
            zeros = NONE
            if unwritten and not (parent in self._roots and self._reports(type_id)):
                zeros = {block for block in unwritten if start <= block < start + count}
                self._report.unwritten += sorted(zeros)
            if type_id == TYPE_XN_DB:
                continue
            if count == 1 and not zeros:
                todo.append((start, type_id, parent))
            else:
                todo += [(block, type_id, parent) for block in range(start, start + count) if block not in zeros]

    def _weigh(self, place: Place, db: cython.ulonglong, references: array[int], counts: array[int]) -> None:
        """Set a partition's references against its counts; what is left waits for other partitions (WALK-3)."""
        nr: cython.Py_ssize_t = len(references)
        nc: cython.Py_ssize_t = len(counts)
        i: cython.Py_ssize_t
        k: cython.Py_ssize_t
        delta: dict[int, int] = {}
        if nr and nr * nc <= 9 * QUADRATIC:
            elsewhere = list(references[0::3])
            for i in range(0, nc, 3):
                target, left = counts[i], counts[i + 1]
                while target in elsewhere:
                    elsewhere.remove(target)
                    left -= 1
                if left:
                    delta[target] = left
        else:
            elsewhere = []
            for i in range(0, nc, 3):
                delta[counts[i]] = counts[i + 1]
            for k in range(0, nr, 3):
                target = references[k]
                if target in delta:
                    delta[target] -= 1
                else:
                    elsewhere.append(target)
        for target in elsewhere:
            delta[target] = delta.get(target, 0) - 1
        for target, left in delta.items():
            total = self._excess.get(target, 0) + left
            if total:
                self._excess[target] = total
                if left < 0:
                    self._referrer[target] = (place.root, db)
            else:
                self._excess.pop(target, None)
                self._referrer.pop(target, None)

    def _compare_counts(self) -> Steps:
        """What did not cancel, judged by what the element's own block says (RECOVER-2)."""
        metadata = self._report.metadata
        blocks: list[int] = sorted(
            {int(da_block(target)) for target in self._excess if target >> 56 == DEV} & metadata.keys()
        )
        targets: dict[int, list[int]] = {}
        for target in sorted(self._excess):
            targets.setdefault(da_block(target) if target >> 56 == DEV else -1, []).append(target)
        for target in [target for db, found in targets.items() if db not in metadata for target in found]:
            self._judge(target, None, {})
        for at in range(0, len(blocks), WALK_BATCH):
            batch = blocks[at : at + WALK_BATCH]
            for db, meta in zip(batch, (yield batch), strict=True):
                for target in targets[db]:
                    place = metadata[db]
                    counts: dict[int, int] = {}
                    if not isinstance(meta, MediaError):
                        meta = self._patches.get(db, meta)
                        try:
                            part = place.xtype.template.counting(meta, da_offset(target), db << 12)
                            if part >= 0:
                                _, _, said = verify.ask(place.xtype, meta, part, db)
                                counts = dict(zip(said[0::3], said[1::3], strict=True))
                        except XokError:
                            pass  # said of the partition already
                    self._judge(target, place, counts)

    def _judge(self, target: int, place: Place | None, counts: Mapping[int, int]) -> None:
        report, excess = self._report, self._excess[target]
        if place is not None and target in counts:
            report.judge(target, place.root, counts[target], counts[target] - excess, place.xtype)
            return
        root, db = self._referrer[target]
        detail = f"a reference to {target:#x} leads nowhere"
        report.add(ErrorKind.DANGLING, root, db, detail, da=target, parent=db, references=-excess)


def answered(steps: Steps, read: Callable[[list[int]], Answers], progress: Callable[[], None]) -> Any:
    """Drive a walk by a function that reads several blocks at once; gives what the walk gives."""
    try:
        wanted = next(steps)
        while True:
            answers = read(wanted)
            progress()
            wanted = steps.send(answers)
    except StopIteration as end:
        return end.value
