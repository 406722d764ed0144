"""A disk that records: every write and flush of a run, in order, with marks that say what had been promised by then.

The disk is full of somebody else's bytes to begin with (`FOREIGN`), so that whatever shows a block which nobody has
written is found out.

RECORD-1  A write is one request as XN asked for it: adjacent sectors, taken in order.
RECORD-2  A barrier covers the writes that had ended when it was asked for, and no others: of requests that go to the
          disk together the flush is carried out first.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from xok_host.abi.types import BLOCK, SECTOR
from xok_host.kernel.local import LocalXok, RamDisk
from xok_host.kernel.request import IoOp, IoRequest

FOREIGN = b"SOMEBODY ELSE'S "
CHUNKS = 16


def foreign_disk(nblocks: int) -> bytearray:
    """A disk as somebody else left it: each sector says so, and which one it is."""
    return bytearray(b"".join((FOREIGN + b"%015d " % n) * (SECTOR // 32) for n in range(nblocks * BLOCK // SECTOR)))


def digest_of(sector: int, data: bytes | bytearray | memoryview) -> int:
    """What a sector with these contents adds (by XOR) to the digest of an image."""
    return int.from_bytes(blake2b(sector.to_bytes(8, "little") + bytes(data), digest_size=12).digest(), "little")


@dataclass(slots=True)
class Write:
    """A request, as far as it has been carried out: sectors from `sector` on."""

    sector: int
    data: list[bytes] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)

    def append(self, raw: bytes) -> None:
        self.digests.append(digest_of(self.sector + len(self.data), raw))
        self.data.append(raw)


@dataclass(slots=True, frozen=True)
class Barrier:
    """A flush that has ended."""


@dataclass(slots=True, frozen=True)
class Mark:
    """From here on `expect` holds.  `promise`: something has become certain that was not before."""

    expect: Any
    promise: bool


Record = Write | Barrier | Mark


class RecordingDisk(RamDisk):
    """A RAM disk with a log.  `recording` False: what happens is not logged (preparations)."""

    def __init__(self, nblocks: int, image: bytes | bytearray | None = None) -> None:
        super().__init__(nblocks)
        self.data[:] = foreign_disk(nblocks) if image is None else image
        self.durable[:] = self.data
        self.log: list[Record] = []
        self.recording = False
        self.fault: Callable[[IoOp], int] = lambda op: 0
        """The errno for the next request of that kind, or 0."""
        self._open: Write | None = None

    def begin_write(self, sector: int) -> None:
        self._open = Write(sector)
        if self.recording:
            self.log.append(self._open)

    def write_sectors(self, sector: int, data: bytes | memoryview) -> None:
        """As part of the open request, or (XN's repair) as a request of its own."""
        if self._open is None:
            self.begin_write(sector)
            self._append(data)
            self._open = None
        else:
            self._append(data)
        super().write_sectors(sector, data)

    def _append(self, data: bytes | memoryview) -> None:
        assert self._open is not None
        for at in range(0, len(data), SECTOR):
            self._open.append(bytes(data[at : at + SECTOR]))

    def end_write(self) -> None:
        self._open = None

    def flush(self) -> None:
        super().flush()
        if self.recording:
            self.log.append(Barrier())

    def mark(self, expect: Any, promise: bool) -> None:
        if self.recording:
            self.log.append(Mark(expect, promise))

    def record(self) -> bytes:
        """Begin to record: what is on the disk now is durable, and given back."""
        self.durable[:] = self.data
        self.unflushed.clear()
        self.log.clear()
        self.recording = True
        return bytes(self.data)


class RecordingXok(LocalXok):
    """The exokernel on a recording disk.  With `shuffle`, requests that are on their way together end in any order."""

    disk: RecordingDisk

    def __init__(self, disk: RecordingDisk, *, format: bool = True, shuffle: random.Random | None = None) -> None:
        self.shuffle = shuffle
        super().__init__(disk=disk, format=format, max_chunks=CHUNKS, entries=1 << 10)

    def boot(self) -> None:
        """A new kernel on the disk as it is."""
        self._boot()

    def pump(self) -> None:
        """As the local kernel's, with the disk's freedom (RECORD-2)."""
        while True:
            requests = self.kernel.take_io()
            if self.shuffle is not None:
                self.shuffle.shuffle(requests)
            for request in sorted(requests, key=lambda request: request.op != IoOp.FLUSH):
                self._carry_out(request)
            if not self._deliver() and not requests:
                return

    def _carry_out(self, request: IoRequest) -> None:
        code = self.disk.fault(request.op)
        if request.op == IoOp.WRITE:
            self._write(request, code)
        elif not code:
            super()._carry_out(request)
            return
        self.kernel.io_done(request.token, code)

    def _write(self, request: IoRequest, code: int) -> None:
        """All of a request; of one that fails with EIO, the first half."""
        left = request.sectors if not code else request.sectors // 2 if code == errno.EIO else 0
        self.disk.begin_write(request.sector)
        sector = request.sector
        for page, first, count in request.iov:
            count = min(count, left)
            if count:
                self.disk.write_sectors(sector, self.kernel.pages.span(page, first, count))
            sector += count
            left -= count
        self.disk.end_write()
