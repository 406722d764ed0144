"""XN as docs/xn.md and the call table describe it, in plain Python: what a transaction may do, and what it leaves.

The model knows trees, nodes (the toy file system's, as values), data blocks, who holds which capability, page and lock.
`judge` gives the errors that are due: when several things are wrong with a call, xokd may name any of them; when
nothing is, it must succeed, except for refusals that depend on the order of writes (`may`).  Of the exposed tables it
uses the free map and the registry, as a libFS would: model_invariants holds these against what is owned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from toy import DEV, Sector, da, element

from xok_host.abi import errors as e
from xok_host.abi.calls import Op, OpFlag, OpKind
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB, TYPE_XN_TYPE, Flag, Right
from xok_host.kernel.local import LocalEnvironment

NO_PARTITION = 0xFFFF_FFFF
EXCLUSIVE = 2
Errors = set[type[e.XokError]]

SHAPES: dict[str, list[tuple[OpKind, ...]]] = {
    "alloc": [(OpKind.ALLOC,)],
    "free": [(OpKind.FREE,), (OpKind.DROP_EDGE,), (OpKind.DROP_EDGE, OpKind.MODIFY)],
    "add_edge": [(OpKind.ADD_EDGE,), (OpKind.ADD_EDGE, OpKind.MODIFY)],
    "set_type": [(OpKind.SET_TYPE,)],
    "move": [(OpKind.MODIFY, OpKind.MOVE)],
    "swap": [(OpKind.MOVE, OpKind.MOVE)],
}


@dataclass
class Tree:
    name: str
    db: int
    count: int
    type: int
    id: int
    """Its capability."""
    temporary: bool
    uid: int


@dataclass(eq=False)
class Holder:
    """An environment, and what it holds."""

    env: LocalEnvironment
    uid: int
    caps: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Index to (tree capability, rights)."""
    pages: dict[int, int] = field(default_factory=dict)
    """Unpublished page to the tree that it is for."""
    pins: Counter[int] = field(default_factory=Counter)

    def tree(self, index: int, rights: int) -> int | None:
        tree, held = self.caps.get(index, (0, 0))
        return tree if tree and held & rights == rights else None


