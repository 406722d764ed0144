"""Cheetah over a C-FFS volume: the program that `xok serve` starts, and the FileStore that joins the two.

Cheetah knows no file system and C-FFS no HTTP; here a path becomes an inode, and a file's blocks become pinned pages of
the registry, which go to the TAP from where they lie.

WEB-1  C-FFS reads under shared registry locks on directory blocks, and a writer must have taken them from us before it
       answers anything that we could see. A document is current as long as no lock that its path or its inode was read
       under was asked for: each lock has a word, which changes when xokd tells that somebody wants it, and again when
       we have let go. So what `write` answered is what the next request gets.
WEB-2  Pages are pinned with xokd, by block and generation, before a byte of them is sent, and unpinned when the last of
       it was acknowledged. A writer's new contents are another page; ours stays as it was.
WEB-3  The volume's capability can read everything, but the web is everybody: a file is served only if others may read
       it and search every directory above it. Symbolic links are followed inside the root, MAX_LINKS at most.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import logging
import stat
from typing import Any, Final
from weakref import WeakValueDictionary

from libfs.api import Attr, NotInCore
from libfs.cffs.filesystem import CFFS
from netstack.cheetah.program import PORT, serve
from netstack.cheetah.store import (
    Document,
    Forbidden,
    IsDirectory,
    Missing,
    Page,
    Word,
    address_of,
)
from xok_host.abi import errors
from xok_host.abi.calls import Event
from xok_host.abi.client import Environment, refusal
from xok_host.abi.types import BLOCK, da_block

log = logging.getLogger("xok.web")

MAX_LINKS: Final = 40
MAX_TRIES: Final = 64
"""Rounds of fetching for one operation; more means that somebody evicts as fast as we fetch."""


class _Epoch:
    """The word of one lock: it changes when what was read under the lock may be old."""

    __slots__ = ("__weakref__", "word")

    def __init__(self) -> None:
        self.word = ctypes.c_uint64(0)


class _Watch:
    """The locks that something was read under, with the values that their words had before."""

    def __init__(self) -> None:
        self._seen: dict[_Epoch, int] = {}

    def add(self, epoch: _Epoch) -> None:
        self._seen.setdefault(epoch, epoch.word.value)

    def unchanged(self) -> bool:
        return all(epoch.word.value == value for epoch, value in self._seen.items())

    def words(self) -> tuple[Word, ...]:
        return tuple((ctypes.addressof(epoch.word), value) for epoch, value in self._seen.items())


class VolumeDocument:
    """One version of one file: Cheetah's Document."""

    def __init__(self, store: VolumeStore, attr: Attr, watch: _Watch) -> None:
        self.size = attr.size
        self.mtime_ns = attr.mtime_ns
        self.tag = b"%x-%x-%x-%x" % (attr.ino, attr.generation, attr.mtime_ns, attr.size)
        self.validity = watch.words()
        self.recheck = False
        self.current = watch.unchanged
        self._store = store
        self._ino = attr.ino
        self._held: dict[tuple[int, int], list[Any]] = {}  # range → [count, pages pinned, pieces]

    def pin(self, offset: int, length: int) -> None:
        """WEB-2.  ESTALE if the file is another by now."""
        held = self._held.get((offset, length))
        if held is None:
            if not self.current():
                raise OSError(errno.ESTALE, "the file has changed")
            held = self._held[offset, length] = [0, *self._store.pin(self._ino, offset, length)]
        held[0] += 1

    def unpin(self, offset: int, length: int) -> None:
        """Undo one `pin`."""
        held = self._held[offset, length]
        held[0] -= 1
        if not held[0]:
            del self._held[offset, length]
            self._store.unpin(held[1])

    def pages(self, offset: int, length: int) -> list[Page]:
        """The pieces of a pinned range."""
        pieces: list[Page] = self._held[offset, length][2]
        return pieces


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part]


