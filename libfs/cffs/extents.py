"""Where a file's blocks are: extents in the inode, or in a tree of extent nodes (docs/cffs.md section 1).

In core the extents are one sorted list.  On disk, beyond DIRECT of them, they are in a tree of nodes which is a
mere *container*: an entry stays in the sector (`Cell`) of the leaf it was first put in, a node in its parent's cell.
Order exists in core only.  So nothing ever moves between sectors that are written one after the other, and no crash
between two writes can lose anything; a tree is loaded whole.

EXT-1  Entries are sorted by logical block, do not overlap, and adjacent ones are merged where one cell has both.
EXT-2  No node of the tree is empty once it has crossed.
EXT-3  An entry or node keeps its cell for life.  (From the inode into the first leaf, and when the tree gets a new
       root, things move down: below the sector that had them, which is the move that cannot be torn.)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator

from libfs.cffs.layout import (
    DIRECT,
    EXTENT_STRUCT,
    HEADER_BYTES,
    NODE_MAGIC,
    SECTOR_ENTRIES,
)
from xok_host.abi.types import BLOCK, SECTOR, SECTORS

Extent = tuple[int, int, int]
"""(logical, count, start) in blocks."""
Lost = tuple[int, int, int, int]
"""(start, count, block of the node that had it or 0 for the inode, sector there)."""

EMPTY_SECTOR = bytes(SECTOR)
_LAST = 1 << 62


class Entry:
    """One extent, and the cell that has it on disk; None: the inode, or it has not crossed."""

    __slots__ = ("cell", "count", "logical", "start")

    def __init__(self, logical: int, count: int, start: int, cell: Cell | None = None) -> None:
        self.logical = logical
        self.count = count
        self.start = start
        self.cell = cell


class Cell:
    """One sector of a node: up to SECTOR_ENTRIES extents (of a leaf) or child nodes."""

    __slots__ = ("dirty", "items", "node", "number")

    def __init__(self, node: TreeNode, number: int) -> None:
        self.node = node
        self.number = number
        self.items: list = []
        self.dirty = False


class TreeNode:
    """One node.  `block` is 0 until it crosses for the first time."""

    __slots__ = ("block", "cell", "cells", "level")

    def __init__(self, level: int, block: int = 0) -> None:
        self.level = level
        """0: a leaf."""
        self.block = block
        self.cell: Cell | None = None
        """Where its parent has it; None: the root."""
        self.cells = [Cell(self, number) for number in range(SECTORS)]

    def holder(self) -> tuple[int, int]:
        """(block, sector) of the node that has this one; (0, -1): the inode."""
        return (self.cell.node.block, self.cell.number) if self.cell is not None else (0, -1)


class ExtentMap:
    """The extents of one file or directory."""

    __slots__ = ("_loose", "_room", "blocks", "entries", "keys", "removed", "root")

    def __init__(self, extents: Iterable[Extent] = ()) -> None:
        self.entries = [Entry(*extent) for extent in sorted(extents)]
        self.keys = [entry.logical for entry in self.entries]
        self.root: TreeNode | None = None
        self._loose = list(self.entries)
        """Entries without a cell."""
        self._room: list[Cell] = []
        """Cells of leaves that may have room."""
        self.blocks = sum(entry.count for entry in self.entries)
        """Blocks of the file on disk, extent nodes not counted."""
        self.removed: list[Lost] = []
        """Nodes that left the tree."""

    @property
    def embedded(self) -> bool:
        """Whether all of it fits into the inode."""
        return self.root is None and len(self.entries) <= DIRECT

    def find(self, logical: int) -> tuple[int, int]:
        """(block, how many adjacent blocks from it on), or (0, blocks of hole from here on)."""
        index = bisect_right(self.keys, logical)
        if index:
            entry = self.entries[index - 1]
            inside = logical - entry.logical
            if inside < entry.count:
                return entry.start + inside, entry.count - inside
        return 0, (self.keys[index] if index < len(self.keys) else _LAST) - logical

    def items(self) -> Iterator[Extent]:
        """All extents in order."""
        for entry in self.entries:
            yield entry.logical, entry.count, entry.start

    def entry_at(self, logical: int) -> Entry | None:
        """The entry that covers `logical`; None: a hole."""
        index = bisect_right(self.keys, logical)
        if index:
            entry = self.entries[index - 1]
            if logical < entry.logical + entry.count:
                return entry
        return None

    def owners_of(self, blocks: Iterable[int]) -> dict[int, Entry]:
        """Disk block → the entry that owns it, for those that one does; one walk for all."""
        wanted = sorted(blocks)
        found = {}
        for entry in self.entries:
            index = bisect_left(wanted, entry.start)
            while index < len(wanted) and wanted[index] < entry.start + entry.count:
                found[wanted[index]] = entry
                index += 1
        return found

    def nodes(self) -> list[TreeNode]:
        """Every node, parents first."""
        found = [self.root] if self.root is not None else []
        for node in found:
            if node.level:
                for cell in node.cells:
                    found += cell.items
        return found

    # ---- changes

    def insert(self, logical: int, count: int, start: int) -> None:
        """Map a hole.  Merges with neighbours that are adjacent both in the file and on the disk."""
        self.blocks += count
        entries, keys = self.entries, self.keys
        index = bisect_right(keys, logical)
        following = entries[index] if index < len(entries) else None
        if index:
            before = entries[index - 1]
            if before.logical + before.count == logical and before.start + before.count == start:
                before.count += count
                if before.cell is not None:
                    before.cell.dirty = True
                if (
                    following is not None
                    and following.cell is before.cell
                    and before.logical + before.count == following.logical
                    and before.start + before.count == following.start
                ):
                    before.count += following.count
                    self._unplace(following)
                    del entries[index], keys[index]
                return
        if following is not None and logical + count == following.logical and start + count == following.start:
            following.logical, following.start, following.count = logical, start, following.count + count
            keys[index] = logical
            if following.cell is not None:
                following.cell.dirty = True
            return
        entry = Entry(logical, count, start)
        entries.insert(index, entry)
        keys.insert(index, logical)
        self._loose.append(entry)

    def _unplace(self, entry: Entry) -> None:
        """The entry leaves its cell, which may leave nodes empty."""
        cell = entry.cell
        if cell is None:
            self._loose.remove(entry)
            return
        cell.items.remove(entry)
        cell.dirty = True
        self._room.append(cell)
        self._prune(cell.node)

    def _prune(self, node: TreeNode | None) -> None:
        while node is not None and not any(cell.items for cell in node.cells):
            if node.block:
                self.removed.append((node.block, 1, *node.holder()))
            parent = node.cell
            self._room = [cell for cell in self._room if cell.node is not node]
            if parent is None:
                self.root = None
                return
            parent.items.remove(node)
            parent.dirty = True
            node = parent.node

    def cut(self, logical: int) -> list[Lost]:
        """Unmap everything from `logical` on; the extents freed."""
        freed: list[Lost] = []
        index = bisect_right(self.keys, logical)
        if index:
            entry = self.entries[index - 1]
            left = logical - entry.logical
            if not left:
                index -= 1
            elif left < entry.count:
                freed.append((entry.start + left, entry.count - left, *_place(entry)))
                entry.count = left
                if entry.cell is not None:
                    entry.cell.dirty = True
        gone = self.entries[index:]
        del self.entries[index:], self.keys[index:]
        for entry in gone:
            freed.append((entry.start, entry.count, *_place(entry)))
            self._unplace(entry)
        self.blocks -= sum(lost[1] for lost in freed)
        return freed

    def take_back(self, gains: Iterable[tuple[int, int]], fresh: Iterable[TreeNode]) -> None:
        """Undo what was inserted, as (logical, count), and has not crossed; `fresh`: nodes that got blocks for it.

        Every entry that was there before is where it was."""
        for node in fresh:
            node.block = 0
        for logical, count in gains:
            self._withdraw(logical, count)
        while self.root is not None and not self.root.block:
            children = [child for cell in self.root.cells for child in cell.items]
            if not self.root.level:
                for entry in children:
                    entry.cell = None
                self._loose += children
                self.root = None
            elif len(children) == 1:
                self.root = children[0]
                self.root.cell = None
            else:
                break
        leaves = [node for node in self.nodes() if not node.level]
        self._room = [cell for node in leaves for cell in node.cells if len(cell.items) < SECTOR_ENTRIES]

    def _withdraw(self, logical: int, count: int) -> None:
        """Unmap blocks of one entry; what it was merged from comes apart."""
        index = bisect_right(self.keys, logical) - 1
        entry = self.entries[index]
        before = logical - entry.logical
        after = entry.count - before - count
        self.blocks -= count
        if not before and not after:
            del self.entries[index], self.keys[index]
            self._unplace(entry)
            return
        if entry.cell is not None:
            entry.cell.dirty = True
        if not before:
            entry.logical, entry.start, entry.count = logical + count, entry.start + count, after
            self.keys[index] = entry.logical
            return
        entry.count = before
        if after:
            rest = Entry(logical + count, after, entry.start + before + count, entry.cell)
            self.entries.insert(index + 1, rest)
            self.keys.insert(index + 1, rest.logical)
            (entry.cell.items if entry.cell is not None else self._loose).append(rest)

    def settle(self) -> None:
        """Give every entry a cell, with as many new nodes as that takes; nothing to do while it is embedded."""
        if self.embedded:
            return
        for entry in self._loose:
            cell = self._cell_with_room()
            cell.items.append(entry)
            cell.dirty = True
            entry.cell = cell
        self._loose = []

    def _cell_with_room(self) -> Cell:
        room = self._room
        while room:
            if len(room[-1].items) < SECTOR_ENTRIES:
                return room[-1]
            room.pop()
        leaf = TreeNode(0)
        if self.root is None:
            self.root = leaf
        else:
            self._attach(leaf)
        room.extend(reversed(leaf.cells))
        return room[-1]

    def _attach(self, child: TreeNode) -> None:
        """Put a node into one of the next higher level that has room; above the root that is a new root."""
        assert self.root is not None
        level = child.level + 1
        if level > self.root.level:
            old, self.root = self.root, TreeNode(level)
            _put(self.root.cells[0], old)
        for node in self.nodes():
            if node.level == level:
                for cell in node.cells:
                    if len(cell.items) < SECTOR_ENTRIES:
                        _put(cell, child)
                        return
        parent = TreeNode(level)
        _put(parent.cells[0], child)
        self._attach(parent)


class SingleBlocks(ExtentMap):
    """A map whose entries are single blocks: each has a place of its own, as a shared volume's methods ask for."""

    __slots__ = ()

    def insert(self, logical: int, count: int, start: int) -> None:
        self.blocks += count
        for number in range(count):
            entry = Entry(logical + number, 1, start + number)
            index = bisect_right(self.keys, entry.logical)
            self.entries.insert(index, entry)
            self.keys.insert(index, entry.logical)
            self._loose.append(entry)


