"""Names go: unlink, rmdir, and what becomes of an inode without a name (docs/cffs.md section 3).

REMOVE-1  The last name of an inode goes with the inode, unless it is in use: then the entry becomes a hidden one, and a
          ghost remembers it.
REMOVE-2  A directory goes when it has no names *and* hosts no inodes; until then it is in limbo.
"""

from __future__ import annotations

import errno

from libfs.api import NotInCore
from libfs.cffs import layout, sector
from libfs.cffs.directory import Bucket
from libfs.cffs.extents import ExtentMap
from libfs.cffs.inode import Node
from libfs.cffs.names import Names
from libfs.cffs.overlay import MAX_WEIGHT
from libfs.cffs.requests import Shrink, Synchronise
from libfs.cffs.volume import EXCLUSIVE, Ghost
from xok_host.abi.types import TYPE_XN_DB

MAX_DYING_EXTENTS = 16
"""An inode with more is cut in steps first: a transaction has a bound on operations."""
_DATA = int(TYPE_XN_DB)


class Removing(Names):
    """Operations that remove."""

    def unlink(self, parent: int, name: bytes) -> None:
        node, directory = self.directory_to_change(parent)
        bucket = self.bucket(node, directory, name)
        ino = bucket.names.get(name)
        if ino is None:
            raise OSError(errno.ENOENT, "no such file")
        child = self.nodes.get(ino) or self.node(ino)
        if child.is_directory:
            raise OSError(errno.EISDIR, "a directory")
        self._remove_name(node, bucket, name, child)
        now = self.clock()
        child.ctime = now
        node.mtime = node.ctime = now
        self.dirty[parent] = node

    def rmdir(self, parent: int, name: bytes) -> None:
        node, directory = self.directory_to_change(parent)
        bucket = self.bucket(node, directory, name)
        ino = bucket.names.get(name)
        if ino is None:
            raise OSError(errno.ENOENT, "no such directory")
        child = self.node(ino)
        self._check_empty(child)
        self._remove_directory(node, bucket, name, child)
        now = self.clock()
        node.size = max(0, node.size - 1)
        bucket.directories -= 1
        node.mtime = node.ctime = now
        self.touch(node)

    def _check_empty(self, child: Node) -> None:
        """Raises ENOTDIR, ENOTEMPTY."""
        _, directory = self.directory_to_change(child.ino)
        for bucket in directory.buckets.values():
            if bucket.names:
                raise OSError(errno.ENOTEMPTY, "not empty")
        self._load_all(child, directory)
        if any(bucket.names for bucket in directory.buckets.values()):
            raise OSError(errno.ENOTEMPTY, "not empty")

    def _remove_directory(self, node: Node, bucket: Bucket, name: bytes, child: Node) -> None:
        """Remove the name of an empty directory.  What its blocks still host keeps it in limbo."""
        hosted = self.hosted_by(child)
        blocks = self.blocks_of(child)
        if not hosted and any(
            db << 3 | n in self.overlay for db in blocks if db not in self.new_blocks for n in range(8)
        ):
            self.cross_early()  # XN frees only blocks that it sees empty
        if child.ino in self.dirty and not self.extents(child).embedded:
            self.cross_early()  # and only from where it sees them
        self._remove_name(node, bucket, name, child, hosted)

    @staticmethod
    def is_heavy(extents: ExtentMap) -> bool:
        """Whether freeing all of it takes more operations than one transaction should have."""
        root = extents.root
        return len(extents.entries) > MAX_DYING_EXTENTS or (root is not None and root.level > 0)

    def blocks_of(self, node: Node) -> list[int]:
        """The blocks of a directory."""
        return [start + i for _, count, start in self.extents(node).items() for i in range(count)]

    def hosted_by(self, child: Node) -> set[int]:
        """Inodes in the blocks of a directory that is about to go.  Raises NotInCore, also for ghosts that go first."""
        blocks = self.blocks_of(child)
        missing = [db for db in blocks if db not in self.new_blocks and self.page_of(db) < 0]
        if missing:
            raise NotInCore(self.fetches(child, missing))
        if any(ghost.parent == child.ino for ghost in self.ghosts) or any(at[0] == child.ino for at in self.hidden):
            raise NotInCore([Synchronise()])
        hosted: set[int] = set()
        for db in blocks:
            self.homes[db] = child.ino
            for key in range(db << 3, (db << 3) + 8):
                used = self.sector_bytes(key)[2]
                hosted.update(key << 2 | slot for slot in (1, 2, 3) if used >> slot & 1)
        return hosted

    def _remove_name(
        self, node: Node, bucket: Bucket, name: bytes, child: Node, hosted: set[int] | None = None
    ) -> None:
        """Remove a name: one of several; or the last, with its inode; or, while that is in use, hide it (a ghost)."""
        inode_key = child.ino >> 2
        key = bucket.away.get(name, inode_key)
        if child.home != node.ino:
            self.lock(child.home >> 5, EXCLUSIVE)
        self.sector(key)
        ino = child.ino
        extents = self.extents(child)
        if self.sector(inode_key).weight() > MAX_WEIGHT // 2:
            self.cross_early()
        if child.nlink == 1:
            if self.ghost_names and (node.ino, name) in self.ghost_names:
                raise NotInCore([Synchronise()])
            if hosted or ino in self.opens:
                self._hide(node, bucket, name, key, child)
                if hosted:
                    self.limbo[ino] = hosted
                return
            if self.is_heavy(extents):
                if not child.is_directory:
                    self._hide(node, bucket, name, key, child)
                    return
                raise NotInCore([Shrink(ino, 0)])
        elif self.must_stay(child, node.ino, name):
            if (node.ino, name) in self.ghost_names:
                raise NotInCore([Synchronise()])
            self._ghost(node, bucket, name, key, child, name)
            return
        if key != inode_key:
            self.pair(key, inode_key, before=key, after=inode_key)
        self.erase(key, name, child.ino)
        del bucket.names[name]
        bucket.away.pop(name, None)
        child.nlink -= 1
        if child.nlink:
            self.touch(child)
        else:
            self.die(child, away=key != inode_key)
        self.refresh_space(bucket, key)

    def must_stay(self, child: Node, directory: int, name: bytes) -> bool:
        """Whether a name that goes has to stay on the disk for now: it may be durable, and another that the inode has
        may not be yet (CFFS-1)."""
        linked = self.linked.get(child.ino)
        if not linked or child.nlink - child.ghosts <= 1:
            return False
        return (directory, name) not in linked

    def erase(self, key: int, name: bytes, ino: int) -> None:
        """Take a name's bytes out of its sector."""
        data = self.sector(key).data
        at = sector.find_of(data, name, key, ino)
        if not at:
            raise OSError(errno.EIO, "a directory entry is not where it was")
        sector.remove(data, at)
        self.rules.name_taken(self.homes[key >> 3], name)

    def _hide(self, node: Node, bucket: Bucket, name: bytes, key: int, child: Node) -> None:
        """The inode is in use without a visible name: its entry becomes a hidden one, in place if that fits."""
        data = self.sector(key).data
        at = sector.find_of(data, name, key, child.ino)
        if not at:
            raise OSError(errno.EIO, "a directory entry is not where it was")
        hidden = layout.hidden_name(child.ino)
        if sector.room_without_slot(data) >= len(hidden) - len(name):
            slot = data[at + 1] >> 4 & 3
            _, chain = sector.target(data, at, key)
            sector.remove(data, at)
            sector.add(data, hidden, child.mode >> 12, slot, child.ino, chain)
            self.rules.name_taken(node.ino, name)
        else:
            hidden = name
        self._ghost(node, bucket, name, key, child, hidden)

    def _ghost(self, node: Node, bucket: Bucket, name: bytes, key: int, child: Node, on_disk: bytes) -> None:
        """Make a name invisible whose entry, called `on_disk`, must stay for now."""
        del bucket.names[name]
        bucket.away.pop(name, None)
        self.ghosts.append(Ghost(node.ino, on_disk, key, child))
        self.ghost_names[node.ino, on_disk] = (key, child.ino)
        child.ghosts += 1
        self.touch(child)
        self.refresh_space(bucket, key)

    def die(self, child: Node, *, away: bool) -> None:
        """The inode has no name any more: release its slot and all it owns, with its sector's next crossing."""
        ino = child.ino
        changed = self.sector(ino >> 2)
        extents = self.extents(child)
        for page in child.pages.values():
            self.return_pages(page)
        self.promised -= child.promised
        fresh = {db for db, _ in child.gained}
        kind = self.directory_type if child.is_directory else _DATA
        blocks = [start + i for _, count, start in extents.items() for i in range(count)] if child.is_directory else []
        for start, count, holder, part in (*child.lost, *extents.cut(0)):
            if fresh:
                changed.frees += [(db, 1, holder, part, kind) for db in range(start, start + count) if db not in fresh]
            else:
                changed.frees.append((start, count, holder, part, kind))
        changed.nodes_freed += [(lost, self.rules.node_type(child)) for lost in extents.removed]
        for db in fresh:
            self._drop_block(db)
        if child.is_directory:
            for db in blocks:
                self.homes.pop(db, None)
                self.locks.pop(db, None)
            self.parents.pop(ino, None)
            child.directory = None
        if changed.frees:
            self.frees_pending = True
        sector.drop(changed.data, ino & 3)
        self.nodes.pop(ino, None)
        self.dirty.pop(ino, None)
        self.errors.pop(ino, None)
        child.pages = {}
        child.promised = 0
        if away:
            self.quarantine.add(ino >> 2)
        self.refresh_sector(child.home, ino >> 2)
        hosts = self.limbo.get(child.home)
        if hosts is not None:
            hosts.discard(ino)

    def _drop_block(self, db: int) -> None:
        """Forget a directory block that never crossed."""
        self.new_blocks.pop(db, None)
        self.grouping.taken.discard(db)
        self.free += 1
        for key in range(db << 3, (db << 3) + 8):
            changed = self.overlay.pop(key, None)
            if changed is not None and changed.links is not None:
                changed.links.discard(key)
        if db in self.locks_to_take:
            self.locks_to_take.remove(db)
