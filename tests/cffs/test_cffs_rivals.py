"""Two libFSes on one disk choose from one free map: who comes second chooses again, and loses nothing.

Data blocks and extent nodes are chosen when they cross.  Nobody has been told their numbers, so a block that another
libFS has taken in between is no reason to drop what was answered.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from cffs_harness import Volume, fails

from libfs.cffs import mkfs
from libfs.cffs.choosing import MAX_CHOICES
from libfs.cffs.filesystem import CFFS
from libfs.cffs.grouping import Grouping
from xok_host.abi.calls import OP_HEADER, OpKind
from xok_host.kernel.local import DEV

_HEAD = OP_HEADER.size


class Thief(Grouping):
    """Takes the blocks it was told to take."""

    loot: list[int]

    def small(self, group: int, near: int) -> tuple[int, int]:
        if self.loot:
            return self.loot.pop(), group
        return super().small(group, near)


class Rivals:
    """A volume, and another libFS that takes what the first has chosen just before that crosses, `times` times."""

    def __init__(self, pick: Callable[[list[int]], list[int]], *, shared: bool = False, nblocks: int = 4096) -> None:
        self.volume = Volume(nblocks, shared=shared)
        env = self.volume.xok.environment()
        cap = mkfs.make(env, DEV, "rival", clock=self.volume.clock)
        self.rival = CFFS.mount(env, DEV, "rival", cap, clock=self.volume.clock, grouping=Thief)
        self.rival.grouping.loot = []  # type: ignore[attr-defined]
        for number in range(250):
            self.rival.complete(self.rival.create, self.rival.root_ino, b"%d" % number, 0o644, 0, 0)
        self.rival.sync_all()
        self.pick = pick
        self.times = 0
        self.stolen = 0
        fs = self.volume.fs
        fs._submit = self._before(fs._submit)  # type: ignore[method-assign]

    def _before(self, submit: Callable[..., Any]) -> Callable[..., Any]:
        def first_the_rival(transactions: Any, refused: Any) -> None:
            chosen = [db for t in transactions for component in t for part in component for db in chosen_by(part.ops)]
            chosen = self.pick(chosen) if self.times else []
            if chosen:
                self.times -= 1
                self.take(chosen)
            submit(transactions, refused)

        return first_the_rival

    def take(self, blocks: list[int]) -> None:
        fs = self.rival
        for _ in blocks:
            ino = fs.complete(fs.lookup, fs.root_ino, b"%d" % self.stolen).ino
            fs.complete(fs.write, ino, 0, b"mine")
            self.stolen += 1
        fs.grouping.loot = blocks[::-1]  # type: ignore[attr-defined]
        fs.cross()
        assert not fs.errors and not fs.grouping.loot  # type: ignore[attr-defined]


def chosen_by(ops: list[bytes]) -> list[int]:
    """Blocks that operations allocate."""
    found = []
    for op in ops:
        kind, _, _, _, _, db, count, _, _ = OP_HEADER.unpack_from(op)
        if kind == OpKind.ALLOC:
            found += range(db, db + count)
    return found


def everything(chosen: list[int]) -> list[int]:
    return chosen[:20]


def one_in_the_middle(chosen: list[int]) -> list[int]:
    return chosen[len(chosen) // 2 :][:1]


def finish(rivals: Rivals, files: dict[int, bytes]) -> None:
    volume = rivals.volume
    volume.fs.sync_all()
    assert not volume.fs.errors
    assert rivals.stolen and not rivals.times
    assert not volume.fs.grouping.taken, "chosen, and neither used nor given back"
    assert not volume.fs.promised
    for ino, data in files.items():
        assert volume.contents(ino) == data
    volume.check_disk()
    rivals.rival.close()
    volume.remount()
    for ino, data in files.items():
        assert volume.contents(ino) == data
    volume.check_disk()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pick", [everything, one_in_the_middle])
def test_new_small_files(pick: Callable[[list[int]], list[int]], shared: bool) -> None:
    rivals = Rivals(pick, shared=shared)
    volume = rivals.volume
    rivals.times = 2
    files = {volume.file(volume.root, b"f%d" % n, b"%d" % n * 3000): b"%d" % n * 3000 for n in range(9)}
    volume.fs.cross()
    finish(rivals, files)


@pytest.mark.parametrize("pick", [everything, one_in_the_middle])
def test_appends_and_overwrites_of_a_file_that_is_there(pick: Callable[[list[int]], list[int]]) -> None:
    rivals = Rivals(pick)
    volume = rivals.volume
    data = bytearray(b"a" * 50_000)
    ino = volume.file(volume.root, b"f", bytes(data))
    volume.fs.cross()
    rivals.times = 3
    for at, piece in ((48_000, b"b" * 90_000), (4096, b"c" * 4096), (300_000, b"d" * 9000), (150_000, b"e" * 60_000)):
        volume("write", ino, at, piece)
        data[len(data) :] = bytes(max(0, at + len(piece) - len(data)))
        data[at : at + len(piece)] = piece
        volume.fs.cross()
    finish(rivals, {ino: bytes(data)})


@pytest.mark.parametrize("pick", [everything, one_in_the_middle])
@pytest.mark.parametrize("pieces", [6, 300])
def test_extent_trees(pick: Callable[[list[int]], list[int]], pieces: int) -> None:
    """Holes: each piece an extent of its own, so that nodes are chosen too, and the tree gets a second level."""
    rivals = Rivals(pick)
    volume = rivals.volume
    ino = volume.file(volume.root, b"f")
    size = 0
    for number in range(pieces):
        volume("write", ino, number * 8192, b"%04d" % number)
        size = number * 8192 + 4
        if number in (2, 4, 5, 6, 20, 247, 250, 270, 290):
            rivals.times = 1
            volume.fs.cross()
            assert not rivals.times
    rivals.times = 1
    volume("setattr", ino, size=size - 8192)  # what was cut off is given back in the same crossing
    volume("write", ino, size - 8192, b"end")
    expected = bytearray(size - 8192 + 3)
    for number in range(pieces - 1):
        expected[number * 8192 : number * 8192 + 4] = b"%04d" % number
    expected[size - 8192 :] = b"end"
    volume("write", ino, 4096, b"filled")  # a hole between two of a cell
    expected[4096:4102] = b"filled"
    volume.fs.cross()
    finish(rivals, {ino: bytes(expected)})


def test_who_always_loses_hears_of_it() -> None:
    """There is a bound on choosing again; then it is an error of the file, and the rest is as it was."""
    rivals = Rivals(everything)
    volume = rivals.volume
    other = volume.file(volume.root, b"other", b"stays")
    volume.fs.cross()
    ino = volume.file(volume.root, b"f", b"data")
    rivals.times = 1 << 30
    volume.fs.cross()
    assert rivals.stolen == MAX_CHOICES + 1
    rivals.times = 0
    with fails(errno.EBUSY):
        volume.fs.fsync(ino)
    assert volume.contents(other) == b"stays"
    volume.fs.errors.clear()
    volume.check_disk()


def fill(rivals: Rivals, leave: int = 0) -> int:
    """The rival takes all blocks but so many; its file."""
    fs = rivals.rival
    ino = fs.complete(fs.create, fs.root_ino, b"big", 0o644, 0, 0).ino
    fs.cross()
    fs.count_free()
    left = fs.free - leave
    at = 0
    while left:
        part = min(left, 256)
        fs.complete(fs.write, ino, at, bytes(part << 12))
        at += part << 12
        left -= part
    fs.cross()
    assert not fs.errors
    return int(ino)


@pytest.mark.parametrize("shared", [False, True])
def test_what_the_disk_has_no_place_for_is_a_hole_and_the_names_stay(shared: bool) -> None:
    """Two libFSes promised the same blocks.  The one that crosses later hears of it at fsync; nothing else is lost."""
    rivals = Rivals(everything, nblocks=1200, shared=shared)
    volume = rivals.volume
    fs = volume.fs
    old = volume.file(volume.root, b"old", b"o" * 10_000)
    directory = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
    volume.file(directory, b"inside", b"i")
    fs.cross()
    new = [volume.file(volume.root, b"new%d" % number, b"%d" % number * 30_000) for number in range(7)]
    empty = volume.file(volume.root, b"empty")
    volume("link", new[0], directory, b"linked")
    volume("rename", volume.root, b"new1", directory, b"renamed")
    volume("write", old, 4096, b"O" * 4096 + b"more" * 5000)
    volume("link", old, directory, b"old too")
    fill(rivals, leave=15)
    fs.cross()
    names = sorted([b"old", b"d", b"empty", *(b"new%d" % number for number in (0, 2, 3, 4, 5, 6))])
    told = {ino for ino in (*new, old) if raises_enospc(fs, ino)}
    assert told and not told & {empty}
    assert not any(raises_enospc(fs, ino) for ino in (*new, old)), "said once"
    for _ in range(2):
        assert sorted(volume.listing(volume.root)) == names
        assert set(volume.listing(directory)) == {b"inside", b"linked", b"renamed", b"old too"}
        assert volume("getattr", new[0]).nlink == 2
        for number, ino in enumerate(new):
            got = volume.contents(ino)
            assert len(got) == 30_000
            pieces = {got[at : at + 4096].strip(b"%d" % number) for at in range(0, 30_000, 4096)}
            assert all(not piece.strip(b"\0") for piece in pieces)
            assert ino in told or b"\0" not in got
        got = volume.contents(old)
        assert got.startswith(b"o" * 4096 + b"O" * 4096) and len(got) == 28_192
        fs.errors.clear()
        volume.check_disk()
        assert not volume.fs.promised and not volume.fs.grouping.taken
        if volume.fs is fs:
            rivals.rival.close()
            volume.remount()


def raises_enospc(fs: CFFS, ino: int) -> bool:
    try:
        fs.fsync(ino)
    except OSError as error:
        assert error.errno == errno.ENOSPC
        return True
    return False


def test_no_place_for_an_extent_node() -> None:
    """The data would find place, the node that must point to it does not."""
    rivals = Rivals(everything, nblocks=1200)
    volume = rivals.volume
    ino = volume.file(volume.root, b"f")
    for number in range(4):
        volume("write", ino, number * 8192, b"%d" % number)
    volume.fs.cross()
    volume("write", ino, 4 * 8192, b"4")
    volume("write", ino, 0, b"x")
    fill(rivals, leave=1)
    volume.fs.cross()
    with fails(errno.ENOSPC):
        volume.fs.fsync(ino)
    got = volume.contents(ino)
    assert len(got) == 4 * 8192 + 1 and got[4 * 8192] == 0
    assert [got[number * 8192] for number in range(4)] == list(b"x123")
    volume("unlink", volume.root, b"f")
    again = volume.file(volume.root, b"g", b"place")
    volume.fs.fsync(again)
    assert volume.contents(again) == b"place"
    volume.check_disk()


def test_no_place_for_a_directory_block() -> None:
    rivals = Rivals(everything, nblocks=1200)
    volume = rivals.volume
    made = [volume.file(volume.root, b"first")]
    volume.fs.cross()
    fill(rivals, leave=1)  # its own extents may take a node
    with fails(errno.ENOSPC):
        for number in range(400):
            made.append(volume.file(volume.root, b"%d" % number))
    assert made
    assert len(volume.listing(volume.root)) == len(made)
    volume.fs.sync_all()
    volume.check_disk()
    assert not volume.fs.grouping.taken and not volume.fs.new_blocks
