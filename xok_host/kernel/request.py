"""Disk requests: the kernel gives them out and is told of their end; it does no I/O itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from xok_host.abi.types import SECTORS

MAX_REQUEST_SECTORS = 2048
"""1 MiB: longer runs become several requests."""


class IoOp(IntEnum):
    READ = 1
    WRITE = 2
    FLUSH = 3


@dataclass(slots=True)
class IoRequest:
    """One request to one device.

    `sector` is the first on the disk (512 bytes each); `iov` lists (page number, first sector in the page, sectors),
    which lie one after another on the disk.  The pages stay as they are until `Kernel.io_done(token, errno)`.
    """

    op: IoOp
    dev: int
    sector: int = 0
    iov: list[tuple[int, int, int]] = field(default_factory=list)
    token: int = 0

    @property
    def sectors(self) -> int:
        return sum(count for _, _, count in self.iov)


@dataclass(slots=True)
class Piece:
    """A run of sectors of one page on its way to or from the disk; `owner` is told of its end."""

    db: int
    page: int
    first: int
    count: int
    owner: object

    @property
    def sector(self) -> int:
        return self.db * SECTORS + self.first


def mask_runs(mask: int) -> list[tuple[int, int]]:
    """Runs of set bits in a sector mask, as (first, count)."""
    runs = []
    first = 0
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


def merge(pieces: list[Piece]) -> list[list[Piece]]:
    """The pieces in disk order, neighbours together, no run longer than MAX_REQUEST_SECTORS."""
    pieces = sorted(pieces, key=lambda piece: (piece.db, piece.first))
    runs: list[list[Piece]] = []
    end = length = -1
    for piece in pieces:
        if piece.sector == end and length + piece.count <= MAX_REQUEST_SECTORS:
            runs[-1].append(piece)
            length += piece.count
        else:
            runs.append([piece])
            length = piece.count
        end = piece.sector + piece.count
    return runs
