"""Disks around disks: in memory, recording, failing on request, losing power.

CrashingDisk(MemoryDisk(4096))          every crash an honest disk could suffer
FaultInjector(disk, fail=...)           media errors where a test wants them
RecordingDisk(disk)                     what was asked, in order
"""

from __future__ import annotations

import errno
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xok_host.abi.types import BLOCK, SECTOR
from xok_host.host.disk import Buffer, Disk, DiskStatistics, Done, check_request


class MemoryDisk:
    """A disk in memory.  Completes at the next `poll`; writes are taken at `submit`, as a device would."""

    sector_bytes = SECTOR

    def __init__(self, nblocks: int, data: bytearray | None = None) -> None:
        self.nblocks = nblocks
        self.data = bytearray(nblocks * BLOCK) if data is None else data
        self.counts = DiskStatistics()
        self._queued: list[Callable[[], None]] = []
        self._finished: deque[Done] = deque()

    def read(self, sector: int, buffers: Sequence[Buffer], done: Done) -> None:
        size = check_request(self, sector, buffers)

        def carry_out() -> None:
            at = sector * SECTOR
            for buffer in buffers:
                buffer[:] = self.data[at : at + buffer.nbytes]
                at += buffer.nbytes
            self.counts.read_requests += 1
            self.counts.bytes_read += size
            self._finished.append(done)

        self._queue(carry_out)

    def write(self, sector: int, buffers: Sequence[Buffer], done: Done, *, durable: bool = False) -> None:
        size = check_request(self, sector, buffers)

        def carry_out() -> None:
            at = sector * SECTOR
            for buffer in buffers:
                self.data[at : at + buffer.nbytes] = buffer
                at += buffer.nbytes
            self.counts.write_requests += 1
            self.counts.bytes_written += size
            self._finished.append(done)

        self._queue(carry_out)

    def flush(self, done: Done) -> None:
        def carry_out() -> None:
            self.counts.flushes += 1
            self._finished.append(done)

        self._queue(carry_out)

    def _queue(self, action: Callable[[], None]) -> None:
        self.counts.operations += 1
        self._queued.append(action)

    def submit(self) -> None:
        queued, self._queued = self._queued, []
        for action in queued:
            action()

    def poll(self) -> int:
        count = len(self._finished)
        for _ in range(count):
            self._finished.popleft()(0)
        return count

    def in_flight(self) -> int:
        return len(self._queued) + len(self._finished)

    def fileno(self) -> int:
        return -1

    def statistics(self) -> DiskStatistics:
        return self.counts

    def close(self) -> None:
        pass


