"""Power fails at every write of a journalling file system that points before it writes (thesis 4.6, `reboot`).

The toy journal of tests/xn does what it likes in any order that XN lets it: alone, or as it comes.  Whatever the disk
is left with, after reconstruction and what that writes

* every invariant of XN holds, no block is owned twice, and nothing shows a stranger's bytes or a block's former ones:
  data is what its pointer was made for, or zeros;
* what was promised is there byte for byte: what was durable when its report was durably out of the log.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from crash_check import start
from crash_record import FOREIGN, RecordingDisk, RecordingXok
from crash_states import Explorer
from journal import LOG_SECTOR, Journal
from toy import Sector, da

from xok_host.abi.calls import Op, OpKind
from xok_host.abi.errors import BogusUpdate, Tainted, WouldCycle
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB
from xok_host.kernel.local import RamDisk
from xok_host.kernel.xn import reboot, recover, walk

NBLOCKS = 128
ZEROS = bytes(BLOCK)
RUNS, STEPS = 24, 40
MOUNT_EVERY = 64


def stamp(generation: int) -> bytes:
    return b"%015d\n" % generation * (BLOCK // 16)


@dataclass(frozen=True, slots=True)
class Promised:
    """Generations that must be there with their contents."""

    number: int
    generations: frozenset[int]


class Run:
    """One journal on a recording disk."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.disk = RecordingDisk(NBLOCKS)
        self.xok = RecordingXok(self.disk, shuffle=self.random)
        self.journal = Journal(self.xok)
        self.root = self.journal.root
        self.generation = 0
        self.holders = {self.root: 0}
        """Node → its generation."""
        self.data: dict[int, tuple[int, int, int]] = {}
        """Block → (node, sector, generation)."""
        self.reported: dict[int, tuple[int, int, int]] = {}
        """Block → its report's edge."""
        self.empty: set[int] = set()
        """Data blocks without contents."""
        self.promised: set[int] = set()
        self.refused = 0
        self.promise()
        self.image = self.disk.record()
        self.mark(True)

    def mark(self, promise: bool = False) -> None:
        known = frozenset(self.promised)
        self.disk.mark(Promised(hash(known) & 0xFFFF_FFFF, known), promise)

    def attempt(self, step: Callable[[], object]) -> bool:
        try:
            step()
        except (Tainted, WouldCycle, BogusUpdate):
            self.refused += 1
            return False
        return True

    def place(self) -> tuple[int, int]:
        return self.random.choice(list(self.holders)), self.random.randrange(LOG_SECTOR)

    # ---- steps

    def add(self, kind: int, report: bool) -> int | None:
        """A new block, and its report, in one transaction."""
        journal = self.journal
        db, s = self.place()
        new, block = journal.sector(db, s), journal.free_block(hint=self.random.randrange(1, NBLOCKS))
        if len(new.pointers) > 8 or len(self.reported) > 20:
            return None
        self.generation += 1
        new.pointers.append((block, 1, kind, self.generation))
        ops = [journal.modify(db, s, new, OpKind.ALLOC, db=block, count=1, type=kind)]
        records = journal.records.setdefault((journal.log, 0), [])
        more = [*records, (db << 12 | s * SECTOR, block, journal.session)] if report else records
        if report:
            ops.append(journal.log_op(journal.log, 0, more))
        if not self.attempt(lambda: journal.transact(*ops)):
            return None
        journal.records[journal.log, 0] = more
        if report:
            self.reported[block] = (db, s, block)
        if kind == TYPE_XN_DB:
            self.data[block] = (db, s, self.generation)
            self.empty.add(block)
        else:
            self.holders[block] = self.generation
        return block

    def fill(self) -> None:
        if self.empty:
            block = self.random.choice(sorted(self.empty))
            db, s, generation = self.data[block]
            self.empty.discard(block)
            self.journal.fill(db, s, block, stamp(generation))

    def remove(self) -> None:
        if self.data:
            block = self.random.choice(sorted(self.data))
            db, s, generation = self.data[block]
            self.promised.discard(generation)
            self.mark()
            self.journal.remove(db, s, block)
            del self.data[block]
            self.empty.discard(block)

    def withdraw(self) -> None:
        if self.reported:
            block = self.random.choice(sorted(self.reported))
            self.journal.withdraw(self.reported.pop(block))

    def change(self) -> None:
        """Something of no consequence in a node's sector: so that it is written again."""
        db, s = self.place()
        sector = self.journal.sector(db, s)
        sector.generation += 1
        self.journal.transact(Op(OpKind.MODIFY, da(db), s, writes=[(s * SECTOR, sector.pack())]))

    def write(self) -> None:
        block = self.random.choice([self.journal.log, self.journal.log, *self.holders, *self.data])
        self.attempt(lambda: self.journal.writeback(block))

    def flush(self) -> None:
        self.journal.flush()

    def in_order(self) -> None:
        """As it is meant to be: record, pointer, contents, in this order; then the record goes."""
        block = self.add(TYPE_XN_DB, True)
        if block is None:
            return
        holder = self.data[block][0]
        for db in (self.journal.log, holder):
            if not self.attempt(lambda db=db: self.journal.writeback(db)):  # type: ignore[misc]
                return
            self.journal.flush()
        db, s, generation = self.data[block]
        self.empty.discard(block)
        self.journal.fill(db, s, block, stamp(generation))
        self.journal.writeback(block)

    def promise(self) -> None:
        """Contents for all, then no reports, then everything is durable."""
        for block in sorted(self.empty):
            db, s, generation = self.data[block]
            self.journal.fill(db, s, block, stamp(generation))
        self.empty.clear()
        self.xok.sync()  # a log may be refused for what came to the disk in the usual order meanwhile
        self.reported.clear()
        self.journal.records.clear()
        self.journal.transact(self.journal.log_op(self.journal.log, 0, []))
        self.xok.sync()
        self.promised = {generation for _, _, generation in self.data.values()}
        self.mark(True)

    def step(self) -> None:
        steps: list[tuple[int, Callable[[], object]]] = [
            (4, lambda: self.add(TYPE_XN_DB, True)),
            (1, lambda: self.add(TYPE_XN_DB, False)),
            (2, lambda: len(self.holders) > 6 or self.add(self.journal.type, self.random.random() < 0.8)),
            (4, self.in_order),
            (4, self.fill),
            (2, self.remove),
            (3, self.withdraw),
            (2, self.change),
            (10, self.write),
            (4, self.flush),
        ]
        chosen = self.random.choices([step for _, step in steps], [weight for weight, _ in steps])[0]
        self.attempt(chosen)


