"""Disk requests: the kernel gives them out and is told of their end; it does no I/O itself."""

from __future__ import annotations

from enum import IntEnum
from operator import attrgetter

import cython

from xok_host.abi.types import CHUNK_PAGES, SECTORS

MAX_REQUEST_SECTORS = 1024
"""512 KiB: longer runs become several requests.  That is 128 pages, as many pieces of memory as Linux lets a request to
most devices have; a longer one would be split there, and io_uring would hand it to a thread for that."""

_MOST = cython.declare(cython.int, MAX_REQUEST_SECTORS)
_SECTORS = cython.declare(cython.ulonglong, SECTORS)
_CHUNK_SECTORS = cython.declare(cython.ulonglong, CHUNK_PAGES * SECTORS)


class IoOp(IntEnum):
    READ = 1
    WRITE = 2
    FLUSH = 3


@cython.freelist(64)
@cython.cclass
class IoRequest:
    """One request to one device.

    `sector` is the first on the disk (512 bytes each); `iov` lists (page number, first sector in the page, sectors),
    which lie one after another on the disk; one may reach into the pages behind it in its chunk (`Pages.span`).  The
    pages stay as they are until `Kernel.io_done(token, errno)`; the kernel tells `owners` of it.
    """

    __slots__ = ("dev", "iov", "op", "owners", "sector", "token")

    def __init__(self, op: IoOp, dev: int, sector: int, iov: list[tuple[int, int, int]], owners: list[Piece]) -> None:
        self.op = op
        self.dev = dev
        self.sector = sector
        self.iov = iov
        self.owners = owners
        self.token = 0

    @property
    def sectors(self) -> int:
        return sum(count for _, _, count in self.iov)


class Piece:
    """`count` sectors from `first` of one page on, on their way to or from `sector` of the disk.

    What waits for them is a class of its own, which is told by `arrived`."""

    __slots__ = ("count", "first", "page", "sector")

    def __init__(self, sector: int, page: int, first: int, count: int) -> None:
        self.sector = sector
        self.page = page
        self.first = first
        self.count = count

    def arrived(self, errno: cython.int) -> None:
        """It has ended: 0, or the device's errno."""


_by_sector = attrgetter("sector")


def mask_runs(mask: cython.int) -> list[tuple[int, int]]:
    """Runs of set bits in a sector mask, as (first, count)."""
    runs = []
    first: cython.int = 0
    end: cython.int
    while mask >> first:
        if not mask >> first & 1:
            first += 1
            continue
        end = first
        while mask >> end & 1:
            end += 1
        runs.append((first, end - first))
        first = end
    return runs


def requests(op: IoOp, dev: cython.ulonglong, pieces: list) -> list:  # type: ignore[type-arg]
    """The pieces in disk order, neighbours together, no request longer than MAX_REQUEST_SECTORS."""
    out = []
    made: IoRequest
    n: cython.Py_ssize_t = len(pieces)
    i: cython.Py_ssize_t
    piece: Piece
    before: Piece
    for i in range(1, n):
        before = pieces[i - 1]
        piece = pieces[i]
        if before.sector > piece.sector:
            pieces = sorted(pieces, key=_by_sector)
            break
    i = 0
    start: cython.ulonglong
    total: cython.int
    at: cython.ulonglong  # in memory, in sectors
    begin: cython.ulonglong
    end: cython.ulonglong
    while i < n:
        piece = pieces[i]
        start = piece.sector
        begin = at = piece.page * _SECTORS + piece.first
        total = 0
        iov: list[tuple[int, int, int]] = []
        owners: list[Piece] = []
        end = begin
        while piece.sector == start + total and total + piece.count <= _MOST:
            at = piece.page * _SECTORS + piece.first
            if at != end or total and not at % _CHUNK_SECTORS:
                iov.append((begin // _SECTORS, begin % _SECTORS, end - begin))
                begin = end = at
            end += piece.count
            total += piece.count
            owners.append(piece)
            i += 1
            if i == n:
                break
            piece = pieces[i]
        iov.append((begin // _SECTORS, begin % _SECTORS, end - begin))
        made = IoRequest.__new__(IoRequest)
        made.op, made.dev, made.sector, made.iov, made.owners = op, dev, start, iov, owners
        out.append(made)
    return out
