"""Where documents come from: the small protocol through which Cheetah sees files.

Cheetah knows no file system; the program that composes it with one hands it a FileStore.  Two simple
ones are here: `MemoryStore` for tests, `DirectoryStore` for any directory of the host.  The adapter
for C-FFS is `mounts.web`.

STORE-1  While a range of a Document is pinned, the bytes at the addresses that `pages` gives for it do not
         change and stay mapped.  They are what TCP retransmits from.
STORE-2  A Document is current while every word of `validity` holds its expected value.  The words are
         in memory that the store keeps readable for as long as the Document exists, so the check
         costs the packet loop no call.  A store which has no such word says so with `recheck`: the
         loop then asks `current()` instead, but at most so often that an answer may be that old.
STORE-3  When the store was told that a file changed, `open` gives the new contents, and words of older
         Documents have changed before that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import stat
from dataclasses import dataclass, field
from typing import Final, Protocol

Page = tuple[int, int]
"""Address and length of bytes that may be handed to the kernel as they are."""

Word = tuple[int, int]
"""Address of an aligned u64 and the value that it has as long as the document is current."""


class _Buffer(ctypes.Structure):
    """The head of CPython's Py_buffer (PEP 3118), and room for the rest."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("rest", ctypes.c_void_p * 16),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_Buffer),)


def address_of(buffer: memoryview | mmap.mmap | bytes) -> int:
    """Where the bytes of a buffer lie, read-only ones too; good as long as the caller keeps the owner alive."""
    found = _Buffer()
    _get_buffer(buffer, ctypes.byref(found), 0)  # PyBUF_SIMPLE: contiguous, or BufferError
    try:
        return found.buf or 0
    finally:
        _release_buffer(ctypes.byref(found))


@dataclass(frozen=True, slots=True)
class Missing:
    """No such file: 404."""


@dataclass(frozen=True, slots=True)
class Forbidden:
    """There is something, but not for everybody: 403."""


@dataclass(frozen=True, slots=True)
class IsDirectory:
    """A directory: redirected to its slash, or answered by its index document."""


class Document(Protocol):
    """One version of one file."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def mtime_ns(self) -> int:
        """Modification time, ns since 1970."""

    @property
    def tag(self) -> bytes:
        """Token characters that differ whenever the contents do: the middle of the ETag."""

    @property
    def validity(self) -> tuple[Word, ...]:
        """STORE-2; empty for a document that can never change."""

    @property
    def recheck(self) -> bool:
        """True if `current` has to be asked because the words do not tell everything."""

    def pin(self, offset: int, length: int) -> None:
        """Hold these bytes still; counted.  OSError if they cannot be had, ESTALE if the file has changed."""

    def unpin(self, offset: int, length: int) -> None:
        """Undo one `pin` of the same range."""

    def pages(self, offset: int, length: int) -> list[Page]:
        """The bytes of a pinned range, in order, in pieces; neighbours in memory may be merged."""

    def current(self) -> bool:
        """The whole check: words, and whatever the store must ask for."""


class FileStore(Protocol):
    """Documents by path (see target.py for what a path is; b"" is the root)."""

    def open(self, path: bytes) -> Document | Missing | Forbidden | IsDirectory:
        """What is at `path` now.  OSError if the storage fails: 500."""

    def poll(self) -> None:
        """Called once a turn, before requests are read: take notice of changes, give up locks asked for."""


@dataclass(slots=True, eq=False)
class BufferDocument:
    """A Document over one buffer, which it keeps alive."""

    data: ctypes.Array[ctypes.c_char] | mmap.mmap | None
    address: int
    size: int
    mtime_ns: int
    tag: bytes
    validity: tuple[Word, ...] = ()
    recheck: bool = False
    pins: int = 0

    def pages(self, offset: int, length: int) -> list[Page]:
        """One piece."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"bytes {offset}+{length} of a document of {self.size}")
        return [(self.address + offset, length)] if length else []

    def current(self) -> bool:
        """True while every word has its value."""
        return all(ctypes.c_uint64.from_address(at).value == value for at, value in self.validity)

    def pin(self, offset: int, length: int) -> None:
        """Count one more holder; the buffer lives as long as this object anyway."""
        self.pins += 1

    def unpin(self, offset: int, length: int) -> None:
        """Count one less."""
        if self.pins == 0:
            raise ValueError("unpin without pin")
        self.pins -= 1


