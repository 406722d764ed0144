"""Reconstruction of a disk that no kernel has active: by `xok check`, and by `xok up` after an unclean stop."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

from xok_host.abi.errors import MediaError
from xok_host.abi.types import BLOCK, SECTOR, SECTORS
from xok_host.host.disk import Disk, drain
from xok_host.kernel.xn import recover

READ_AHEAD = 64
"""Blocks brought in at once: trees are mostly laid out in order."""
CACHED_RUNS = 1024


class BlockReader:
    """Reads single blocks, one after another, for the walk.  Raises MediaError."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._runs: dict[int, bytes] = {}

    def __call__(self, db: int) -> bytes:
        run = db // READ_AHEAD
        data = self._runs.get(run)
        if data is None:
            if len(self._runs) >= CACHED_RUNS:
                self._runs.pop(next(iter(self._runs)))
            data = self._runs[run] = self._read(run)
        at = db % READ_AHEAD * BLOCK
        return data[at : at + BLOCK]

    def _read(self, run: int) -> bytes:
        first = run * READ_AHEAD
        count = min(READ_AHEAD, self._disk.nblocks - first)
        memory = mmap.mmap(-1, count * BLOCK)
        errors: list[int] = []
        self._disk.read(first * SECTORS, [memoryview(memory)], errors.append)
        drain(self._disk)
        if errors[0]:
            raise MediaError(f"blocks {first} to {first + count - 1} cannot be read: {os.strerror(errors[0])}")
        return bytes(memory)


def examine(disk: Disk) -> recover.Report:
    """Walk everything.  Changes nothing.  Raises BadDisk, MediaError."""
    return recover.reconstruct(BlockReader(disk), disk.nblocks)


def repair(disk: Disk, report: recover.Report) -> None:
    """Write what makes the disk start again; superblocks last and after a flush (START-2)."""
    sectors = list(recover.repair(report))
    last = {0, (disk.nblocks - 1) * SECTORS}
    put_sectors(disk, {sector: raw for sector, raw in sectors if sector not in last})
    put_sectors(disk, {sector: raw for sector, raw in sectors if sector in last})


def put_sectors(disk: Disk, sectors: dict[int, bytes], failed: Callable[[str], Exception] = MediaError) -> None:
    """Write whole blocks around these sectors (some disks can do no less), and flush.  Raises what `failed` makes."""
    blocks: dict[int, dict[int, bytes]] = {}
    for sector, data in sectors.items():
        blocks.setdefault(sector // SECTORS, {})[sector % SECTORS] = data
    memory = memoryview(mmap.mmap(-1, max(1, len(blocks)) * BLOCK))
    errors: list[int] = []
    pages = {db: memory[index * BLOCK : (index + 1) * BLOCK] for index, db in enumerate(blocks)}
    for db, content in blocks.items():
        if len(content) < SECTORS:
            disk.read(db * SECTORS, [pages[db]], errors.append)
    drain(disk)
    for db, content in blocks.items():
        for sector, data in content.items():
            pages[db][sector * SECTOR : (sector + 1) * SECTOR] = data
        disk.write(db * SECTORS, [pages[db]], errors.append)
    drain(disk)
    disk.flush(errors.append)
    drain(disk)
    bad = [code for code in errors if code]
    if bad:
        raise failed(f"the disk could not be written: {os.strerror(bad[0])}")
