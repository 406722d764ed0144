"""The tutorial's file system: what it does, against a dictionary, and after power failures at any write."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from typing import Any

import pytest
from pocket_kit import Pocket, pocketfs

from xok_host.abi import errors
from xok_host.abi.calls import Op, OpKind, pack_transaction
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB, disk_address
from xok_host.kernel.local import DEV


def refused(code: int, call: Callable[..., Any], *args: Any, **named: Any) -> None:
    with pytest.raises(OSError) as refusal:
        call(*args, **named)
    assert refusal.value.errno == code


@pytest.fixture
def pocket() -> Pocket:
    return Pocket()


def test_a_file_is_one_sector() -> None:
    assert pocketfs.FILE.size == SECTOR
    file = pocketfs.File(80, 0o100644, 1, 2, 3, 4, 5, 6, b"name", ((7, 8), (9, 10)))
    assert pocketfs.File.unpack(file.pack(), ino=80) == file
    assert (file.ino, file.place, file.name, file.stamp) == (80, (10, 0), b"name", 6)
    assert [pocketfs.block_at(file.extents, index) for index in (0, 7, 8, 17, 18)] == [7, 14, 9, 18, 0]


def test_what_was_written_is_read_and_survives_a_remount(pocket: Pocket) -> None:
    data = random.Random(1).randbytes(3 * BLOCK + 77)
    ino = pocket.file(b"a", data)
    pocket.file(b"empty")
    pocket.fs.write(ino, 5000, b"changed")
    data = data[:5000] + b"changed" + data[5007:]
    for _ in range(2):
        assert pocket.tree() == {b"a": data, b"empty": b""}
        assert b"".join(pocket.fs.read(pocket.ino(b"a"), 4090, 20)) == data[4090:4110]
        assert b"".join(pocket.fs.read(pocket.ino(b"a"), len(data), 20)) == b""
        pocket.remount()
    pocket.check_disk()


def test_attributes(pocket: Pocket) -> None:
    root = pocket.fs.getattr(pocket.fs.root_ino)
    assert (stat.S_ISDIR(root.mode), root.uid, root.gid) == (True, 1000, 100)
    ino = pocket.file(b"f", b"x" * 700)
    pocket.fs.setattr(ino, mode=0o600, uid=7, gid=8, mtime=9)
    pocket.remount()
    attr = pocket.fs.getattr(ino)
    assert (attr.mode, attr.uid, attr.gid, attr.mtime_ns, attr.size, attr.blocks) == (0o100600, 7, 8, 9, 700, 2)


def test_truncating_frees_and_growing_shows_zeros(pocket: Pocket) -> None:
    ino = pocket.file(b"f", b"x" * 5 * BLOCK)
    pocket.check_disk()
    free = pocket.fs.statfs().free
    pocket.fs.setattr(ino, size=BLOCK + 10)
    pocket.fs.fsync(None)
    assert pocket.fs.statfs().free == free + 3
    pocket.fs.setattr(ino, size=3 * BLOCK)
    assert pocket.contents(b"f") == b"x" * (BLOCK + 10) + bytes(2 * BLOCK - 10)
    pocket.fs.write(ino, 4 * BLOCK, b"far")
    assert pocket.contents(b"f")[3 * BLOCK :] == bytes(BLOCK) + b"far"
    pocket.check_disk()


def test_names(pocket: Pocket) -> None:
    root, fs = pocket.fs.root_ino, pocket.fs
    pocket.file(b"a", b"A")
    pocket.file(b"b", b"B")
    fs.rename(root, b"a", root, b"c")
    assert pocket.tree() == {b"b": b"B", b"c": b"A"}
    fs.rename(root, b"c", root, b"b")
    assert pocket.tree() == {b"b": b"A"}
    fs.rename(root, b"b", root, b"b")
    refused(errno.ENOENT, fs.lookup, root, b"a")
    refused(errno.ENOENT, fs.unlink, root, b"a")
    refused(errno.ENOENT, fs.rename, root, b"a", root, b"z")
    refused(errno.EEXIST, fs.create, root, b"b", 0o100644, 0, 0)
    refused(errno.ENAMETOOLONG, fs.create, root, b"n" * 185, 0o100644, 0, 0)
    refused(errno.ENAMETOOLONG, fs.rename, root, b"b", root, b"n" * 185)
    pocket.file(b"n" * 184)
    refused(errno.EEXIST, fs.rename, root, b"b", root, b"n" * 184, 1)
    refused(errno.EINVAL, fs.rename, root, b"b", root, b"n" * 184, 2)
    refused(errno.ENAMETOOLONG, fs.rename, root, b"b", root, b"n" * 185, 1)
    refused(errno.EPERM, fs.create, root, b"fifo", stat.S_IFIFO | 0o600, 0, 0)
    refused(errno.EPERM, fs.mkdir, root, b"d", 0o755, 0, 0)
    refused(errno.EPERM, fs.symlink, root, b"l", b"to", 0, 0)
    refused(errno.EPERM, fs.link, pocket.ino(b"b"), root, b"l")
    refused(errno.ESTALE, fs.getattr, root + 7)
    refused(errno.EISDIR, fs.setattr, root, size=1)
    pocket.check_disk()


def test_readdir_goes_on_from_a_cookie(pocket: Pocket) -> None:
    for number in range(10):
        pocket.file(b"%d" % number)
    entries = list(pocket.fs.readdir(pocket.fs.root_ino, 0))
    assert [entry[:1] for entry in pocket.fs.readdir(pocket.fs.root_ino, entries[5][2])] == [
        entry[:1] for entry in entries[6:]
    ]


def test_an_open_file_outlives_its_name_and_not_a_remount(pocket: Pocket) -> None:
    free = pocket.fs.statfs().free
    for ending in (pocket.fs.release, lambda ino: pocket.kill()):
        ino = pocket.file(b"f", b"still here")
        pocket.fs.open(ino)
        pocket.fs.unlink(pocket.fs.root_ino, b"f")
        assert pocket.tree() == {} and b"".join(pocket.fs.read(ino, 0, 99)) == b"still here"
        ending(ino)
        assert ino not in pocket.fs.files
        pocket.fs.fsync(None)
        assert pocket.fs.statfs().free == free


def test_the_table_and_the_disk_can_be_full() -> None:
    pocket = Pocket(256)
    root = pocket.fs.root_ino
    files = len(pocket.fs.sectors) - 1
    for number in range(files):
        pocket.file(b"%d" % number)
    refused(errno.ENOSPC, pocket.fs.create, root, b"more", 0o100644, 0, 0)
    assert pocket.fs.statfs().files_free == 0
    for number in range(1, files):
        pocket.fs.unlink(root, b"%d" % number)
    ino = pocket.ino(b"0")
    refused(errno.ENOSPC, pocket.fs.write, ino, 0, bytes(256 * BLOCK))
    refused(errno.ENOSPC, pocket.fs.setattr, ino, size=1 << 40)
    size = pocket.fs.getattr(ino).size
    assert size > 100 * BLOCK and pocket.contents(b"0") == bytes(size)
    pocket.fs.setattr(ino, size=0)
    pocket.fs.write(ino, 0, b"x" * size)
    assert pocket.contents(b"0") == b"x" * size
    pocket.check_disk()


def test_a_file_in_too_many_pieces_is_refused(pocket: Pocket, monkeypatch: pytest.MonkeyPatch) -> None:
    inos = [pocket.file(b"%d" % number) for number in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(
            pocketfs,
            "one_more",
            lambda extents, free, *_: (*extents, (free.find_run(70 + len(extents) * 9, 1), 1)),
        )
        for at in range(pocketfs.EXTENTS):
            pocket.fs.write(inos[0], at * BLOCK, b"x" * BLOCK)
        start, _ = pocket.fs.files[inos[0]].extents[-1]
        patch.setattr(pocketfs, "one_more", lambda *_: ((start + 1, 1),))
        pocket.fs.write(inos[1], 0, b"in the way")
    refused(errno.EFBIG, pocket.fs.write, inos[0], pocketfs.EXTENTS * BLOCK, b"one more")
    assert pocket.contents(b"0") == b"x" * BLOCK * pocketfs.EXTENTS
    pocket.check_disk()


@pytest.mark.parametrize(("memory", "blocks"), [({"entries": 512}, 1100), ({"max_chunks": 8}, 8000)])
def test_a_file_may_be_larger_than_what_may_be_kept_in_core(memory: dict[str, int], blocks: int) -> None:
    """BLK-4: dirty blocks are up to a bound, then pages; a read needs room as well."""
    pocket = Pocket(10240, **memory)
    data = random.Random(1).randbytes(blocks * BLOCK)
    ino = pocket.file(b"f", data)
    for at in range(0, len(data), 1 << 20):
        assert b"".join(pocket.fs.read(ino, at, 1 << 20)) == data[at : at + (1 << 20)]
    pocket.check_disk()


def test_what_left_core_is_brought_back(pocket: Pocket) -> None:
    data = os.urandom(6 * BLOCK)
    ino = pocket.file(b"f", data)
    pocket.remount()
    assert pocket.fs.blocks.entry(pocketfs.block_at(pocket.fs.files[ino].extents, 0)) is None
    assert pocket.contents(b"f") == data


def test_xn_refuses_what_the_bytes_do_not_say(pocket: Pocket) -> None:
    """The library may be wrong, or hostile: it cannot name a block that it was not given."""
    fs = pocket.fs
    file = fs.files[pocket.file(b"f", b"x")]
    other = pocket.xok.environment()
    foreign = other.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"foreign").r0
    for kind, fields in (
        (OpKind.MODIFY, {}),
        (OpKind.ALLOC, {"db": foreign, "count": 1, "type": TYPE_XN_DB}),
        (OpKind.FREE, {"db": foreign, "count": 1, "type": TYPE_XN_DB}),
    ):
        claimed = pocketfs.replace(file, extents=((foreign, 1),))
        write = (file.ino % SECTORS * SECTOR, claimed.pack())
        op = Op(kind, disk_address(DEV, file.ino // SECTORS), file.ino % SECTORS, writes=[write], **fields)
        with pytest.raises(errors.XokError):
            pocket.env.call("transact", cap=fs.blocks.cap, data=pack_transaction([op]))
    assert pocket.contents(b"f") == b"x"


@pytest.mark.parametrize("seed", range(20))
def test_it_is_a_dictionary(seed: int) -> None:
    pocket, rng = Pocket(), random.Random(seed)
    model: dict[bytes, bytes] = {}
    for _ in range(150):
        step(pocket, rng, model)
        if rng.random() < 0.03:
            rng.choice([pocket.remount, pocket.kill, lambda: pocket.fs.fsync(None)])()
        if rng.random() < 0.1:
            assert pocket.tree() == model
    assert pocket.tree() == model
    pocket.check_disk()


NAMES = [b"n%d" % number for number in range(12)]


def step(pocket: Pocket, rng: random.Random, model: dict[bytes, bytes], touch: Callable[[bytes], object] = id) -> None:
    """One random operation on both; `touch` hears of the names before."""
    root, fs, name, what = pocket.fs.root_ino, pocket.fs, rng.choice(NAMES), rng.random()
    touch(name)
    if name not in model:
        data = rng.randbytes(rng.choice([0, 10, BLOCK, 3 * BLOCK + 5]))
        pocket.file(name, data)
        model[name] = data
    elif what < 0.3:
        fs.unlink(root, name)
        del model[name]
    elif what < 0.6:
        offset, data = rng.randrange(4 * BLOCK), rng.randbytes(rng.choice([1, 100, BLOCK, 9000]))
        fs.write(pocket.ino(name), offset, data)
        model[name] = model[name].ljust(offset, b"\0")[:offset] + data + model[name][offset + len(data) :]
    elif what < 0.75:
        size = rng.randrange(5 * BLOCK)
        fs.setattr(pocket.ino(name), size=size)
        model[name] = model[name][:size].ljust(size, b"\0")
    else:
        target = rng.choice(NAMES)
        touch(target)
        fs.rename(root, name, root, target)
        model[target] = model.pop(name)


class PowerFails(Exception):
    pass


@pytest.mark.parametrize("seed", range(40))
def test_power_may_fail_at_any_write(seed: int) -> None:
    """XN's disk is sound, every file is whole, and what fsync promised and nobody touched since is there."""
    pocket, rng = Pocket(), random.Random(seed)
    model: dict[bytes, bytes] = {}
    for _ in range(40):
        step(pocket, rng, model)
    pocket.fs.fsync(None)
    promised: dict[bytes, bytes] = dict(model)
    left = rng.randrange(200)

    def on_write() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise PowerFails

    pocket.xok.disk.on_write = on_write
    try:
        for _ in range(120):
            step(pocket, rng, model, lambda name: promised.pop(name, None))
            if rng.random() < 0.15:
                pocket.fs.fsync(None)
                promised.clear()
                promised.update(model)
    except PowerFails:
        pass
    pocket.xok.disk.on_write = lambda: None
    report = pocket.crash(lambda sector: rng.random() < 0.5)
    assert report.sound, (report.violations, report.unmarked)
    found = pocket.tree()
    for name, data in promised.items():
        assert found.get(name) == data, f"{name!r} was promised"
    for name in list(found):
        pocket.fs.unlink(pocket.fs.root_ino, name)
    pocket.file(b"after", b"as good as new")
    pocket.remount()
    assert pocket.tree() == {b"after": b"as good as new"}
    pocket.check_disk()
