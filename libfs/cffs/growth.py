"""Changes of size that take several transactions: large files are cut in steps, directories grow by a level.

GROW-1  While a directory grows nobody else uses it, and on disk GROWING says that both levels' tables count.
GROW-2  A name is in the new table, durable, before it leaves the old one; in between its inode counts both.
GROW-3  What is in the old table when its names are counted is visible: a ghost would come back in the new one, or be
        gone when its turn comes.
"""

from __future__ import annotations

import errno

from libfs.api import NotInCore
from libfs.cffs import layout, sector
from libfs.cffs.inode import Node
from libfs.cffs.removing import MAX_DYING_EXTENTS
from libfs.cffs.settle import Settling, Steps
from libfs.cffs.volume import EXCLUSIVE

NAMES_END = 256
"""Growth fills sectors up to here with names, so that slots 2 and 3 stay usable for new inodes."""


class Growing(Settling):
    """Growing and shrinking."""

    # ---- large files

    def _shrink_steps(self, ino: int, size: int) -> Steps:
        node = yield from self.until_in_core(self.node, ino)
        yield from self._shrink_node(node, size)

    def _shrink_node(self, node: Node, size: int) -> Steps:
        """Cut from the end, as many extents at a time as a transaction can free."""
        extents = yield from self.until_in_core(self.extents, node)
        keep = (size + layout.BLOCK_BYTES - 1) // layout.BLOCK_BYTES
        for logical in [logical for logical in node.pages if logical >= keep]:
            self.drop_page(node, logical)
        if not node.is_directory:
            # Not below a block's end: the truncation that follows has its tail to clear.
            node.size = min(node.size, keep * layout.BLOCK_BYTES)
        while True:
            self.cross()
            tail = [first for first, count, _ in extents.items() if first + count > keep]
            if len(tail) <= MAX_DYING_EXTENTS and (keep or not self.is_heavy(extents)):
                return
            # The last entries may each be the last of a node, and a node takes many operations to free.
            step = MAX_DYING_EXTENTS if len(tail) > 4 * MAX_DYING_EXTENTS else 4
            first = max(keep, tail[-step:][0])
            node.lost += extents.cut(first)
            self.frees_pending = True
            self.touch(node)
            yield []

    # ---- growth

    def _grow_steps(self, ino: int, level: int) -> Steps:
        """The next level of a directory's table: names move, inodes stay (docs/cffs.md section 3).

        Nothing if it has that level by now: several may have found it full."""
        if ino in self.growing:
            return
        yield from self.synchronise_steps()
        node = yield from self.until_in_core(self._node_to_grow, ino)
        if ino in self.growing or (node.level >= level and not node.growing):
            return
        self.growing.add(ino)
        node.directory = None  # whoever wants it from here on has to wait
        try:
            if any(ghost.parent == ino for ghost in self.ghosts):
                yield from self.synchronise_steps()  # GROW-3: names that moved while the last one was flushing
            yield from self._grow(node)
        finally:
            self.growing.discard(ino)
            node.directory = None

    def _node_to_grow(self, ino: int) -> Node:
        """A directory's inode with both locks held: what it was before they were is not to be relied on."""
        self.lock(ino >> 5, EXCLUSIVE)
        node = self.node(ino)
        self.lock(node.home >> 5, EXCLUSIVE)
        return node

    def _grow(self, node: Node) -> Steps:
        ino = node.ino
        yield from self.until_in_core(self.extents, node)
        level = node.level if node.growing else node.level + 1
        old = yield from self.until_in_core(self._names_of_level, node, level - 1)
        present: dict[bytes, tuple[int, int, bytes | None]] = {}
        if node.growing:
            present = yield from self.until_in_core(self._names_of_level, node, level)
        by_bucket: dict[int, list[tuple[bytes, int]]] = {}
        chains: dict[bytes, bytes] = {}
        for name, (target, _, chain) in old.items():
            if name not in present:
                by_bucket.setdefault(layout.bucket_base(level, name), []).append((name, target))
                chains[name] = chain or b""
        # Blocks first: a sector that comes to own one must not wait for a name that waits for it.
        packed = {base: self._pack_names(names, chains) for base, names in by_bucket.items()}
        node.level = level
        node.flags |= layout.GROWING
        self.touch(node)
        places: dict[int, list[int]] = {}
        for base, sectors in packed.items():
            places[base] = yield from self.until_in_core(self._blocks_for, ino, level, base, len(sectors))
        node = yield from self.until_in_core(self.node, ino)
        yield from self.synchronise_steps()
        for base, sectors in packed.items():
            for number, names in enumerate(sectors):
                key = (places[base][number // 8] << 3) | number % 8
                yield from self.until_in_core(self._copy_names, node, key, names, chains)
                self.cross()
        yield from self.synchronise_steps()
        present = yield from self.until_in_core(self._names_of_level, node, level)
        for name, (target, key, _) in old.items():
            if name not in present or present[name][0] != target:
                raise OSError(errno.EIO, "a name has not reached the directory's next level")
            yield from self.until_in_core(self._remove_copy, name, target, key)
            if len(self.overlay) > 8:
                self.cross()
        self.cross()  # the old table is seen to be empty before it stops counting
        node.flags &= ~layout.GROWING
        self.touch(node)
        self.cross()

    def _names_of_level(self, node: Node, level: int) -> dict[bytes, tuple[int, int, bytes | None]]:
        """All names of one level's table: name → (inode, sector, chain)."""
        extents = self.extents(node)
        first, end = layout.table_base(level), layout.table_base(level + 1)
        blocks = [
            start + i for logical, count, start in extents.items() for i in range(count) if first <= logical + i < end
        ]
        missing = [db for db in blocks if db not in self.new_blocks and self.page_of(db) < 0]
        if missing:
            raise NotInCore(self.fetches(node, missing))
        found: dict[bytes, tuple[int, int, bytes | None]] = {}
        for db in blocks:
            self.homes[db] = node.ino
            for key in range(db << 3, (db << 3) + 8):
                for name, target, chain, _ in sector.scan(self.sector_bytes(key), key):
                    if chain is not None:
                        self.learn_chain(node.ino, target, chain)
                    found[name] = (target, key, chain)
        return found

    @staticmethod
    def _pack_names(names: list[tuple[bytes, int]], chains: dict[bytes, bytes]) -> list[list[tuple[bytes, int]]]:
        """Names for each sector of a bucket."""
        sectors: list[list[tuple[bytes, int]]] = [[]]
        used = layout.HEADER_BYTES
        for name, ino in names:
            need = sector.entry_bytes(name, True, chains[name])
            if used + need > NAMES_END and sectors[-1]:
                sectors.append([])
                used = layout.HEADER_BYTES
            sectors[-1].append((name, ino))
            used += need
        return sectors

    def _blocks_for(self, ino: int, level: int, base: int, sectors: int) -> list[int]:
        """Blocks of a bucket of the new level for that many sectors, allocated if they are not there."""
        count = (sectors + 7) // 8
        if count > layout.BUCKET:
            raise OSError(errno.ENOSPC, "too many names of one hash")
        node = self.node(ino)
        extents = self.extents(node)
        if not node.growing:
            node.level = level
            node.flags |= layout.GROWING
            self.touch(node)
        blocks = []
        for logical in range(base, base + count):
            db, _ = extents.find(logical)
            if not db:
                (db,) = self.gain_blocks(node, logical)
            blocks.append(db)
        return blocks

    def _copy_names(self, node: Node, key: int, names: list[tuple[bytes, int]], chains: dict[bytes, bytes]) -> None:
        """Second names in the new table, each counted."""
        targets = [(name, self.node(target)) for name, target in names]
        for _, target in targets:
            self.lock(target.home >> 5, EXCLUSIVE)
            self.sector(target.ino >> 2)
        self.sector(key)
        for name, target in targets:
            data = self.sector(key).data
            if sector.find(data, name):
                continue
            if sector.room_without_slot(data) < sector.entry_bytes(name, True, chains[name]):
                raise OSError(errno.ENOSPC, "too many names of one hash")
            self.join(self.sector(key), self.sector(target.ino >> 2))
            self.order.add_wait(key, target.ino >> 2)
            sector.add(data, name, target.mode >> 12, 0, target.ino, chains[name])
            target.nlink += 1
            target.ghosts += 1  # one of the two is not to be seen
            self.touch(target)

    def _remove_copy(self, name: bytes, ino: int, key: int) -> None:
        """The old table's name goes, its inode's count with it."""
        target = self.node(ino)
        self.lock(target.home >> 5, EXCLUSIVE)
        self.sector(ino >> 2)
        data = self.sector(key).data
        if not sector.find_of(data, name, key, ino):
            return
        if key != ino >> 2:
            self.pair(key, ino >> 2, before=key, after=ino >> 2)
        self.erase(key, name, ino)
        target.nlink -= 1
        target.ghosts = max(0, target.ghosts - 1)  # after a crash nobody counted it
        self.touch(target)
