"""Reads a C-FFS from a raw image, without XN and without the library's own caches: what a mount would show.

Shares with the library what a sector and an inode look like (libfs.cffs.sector, Node.unpack), nothing else.  Names that
a crash may leave are seen through as docs/cffs.md section 4 says: hidden names do not show, and of two entries with
one name in a directory the newer counts.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from libfs.cffs import layout, sector
from libfs.cffs.extents import load_tree
from libfs.cffs.inode import Node
from xok_host.abi.types import BLOCK, SECTOR

Ident = tuple[int, int]
"""(inode number, generation): an inode, for ever."""
MAX_DEPTH = 32


@dataclass(slots=True, frozen=True)
class Found:
    """What is at a path."""

    ident: Ident
    mode: int
    owner: tuple[int, int]
    mtime: int
    nlink: int
    content: bytes
    """A file's bytes, a symbolic link's target."""
    blocks: tuple[int, ...] = ()
    """Where the content is; empty when a mount told."""


@lru_cache(1 << 12)
def _names(db: int, raw: bytes) -> list[tuple[bytes, int, int, int]]:
    """(name, inode number, kind with version, sector key) of a directory block."""
    found = []
    for number in range(8):
        part = raw[number * SECTOR : (number + 1) * SECTOR]
        for name, ino, _, kind in sector.scan(part, db << 3 | number):
            found.append((name, ino, kind, db << 3 | number))
    return found


@lru_cache(1 << 13)
def _node(ino: int, raw: bytes) -> Node:
    """The inode with these 128 bytes (its block's other bytes do not matter)."""
    return Node.unpack(ino, 0, raw, 0)


class Reader:
    """One volume on one image."""

    def __init__(self, read_block: Callable[[int], bytes], root_block: int) -> None:
        self._read = read_block
        self.root_ino = layout.ino_of(root_block, 0, layout.ROOT_SLOT)
        self.orphans_ino = layout.ino_of(root_block, 0, layout.ORPHANS_SLOT)

    def node(self, ino: int) -> Node:
        raw = self._read(ino >> 5)
        at = (ino >> 2 & 7) * SECTOR
        assert raw[at + 2] >> (ino & 3) & 1, f"inode {ino} has a name and is not in use"
        at += (ino & 3) * layout.INODE_BYTES
        return _node(ino, raw[at : at + layout.INODE_BYTES])

    def extents(self, node: Node) -> list[tuple[int, int, int]]:
        if not node.depth:
            assert node.extents is not None
            return list(node.extents.items())
        return list(load_tree(node.depth, node.tree, lambda db, parent, part: self._read(db)).items())

    def all_names(self, ino: int) -> list[tuple[bytes, int, int, int]]:
        """Every entry of a directory, hidden and superseded ones too."""
        found = []
        for _, count, start in self.extents(self.node(ino)):
            for db in range(start, start + count):
                found += _names(db, self._read(db))
        return found

    def listing(self, directory: int) -> dict[bytes, int]:
        """The visible names."""
        entries: dict[bytes, tuple[int, int]] = {}
        for name, ino, kind, _ in self.all_names(directory):
            if name[0] == 0:
                continue
            other = entries.get(name)
            if other is not None:
                assert layout.newer(kind, other[0]) or layout.newer(other[0], kind), f"{name!r} is there twice"
                if layout.newer(other[0], kind):
                    continue
            entries[name] = (kind, ino)
        return {name: ino for name, (_, ino) in entries.items()}

    def view(self) -> dict[bytes, Found]:
        """Everything that a user sees, by path."""
        seen: dict[bytes, Found] = {}
        todo = [(b"", self.root_ino, 0)]
        while todo:
            path, directory, depth = todo.pop()
            assert depth < MAX_DEPTH, f"{path!r} is too deep: a loop"
            for name, ino in self.listing(directory).items():
                node = self.node(ino)
                at = path + b"/" + name
                seen[at] = self._found(ino, node)
                if stat.S_ISDIR(node.mode):
                    todo.append((at, ino, depth + 1))
        return seen

    def _found(self, ino: int, node: Node) -> Found:
        content, blocks = b"", ()
        if stat.S_ISREG(node.mode):
            content, blocks = self._content(node)
        elif stat.S_ISLNK(node.mode):
            content = node.inline[: node.size]
        return Found(
            (ino, node.generation), node.mode, (node.uid, node.gid), node.mtime, node.nlink, content, tuple(blocks)
        )

    def _content(self, node: Node) -> tuple[bytes, list[int]]:
        extents = self.extents(node)
        blocks = [db for _, count, start in extents for db in range(start, start + count)]
        if len(extents) == 1 and extents[0][0] == 0 and node.size <= len(blocks) * BLOCK:
            return b"".join(map(self._read, blocks))[: node.size], blocks
        content = bytearray(node.size)
        for logical, count, start in extents:
            for i in range(count):
                at = (logical + i) * BLOCK
                if at < node.size:
                    content[at : at + BLOCK] = self._read(start + i)[: node.size - at]
        return bytes(content), blocks