class VolumeStore:
    """Cheetah's FileStore over a mounted C-FFS.  `env` is the environment that holds it."""

    def __init__(self, env: Any, fs: Any, root: bytes = b"/") -> None:
        self._env = env
        self._fs = fs
        self._epochs: WeakValueDictionary[int, _Epoch] = WeakValueDictionary()
        self._wanted: list[int] = []
        self._zeros = bytes(BLOCK)
        self._next_event = env.on_event
        env.on_event = self._event
        self._root: tuple[int, ...] = (fs.root_ino,)
        found = self._walk(_parts(root), _Watch())
        if not isinstance(found, tuple) or not stat.S_ISDIR(found[1].mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{root.decode(errors='replace')} is no directory of the volume")
        self._root = found[0]

    def poll(self) -> None:
        """Take notice of what xokd and other environments want, and give it to them."""
        self._env.dispatch()
        if self._wanted:
            try:
                self._fs.events()
            except errors.Gone:
                raise
            except (OSError, errors.XokError):
                log.exception("giving up a lock failed; xokd takes it after the deadline")
            while self._wanted:
                self._bump(self._wanted.pop())

    def _event(self, event: Event, r0: int, r1: int) -> None:
        """WEB-1.  C-FFS sees the event after us."""
        if event in (Event.LOCK_WANTED, Event.LOCK_LOST) and r0 >> 56 == self._fs.dev:
            self._wanted.append(da_block(r0))
            self._bump(da_block(r0))
        self._next_event(event, r0, r1)

    def _bump(self, block: int) -> None:
        found = self._epochs.get(block)
        if found is not None:
            found.word.value += 1

    def open(self, path: bytes) -> Document | Missing | Forbidden | IsDirectory:
        """See FileStore."""
        for _ in range(MAX_TRIES):
            watch = _Watch()
            found = self._walk(_parts(path), watch)
            if not isinstance(found, tuple):
                return found
            attr = found[1]
            if stat.S_ISDIR(attr.mode):
                return IsDirectory()
            if not stat.S_ISREG(attr.mode) or not attr.mode & stat.S_IROTH:
                return Forbidden()
            if watch.unchanged():
                return VolumeDocument(self, attr, watch)
        raise OSError(errno.EBUSY, "the file changes faster than it can be opened")

    def _walk(self, parts: list[bytes], watch: _Watch) -> tuple[tuple[int, ...], Attr] | Missing | Forbidden:
        """Inodes from the root of the volume to the end of the path and the last one's attributes."""
        way = list(self._root)
        base = len(way)
        attr = self._attributes(way[-1], watch)
        links = 0
        parts = parts[::-1]
        while parts:
            part = parts.pop()
            if not stat.S_ISDIR(attr.mode):
                return Missing()
            if not attr.mode & stat.S_IXOTH:
                return Forbidden()
            if part == b".":
                continue
            if part == b"..":  # only ever out of a symbolic link
                if len(way) == base:
                    return Forbidden()
                way.pop()
                attr = self._attributes(way[-1], watch)
                continue
            watch.add(self._epoch(way[-1] >> 5))  # the lock on a directory's names
            try:
                ino = self._do(self._fs.lookup, way[-1], part).ino
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
                    return Missing()
                raise
            found = self._attributes(ino, watch)
            if stat.S_ISLNK(found.mode):
                links += 1
                target: bytes = self._do(self._fs.readlink, ino)
                if links > MAX_LINKS:
                    return Missing()
                if target.startswith(b"/"):
                    return Forbidden()
                parts += _parts(target)[::-1]
                continue
            way.append(ino)
            attr = found
        return tuple(way), attr

    def _attributes(self, ino: int, watch: _Watch) -> Attr:
        """An inode's attributes; they are read under the lock of its home."""
        watch.add(self._epoch(self._do(self._fs.node, ino).home >> 5))
        attr: Attr = self._do(self._fs.getattr, ino)
        return attr

    def _epoch(self, block: int) -> _Epoch:
        found = self._epochs.get(block)
        if found is None:
            found = self._epochs[block] = _Epoch()
        return found

    def _do(self, operation: Any, *operands: Any) -> Any:
        """An operation of the file system, fetching what it needs."""
        for _ in range(MAX_TRIES):
            try:
                return operation(*operands)
            except NotInCore as missing:
                try:
                    self._fs.fetch(missing.requests)
                except errors.Gone:
                    raise
                except errors.XokError as refused:
                    raise OSError(refused.errno, str(refused)) from refused
        raise OSError(errno.EIO, "what was fetched does not stay in core")

    def pin(self, ino: int, offset: int, length: int) -> tuple[list[int], list[Page]]:
        """Pin the blocks of a range: the pages to unpin later, and the pieces in memory."""
        for _ in range(MAX_TRIES):
            self._do(self._fs.read, ino, offset, length)
            blocks = self._do(self._blocks, ino, offset, length)
            pages = self._pin_blocks([block for block in blocks if block])
            if pages is not None:
                held = iter(pages)
                return pages, self._pieces([next(held) if block else -1 for block in blocks], offset, length)
        raise OSError(errno.EIO, "what was fetched does not stay in core")

    def _blocks(self, ino: int, offset: int, length: int) -> list[int]:
        """The disk block of each page of the range; 0 for a hole."""
        extents = self._fs.extents(self._fs.node(ino))
        blocks: list[int] = []
        logical, last = offset // BLOCK, (offset + length - 1) // BLOCK
        while logical <= last:
            db, run = extents.find(logical)
            run = min(run, last - logical + 1)
            blocks += range(db, db + run) if db else [0] * run
            logical += run
        return blocks

    def _pin_blocks(self, blocks: list[int]) -> list[int] | None:
        """Pin each block as it is now, all in one crossing; None if one left the registry meanwhile."""
        dev = self._fs.dev
        with self._env.batch() as batch:
            for db in blocks:
                entry = self._env.registry.lookup(dev << 44 | db)
                generation = entry.generation if entry is not None else 0
                batch.add("pin", dev << 56 | db << 12, generation, cap=self._fs.cap)
        pinned = [completion.r0 for completion in batch.results if not completion.code]
        if len(pinned) == len(blocks):
            return pinned
        self.unpin(pinned)
        for completion in batch.results:
            if completion.code not in (0, errors.NotInCore.code):
                refused = refusal(completion)
                raise OSError(refused.errno, str(refused))
        return None

    def unpin(self, pages: list[int]) -> None:
        """Release pins.  Nobody waits for it: the answers are taken as they come."""
        for page in pages:
            self._env.submit("unpin", page, then=lambda completion: None)
        if pages:
            self._env.ring_doorbell()

    def _pieces(self, pages: list[int], offset: int, length: int) -> list[Page]:
        """Where the bytes of the range lie; neighbours merged."""
        pieces: list[Page] = []
        at = offset % BLOCK
        for page in pages:
            size = min(BLOCK - at, length)
            start = (address_of(self._zeros if page < 0 else self._env.page(page))) + at
            if pieces and pieces[-1][0] + pieces[-1][1] == start and page >= 0:
                pieces[-1] = pieces[-1][0], pieces[-1][1] + size
            else:
                pieces.append((start, size))
            length -= size
            at = 0
        return pieces


def main(env: Environment, argv: list[str]) -> int:
    """The program's entry (see abi/client.py)."""
    options = argparse.ArgumentParser(prog="web", description="serve a C-FFS volume over HTTP")
    options.add_argument("volume", help="name in the root catalogue")
    options.add_argument("--dev", type=int, default=1)
    options.add_argument("--root", default="/", help="directory of the volume to serve")
    options.add_argument("--port", type=int, default=PORT)
    chosen = options.parse_args(argv)
    cap = next((cap for cap in env.caps if cap.kind == "tree"), None)
    if cap is None:
        raise errors.BadCapability(f"no capability for {chosen.volume}")
    fs = CFFS.mount(env, chosen.dev, chosen.volume, cap.index, writable=False)
    try:
        try:
            store = VolumeStore(env, fs, chosen.root.encode())
        except NotADirectoryError:
            raise SystemExit(f"{chosen.root} is no directory of {chosen.volume}") from None
        cheetah = serve(env, store, chosen.port)
        log.info("served %s", cheetah.statistics())
    finally:
        fs.close()
    return 0
