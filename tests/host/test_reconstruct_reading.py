"""Reading for a reconstruction: merged requests, few at once, and which block it is that cannot be read."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from libfs.cffs import mkfs
from xok_host.abi import accel
from xok_host.abi.errors import MediaError
from xok_host.abi.types import BLOCK, SECTOR, SECTORS
from xok_host.host import reconstruct
from xok_host.host.blockdev import open_disk
from xok_host.host.disk import Buffer, Done
from xok_host.host.format import format_disk
from xok_host.host.reconstruct import IN_FLIGHT, MAX_GAP, MAX_RUN, BlockReader, put_sectors
from xok_host.kernel.local import LocalXok, RamDisk
from xok_host.kernel.xn import recover
from xok_host.kernel.xn.format import newest


class CountingDisk:
    """A block holds its number.  Some cannot be read."""

    sector_bytes = 512

    def __init__(self, nblocks: int = 1 << 20) -> None:
        self.nblocks = nblocks
        self.bad: set[int] = set()
        self.requests: list[tuple[int, int]] = []
        self.queued: list[tuple[Done, int]] = []
        self.most = 0

    def read(self, sector: int, buffers: Sequence[Buffer], done: Done) -> None:
        (buffer,) = buffers
        first, count = sector // SECTORS, buffer.nbytes // BLOCK
        self.requests.append((first, count))
        code = errno.EIO if any(db in self.bad for db in range(first, first + count)) else 0
        for index in range(count if not code else 0):
            buffer[index * BLOCK : index * BLOCK + 8] = (first + index).to_bytes(8, "little")
        self.queued.append((done, code))
        self.most = max(self.most, len(self.queued))

    def write(self, sector: int, buffers: Sequence[Buffer], done: Done, *, durable: bool = False) -> None:
        self.queued.append((done, 0))
        self.most = max(self.most, len(self.queued))

    def flush(self, done: Done) -> None:
        self.queued.append((done, 0))

    def submit(self) -> None: ...

    def poll(self) -> int:
        queued, self.queued = self.queued, []
        for done, code in queued:
            done(code)
        return len(queued)

    def in_flight(self) -> int:
        return len(self.queued)

    def fileno(self) -> int:
        return -1


def numbers(answers: Sequence[bytes | MediaError]) -> list[int]:
    return [-1 if isinstance(raw, MediaError) else int.from_bytes(raw[:8], "little") for raw in answers]


@pytest.mark.parametrize("step", [1, MAX_GAP, MAX_GAP + 1, 1000])
def test_each_block_is_what_was_asked_for(step: int) -> None:
    disk = CountingDisk()
    wanted = list(range(7, 7 + 700 * step, step))
    assert numbers(BlockReader(disk).many(wanted)) == wanted  # type: ignore[arg-type]
    assert disk.most <= IN_FLIGHT and max(count for _, count in disk.requests) <= MAX_RUN + MAX_GAP
    assert len(disk.requests) == 700 if step > MAX_GAP + 1 else len(disk.requests) < 100


def test_only_the_block_that_cannot_be_read_is_lost() -> None:
    disk = CountingDisk()
    disk.bad = {20, 21}
    found = BlockReader(disk).many([5, 6, 18, 19, 20, 22, 90])  # type: ignore[arg-type]
    assert numbers(found) == [5, 6, 18, 19, -1, 22, 90]
    assert "block 20 cannot be read" in str(found[4])


def test_writing_keeps_few_requests_in_flight_too() -> None:
    disk = CountingDisk()
    put_sectors(disk, {db * SECTORS: bytes(512) for db in range(0, 6000, 2)})  # type: ignore[arg-type]
    assert disk.most <= IN_FLIGHT


def test_a_real_disk_answers_thousands_of_scattered_reads(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    format_disk(str(path), size=256 << 20, force=False)
    disk = open_disk(str(path))
    try:
        assert len(BlockReader(disk).many(list(range(1, 65000, 16)))) == 4063
    finally:
        disk.close()


def test_progress_is_for_terminals(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    local = LocalXok(1024)
    mkfs.make(local.environment(), 1, "vol")
    local.stop()
    path.write_bytes(local.disk.data)
    code = (
        "import sys\n"
        "from xok_host.cli import check, __main__\n"
        "check.Progress.SECONDS = 0\n"
        f"sys.exit(__main__.main(['check', {str(path)!r}]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": accel.ROOT}
    quiet = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)
    assert (quiet.returncode, quiet.stderr) == (0, "") and "clean" in quiet.stdout
    ours, theirs = pty.openpty()
    shown = subprocess.run([sys.executable, "-P", "-c", code], env=environment, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    line = os.read(ours, 4096)
    os.close(ours)
    assert shown.returncode == 0 and b"blocks, " in line and b"/s" in line and shown.stdout == quiet.stdout.encode()


class StoppingDisk:
    """A RamDisk under the interface of a disk, on which the power fails at the write with that number."""

    sector_bytes = 512

    def __init__(self, ram: RamDisk, stop_at: int) -> None:
        self._ram = ram
        self._left = stop_at
        self.nblocks = ram.nblocks

    def read(self, sector: int, buffers: Sequence[Buffer], done: Done) -> None:
        for buffer in buffers:
            buffer[:] = self._ram.read_sectors(sector, buffer.nbytes // SECTOR)
        done(0)

    def write(self, sector: int, buffers: Sequence[Buffer], done: Done, *, durable: bool = False) -> None:
        for buffer in buffers:
            for at in range(0, buffer.nbytes, SECTOR):
                if not self._left:
                    raise InterruptedError
                self._left -= 1
                self._ram.write_sectors(sector + at // SECTOR, bytes(buffer[at : at + SECTOR]))
        done(0)

    def flush(self, done: Done) -> None:
        self._ram.flush()
        done(0)

    def submit(self) -> None: ...

    def poll(self) -> int:
        return 0

    def in_flight(self) -> int:
        return 0

    def fileno(self) -> int:
        return -1


def test_a_disk_is_not_clean_while_it_is_being_patched() -> None:
    """At whatever write the power fails: the patch is all there on a clean disk, or the disk is looked at again."""
    local = LocalXok(256)
    mkfs.make(local.environment(), 1, "vol")
    local.stop()
    clean = bytes(local.disk.data)
    found = recover.read_catalogue(local.disk.read_block, 256)[1].get("vol")
    assert found is not None
    root = found.db
    seen = set()
    for stop_at in range(200):
        ram = RamDisk(256)
        ram.data[:] = ram.durable[:] = clean
        report = recover.reconstruct(ram.read_block, 256)
        report.patches[root] = clean[root * BLOCK : (root + 1) * BLOCK - SECTOR] + b"new".ljust(SECTOR, b"\0")
        with contextlib.suppress(InterruptedError):
            reconstruct.repair(StoppingDisk(ram, stop_at), report)  # type: ignore[arg-type]
        patched = b"new" in ram.read_block(root)
        in_order = newest(ram.read_block(0), ram.read_block(255)).clean
        seen.add((patched, in_order))
        assert not patched or not in_order or stop_at > SECTORS
        if not patched and in_order:
            assert stop_at < 2 * SECTORS, "nothing but superblocks was written"
    assert seen == {(False, True), (False, False), (True, False), (True, True)}
