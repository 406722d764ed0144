"""In-core inodes: what an inode on disk says, and what has been changed since it last crossed.

INODE-1  `pages` holds contents that have not crossed; they come before the disk's for every reader.
INODE-2  `gained` and `lost` are disk blocks between which XN's view of the inode and ours differ.
INODE-3  A `Node` object lives as long as its number: whoever holds one sees every change.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from libfs.api import Attr
from libfs.cffs.extents import Extent, ExtentMap, Lost
from libfs.cffs.layout import (
    DEPTH_MASK,
    DIRECT,
    GROWING,
    INLINE,
    INLINE_BYTES,
    INODE_INLINE_STRUCT,
    INODE_STRUCT,
    LEVEL_MASK,
    LEVEL_SHIFT,
)

if TYPE_CHECKING:
    from libfs.cffs.directory import Directory

_NO_EXTENTS = (0,) * (3 * DIRECT)
_S_IFMT = 0o170000
_S_IFDIR = stat.S_IFDIR


class Node:
    """One inode in core."""

    __slots__ = (
        "atime",
        "crossed",
        "ctime",
        "depth",
        "directory",
        "error",
        "extents",
        "flags",
        "gained",
        "generation",
        "ghosts",
        "gid",
        "group",
        "home",
        "ino",
        "inline",
        "lost",
        "mode",
        "mtime",
        "nlink",
        "pages",
        "promised",
        "size",
        "tree",
        "uid",
    )

    def __init__(self, ino: int, home: int, mode: int, uid: int, gid: int, generation: int, now: int) -> None:
        self.ino = ino
        self.home = home
        """Inode number of the directory whose block the inode is in."""
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.generation = generation
        self.mtime = self.ctime = self.atime = now
        self.nlink = 1
        """Names on disk; `ghosts` of them are not visible any more."""
        self.ghosts = 0
        self.crossed = False
        """Whether XN knows the inode at all."""
        self.size = 0
        self.group = 0
        self.flags = 0
        self.depth = 0
        """Depth of the tree on disk."""
        self.tree = 0
        self.inline = b""
        self.extents: ExtentMap | None = _new_map()
        """None: the tree has not been loaded."""
        self.pages: dict[int, int] = {}
        """Logical block → page of the write arena."""
        self.promised = 0
        """How many of `pages` have no disk block yet."""
        self.gained: list[tuple[int, int]] = []
        """(block, logical block) of a directory's new blocks."""
        self.lost: list[Lost] = []
        self.error: OSError | None = None
        """A refusal that came after the answer: raised by the next fsync."""
        self.directory: Directory | None = None

    @property
    def is_directory(self) -> bool:
        return self.mode & _S_IFMT == _S_IFDIR

    # A directory's size is the number of its subdirectories; its table's level is in the flags.

    @property
    def level(self) -> int:
        return (self.flags & LEVEL_MASK) >> LEVEL_SHIFT

    @level.setter
    def level(self, level: int) -> None:
        self.flags = self.flags & ~LEVEL_MASK | level << LEVEL_SHIFT

    @property
    def growing(self) -> bool:
        return bool(self.flags & GROWING)

    @property
    def rdev(self) -> int:
        return int.from_bytes(self.inline[:8], "little") if self.mode & _S_IFMT in _DEVICES else 0

    def attributes(self) -> Attr:
        """What `stat` shows."""
        mode = self.mode
        blocks = self.extents.blocks if self.extents is not None else 0
        if mode & _S_IFMT == _S_IFDIR:
            nlink, size = 2 + self.size, blocks << 12
            if self.nlink <= self.ghosts:
                nlink = 0
        else:
            nlink, size = self.nlink - self.ghosts, self.size
        return Attr(
            self.ino,
            self.generation,
            mode,
            nlink,
            self.uid,
            self.gid,
            self.rdev if self.inline else 0,
            size,
            blocks + self.promised << 3,
            self.atime,
            self.mtime,
            self.ctime,
        )

    # ---- bytes

    def pack_into(self, buffer: bytearray, offset: int) -> None:
        """Write the 128 bytes.  The extent map must be one that fits: embedded, or with a root that has its block."""
        flags = self.flags & ~(DEPTH_MASK | INLINE)
        head = (
            self.nlink,
            self.uid,
            self.gid,
            self.size,
            self.mtime,
            self.ctime,
            self.atime,
            self.generation,
            self.group,
        )
        if self.inline:
            INODE_INLINE_STRUCT.pack_into(buffer, offset, self.mode, flags | INLINE, *head, self.inline)
            return
        extents = self.extents
        if extents is None:
            INODE_STRUCT.pack_into(buffer, offset, self.mode, flags | self.depth, *head, *_NO_EXTENTS, self.tree)
            return
        root = extents.root
        if root is not None:
            self.depth, self.tree = root.level + 1, root.block
            INODE_STRUCT.pack_into(buffer, offset, self.mode, flags | self.depth, *head, *_NO_EXTENTS, self.tree)
            return
        self.depth = self.tree = 0
        fields: list[int] = []
        for entry in extents.entries:
            fields += (entry.logical, entry.count, entry.start)
        fields += _NO_EXTENTS[len(fields) :]
        INODE_STRUCT.pack_into(buffer, offset, self.mode, flags, *head, *fields, 0)

    @classmethod
    def unpack(cls, ino: int, home: int, buffer: bytes, offset: int) -> Node:
        """The inode whose 128 bytes are at `offset`."""
        node = cls.__new__(cls)
        node.ino = ino
        node.home = home
        node.ghosts = node.promised = 0
        node.pages = {}
        node.gained = []
        node.lost = []
        node.error = None
        node.directory = None
        node.crossed = True
        node.load(buffer, offset)
        return node

    def load(self, buffer: bytes, offset: int) -> None:
        """Take over what the 128 bytes say; what has not crossed must be nothing."""
        fields = INODE_STRUCT.unpack_from(buffer, offset)
        (self.mode, self.flags, self.nlink, self.uid, self.gid, self.size) = fields[:6]
        (self.mtime, self.ctime, self.atime, self.generation, self.group) = fields[6:11]
        self.inline = b""
        self.depth = self.flags & DEPTH_MASK
        self.tree = fields[23]
        if self.flags & INLINE:
            at = offset + INODE_INLINE_STRUCT.size - INLINE_BYTES
            self.inline = bytes(buffer[at : at + INLINE_BYTES])
            self.depth = self.tree = 0
            self.extents = _new_map()
        elif self.depth:
            self.extents = None
        else:
            entries: list[Extent] = [fields[at : at + 3] for at in (11, 14, 17, 20) if fields[at + 1]]
            self.extents = ExtentMap(entries)


def _new_map() -> ExtentMap:
    return ExtentMap()


_DEVICES = frozenset((stat.S_IFCHR, stat.S_IFBLK))
