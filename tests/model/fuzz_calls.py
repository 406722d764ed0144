"""The call channel under fuzzing: an input is what hostile libOSes write into their rings.

A part is one submission: which environment (1 byte), flags for the indices (1 byte), 64 bytes of ring entry, and the
bytes that it puts into the operand area.  xokd's end of the ring (`KernelRing`) copies it out, and the kernel carries
it out; every 8th part lets time pass as well.  Afterwards all of model_invariants must hold.

Environments: 0 owns tree `mine`, 1 the victim's `other` and `temp`, 2 holds nothing.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import model_invariants as invariants
from toy import DEV, Sector, Toy, da, element, install_type, take_pages, template

from xok_host.abi import channel
from xok_host.abi import ops as build
from xok_host.abi.calls import TEMPORARY_ROOT, CallNumber, Op, OpKind, pack_extents, pack_transaction
from xok_host.abi.channel import KernelRing
from xok_host.abi.ops import Extent, Part
from xok_host.abi.types import SECTOR, TYPE_XN_DB
from xok_host.kernel.local import LocalEnvironment, LocalXok, RamDisk
from xok_host.kernel.xn import types

Input = list[bytes]
NBLOCKS = 192
NOTHING = bytes(channel.RING_BYTES - 64)
SECRET = b"the victim's own words.."


class Scene:
    """The same exokernel for every input; what it costs to set it up is done once, and its disk copied."""

    def __init__(self) -> None:
        types.import_template = lru_cache(64)(types.import_template)  # the same bytes again at each start
        self.rings = [memoryview(bytearray(channel.RING_BYTES)) for _ in range(3)]
        first = LocalXok(NBLOCKS, max_chunks=12, entries=256)
        maker = first.environment()
        self.node = install_type(maker, "node", template("node"))
        for name in ("mine", "other"):
            maker.call("install_mount", DEV, 0, 1, self.node, data=name.encode())
        maker.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"raw")
        first.sync()
        first.stop()
        self.image = bytes(first.disk.data)
        self.local = self.fresh()

    def fresh(self) -> LocalXok:
        disk = RamDisk(NBLOCKS)
        disk.data[:] = disk.durable[:] = self.image
        local = LocalXok(disk=disk, format=False, max_chunks=12, entries=256)
        self.envs: list[LocalEnvironment] = [
            local.environment(roots=roots, uid=uid) for uid, roots in ((11, ["mine", "raw"]), (12, ["other"]), (13, []))
        ]
        self.toys = [self.toy(local, self.envs[0], "mine"), self.toy(local, self.envs[1], "other")]
        temp = self.envs[1].call("install_mount", DEV, 0, 1, self.node | TEMPORARY_ROOT, data=b"temp")
        self.temp = temp.r0
        mine, other = self.toys
        self.data = mine.add_data(mine.root, 0, b"data")
        self.child = mine.add_node(mine.root, 1)
        self.secret = other.add_data(other.root, 0, SECRET)
        self.pages = take_pages(self.envs[0], mine.cap, 2)
        for env in self.envs:
            env.dispatch()
        return local

    def toy(self, local: LocalXok, env: LocalEnvironment, name: str) -> Toy:
        toy = Toy.__new__(Toy)
        toy.local, toy.env, toy.type, toy.cap = local, env, self.node, env.caps[0].index
        env.call("type_mount", DEV, data=b"node")
        toy.root = env.call("mount", DEV, cap=toy.cap, data=name.encode(), out_bytes=256).r0 >> 12 & (1 << 44) - 1
        return toy

    # ---- what runs

    def run(self, given: Input, watch: Any = nullcontext) -> str:
        """A digest of every answer: the same with and without compiling."""
        self.local = self.fresh()
        with watch():
            said = self.carried_out(given)
        self.check()
        return said

    def carried_out(self, given: Input) -> str:
        local = self.local
        said = hashlib.sha256()
        kernel_rings = [KernelRing(memory) for memory in self.rings]
        for memory in self.rings:
            memory[64:] = NOTHING  # operands as well: an entry may name more than it brings
        tails = [0, 0, 0]
        for at, raw in enumerate(given):
            who = raw[0] % 3 if raw else 0
            memory, ring, env = self.rings[who], kernel_rings[who], self.envs[who]
            operands = raw[2 + channel.ENTRY.size :][: 1 << 14]
            place = channel.SQ_OFFSET + tails[who] % channel.SUBMISSIONS * channel.ENTRY.size
            memory[place : place + channel.ENTRY.size] = raw[2 : 2 + channel.ENTRY.size].ljust(
                channel.ENTRY.size, b"\0"
            )
            memory[channel.DATA_OFFSET : channel.DATA_OFFSET + len(operands)] = operands
            tails[who] += 1
            wild = len(raw) > 1 and raw[1] & 0xF0 == 0xF0  # any index it likes
            ring._store(channel.SQ_TAIL, int.from_bytes(raw[2:6], "little") if wild else tails[who])
            for _ in range(2):
                if ring._sq_head == tails[who]:
                    break
                entry = ring.take()
                if entry is None:
                    break
                answer = local.kernel.execute(env.kernel_env, entry)
                if answer is not None:
                    said.update(repr((answer.code, answer.r0, answer.r1, answer.data)).encode())
                    ring.complete(entry, answer.code, answer.r0, answer.r1, answer.data)
                else:
                    ring.owed -= 1
            local.pump()
            for other in self.envs:
                said.update(repr([(event, r0, r1) for event, r0, r1 in other.events]).encode())
                other.events.clear()
                while other._ready:
                    done = other._ready.popleft()
                    said.update(repr((done.code, done.r0, done.r1, done.data)).encode())
            if at % 8 == 7:
                local.tick(1.1)
        return said.hexdigest()

    def check(self) -> None:
        local = self.local
        owned = invariants.check_blocks(local, self.node)
        for env in self.envs:
            invariants.check_strangers(local, env, owned)
        invariants.check_tables(local, self.envs[2])
        for env in self.envs:
            env.close()
        invariants.check_blocks(local, self.node)
        assert not local.kernel.environments

    # ---- what it begins with

    def submission(
        self, who: int, number: int, *scalars: int, cap: int = 0, data: bytes = b"", flags: int = 0
    ) -> bytes:
        padded = (*scalars, 0, 0, 0, 0)[:4]
        fields = (number, flags, cap, 7, 0, len(data), 1 << 20, 1 << 12, *padded)
        return bytes((who, 0)) + channel.ENTRY.pack(*fields) + data

    def seeds(self) -> list[Input]:
        mine, other = self.toys
        cap, db, child, root = mine.cap, self.data, self.child, mine.root
        free = mine.free_block(3)
        s, c = self.submission, CallNumber
        part = self.part
        pointed = mine.sector(root, 2)
        pointed.pointers.append((free, 1, TYPE_XN_DB, 1))
        node = mine.sector(root, 3)
        node.pointers.append((free + 1, 1, self.node, 1))
        kept, lost = mine.sector(root, 0), Sector()
        named, counted = Sector(references=[element(child, 0, 0)]), Sector(counts=[1] + [0] * 7)
        moved = Sector(pointers=kept.pointers)
        circle = Sector(pointers=mine.sector(root, 1).pointers)
        one, whole = pack_extents([(db, 1, 0)]), pack_extents([(b, 1, 0) for b in (db, child, root)])
        alloc = build.alloc(part(root, 2, pointed), Extent(free, 1, TYPE_XN_DB), page=self.pages[0])
        grow = build.alloc(part(root, 3, node), Extent(free + 1, 1, self.node))
        edge = build.add_edge(part(root, 4, named), element(child, 0, 0), part(child, 0, counted))
        fill = pack_transaction([Op(OpKind.PUBLISH, da(root), 0, db=db, count=1, page=self.pages[1])])
        generation = self.envs[0].registry.lookup(da(root) >> 12).generation  # type: ignore[union-attr]
        one_call = [
            s(0, c.NULL), s(0, c.PAGE_ALLOC, 2, cap=cap), s(0, c.PAGE_FREE, data=self.pages[0].to_bytes(8, "little")),
            s(0, c.CHUNK_MAP, 0), s(0, c.PIN, da(root), generation, cap=cap), s(0, c.UNPIN, 5),
            s(0, c.INSTALL_MOUNT, DEV, 0, 1, self.node, data=b"new"),
            s(2, c.INSTALL_MOUNT, DEV, 0, 1, TYPE_XN_DB | TEMPORARY_ROOT, data=b"scratch"),
            s(0, c.TYPE_IMPORT, DEV, data=b"raw"), s(0, c.RESERVE_TYPE, DEV, data=b"later"),
            s(0, c.MOUNT, DEV, cap=cap, data=b"mine"), s(0, c.TYPE_MOUNT, DEV, data=b"node"),
            s(0, c.UNINSTALL_MOUNT, DEV, cap=2, data=b"raw"),
            s(0, c.READ_AND_INSERT, DEV, data=pack_extents([(free, 2, 0)])),
            s(0, c.INSERT_ATTR, da(root), cap=cap, data=one), s(0, c.INSERT_AND_READ, da(root), cap=cap, data=one),
            s(0, c.DELETE_ATTR, DEV, data=one), s(0, c.WRITEBACK, DEV, db, 1, 0, data=b""),
            s(0, c.WRITEBACKV, DEV, data=whole), s(0, c.FLUSH, DEV), s(0, c.MARK_DIRTY, DEV, data=one),
            s(0, c.READB, da(db), 64, cap=cap), s(0, c.READ_ATTR, da(db)), s(0, c.READ_CATALOGUE, DEV),
            s(0, c.DEV_LIST),
            s(0, c.INFO, DEV), s(0, c.FINDFREE, DEV, 0, 1), s(0, c.LIST_WRITEABLE, DEV), s(0, c.ROOT, DEV),
            s(0, c.GET_REFCNT, element(child, 0, 0), cap=cap), s(0, c.GET_NOWNS, da(root), cap=cap),
            s(0, c.UDF_ENUM, da(root), 0, 8, cap=cap), s(0, c.LOCK, da(root), 2, cap=cap), s(0, c.UNLOCK, da(root), 2),
            s(0, c.WRITEB, da(db, 8), cap=cap, data=b"bytes"), s(0, c.TRANSACT, cap=cap, data=fill),
            s(0, c.ALLOC, cap=cap, data=pack_transaction(alloc)), s(0, c.ALLOC, cap=cap, data=pack_transaction(grow)),
            s(0, c.FREE, cap=cap, data=pack_transaction(build.free(part(root, 0, lost), Extent(db, 1)))),
            s(0, c.ADD_EDGE, cap=cap, data=pack_transaction(edge)),
            s(0, c.SET_TYPE, cap=cap, data=pack_transaction(build.set_type(part(root, 5, Sector(generation=3))))),
            s(0, c.MOVE, cap=cap, data=pack_transaction(
                build.move(part(root, 0, lost), part(child, 3, moved), Extent(db, 1)))),
            s(0, c.MOVE, cap=cap, data=pack_transaction(
                build.move(part(root, 1, lost), part(child, 3, circle), Extent(child, 1)))),
            s(0, c.SWAP, cap=cap, data=pack_transaction(build.swap(
                part(root, 0, moved), Extent(db, 1), part(root, 1, moved), Extent(child, 1)))),
            s(0, c.FILTER_INSERT, data=bytes(24)), s(0, c.FILTER_REMOVE, 1),
        ]  # fmt: skip
        durable = [s(0, c.WRITEBACKV, DEV, data=whole), s(0, c.FLUSH, DEV)]
        story = [one_call[i] for i in (1, 35, 36, 37)]
        contested = [
            s(0, c.LOCK, da(root), 2, cap=cap),
            s(1, c.LOCK, da(other.root), 1, cap=other.cap),
            s(1, c.FLUSH, DEV),
        ]
        stolen = Op(OpKind.MODIFY, *self.named(part(root, 6, Sector(pointers=[(self.secret, 1, TYPE_XN_DB, 0)]))))
        steal = s(0, c.TRANSACT, cap=cap, data=pack_transaction([stolen]))
        zeroed = build.alloc(part(root, 2, pointed), Extent(free, 1, TYPE_XN_DB), zero=True)
        zero = s(0, c.TRANSACT, cap=cap, data=pack_transaction(zeroed))
        found: list[Input] = [[call] for call in one_call]
        return [*found, [*story, *durable], [*contested, *one_call[-6:-2]], [steal, *durable, zero, *durable],
                [one_call[13], one_call[36], one_call[16]]]  # fmt: skip

    def named(self, part: Part) -> tuple[Any, ...]:
        return part.da, part.own_id, 0, 0, 0, 0, 0, part.writes

    def part(self, db: int, sector: int, new: Sector) -> Part:
        return Part(da(db), sector, [(sector * SECTOR, new.pack())])

    def words(self) -> list[int]:
        """Numbers that mean something here."""
        mine, other = self.toys
        blocks = [
            mine.root,
            other.root,
            self.temp,
            self.data,
            self.child,
            self.secret,
            mine.free_block(),
            NBLOCKS,
            0,
            1,
        ]
        found: list[int] = [*blocks, *(da(db) for db in blocks), element(self.child, 0, 0), self.node, TYPE_XN_DB]
        found += [int(call) for call in CallNumber] + [int(kind) for kind in OpKind] + [*self.pages, DEV, 1, 2, 3]
        for env in self.envs:
            for held in env.caps:
                found.append(held.id)
        return found


def target() -> tuple[Any, list[Input], list[int]]:
    scene = Scene()
    return scene.run, scene.seeds(), scene.words()
