"""The libOS of `./xok bench xn`: raw calls of XN, timed from inside an environment.  Prints one line of JSON.

Calls go to a C-FFS directory block and its UDFs, as a mount's would; data goes to extents below an inode in it.
"""

from __future__ import annotations

import json
import random
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from libfs.cffs import layout, mkfs, sector
from libfs.cffs.inode import Node
from xok_host.abi.calls import Op, OpKind, pack_extents, pack_transaction
from xok_host.abi.types import BLOCK, SECTOR, TYPE_XN_DB, disk_address

DEV = 1
NAME = "xnload"
CALLS = 2000
BATCH = 64
EXTENT_BLOCKS, EXTENTS = 4096, layout.DIRECT
FILE_BLOCKS = EXTENT_BLOCKS * EXTENTS
WINDOW = 4
"""Batches of data requests on their way at once."""


class Load:
    """A C-FFS directory block `root` of which sectors 2 to 7 are changed, and an inode in sector 1 that owns data."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.cap = mkfs.make(env, DEV, NAME)
        mounted = env.call("mount", DEV, data=NAME.encode(), cap=self.cap, out_bytes=4096)
        self.root = mounted.r0 >> 12 & (1 << 44) - 1
        self.da = disk_address(DEV, self.root)
        self.starts = self._file()

    def _sector(self, number: int, stamp: int) -> bytes:
        """A sector with three names and their inodes."""
        data = sector.fresh(0)
        for i in range(3):
            slot = sector.place(data, b"name-%03d-%d" % (number, i), stat.S_IFREG >> 12)
            ino = layout.ino_of(self.root, number, slot)
            Node(ino, self.root << 5 | 3, stat.S_IFREG | 0o644, 0, 0, 1, stamp).pack_into(data, slot * 128)
        return bytes(data)

    def modification(self, stamp: int) -> bytes:
        number = 2 + stamp % 6
        return pack_transaction(
            [Op(OpKind.MODIFY, self.da, number, writes=[(number * SECTOR, self._sector(number, stamp))])]
        )

    def _file(self) -> list[int]:
        """An inode with four extents of data; their first blocks."""
        data = bytearray(sector.fresh(0))
        slot = sector.place(data, b"data", stat.S_IFREG >> 12)
        ino = layout.ino_of(self.root, 1, slot)
        Node(ino, self.root << 5 | 3, stat.S_IFREG | 0o644, 0, 0, 1, 1).pack_into(data, slot * 128)
        starts = []
        hint = self.root + 1024
        for index in range(EXTENTS):
            start = self.env.call("findfree", DEV, hint, EXTENT_BLOCKS).r0
            at = slot * 128 + layout.INODE.offset(f"extents[{index}]")
            struct.pack_into("<IIQ", data, at, index * EXTENT_BLOCKS, EXTENT_BLOCKS, start)
            op = Op(
                OpKind.ALLOC,
                self.da,
                1,
                db=start,
                count=EXTENT_BLOCKS,
                type=TYPE_XN_DB,
                writes=[(SECTOR, bytes(data))],
            )
            self.env.call("transact", cap=self.cap, data=pack_transaction([op]))
            starts.append(start)
            hint = start + EXTENT_BLOCKS
        return starts

    # ---- calls, µs each

    def crossing(self) -> float:
        return self._each(CALLS, lambda i: self.env.call("null"))

    def single(self) -> float:
        datas = [self.modification(i) for i in range(CALLS)]
        return self._each(CALLS, lambda i: self.env.call("transact", cap=self.cap, data=datas[i]))

    def batch(self) -> float:
        """Transactions of their own, 64 in a crossing."""
        datas = [self.modification(i) for i in range(CALLS)]

        def one(start: int) -> None:
            with self.env.batch() as batch:
                for data in datas[start * BATCH : (start + 1) * BATCH]:
                    batch.add("transact", cap=self.cap, data=data)
            batch.raise_first()

        return self._each(CALLS // BATCH, one) / BATCH

    def transaction(self) -> float:
        """64 operations in one transaction."""
        datas = []
        for turn in range(CALLS // BATCH):
            ops = []
            for i in range(BATCH):
                number = 2 + i % 6
                ops.append(Op(OpKind.MODIFY, self.da, number, writes=[(number * SECTOR, self._sector(number, turn))]))
            datas.append(pack_transaction(ops))
        return self._each(len(datas), lambda i: self.env.call("transact", cap=self.cap, data=datas[i])) / BATCH

    @staticmethod
    def _each(count: int, one: Callable[[int], object]) -> float:
        began = time.perf_counter()
        for i in range(count):
            one(i)
        return (time.perf_counter() - began) / count * 1e6

    # ---- data, bytes a second

    def pieces(self, blocks: int, order: str) -> list[int]:
        """First blocks of all pieces of the file, `blocks` each."""
        found = [start + at for start in self.starts for at in range(0, EXTENT_BLOCKS, blocks)]
        if order == "random":
            random.Random(1).shuffle(found)
        return found

    def write(self, blocks: int, order: str, depth: int) -> float:
        pieces = self.pieces(blocks, order)
        began = time.perf_counter()
        flights: list[list[int]] = []
        for at in range(0, len(pieces), depth):
            group = pieces[at : at + depth]
            total = len(group) * blocks
            given = self.env.call("page_alloc", total, cap=self.cap, out_bytes=8 * total)
            pages = memoryview(given.data)[: 8 * total].cast("Q")
            self.env.pages(pages[0], 1)[:8] = struct.pack("<Q", at)
            ops = [
                Op(OpKind.PUBLISH, self.da, 1, db=db + first - begin, count=count, type=TYPE_XN_DB, page=page)
                for index, db in enumerate(group)
                for begin in [index * blocks]
                for first, count, page in _runs(pages, begin, blocks)
            ]
            cookies = [
                self.env.submit("transact", cap=self.cap, data=pack_transaction(ops[start : start + 64]))
                for start in range(0, len(ops), 64)
            ]
            cookies.append(self.env.submit("writebackv", DEV, data=pack_extents([(db, blocks, 0) for db in group])))
            self.env.ring_doorbell()
            flights.append(cookies)
            if len(flights) == WINDOW:
                self._land(flights.pop(0))
        for cookies in flights:
            self._land(cookies)
        self.env.call("flush", DEV)
        return FILE_BLOCKS * BLOCK / (time.perf_counter() - began)

    def read(self, blocks: int, order: str, depth: int) -> float:
        for start in self.starts:
            for at in range(0, EXTENT_BLOCKS, 1024):
                self.env.call("delete_attr", DEV, data=pack_extents([(start + at, 1024, 0)]))
        pieces = self.pieces(blocks, order)
        began = time.perf_counter()
        flights: list[list[int]] = []
        for at in range(0, len(pieces), depth):
            group = pieces[at : at + depth]
            extents = pack_extents([(db, blocks, 1) for db in group])
            flights.append([self.env.submit("insert_and_read", self.da, cap=self.cap, data=extents)])
            self.env.ring_doorbell()
            if len(flights) == WINDOW:
                self._land(flights.pop(0))
        for cookies in flights:
            self._land(cookies)
        return FILE_BLOCKS * BLOCK / (time.perf_counter() - began)

    def _land(self, cookies: Sequence[int]) -> None:
        for cookie in cookies:
            completion = self.env.wait(cookie)
            if completion.code:
                raise SystemExit(f"xnload: {completion}")


def _runs(pages: Sequence[int], begin: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(index, length, page) of the runs of adjacent pages in pages[begin : begin + count], which ascend."""
    at, end = begin, begin + count
    while at < end:
        length = 1
        if pages[end - 1] - pages[at] == end - 1 - at:
            length = end - at
        while at + length < end and pages[at + length] == pages[at] + length:
            length += 1
        yield at, length, pages[at]
        at += length


def main(env: Any, argv: list[str]) -> int:
    load = Load(env)
    rounds = int(argv[0])
    said: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        if number == 1:
            said.clear()  # the first round touches memory for the first time
        for name in ("crossing", "single", "batch", "transaction"):
            said.setdefault(name, []).append(getattr(load, name)())
        for order, blocks, depth in (("sequential", 32, 4), ("random", 4, 16)):
            said.setdefault(f"write {order}", []).append(load.write(blocks, order, depth))
            said.setdefault(f"read {order}", []).append(load.read(blocks, order, depth))
    print(json.dumps(said))
    return 0
