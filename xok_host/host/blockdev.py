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
from operator import attrgetter
from typing import Any

import cython

if cython.compiled:
    from cython.cimports.xok_host.host.uring import Ring

from xok_host.abi.errors import BadDisk, InUse
from xok_host.abi.types import BLOCK, SECTOR
from xok_host.host.disk import Buffer, DiskStatistics, Done, check_request
from xok_host.host.engine import MAX_VECTORS, RWF_DSYNC, Engine, best

_SECTOR = cython.declare(cython.longlong, SECTOR)
_BLOCK = cython.declare(cython.longlong, BLOCK)
MAX_REQUEST = 1 << 19
"""Bytes in one merged request."""
_MOST = cython.declare(cython.longlong, MAX_REQUEST)
_VECTORS = cython.declare(cython.longlong, MAX_VECTORS)
MAX_IN_FLIGHT = 256
"""Requests at the device at a time; the rest waits for their completions, for which the engine has a bounded ring."""
AT_ONCE, AT_ONCE_BYTES = 16, MAX_REQUEST
"""What one `poll` looks at, if more has ended: who waited for it gives the device something new meanwhile."""
MIN_BLOCKS = 1024
"""Smallest disk: 4 MiB."""
_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268


@cython.freelist(64)
@cython.cclass
class _Operation:
    """One `read` or `write` of the caller."""

    __slots__ = ("buffers", "done", "durable", "sector", "size", "write")

    def begin(
        self,
        write: cython.bint,
        durable: cython.bint,
        sector: cython.longlong,
        buffers: list,  # type: ignore[type-arg]
        done: Done,
    ) -> None:
        self.write = write
        self.durable = durable
        self.sector = sector
        self.buffers = buffers
        self.size = 0
        self.done = done
        for buffer in buffers:
            self.size += len(buffer)

    def end(self) -> cython.longlong:
        """The sector behind it."""
        return self.sector + self.size // _SECTOR


@cython.freelist(64)
@cython.cclass
class _Request:
    """Neighbouring operations as one request to the device.  `skip` bytes of it are done already."""

    __slots__ = ("operations", "size", "skip")

    def begin(self, operations: list) -> None:  # type: ignore[type-arg]
        self.operations = operations
        self.size = 0
        self.skip = 0
        operation: _Operation
        for operation in operations:
            self.size += operation.size


class _Flush:
    __slots__ = ("done",)

    def __init__(self, done: Done) -> None:
        self.done = done


