"""The libOS of `./xok bench xn`: raw calls of XN and data through it, timed from inside an environment.

It prints a line of JSON when it is ready.  At each SIGUSR1 it does what the file COMMAND in its private /tmp says, and
prints another one:

    forget                                 {}: nothing of the data is in core any more, and reads come from the device
    calls                                  {name of a call: µs each}
    write|read sequential|random KB DEPTH  {"seconds": …, "bytes": …, "cpu": seconds of this process}

Calls go to a C-FFS directory block and its UDFs, as a mount's would; data goes to extents below two inodes in it, DEPTH
requests of KB at a time, each a call of its own, and a write ends with a flush.
"""

from __future__ import annotations

import json
import random
import signal
import stat
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from libfs.cffs import layout, mkfs, sector
from libfs.cffs.inode import Node
from xok_host.abi.calls import MAX_OPS, Op, OpKind, pack_extents, pack_transaction
from xok_host.abi.channel import Completion
from xok_host.abi.types import BLOCK, SECTOR, TYPE_XN_DB, disk_address

DEV = 1
NAME = "xnload"
COMMAND = "/tmp/command"
CALLS = 2000
BATCH = 64
INODES = 2
EXTENT_BLOCKS = 4096
FILE_BLOCKS = EXTENT_BLOCKS * layout.DIRECT * INODES
REFILLS = 8
"""An eighth of the requests that are out at a time has been answered when others take their place."""
PAGES = 512
"""Pages in one PAGE_ALLOC."""


class Load:
    """A C-FFS directory block `root` of which sectors 2 to 7 are changed, and an inode in sector 1 that owns data."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.cap = mkfs.make(env, DEV, NAME)
        mounted = env.call("mount", DEV, data=NAME.encode(), cap=self.cap, out_bytes=4096)
        self.root = mounted.r0 >> 12 & (1 << 44) - 1
        self.da = disk_address(DEV, self.root)
        self.starts = self._file()
        self.flying = 0
        """Data requests that are not answered."""
        self.runs: deque[tuple[int, int]] = deque()
        """(first page, count) of pages to write from, and how many they are."""
        self.npages = 0
        self.asked = False

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
        """Inodes with extents of data; the extents' first blocks."""
        data = bytearray(sector.fresh(0))
        starts = []
        hint = self.root + 1024
        for number in range(INODES):
            slot = sector.place(data, b"data-%d" % number, stat.S_IFREG >> 12)
            ino = layout.ino_of(self.root, 1, slot)
            Node(ino, self.root << 5 | 3, stat.S_IFREG | 0o644, 0, 0, 1, 1).pack_into(data, slot * 128)
            for index in range(layout.DIRECT):
                start = self.env.call("findfree", DEV, hint, EXTENT_BLOCKS).r0
                at = slot * 128 + layout.INODE.offset(f"extents[{index}]")
                struct.pack_into("<IIQ", data, at, index * EXTENT_BLOCKS, EXTENT_BLOCKS, start)
                written = [(SECTOR, bytes(data))]
                op = Op(OpKind.ALLOC, self.da, 1, db=start, count=EXTENT_BLOCKS, type=TYPE_XN_DB, writes=written)
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

    # ---- data

    def data(self, way: str, order: str, blocks: int, depth: int) -> dict[str, float]:
        """Write or read the file once, `depth` requests of `blocks` at a time."""
        pieces = [start + at for start in self.starts for at in range(0, EXTENT_BLOCKS, blocks)]
        if order == "random":
            random.Random(1).shuffle(pieces)
        start = self._write if way == "write" else self._read
        together = max(1, depth // REFILLS)
        at = 0
        cpu, began = time.process_time(), time.perf_counter()
        while at < len(pieces):
            count = min(depth - self.flying, len(pieces) - at)
            if count >= min(together, len(pieces) - at):
                self.flying += count
                start(pieces[at : at + count], blocks)
                at += count
            self.env.wait_any(together)
        while self.flying:
            self.env.wait_any(self.flying)
        if way == "write":
            self.env.call("flush", DEV)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        return {"seconds": seconds, "bytes": FILE_BLOCKS * BLOCK, "cpu": cpu}

    def _write(self, group: list[int], blocks: int) -> None:
        """New pages for these pieces, published and written."""
        ops = []
        for db in group:
            for page, count in self._take_pages(blocks):
                ops.append(Op(OpKind.PUBLISH, self.da, 1, db=db, count=count, type=TYPE_XN_DB, page=page))
                db += count
        self.env.pages(ops[0].page, 1)[:8] = struct.pack("<Q", group[0])
        for start in range(0, len(ops), MAX_OPS):
            data = pack_transaction(ops[start : start + MAX_OPS])
            self.env.submit("transact", cap=self.cap, data=data, then=_check)
        for db in group:
            self.env.submit("writebackv", DEV, data=pack_extents([(db, blocks, 0)]), then=self._landed)

    def _take_pages(self, count: int) -> list[tuple[int, int]]:
        """Pages that were not used, as runs; more of them are asked for in time, with what crosses next."""
        taken = []
        while count:
            if self.npages < PAGES and not self.asked:
                self.asked = True
                self.env.submit("page_alloc", PAGES, cap=self.cap, out_bytes=8 * PAGES, then=self._pages_came)
            if not self.runs:
                self.env.wait_any()
                continue
            page, length = self.runs.popleft()
            if length > count:
                self.runs.appendleft((page + count, length - count))
                length = count
            taken.append((page, length))
            count -= length
            self.npages -= length
        return taken

    def _pages_came(self, answer: Completion) -> None:
        _check(answer)
        self.asked = False
        self.npages += PAGES
        self.runs += _runs(memoryview(answer.data).cast("Q"))

    def forget(self) -> dict[str, float]:
        """Nothing of the file is in core after this."""
        for start in self.starts:
            for at in range(0, EXTENT_BLOCKS, 1024):
                self.env.call("delete_attr", DEV, data=pack_extents([(start + at, 1024, 0)]))
        return {}

    def _read(self, group: list[int], blocks: int) -> None:
        for db in group:
            self.env.submit(
                "insert_and_read", self.da, cap=self.cap, data=pack_extents([(db, blocks, 1)]), then=self._landed
            )

    def _landed(self, answer: Completion) -> None:
        _check(answer)
        self.flying -= 1


def _check(answer: Completion) -> None:
    if answer.code:
        raise SystemExit(f"xnload: {answer.code} {answer.data!r}")


def _runs(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, length) of the runs of adjacent pages, which ascend."""
    at = 0
    while at < len(pages):
        length = 1
        if pages[-1] - pages[at] == len(pages) - 1 - at:
            length = len(pages) - at
        while at + length < len(pages) and pages[at + length] == pages[at] + length:
            length += 1
        yield pages[at], length
        at += length


def main(env: Any, argv: list[str]) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    load = Load(env)
    said: dict[str, float] = {}
    while True:
        print(json.dumps(said), flush=True)
        signal.sigwait([signal.SIGUSR1])
        with open(COMMAND) as file:
            what, *rest = file.read().split()
        if what == "calls":
            said = {name: getattr(load, name)() for name in ("crossing", "single", "batch", "transaction")}
        elif what == "forget":
            said = load.forget()
        else:
            order, kilobytes, depth = rest
            said = load.data(what, order, int(kilobytes) * 1024 // BLOCK, int(depth))