@dataclass
class Change:
    """What a transaction leaves, if it succeeds."""

    sectors: dict[int, list[Sector]] = field(default_factory=dict)
    born: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Block to (tree, type, page or -1)."""
    gone: set[int] = field(default_factory=set)
    pages: set[int] = field(default_factory=set)
    filled: dict[int, bytes] = field(default_factory=dict)
    """Data block to new contents."""


def units(pointers: Sequence[tuple[int, int, int, int]]) -> Counter[tuple[int, int]]:
    """(block, type) of everything that the pointers own."""
    return Counter((db + i, kind) for db, count, kind, _ in pointers for i in range(min(count, 1 << 14)))


class Model:
    def __init__(self, nblocks: int, node_type: int) -> None:
        self.nblocks = nblocks
        self.node_type = node_type
        self.types = {TYPE_XN_DB, node_type}
        self.trees: dict[str, Tree] = {}
        self.names: dict[str, int] = {}
        """Types and reservations: name to uid of who reserved it, or -1."""
        self.nodes: dict[int, list[Sector]] = {}
        self.data: dict[int, bytes | None] = {}
        """Data blocks to what they hold; None: never said."""
        self.tree_of: dict[int, int] = {}
        self.locks: dict[int, dict[Holder, int]] = {}
        self.waiting: dict[int, list[tuple[Holder, int]]] = {}

    # ---- what libFSes see

    def entry(self, who: Holder, db: int):  # type: ignore[no-untyped-def]
        return who.env.registry.lookup(da(db) >> 12)

    def valid(self, who: Holder, db: int) -> bool:
        found = self.entry(who, db)
        return found is not None and found.flags & Flag.VALID != 0

    def is_free(self, who: Holder, db: int, count: int) -> bool:
        return all(who.env.freemaps[DEV].is_free(block) for block in range(db, db + min(count, self.nblocks + 1)))

    # ---- what calls about one block may fail with

    def access(self, who: Holder, address: int, index: int, right: int) -> Errors:
        found: Errors = set()
        tree = who.tree(index, right)
        if tree is None:
            found.add(e.BadCapability)
        if address >> 56 != DEV:
            found.add(e.NotFound)
            return found
        db = address >> 12 & (1 << 44) - 1
        if not self.valid(who, db):
            found.add(e.NotInCore)
        elif tree is not None and self.tree_of.get(db) != tree:
            found.add(e.BadCapability)
        elif tree is not None and self.entry(who, db).flags & Flag.QUARANTINE:
            found.add(e.BadCapability)
        return found

    def locked(self, who: Holder, db: int) -> bool:
        return any(mode == EXCLUSIVE and holder is not who for holder, mode in self.locks.get(db, {}).items())

    def temporary(self, db: int) -> bool:
        return any(tree.temporary and tree.id == self.tree_of.get(db) for tree in self.trees.values())

    # ---- transactions

    def judge(self, who: Holder, index: int, ops: Sequence[Op], call: str) -> tuple[Errors, Errors, Change]:
        """(errors due, errors that it may give besides, what it changes)."""
        judged = _Judged(self, who, index)
        judged.parse(ops)
        if not ops:
            judged.errors.add(e.BadCall)
        kinds = tuple(op.kind for op in ops if op.kind != OpKind.WITNESS)
        if call in SHAPES and kinds not in SHAPES[call]:
            judged.errors.add(e.BadCall)
        if (
            call == "swap"
            and kinds == SHAPES["swap"][0]
            and any(one.page >> 12 != other.da >> 12 for one, other in zip(ops, reversed(ops), strict=True))
        ):
            judged.errors.add(e.BadCall)
        judged.ownership()
        judged.references()
        judged.frees()
        judged.pages()
        return judged.errors, judged.may, judged.change

    def apply(self, who: Holder, change: Change) -> None:
        for db in change.gone:
            self.nodes.pop(db, None)
            self.data.pop(db, None)
            self.tree_of.pop(db, None)
            self.locks.pop(db, None)
        for db, (tree, kind, _) in change.born.items():
            self.tree_of[db] = tree
            if kind == TYPE_XN_DB:
                self.data[db] = None
        self.nodes.update(change.sectors)
        self.data.update(change.filled)
        for page in change.pages:
            del who.pages[page]


class _Judged:
    """One transaction under judgement: bytes as it would leave them, and what it claims."""

    def __init__(self, model: Model, who: Holder, index: int) -> None:
        self.model = model
        self.who = who
        self.errors: Errors = set()
        self.may: Errors = set()
        self.change = Change()
        self.tree = who.tree(index, Right.WRITE)
        if self.tree is None:
            self.errors.add(e.BadCapability)
        self.raw: dict[int, bytearray] = {}
        self.touched: dict[tuple[int, int], None] = {}
        self.unions: set[int] = set()
        self.allocs: list[tuple[Op, tuple[int, int]]] = []
        self.freed: list[tuple[Op, tuple[int, int]]] = []
        self.publishes: list[tuple[Op, tuple[int, int] | None]] = []
        self.claims: list[tuple[Op, tuple[int, int]]] = []
        self.plain: dict[int, bytearray] = {}
        self.before: dict[tuple[int, int], Sector] = {}
        self.after: dict[tuple[int, int], Sector] = {}

    def parse(self, ops: Sequence[Op]) -> None:
        for op in ops:
            if not OpKind.MODIFY <= op.kind <= OpKind.MOVE or op.flags & ~7:
                self.errors.add(e.BadCall)
            elif op.da >> 56 != DEV:
                self.errors |= {e.NotFound, e.BadCall}  # the second: another one's device was another
            elif op.kind == OpKind.PUBLISH and self.root_data(op):
                pass
            elif op.kind == OpKind.WITNESS:
                self.errors |= self.block(op.da >> 12 & (1 << 44) - 1, plain=False)
            else:
                self.operation(op)

    def root_data(self, op: Op) -> bool:
        """PUBLISH into a root of plain data."""
        model = self.model
        roots = [tree for tree in model.trees.values() if tree.type == TYPE_XN_DB]
        root = next((tree for tree in roots if tree.db <= op.db < tree.db + tree.count), None)
        if root is None or model.entry(self.who, op.db) is None:
            return False
        if op.writes or op.dependents or not op.count:
            self.errors.add(e.BadCall)
        if op.db + op.count > root.db + root.count:
            self.errors.add(e.NotInCore)
        if any(model.locked(self.who, db) for db in range(op.db, min(op.db + op.count, root.db + root.count))):
            self.errors.add(e.Locked)
        if self.tree is not None and self.tree != root.id:
            self.errors.add(e.BadCapability)
        self.publishes.append((op, None))
        return True

    def block(self, db: int, *, plain: bool) -> Errors:
        """What is wrong with naming this block."""
        if db in self.raw and db in self.change.born:
            return set()
        model, found = self.model, set[type[e.XokError]]()
        if not model.valid(self.who, db):
            return {e.NotInCore}
        entry = model.entry(self.who, db)
        if db not in model.nodes or entry.flags & Flag.QUARANTINE:
            if not plain:
                found.add(e.WrongType)
        if entry.flags & Flag.QUARANTINE or self.tree is not None and model.tree_of.get(db) != self.tree:
            found.add(e.BadCapability)
        if model.locked(self.who, db):
            found.add(e.Locked)
        return found

    def operation(self, op: Op) -> None:
        model, db = self.model, op.da >> 12 & (1 << 44) - 1
        wrong = self.block(db, plain=op.kind == OpKind.WRITEB)
        self.errors |= wrong
        if op.kind == OpKind.WRITEB and op.own_id != NO_PARTITION:
            self.errors.add(e.BogusPartition)
        if wrong:
            return
        if op.dependents:  # no partitions overlap here
            self.errors.add(e.WrongType)
        if op.kind != OpKind.WRITEB and op.own_id == NO_PARTITION:
            if any(data for _, data in op.writes) or op.kind not in (OpKind.MODIFY, OpKind.SET_TYPE):
                self.errors.add(e.BogusPartition)
            return
        if op.kind == OpKind.WRITEB:
            self.write_plain(op, db)
            return
        if op.own_id >= SECTORS:
            self.errors.add(e.BogusPartition)
            return
        place = (db, op.own_id)
        if db not in self.raw:
            self.raw[db] = bytearray(b"".join(sector.pack() for sector in model.nodes[db]))
        self.touched[place] = None
        for offset, data in op.writes:
            if data and not op.own_id * SECTOR <= offset <= offset + len(data) <= (op.own_id + 1) * SECTOR:
                self.errors.add(e.BogusPartition)
                return
            self.raw[db][offset : offset + len(data)] = data
        if op.kind == OpKind.SET_TYPE:
            self.unions.add(db)
        elif op.kind in (OpKind.ADD_EDGE, OpKind.DROP_EDGE, OpKind.MOVE):
            if op.kind == OpKind.MOVE and not op.count:
                self.errors.add(e.BadCall)
            self.claims.append((op, place))
        elif op.kind != OpKind.MODIFY:
            self.extent(op, place)

    def write_plain(self, op: Op, db: int) -> None:
        if db in self.model.nodes or db in self.raw:
            if any(data for _, data in op.writes):  # every byte of a node is in a partition
                self.errors.add(e.BogusPartition)
            return
        held = self.model.data[db]
        raw = self.plain.setdefault(db, bytearray(held if held is not None else BLOCK))
        for offset, data in op.writes:
            if offset + len(data) > BLOCK:
                self.errors.add(e.BogusPartition)
                return
            raw[offset : offset + len(data)] = data
        if held is not None:
            self.change.filled[db] = bytes(raw)

    def extent(self, op: Op, place: tuple[int, int]) -> None:
        model = self.model
        if not op.count or op.db + op.count > model.nblocks:
            self.errors.add(e.BadCall)
            return
        if op.kind == OpKind.FREE:
            self.freed.append((op, place))
            return
        if op.kind == OpKind.PUBLISH:
            self.publishes.append((op, place))
            return
        if not model.is_free(self.who, op.db, op.count):
            self.errors.add(e.NotFree)
        if op.type not in model.types or op.type == TYPE_XN_TYPE:
            self.errors.add(e.WrongType)
            return
        node = op.type == model.node_type
        if node and op.flags & OpFlag.PAGES:
            self.errors.add(e.BadCall)
        for block in range(op.db, op.db + op.count):
            if block in self.change.born:
                self.errors |= {e.NotFree, e.BogusUpdate}
            elif self.tree is not None:
                self.change.born[block] = (self.tree, op.type, op.page if op.flags & OpFlag.PAGES else -1)
                if node:
                    self.raw[block] = bytearray(BLOCK)
                elif op.flags & OpFlag.ZERO and not op.flags & OpFlag.PAGES:
                    self.change.filled[block] = bytes(BLOCK)
        self.allocs.append((op, place))

    def sector(self, place: tuple[int, int]) -> tuple[Sector, Sector]:
        db, part = place
        old = Sector() if db in self.change.born else self.model.nodes[db][part]
        return old, Sector.unpack(bytes(self.raw[db][part * SECTOR : (part + 1) * SECTOR]))

    def ownership(self) -> None:
        """TXN-3: what is owned grows by what is allocated and shrinks by what is freed."""
        gained, lost = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        gains: dict[tuple[int, int], Counter[tuple[int, int]]] = {}
        losses: dict[tuple[int, int], Counter[tuple[int, int]]] = {}
        for place in self.touched:
            old, new = self.before[place], self.after[place] = self.sector(place)
            was, now = units(old.pointers), units(new.pointers)
            if len({db for db, _ in now}) != sum(now.values()):
                self.errors |= {e.UdfFailed, e.BogusUpdate}
            gains[place], losses[place] = now - was, was - now
            gained += gains[place]
            lost += losses[place]
            if place[0] in self.unions and now != was:
                self.errors.add(e.BogusUpdate)
            if any(not 0 < db < db + count <= 1 << 44 for db, count, _, _ in new.pointers):
                self.errors |= {e.UdfFailed, e.BogusUpdate}
        self.change.sectors = {
            db: [Sector.unpack(bytes(raw[at : at + SECTOR])) for at in range(0, BLOCK, SECTOR)]
            for db, raw in self.raw.items()
        }
        allocated = Counter((op.db + i, op.type) for op, _ in self.allocs for i in range(op.count))
        released = Counter[tuple[int, int]]()
        for op, place in self.freed:
            kinds = dict(losses[place])
            for block in range(op.db, op.db + op.count):
                kind = op.type or next((kind for db, kind in kinds if db == block), 0)
                released[block, kind] += 1
                if (block, kind) not in losses[place]:
                    self.errors |= {e.BogusUpdate, e.WrongType}
                self.change.gone.add(block)
        if gained - lost != allocated or lost - gained != released or any(count > 1 for count in gained.values()):
            self.errors.add(e.BogusUpdate)
        for op, place in self.allocs:
            if any((op.db + i, op.type) not in gains[place] for i in range(op.count)):
                self.errors.add(e.BogusUpdate)
        moved = gained & lost
        if moved:
            self.may.add(e.WouldCycle)
            if any(kind == self.model.node_type for _, kind in moved):
                self.may.add(e.BogusUpdate)  # a crash could lose it
        for op, place in self.claims:
            if op.kind != OpKind.MOVE:
                continue
            source = op.page >> 12 & (1 << 44) - 1
            left = [units for (db, _), units in losses.items() if db == source and op.page >> 56 == DEV]
            for block in range(op.db, op.db + min(op.count, self.model.nblocks)):
                here = [kind for db, kind in gains[place] if db == block and op.type in (0, kind)]
                if not here or not any((block, here[0]) in units for units in left):
                    self.errors.add(e.BogusUpdate)
        self.gained_by = gains

    def references(self) -> None:
        """TXN-4, and what ADD_EDGE and DROP_EDGE say."""
        counts, edges = Counter[int](), Counter[int]()
        mine: dict[tuple[int, int], Counter[int]] = {}
        for place in self.touched:
            old, new = self.before[place], self.after[place]
            change = Counter[int](new.references)
            change.subtract(old.references)
            mine[place] = change
            edges.update(change)
            for index, (was, now) in enumerate(zip(old.counts, new.counts, strict=True)):
                counts[element(*place, index)] += now - was
        if any(counts[target] != edges[target] for target in {*counts, *edges}):
            self.errors.add(e.RefcountWrong)
        if any(change for change in edges.values()) or any(any(change.values()) for change in mine.values()):
            self.may |= {e.WouldCycle}
        said = Counter[tuple[tuple[int, int], int]]()
        for op, place in self.claims:
            if op.kind != OpKind.MOVE:
                said[place, op.db] += 1 if op.kind == OpKind.ADD_EDGE else -1
        for op, place in self.claims:
            if op.kind != OpKind.MOVE and mine[place][op.db] != said[place, op.db]:
                self.errors.add(e.BogusUpdate)

    def frees(self) -> None:
        """TXN-5: freed metadata is in core, and empty."""
        model = self.model
        for op, _ in self.freed:
            self.may.add(e.WouldCycle)
            for db in range(op.db, op.db + op.count):
                if db not in model.nodes or (op.type and op.type != model.node_type):
                    if op.type not in (0, *model.types):
                        self.errors.add(e.WrongType)
                    continue
                if not model.valid(self.who, db):
                    self.errors.add(e.NotInCore)
                if model.locked(self.who, db):
                    self.errors.add(e.Locked)
                left = self.change.sectors.get(db, model.nodes[db])
                if any(sector.pointers for sector in left):
                    self.errors.add(e.BogusUpdate)
                if any(sector.references or any(sector.counts) for sector in left):
                    self.errors.add(e.RefcountWrong)

    def pages(self) -> None:
        """Pages given are the caller's, for that tree, and given once."""
        used = Counter[int]()
        for op, place in [*self.publishes, *(item for item in self.allocs if item[0].flags & OpFlag.PAGES)]:
            if op.kind == OpKind.PUBLISH and place is not None:
                now = units(self.after[place].pointers)
                blocks = range(op.db, op.db + op.count)
                if any((db, TYPE_XN_DB) not in now for db in blocks):
                    self.errors.add(e.BogusUpdate)
                if any(db in self.raw or db in self.plain for db in blocks):
                    self.errors.add(e.BadCall)
                if any(self.model.locked(self.who, db) for db in blocks):
                    self.errors.add(e.Locked)
            for i in range(min(op.count, self.model.nblocks)):
                used[op.page + i] += 1
                if self.tree is None or self.who.pages.get(op.page + i) != self.tree:
                    self.errors.add(e.BadCapability)
                else:
                    self.change.pages.add(op.page + i)
                    self.change.filled[op.db + i] = bytes(self.who.env.local.page_bytes(op.page + i))
        if any(count > 1 for count in used.values()):
            self.errors.add(e.BadCapability)
