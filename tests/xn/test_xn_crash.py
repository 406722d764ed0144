"""Power fails at any write, and any subset of what was not flushed has reached the disk: no violation is found.

A random libFS drives XN with every kind of operation, in orders no sane one would use.  Again and again the disk is
looked at as a crash at that moment could have left it.  Generations in pointers and contents show whether a pointer
leads to what it was made for: never to another's old bytes, never to a block that was reused too early.
"""

from __future__ import annotations

import random
import struct

import pytest
from toy import (
    DEV,
    ELEMENTS,
    POINTERS,
    REFERENCES,
    Sector,
    Toy,
    da,
    element,
)

from xok_host.abi.calls import Op, OpFlag, OpKind, pack_extents
from xok_host.abi.errors import (
    BogusUpdate,
    Locked,
    MediaError,
    NoSpace,
    Tainted,
    WouldCycle,
)
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB, Flag
from xok_host.kernel.local import LocalXok
from xok_host.kernel.request import IoOp
from xok_host.kernel.xn import recover

STAMP = struct.Struct("<8sQ")


def stamp(generation: int) -> bytes:
    return STAMP.pack(b"contents", generation) * (BLOCK // STAMP.size)


class Anarchist:
    """Performs random operations; knows only what it did itself."""

    def __init__(self, seed: int, nblocks: int = 192, max_chunks: int = 8) -> None:
        self.random = random.Random(seed)
        self.local = LocalXok(nblocks, seed=seed, max_chunks=max_chunks, entries=1 << 10)
        disk = self.local.disk
        first = self.local.kernel.devices[DEV].superblock.first
        disk.data[first * BLOCK : (nblocks - 1) * BLOCK] = b"\xee" * ((nblocks - 1 - first) * BLOCK)
        disk.durable[:] = disk.data
        self.toy = Toy(self.local)
        self.toy.durable(self.toy.root)
        self.toy.flush()
        self.generation = 1
        self.nodes: dict[int, tuple[int, int]] = {self.toy.root: (0, 0)}
        """Node to (parent, sector)."""
        self.data: dict[int, tuple[int, int, int]] = {}
        """First block of a data extent to (parent, sector, count)."""
        self.sectors: dict[tuple[int, int], Sector] = {(self.toy.root, s): Sector() for s in range(SECTORS)}
        self.images = 0
        self.refused = 0

    def place(self) -> tuple[int, int]:
        return self.random.choice(list(self.nodes)), self.random.randrange(SECTORS)

    def find(self, count: int) -> int:
        return self.toy.free_block(count, self.random.randrange(1, self.local.disk.nblocks))

    def pick_sector(self, test) -> tuple[int, int] | None:  # type: ignore[no-untyped-def]
        found = [key for key, sector in self.sectors.items() if test(sector)]
        return self.random.choice(found) if found else None

    def submit(self, changes: dict[tuple[int, int], Sector], ops: list[Op]) -> bool:
        """One transaction; the model follows if XN accepts it."""
        try:
            self.toy.transact(*ops)
        except (WouldCycle, NoSpace, Locked):
            self.refused += 1
            return False
        except BogusUpdate as error:
            assert "would be lost" in str(error)  # a node on the move to another sector
            return False
        self.sectors.update(changes)
        return True

    # ---- operations

    def op_alloc_data(self) -> None:
        (db, s), count = self.place(), self.random.randint(1, 3)
        new = self.sectors[db, s].copy()
        if len(new.pointers) == POINTERS:
            return
        try:
            block = self.find(count)
        except NoSpace:
            return
        self.generation += 1
        new.pointers.append((block, count, TYPE_XN_DB, self.generation))
        self.random.shuffle(new.pointers)
        how = self.random.choice(["pages", "none"])
        fields = {"db": block, "count": count, "type": TYPE_XN_DB}
        if how == "pages":
            pages = struct.unpack(
                f"<{count}Q",
                self.toy.env.call("page_alloc", count, cap=self.toy.cap, out_bytes=8 * count).data,
            )
            if list(pages) != list(range(pages[0], pages[0] + count)):
                self.toy.env.call("page_free", data=struct.pack(f"<{count}Q", *pages))
                return
            for page in pages:
                self.toy.env.page(page)[:] = stamp(self.generation)
            fields |= {"page": pages[0], "flags": OpFlag.PAGES}
        if self.submit({(db, s): new}, [self.toy.modify(db, s, new, OpKind.ALLOC, **fields)]):
            self.data[block] = (db, s, count)

    def op_alloc_node(self) -> None:
        db, s = self.place()
        new = self.sectors[db, s].copy()
        if len(new.pointers) == POINTERS or len(self.nodes) > 14:
            return
        try:
            block = self.find(1)
        except NoSpace:
            return
        self.generation += 1
        generation = self.generation
        new.pointers.append((block, 1, self.toy.type, generation))
        ops = [self.toy.modify(db, s, new, OpKind.ALLOC, db=block, count=1, type=self.toy.type)]
        changes = {(db, s): new}
        changes |= {(block, i): Sector() for i in range(SECTORS)}
        if self.random.random() < 0.5:
            # The new node is filled in the same transaction, sometimes with what its parent gives up.
            child = Sector(generation=generation)
            takes = [p for p in new.pointers if p[0] != block and self.random.random() < 0.5]
            for pointer in takes:
                new.pointers.remove(pointer)
                child.pointers.append(pointer)
            ops = [self.toy.modify(db, s, new, OpKind.ALLOC, db=block, count=1, type=self.toy.type)]
            ops.append(self.toy.modify(block, 0, child))
            changes[block, 0] = child
            if self.submit(changes, ops):
                self.nodes[block] = (db, s)
                for pointer in takes:
                    self.rehome(pointer, block, 0)
            return
        if self.submit(changes, ops):
            self.nodes[block] = (db, s)

    def rehome(self, pointer: tuple[int, int, int, int], db: int, s: int) -> None:
        if pointer[2] == TYPE_XN_DB:
            self.data[pointer[0]] = (db, s, pointer[1])
        else:
            self.nodes[pointer[0]] = (db, s)

    def op_move(self) -> None:
        source = self.pick_sector(lambda sector: sector.pointers)
        if source is None:
            return
        target = self.place()
        pointer = self.random.choice(self.sectors[source].pointers)
        if target == source or len(self.sectors[target].pointers) == POINTERS:
            return
        above = target[0]
        while above != self.toy.root:
            if above == pointer[0]:
                return  # a node cannot go below itself
            above = self.nodes[above][0]
        old, new = self.sectors[source].copy(), self.sectors[target].copy()
        old.pointers.remove(pointer)
        new.pointers.append(pointer)
        if self.submit({source: old, target: new}, [self.toy.modify(*source, old), self.toy.modify(*target, new)]):
            self.rehome(pointer, *target)

    def op_free(self) -> None:
        source = self.pick_sector(lambda sector: sector.pointers)
        if source is None:
            return
        new = self.sectors[source].copy()
        pointer = self.random.choice(new.pointers)
        db, count, kind, _ = pointer
        if kind != TYPE_XN_DB and any(
            self.sectors[db, s].pointers or self.sectors[db, s].references or any(self.sectors[db, s].counts)
            for s in range(SECTORS)
        ):
            return
        new.pointers.remove(pointer)
        if self.submit({source: new}, [self.toy.modify(*source, new, OpKind.FREE, db=db, count=count, type=kind)]):
            if kind == TYPE_XN_DB:
                del self.data[db]
            else:
                del self.nodes[db]
                for s in range(SECTORS):
                    del self.sectors[db, s]

    def op_reference(self) -> None:
        source, (db, s) = self.place(), self.place()
        if len(self.sectors[source].references) == REFERENCES:
            return
        index = self.random.randrange(ELEMENTS)
        changes = {source: self.sectors[source].copy(), (db, s): self.sectors[db, s].copy()}
        changes[source].references.append(element(db, s, index))
        changes[db, s].counts[index] += 1
        self.submit(changes, [self.toy.modify(*key, new) for key, new in changes.items()])

    def op_dereference(self) -> None:
        source = self.pick_sector(lambda sector: sector.references)
        if source is None:
            return
        target = self.random.choice(self.sectors[source].references)
        db, offset = target >> 12 & (1 << 44) - 1, target & 4095
        home = (db, offset // SECTOR)
        changes = {source: self.sectors[source].copy(), home: self.sectors[home].copy()}
        changes[source].references.remove(target)
        changes[home].counts[(offset % SECTOR - 288) // 8] -= 1
        self.submit(changes, [self.toy.modify(*key, new) for key, new in changes.items()])

    def op_move_reference(self) -> None:
        source, target = self.pick_sector(lambda sector: sector.references), self.place()
        if source is None or source == target or len(self.sectors[target].references) == REFERENCES:
            return
        changes = {source: self.sectors[source].copy(), target: self.sectors[target].copy()}
        reference = self.random.choice(changes[source].references)
        changes[source].references.remove(reference)
        changes[target].references.append(reference)
        self.submit(changes, [self.toy.modify(*key, new) for key, new in changes.items()])

    def op_publish(self) -> None:
        if not self.data:
            return
        block = self.random.choice(list(self.data))
        db, s, count = self.data[block]
        generation = next(p[3] for p in self.sectors[db, s].pointers if p[0] == block)
        index = self.random.randrange(count)
        page = self.toy.page(stamp(generation))
        self.toy.transact(Op(OpKind.PUBLISH, da(db), s, db=block + index, count=1, page=page))

    def op_write(self) -> None:
        blocks = [*self.nodes, *(db + i for db, (_, _, count) in self.data.items() for i in range(count))]
        some = self.random.sample(blocks, self.random.randint(1, min(6, len(blocks))))
        some = [db for db in some if self.toy.entry(db) is not None]
        mask = self.random.choice([0, 0, 0, self.random.randrange(1, 256)])
        try:
            self.toy.env.call("writebackv", DEV, data=pack_extents([(db, 1, mask) for db in some]))
        except (Tainted, RuntimeError, MediaError):
            pass

    def op_write_many(self) -> None:
        for _ in range(4):
            self.op_write()

    def op_flush(self) -> None:
        try:
            self.toy.flush()
        except RuntimeError:
            pass  # its I/O is held: it completes later

    def op_hold(self) -> None:
        self.local.hold_io = True

    def op_release(self) -> None:
        self.local.hold_io = False
        self.local.release_io(lambda request: self.random.random() < 0.5 or request.op == IoOp.READ)
        self.local.hold_io = self.random.random() < 0.3
        if not self.local.hold_io:
            self.local.release_io()
        self.local.pump()

    def step(self) -> None:
        names = [name for name in dir(self) if name.startswith("op_")]
        getattr(self, self.random.choice(names))()

    def come_to_rest(self) -> None:
        """Nothing deadlocks: all can be written, and the disk then holds exactly what the model says."""
        self.local.hold_io = False
        self.local.release_io()
        self.local.pump()
        for block, (db, s, count) in self.data.items():
            generation = next(p[3] for p in self.sectors[db, s].pointers if p[0] == block)
            for b in range(block, block + count):
                entry = self.toy.entry(b)
                if entry is not None and not entry.flags & Flag.VALID:
                    page = self.toy.page(stamp(generation))
                    self.toy.transact(Op(OpKind.PUBLISH, da(db), s, db=b, count=1, page=page))
        self.local.stop()
        report = recover.reconstruct(self.local.disk.read_block, self.local.disk.nblocks)
        assert report.sound and report.was_clean and not report.over_counts
        assert report.leaked == 0
        assert report.trees["toy"] == len(self.nodes) + sum(count for _, _, count in self.data.values())
        for (db, s), sector in self.sectors.items():
            raw = self.local.disk.read_sectors(db * SECTORS + s, 1)
            assert Sector.unpack(raw).pack() == sector.pack()

    # ---- what a crash would leave

    def look(self) -> None:
        """Reconstruct from the disk as it could be after a crash now."""
        disk = self.local.disk
        overlay: dict[int, bytes] = {}
        chance = self.random.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        window = list(disk.unflushed)
        for request in self.local.held:
            if request.op == IoOp.WRITE:
                sector = request.sector
                for page, first, count in request.iov:
                    raw = bytes(self.local.kernel.pages.span(page, first, count))
                    for at in range(0, len(raw), SECTOR):
                        window.append((sector, raw[at : at + SECTOR]))
                        sector += 1
        for sector, raw in window:
            if self.random.random() < chance:
                overlay[sector] = raw

        def read_block(db: int) -> bytes:
            raw = bytearray(disk.durable[db * BLOCK : (db + 1) * BLOCK])
            for s in range(SECTORS):
                if (found := overlay.get(db * SECTORS + s)) is not None:
                    raw[s * SECTOR : (s + 1) * SECTOR] = found
            return bytes(raw)

        report = recover.reconstruct(read_block, disk.nblocks)
        assert report.sound, (report.violations, report.unmarked)
        self.images += 1
        todo = [(self.toy.root, 0)]
        while todo:
            db, generation = todo.pop()
            raw = read_block(db)
            for s in range(SECTORS):
                sector = Sector.unpack(raw[s * SECTOR : (s + 1) * SECTOR])
                assert sector.generation in (0, generation), f"node {db} is another's"
                for block, count, kind, pointed in sector.pointers:
                    if kind == self.toy.type:
                        todo.append((block, pointed))
                        continue
                    for b in range(block, block + count):
                        magic, contents = STAMP.unpack_from(read_block(b))
                        assert magic == b"contents", f"block {b} shows bytes that nobody wrote"
                        assert contents == pointed, f"block {b} of generation {pointed} has contents of {contents}"


@pytest.mark.parametrize("seed", range(24))
def test_no_crash_breaks_an_invariant(seed: int) -> None:
    world = Anarchist(seed)
    for _ in range(250):
        world.step()
        if world.random.random() < 0.3:
            world.look()
    world.come_to_rest()
    assert world.images > 40
