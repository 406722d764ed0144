"""C-FFS over XN: each promise of docs/cffs.md once, by name."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Any

import pytest
from cffs_harness import Volume, fails

from libfs.api import RENAME_EXCHANGE, RENAME_NOREPLACE, NotInCore
from libfs.cffs import layout
from libfs.cffs.grouping import GROUP_BLOCKS, Grouping, Scattered
from libfs.cffs.names import FIRST_BLOCKS
from xok_host.abi.errors import LimitReached
from xok_host.kernel.request import IoOp


@pytest.fixture
def volume() -> Volume:
    return Volume()


def test_hello(volume: Volume) -> None:
    ino = volume.file(volume.root, b"hello", b"hello, world")
    assert volume.contents(ino) == b"hello, world"
    volume.fs.fsync(ino)
    assert volume.contents(ino) == b"hello, world"
    volume.remount()
    attr = volume("lookup", volume.root, b"hello")
    assert (attr.ino, attr.size, attr.mode, attr.nlink) == (ino, 12, stat.S_IFREG | 0o644, 1)
    assert volume.contents(ino) == b"hello, world"
    volume.check_disk()


def test_create_is_one_sector_write(volume: Volume) -> None:
    """Embedding: name and inode reach the disk in one atomic write of 512 bytes."""
    volume.file(volume.root, b"first")
    volume.fs.sync_all()
    before = volume.xok.disk.writes
    directory = volume.fs.nodes[volume.root]
    directory.mtime = directory.ctime = 0
    ino = volume.file(volume.root, b"second")
    volume.fs.sync_all()
    # The sector with name and inode, and the one with the root directory's times.
    assert volume.xok.disk.writes - before == 2
    assert ino >> 2 == volume("lookup", volume.root, b"first").ino >> 2


@pytest.mark.parametrize("count", [1000, 3000])
def test_large_directories(count: int) -> None:
    volume = Volume(8192)
    directory = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
    inos = {b"name%d.txt" % n: volume.file(directory, b"name%d.txt" % n) for n in range(count)}
    assert len(set(inos.values())) == count
    assert volume.fs.nodes[directory].level >= 1
    assert volume.listing(directory) == inos
    with fails(errno.EEXIST):
        volume("create", directory, b"name77.txt", 0o644, 0, 0)
    volume.remount()
    assert volume("lookup", directory, b"name%d.txt" % (count - 1)).ino == inos[b"name%d.txt" % (count - 1)]
    assert volume.listing(directory) == inos
    volume.check_disk()
    for name in inos:
        volume("unlink", directory, name)
    volume("rmdir", volume.root, b"d")
    volume.check_disk()
    assert volume("statfs").free == Volume(8192)("statfs").free - FIRST_BLOCKS, "all but the root directory's blocks"


def test_growth_survives_a_crash_at_any_write() -> None:
    """While names move to the next level, no crash loses one or shows one twice."""
    for stop in range(4, 90, 5):
        volume = Volume(1024)
        directory = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
        names = []
        for number in range(192):
            names.append(b"n%d" % number)
            volume.file(directory, names[-1])
        volume.fs.sync_all()
        level = volume.fs.nodes[directory].level
        assert level == 0
        left = [stop]

        class PowerFails(Exception):
            pass

        def on_write(left: list[int] = left, failure: type[Exception] = PowerFails) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise failure

        volume.xok.disk.on_write = on_write
        try:
            volume.file(directory, b"one too many")
            volume.fs.sync_all()
            crashed = False
        except PowerFails:
            crashed = True
        volume.xok.disk.on_write = lambda: None
        report = volume.crash()
        assert report.sound, (stop, report.violations, report.unmarked)
        found = volume.listing(directory)
        assert set(names) <= set(found) <= {*names, b"one too many"}, stop
        for name in names:
            assert volume("lookup", directory, name).nlink == 1
        volume.check_disk()
        if not crashed:
            assert stop > 10
            return


def test_names_of_255_bytes(volume: Volume) -> None:
    names = [b"%03d" % number + b"n" * 252 for number in range(300)]
    directory = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
    inos = {name: volume.file(directory, name) for name in names}
    other = volume("mkdir", volume.root, b"e", 0o755, 0, 0).ino
    for name in names[:20]:
        volume("link", inos[name], other, name)
    volume.remount()
    assert volume.listing(directory) == inos
    assert volume.listing(other) == {name: inos[name] for name in names[:20]}
    for operation in (
        lambda: volume("create", directory, b"x" * 256, 0o644, 0, 0),
        lambda: volume("lookup", directory, b"x" * 256),
        lambda: volume("rename", directory, names[0], directory, b"x" * 256),
    ):
        with fails(errno.ENAMETOOLONG):
            operation()
    volume.check_disk()


def test_hard_links_across_directories_after_a_restart(volume: Volume) -> None:
    """A name elsewhere tells the way to its inode, whatever is in core."""
    deep = volume.root
    for level in range(20):
        deep = volume("mkdir", deep, b"d%d" % level, 0o755, 0, 0).ino
    ino = volume.file(deep, b"file", b"deep down")
    shallow = volume.file(volume.fs.homes[ino >> 5], b"other", b"o")
    volume("link", ino, volume.root, b"far")
    volume("link", shallow, volume.root, b"far2")
    middle = volume("lookup", volume.root, b"d0").ino
    third = volume.file(middle, b"near", b"near")
    volume("link", third, volume.root, b"link")
    for name, data in ((b"far", b"deep down"), (b"far2", b"o"), (b"link", b"near")):
        volume.remount()
        attr = volume("lookup", volume.root, name)
        assert attr.nlink == 2
        assert volume.contents(attr.ino) == data
    volume("unlink", deep, b"file") if deep in volume.fs.nodes else None
    volume.check_disk()


def test_link_limits(volume: Volume) -> None:
    ino = volume.file(volume.root, b"f")
    volume.fs.nodes[ino].nlink = layout.LINK_MAX
    with fails(errno.EMLINK):
        volume("link", ino, volume.root, b"g")
    volume.fs.nodes[ino].nlink = 1
    directory = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
    with fails(errno.EPERM):
        volume("link", directory, volume.root, b"e")


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("victim", ["none", "file", "empty", "full"])
@pytest.mark.parametrize("kind", ["file", "dir"])
@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("away", [False, True])
def test_rename_matrix(away: bool, crossed: bool, kind: str, victim: str, opened: bool) -> None:
    volume = Volume(512)
    one = volume("mkdir", volume.root, b"one", 0o755, 0, 0).ino
    two = volume("mkdir", volume.root, b"two", 0o755, 0, 0).ino if away else one
    if kind == "file":
        ino = volume.file(one, b"old", b"contents")
    else:
        ino = volume("mkdir", one, b"old", 0o755, 0, 0).ino
        volume.file(ino, b"inside", b"i")
    if victim == "file":
        target = volume.file(two, b"new", b"previous")
        if opened:
            volume.fs.open(target)
    elif victim != "none":
        target = volume("mkdir", two, b"new", 0o755, 0, 0).ino
        if victim == "full":
            volume.file(target, b"x")
    if crossed:
        volume.fs.sync_all()
    refused = {("file", "empty"): errno.EISDIR, ("file", "full"): errno.EISDIR, ("dir", "file"): errno.ENOTDIR}
    refused[("dir", "full")] = errno.ENOTEMPTY
    before = volume.tree()
    if (kind, victim) in refused:
        with fails(refused[kind, victim]):
            volume("rename", one, b"old", two, b"new")
        assert volume.tree() == before
        return
    volume("rename", one, b"old", two, b"new")

    def right() -> None:
        assert volume("lookup", two, b"new").ino == ino
        assert set(volume.listing(one)) == ({b"new"} if not away else set())
        attr = volume("getattr", ino)
        assert attr.nlink == (1 if kind == "file" else 2)
        if kind == "file":
            assert volume.contents(ino) == b"contents"
        else:
            assert set(volume.listing(ino)) == {b"inside"}
        assert volume("getattr", one).nlink == 2 + (kind == "dir" and not away)

    right()
    if victim == "file" and opened:
        assert volume.contents(target) == b"previous"
        assert volume("getattr", target).nlink == 0
        volume.fs.sync_all()
        assert volume.contents(target) == b"previous"
        volume("release", target)
    volume.fs.sync_all()
    right()
    volume.check_disk()
    volume.remount()
    right()
    volume.check_disk()


def test_rename_is_never_lost_in_a_crash() -> None:
    """CFFS-1: whatever part of the writes reaches the disk, the file is there under one of its names."""
    for seed in range(40):
        volume = Volume(512)
        one = volume("mkdir", volume.root, b"one", 0o755, 0, 0).ino
        two = volume("mkdir", volume.root, b"two", 0o755, 0, 0).ino
        volume.file(two, b"filler")
        ino = volume.file(one, b"old", b"precious")
        volume.fs.sync_all()
        volume("rename", one, b"old", two, b"new")
        volume.fs.flush()
        stop = seed % 20

        class PowerFails(Exception):
            pass

        left = [stop]

        def on_write(left: list[int] = left, failure: type[Exception] = PowerFails) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise failure

        volume.xok.disk.on_write = on_write
        try:
            volume.fs.sync_all()
        except PowerFails:
            pass
        volume.xok.disk.on_write = lambda: None
        keep = (lambda sector: True) if seed >= 20 else (lambda sector: sector % 2 == 0)
        report = volume.crash(keep)
        assert report.sound, (report.violations, report.unmarked)
        paths = {path for path in volume.tree() if path in (b"/one/old", b"/two/new")}
        assert paths, f"lost after {stop} writes"
        for path in paths:
            assert volume.contents(volume("lookup", one if path == b"/one/old" else two, path[5:]).ino) == b"precious"
        # A count may be one too high after a crash, never too low.
        assert len(paths) <= volume("getattr", ino).nlink <= 2


def test_rename_flags(volume: Volume) -> None:
    one, two = volume.file(volume.root, b"a", b"1"), volume.file(volume.root, b"bbb", b"2")
    with fails(errno.EEXIST):
        volume("rename", volume.root, b"a", volume.root, b"bbb", RENAME_NOREPLACE)
    volume("rename", volume.root, b"a", volume.root, b"bbb", RENAME_EXCHANGE)
    assert volume.listing(volume.root) == {b"a": two, b"bbb": one}
    with fails(errno.ENOENT):
        volume("rename", volume.root, b"a", volume.root, b"none", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        volume("rename", volume.root, b"a", volume.root, b"none", 8)
    volume.remount()
    assert volume.listing(volume.root) == {b"a": two, b"bbb": one}
    volume.check_disk()


def test_directories_do_not_move_into_themselves(volume: Volume) -> None:
    a = volume("mkdir", volume.root, b"a", 0o755, 0, 0).ino
    b = volume("mkdir", a, b"b", 0o755, 0, 0).ino
    with fails(errno.EINVAL):
        volume("rename", volume.root, b"a", b, b"c")
    with fails(errno.EINVAL):
        volume("rename", volume.root, b"a", a, b"c")


def test_sparse_file_of_a_terabyte(volume: Volume) -> None:
    ino = volume.file(volume.root, b"sparse")
    far = 1 << 40
    volume("write", ino, far, b"end")
    volume("write", ino, 5, b"start")
    assert volume("getattr", ino).size == far + 3
    assert volume("getattr", ino).blocks == 16
    volume.remount()
    assert b"".join(map(bytes, volume("read", ino, far - 4, 100))) == b"\0\0\0\0end"
    assert b"".join(map(bytes, volume("read", ino, 0, 12))) == b"\0" * 5 + b"start" + b"\0\0"
    assert sum(len(view) for view in volume("read", ino, 1 << 39, 1 << 20)) == 1 << 20
    with fails(errno.EFBIG):
        volume("write", ino, layout.MAX_LOGICAL * 4096, b"x")
    volume("setattr", ino, size=0)
    volume.check_disk()
    assert volume("getattr", ino).blocks == 0


@pytest.mark.parametrize("order", ["up", "down"])
def test_fragmented_files_have_trees(order: str) -> None:
    volume = Volume(4096)
    ino = volume.file(volume.root, b"holes")
    numbers = list(range(600))
    if order == "down":
        numbers.reverse()
    for position, number in enumerate(numbers):
        volume("write", ino, number * 8192, b"%d" % number)
        if position % 97 == 0:
            volume.fs.sync_all()
    volume.fs.sync_all()
    assert not volume.fs.errors
    volume.check_disk()
    volume.remount()
    for number in (0, 1, 299, 598, 599):
        expected = b"%d" % number
        assert b"".join(map(bytes, volume("read", ino, number * 8192, len(expected)))) == expected
    volume("setattr", ino, size=300 * 8192 + 2)
    assert b"".join(map(bytes, volume("read", ino, 299 * 8192, 3))) == b"299"
    volume.check_disk()
    volume("setattr", ino, size=8192 * 300 + 10)
    assert b"".join(map(bytes, volume("read", ino, 300 * 8192, 10))) == b"30" + bytes(8)
    volume("unlink", volume.root, b"holes")
    volume.check_disk()
    assert volume("statfs").free == Volume(4096)("statfs").free - FIRST_BLOCKS


def test_truncation_shows_zeros(volume: Volume) -> None:
    ino = volume.file(volume.root, b"f", b"a" * 10000)
    volume.fs.sync_all()
    volume("setattr", ino, size=5000)
    volume("setattr", ino, size=9000)
    assert volume.contents(ino) == b"a" * 5000 + bytes(4000)
    volume.remount()
    assert volume.contents(ino) == b"a" * 5000 + bytes(4000)
    volume("write", ino, 20000, b"z")
    assert volume.contents(ino) == b"a" * 5000 + bytes(15000) + b"z"


def test_open_unlinked(volume: Volume) -> None:
    ino = volume.file(volume.root, b"temp", b"still here")
    volume.fs.open(ino)
    volume("unlink", volume.root, b"temp")
    with fails(errno.ENOENT):
        volume("lookup", volume.root, b"temp")
    again = volume.file(volume.root, b"temp", b"another")
    assert again != ino, "the name is free at once"
    assert volume("getattr", ino).nlink == 0
    volume.fs.sync_all()
    assert volume.contents(ino) == b"still here"
    assert ino in volume.fs.orphans, "it is in the orphan list on disk"
    volume("write", ino, 0, b"STILL")
    volume.fs.sync_all()
    assert volume.contents(ino) == b"STILL here"
    volume("release", ino)
    with fails(errno.ESTALE):
        volume("getattr", ino)
    volume.check_disk()


@pytest.mark.parametrize("synced", [False, True])
def test_open_unlinked_are_reclaimed_at_mount(synced: bool) -> None:
    volume = Volume(512)
    free = volume("statfs").free
    inos = []
    for number in range(10):
        inos.append(volume.file(volume.root, b"temp%d" % number, b"x" * 5000))
        volume.fs.open(inos[-1])
    volume.fs.sync_all()
    for number in range(10):
        volume("unlink", volume.root, b"temp%d" % number)
    if synced:
        volume.fs.sync_all()
    else:
        volume.fs.flush()
    volume.kill()
    assert volume.listing(volume.root) == {}
    volume.check_disk()
    # At most the blocks of the two directories stay.
    assert free - volume("statfs").free <= 2 * FIRST_BLOCKS, "of the root directory and the orphan list"
    with fails(errno.ESTALE):
        volume("getattr", inos[0])


def test_removed_directory_hosts_inodes_in_limbo(volume: Volume) -> None:
    """A file that was moved away keeps its number and place; the emptied directory goes when the file goes."""
    free = volume("statfs").free
    directory = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
    ino = volume.file(directory, b"f", b"survivor")
    volume("rename", directory, b"f", volume.root, b"g")
    volume("rmdir", volume.root, b"d")
    assert set(volume.listing(volume.root)) == {b"g"}
    volume.check_disk()
    for _ in range(2):
        volume.remount()
        assert volume("lookup", volume.root, b"g").ino == ino
        assert volume.contents(ino) == b"survivor"
        assert volume.fs.limbo == {directory: {ino}}
    volume("unlink", volume.root, b"g")
    volume.check_disk()
    assert not volume.fs.limbo
    with fails(errno.ESTALE):
        volume("getattr", directory)
    assert free - volume("statfs").free <= 2 * FIRST_BLOCKS, "of the root directory and the orphan list"


def test_rmdir(volume: Volume) -> None:
    directory = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
    volume.file(directory, b"f")
    with fails(errno.ENOTEMPTY):
        volume("rmdir", volume.root, b"d")
    volume("unlink", directory, b"f")
    with fails(errno.EISDIR):
        volume("unlink", volume.root, b"d")
    volume.file(volume.root, b"plain")
    with fails(errno.ENOTDIR):
        volume("rmdir", volume.root, b"plain")
    volume("rmdir", volume.root, b"d")
    with fails(errno.ENOENT, errno.ESTALE):
        volume("create", directory, b"f", 0o644, 0, 0)
    assert volume("getattr", volume.root).nlink == 2


def test_special_files_and_attributes(volume: Volume) -> None:
    device = volume("create", volume.root, b"null", stat.S_IFCHR | 0o666, 0, 0, 0x103)
    fifo = volume("create", volume.root, b"fifo", stat.S_IFIFO | 0o600, 7, 8)
    ino = volume.file(volume.root, b"f")
    volume("setattr", ino, mode=0o4755, uid=70000, gid=80000, atime=123456789012345678, mtime=987654321098765432)
    volume.remount()
    assert volume("getattr", device.ino).rdev == 0x103
    assert stat.S_ISFIFO(volume("getattr", fifo.ino).mode)
    attr = volume("getattr", ino)
    assert (attr.mode, attr.uid, attr.gid) == (stat.S_IFREG | 0o4755, 70000, 80000)
    assert (attr.atime_ns, attr.mtime_ns) == (123456789012345678, 987654321098765432)
    with fails(errno.EINVAL):
        volume("readlink", ino)
    with fails(errno.EINVAL):
        volume("write", fifo.ino, 0, b"x")


def test_setgid_directories_pass_on_their_group(volume: Volume) -> None:
    directory = volume("mkdir", volume.root, b"d", 0o2775, 1, 42).ino
    assert volume("create", directory, b"f", 0o644, 5, 6).gid == 42
    inner = volume("mkdir", directory, b"e", 0o755, 5, 6)
    assert inner.gid == 42 and inner.mode & stat.S_ISGID


@pytest.mark.parametrize("length", [1, 72, 73, 4095])
def test_symbolic_links(volume: Volume, length: int) -> None:
    target = (b"/target" * 600)[:length]
    ino = volume("symlink", volume.root, b"s", target, 1, 2).ino
    assert volume("readlink", ino) == target
    volume.remount()
    assert volume("readlink", ino) == target
    assert volume("getattr", ino).size == length
    volume("unlink", volume.root, b"s")
    volume.check_disk()


def test_symbolic_link_limits(volume: Volume) -> None:
    with fails(errno.ENAMETOOLONG):
        volume("symlink", volume.root, b"s", b"x" * 4096, 0, 0)
    with fails(errno.ENOENT):
        volume("symlink", volume.root, b"s", b"", 0, 0)


def test_no_space() -> None:
    volume = Volume(256)
    directory = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
    written = {}
    with fails(errno.ENOSPC):
        for number in range(100):
            ino = volume("create", directory, b"f%d" % number, 0o644, 0, 0).ino
            volume("write", ino, 0, bytes([number]) * 30000)
            written[number] = ino
    assert len(written) > 20
    volume.fs.sync_all()
    assert not volume.fs.errors, "ENOSPC came with the write, not after it"
    for number, ino in written.items():
        assert volume.contents(ino) == bytes([number]) * 30000
    volume.check_disk()
    # What is freed can be used again, after the write that frees it.
    for number in list(written)[:10]:
        volume("unlink", directory, b"f%d" % number)
    ino = volume.file(directory, b"again", b"y" * 60000)
    volume.fs.sync_all()
    assert volume.contents(ino) == b"y" * 60000
    volume.check_disk()


def test_no_space_for_a_long_write() -> None:
    volume = Volume(256)
    ino = volume.file(volume.root, b"f")
    with fails(errno.ENOSPC):
        volume("write", ino, 0, bytes(300 * 4096))
    assert volume("getattr", ino).size == 0
    volume.check_disk()


def test_stale_numbers(volume: Volume) -> None:
    ino = volume.file(volume.root, b"f")
    generation = volume("getattr", ino).generation
    volume("unlink", volume.root, b"f")
    for number in (ino, 0, 4, 1 << 60):
        with fails(errno.ESTALE):
            volume("getattr", number)
    assert volume.file(volume.root, b"g") == ino, "the slot is used again"
    assert volume("getattr", ino).generation != generation


def test_reading_while_the_listing_changes(volume: Volume) -> None:
    """`rm -r` and friends: what stays is listed exactly once."""
    directory = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
    for number in range(300):
        volume.file(directory, b"f%d" % number)
    seen = []
    cookie = 0
    while True:
        portion = volume.fs.complete(
            lambda cookie=cookie: [
                entry for entry, _ in zip(volume.fs.readdir(directory, cookie), range(20), strict=False)
            ]
        )
        if not portion:
            break
        cookie = portion[-1][2]
        seen += [name for name, _, _ in portion]
        for name, _, _ in portion[::2]:
            volume("unlink", directory, name)
        volume.file(directory, b"new%d" % len(seen))
    old = [name for name in seen if name.startswith(b"f")]
    assert len(old) == len(set(old)) == 300


def test_not_in_core_has_no_effect(volume: Volume) -> None:
    """Every operation, restarted from a cold cache as often as it asks, does what it does from a warm one."""
    directory = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
    for number in range(60):
        volume.file(directory, b"f%d" % number, b"data%d" % number)
    operations: list[tuple[Callable[[], object], int]] = [
        (lambda: volume.fs.create(directory, b"new", 0o644, 0, 0), 2),
        (lambda: volume.fs.unlink(directory, b"f1"), 2),
        (lambda: volume.fs.rename(directory, b"f2", volume.root, b"moved"), 2),
        (lambda: volume.fs.link(volume.fs.lookup(directory, b"f3").ino, volume.root, b"linked"), 2),
        (lambda: volume.fs.write(volume.fs.lookup(directory, b"f4").ino, 2, b"XX"), 3),
        (lambda: volume.fs.setattr(volume.fs.lookup(directory, b"f5").ino, size=2), 3),
    ]
    for operation, least in operations:
        volume.remount()
        before = volume.tree()
        volume.remount()
        misses = 0
        while True:
            try:
                operation()
                break
            except NotInCore as missing:
                misses += 1
                assert not volume.fs.overlay and not volume.fs.dirty
                volume.fs.fetch(missing.requests)
        assert misses >= least
        assert volume.tree() != before
    assert volume.contents(volume("lookup", directory, b"f4").ino) == b"daXX4"
    volume.check_disk()


@pytest.mark.parametrize("strategy, adjacent", [(Grouping, True), (Scattered, False)])
def test_explicit_grouping(strategy: type[Grouping], adjacent: bool) -> None:
    """Small files of one directory are neighbours, and come in with one request; the strategy can be changed."""
    volume = Volume(grouping=strategy)
    directories = [volume("mkdir", volume.root, b"d%d" % n, 0o755, 0, 0).ino for n in range(8)]
    for number in range(12):
        for directory in directories:
            volume.file(directory, b"f%d" % number, b"x" * 1000)
        volume.fs.sync_all()
    volume.remount()
    for directory in directories:
        inos = list(volume.listing(directory).values())
        blocks = {
            volume("getattr", ino) and next(iter(volume.fs.extents(volume.fs.nodes[ino]).items()))[2] for ino in inos
        }
        groups = {block // GROUP_BLOCKS for block in blocks}
        assert (len(groups) <= 3) == adjacent
        before = volume.fs.env.counters.as_dict()["disk_reads"]
        for ino in inos:
            assert volume.contents(ino) == b"x" * 1000
        reads = volume.fs.env.counters.as_dict()["disk_reads"] - before
        assert (reads <= 4) == adjacent


def test_fsync_of_new_files_takes_two_flushes(volume: Volume) -> None:
    volume.file(volume.root, b"before")
    volume.fs.sync_all()
    flushes = volume.fs.env.counters.as_dict()["disk_flushes"]
    for number in range(10):
        volume.file(volume.root, b"f%d" % number, b"x" * 5000)
    volume.fs.fsync(None)
    assert volume.fs.env.counters.as_dict()["disk_flushes"] - flushes == 2


def test_fsync_of_one_file_leaves_the_others_alone(volume: Volume) -> None:
    directories = [volume("mkdir", volume.root, b"d%d" % n, 0o755, 0, 0).ino for n in range(8)]
    inos = [volume.file(directory, b"f%d" % n, b"x" * 9000) for directory in directories for n in range(9)]
    volume.fs.sync_all()
    for ino in inos:
        volume("write", ino, 100, b"changed")
        volume("write", ino, 20000, b"longer")
    flushes = volume.fs.env.counters.as_dict()["disk_flushes"]
    volume.fs.fsync(inos[30])
    assert volume.fs.env.counters.as_dict()["disk_flushes"] - flushes == 2
    assert len(volume.fs.unwritten) > 100
    volume.crash()
    data = volume.contents(inos[30])
    assert data == b"x" * 100 + b"changed" + b"x" * 8893 + bytes(11000) + b"longer"
    assert volume.contents(inos[0]) == b"x" * 9000


def test_a_failing_disk_is_reported_by_fsync_and_by_the_next(volume: Volume) -> None:
    ino = volume.file(volume.root, b"f", b"x" * 9000)
    volume.xok.disk.fail = lambda request: errno.EIO if request.op == IoOp.WRITE else 0
    for _ in range(2):
        with fails(errno.EIO):
            volume.fs.fsync(ino)
    volume.xok.disk.fail = lambda request: 0
    volume.fs.fsync(ino)
    volume.crash()
    assert volume.contents(ino) == b"x" * 9000


def test_two_mounts_share_through_locks() -> None:
    """Another environment sees what was answered here, because its lock makes us cross and let go."""
    volume = Volume()
    from libfs.cffs.filesystem import CFFS
    from xok_host.kernel.local import DEV

    other_env = volume.xok.environment(roots=["vol"])
    other = CFFS.mount(other_env, DEV, "vol", other_env.caps[0].index, writable=False, clock=volume.clock)

    def both(operation: Callable[[], object]) -> object:
        for _ in range(50):
            try:
                return operation()
            except NotInCore as missing:
                steps = other.steps_of_all(missing.requests)
                calls = next(steps)
                try:
                    while True:
                        cookies = [
                            other_env.submit(name, *scalars, cap=other.cap, data=data, out_bytes=4096)
                            for name, scalars, data in calls
                        ]
                        volume.env.dispatch()
                        volume.fs.events()
                        calls = steps.send([other_env.wait(cookie) for cookie in cookies])
                except StopIteration:
                    pass
        raise AssertionError("never in core")

    invalidated: list[int] = []
    other.on_invalidate = lambda ino, names=(): invalidated.append(ino)
    for version in (b"one", b"second", b"three"):
        if version == b"one":
            ino = volume.file(volume.root, b"f", version)
        else:
            for _ in range(50):
                try:
                    volume.fs.write(ino, 0, version)
                    break
                except NotInCore as missing:
                    steps = volume.fs.steps_of_all(missing.requests)
                    calls = next(steps)
                    try:
                        while True:
                            cookies = [
                                volume.env.submit(name, *scalars, cap=volume.fs.cap, data=data, out_bytes=4096)
                                for name, scalars, data in calls
                            ]
                            other_env.dispatch()
                            other.events()
                            calls = steps.send([volume.env.wait(cookie) for cookie in cookies])
                    except StopIteration:
                        pass
        attr = both(lambda: other.lookup(other.root_ino, b"f"))
        assert attr.size == max(len(version), 6 if version == b"three" else 0)  # type: ignore[attr-defined]
        data = both(lambda ino=ino: [bytes(view) for view in other.read(ino, 0, 100)])
        assert b"".join(data).startswith(version)  # type: ignore[arg-type]
    assert ino in invalidated
    with fails(errno.EROFS):
        other.create(other.root_ino, b"mine", 0o644, 0, 0)


def test_two_volumes_on_one_disk_never_choose_the_same_blocks() -> None:
    """A directory block is ours in XN before its number is in inode numbers that have been answered."""
    from libfs.cffs import mkfs
    from libfs.cffs.filesystem import CFFS
    from xok_host.kernel.local import DEV

    volume = Volume(1024)
    env = volume.xok.environment()
    other = CFFS.mount(env, DEV, "other", mkfs.make(env, DEV, "other", clock=volume.clock), clock=volume.clock)
    for number in range(60):
        volume.file(volume.root, b"a%d" % number, b"a" * 100)
        ino = other.complete(other.create, other.root_ino, b"b%d" % number, 0o644, 0, 0).ino
        other.complete(other.write, ino, 0, b"b" * 5000)
    volume.fs.fsync(None)
    other.fsync(None)
    assert set(volume.listing(volume.root)) == {b"a%d" % number for number in range(60)}
    volume.check_disk()


def test_what_another_volume_has_taken_is_not_promised() -> None:
    """ENOSPC comes with the write, not with the fsync, when somebody else has filled the disk meanwhile."""
    from libfs.cffs import mkfs
    from libfs.cffs.filesystem import CFFS
    from xok_host.kernel.local import DEV

    volume = Volume(256)
    env = volume.xok.environment()
    other = CFFS.mount(env, DEV, "other", mkfs.make(env, DEV, "other", clock=volume.clock), clock=volume.clock)
    ino = other.complete(other.create, other.root_ino, b"big", 0o644, 0, 0).ino
    other.complete(other.write, ino, 0, bytes(200 * 4096))
    other.fsync(None)
    mine = volume.file(volume.root, b"mine")
    with fails(errno.ENOSPC):
        for number in range(256):
            volume("write", mine, number * 4096, b"x" * 4096)
    assert volume.fs.promised == volume.fs.free
    try:
        volume.fs.fsync(None)
    except OSError as error:  # there was no block left for the file's extents
        assert error.errno == errno.ENOSPC
    volume.fs.fsync(None)
    other.complete(other.unlink, other.root_ino, b"big")
    other.fsync(None)
    assert not volume.fs.grouping.taken
    volume.file(volume.root, b"more", b"y" * 100000)
    volume.check_disk()


@pytest.mark.parametrize("shared", [False, True])
def test_directories_move_while_a_removed_one_hosts_what_left_it(shared: bool) -> None:
    volume = Volume(shared=shared)
    root = volume.root
    for number in range(3):
        box = volume("mkdir", root, b"box%d" % number, 0o755, 0, 0).ino
        volume("mkdir", box, b"content", 0o755, 0, 0)
        volume.fs.sync_all()
        volume("rename", box, b"content", root, b"content%d" % number)
        volume("rmdir", root, b"box%d" % number)
        volume.fs.sync_all()
        assert volume.fs.limbo
    assert sorted(volume.listing(root)) == [b"content%d" % number for number in range(3)]
    volume.check_disk()


def test_a_refused_gain_takes_nothing_along_that_waits_in_the_directorys_sector() -> None:
    volume = Volume()
    fs, root = volume.fs, volume.root
    ino = volume("mkdir", root, b"d", 0o755, 0, 0).ino
    fs.complete(fs.directory_to_change, ino)
    fs.sync_all()
    beside = volume.file(root, b"beside", b"contents")
    assert beside >> 2 == ino >> 2 and ino not in fs.dirty
    submit = fs._submit

    def refuse(transactions: Any, refused: Any) -> None:
        fs._submit = submit  # type: ignore[method-assign]
        refused(transactions[0], LimitReached("once"))

    fs.flush()
    volume("setattr", beside, mode=0o600)
    fs.sector(ino >> 2)
    fs._submit = refuse  # type: ignore[method-assign]
    with pytest.raises(OSError, match="once"):
        fs.create(ino, b"x", 0o644, 0, 0)
    volume.check_disk()
    volume("create", ino, b"x", 0o644, 0, 0)
    volume.remount()
    assert volume.contents(volume.listing(root)[b"beside"]) == b"contents"
    assert set(volume.listing(ino)) == {b"x"} and volume("getattr", beside).mode & 0o777 == 0o600
    volume.check_disk()