class _Wrapper:
    """Passes everything on."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.nblocks = disk.nblocks
        self.sector_bytes = disk.sector_bytes

    def read(self, sector: int, buffers: Sequence[Buffer], done: Done) -> None:
        self.disk.read(sector, buffers, done)

    def write(self, sector: int, buffers: Sequence[Buffer], done: Done, *, durable: bool = False) -> None:
        self.disk.write(sector, buffers, done, durable=durable)

    def flush(self, done: Done) -> None:
        self.disk.flush(done)

    def submit(self) -> None:
        self.disk.submit()

    def poll(self) -> int:
        return self.disk.poll()

    def in_flight(self) -> int:
        return self.disk.in_flight()

    def fileno(self) -> int:
        return self.disk.fileno()

    def statistics(self) -> DiskStatistics:
        return self.disk.statistics()

    def close(self) -> None:
        self.disk.close()


@dataclass(slots=True, frozen=True)
class Record:
    """One request as it was asked: kind is "read", "write" or "flush"."""

    kind: str
    sector: int
    sectors: int


class RecordingDisk(_Wrapper):
    """Remembers what was asked, in order, in `records`."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.records: list[Record] = []

    def read(self, sector: int, buffers: Sequence[Buffer], done: Done) -> None:
        self.records.append(Record("read", sector, check_request(self, sector, buffers) // SECTOR))
        super().read(sector, buffers, done)

    def write(self, sector: int, buffers: Sequence[Buffer], done: Done, *, durable: bool = False) -> None:
        self.records.append(Record("write", sector, check_request(self, sector, buffers) // SECTOR))
        super().write(sector, buffers, done, durable=durable)

    def flush(self, done: Done) -> None:
        self.records.append(Record("flush", 0, 0))
        super().flush(done)


class FaultInjector(_Wrapper):
    """Fails requests: `fail(kind, sector, sectors)` gives 0 or the errno to fail with, before the device is asked."""

    def __init__(self, disk: Disk, fail: Callable[[str, int, int], int]) -> None:
        super().__init__(disk)
        self.fail = fail
        self._failed: deque[tuple[Done, int]] = deque()

    def read(self, sector: int, buffers: Sequence[Buffer], done: Done) -> None:
        if not self._refuse("read", sector, check_request(self, sector, buffers), done):
            super().read(sector, buffers, done)

    def write(self, sector: int, buffers: Sequence[Buffer], done: Done, *, durable: bool = False) -> None:
        if not self._refuse("write", sector, check_request(self, sector, buffers), done):
            super().write(sector, buffers, done, durable=durable)

    def flush(self, done: Done) -> None:
        if not self._refuse("flush", 0, 0, done):
            super().flush(done)

    def _refuse(self, kind: str, sector: int, size: int, done: Done) -> bool:
        code = self.fail(kind, sector, size // SECTOR)
        if code:
            self._failed.append((done, code))
        return code != 0

    def poll(self) -> int:
        count = len(self._failed)
        for _ in range(count):
            done, code = self._failed.popleft()
            done(code)
        return count + super().poll()

    def in_flight(self) -> int:
        return len(self._failed) + super().in_flight()

    def fileno(self) -> int:
        return -1 if self._failed else super().fileno()


@dataclass(slots=True)
class _Write:
    sector: int
    data: bytes


@dataclass(slots=True)
class CrashingDisk:
    """A disk with a volatile cache that can lose power.

    `image(seed)` is what a crash now could leave: every write that a completed flush covers, and of the later ones any
    subset of their sectors, in any order per sector (D-3, D-5).  `after` limits the writes that are taken at all, so
    that a test can cut the power at each of them in turn.
    """

    nblocks: int
    sector_bytes: int = SECTOR
    after: int | None = None
    counts: DiskStatistics = field(default_factory=DiskStatistics)
    durable: bytearray = field(default_factory=bytearray)
    current: bytearray = field(default_factory=bytearray)
    volatile: list[_Write] = field(default_factory=list)
    _queued: list[Callable[[], None]] = field(default_factory=list)
    _flushes: list[Done] = field(default_factory=list)
    _finished: deque[tuple[Done, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if not self.durable:
            self.durable = bytearray(self.nblocks * BLOCK)
        self.current = bytearray(self.durable)

    @property
    def crashed(self) -> bool:
        return self.after is not None and self.counts.write_requests >= self.after

    def read(self, sector: int, buffers: Sequence[Buffer], done: Done) -> None:
        check_request(self, sector, buffers)

        def carry_out() -> None:
            at = sector * SECTOR
            for buffer in buffers:
                buffer[:] = self.current[at : at + buffer.nbytes]
                at += buffer.nbytes
            self.counts.read_requests += 1
            self._finished.append((done, 0))

        self._queued.append(carry_out)

    def write(self, sector: int, buffers: Sequence[Buffer], done: Done, *, durable: bool = False) -> None:
        check_request(self, sector, buffers)

        def carry_out() -> None:
            if self.crashed:
                self._finished.append((done, errno.EIO))
                return
            data = b"".join(bytes(buffer) for buffer in buffers)
            at = sector * SECTOR
            self.current[at : at + len(data)] = data
            self.counts.write_requests += 1
            self.volatile.append(_Write(sector, data))
            if durable:
                self.volatile.pop()
                self._settle(range(sector, sector + len(data) // SECTOR), data)
            self._finished.append((done, 0))

        self._queued.append(carry_out)

    def _settle(self, sectors: range, data: bytes) -> None:
        at = sectors.start * SECTOR
        self.durable[at : at + len(data)] = data
        kept = []
        for write in self.volatile:  # an older cached write must not overwrite what is durable now
            for index in range(len(write.data) // SECTOR):
                if write.sector + index not in sectors:
                    kept.append(_Write(write.sector + index, write.data[index * SECTOR : (index + 1) * SECTOR]))
        self.volatile = kept

    def flush(self, done: Done) -> None:
        self._flushes.append(done)

    def submit(self) -> None:
        for done in self._flushes:  # before the writes submitted with them, which they do not cover (D-2)
            self._finished.append((done, self._carry_out_flush()))
        self._flushes.clear()
        queued, self._queued = self._queued, []
        for action in queued:
            action()

    def _carry_out_flush(self) -> int:
        if self.crashed:
            return errno.EIO
        self.counts.flushes += 1
        for write in self.volatile:
            at = write.sector * SECTOR
            self.durable[at : at + len(write.data)] = write.data
        self.volatile.clear()
        return 0

    def poll(self) -> int:
        count = len(self._finished)
        for _ in range(count):
            done, code = self._finished.popleft()
            done(code)
        return count

    def in_flight(self) -> int:
        return len(self._queued) + len(self._flushes) + len(self._finished)

    def fileno(self) -> int:
        return -1

    def statistics(self) -> DiskStatistics:
        return self.counts

    def close(self) -> None:
        pass

    def image(self, seed: int, *, atomic: bool = False) -> bytearray:
        """What is on the disk after losing power now.  `atomic`: whole requests survive or not, in order."""
        chance = random.Random(seed)
        image = bytearray(self.durable)
        if atomic:
            survivors = self.volatile[: chance.randint(0, len(self.volatile))]
        else:
            survivors = []
            latest: dict[int, list[bytes]] = {}
            for write in self.volatile:
                for index in range(len(write.data) // SECTOR):
                    piece = write.data[index * SECTOR : (index + 1) * SECTOR]
                    latest.setdefault(write.sector + index, []).append(piece)
            for sector, versions in latest.items():
                which = chance.randint(0, len(versions))  # 0: none of them reached the disk
                if which:
                    survivors.append(_Write(sector, versions[which - 1]))
        for write in survivors:
            at = write.sector * SECTOR
            image[at : at + len(write.data)] = write.data
        return image