class Check:
    """Looks at an image as reconstruction leaves it."""

    def __init__(self) -> None:
        self.unwritten = 0
        self.found = 0
        self._count = 0

    def __call__(self, image: bytearray, expect: Promised) -> bool:
        repaired: dict[int, bytes] = {}

        def crashed(db: int) -> bytes:
            return bytes(image[db * BLOCK : (db + 1) * BLOCK])

        def read_block(db: int) -> bytes:
            raw = crashed(db)
            sectors = range(db * SECTORS, (db + 1) * SECTORS)
            if not any(sector in repaired for sector in sectors):
                return raw
            return b"".join(
                repaired.get(sector, raw[i * SECTOR : (i + 1) * SECTOR]) for i, sector in enumerate(sectors)
            )

        report = recover.reconstruct(crashed, NBLOCKS)
        assert report.sound, [str(violation) for violation in report.violations]
        self.unwritten += bool(report.unwritten)
        for step in recover.repair(report):
            repaired.update(step)
        after = recover.reconstruct(read_block, NBLOCKS)
        assert after.sound and after.was_clean and not after.unwritten and after.trees == report.trees
        self._tree(read_block, after, expect)
        self._count += 1
        if self._count % MOUNT_EVERY:
            return False
        self._used(image, expect)
        return True

    def _tree(self, read_block: Callable[[int], bytes], report: recover.Report, expect: Promised) -> None:
        root = report.catalogue.get("journal")
        assert root is not None
        types = {entry.name: entry.type for entry in report.catalogue.entries()}
        todo, left = [root.db], set(expect.generations)
        while todo:
            raw = read_block(todo.pop())
            for s in range(SECTORS):
                for block, count, kind, generation in Sector.unpack(raw[s * SECTOR : (s + 1) * SECTOR]).pointers:
                    assert count == 1
                    contents = read_block(block)
                    assert FOREIGN not in contents, f"block {block} shows somebody else's bytes"
                    if kind == types["journal-node"]:
                        todo.append(block)
                    elif kind == TYPE_XN_DB:
                        self.found += 1
                        if generation in left:
                            left.discard(generation)
                            assert contents == stamp(generation), f"block {block} lost generation {generation}"
                        else:
                            assert contents in (ZEROS, stamp(generation)), f"block {block} is not of {generation}"
        assert not left, f"generations {sorted(left)} are gone"

    def _used(self, image: bytearray, expect: Promised) -> None:
        """Started for real, written to, and stopped."""
        disk = RamDisk(NBLOCKS)
        disk.data[:] = disk.durable[:] = image
        xok = start(disk)
        self._tree(disk.read_block, recover.reconstruct(disk.read_block, NBLOCKS), expect)
        xok.sync()
        xok.stop()
        assert recover.reconstruct(disk.read_block, NBLOCKS).sound


def explore(seed: int, explorer: Explorer) -> Run:
    run = Run(seed)
    for number in range(STEPS):
        run.step()
        if number % 16 == 15:
            run.promise()
    explorer.explore(run.image, run.disk.log)
    return run


def test_pointers_before_what_they_point_to(wanted_states: int) -> None:
    look = Check()
    explorer = Explorer("a journal that points first", look, exhaustive=5, samples=8)
    through = refused = 0
    for seed in range(RUNS):
        run = explore(seed, explorer)
        through += run.xok.kernel.counters.get("reported_children")
        refused += run.refused
    assert explorer.tally.states > 2000 and explorer.tally.mounted > 20
    assert look.unwritten > 200, "hardly any state had to be told what was never written"
    assert through > 80 and refused > 50 and look.found > 2000


# ---- that this would notice


def noticed() -> str:
    explorer = Explorer("noticing", Check(), exhaustive=4, samples=4, count=False)
    for seed in range(RUNS):
        try:
            explore(seed, explorer)
        except AssertionError as error:
            return repr(error)
    return ""


def test_a_reconstruction_that_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(walk.Walk):
        def _ask_logs(self, entry: object) -> Iterator[list[int]]:  # type: ignore[override]
            return iter(())

    monkeypatch.setattr(recover, "Walk", Deaf)
    assert "shows somebody" in noticed()


def test_a_log_that_may_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """REBOOT-2."""

    class Forgets(dict[int, reboot.Edge]):
        def __setitem__(self, block: int, edge: reboot.Edge) -> None:
            pass

    original = reboot.Reports.__init__

    def made(self: reboot.Reports, device: object) -> None:
        original(self, device)  # type: ignore[arg-type]
        self.needed = Forgets()

    monkeypatch.setattr(reboot.Reports, "__init__", made)
    assert "shows somebody" in noticed()


def test_reports_that_nobody_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """REBOOT-1: one that is not durable yet is worth nothing."""
    monkeypatch.setattr(reboot.LogSector, "certain", lambda self, edge: edge in self.standing())
    assert noticed()
