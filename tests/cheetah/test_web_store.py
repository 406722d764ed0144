"""Documents out of a C-FFS that another environment changes: what the next request gets, and what stays pinned."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import pytest

from libfs.cffs import mkfs
from libfs.cffs.filesystem import CFFS
from mounts.web import VolumeStore
from netstack.cheetah.store import Forbidden, IsDirectory, Missing
from xok_host.abi.types import Right
from xok_host.kernel.local import DEV, LocalEnvironment, LocalXok


class Pair:
    """A writer and a reader on one volume, each in an environment of its own; who waits lets the other run."""

    def __init__(self) -> None:
        self.xok = LocalXok(8192)
        ticks = itertools.count(1_700_000_000 * 10**9, 1_000_000)
        maker = self.xok.environment()
        mkfs.make(maker, DEV, "vol", clock=lambda: next(ticks))
        maker.close()
        self.writing = self.patient("writer", Right.READ | Right.WRITE)
        self.fs = CFFS.mount(self.writing, DEV, "vol", self.writing.caps[0].index, clock=lambda: next(ticks))
        self.top = self.directory(self.fs.root_ino, b"site")
        self.reading = self.patient("reader", Right.READ)
        self.reader = CFFS.mount(self.reading, DEV, "vol", self.reading.caps[0].index)
        self.store = VolumeStore(self.reading, self.reader, b"/site")

    def patient(self, name: str, rights: Right) -> LocalEnvironment:
        cap = self.xok.kernel.tree_capability(DEV, "vol", rights)
        env = self.xok.environment([cap], name=name)
        plain = env.wait

        def wait(cookie: int) -> Any:
            for _ in range(100):
                try:
                    return plain(cookie)
                except RuntimeError:
                    self.others(env)
            return plain(cookie)

        env.wait = wait  # type: ignore[method-assign]
        return env

    def others(self, waiting: LocalEnvironment) -> None:
        if waiting is self.writing:
            self.store.poll()
        else:
            self.writing.dispatch()
            self.fs.events()

    # what the writer does

    def directory(self, parent: int, name: bytes, mode: int = 0o755) -> int:
        ino: int = self.fs.complete(self.fs.mkdir, parent, name, mode, 0, 0).ino
        return ino

    def file(self, parent: int, name: bytes, data: bytes, mode: int = 0o644) -> int:
        ino: int = self.fs.complete(self.fs.create, parent, name, mode, 0, 0).ino
        self.write(ino, 0, data)
        return ino

    def write(self, ino: int, offset: int, data: bytes) -> None:
        while data:
            done = self.fs.complete(self.fs.write, ino, offset, data[:65536])
            offset, data = offset + done, data[done:]

    def link(self, parent: int, name: bytes, target: bytes) -> None:
        self.fs.complete(self.fs.symlink, parent, name, target, 0, 0)

    # what a request gets

    def get(self, path: bytes) -> bytes:
        found = self.open(path)
        found.pin(0, found.size)
        try:
            return text(found, 0, found.size)
        finally:
            found.unpin(0, found.size)

    def open(self, path: bytes) -> Any:
        self.store.poll()
        return self.store.open(path)

    def pins(self) -> int:
        self.reading.dispatch()
        return self.reading.kernel_env.npins


def text(found: Any, offset: int, length: int) -> bytes:
    return b"".join(ctypes.string_at(address, size) for address, size in found.pages(offset, length))


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_files_of_all_sizes(pair: Pair) -> None:
    contents = {b"%d" % size: bytes(i * 7 & 255 for i in range(size)) for size in (0, 1, 4095, 4096, 4097, 200_000)}
    for name, data in contents.items():
        pair.file(pair.top, name, data)
    for name, data in contents.items():
        assert pair.get(name) == data
        if len(data) > 100:
            found = pair.open(name)
            found.pin(50, len(data) - 60)
            assert text(found, 50, len(data) - 60) == data[50:-10]
            found.unpin(50, len(data) - 60)
    assert pair.pins() == 0


def test_neighbouring_pages_are_one_piece(pair: Pair) -> None:
    pair.file(pair.top, b"a", b"x" * 400_000)
    found = pair.open(b"a")
    found.pin(0, found.size)
    assert len(found.pages(0, found.size)) < 50
    found.unpin(0, found.size)


def test_holes_are_zeros(pair: Pair) -> None:
    ino = pair.file(pair.top, b"a", b"begin")
    pair.write(ino, 50_000, b"end")
    assert pair.get(b"a") == b"begin".ljust(50_000, b"\0") + b"end"


def test_what_is_there_and_what_is_not(pair: Pair) -> None:
    sub = pair.directory(pair.top, b"sub")
    hidden = pair.directory(pair.top, b"hidden", 0o750)
    pair.file(sub, b"b", b"b")
    pair.file(hidden, b"b", b"b")
    pair.file(pair.top, b"private", b"x", 0o640)
    pair.file(pair.fs.root_ino, b"outside", b"x")
    pair.fs.complete(pair.fs.create, pair.top, b"fifo", 0o010644, 0, 0)
    links = [(b"good", b"sub/b"), (b"up", b"../outside"), (b"absolute", b"/etc/passwd"), (b"loop", b"loop")]
    links += [(b"dots", b"sub/.././sub//b"), (b"broken", b"nothing"), (b"folder", b"sub")]
    for name, target in links:
        pair.link(pair.top, name, target)
    for path in (b"sub/b", b"good", b"dots", b"folder/b"):
        assert pair.get(path) == b"b"
    kinds = [(b"", IsDirectory), (b"sub", IsDirectory), (b"folder", IsDirectory), (b"none", Missing)]
    kinds += [(b"sub/b/x", Missing), (b"n" * 300, Missing), (b"loop", Missing), (b"broken", Missing)]
    kinds += [(path, Forbidden) for path in (b"private", b"hidden/b", b"up", b"absolute", b"fifo")]
    for path, kind in kinds:
        assert isinstance(pair.open(path), kind), path


def test_the_next_request_sees_every_change(pair: Pair) -> None:
    sub = pair.directory(pair.top, b"sub")
    ino = pair.file(sub, b"a", b"one")
    before = pair.open(b"sub/a")
    assert pair.get(b"sub/a") == b"one" and before.current()

    pair.write(ino, 0, b"two")  # in place
    assert not before.current()
    assert pair.get(b"sub/a") == b"two"

    second = pair.open(b"sub/a")
    elsewhere = pair.file(pair.fs.root_ino, b"new", b"three")
    pair.fs.complete(pair.fs.rename, pair.fs.root_ino, b"new", sub, b"a")  # an inode whose home is elsewhere
    assert not second.current()
    assert pair.get(b"sub/a") == b"three"

    third = pair.open(b"sub/a")
    pair.write(elsewhere, 5, b"!")
    assert not third.current()
    assert pair.get(b"sub/a") == b"three!"

    fourth = pair.open(b"sub/a")
    pair.fs.complete(pair.fs.setattr, sub, mode=0o700)
    assert not fourth.current()
    assert isinstance(pair.open(b"sub/a"), Forbidden)
    pair.fs.complete(pair.fs.setattr, sub, mode=0o755)
    pair.fs.complete(pair.fs.unlink, sub, b"a")
    assert isinstance(pair.open(b"sub/a"), Missing)


def test_what_nobody_changes_stays_current(pair: Pair) -> None:
    one, two = pair.directory(pair.top, b"one"), pair.directory(pair.top, b"two")
    pair.file(one, b"a", b"a")
    other = pair.file(two, b"b", b"b")
    pair.get(b"one/a")
    found = pair.open(b"one/a")
    pair.get(b"two/b")
    assert found.current()
    tag = found.tag
    pair.write(other, 0, b"c")
    assert pair.get(b"two/b") == b"c"
    assert pair.open(b"one/a").tag == tag


def test_words_tell_what_current_tells(pair: Pair) -> None:
    ino = pair.file(pair.top, b"a", b"a")
    found = pair.open(b"a")
    assert all(ctypes.c_uint64.from_address(address).value == value for address, value in found.validity)
    pair.write(ino, 0, b"b")
    assert not all(ctypes.c_uint64.from_address(address).value == value for address, value in found.validity)


def test_pinned_pages_stay_while_the_file_changes(pair: Pair) -> None:
    data = bytes(range(256)) * 100
    ino = pair.file(pair.top, b"a", data)
    found = pair.open(b"a")
    found.pin(0, found.size)
    held = pair.pins()
    assert held == 7
    for round_number in range(20):
        pair.write(ino, 0, bytes([round_number]) * len(data))
        pair.fs.complete(pair.fs.fsync, ino)
        assert pair.get(b"a") == bytes([round_number]) * len(data)
        assert text(found, 0, found.size) == data
    pair.fs.complete(pair.fs.unlink, pair.top, b"a")
    pair.fs.sync_all()
    pair.file(pair.top, b"other", b"y" * 100_000)
    pair.fs.sync_all()
    assert text(found, 0, found.size) == data
    with pytest.raises(OSError):
        found.pin(0, 1)
    found.unpin(0, found.size)
    assert pair.pins() == 0


def test_pins_of_one_range_are_shared(pair: Pair) -> None:
    pair.file(pair.top, b"a", b"x" * 9000)
    found = pair.open(b"a")
    for _ in range(3):
        found.pin(0, 9000)
    assert pair.pins() == 3
    for left in (3, 3, 0):
        found.unpin(0, 9000)
        assert pair.pins() == left


def test_a_root_that_is_none(pair: Pair) -> None:
    for root in (b"/none", b"/site/none"):
        with pytest.raises(NotADirectoryError):
            VolumeStore(pair.reading, pair.reader, root)
