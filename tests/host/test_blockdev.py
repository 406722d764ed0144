"""The raw disk, on real image files, with io_uring and with threads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host.xokkit import Xok
from xok_host.abi.errors import BadDisk, InUse
from xok_host.abi.types import BLOCK, SECTOR, SECTORS
from xok_host.host import blockdev
from xok_host.host.blockdev import BlockDevice, open_disk
from xok_host.host.disk import drain, sector_of

BLOCKS = 2048


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.truncate(BLOCKS * BLOCK)
    return path


@pytest.fixture(params=["uring", "threads"])
def disk(request: pytest.FixtureRequest, image: Path) -> Iterator[BlockDevice]:
    without = frozenset() if request.param == "uring" else frozenset({"uring"})
    device = open_disk(str(image), without=without)
    yield device
    drain(device)
    device.close()


def pages(count: int, fill: Callable[[int], int] | None = None) -> list[memoryview]:
    memory = memoryview(mmap.mmap(-1, count * BLOCK))
    out = [memory[index * BLOCK : (index + 1) * BLOCK] for index in range(count)]
    if fill is not None:
        for index, page in enumerate(out):
            page[:] = bytes([fill(index)]) * BLOCK
    return out


def test_what_was_written_is_read(disk: BlockDevice) -> None:
    results: list[int] = []
    written = pages(64, lambda index: index + 1)
    for index, page in enumerate(written):
        disk.write(sector_of(100 + index), [page], results.append)
    drain(disk)
    disk.flush(results.append)
    drain(disk)
    read = pages(64)
    disk.read(sector_of(100), read, results.append)
    drain(disk)
    assert results == [0] * 66
    assert [bytes(page) for page in read] == [bytes(page) for page in written]
    assert disk.statistics().flushes == 1
    assert disk.statistics().bytes_written == disk.statistics().bytes_read == 64 * BLOCK


def test_neighbours_become_one_request_whatever_their_order(disk: BlockDevice) -> None:
    done: list[int] = []
    for index in reversed(range(100)):
        disk.write(sector_of(index), pages(1), done.append)
    for index in (500, 502):
        disk.write(sector_of(index), pages(1), done.append)
    drain(disk)
    assert done == [0] * 102
    assert disk.statistics().write_requests == 3


def test_a_request_has_a_largest_size(disk: BlockDevice) -> None:
    count = 2 * blockdev.MAX_REQUEST // BLOCK + 1
    memory = pages(count)
    for index, page in enumerate(memory):
        disk.read(sector_of(index), [page], lambda code: None)
    drain(disk)
    assert disk.statistics().read_requests == 3


def test_single_sectors_can_be_written(disk: BlockDevice) -> None:
    page = pages(1, lambda _: 7)[0]
    disk.write(sector_of(9) + 3, [page[3 * SECTOR : 4 * SECTOR]], lambda code: None, durable=True)
    drain(disk)
    back = pages(1)[0]
    disk.read(sector_of(9), [back], lambda code: None)
    drain(disk)
    assert bytes(back) == bytes(3 * SECTOR) + b"\7" * SECTOR + bytes(4 * SECTOR)


def test_a_request_outside_the_disk_is_refused_before_it_is_queued(disk: BlockDevice) -> None:
    with pytest.raises(ValueError, match="not whole sectors"):
        disk.read(sector_of(BLOCKS), pages(1), lambda code: None)
    with pytest.raises(ValueError, match="not whole sectors"):
        disk.write(0, [pages(1)[0][:100]], lambda code: None)
    assert disk.in_flight() == 0


def test_an_error_reaches_only_the_operation_that_caused_it(disk: BlockDevice, image: Path) -> None:
    """The file shrinks behind our back: reads beyond its new end fail, those before it that were merged do not."""
    os.truncate(image, 1000 * BLOCK)
    results: dict[int, int] = {}
    for index in range(996, 1004):
        disk.read(sector_of(index), pages(1), lambda code, index=index: results.__setitem__(index, code))
    drain(disk)
    assert results == {index: 0 if index < 1000 else errno.EIO for index in range(996, 1004)}
    assert disk.statistics().errors == 4


def test_results_come_from_poll_alone(disk: BlockDevice) -> None:
    done: list[int] = []
    disk.read(0, pages(1), done.append)
    disk.submit()
    assert not done and disk.in_flight() == 1
    drain(disk)
    assert done == [0] and disk.in_flight() == 0


def test_an_open_disk_cannot_be_opened_again(disk: BlockDevice, image: Path) -> None:
    with pytest.raises(InUse, match="another xokd"):
        open_disk(str(image))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist; `xok format"),
        (lambda path: path.mkdir(), "neither a block device nor a file"),
        (lambda path: path.write_bytes(b"short"), "at least"),
    ],
)
def test_what_cannot_be_a_disk_is_refused_by_name(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "other"
    make(path)
    with pytest.raises(BadDisk, match=message) as refusal:
        open_disk(str(path))
    assert str(path) in str(refusal.value)


@pytest.fixture
def loop(image: Path) -> Iterator[str]:
    found = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("no loop devices on this host")
    name = found.stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


def test_an_image_under_a_loop_device_is_in_use(image: Path, loop: str) -> None:
    with pytest.raises(InUse, match="losetup -d"):
        open_disk(str(image))


@pytest.fixture
def coarse_loop(image: Path) -> Iterator[str]:
    found = subprocess.run(
        ["losetup", "--find", "--show", "--sector-size", "4096", str(image)], capture_output=True, text=True
    )
    if found.returncode:
        pytest.skip("no loop devices with sectors of 4096 bytes on this host")
    name = found.stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


def test_a_disk_with_coarse_sectors_is_refused(coarse_loop: str, tmp_path: Path) -> None:
    """XN orders writes of 512 bytes; such a disk writes eight of them at once.  Nothing on it is changed."""
    before = Path(coarse_loop).read_bytes()
    with pytest.raises(BadDisk, match=r"logical sectors of 4096 bytes.*--sector-size 512"):
        open_disk(coarse_loop)
    xok = Xok(tmp_path)
    for command in (("format", "--force", coarse_loop), ("up", "--no-network", "--disk", coarse_loop)):
        done = xok.try_(*command)
        assert done.status and "logical sectors of 4096 bytes" in done.err and "Traceback" not in done.err, done
    assert Path(coarse_loop).read_bytes() == before


def test_a_block_device_is_taken_exclusively(loop: str) -> None:
    device = open_disk(loop)
    assert device.nblocks == BLOCKS
    with pytest.raises(OSError) as refusal:
        os.open(loop, os.O_RDWR | os.O_EXCL)
    assert refusal.value.errno == errno.EBUSY
    done: list[int] = []
    device.write(0, pages(1, lambda _: 9), done.append)
    drain(device)
    device.flush(done.append)
    drain(device)
    device.close()
    assert done == [0, 0]
    with open(loop, "rb") as file:
        fcntl.ioctl(file, 0x1261)  # BLKFLSBUF
        assert file.read(BLOCK) == b"\x09" * BLOCK


@pytest.mark.parametrize("without", [frozenset[str](), frozenset({"direct"}), frozenset({"uring"})])
def test_thousands_of_requests_at_once(tmp_path: Path, without: frozenset[str]) -> None:
    """More than the ring has room for completions of: each is told, and none is lost or waited for in vain."""
    blocks = 12_000
    path = tmp_path / "large.img"
    with open(path, "wb") as file:
        file.truncate(blocks * BLOCK)
    disk = open_disk(str(path), without=without)
    try:
        results: list[int] = []
        page = pages(1, lambda _: 5)[0]
        disk.write(sector_of(6), [page], results.append)
        for index in range(0, blocks, 2):
            disk.read(sector_of(index) if index != 6 else sector_of(8), pages(1), results.append)
        disk.flush(results.append)
        assert disk.in_flight() == blocks // 2 + 2
        with within(20):
            drain(disk)
        assert results == [0] * (blocks // 2 + 2)
        assert disk.statistics().read_requests == blocks // 2
    finally:
        disk.close()


def test_the_ring_takes_no_more_than_it_can_tell_of(image: Path) -> None:
    from xok_host.host.uring import Ring

    ring = Ring(8)
    fd = os.open(image, os.O_RDONLY)
    try:
        assert blockdev.MAX_IN_FLIGHT <= Ring(256).room
        for _ in range(ring.room):
            ring.queue_rw(False, fd, 0, pages(1), None)
        with pytest.raises(ValueError, match="reap some first"):
            ring.queue_rw(False, fd, 0, pages(1), None)
        ring.submit()
        reaped = 0
        with within(20):
            while reaped < ring.room:
                reaped += len(ring.reap(64))
        ring.queue_sync(fd, None)
        ring.submit()
    finally:
        with within(20):
            while ring.in_flight:
                ring.reap(64)
        ring.close()
        os.close(fd)


def test_a_poll_looks_at_some_and_the_descriptor_stays_readable_for_the_others(disk: BlockDevice) -> None:
    """Whoever waits for the first can go on before the last is looked at; none is forgotten."""
    done: list[int] = []
    total = 2 * blockdev.AT_ONCE + 1
    for number in range(total):  # no neighbours: a request each
        disk.read(16 * number, pages(1), done.append)
    disk.submit()
    polls = 0
    with within(20):
        while disk.in_flight():
            select.select([disk.fileno()], [], [])
            time.sleep(0.05)
            before = len(done)
            assert disk.poll() == len(done) - before <= blockdev.AT_ONCE
            polls += 1
    assert done == [0] * total and polls >= 3
    assert not select.select([disk.fileno()], [], [], 0)[0]


def test_large_requests_are_looked_at_one_by_one(image: Path) -> None:
    disk = open_disk(str(image))
    done: list[int] = []
    blocks = blockdev.MAX_REQUEST // BLOCK
    try:
        for number in range(3):
            disk.read(number * 2 * blocks * SECTORS, pages(blocks), done.append)
        disk.submit()
        with within(20):
            while len(done) < 3:
                select.select([disk.fileno()], [], [])
                time.sleep(0.05)
                assert disk.poll() == 1
    finally:
        with within(20):
            drain(disk)
        disk.close()


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """SIGALRM ends what would wait for ever."""

    def late(*args: object) -> None:
        raise TimeoutError("completions were lost")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