class MemoryStore:
    """Files from a dictionary; a directory is where some path goes on."""

    def __init__(self, files: dict[bytes, bytes] | None = None, page: int = 4096) -> None:
        self._page = page
        self._documents: dict[bytes, tuple[_PagedDocument, ctypes.c_uint64]] = {}
        self._forbidden: set[bytes] = set()
        self._version = 0
        for path, data in (files or {}).items():
            self.put(path, data)

    def put(self, path: bytes, data: bytes, mtime_ns: int = 1_700_000_000 * 10**9) -> None:
        """Create or replace a file; documents opened before are no longer current."""
        self.remove(path)
        self._version += 1
        word = ctypes.c_uint64(self._version)
        buffer = ctypes.create_string_buffer(data, max(len(data), 1))
        document = _PagedDocument(
            data=buffer,
            address=ctypes.addressof(buffer),
            size=len(data),
            mtime_ns=mtime_ns,
            tag=b"%x-%x" % (self._version, len(data)),
            validity=((ctypes.addressof(word), self._version),),
            page=self._page,
            word=word,
        )
        self._documents[path] = document, word

    def remove(self, path: bytes) -> None:
        """Forget a file if there is one."""
        if (found := self._documents.pop(path, None)) is not None:
            found[1].value = 0

    def forbid(self, path: bytes) -> None:
        """Make this path Forbidden."""
        self._forbidden.add(path)

    def open(self, path: bytes) -> Document | Missing | Forbidden | IsDirectory:
        """See FileStore."""
        if path in self._forbidden:
            return Forbidden()
        if (found := self._documents.get(path)) is not None:
            return found[0]
        below = path + b"/" if path else b""
        return IsDirectory() if any(name.startswith(below) for name in self._documents) else Missing()

    def poll(self) -> None:
        """Nothing changes but through `put` and `remove`."""


@dataclass(slots=True, eq=False)
class _PagedDocument(BufferDocument):
    """Gives its bytes page by page, as a file system would."""

    page: int = 4096
    word: ctypes.c_uint64 = field(default_factory=ctypes.c_uint64)

    def pages(self, offset: int, length: int) -> list[Page]:
        whole = BufferDocument.pages(self, offset, length)
        pieces: list[Page] = []
        for address, left in whole:
            at = offset
            while left:
                here = min(left, self.page - at % self.page)
                pieces.append((address + at - offset, here))
                at, left = at + here, left - here
        return pieces


_NOT_A_FILE: Final = frozenset((errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.ENODEV))
_WORLD_READ: Final = stat.S_IROTH
_WORLD_SEARCH: Final = stat.S_IXOTH


class DirectoryStore:
    """A directory of the host, mapped file by file: for benchmarks, and for trying things out.

    A file is served only if everybody may read it and search every directory above it, so what the
    server's own uid may do never shows.  Symbolic links are followed only to places under the root.
    The host has no word that changes with a file, so documents ask for `recheck` (STORE-2): a `stat`,
    which sees another inode, size or modification time.  A file that is rewritten in place while it is
    being sent may go out half old, half new; replace files by rename.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.realpath(os.fsencode(root))
        if not os.path.isdir(self._root):
            raise NotADirectoryError(f"{os.fsdecode(self._root)} is not a directory")

    def open(self, path: bytes) -> Document | Missing | Forbidden | IsDirectory:
        """See FileStore."""
        where = os.path.realpath(os.path.join(self._root, path))
        if where != self._root and not where.startswith(self._root.rstrip(b"/") + b"/"):
            return Forbidden()
        try:
            if not self._searchable(where):
                return Forbidden()
            file = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return Missing()
        except PermissionError:
            return Forbidden()
        except OSError as error:
            if error.errno in _NOT_A_FILE:
                return Missing()
            raise
        try:
            found = os.fstat(file)
            if stat.S_ISDIR(found.st_mode):
                return IsDirectory()
            if not stat.S_ISREG(found.st_mode) or not found.st_mode & _WORLD_READ:
                return Forbidden()
            return _FileDocument.of(where, file, found)
        finally:
            os.close(file)

    def _searchable(self, where: bytes) -> bool:
        """Whether everybody may search every directory between the root and `where`."""
        while len(where := os.path.dirname(where)) > len(self._root):
            mode = os.stat(where).st_mode
            if stat.S_ISDIR(mode) and not mode & _WORLD_SEARCH:
                return False
        return True

    def poll(self) -> None:
        """Nothing to give up."""


@dataclass(slots=True, eq=False)
class _FileDocument(BufferDocument):
    where: bytes = b""
    identity: tuple[int, ...] = ()

    @classmethod
    def of(cls, where: bytes, file: int, found: os.stat_result) -> _FileDocument:
        size = found.st_size
        data = mmap.mmap(file, size, mmap.MAP_SHARED, mmap.PROT_READ) if size else None
        address = address_of(data) if data is not None else 0
        tag = b"%x-%x-%x" % (found.st_ino, size, found.st_mtime_ns)
        return cls(data, address, size, found.st_mtime_ns, tag, (), True, where=where, identity=_identity(found))

    def current(self) -> bool:
        """One stat of the name."""
        with contextlib.suppress(OSError):
            return _identity(os.stat(self.where)) == self.identity
        return False


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