def _put(cell: Cell, node: TreeNode) -> None:
    cell.items.append(node)
    cell.dirty = True
    node.cell = cell


def _place(entry: Entry) -> tuple[int, int]:
    cell = entry.cell
    return (cell.node.block, cell.number) if cell is not None else (0, -1)


def pack_cell(cell: Cell, content: int, owner: int = 0) -> bytes:
    """The sector's bytes: entries from the front, `content` 0 for data and 1 for directory blocks.

    `owner`: the directory whose map it is, on a shared volume."""
    items = cell.items
    if not items:
        return EMPTY_SECTOR
    data = bytearray(SECTOR)
    level = cell.node.level
    data[:4] = bytes((NODE_MAGIC, level, content, len(items)))  # NODE_HEADER
    data[8:16] = owner.to_bytes(8, "little")  # MAP_HEADER
    at = HEADER_BYTES
    for item in items:
        if level:
            EXTENT_STRUCT.pack_into(data, at, 0, 1, item.block)
        else:
            EXTENT_STRUCT.pack_into(data, at, item.logical, item.count, item.start)
        at += EXTENT_STRUCT.size
    return bytes(data)


def unpack_sector(data: bytes, level: int) -> list[Extent]:
    """The entries of one sector of a node.  Raises ValueError when it is malformed."""
    magic, here, _, used = data[:4]
    if not magic:
        return []
    if magic != NODE_MAGIC or used > SECTOR_ENTRIES or here != level:
        raise ValueError("malformed extent node")
    end = HEADER_BYTES + used * EXTENT_STRUCT.size
    found: list[Extent] = list(EXTENT_STRUCT.iter_unpack(data[HEADER_BYTES:end]))
    return found


