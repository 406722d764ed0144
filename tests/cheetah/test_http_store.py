"""The two simple stores: what they find, what they hide, and that they notice changes."""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path

import pytest

from netstack.cheetah.store import (
    BufferDocument,
    DirectoryStore,
    Forbidden,
    IsDirectory,
    MemoryStore,
    Missing,
    address_of,
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"hello" * 2000)
    (root / "sub" / "b").write_bytes(b"b")
    (root / "empty").write_bytes(b"")
    (root / "private").write_bytes(b"x")
    (root / "private").chmod(0o640)
    (root / "closed").mkdir(mode=0o750)
    (root / "closed" / "in").write_bytes(b"x")
    (root / "closed").chmod(0o750)
    (tmp_path / "outside").write_bytes(b"secret")
    (root / "out").symlink_to("../outside")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "in").symlink_to("sub/b")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo", 0o644)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "socket"))
    return root


def document(store: DirectoryStore | MemoryStore, path: bytes) -> BufferDocument:
    found = store.open(path)
    assert isinstance(found, BufferDocument)
    return found


def text(found: BufferDocument, offset: int, length: int) -> bytes:
    return b"".join(ctypes.string_at(address, size) for address, size in found.pages(offset, length))


def test_documents_of_a_directory(tree: Path) -> None:
    store = DirectoryStore(tree)
    found = document(store, b"a.txt")
    assert (found.size, text(found, 0, 10000), text(found, 4999, 3)) == (10000, b"hello" * 2000, b"ohe")
    assert found.mtime_ns == (tree / "a.txt").stat().st_mtime_ns
    assert text(document(store, b"sub/b"), 0, 1) == b"b"
    assert document(store, b"empty").pages(0, 0) == []
    assert text(document(store, b"in"), 0, 1) == b"b"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"", IsDirectory),
        (b"sub", IsDirectory),
        (b"none", Missing),
        (b"a.txt/x", Missing),
        (b"n" * 300, Missing),
        (b"loop", Missing),
        (b"private", Forbidden),
        (b"closed/in", Forbidden),
        (b"out", Forbidden),
        (b"absolute", Forbidden),
        (b"fifo", Forbidden),
        (b"socket", Missing),
    ],
)
def test_what_is_not_a_document(tree: Path, path: bytes, kind: type) -> None:
    assert isinstance(DirectoryStore(tree).open(path), kind)


def test_a_directory_document_notices_changes(tree: Path) -> None:
    store = DirectoryStore(tree)
    found = document(store, b"sub/b")
    assert found.recheck and found.current()
    (tree / "new").write_bytes(b"c")
    os.replace(tree / "new", tree / "sub" / "b")
    assert not found.current()
    assert text(found, 0, 1) == b"b"  # what is being sent stays
    fresh = document(store, b"sub/b")
    assert text(fresh, 0, 1) == b"c"
    assert fresh.tag != found.tag
    os.unlink(tree / "sub" / "b")
    assert not fresh.current()


def test_memory_documents_have_words() -> None:
    store = MemoryStore({b"a/b": b"x" * 9000})
    found = document(store, b"a/b")
    assert [length for _, length in found.pages(100, 8500)] == [3996, 4096, 408]
    assert text(found, 100, 8500) == b"x" * 8500
    assert found.current()
    store.put(b"a/b", b"y")
    assert not found.current()
    assert isinstance(store.open(b"a"), IsDirectory)
    assert isinstance(store.open(b""), IsDirectory)
    assert isinstance(store.open(b"a/"), Missing)
    store.remove(b"a/b")
    assert isinstance(store.open(b"a/b"), Missing)


def test_pages_and_pins_are_checked() -> None:
    found = document(MemoryStore({b"a": b"xyz"}), b"a")
    for offset, length in ((-1, 1), (0, 4), (3, 1), (0, -1)):
        with pytest.raises(ValueError):
            found.pages(offset, length)
    with pytest.raises(ValueError):
        found.unpin(0, 3)


def test_address_of_read_only_memory() -> None:
    data = b"0123456789"
    assert ctypes.string_at(address_of(memoryview(data)[3:7]), 4) == b"3456"
    assert address_of(data) + 3 == address_of(memoryview(data)[3:])
    with pytest.raises(BufferError):
        address_of(memoryview(data)[::2])


def test_a_root_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        DirectoryStore(tmp_path / "none")
