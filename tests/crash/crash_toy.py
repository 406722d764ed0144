"""The toy file system of tests/xn as a part of a crash run, with its model.

A node's pointers carry generations, data blocks are full of them: a pointer that leads to anything but what it was made
for shows.  Of each sector of a node any of the versions since the last promise may be found.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toy import SECTORS, Sector, Toy, da, element

from xok_host.abi.calls import Op, OpKind
from xok_host.abi.errors import Tainted, WouldCycle
from xok_host.abi.types import BLOCK, SECTOR, TYPE_XN_DB
from xok_host.kernel.xn import recover

STAMP = struct.Struct("<8sQ")
Place = tuple[int, int, int]
"""(block, generation of the pointer to it, sector)"""


def stamp(generation: int) -> bytes:
    return STAMP.pack(b"toy data", generation) * (BLOCK // STAMP.size)


@dataclass(frozen=True, slots=True)
class ToyExpect:
    """What each sector of each node may be."""

    sectors: dict[Place, tuple[bytes, ...]]

    def key(self) -> Any:
        return tuple(self.sectors.items())


class ToyWorld:
    """A toy volume: nodes, data blocks and references, made durable by hand."""

    def __init__(self, xok: Any, name: str, on_mark: Callable[[bool], None]) -> None:
        self.name = name
        self.toy = Toy(xok, name)
        self._on_mark = on_mark
        self.generation = 0
        self.nodes: dict[int, int] = {}
        """Block → generation."""
        self.sectors: dict[Place, list[bytes]] = {}
        self._node(self.toy.root, 0)

    def expect(self) -> ToyExpect:
        return ToyExpect({place: tuple(history) for place, history in self.sectors.items()})

    def mark(self, promise: bool = False) -> None:
        self._on_mark(promise)

    # ---- operations

    def _node(self, db: int, generation: int) -> None:
        self.nodes[db] = generation
        for s in range(SECTORS):
            self.sectors[db, generation, s] = [Sector().pack()]

    def _transact(self, changes: dict[tuple[int, int], Sector], ops: list[Op]) -> None:
        """One transaction; the model follows.  If it would close a cycle, all is made durable first."""
        for attempt in range(2):
            for (db, s), new in changes.items():
                self.sectors[db, self.nodes[db], s].append(new.pack())
            self.mark()
            try:
                self.toy.transact(*ops)
                return
            except WouldCycle:
                assert not attempt
                for db, s in changes:
                    self.sectors[db, self.nodes[db], s].pop()
                self.promise()

    def _changed(self, db: int, s: int) -> Sector:
        sector = self.toy.sector(db, s)
        sector.generation = self.nodes[db]
        return sector

    def add(self, db: int, s: int, *, node: bool = False) -> int:
        """A new block below a node's sector; its number."""
        from xok_host.abi.calls import OpFlag

        self.generation += 1
        block = self.toy.free_block()
        new = self._changed(db, s)
        kind = self.toy.type if node else TYPE_XN_DB
        new.pointers.append((block, 1, kind, self.generation))
        fields: dict[str, int] = {"db": block, "count": 1, "type": kind}
        if node:
            self._node(block, self.generation)
        else:
            fields |= {"page": self.toy.page(stamp(self.generation)), "flags": int(OpFlag.PAGES)}
        self._transact({(db, s): new}, [self.toy.modify(db, s, new, OpKind.ALLOC, **fields)])
        return block

    def remove(self, db: int, s: int, block: int) -> None:
        new = self._changed(db, s)
        gone = next(pointer for pointer in new.pointers if pointer[0] == block)
        new.pointers.remove(gone)
        op = self.toy.modify(db, s, new, OpKind.FREE, db=block, count=gone[1], type=gone[2])
        self._transact({(db, s): new}, [op])

    def refer(self, at: tuple[int, int], to: tuple[int, int], index: int) -> None:
        source, target = self._changed(*at), self._changed(*to)
        source.references.append(element(*to, index))
        target.counts[index] += 1
        self._both(at, source, to, target)

    def dereference(self, at: tuple[int, int], to: tuple[int, int], index: int) -> None:
        source, target = self._changed(*at), self._changed(*to)
        source.references.remove(element(*to, index))
        target.counts[index] -= 1
        self._both(at, source, to, target)

    def _both(self, at: tuple[int, int], source: Sector, to: tuple[int, int], target: Sector) -> None:
        ops = [Op(OpKind.MODIFY, da(db), s, writes=[(s * SECTOR, new.pack())]) for (db, s), new in
               ((at, source), (to, target))]  # fmt: skip
        self._transact({at: source, to: target}, ops)

    def write(self, *blocks: int) -> None:
        """Write some blocks, in whatever order XN lets them; nothing is promised."""
        try:
            self.toy.writeback(*blocks)
        except Tainted:
            pass

    def promise(self) -> None:
        """Everything durable."""
        self.toy.local.sync()
        for place, history in list(self.sectors.items()):
            if self.nodes.get(place[0]) == place[1]:
                self.sectors[place] = history[-1:]
            else:
                del self.sectors[place]
        self.mark(True)

    # ---- what a crash left

    def check(self, read_block: Callable[[int], bytes], report: recover.Report, expect: ToyExpect) -> None:
        """Raises AssertionError."""
        root = report.catalogue.get(self.name)
        assert root is not None, f"{self.name} is gone"
        todo = [(root.db, 0)]
        while todo:
            db, generation = todo.pop()
            raw = read_block(db)
            for s in range(SECTORS):
                part = raw[s * SECTOR : (s + 1) * SECTOR]
                allowed = expect.sectors.get((db, generation, s), ())
                assert part in allowed, f"sector {s} of node {db} (generation {generation}) is nothing that it was"
                for block, count, kind, pointed in Sector.unpack(part).pointers:
                    if kind == root.type:
                        todo.append((block, pointed))
                        continue
                    for b in range(block, block + count):
                        assert read_block(b) == stamp(pointed), f"data block {b} is not of generation {pointed}"