def load_tree(
    depth: int, block: int, read: Callable[[int, int, int], bytes], kind: type[ExtentMap] = ExtentMap
) -> ExtentMap:
    """The map whose root node is `block`.  `read(db, parent's block or 0, sector)` gives a block (or NotInCore)."""
    extents = kind()
    extents.root = TreeNode(depth - 1, block)
    entries: list[Entry] = []
    for node in (nodes := [extents.root]):
        raw = read(node.block, *node.holder())
        if len(raw) != BLOCK:
            raise ValueError("an extent node is one block")
        for cell in node.cells:
            for extent in unpack_sector(raw[cell.number * SECTOR : (cell.number + 1) * SECTOR], node.level):
                if node.level:
                    child = TreeNode(node.level - 1, extent[2])
                    _put(cell, child)
                    nodes.append(child)
                else:
                    entry = Entry(*extent, cell)
                    cell.items.append(entry)
                    entries.append(entry)
            cell.dirty = False
            if not node.level and len(cell.items) < SECTOR_ENTRIES:
                extents._room.append(cell)
    entries.sort(key=lambda entry: entry.logical)
    if any(a.logical + a.count > b.logical for a, b in zip(entries, entries[1:], strict=False)):
        raise ValueError("extents overlap")
    extents.entries = entries
    extents.keys = [entry.logical for entry in entries]
    extents.blocks = sum(entry.count for entry in entries)
    return extents
