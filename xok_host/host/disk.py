"""What a disk is to xokd: asynchronous, in sectors, from and into the caller's own memory.

D-1  `read`, `write` and `flush` only queue; `submit` starts what is queued, and `poll` what there was no room for yet;
     `poll` calls the `done` functions of what has finished.  `done` gets 0 or an errno, is called from `poll` only, and
     may queue more.
D-2  Requests that were submitted together may be carried out in any order.  A flush covers the writes that had
     *completed* when it was submitted, and no others.
D-3  A write is durable when a later flush, or the write itself with `durable`, has completed.
D-4  Buffers stay as they are until `done`: a page being written is a snapshot.  Lengths are multiples of `SECTOR`.
D-5  A sector is written whole or not at all; a request of several may be cut anywhere between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from xok_host.abi.types import SECTOR, SECTORS

Buffer: TypeAlias = memoryview
Done: TypeAlias = Callable[[int], None]


@dataclass(slots=True)
class DiskStatistics:
    """Counts since the disk was opened.  Requests are the device's, after merging; operations are the caller's."""

    operations: int = 0
    read_requests: int = 0
    write_requests: int = 0
    flushes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0


class Disk(Protocol):
    """D-1 … D-5."""

    nblocks: int
    sector_bytes: int
    """The unit that is written atomically: 512, or 4096 on disks that have larger sectors."""

    def read(self, sector: int, buffers: Sequence[Buffer], done: Done) -> None: ...

    def write(self, sector: int, buffers: Sequence[Buffer], done: Done, *, durable: bool = False) -> None: ...

    def flush(self, done: Done) -> None: ...

    def submit(self) -> None: ...

    def poll(self) -> int:
        """Deliver what has finished; how many operations that were."""
        ...

    def in_flight(self) -> int:
        """Operations queued or submitted, and not delivered."""
        ...

    def fileno(self) -> int:
        """Readable when `poll` has something to deliver; −1 for disks that have it at once."""
        ...

    def statistics(self) -> DiskStatistics: ...

    def close(self) -> None: ...


def sector_of(db: int) -> int:
    """First sector of a block."""
    return db * SECTORS


def nbytes(buffers: Sequence[Buffer]) -> int:
    return sum(buffer.nbytes for buffer in buffers)


def check_request(disk: Disk, sector: int, buffers: Sequence[Buffer]) -> int:
    """Bytes of a request; ValueError if it is empty, not whole sectors, or outside the disk."""
    size = nbytes(buffers)
    if size == 0 or size % SECTOR or sector < 0 or sector * SECTOR + size > disk.nblocks * SECTORS * SECTOR:
        raise ValueError(f"{size} bytes at sector {sector} are not whole sectors of a disk of {disk.nblocks} blocks")
    return size


def drain(disk: Disk) -> None:
    """Submit and wait until nothing is in flight."""
    import select

    disk.submit()
    while disk.in_flight():
        if disk.fileno() >= 0:
            select.select([disk.fileno()], [], [])
        disk.poll()
        disk.submit()
