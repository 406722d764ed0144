"""Disks around disks keep the contract of `disk`, the crashing one at its least favourable."""

from __future__ import annotations

import errno

from xok_host.abi.types import BLOCK, SECTOR
from xok_host.host.disk import drain, sector_of
from xok_host.host.diskwrap import CrashingDisk, FaultInjector, MemoryDisk, Record, RecordingDisk


def write(disk: CrashingDisk, sector: int, fill: int, sectors: int = 1, durable: bool = False) -> None:
    disk.write(sector, [memoryview(bytes([fill]) * SECTOR * sectors)], lambda code: None, durable=durable)
    drain(disk)


def flush(disk: CrashingDisk) -> None:
    disk.flush(lambda code: None)
    drain(disk)


def outcomes(disk: CrashingDisk, sector: int) -> set[int]:
    return {disk.image(seed)[sector * SECTOR] for seed in range(64)}


def test_memory_disk_reads_what_was_written() -> None:
    disk = MemoryDisk(16)
    disk.write(sector_of(3), [memoryview(b"x" * BLOCK)], lambda code: None)
    drain(disk)
    back = memoryview(bytearray(BLOCK))
    disk.read(sector_of(3), [back], lambda code: None)
    drain(disk)
    assert bytes(back) == b"x" * BLOCK


def test_an_unflushed_write_may_survive_or_not_by_sector() -> None:
    disk = CrashingDisk(16)
    write(disk, 0, 1, sectors=2)
    images = {(image[0], image[SECTOR]) for image in (disk.image(seed) for seed in range(64))}
    assert images == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_flushed_write_survives() -> None:
    disk = CrashingDisk(16)
    write(disk, 0, 1)
    flush(disk)
    write(disk, 0, 2)
    assert outcomes(disk, 0) == {1, 2}


def test_a_flush_does_not_cover_writes_submitted_with_it() -> None:
    disk = CrashingDisk(16)
    disk.write(0, [memoryview(b"\1" * SECTOR)], lambda code: None)
    disk.flush(lambda code: None)
    drain(disk)
    assert outcomes(disk, 0) == {0, 1}


def test_a_durable_write_survives_and_is_not_undone_by_an_older_one() -> None:
    disk = CrashingDisk(16)
    write(disk, 0, 1, sectors=4)
    write(disk, 1, 2, durable=True)
    assert outcomes(disk, 1) == {2}
    assert outcomes(disk, 0) == {0, 1}


def test_power_can_be_cut_at_each_write() -> None:
    disk = CrashingDisk(16, after=1)
    results: list[int] = []
    for sector in (0, 1):
        disk.write(sector, [memoryview(b"\1" * SECTOR)], results.append)
        drain(disk)
    disk.flush(results.append)
    drain(disk)
    assert results == [0, errno.EIO, errno.EIO]
    assert outcomes(disk, 0) == {0, 1} and outcomes(disk, 1) == {0}


def test_requests_in_order_with_atomic_loss() -> None:
    disk = CrashingDisk(16)
    for sector in range(4):
        write(disk, sector, 1)
    for seed in range(32):
        image = disk.image(seed, atomic=True)
        survived = [image[sector * SECTOR] for sector in range(4)]
        assert survived == sorted(survived, reverse=True)


def test_faults_come_where_they_are_asked_for() -> None:
    disk = FaultInjector(MemoryDisk(16), lambda kind, sector, n: errno.EIO if sector == 8 else 0)
    results: list[int] = []
    for sector in (0, 8, 16):
        disk.write(sector, [memoryview(bytes(SECTOR))], results.append)
    drain(disk)
    assert sorted(results) == [0, 0, errno.EIO]


def test_recording_keeps_the_order_of_requests() -> None:
    disk = RecordingDisk(MemoryDisk(16))
    disk.write(8, [memoryview(bytes(BLOCK))], lambda code: None)
    disk.flush(lambda code: None)
    disk.read(0, [memoryview(bytearray(SECTOR))], lambda code: None)
    drain(disk)
    assert disk.records == [Record("write", 8, 8), Record("flush", 0, 0), Record("read", 0, 1)]
