"""The raw disk under XN: a block device or an image file, O_DIRECT where the host allows it.

What is queued between two `submit`s is sorted, and neighbours become one request.  If a merged request fails, its
operations are tried one by one, so that a bad sector is an error to those alone who touch it.

Opening takes the disk for xokd alone: O_EXCL on a block device (the kernel refuses mounted ones), flock on an image
file, and a look whether a loop device sits on it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import stat
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from xok_host.abi.errors import BadDisk, InUse
from xok_host.abi.types import BLOCK, SECTOR
from xok_host.host.disk import Buffer, DiskStatistics, Done, check_request
from xok_host.host.engine import MAX_VECTORS, RWF_DSYNC, Engine, best

MAX_REQUEST = 1 << 20
"""Bytes in one merged request."""
MAX_IN_FLIGHT = 256
"""Requests at the device at a time; the rest waits for their completions, for which the engine has a bounded ring."""
MIN_BLOCKS = 1024
"""Smallest disk: 4 MiB."""
_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268


@dataclass(slots=True)
class _Operation:
    """One `read` or `write` of the caller."""

    write: bool
    durable: bool
    sector: int
    buffers: list[Buffer]
    size: int
    done: Done

    @property
    def end(self) -> int:
        return self.sector + self.size // SECTOR


@dataclass(slots=True)
class _Request:
    """Neighbouring operations as one request to the device.  `skip` bytes of it are done already."""

    operations: list[_Operation]
    size: int
    skip: int = 0


@dataclass(slots=True)
class _Flush:
    done: Done


@dataclass(slots=True)
class BlockDevice:
    """A `Disk` on an open descriptor."""

    fd: int
    path: str
    nblocks: int
    sector_bytes: int
    direct: bool
    engine: Engine
    counts: DiskStatistics = field(default_factory=DiskStatistics)
    _queued: list[_Operation] = field(default_factory=list)
    _flushes: list[_Flush] = field(default_factory=list)
    _in_flight: int = 0
    _running: int = 0
    _backlog: deque[_Request | _Flush] = field(default_factory=deque)
    """Submitted, and waiting for room in flight."""

    def read(self, sector: int, buffers: Sequence[Buffer], done: Done) -> None:
        self._queue(_Operation(False, False, sector, list(buffers), check_request(self, sector, buffers), done))

    def write(self, sector: int, buffers: Sequence[Buffer], done: Done, *, durable: bool = False) -> None:
        self._queue(_Operation(True, durable, sector, list(buffers), check_request(self, sector, buffers), done))

    def flush(self, done: Done) -> None:
        self._flushes.append(_Flush(done))
        self._in_flight += 1
        self.counts.operations += 1

    def _queue(self, operation: _Operation) -> None:
        self._queued.append(operation)
        self._in_flight += 1
        self.counts.operations += 1

    def submit(self) -> None:
        if self._queued:
            queued, self._queued = self._queued, []
            queued.sort(key=lambda operation: (operation.write, operation.durable, operation.sector))
            for operations in _merge(queued):
                self._start(_Request(operations, sum(operation.size for operation in operations)))
        for flush in self._flushes:
            self._start(flush)
            self.counts.flushes += 1
        self._flushes.clear()
        self.engine.submit()

    def poll(self) -> int:
        delivered = 0
        for token, result in self.engine.reap():
            self._running -= 1
            if isinstance(token, _Flush):
                delivered += self._deliver(token.done, 0 if result >= 0 else -result)
            else:
                delivered += self._finish(token, result)
        if self._backlog:
            while self._backlog and self._running < MAX_IN_FLIGHT:
                self._issue(self._backlog.popleft())
            self.engine.submit()
        return delivered

    def in_flight(self) -> int:
        return self._in_flight

    def fileno(self) -> int:
        return self.engine.fileno()

    def statistics(self) -> DiskStatistics:
        return self.counts

    def close(self) -> None:
        """Wait for nothing: the caller has drained the disk."""
        self.engine.close()
        os.close(self.fd)

    def _start(self, request: _Request | _Flush) -> None:
        if self._running < MAX_IN_FLIGHT and not self._backlog:
            self._issue(request)
        else:
            self._backlog.append(request)

    def _issue(self, request: _Request | _Flush) -> None:
        self._running += 1
        if isinstance(request, _Flush):
            self.engine.queue_sync(self.fd, request)
            return
        first = request.operations[0]
        buffers = [buffer for operation in request.operations for buffer in operation.buffers]
        if request.skip:
            buffers = _after(buffers, request.skip)
        flags = RWF_DSYNC if first.durable else 0
        offset = first.sector * SECTOR + request.skip
        self.engine.queue_rw(first.write, self.fd, offset, buffers[:MAX_VECTORS], request, flags)
        if first.write:
            self.counts.write_requests += 1
        else:
            self.counts.read_requests += 1

    def _finish(self, request: _Request, result: int) -> int:
        write = request.operations[0].write
        if result > 0 and request.skip + result < request.size:
            request.skip += result  # the device stopped short: go on from there
            self._start(request)
            self.engine.submit()
            return 0
        if result > 0:
            if write:
                self.counts.bytes_written += request.size
            else:
                self.counts.bytes_read += request.size
            code = 0
        elif len(request.operations) > 1:
            for operation in request.operations:
                self._start(_Request([operation], operation.size))
            self.engine.submit()
            return 0
        else:
            code = -result or errno.EIO  # nothing transferred: the device is shorter than it was
        return sum(self._deliver(operation.done, code) for operation in request.operations)

    def _deliver(self, done: Done, code: int) -> int:
        self._in_flight -= 1
        if code:
            self.counts.errors += 1
        done(code)
        return 1


def _merge(queued: Sequence[_Operation]) -> list[list[_Operation]]:
    """Runs of neighbours, each within the bounds of one request.  `queued` is sorted."""
    runs: list[list[_Operation]] = []
    size = vectors = 0
    for operation in queued:
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and (last.write, last.durable, last.end) == (operation.write, operation.durable, operation.sector)
            and size + operation.size <= MAX_REQUEST
            and vectors + len(operation.buffers) <= MAX_VECTORS
        ):
            runs[-1].append(operation)
            size += operation.size
            vectors += len(operation.buffers)
        else:
            runs.append([operation])
            size, vectors = operation.size, len(operation.buffers)
    return runs


def _after(buffers: Sequence[Buffer], skip: int) -> list[Buffer]:
    """What is left of `buffers` after `skip` bytes."""
    out = []
    for buffer in buffers:
        if skip >= buffer.nbytes:
            skip -= buffer.nbytes
        else:
            out.append(buffer[skip:])
            skip = 0
    return out


# ---- opening


def open_disk(path: str, *, without: frozenset[str] = frozenset()) -> BlockDevice:
    """Take `path` for this process alone.  Raises `BadDisk` or `InUse`, naming the path and what to do."""
    mode = _mode(path)
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if stat.S_ISBLK(mode) else 0)
    fd, direct = _open(path, flags, "direct" not in without)
    try:
        _take(fd, path, mode)
        sector_bytes, size = geometry(fd)
        if sector_bytes != SECTOR:
            raise BadDisk(
                f"{path} has logical sectors of {sector_bytes} bytes, and XN orders writes of {SECTOR}: take a disk or "
                f"partition with sectors of {SECTOR} (a 512e disk has them), an image file, or a loop device over it "
                f"(losetup --sector-size {SECTOR})"
            )
        if size // BLOCK < MIN_BLOCKS:
            raise BadDisk(f"{path} has {size} bytes; a disk has at least {MIN_BLOCKS * BLOCK}")
        return BlockDevice(fd, path, size // BLOCK, sector_bytes, direct, best(without))
    except BaseException:
        os.close(fd)
        raise


def _mode(path: str) -> int:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise BadDisk(f"{path} does not exist; `xok format {path} --size 4G` makes it") from None
    except OSError as error:
        raise BadDisk(f"{path}: {error.strerror}") from None
    if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
        raise BadDisk(f"{path} is neither a block device nor a file")
    return mode


def _open(path: str, flags: int, direct: bool) -> tuple[int, bool]:
    try:
        if direct:
            with contextlib.suppress(OSError):
                return os.open(path, flags | os.O_DIRECT), True
        return os.open(path, flags), False
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise InUse(f"{path} is mounted or belongs to another program; unmount it first") from None
        raise BadDisk(f"{path}: {error.strerror}") from None


def _take(fd: int, path: str, mode: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InUse(f"{path} is open in another xokd or `xok check`; stop that one first") from None
    if stat.S_ISREG(mode):
        for name in glob.glob("/sys/block/loop*/loop/backing_file"):
            with contextlib.suppress(OSError), open(name) as file:
                if file.read().strip() == os.path.realpath(path):
                    raise InUse(f"{path} backs {name.split('/')[3]}; detach that loop device first (losetup -d)")


def geometry(fd: int) -> tuple[int, int]:
    """Bytes that are written atomically, and the size in bytes."""
    info = os.fstat(fd)
    if stat.S_ISREG(info.st_mode):
        return SECTOR, info.st_size
    size = struct.unpack("<Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
    sector = struct.unpack("<i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]
    return sector, size
