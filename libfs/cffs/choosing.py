"""What an inode's crossing consists of, and where its new contents and extent nodes go (docs/cffs.md section 4).

Nobody has been told the numbers of blocks that are chosen here, and other libFSes choose from the same free map:

CHOOSE-1  What was chosen can be taken back (`take_back`): the blocks are free again, and the inode is as it was before,
          so that it can cross with others.
CHOOSE-2  What the disk has no place for is done without: a hole is left where the contents were to be, and the next
          fsync tells.  Everything else of the inode crosses.
"""

from __future__ import annotations

import errno
from typing import Any

from libfs.api import NotInCore
from libfs.cffs.extents import EMPTY_SECTOR, Cell, Lost, TreeNode, pack_cell
from libfs.cffs.files import Files
from libfs.cffs.grouping import LARGE
from libfs.cffs.inode import Node
from libfs.cffs.overlay import Sector
from xok_host.abi.calls import OP_HEADER, VECTOR_HEADER, OpFlag, OpKind
from xok_host.abi.types import SECTOR, SECTORS, TYPE_XN_DB

MAX_GAIN = 2048
"""Blocks that one inode gains in one transaction."""
MAX_TRIES = 8
MAX_CHOICES = 8
"""How often other blocks are chosen for a transaction whose blocks somebody else has taken."""
_MODIFY, _ALLOC, _FREE, _PUBLISH = (int(OpKind[name]) for name in ("MODIFY", "ALLOC", "FREE", "PUBLISH"))
_PAGES = int(OpFlag.PAGES)
_DATA = int(TYPE_XN_DB)
_pack_op = OP_HEADER.pack
_SECTOR_VECTOR = {part: VECTOR_HEADER.pack(part * SECTOR, SECTOR) for part in range(SECTORS)}
Gain = tuple[int, int, int, int]
"""(logical, block, count, page)"""
Taken = tuple[Node, list[Gain], list[Lost], list[Lost], list[tuple[int, int]], list[TreeNode], list[Cell]]
"""What an inode's crossing has taken: (node, blocks chosen for contents, `lost`, the extents' `removed`, `gained`,
extent nodes that got blocks, cells that were dirty)."""


def rewrite(da: int, sector: int, data: bytes | bytearray) -> bytes:
    """The operation that gives one sector of the metadata block at `da` new contents."""
    return _pack_op(_MODIFY, 0, 1, sector, da, 0, 0, 0, 0) + _SECTOR_VECTOR[sector] + data


class Part:
    """What one sector's crossing consists of."""

    __slots__ = ("blocks", "changed", "key", "nodes", "ops", "sent", "shown", "taken")

    def __init__(self, key: int, changed: Sector) -> None:
        self.key = key
        self.changed = changed
        self.ops: list[bytes] = []
        self.nodes: list[Node] = []
        self.sent: list[tuple[Node, list[int], int]] = []
        """(node, logical blocks whose pages cross, how many of them were promised)"""
        self.taken: list[Taken] = []
        self.blocks: list[int] = [key >> 3]
        """Blocks that are dirty in XN afterwards."""
        self.shown: set[int] = set()
        """Blocks that the types' methods want to see."""


