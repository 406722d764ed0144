"""Environments of different rights drive every row of the call table, against the model.

`World.step(name, dice)` makes one call of that name, with operands that `dice` picks: often right, often wrong in one
thing.  The outcome must be what the model says; a refused call must have changed nothing; model_invariants must hold.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import model_invariants as invariants
from model_xn import EXCLUSIVE, Errors, Holder, Model, Tree, units
from toy import COUNTS_AT, DEV, ELEMENTS, POINTERS, REFERENCES, Sector, da, element, install_type, template

from xok_host.abi import errors as e
from xok_host.abi import ops as build
from xok_host.abi.calls import (
    TEMPORARY_ROOT,
    CatalogueEntry,
    Event,
    Op,
    OpKind,
    pack_extents,
    pack_transaction,
)
from xok_host.abi.calltable import BY_NAME, COMMON
from xok_host.abi.ops import Extent, Part
from xok_host.abi.types import ALL_SECTORS, BLOCK, SECTOR, SECTORS, TYPE_XN_DB, Flag, Right, disk_address
from xok_host.abi.views import REGISTRY_ENTRY_BYTES
from xok_host.kernel.capability import TREE, Capability
from xok_host.kernel.local import LocalXok

NBLOCKS = 384
NAMES = ("one", "two", "temp", "raw", "more", "some", "type", "held")
READ, WRITE = int(Right.READ), int(Right.WRITE)
WRITTEN_ALTHOUGH_REFUSED = ("writeback", "writebackv")
"""The sectors that need not wait are written, as their rows say."""
Ok = Callable[[Any], None]


def nothing(done: Any) -> None:
    """A call that changes nothing that the model knows of."""


class World:
    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.local = LocalXok(NBLOCKS, seed=seed, max_chunks=24, entries=1 << 9)
        self.device = self.local.kernel.devices[DEV]
        self.seen: Counter[tuple[str, str]] = Counter()
        self.uids = 1000
        self.versions = 0
        self.row = ""
        self.right = False
        maker = self.local.environment(uid=1)
        node = install_type(maker, "node", template("node"))
        self.model = Model(NBLOCKS, node)
        self.model.names["node"] = -1
        maker.close()
        self.holders: list[Holder] = []
        for _ in range(3):
            self.born()
        first, second, _ = self.holders
        for who, name, kind in ((first, "one", node), (second, "two", node), (second, "temp", node | TEMPORARY_ROOT)):
            self.install(who, name, 0, 1, kind)
        self.install(second, "raw", 0, 2, TYPE_XN_DB)
        tree = self.model.trees["one"]
        self.grant(second, Capability(TREE, tree.id, Right.READ, "one"))  # reads what the first one writes
        self.check()

    # ---- who there is

    def born(self, caps: tuple[Capability, ...] = ()) -> Holder:
        self.uids += 1
        env = self.local.environment(caps, uid=self.uids)
        who = Holder(env, self.uids, {held.index: (held.id, int(held.rights)) for held in env.caps})
        self.holders.append(who)
        return who

    def grant(self, who: Holder, capability: Capability) -> None:
        index = who.env.kernel_env.capabilities.add(capability)
        who.caps[index] = (capability.id, int(capability.rights))

    def install(self, who: Holder, name: str, db: int, count: int, kind: int) -> None:
        done = who.env.call("install_mount", DEV, db, count, kind, data=name.encode())
        self.installed(who, name, count, kind, done)

    def installed(self, who: Holder, name: str, count: int, kind: int, done: Any) -> None:
        model, plain = self.model, kind & ~TEMPORARY_ROOT
        held = next(cap for cap in who.env.caps if cap.index == done.r1)
        assert held.rights == READ | WRITE | Right.GRANT
        assert held.id not in {tree.id for tree in model.trees.values()}
        who.caps[done.r1] = (held.id, int(held.rights))
        model.trees[name] = Tree(name, done.r0, count, plain, held.id, kind != plain, who.uid)
        for block in range(done.r0, done.r0 + count):
            assert block not in model.tree_of, f"block {block} is given to a second root"
            model.tree_of[block] = held.id
            if plain == TYPE_XN_DB:
                model.data[block] = bytes(BLOCK)
            else:
                model.nodes[block] = [Sector() for _ in range(SECTORS)]

    # ---- one call

    def step(self, name: str, dice: int) -> None:
        self.random = random.Random(dice)
        self.row = name
        self.right = self.random.random() < 0.5
        able = [who for who in self.holders if self.right and who.caps]
        getattr(self, f"do_{name}")(self.random.choice(able or self.holders))
        self.events()
        self.check()

    def expect(
        self,
        who: Holder,
        errors: Errors,
        *scalars: int,
        cap: int = 0,
        data: bytes = b"",
        room: int = 1 << 14,
        may: Errors | None = None,
        then: Ok = nothing,
        name: str = "",
    ) -> bool:
        """Make the call; what it must do if it succeeds is checked and noted by `then`."""
        name = name or self.row
        before = invariants.state(self.local)
        done = who.env.wait(who.env.submit(name, *scalars, cap=cap, data=data, out_bytes=room))
        refused = type(e.by_code(done.code)) if done.code else None
        self.seen[name, refused.__name__ if refused else "ok"] += 1
        what = f"{name}{scalars} cap {cap}: {refused and refused.__name__} {done.data!r}, due {errors}, may {may}"
        if refused is None:
            assert not errors, what
            then(done)
            return True
        assert refused in BY_NAME[name].fails or refused in COMMON, f"the table does not say so: {what}"
        assert refused in errors or refused in (may or ()), what
        if name not in WRITTEN_ALTHOUGH_REFUSED:
            assert invariants.state(self.local) == before, f"refused, and something changed: {what}"
        return False

    def events(self) -> None:
        """Locks that were lost or given while nobody called."""
        for who in self.holders:
            who.env.dispatch()
            for event, address, _ in who.env.events:
                if event is Event.LOCK_LOST:
                    self.model.locks.get(address >> 12 & (1 << 44) - 1, {}).pop(who, None)
            who.env.events.clear()
        for db, waiters in list(self.model.waiting.items()):
            for who, mode, answer in list(waiters):
                if not answer:
                    continue
                waiters.remove((who, mode, answer))
                if not answer[0].code and who in self.holders:
                    self.model.locks.setdefault(db, {})[who] = mode
        for db, holders in self.model.locks.items():
            modes = list(holders.values())
            assert EXCLUSIVE not in modes or len(modes) == 1, f"block {db} is locked by {modes}"

    def check(self) -> None:
        local, model = self.local, self.model
        owned = invariants.check_blocks(local, model.node_type)
        for db, sectors in model.nodes.items():
            assert owned.get(db) == (model.tree_of[db], model.node_type), f"node {db}: {owned.get(db)}"
            assert invariants.contents(local, db) == b"".join(s.pack() for s in sectors), f"node {db} is not as written"
        for db, raw in model.data.items():
            assert owned.get(db) == (model.tree_of[db], TYPE_XN_DB), f"data block {db}: {owned.get(db)}"
            if raw is not None:
                assert invariants.contents(local, db) == raw, f"data block {db} is not as written"
        extra = {db for db in owned if db not in model.nodes and db not in model.data}
        types = {db for entry in self.device.catalogue.entries() if entry.kind == CatalogueEntry.TYPE
                 for db in range(entry.db, entry.db + entry.count)}  # fmt: skip
        assert extra == types, f"blocks {extra ^ types} are owned, and the model knows nothing of it"
        who = self.random.choice(self.holders)
        invariants.check_strangers(local, who.env, owned)
        invariants.check_tables(local, who.env)
        for who in self.holders:
            assert {held.index: (held.id, int(held.rights)) for held in who.env.caps} == who.caps
            assert set(who.env.kernel_env.pages) == set(who.pages)

    # ---- operands

    def one_in(self, n: int) -> bool:
        """By chance; when the step is to be right, nothing improbable happens: those are the wrong operands."""
        return not (self.right and n > 5) and self.random.randrange(n) == 0

    def cap(self, who: Holder) -> int:
        if who.caps and not self.one_in(8):
            return self.random.choice(list(who.caps))
        return self.random.choice([0, 1, 2, 77, 0xFFFF_FFFF])

    def cap_for(self, who: Holder, db: int) -> int:
        """A capability for the block's tree if there is one; sometimes any."""
        fitting = [index for index, (tree, _) in who.caps.items() if tree == self.model.tree_of.get(db)]
        return self.random.choice(fitting) if fitting and not self.one_in(6) else self.cap(who)

    def db(self) -> int:
        model = self.model
        kinds = [list(model.nodes)] * 4 + [list(model.data)] * 3
        kinds += [[0, 1, 5, NBLOCKS - 1, NBLOCKS, (1 << 44) - 1], [self.random.randrange(NBLOCKS)]]
        return self.random.choice([kind for kind in kinds if kind][self.random.randrange(len([k for k in kinds if k]))])

    def address(self, db: int, offset: int = 0) -> int:
        return disk_address(self.random.choice([0, 2, 255]) if self.one_in(15) else DEV, db, offset)

    def dev(self) -> tuple[int, Errors]:
        if self.one_in(10):
            return self.random.choice([0, 2, 1 << 63, DEV + (1 << 32)]), {e.NotFound}
        return DEV, set()

    def name(self) -> tuple[bytes, Errors]:
        if self.one_in(8):
            return self.random.choice([b"", b"x" * 65, b"\xff", b"a\0b", b"new\n"]), {e.BadCall}
        return self.random.choice([*NAMES, "node"]).encode(), set()

    def extents(self) -> tuple[list[tuple[int, int, int]], bytes, Errors]:
        """Of blocks that libFSes can use: extents, their bytes, what is wrong with them."""
        found = []
        for _ in range(self.random.randint(1, 4)):
            found.append((self.db(), self.random.choice([1, 1, 1, 2, 3, 0]), 0))
        wrong = set[type[e.XokError]]()
        first = self.device.superblock.first
        if any(not count or db < first or db + count > NBLOCKS for db, count, _ in found):
            wrong.add(e.BadCall)
        data = pack_extents(found)
        if self.one_in(15):
            data, wrong = data[:-3], {e.BadCall}
        return found, data, wrong

    # ---- crossings and pages

    def do_null(self, who: Holder) -> None:
        self.expect(who, set(), self.random.getrandbits(64), data=self.random.randbytes(9))

    def do_page_alloc(self, who: Holder) -> None:
        cap, count = self.cap(who), self.random.choice([0, 1, 1, 2, 3, 1025, 1 << 63])
        tree = who.tree(cap, READ | WRITE)
        errors: Errors = set() if tree else {e.BadCapability}
        if not 0 < count <= 1024:
            errors.add(e.BadCall)
        room = 8 * count if count < 100 else 0

        def then(done: Any) -> None:
            assert tree is not None and done.r0 == count
            for (page,) in struct.iter_unpack("<Q", done.data):
                assert not any(page in other.pages for other in self.holders)
                who.pages[page] = tree
                self.local.page_bytes(page)[:] = (b"%7d " % page) * (BLOCK // 8)

        if len(who.pages) < 12:
            self.expect(who, errors, count, cap=cap, room=room, then=then)

    def do_page_free(self, who: Holder) -> None:
        everybody = [page for other in self.holders for page in other.pages]
        cached = [entry.page for entry in self.device.entries() if entry.page < 1 << 40]
        pages = [self.random.choice(list(who.pages) or [9]) for _ in range(self.random.randint(0, 2))]
        if self.one_in(3):
            pages.append(self.random.choice([*everybody, *cached, 1 << 40]))
        good = len(set(pages)) == len(pages) and all(page in who.pages for page in pages)
        data = struct.pack(f"<{len(pages)}Q", *pages)
        errors: Errors = set() if good else {e.BadCapability}
        if self.one_in(8):
            data, errors = data + b"x", {e.BadCall}
        self.expect(who, errors, data=data, then=lambda done: [who.pages.pop(page) for page in pages])

    def do_chunk_map(self, who: Holder) -> None:
        chunks = len(self.local.memory.chunks)
        chunk = self.random.choice([*range(chunks), chunks, 1 << 60])
        if chunk >= chunks:
            self.expect(who, {e.NotFound}, chunk)
            return
        arena = self.local.kernel.pages.chunk(chunk).arena
        mine = arena.writer == who.env.id
        readable = {tree for tree, rights in who.caps.values() if rights & READ}
        may = mine or bool(readable & set(arena.access.read))
        self.expect(who, set() if may else {e.BadCapability}, chunk, then=lambda done: _equal(done.r0, int(mine)))

    def do_pin(self, who: Holder) -> None:
        db = self.db()
        cap, address = self.cap_for(who, db), self.address(db, self.random.choice([0, 7]))
        errors = self.model.access(who, address, cap, READ)
        entry = self.model.entry(who, db)
        generation = entry.generation if entry else 0
        if self.one_in(6):
            generation += 2
            errors.add(e.NotInCore)

        def then(done: Any) -> None:
            assert done.r0 == entry.page
            who.pins[done.r0] += 1

        self.expect(who, errors, address, generation, cap=cap, then=then)

    def do_unpin(self, who: Holder) -> None:
        if self.right and not who.pins:
            self.row = "pin"
            self.do_pin(who)
            self.row = "unpin"
        pinned = [page for other in self.holders for page in other.pins]
        page = self.random.choice([*who.pins, *who.pins, *pinned, 1 << 50])
        errors: Errors = set() if who.pins[page] else {e.NotFound}
        self.expect(who, errors, page, then=lambda done: who.pins.subtract([page]))
        who.pins = +who.pins

    # ---- types and roots

    def do_install_mount(self, who: Holder) -> None:
        model = self.model
        dev, errors = self.dev()
        name, wrong = self.name()
        errors |= wrong
        text = name.decode(errors="replace")
        count = self.random.choice([1, 1, 2, 0, 257])
        db = self.random.choice([0, 0, self.random.randrange(NBLOCKS), NBLOCKS, 1 << 60, *model.tree_of])
        kind = self.random.choice([model.node_type, TYPE_XN_DB, TYPE_XN_DB, 2, 999])
        temporary = self.one_in(3)
        if self.right:
            count, db, kind = self.random.choice([1, 2]), 0, self.random.choice([model.node_type, TYPE_XN_DB])
        if not 0 < count <= 256:
            errors.add(e.BadCall)
        if kind not in model.types:
            errors.add(e.WrongType)
        reserved = model.names.get(text) == who.uid
        if text in model.trees or (text in model.names and not (reserved and kind == TYPE_XN_DB)):
            errors.add(e.Exists)
        if reserved and temporary:
            errors.add(e.WrongType)
        if db and not (db + count <= NBLOCKS and model.is_free(who, db, count)):
            errors.add(e.NotFree)
        whole = kind | TEMPORARY_ROOT if temporary else kind

        def then(done: Any) -> None:
            assert not db or done.r0 == db
            self.model.names.pop(text, None)
            self.installed(who, text, count, whole, done)

        if len(who.caps) < 12:
            self.expect(who, errors, dev, db, count, whole, data=name, may={e.NoSpace} if not db else None, then=then)

    def do_type_import(self, who: Holder) -> None:
        """Mostly refused; `do_new_type` makes good ones."""
        dev, errors = self.dev()
        name, wrong = self.name()
        errors |= wrong
        tree = self.model.trees.get(name.decode(errors="replace"))
        may: Errors = set()
        if tree is None:
            errors |= {e.WrongType} if name.decode(errors="replace") in self.model.names else {e.NotFound}
        else:
            if tree.type != TYPE_XN_DB or tree.temporary:
                errors.add(e.WrongType)
            if tree.id not in {held for held, _ in who.caps.values()}:
                errors.add(e.BadCapability)
            may |= {e.Tainted, e.NotInCore}
            errors.add(e.TypeInvalid)
        self.expect(who, errors, dev, data=name, may=may)

    def do_new_type(self, who: Holder) -> None:
        """The whole way to a type, and to be rid of it."""
        if any(name in self.model.names or name in self.model.trees for name in ("type",)):
            return
        env = who.env
        caps, pages = len(who.caps), set(env.kernel_env.pages)
        if caps > 11 or not self.device.freemap.find(self.device.superblock.first, 2):
            return
        if self.one_in(2):
            env.call("reserve_type", DEV, data=b"type")
        install_type(env, "type", template("type"))
        self.seen["type_import", "ok"] += 1
        held = next(cap for cap in env.caps if cap.index not in who.caps)
        who.caps[held.index] = (held.id, int(held.rights))
        assert set(env.kernel_env.pages) == pages
        env.call("type_mount", DEV, data=b"type")
        self.check()
        env.call("uninstall_mount", DEV, cap=held.index, data=b"type")

    def do_reserve_type(self, who: Holder) -> None:
        dev, errors = self.dev()
        name, wrong = self.name()
        errors |= wrong
        text = name.decode(errors="replace")
        mine = self.model.names.get(text) == who.uid
        if text in self.model.trees or (text in self.model.names and not mine):
            errors.add(e.Exists)

        def then(done: Any) -> None:
            self.model.names[text] = who.uid

        self.expect(who, errors, dev, data=name, then=then)

    def tree_to_read(self, who: Holder) -> tuple[Any, bytes, Any, int, Any]:
        """A device, a name, the tree of that name, a capability for it, and what is wrong with them."""
        dev, errors = self.dev()
        name, wrong = self.name()
        errors |= wrong
        tree = self.model.trees.get(name.decode(errors="replace"))
        cap = self.cap_for(who, tree.db if tree else 0)
        if tree is None:
            errors.add(e.NotFound)
        elif who.tree(cap, READ) != tree.id:
            errors.add(e.BadCapability)
        return dev, name, tree, cap, errors

    def do_mount(self, who: Holder) -> None:
        dev, name, tree, cap, errors = self.tree_to_read(who)

        def then(done: Any) -> None:
            assert tree is not None and (done.r0, done.r1) == (da(tree.db), tree.count)
            assert CatalogueEntry.unpack(done.data).capability == tree.id

        self.expect(who, errors, dev, cap=cap, data=name, then=then)

    def do_type_mount(self, who: Holder) -> None:
        dev, errors = self.dev()
        name, wrong = self.name()
        errors |= wrong
        if name != b"node":
            errors.add(e.NotFound)
        self.expect(who, errors, dev, data=name, then=lambda done: _equal(done.r0, self.model.node_type))

    def do_uninstall_mount(self, who: Holder) -> None:
        model = self.model
        dev, errors = self.dev()
        name, wrong = self.name()
        text = name.decode(errors="replace")
        if self.right:
            text, wrong = "held", set()
            name = text.encode()
            if text not in model.trees and text not in model.names:
                self.install(who, text, 0, 1, TYPE_XN_DB)
        if text in ("one", "two", "temp") and not self.one_in(4):
            return  # they are what everything else is about
        errors |= wrong
        tree = model.trees.get(text)
        cap = self.cap_for(who, tree.db if tree else 0)
        if tree is None and text not in model.names:
            errors.add(e.NotFound)
        elif tree is None:
            if model.names[text] != who.uid:
                errors.add(e.BadCapability)
        else:
            if who.tree(cap, WRITE) != tree.id:
                errors.add(e.BadCapability)
            blocks = range(tree.db, tree.db + tree.count)
            if any(any(s.pointers for s in model.nodes.get(db, ())) for db in blocks):
                errors.add(e.InUse)
            if any(model.locks.get(db) or not model.valid(who, db) or model.entry(who, db).pins for db in blocks):
                errors.add(e.InUse)
        may = {e.InUse} if tree and any(
            any(s.references or any(s.counts) for s in model.nodes.get(db, ()))
            for db in range(tree.db, tree.db + tree.count)
        ) else None  # fmt: skip

        def then(done: Any) -> None:
            if tree is None:
                del model.names[text]
                return
            del model.trees[text]
            for db in range(tree.db, tree.db + tree.count):
                for known in (model.nodes, model.data, model.tree_of, model.locks):
                    known.pop(db, None)  # type: ignore[attr-defined]

        self.expect(who, errors, dev, cap=cap, data=name, may=may, then=then)

    # ---- the buffer cache

    def do_read_and_insert(self, who: Holder) -> None:
        dev, errors = self.dev()
        _, data, wrong = self.extents()
        if self.one_in(2):
            data, wrong = b"", set()
        self.expect(who, errors | wrong, dev, data=data)

    def binding(self, who: Holder, *, in_core: bool) -> None:
        model, parent = self.model, self.db()
        if self.right:
            parent = max(self.random.sample(list(model.nodes) * 3, 3), key=lambda db: len(model.nodes[db][0].pointers))
        cap, address = self.cap_for(who, parent), self.address(parent)
        errors = model.access(who, address, cap, READ)
        if parent in model.data or (parent not in model.nodes and model.entry(who, parent) is not None):
            errors.add(e.WrongType)
        places = [(s, pointer) for s, sector in enumerate(model.nodes.get(parent, ())) for pointer in sector.pointers]
        extents = []
        if in_core and self.right:
            places = [(s, p) for s, p in places if all(model.entry(who, p[0] + i) for i in range(p[1]))]
        for _ in range(self.random.randint(1, 3)):
            if places and not self.one_in(6):
                part, (db, count, _, _) = self.random.choice(places)
                extents.append((db, self.random.randint(1, count), part))
            else:
                extents.append((self.db(), 1, self.random.choice([0, 1, 7, 8, 1 << 31])))
        first = self.device.superblock.first
        if any(db < first or db + count > NBLOCKS for db, count, _ in extents):
            errors.add(e.BadCall)
        for db, count, part in extents:
            owned = {block for block, _ in units(model.nodes[parent][part].pointers)} if (
                parent in model.nodes and part < SECTORS) else set()  # fmt: skip
            if part >= SECTORS:
                errors.add(e.BogusPartition)
            elif not set(range(db, db + count)) <= owned:
                errors.add(e.NotOwned)
            if in_core and any(model.entry(who, block) is None for block in range(db, db + count)):
                errors.add(e.NotInCore)
        data = pack_extents(extents)
        if self.one_in(15):
            data, errors = data + b"?", errors | {e.BadCall}
        self.expect(who, errors, address, cap=cap, data=data)

    def do_insert_attr(self, who: Holder) -> None:
        self.binding(who, in_core=True)

    def do_insert_and_read(self, who: Holder) -> None:
        self.binding(who, in_core=False)

    def do_delete_attr(self, who: Holder) -> None:
        dev, errors = self.dev()
        found, data, wrong = self.extents()
        model, may = self.model, set[type[e.XokError]]()
        clean = [entry.db for entry in self.device.entries() if entry.evictable() and not entry.flags & Flag.ROOT]
        if self.right and clean:
            found, wrong = [(self.random.choice(clean), 1, 0) for _ in range(2)], set()
            data = pack_extents(found)
        for db, count, _ in found:
            for block in range(db, min(db + count, NBLOCKS)):
                entry = model.entry(who, block)
                if entry is None:
                    continue
                busy = entry.dirty | entry.in_flight | entry.written or entry.durable != ALL_SECTORS
                if busy or entry.pins or entry.lock or entry.taint or entry.flags & Flag.ROOT:
                    errors.add(e.InUse)
                if entry.flags & Flag.META:
                    may.add(e.InUse)  # its parent's pointer is not durable
        self.expect(who, errors | wrong, dev, data=data, may=may)

    def writing(self, who: Holder, name: str) -> None:
        model = self.model
        dev, errors = self.dev()
        known = [*model.nodes, *model.data]
        count = 1 if name == "writeback" else self.random.randint(1, 12)
        extents = [
            (self.random.choice(known), 1, self.random.choice([0, 0, 255, self.random.randrange(1, 256)]))
            for _ in range(count)
        ]
        if self.one_in(6):
            extents.append((self.random.choice([NBLOCKS, 0, (1 << 64) - 1, self.random.randrange(NBLOCKS)]), 1, 0))
        if name == "writeback":
            extents = extents[-1:]
        if any(model.entry(who, db) is None if db < 1 << 44 else True for db, _, _ in extents):
            errors.add(e.NotInCore)
        if name == "writeback":
            if self.one_in(10):
                extents, errors = [(extents[0][0], self.random.choice([0, 1 << 40]), 0)], errors | {e.BadCall}
            self.expect(who, errors, dev, *extents[0], may={e.Tainted})
        else:
            self.expect(who, errors, dev, data=pack_extents(extents), may={e.Tainted})

    def do_writeback(self, who: Holder) -> None:
        self.writing(who, "writeback")

    def do_writebackv(self, who: Holder) -> None:
        self.writing(who, "writebackv")

    def do_flush(self, who: Holder) -> None:
        dev, errors = self.dev()
        self.expect(who, errors, dev)

    def do_mark_dirty(self, who: Holder) -> None:
        model = self.model
        dev, errors = self.dev()
        extents = []
        for _ in range(self.random.randint(0, 3)):
            mine = [db for db in model.data if (entry := model.entry(who, db)) and entry.writer == who.env.id]
            db = self.random.choice(mine) if mine and not self.one_in(3) else self.db()
            mask = self.random.choice([0, 1, 255, 255, 256])
            extents.append((db, 1, mask))
            if mask > ALL_SECTORS:
                errors.add(e.BadCall)
            if not model.valid(who, db):
                errors.add(e.NotInCore)
            elif model.entry(who, db).writer != who.env.id:
                errors.add(e.BadCapability)
        self.expect(who, errors, dev, data=pack_extents(extents))

    # ---- transactions

    def sector_of(self, db: int, part: int) -> Sector:
        return self.model.nodes[db][part].copy()

    def place(self, who: Holder) -> tuple[int, int]:
        """A node and one of its sectors, mostly of a tree that the caller may write."""
        trees = {tree for tree, rights in who.caps.values() if rights & WRITE}
        mine = [db for db in self.model.nodes if self.model.tree_of[db] in trees]
        nodes = mine if mine and not self.one_in(8) else list(self.model.nodes)
        if self.row in ("swap", "alloc") and self.right:
            nodes = [db for db in mine if self.model.temporary(db)] or nodes
        return self.random.choice(nodes), self.random.randrange(SECTORS)

    def part(self, db: int, sector: int, new: Sector) -> Part:
        return Part(da(db), sector, [(sector * SECTOR, new.pack())])

    def free_extent(self, who: Holder, count: int) -> int:
        hint = self.random.randrange(1, NBLOCKS)
        return who.env.freemaps[DEV].find_run(hint, count) or 0

    def version(self) -> int:
        self.versions += 1
        return self.versions

    def ops_alloc(self, who: Holder) -> list[Op]:
        (db, s), model = self.place(who), self.model
        new, count = self.sector_of(db, s), self.random.choice([1, 1, 2])
        node = self.one_in(3) and len(model.nodes) < 16
        block = self.free_extent(who, count)
        if self.one_in(10):
            block = self.db()
        extent = Extent(block, 1 if node else count, model.node_type if node else TYPE_XN_DB)
        if len(new.pointers) == POINTERS:
            new.pointers.pop()
        new.pointers.append((block & (1 << 64) - 1, extent.count, extent.type, self.version()))
        page = None
        if not node and self.one_in(2):
            runs = [p for p in who.pages if extent.count == 1 or p + 1 in who.pages]
            page = self.random.choice(runs) if runs else None
        return build.alloc(self.part(db, s, new), extent, zero=page is None and not node and self.one_in(2), page=page)

    def pointer(self, who: Holder) -> tuple[int, int, Sector, tuple[int, int, int, int]] | None:
        """Some pointer that the caller may perhaps remove: (node, sector, the sector without it, it)."""
        trees = {tree for tree, rights in who.caps.values() if rights & WRITE}
        found = [
            (db, s, pointer)
            for db, sectors in self.model.nodes.items()
            for s, sector in enumerate(sectors)
            for pointer in sector.pointers
            if self.model.tree_of[db] in trees or self.one_in(10)
        ]
        if not found:
            return None
        db, s, pointer = self.random.choice(found)
        new = self.sector_of(db, s)
        new.pointers.remove(pointer)
        return db, s, new, pointer

    def ops_free(self, who: Holder) -> list[Op]:
        if self.one_in(3):
            return self.ops_drop(who)
        found = self.pointer(who)
        if found is None:
            return self.ops_alloc(who)
        db, s, new, (block, count, kind, _) = found
        return build.free(self.part(db, s, new), Extent(block, count, self.random.choice([0, kind])))

    def ops_add_edge(self, who: Holder) -> list[Op]:
        (db, s), (at, t) = self.place(who), self.place(who)
        index = self.random.randrange(ELEMENTS)
        source, counter = self.sector_of(db, s), self.sector_of(at, t)
        target = element(at, t, index)
        if (db, s) == (at, t):
            source.counts[index] += 1
        counter.counts[index] += 1
        if len(source.references) < REFERENCES:
            source.references.append(target)
        split = (db, s) != (at, t) and not self.one_in(8)
        return build.add_edge(self.part(db, s, source), target, self.part(at, t, counter) if split else None)

    def ops_drop(self, who: Holder) -> list[Op]:
        named = [
            (db, s, target) for db, sectors in self.model.nodes.items() for s, sector in enumerate(sectors)
            for target in sector.references
        ]  # fmt: skip
        if not named:
            return self.ops_add_edge(who)
        db, s, target = self.random.choice(named)
        at, t = target >> 12 & (1 << 44) - 1, target % BLOCK // SECTOR
        source = self.sector_of(db, s)
        source.references.remove(target)
        index = (target % SECTOR - COUNTS_AT) // 8
        if (db, s) == (at, t):
            source.counts[index] -= 1
            return build.drop_edge(self.part(db, s, source), target)
        counter = self.sector_of(at, t)
        counter.counts[index] -= 1
        return build.drop_edge(self.part(db, s, source), target, self.part(at, t, counter))

    def ops_set_type(self, who: Holder) -> list[Op]:
        db, s = self.place(who)
        new = self.sector_of(db, s)
        new.generation = self.version()
        if self.one_in(5) and new.pointers:
            new.pointers.pop()
        return build.set_type(self.part(db, s, new))

    def ops_move(self, who: Holder) -> list[Op]:
        found = self.pointer(who)
        if found is None:
            return self.ops_set_type(who)
        db, s, old, pointer = found
        at, t = self.place(who)
        if (at, t) == (db, s) or at == pointer[0]:
            return self.ops_set_type(who)
        new = self.sector_of(at, t)
        if len(new.pointers) < POINTERS:
            new.pointers.append(pointer)
        extent = Extent(pointer[0], pointer[1], self.random.choice([0, pointer[2]]))
        return build.move(self.part(db, s, old), self.part(at, t, new), extent)

    def ops_swap(self, who: Holder) -> list[Op]:
        one, other = self.pointer(who), self.pointer(who)
        for _ in range(60 if self.right else 0):  # in two sectors only what is temporary can
            if one is None or other is None or one[:2] != other[:2] and self.model.temporary(one[0]):
                break
            one, other = self.pointer(who), self.pointer(who)
        if one is None or other is None or one[:2] == other[:2]:
            return self.ops_alloc(who) if self.right else self.ops_move(who)
        one[2].pointers.append(other[3])
        other[2].pointers.append(one[3])
        return build.swap(
            self.part(one[0], one[1], one[2]), Extent(*one[3][:2]),
            self.part(other[0], other[1], other[2]), Extent(*other[3][:2]),
        )  # fmt: skip

    def ops_steal(self, who: Holder) -> list[Op]:
        """A pointer to what is another's, or twice to one's own, with no allocation or one of something else."""
        (db, s), block = self.place(who), self.db()
        new = self.sector_of(db, s)
        if len(new.pointers) < POINTERS:
            new.pointers.append((block, self.random.choice([1, 1, 2, 1 << 31]), self.random.choice(
                [TYPE_XN_DB, self.model.node_type, 2]), self.version()))  # fmt: skip
        if self.one_in(2):
            return [Op(OpKind.MODIFY, *_named(self.part(db, s, new)))]
        return build.alloc(self.part(db, s, new), Extent(self.free_extent(who, 1), 1, TYPE_XN_DB))

    def ops_publish(self, who: Holder) -> list[Op]:
        roots = [tree for tree in self.model.trees.values() if tree.type == TYPE_XN_DB]
        page = self.random.choice(list(who.pages) or [3])
        if roots and self.one_in(2):
            tree = self.random.choice(roots)
            return [Op(OpKind.PUBLISH, da(tree.db), 0xFFFF_FFFF, db=tree.db, count=1, page=page)]
        found = self.pointer(who)
        if found is None:
            return self.ops_set_type(who)
        db, s, _, (block, count, _, _) = found
        return [Op(OpKind.PUBLISH, da(db), s, db=block + self.random.randrange(count), count=1, page=page)]

    def ops_witness(self, who: Holder) -> list[Op]:
        return [Op(OpKind.WITNESS, self.address(self.db())), *self.ops_set_type(who)]

    def corrupted(self, ops: list[Op]) -> list[Op]:
        """One thing of one operation is another."""
        at = self.random.randrange(len(ops))
        op = ops[at]
        how = self.random.randrange(9)
        if how == 0:
            op = replace(op, own_id=self.random.choice([0, 1, 7, 8, 0xFFFF_FFFF]))
        elif how == 1:
            op = replace(op, da=self.address(self.db()))
        elif how == 2 and op.kind not in (OpKind.ADD_EDGE, OpKind.DROP_EDGE):
            op = replace(op, db=self.db())
        elif how == 3:
            op = replace(op, count=self.random.choice([0, 1, 2, 3, NBLOCKS, 0xFFFF_FFFF]))
        elif how == 4:
            op = replace(op, type=self.random.choice([0, 1, 2, self.model.node_type, 999]))
        elif how == 5:
            op = replace(op, page=self.random.choice([0, 5, 1 << 63, *[p for h in self.holders for p in h.pages]]))
        elif how == 6:
            op = replace(op, kind=self.random.choice([1, 2, 3, 5, 8, 9, 10]))
        elif how == 7 and op.kind != OpKind.WITNESS:
            op = replace(op, dependents=[self.random.choice([0, 7, 8, 0xFFFF_FFFF])])
        else:
            op = replace(op, writes=[(offset + self.random.choice([-1, 1, 512]), data) for offset, data in op.writes
                                     if offset])  # fmt: skip
        return [*ops[:at], op, *ops[at + 1 :]]

    def transaction(self, who: Holder, call: str, ops: list[Op]) -> None:
        if not self.right and self.one_in(2):
            ops = self.corrupted(ops)
        target = next((op.da >> 12 & (1 << 44) - 1 for op in ops), 0)
        cap = self.cap_for(who, target)
        errors, may, change = self.model.judge(who, cap, ops, call)
        data = pack_transaction(ops)
        if self.one_in(25):
            data, errors = data[:-5], {e.BadCall} | errors | may | {e.NotInCore, e.BogusUpdate}
        self.expect(who, errors, cap=cap, data=data, may=may, name=call,
                    then=lambda done: self.model.apply(who, change))  # fmt: skip

    def do_transact(self, who: Holder) -> None:
        kind = self.random.choice(["alloc", "alloc", "free", "add_edge", "drop", "set_type", "move", "swap", "steal",
                                   "publish", "publish", "witness"])  # fmt: skip
        self.transaction(who, "transact", getattr(self, f"ops_{kind}")(who))

    def do_alloc(self, who: Holder) -> None:
        self.transaction(who, "alloc", self.ops_alloc(who))

    def do_free(self, who: Holder) -> None:
        self.transaction(who, "free", self.ops_free(who))

    def do_add_edge(self, who: Holder) -> None:
        self.transaction(who, "add_edge", self.ops_add_edge(who))

    def do_set_type(self, who: Holder) -> None:
        self.transaction(who, "set_type", self.ops_set_type(who))

    def do_move(self, who: Holder) -> None:
        self.transaction(who, "move", self.ops_move(who))

    def do_swap(self, who: Holder) -> None:
        temporary = {tree.id for tree in self.model.trees.values() if tree.temporary}
        able = [
            h for h in self.holders if any(tree in temporary and rights & WRITE for tree, rights in h.caps.values())
        ]
        if self.right and able:
            who = self.random.choice(able)
            for _ in range(2):
                self.transaction(who, "alloc", self.ops_alloc(who))
        self.transaction(who, "swap", self.ops_swap(who))

    def do_writeb(self, who: Holder) -> None:
        db = self.random.choice([*self.model.data, self.db()]) if self.model.data else self.db()
        address = self.address(db, self.random.choice([0, 100, 4090]))
        data = self.random.randbytes(self.random.choice([1, 6, 7, 600, 0]))
        cap = self.cap_for(who, db)
        if not data:
            self.expect(who, {e.BadCall, e.BadCapability}, address, cap=cap)
            return
        errors, may, change = self.model.judge(who, cap, build.writeb(address, data), "writeb")
        self.expect(who, errors, address, cap=cap, data=data, may=may,
                    then=lambda done: self.model.apply(who, change))  # fmt: skip

    # ---- reading

    def do_readb(self, who: Holder) -> None:
        model, db = self.model, self.db()
        offset, count = self.random.choice([0, 1, 4095]), self.random.choice([0, 1, 64, 4096, 300000])
        address, cap = self.address(db, offset), self.cap_for(who, db)
        errors: Errors = set()
        blocks = range(db, db + (offset + max(count, 1) - 1) // BLOCK + 1)
        for block in blocks:
            errors |= model.access(who, (address & 0xFF << 56) | block << 12, cap, READ)
        if count > 64 * BLOCK - offset:
            errors.add(e.BadCall)
        room = self.random.choice([count, count, 0])
        if max(room, 256) < count:
            errors.add(e.BadCall)

        def then(done: Any) -> None:
            known = [model.data[b] if b in model.data else b"".join(s.pack() for s in model.nodes[b]) for b in blocks]
            if None not in known:
                assert done.data == b"".join(known)[offset : offset + count]  # type: ignore[arg-type]

        self.expect(who, errors, address, count, cap=cap, room=room, then=then)

    def do_read_attr(self, who: Holder) -> None:
        db = self.db()
        address = self.address(db)
        entry = self.model.entry(who, db)
        errors: Errors = set() if entry is not None else {e.NotInCore}
        if address >> 56 != DEV:
            errors = {e.NotFound}
        self.expect(who, errors, address, then=lambda done: _equal(len(done.data), REGISTRY_ENTRY_BYTES))

    def do_read_catalogue(self, who: Holder) -> None:
        dev, errors = self.dev()
        mine = {tree for tree, _ in who.caps.values()}

        def then(done: Any) -> None:
            size = len(done.data) // done.r0
            entries = [CatalogueEntry.unpack(done.data[at : at + size]) for at in range(0, len(done.data), size)]
            assert {entry.name for entry in entries} == {*self.model.trees, *self.model.names}
            for entry in entries:
                tree = self.model.trees.get(entry.name)
                if tree is not None:
                    assert (entry.db, entry.count, entry.type) == (tree.db, tree.count, tree.type)
                    assert entry.capability == (tree.id if tree.id in mine else 0), "a capability number leaks"

        self.expect(who, errors, dev, then=then)

    def do_read_errors(self, who: Holder) -> None:
        dev, name, tree, cap, errors = self.tree_to_read(who)
        if tree is None and name.decode(errors="replace") in self.model.names:
            errors.add(e.BadCapability)  # a type's, or a reservation's
        first = self.random.choice([0, 1, (1 << 64) - 1])
        self.expect(who, errors, dev, first, cap=cap, data=name, then=lambda done: _equal(done.data, b""))

    def do_patch_read(self, who: Holder) -> None:
        """No tree is being patched: the tests of reconstruction have that."""
        self.expect(who, {e.NotAllowed}, self.address(self.db()), cap=self.cap(who))

    def do_patch_write(self, who: Holder) -> None:
        self.expect(who, {e.NotAllowed}, self.address(self.db()), cap=self.cap(who), data=b"bytes")

    def do_dev_list(self, who: Holder) -> None:
        self.expect(who, set(), then=lambda done: _equal(done.data, struct.pack("<Q", DEV)))

    def do_info(self, who: Holder) -> None:
        dev, errors = self.dev()
        free = sum(who.env.freemaps[DEV].is_free(db) for db in range(NBLOCKS))
        self.expect(who, errors, dev, then=lambda done: _equal(done.r0, free))

    def do_findfree(self, who: Holder) -> None:
        dev, errors = self.dev()
        hint = self.random.choice([0, self.random.randrange(NBLOCKS), NBLOCKS, (1 << 64) - 1])
        count = self.random.choice([0, 1, 1, 5, NBLOCKS // 2, NBLOCKS, NBLOCKS + 1, 1 << 63])
        free = "".join(str(int(who.env.freemaps[DEV].is_free(db))) for db in range(NBLOCKS))
        if not 0 < count <= NBLOCKS:
            errors.add(e.BadCall)
        elif "1" * count not in free:
            errors.add(e.NoSpace)

        def then(done: Any) -> None:
            assert free[done.r0 : done.r0 + count] == "1" * count

        self.expect(who, errors, dev, hint, count, then=then)

    def do_list_writeable(self, who: Holder) -> None:
        dev, errors = self.dev()

        def then(done: Any) -> None:
            for (db,) in struct.iter_unpack("<Q", done.data):
                assert self.model.entry(who, db).dirty, f"block {db} is not dirty"

        self.expect(who, errors, dev, then=then)

    def do_root(self, who: Holder) -> None:
        dev, errors = self.dev()
        self.expect(who, errors, dev, then=lambda done: _equal(done.r0, 0))

    def do_get_refcnt(self, who: Holder) -> None:
        db, s, index = self.db(), self.random.randrange(SECTORS), self.random.randrange(ELEMENTS)
        counted = [(node, at, i) for node, sectors in self.model.nodes.items() for at, sector in enumerate(sectors)
                   for i, count in enumerate(sector.counts) if count]  # fmt: skip
        if self.right and counted:
            db, s, index = self.random.choice(counted)
        address = self.address(db, element(0, s, index) % BLOCK + (1 if self.one_in(8) else 0))
        cap = self.cap_for(who, db)
        errors = self.model.access(who, address, cap, READ)
        node = self.model.nodes.get(db)
        if node is None:
            errors.add(e.WrongType)
        elif address % 8 or not node[s].counts[index]:
            errors.add(e.NotInCore)
        self.expect(who, errors, address, cap=cap, then=lambda done: _equal(done.r0, node[s].counts[index]))  # type: ignore[index]

    def do_get_nowns(self, who: Holder) -> None:
        db = self.db()
        address, cap = self.address(db), self.cap_for(who, db)
        errors = self.model.access(who, address, cap, READ)
        self.expect(who, errors, address, cap=cap,
                    then=lambda done: _equal(done.r0, SECTORS if db in self.model.nodes else 0))  # fmt: skip

    def do_udf_enum(self, who: Holder) -> None:
        db = self.db()
        address, cap = self.address(db), self.cap_for(who, db)
        begin, end = self.random.choice([(0, 8), (3, 4), (0, 9), (5, 2), (0, 0), (1 << 63, 1 << 63)])
        errors = self.model.access(who, address, cap, READ)
        node = self.model.nodes.get(db)
        if not begin <= end <= (SECTORS if node else 0):
            errors.add(e.BogusPartition)

        def then(done: Any) -> None:
            said = Counter((db + i, kind) for db, count, kind in struct.iter_unpack("<QQQ", done.data)
                           for i in range(count))  # fmt: skip
            want = Counter[tuple[int, int]]()
            for sector in (node or [])[begin:end]:
                want += units(sector.pointers)
            assert said == want

        self.expect(who, errors, address, begin, end, cap=cap, then=then)

    # ---- locks

    def do_lock(self, who: Holder) -> None:
        model, db = self.model, self.db()
        mode = self.random.choice([1, 1, 2, 2, 0, 3, 1 << 63])
        if self.right:
            db, mode = min(model.nodes), self.random.choice([1, 2])
        address, cap = self.address(db), self.cap_for(who, db)
        errors = model.access(who, address, cap, WRITE if mode == EXCLUSIVE else READ)
        waiters = model.waiting.setdefault(db, [])
        if mode not in (1, 2) or any(waiter is who for waiter, _, _ in waiters):
            errors.add(e.BadCall)
        holders = model.locks.setdefault(db, {})
        others = [held for holder, held in holders.items() if holder is not who]
        blocked = EXCLUSIVE in others or (mode == EXCLUSIVE and bool(others))
        if errors or (holders.get(who, 0) >= mode) or not (blocked or waiters):

            def then(done: Any) -> None:
                holders[who] = max(mode, holders.get(who, 0))

            self.expect(who, errors, address, mode, cap=cap, then=then)
            return
        answer: list[Any] = []
        waiters.append((who, mode, answer))
        who.env.submit("lock", address, mode, cap=cap, then=answer.append)
        who.env.dispatch()
        assert not (blocked and answer), f"block {db} is locked, and a lock in mode {mode} was given"
        self.seen["lock", "waits"] += 1

    def do_unlock(self, who: Holder) -> None:
        held = [db for db, holders in self.model.locks.items() if who in holders]
        db = self.random.choice(held) if held and not self.one_in(4) else self.db()
        mode = self.random.choice([1, 2])
        holders = self.model.locks.get(db, {})
        errors: Errors = set() if who in holders else {e.NotFound}

        def then(done: Any) -> None:
            if mode == 1 and holders[who] == EXCLUSIVE:
                holders[who] = 1
            else:
                del holders[who]

        self.expect(who, errors, self.address(db) if who not in holders else da(db), mode, then=then)

    def do_filter_insert(self, who: Holder) -> None:
        """A kernel without a network does not know the call; tests/dpf and tests/hostile have one."""
        self.expect(who, {e.BadCall}, data=self.random.randbytes(24), cap=self.cap(who))

    def do_filter_remove(self, who: Holder) -> None:
        self.expect(who, {e.BadCall}, self.random.getrandbits(8))

    # ---- what is no call

    def do_death(self, who: Holder) -> None:
        """It dies with all that it holds; another of the same rights takes its place."""
        model, env = self.model, who.env
        held = [(Capability(TREE, tree, Right(rights)), tree) for tree, rights in who.caps.values()]
        alive = {tree.id for tree in model.trees.values()}
        env.close()
        assert not env.kernel_env.pages and not env.kernel_env.pinned and not env.kernel_env.locks
        self.holders.remove(who)
        for holders in model.locks.values():
            holders.pop(who, None)
        for waiters in model.waiting.values():
            waiters[:] = [waiter for waiter in waiters if waiter[0] is not who]
        for name, uid in model.names.items():
            if uid == who.uid:
                model.names[name] = -2  # the reservation stays, and nobody here has that uid again
        self.born(tuple(capability for capability, tree in held if tree in alive))

    def do_time(self, who: Holder) -> None:
        self.local.tick(self.random.choice([0.5, 2.5]))

    # ---- the end

    def crash(self, dice: int) -> None:
        """Power fails, with or without everything written before: reconstruction finds nothing wrong."""
        chance = random.Random(dice)
        for who in list(self.holders):
            self.holders.remove(who)
            who.env.close()
        invariants.check_blocks(self.local, self.model.node_type)
        synced = chance.random() < 0.5
        if synced:
            self.local.sync()
            invariants.check_blocks(self.local, self.model.node_type)
        self.local.crash(lambda sector: chance.random() < 0.5)
        report = self.local.recover()
        assert report.sound, [str(violation) for violation in report.violations]
        lasting = {name for name, tree in self.model.trees.items() if not tree.temporary}
        assert not self.model.trees.keys() - lasting & report.trees.keys(), "a temporary tree has survived"
        # What waits for blocks that nobody has filled is not on the disk, the root's name included.
        unfilled = {self.model.tree_of[db] for db, raw in self.model.data.items() if raw is None}
        complete = {tree.id: name for name, tree in self.model.trees.items() if tree.id not in unfilled}
        if synced:
            assert lasting & set(complete.values()) <= report.trees.keys(), (lasting, report.trees)
        device = self.local.kernel.devices[DEV]
        owned = invariants.owners(self.local, self.model.node_type)
        marked = {db for db in range(device.superblock.first, NBLOCKS - 1) if not device.freemap.is_free(db, 1)}
        assert marked == set(owned), f"{marked ^ set(owned)} are marked in use, or owned, and not both"
        if synced:
            for db, sectors in self.model.nodes.items():
                if self.model.tree_of[db] in complete and not self.model.temporary(db):
                    assert self.local.disk.read_block(db) == b"".join(sector.pack() for sector in sectors)


def _named(part: Part) -> tuple[Any, ...]:
    return part.da, part.own_id, 0, 0, 0, 0, 0, part.writes


def _equal(left: Any, right: Any) -> None:
    assert left == right


STEPS = (*BY_NAME, "new_type", "death", "time")
