"""The bases of small libFSes: one directory's names, and what a change of attributes comes to."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from libfs.api import RENAME_EXCHANGE, RENAME_NOREPLACE, Attr, Synchronous, refusal
from libfs.flat import Flat

ROOT, FIFO = 3, 99


class Small(Flat):
    """Nothing is behind it; `changed` has what was asked for."""

    root_ino, name_max = ROOT, 8

    def __init__(self, **names: int) -> None:
        super().__init__()
        self.names = {b"/": ROOT, **{name.encode(): ino for name, ino in names.items()}}
        self.changed: list[dict[str, int]] = []

    def getattr(self, ino: int) -> Attr:
        kind = {ROOT: stat.S_IFDIR, FIFO: stat.S_IFIFO}.get(ino, stat.S_IFREG)
        file = SimpleNamespace(generation=4, mode=kind | 0o640, uid=5, gid=6, size=513, mtime=7)
        return Attr.of(ino, file)

    def change(self, ino: int, **changes: int) -> None:
        self.changed.append(changes)


def refused(code: int, call: Callable[..., Any], *args: Any, **named: Any) -> None:
    with pytest.raises(OSError) as error:
        call(*args, **named)
    assert error.value.errno == code and error.value.strerror == os.strerror(code)


def test_a_refusal_is_the_exception_of_its_number() -> None:
    assert isinstance(refusal(errno.ENOENT), FileNotFoundError)


def test_attributes_of_a_file_with_one_name_and_one_time() -> None:
    attr = Small().getattr(10)
    assert attr == Attr(10, 4, stat.S_IFREG | 0o640, 1, 5, 6, 0, 513, 2, 7, 7, 7)


def test_names_are_found() -> None:
    small = Small(a=10)
    assert small.find(b"a") == small.lookup(ROOT, b"a").ino == 10
    refused(errno.ENOENT, small.find, b"b")
    refused(errno.ENOENT, small.lookup, ROOT, b"b")


def test_a_directory_is_listed_in_the_order_of_its_cookies() -> None:
    """FLAT-3, while names come and go."""
    small = Small(b=10, a=30, c=20, d=40)
    assert [(name, attr.ino, cookie) for name, attr, cookie in small.readdir(ROOT, 0)] == [
        (b"b", 10, 10),
        (b"c", 20, 20),
        (b"a", 30, 30),
        (b"d", 40, 40),
    ]
    listing = small.readdir(ROOT, 0)
    assert [next(listing)[2], next(listing)[2]] == [10, 20]
    del small.names[b"c"], small.names[b"d"]
    small.names |= {b"new": 15, b"later": 35}
    assert [name for name, _, _ in small.readdir(ROOT, 20)] == [b"a", b"later"]


def test_what_may_be_created() -> None:
    small = Small(a=10)
    before = dict(small.names)
    small.check_new(b"b", stat.S_IFREG | 0o600)
    small.check_new(b"x" * 8, stat.S_IFREG)
    refused(errno.EEXIST, small.check_new, b"a", stat.S_IFREG)
    refused(errno.EPERM, small.check_new, b"b", stat.S_IFIFO)
    refused(errno.ENAMETOOLONG, small.check_new, b"x" * 9, stat.S_IFREG)
    assert small.names == before


def test_what_may_be_renamed() -> None:
    small = Small(a=10, b=20)
    before = dict(small.names)
    assert small.check_rename(b"a", b"c", 0) == small.check_rename(b"a", b"c", RENAME_NOREPLACE) == (10, None)
    assert (small.check_rename(b"a", b"b", 0), small.check_rename(b"a", b"a", 0)) == ((10, 20), (10, 10))
    refused(errno.ENOENT, small.check_rename, b"c", b"d", 0)
    refused(errno.EEXIST, small.check_rename, b"a", b"b", RENAME_NOREPLACE)
    refused(errno.EINVAL, small.check_rename, b"a", b"b", RENAME_EXCHANGE)
    refused(errno.ENAMETOOLONG, small.check_rename, b"a", b"x" * 9, 0)
    assert small.names == before


def test_only_what_is_given_changes_and_a_mode_keeps_the_type() -> None:
    small = Small()
    assert small.setattr(10, mode=stat.S_IFDIR | 0o4711, uid=1, atime=0).ino == 10
    assert small.changed == [{"mode": stat.S_IFREG | 0o4711, "uid": 1, "atime": 0}]
    small.setattr(ROOT, mode=0o1777, gid=0)
    assert small.changed[1:] == [{"mode": stat.S_IFDIR | 0o1777, "gid": 0}]


def test_a_size_changes_the_time_unless_one_is_given() -> None:
    small, before = Small(), time.time_ns()
    small.setattr(10, size=0)
    small.setattr(10, size=9, mtime=1)
    assert small.changed[1] == {"size": 9, "mtime": 1}
    assert small.changed[0]["size"] == 0 and before <= small.changed[0]["mtime"] <= time.time_ns()


def test_what_has_no_size_to_be_set() -> None:
    small = Small()
    refused(errno.EISDIR, small.setattr, ROOT, size=0)
    refused(errno.EINVAL, small.setattr, FIFO, size=0)
    refused(errno.EINVAL, small.setattr, 10, size=-1)
    assert small.changed == []


def test_what_a_file_system_of_files_does_not_do() -> None:
    small = Small(a=10)
    refused_by: list[tuple[int, Callable[..., Any], tuple[Any, ...]]] = [
        (errno.EPERM, small.mkdir, (ROOT, b"d", 0o755, 0, 0)),
        (errno.EPERM, small.symlink, (ROOT, b"l", b"to", 0, 0)),
        (errno.EPERM, small.link, (10, ROOT, b"l")),
        (errno.ENOTDIR, small.rmdir, (ROOT, b"a")),
        (errno.EINVAL, small.readlink, (10,)),
    ]
    for code, call, args in refused_by:
        with pytest.raises(OSError) as error:
            call(*args)
        assert error.value.errno == code
    for call in (Synchronous().getattr, Synchronous().change):
        with pytest.raises(NotImplementedError):
            call(10)
