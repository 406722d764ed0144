"""The blocks of one tree as a small libFS wants them: brought into core, read, changed by transactions, made durable.

XN's calls are few and explicit, and most of what can go wrong has one remedy: what is not in core is fetched, and what
waits for an earlier write is written first.  This is the remedy, once, for libFSes that do one thing after another and
may wait for the disk.  (C-FFS does not use it: it runs ahead of XN and never waits.)

    blocks = Blocks(env, dev, name, cap)                 # the root extent is `blocks.root`
    raw = blocks.read((table, part), db)                 # db is owned by partition `part` of block `table`
    blocks.transact([blocks.op(OpKind.ALLOC, (table, part), db=db, …), …])
    blocks.sync()

BLK-1  What `read` gives is a copy of the block at one moment: a page that XN takes away meanwhile is read again.
BLK-2  A transaction that is refused has changed nothing, and its pages are still the caller's.
BLK-3  When `sync` returns, every block that a transaction changed is durable.
BLK-4  Who changes more than may be kept in core waits until it is durable, and is not refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from xok_host.abi import errors
from xok_host.abi.calls import MAX_EXTENTS, CatalogueEntry, Op, OpFlag, OpKind, pack_extents, pack_transaction
from xok_host.abi.types import BLOCK, TYPE_XN_DB, Flag, da_block, disk_address

TRIES = 16
"""Rounds until something that others can disturb, or that has to be repeated, is given up."""
SYNC_ROUNDS = 4096
"""Rounds of writing and flushing in one `sync`; each makes something durable that something else waits for."""
_STATE = int(Flag.VALID | Flag.READING | Flag.QUARANTINE)
_VALID = int(Flag.VALID)

Place = tuple[int, int]
"""A metadata block and one of its partitions."""


class Blocks:
    """One tree, through its capability.  Metadata is in the root extent: what owns a block is always there."""

    def __init__(self, env: Any, dev: int, name: str, cap: int) -> None:
        """Raises what `mount` (docs/xn.md) refuses with."""
        self.env = env
        self.dev = dev
        self.cap = cap
        self.free = env.freemaps[dev]
        """The free map: `find_run`, `run_of_free`."""
        self._name = name.encode()
        self._dirty: set[int] = set()
        entry = self._mount()
        self.root = range(entry.db, entry.db + entry.count)
        self._dirty = {db for db in self.root if self.entry(db).dirty}

    def _mount(self) -> CatalogueEntry:
        """Brings the whole root extent into core."""
        return CatalogueEntry.unpack(
            self._with_room("mount", self.dev, cap=self.cap, data=self._name, out_bytes=BLOCK).data
        )

    def entry(self, db: int) -> Any:
        """The registry's entry of a block that is in core; None if it is not."""
        entry = self.env.registry.lookup(disk_address(self.dev, db) >> 12)
        return entry if entry is not None and entry.flags & _STATE == _VALID else None

    def bring(self, owner: Place, blocks: Iterable[int]) -> None:
        """Blocks that `owner` owns into core, in one crossing unless the owner has to come first."""
        missing = [(db, 1, owner[1]) for db in blocks if self.entry(db) is None]
        for at in range(0, len(missing), MAX_EXTENTS):
            if self.entry(owner[0]) is None:
                self._mount()
            extents = pack_extents(missing[at : at + MAX_EXTENTS])
            self._with_room("insert_and_read", disk_address(self.dev, owner[0]), cap=self.cap, data=extents)

    def read(self, owner: Place, db: int) -> bytes:
        """BLK-1.  Raises MediaError, and NotInCore when the block does not stay in core."""
        for _ in range(TRIES):
            entry = self.entry(db)
            if entry is not None:
                data = bytes(self.env.page(entry.page))
                if self.env.registry.at(entry.index).generation == entry.generation:
                    return data
            elif db in self.root:
                self._mount()
            else:
                self.bring(owner, [db])
        raise errors.NotInCore(f"block {db} does not stay in core")

    def free_count(self) -> int:
        """Free blocks of the whole disk."""
        return int(self.env.call("info", self.dev, out_bytes=BLOCK).r0)

    def session(self) -> int:
        """What a log's records of this session bear (thesis 4.6); 0: the disk is being shut down."""
        return int(struct.unpack_from("<6Q", self.env.call("info", self.dev, out_bytes=BLOCK).data)[5])

    def pages(self, data: bytes | bytearray) -> list[int]:
        """New pages with these contents, the last one filled up with zeros, for ALLOC or PUBLISH."""
        count = (len(data) + BLOCK - 1) // BLOCK
        given = self._with_room("page_alloc", count, cap=self.cap, out_bytes=8 * count).data
        pages = list(struct.unpack(f"<{count}Q", given[: 8 * count]))
        for at, page in enumerate(pages):
            self.env.page(page)[:] = data[at * BLOCK : (at + 1) * BLOCK].ljust(BLOCK, b"\0")
        return pages

    def _with_room(self, name: str, *scalars: int, **more: Any) -> Any:
        """A call that takes room in core: what is durable can leave (BLK-4), and each call looks further for it."""
        for _ in range(TRIES - 1):
            try:
                return self.env.call(name, *scalars, **more)
            except errors.LimitReached:
                self.sync()
        return self.env.call(name, *scalars, **more)

    def op(self, kind: OpKind, owner: Place, **fields: Any) -> Op:
        return Op(kind, disk_address(self.dev, owner[0]), owner[1], **fields)

    def put(self, kind: OpKind, owner: Place, db: int, data: bytes | bytearray) -> Op:
        """A data block comes to be owned with these contents (ALLOC), or gets them in place of others (PUBLISH).

        The contents are on a new page, which is XN's when the operation is done."""
        flags = OpFlag.PAGES if kind == OpKind.ALLOC else 0
        return self.op(kind, owner, db=db, count=1, type=TYPE_XN_DB, page=self.pages(data)[0], flags=flags)

    def transact(self, ops: Sequence[Op]) -> None:
        """All or nothing, BLK-2.  What XN wants to be fetched or written before is (BLK-4)."""
        for tries in range(TRIES):
            try:
                self.env.call("transact", cap=self.cap, data=pack_transaction(ops), out_bytes=BLOCK)
                break
            except (errors.NotInCore, errors.WouldCycle, errors.NoSpace, errors.LimitReached) as refused:
                if tries + 1 == TRIES:
                    self._give_back(ops)
                    raise
                self._mount() if isinstance(refused, errors.NotInCore) else self.sync()
            except errors.XokError:
                self._give_back(ops)
                raise
        self._dirty.update(da_block(op.da) for op in ops)
        self._dirty.update(
            op.db + i for op in ops if op.kind in (OpKind.ALLOC, OpKind.PUBLISH) for i in range(op.count)
        )

    def _give_back(self, ops: Sequence[Op]) -> None:
        pages = [op.page for op in ops if op.page]
        if pages:
            self.env.call("page_free", data=struct.pack(f"<{len(pages)}Q", *pages))

    def sync(self) -> None:
        """BLK-3.  What waits for other blocks goes in a later round, after the flush of those.

        They may be somebody else's work: what an earlier server of the same tree left dirty.  XN names them."""
        for _ in range(SYNC_ROUNDS):
            if not self._dirty:
                return
            blocks = sorted(db for db in self._dirty if self.entry(db) is not None)  # the others were freed, or written
            named = set()
            for at in range(0, len(blocks), MAX_EXTENTS):
                try:
                    extents = pack_extents((db, 1, 0) for db in blocks[at : at + MAX_EXTENTS])
                    self.env.call("writebackv", self.dev, data=extents, out_bytes=BLOCK)
                except errors.Tainted as refused:  # its other sectors, and the other blocks, went
                    named.add(refused.fields["r0"])
            self.env.call("flush", self.dev)
            left = ((db, self.entry(db)) for db in (*blocks, *named))
            self._dirty = {db for db, entry in left if entry is not None and entry.dirty}
        raise errors.Tainted(f"{len(self._dirty)} blocks stay dirty")