class Choosing(Files):
    """Turning one inode into operations."""

    def now(self, operation: Any, *args: Any) -> Any:
        """Run an operation, fetching what it asks for."""
        for _ in range(MAX_TRIES):
            try:
                return operation(*args)
            except NotInCore as missing:
                self.fetch(missing.requests)
        raise OSError(errno.EIO, "blocks do not stay in core")

    def fetch(self, requests: Any) -> None:
        raise NotImplementedError

    # ---- one inode

    def _node_ops(self, node: Node, part: Part, changed: Sector) -> bool:
        """Append the operations that the inode's new state needs; True if some of it has to wait for the next round.

        Raises OSError, when some of it may have been appended and taken."""
        left = False
        gains: list[Gain] = []
        publishes: list[Gain] = []
        if node.pages:
            extents = node.extents if node.extents is not None else self.now(self.extents, node)
        else:
            extents = node.extents
        trees: list[TreeNode] = []
        cells: list[Cell] = []
        removed = extents.removed if extents is not None else []
        part.taken.append((node, gains, node.lost, removed, node.gained, trees, cells))
        if node.pages:
            left = self._assign(node, part, changed, gains, publishes)
        if extents is not None:
            for lost in removed:
                self._free_node(part, lost, self.rules.node_type(node))
            if removed:
                extents.removed = []
            if not extents.embedded:
                self._tree_ops(node, part, trees, cells)
        if gains:
            for logical, db, count, page in gains:
                holder, own = self._holder_of(node, logical)
                part.ops.append(_pack_op(_ALLOC, _PAGES, 0, own, holder, db, count, _DATA, page))
        if publishes:
            for logical, db, count, page in publishes:
                holder, own = self._holder_of(node, logical)
                part.ops.append(_pack_op(_PUBLISH, 0, 0, own, holder, db, count, _DATA, page))
        if node.gained:
            kind = self.directory_type
            for db, logical in node.gained:
                holder, own = self._holder_of(node, logical)
                part.ops.append(_pack_op(_ALLOC, 0, 0, own, holder, db, 1, kind, 0))
                part.blocks.append(db)
            node.gained = []
        if node.lost:
            kind = self.directory_type if node.is_directory else _DATA
            for start, count, block, own in node.lost:
                self._free(part, block, own, start, count, kind)
            node.lost = []
        return left

    def _holder_of(self, node: Node, logical: int) -> tuple[int, int]:
        """(da of the metadata block, partition) that owns the block at `logical`."""
        extents = node.extents
        assert extents is not None
        block, part = self.holder(node, extents.entry_at(logical))
        return self.dev << 56 | block << 12, part

    def _assign(self, node: Node, part: Part, changed: Sector, gains: list[Gain], publishes: list[Gain]) -> bool:
        """Choose blocks for new contents, and say which overwrite old ones; True if something is left."""
        pages = node.pages
        extents = node.extents
        assert extents is not None
        home = self.nodes.get(node.home)
        if len(pages) == 1 and not extents.blocks:
            # The common case: a new small file.
            ((logical, page),) = pages.items()
            group, near = (home.group, home.ino >> 5) if home is not None else (0, node.ino >> 5)
            db, group = self.grouping.small(group, near)
            if home is not None:
                home.group = group
            node.group = group
            extents.insert(logical, 1, db)
            part.sent.append((node, [logical], 1))
            part.blocks.append(db)
            gains.append((logical, db, 1, page))
            return False
        sent: list[int] = []
        promised = 0
        runs = self._runs(node, sorted(pages))
        limit = self.rules.max_pieces - len(part.ops)
        if changed.links is not None:
            limit = limit * 2 // len(changed.links)
        if not part.ops:
            limit = max(limit, 1)
        small = extents.blocks + node.promised <= LARGE
        left = False
        total = 0
        for logical, db, count, page in runs:
            if len(gains) + len(publishes) >= limit or total >= MAX_GAIN:
                left = True
                break
            count = min(count, MAX_GAIN)
            if db:
                publishes.append((logical, db, count, page))
            else:
                for start, length in self._choose(node, home, logical, count, small):
                    if len(gains) >= limit and gains:
                        self.grouping.taken.difference_update(range(start, start + length))
                        left = True
                        continue
                    extents.insert(logical, length, start)
                    gains.append((logical, start, length, page))
                    sent.extend(range(logical, logical + length))
                    part.blocks.extend(range(start, start + length))
                    logical += length
                    page += length
                    promised += length
                    total += length
                continue
            sent.extend(range(logical, logical + count))
            part.blocks.extend(range(db, db + count))
            total += count
        if len(sent) < len(pages):
            left = True
        part.sent.append((node, sent, promised))
        return left

    def _runs(self, node: Node, logicals: list[int]) -> list[Gain]:
        """Runs (logical, block or 0, count, page) in which file, disk and pages are all adjacent."""
        runs: list[Gain] = []
        extents = node.extents
        assert extents is not None
        pages = node.pages
        first = previous = -2
        db = count = page = 0
        mapped = 0
        for logical in logicals:
            here = pages[logical]
            if mapped > 0 and logical == previous + 1:
                mapped -= 1
                place = db + count if db else 0
            else:
                place, mapped = extents.find(logical)
                mapped -= 1
            if (
                count
                and logical == previous + 1
                and here == page + count
                and (place == db + count if db else not place)
            ):
                count += 1
            else:
                if count:
                    runs.append((first, db, count, page))
                first, db, count, page = logical, place, 1, here
            previous = logical
        if count:
            runs.append((first, db, count, page))
        return runs

    def _choose(self, node: Node, home: Node | None, logical: int, count: int, small: bool) -> list[tuple[int, int]]:
        extents = node.extents
        assert extents is not None
        before = extents.find(logical - 1)[0] if logical else 0
        if small:
            group, near = (home.group, home.ino >> 5) if home is not None else (0, node.ino >> 5)
            found: list[tuple[int, int]] = []
            for _ in range(count):
                db, group = self.grouping.small(group, near)
                if found and found[-1][0] + found[-1][1] == db:
                    found[-1] = (found[-1][0], found[-1][1] + 1)
                else:
                    found.append((db, 1))
            if home is not None:
                home.group = group
            node.group = group
            return found
        return list(self.grouping.large(before + 1 if before else 0, count))

    # ---- extent trees

    def _tree_ops(self, node: Node, part: Part, fresh: list[TreeNode], changed: list[Cell]) -> None:
        """Allocate nodes that have no block, and change the sectors that differ from what XN has."""
        extents = node.extents
        assert extents is not None
        extents.settle()
        base = self.dev << 56
        content, kind, tag = int(node.is_directory), self.rules.node_type(node), self.rules.tag(node)
        home = self.nodes.get(node.home)
        trees = extents.nodes()
        for tree in trees:
            if not tree.block:
                tree.block, group = self.grouping.small(home.group if home is not None else 0, node.ino >> 5)
                fresh.append(tree)
                if home is not None:
                    home.group = group
                self.free -= 1
                block, own = tree.holder()
                if not block:
                    block, own = part.key >> 3, part.key & 7
                part.ops.append(_pack_op(_ALLOC, 0, 0, own, base | block << 12, tree.block, 1, kind, 0))
        for tree in trees:
            address = base | tree.block << 12
            for cell in tree.cells:
                if cell.dirty:
                    cell.dirty = False
                    changed.append(cell)
                    part.ops.append(rewrite(address, cell.number, pack_cell(cell, content, tag)))
                    part.blocks.append(tree.block)

    def _free(self, part: Part, holder: int, own: int, start: int, count: int, kind: int) -> None:
        """Free an extent that partition `own` of extent node `holder` (0: the part's own sector) has lost."""
        if not holder:
            holder, own = part.key >> 3, part.key & 7
        part.ops.append(_pack_op(_FREE, 0, 0, own, self.dev << 56 | holder << 12, start, count, kind, 0))

    def _free_node(self, part: Part, lost: Lost, kind: int) -> None:
        """Empty an extent node and free it."""
        block, _, holder, own = lost
        address = self.dev << 56 | block << 12
        for sector in range(SECTORS):
            part.ops.append(rewrite(address, sector, EMPTY_SECTOR))
        self._free(part, holder, own, block, 1, kind)

    # ---- other blocks, or none

    def take_back(self, part: Part, first: int = 0) -> None:
        """CHOOSE-1, for the inodes of a part from the `first` on: nothing of them has crossed."""
        chosen = self.grouping.taken
        for node, gains, lost, removed, gained, trees, cells in reversed(part.taken[first:]):
            for _, db, count, _ in gains:
                chosen.difference_update(range(db, db + count))
            chosen.difference_update(tree.block for tree in trees)
            self.free += len(trees)
            node.lost, node.gained = lost, gained
            extents = node.extents
            if extents is not None:
                extents.take_back([(logical, count) for logical, _, count, _ in gains], trees)
                extents.removed = removed
            for cell in cells:
                cell.dirty = True
        del part.taken[first:]

    def do_without(self, node: Node) -> None:
        """CHOOSE-2, for an inode that was taken back."""
        extents = self.now(self.extents, node)
        for logical in [logical for logical in node.pages if not extents.find(logical)[0]]:
            self.drop_page(node, logical)
        self.drop_gained(node)
        self.on_invalidate(node.ino)

    def drop_gained(self, node: Node) -> None:
        """The blocks that a directory was to get now are not its."""
        if node.gained:
            assert node.extents is not None
            node.extents.take_back([(logical, 1) for _, logical in node.gained], [])
            for db, _ in node.gained:
                self.grouping.taken.discard(db)
                del self.new_blocks[db], self.homes[db]
            node.gained = []


__all__ = ["MAX_CHOICES", "MAX_TRIES", "Choosing", "Part", "rewrite"]
