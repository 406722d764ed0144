"""Reconstruction of a disk that no kernel has active: by `xok check`, and by `xok up` after an unclean stop."""

from __future__ import annotations

import math
import mmap
import os
import time
from collections.abc import Callable, Mapping

from xok_host.abi.errors import MediaError
from xok_host.abi.types import BLOCK, SECTOR, SECTORS
from xok_host.host.disk import Disk, drain
from xok_host.kernel.xn import recover
from xok_host.kernel.xn.walk import Answers, Steps

MAX_GAP = 4
"""Blocks that nobody asked for, read because that is quicker than two requests."""
MAX_RUN = 256
"""Blocks of one request."""
IN_FLIGHT = 128
"""Requests that the disk is given at once: fewer than the smallest queue of an engine."""
Progress = Callable[[recover.Report], None]


class BlockReader:
    """Reads for the walk: what lies together in one request, and all requests of a batch at once.

    The memory is used again for the next batch."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._memory = memoryview(b"")

    def many(self, wanted: list[int]) -> Answers:
        """What the blocks, which are sorted, hold: bytes, or MediaError, for each."""
        runs = _runs(wanted)
        size = sum(count for _, count in runs) * BLOCK
        if self._memory.nbytes < size:
            self._memory = memoryview(mmap.mmap(-1, size))
        errors = [0] * len(runs)
        buffers = []
        at = 0
        for number, (first, count) in enumerate(runs):
            view = self._memory[at : at + count * BLOCK]
            at += view.nbytes
            buffers.append(view)
            self._disk.read(first * SECTORS, [view], lambda errno, number=number: errors.__setitem__(number, errno))  # type: ignore[misc]
            _keep_bounded(self._disk)
        drain(self._disk)
        out: list[bytes | MediaError] = []
        number = 0
        for db in wanted:
            while db >= sum(runs[number]):
                number += 1
            first, count = runs[number]
            if not errors[number]:
                out.append(bytes(buffers[number][(db - first) * BLOCK : (db - first + 1) * BLOCK]))
            elif count == 1:
                out.append(MediaError(f"block {db} cannot be read: {os.strerror(errors[number])}"))
            else:
                out += self.many([db])  # which of them it is
        return out

    def __call__(self, db: int) -> bytes:
        """One block.  Raises MediaError."""
        (block,) = self.many([db])
        if isinstance(block, MediaError):
            raise block
        return block


def _keep_bounded(disk: Disk) -> None:
    if disk.in_flight() >= IN_FLIGHT:
        drain(disk)


def _runs(wanted: list[int]) -> list[tuple[int, int]]:
    """(first block, blocks) of the requests for blocks that are sorted."""
    runs: list[tuple[int, int]] = []
    first = end = -1
    for db in wanted:
        if first >= 0 and db - end <= MAX_GAP and db - first < MAX_RUN:
            end = db + 1
            continue
        if first >= 0:
            runs.append((first, end - first))
        first, end = db, db + 1
    if first >= 0:
        runs.append((first, end - first))
    return runs


class Examination:
    """A reconstruction in steps, between which a host may do other things.  Changes nothing on the disk."""

    def __init__(self, disk: Disk, *, watch: str = "", patches: Mapping[int, bytes] | None = None) -> None:
        self._read = BlockReader(disk)
        self._steps: Steps = recover.reconstruction(disk.nblocks, watch=watch, patches=patches, began=self._began)
        self._wanted: list[int] | None = None
        self.report: recover.Report | None = None
        """From when the trees are being walked."""

    def _began(self, report: recover.Report) -> None:
        self.report = report
        report.read = self._read

    def step(self) -> bool:
        """One batch of blocks; False when all is done.  Raises BadDisk, MediaError."""
        try:
            if self._wanted is None:
                self._wanted = next(self._steps)
            else:
                self._wanted = self._steps.send(self._read.many(self._wanted))
        except StopIteration:
            return False
        return True

    @property
    def result(self) -> recover.Report:
        assert self.report is not None
        return self.report


def examine(disk: Disk, progress: Progress = lambda report: None, seconds: float = math.inf) -> recover.Report:
    """Walk everything; after `seconds` no further than must be before the disk is used (RECOVER-6), and then the report
    is not `whole`.  Changes nothing.  Raises BadDisk, MediaError."""
    end = time.monotonic() + seconds
    examination = Examination(disk)
    while examination.step():
        report = examination.report
        if report is not None:
            progress(report)
            if time.monotonic() >= end and report.may_start:
                break
    return examination.result


def repair(disk: Disk, report: recover.Report) -> None:
    """Write what makes the disk start again; what a crash leaves meanwhile is walked again (RECOVER-7)."""
    for step in recover.repair(report):
        put_sectors(disk, step)


def take_as_it_is(disk: Disk, report: recover.Report) -> None:
    """Write what makes the disk start again after a walk that was not ended.  Raises NotClean, MediaError."""
    put_sectors(disk, recover.as_it_is(report))


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
            _keep_bounded(disk)
    drain(disk)
    for db, content in blocks.items():
        for sector, data in content.items():
            pages[db][sector * SECTOR : (sector + 1) * SECTOR] = data
        disk.write(db * SECTORS, [pages[db]], errors.append)
        _keep_bounded(disk)
    drain(disk)
    disk.flush(errors.append)
    drain(disk)
    bad = [code for code in errors if code]
    if bad:
        raise failed(f"the disk could not be written: {os.strerror(bad[0])}")