class BlockDevice:
    """A `Disk` on an open descriptor."""

    __slots__ = (
        "_backlog",
        "_bytes_read",
        "_bytes_written",
        "_errors",
        "_flushes",
        "_in_flight",
        "_operations",
        "_queued",
        "_reads",
        "_ring",
        "_running",
        "_syncs",
        "_writes",
        "direct",
        "engine",
        "fd",
        "nblocks",
        "path",
        "sector_bytes",
    )

    def __init__(self, fd: int, path: str, nblocks: int, sector_bytes: int, direct: bool, engine: Engine) -> None:
        self.fd = fd
        self.path = path
        self.nblocks = nblocks
        self.sector_bytes = sector_bytes
        self.direct = direct
        self.engine = engine
        self._ring: Any = None
        """The engine, if it can be called in C."""
        if cython.compiled and isinstance(engine, Ring):
            self._ring = engine
        self._operations = self._reads = self._writes = self._syncs = 0
        self._bytes_read = self._bytes_written = self._errors = 0
        self._queued: list[_Operation] = []
        self._flushes: list[_Flush] = []
        self._in_flight = 0
        self._running = 0
        self._backlog: deque[_Request | _Flush] = deque()
        """Submitted, and waiting for room in flight."""

    def read(self, sector: cython.longlong, buffers: Sequence[Buffer], done: Done) -> None:
        self.transfer(False, sector, list(buffers), done)

    def write(self, sector: cython.longlong, buffers: Sequence[Buffer], done: Done, *, durable: bool = False) -> None:
        self.transfer(True, sector, list(buffers), done, durable)

    def transfer(
        self,
        write: cython.bint,
        sector: cython.longlong,
        buffers: list,  # type: ignore[type-arg]
        done: Done,
        durable: cython.bint = False,
    ) -> None:
        """`read` or `write`; the list stays as it is until `done`."""
        operation: _Operation = _Operation.__new__(_Operation)
        operation.begin(write, durable, sector, buffers, done)
        size: cython.longlong = operation.size
        if size == 0 or size % _SECTOR or sector < 0 or sector * _SECTOR + size > self.nblocks * _BLOCK:
            check_request(self, sector, buffers)  # which says what is wrong
        self._in_flight += 1
        self._operations += 1
        self._queued.append(operation)

    def flush(self, done: Done) -> None:
        self._flushes.append(_Flush(done))
        self._in_flight += 1
        self._operations += 1

    def submit(self) -> None:
        if self._queued:
            queued, self._queued = self._queued, []
            if not _sorted(queued):
                queued.sort(key=_order)
            for operations in _merge(queued):
                self._start(_request(operations))
        if self._flushes:
            for flush in self._flushes:
                self._start(flush)
                self._syncs += 1
            self._flushes.clear()
        self.engine.submit()

    def poll(self) -> cython.long:
        delivered: cython.long = 0
        for token, result in self.engine.reap(AT_ONCE, AT_ONCE_BYTES):
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
        return DiskStatistics(
            self._operations,
            self._reads,
            self._writes,
            self._syncs,
            self._bytes_read,
            self._bytes_written,
            self._errors,
        )

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
        else:
            self._transfer(request)

    def _transfer(self, request: _Request) -> None:
        operation: _Operation
        first: _Operation = request.operations[0]
        buffers: list[Buffer] = first.buffers
        if len(request.operations) > 1:
            buffers = []
            for operation in request.operations:
                buffers += operation.buffers
        if request.skip:
            buffers = _after(buffers, request.skip)
        flags = RWF_DSYNC if first.durable else 0
        offset = first.sector * SECTOR + request.skip
        if len(buffers) > _VECTORS:
            buffers = buffers[:MAX_VECTORS]
        if self._ring is not None:
            self._ring.queue_rw(first.write, self.fd, offset, buffers, request, flags)
        else:
            self.engine.queue_rw(first.write, self.fd, offset, buffers, request, flags)
        if first.write:
            self._writes += 1
        else:
            self._reads += 1

    def _finish(self, request: _Request, result: cython.long) -> cython.long:
        """What the device did with a request; how many operations have ended."""
        operation: _Operation = request.operations[0]
        delivered: cython.long = 0
        code: cython.int = 0
        if result > 0 and request.skip + result < request.size:
            request.skip += result  # the device stopped short: go on from there
            self._start(request)
            self.engine.submit()
            return 0
        if result > 0:
            if operation.write:
                self._bytes_written += request.size
            else:
                self._bytes_read += request.size
        elif len(request.operations) > 1:
            for operation in request.operations:
                self._start(_request([operation]))
            self.engine.submit()
            return 0
        else:
            code = -result or errno.EIO  # nothing transferred: the device is shorter than it was
        for operation in request.operations:
            delivered += self._deliver(operation.done, code)
        return delivered

    def _deliver(self, done: Done, code: cython.int) -> cython.long:
        self._in_flight -= 1
        if code:
            self._errors += 1
        done(code)
        return 1


def _request(operations: list) -> _Request:  # type: ignore[type-arg]
    request: _Request = _Request.__new__(_Request)
    request.begin(operations)
    return request


_order = attrgetter("write", "durable", "sector")


def _sorted(queued: list) -> cython.bint:  # type: ignore[type-arg]
    """Whether they are in that order, as the kernel's requests are."""
    last: _Operation = queued[0]
    operation: _Operation
    for operation in queued:
        if operation.write != last.write or operation.durable != last.durable:
            if last.write or last.durable or operation.durable:
                return False
        elif operation.sector < last.sector:
            return False
        last = operation
    return True


def _merge(queued: list) -> list:  # type: ignore[type-arg]
    """Runs of neighbours, each within the bounds of one request.  `queued` is sorted."""
    if len(queued) == 1:
        return [queued]
    runs: list[list[_Operation]] = []
    run: list[_Operation] = []
    size: cython.longlong = 0
    vectors: cython.long = 0
    operation: _Operation
    last: _Operation | None = None
    for operation in queued:
        if (
            last is not None
            and last.end() == operation.sector
            and last.write == operation.write
            and last.durable == operation.durable
            and size + operation.size <= _MOST
            and vectors + len(operation.buffers) <= _VECTORS
        ):
            run.append(operation)
        else:
            run = [operation]
            runs.append(run)
            size = vectors = 0
        size += operation.size
        vectors += len(operation.buffers)
        last = operation
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
