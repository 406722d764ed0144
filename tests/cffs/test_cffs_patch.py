"""The patch program of C-FFS: what a crash leaves is mended, what is lost is dropped when asked (MEND-1)."""

from __future__ import annotations

from typing import Any

import pytest
from cffs_harness import Volume

from libfs.cffs import layout, patch
from libfs.cffs.inode import Node
from xok_host.abi.types import BLOCK, SECTOR, SECTORS
from xok_host.kernel.local import DEV, LocalEnvironment
from xok_host.kernel.xn import recover


class PowerCut(Exception):
    """The disk takes no more writes."""


def cut_at(volume: Volume, number: int) -> None:
    """Power fails at that write from now; what was written before has reached the disk."""
    left = [number]

    def on_write() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise PowerCut

    volume.xok.disk.on_write = on_write


def crashed(prepare: Any, change: Any, references: int) -> tuple[Volume, recover.Report]:
    """The first crash of `change` that leaves a count too high for its so many references."""
    for number in range(60):
        volume = Volume(1024)
        prepare(volume)
        volume.fs.sync_all()
        change(volume)
        cut_at(volume, number)
        try:
            volume.fs.sync_all()
        except PowerCut:
            pass
        else:
            break
        volume.xok.disk.on_write = lambda: None
        volume.xok.crash(lambda sector: True)
        report = volume.xok.recover()
        assert report.sound
        if any(found == references for _, _, _, found in report.over_counts):
            return volume, report
    raise AssertionError("no cut leaves such a count")


def mended(volume: Volume, *options: str) -> str:
    return volume.xok.patch("vol", lambda env: run(env, *options))


def run(env: LocalEnvironment, *options: str) -> bool:
    return patch.main(env, ["vol", *options]) == 0


def two_names(volume: Volume) -> None:
    """A file with a second name in another directory."""
    one = volume("mkdir", volume.root, b"one", 0o755, 0, 0).ino
    two = volume("mkdir", volume.root, b"two", 0o755, 0, 0).ino
    ino = volume.file(one, b"file", b"x" * 5000)
    volume("link", ino, two, b"again")


def sound(volume: Volume) -> recover.Report:
    report = recover.reconstruct(volume.xok.disk.read_block, volume.xok.disk.nblocks)
    assert report.sound and not report.over_counts
    return report


def lookup(volume: Volume, *names: bytes) -> Any:
    ino = volume.root
    for name in names:
        attr = volume("lookup", ino, name)
        ino = attr.ino
    return attr


def test_a_link_count_that_a_crash_left_too_high(capsys: pytest.CaptureFixture[str]) -> None:
    def change(volume: Volume) -> None:
        volume("unlink", lookup(volume, b"two").ino, b"again")

    volume, _ = crashed(two_names, change, references=1)
    assert mended(volume) == "" and "link counts corrected: 1" in capsys.readouterr().out
    volume.mount()
    assert lookup(volume, b"one", b"file").nlink == 1
    assert volume.contents(lookup(volume, b"one", b"file").ino) == b"x" * 5000
    volume("unlink", lookup(volume, b"one").ino, b"file")
    volume.remount()
    assert sound(volume).trees["vol"] == 4, "the file's blocks are free"


def test_an_inode_that_a_crash_left_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    def prepare(volume: Volume) -> None:
        two_names(volume)
        volume("unlink", lookup(volume, b"one").ino, b"file")

    def change(volume: Volume) -> None:
        volume("unlink", lookup(volume, b"two").ino, b"again")

    volume, report = crashed(prepare, change, references=0)
    assert report.trees["vol"] == 6
    assert mended(volume) == "" and "files without a name freed: 1" in capsys.readouterr().out
    volume.mount()
    assert set(volume.tree()) == {b"/one", b"/two"}
    volume.remount()
    assert sound(volume).trees["vol"] == 4


class Damage:
    """A volume with a directory of files, and bytes of it changed behind XN's back."""

    def __init__(self) -> None:
        self.volume = Volume(1024)
        two_names(self.volume)
        self.volume.fs.sync_all()
        self.file = lookup(self.volume, b"one", b"file").ino
        self.volume.remount()
        self.volume.fs.close()
        self.volume.env.close()
        self.disk = self.volume.xok.disk
        self.volume.xok.stop()

    def sector(self, ino: int) -> bytearray:
        return bytearray(self.disk.read_sectors((ino >> 5) * SECTORS + (ino >> 2 & 7), 1))

    def put(self, ino: int, data: bytes) -> None:
        self.disk.write_sectors((ino >> 5) * SECTORS + (ino >> 2 & 7), bytes(data))

    def patch(self, *options: str) -> str:
        self.volume.xok = type(self.volume.xok)(disk=self.disk, format=False)
        return mended(self.volume, *options)


@pytest.fixture
def damage() -> Damage:
    return Damage()


def test_a_count_too_low_is_raised(damage: Damage) -> None:
    data = damage.sector(damage.file)
    at = (damage.file & 3) * layout.INODE_BYTES
    node = Node.unpack(damage.file, 0, bytes(data), at)
    assert node.nlink == 2
    node.nlink = 1
    node.pack_into(data, at)
    damage.put(damage.file, data)
    assert damage.patch() == ""
    damage.volume.mount()
    assert lookup(damage.volume, b"one", b"file").nlink == 2


def test_what_is_lost_is_dropped_only_by_force(damage: Damage, capsys: pytest.CaptureFixture[str]) -> None:
    """The file's inode is gone, and one name of it, in another directory, is left."""
    damage.put(damage.file, bytes(SECTOR))
    before = bytes(damage.disk.data)
    assert "leads nowhere" in damage.patch()
    assert "--force" in capsys.readouterr().out
    assert damage.disk.read_block(damage.file >> 5) == before[(damage.file >> 5) * BLOCK :][:BLOCK]
    entry = damage.volume.xok.kernel.devices[DEV].catalogue.find("vol").entry
    assert entry.flags & 1
    assert mended(damage.volume, "--force") == ""
    damage.volume.mount()
    assert set(damage.volume.tree()) == {b"/one", b"/two"}
    damage.volume.remount()
    sound(damage.volume)


@pytest.mark.parametrize("start", [1, 1 << 40, 0])
def test_a_pointer_to_what_is_not_the_files(damage: Damage, start: int) -> None:
    """`start` 0 stands for the block that the inode itself is in."""
    data = damage.sector(damage.file)
    at = (damage.file & 3) * layout.INODE_BYTES + layout.INODE.offset("extents")
    layout.EXTENT_STRUCT.pack_into(data, at, 0, 2, start or damage.file >> 5)
    damage.put(damage.file, data)
    assert damage.patch() != ""
    assert damage.patch("--force") == ""
    damage.volume.mount()
    assert damage.volume.contents(damage.file) == bytes(5000)
    damage.volume.remount()
    sound(damage.volume)
