"""The state of one mounted C-FFS, and how blocks, inodes and directories come into core.

Everything else (names.py, files.py, crossing.py, settle.py) builds on this.  Methods that need something that is not in
core raise `NotInCore` with requests (requests.py) and have changed nothing.

VOL-1  `homes` maps every directory block ever seen to the directory that owns it; a home never changes.
VOL-2  In-core inodes and directories are kept only while the lock on their home is held.
VOL-3  A block in `new_blocks` has been chosen and is just crossing: no inode number names it before XN has given it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from typing import Any

from libfs.api import NotInCore
from libfs.cffs import freespace, layout, sector
from libfs.cffs.directory import Bucket, Directory
from libfs.cffs.extents import Entry, ExtentMap, load_tree
from libfs.cffs.grouping import Grouping
from libfs.cffs.inode import Node
from libfs.cffs.overlay import Order, Sector
from libfs.cffs.requests import Fetch, FindHome, Grow, Remount, Synchronise, TakeLock
from libfs.cffs.rules import OneWriter
from xok_host.abi.types import BLOCK, SECTOR, Flag, LockMode

SHARED, EXCLUSIVE = int(LockMode.SHARED), int(LockMode.EXCLUSIVE)
_STATE = int(Flag.VALID | Flag.READING | Flag.QUARANTINE)
_VALID = int(Flag.VALID)
POOL_PAGES = 256
"""Pages asked for at once."""
_DIRECTORY_KIND = 4
MAX_LISTINGS = 256
"""Listings in progress that a volume remembers; beyond, the oldest starts anew."""
MAX_NODES = 65536
"""In-core inodes kept; clean ones are dropped beyond."""


class Ghost:
    """A name on disk that is not visible any more (CFFS-1).

    Its inode stays in core: the count of its ghosts is nowhere else."""

    __slots__ = ("key", "name", "node", "parent")

    def __init__(self, parent: int, name: bytes, key: int, node: Node) -> None:
        self.parent = parent
        self.name = name
        self.key = key
        """Sector that the name is in."""
        self.node = node


class Volume:
    """One mounted file system."""

    def __init__(
        self,
        env: Any,
        dev: int,
        name: str,
        cap: int,
        root_block: int,
        rules: OneWriter,
        *,
        writable: bool = True,
        grouping: type[Grouping] = Grouping,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.env = env
        self.dev = dev
        self.name = name
        self.cap = cap
        self.writable = writable
        self.clock = clock
        self.rules = rules
        self.shared = rules.shared
        self.directory_type = rules.directory_type
        self.root_block = root_block
        self.root_ino = layout.ino_of(root_block, 0, layout.ROOT_SLOT)
        self.orphans_ino = layout.ino_of(root_block, 0, layout.ORPHANS_SLOT)
        self.free_map = env.freemaps[dev]
        self.bits: memoryview = self.free_map._memory
        self.nblocks: int = self.free_map.nblocks
        self.grouping = grouping(self.bits, self.nblocks)
        self.on_invalidate: Callable[..., None] = lambda ino, names=(): None

        self.nodes: dict[int, Node] = {}
        self.dirty: dict[int, Node] = {}
        self.opens: dict[int, int] = {}
        self.homes: dict[int, int] = {root_block: self.root_ino}
        self.parents: dict[int, int] = {}
        """Directory → the directory that has its name, as far as seen."""
        self.overlay: dict[int, Sector] = {}
        self.new_blocks: dict[int, int] = {}
        """Directory block → the directory that owns it."""
        self.order = Order()
        self.locks: dict[int, int] = {}
        self.lock_taken = 0.0
        """When the last lock was got."""
        self.locks_to_take: list[int] = []
        """New blocks that were used as locks: taken when they have crossed."""
        self.contended: set[int] = set()
        self.closing = False
        """Locks are being let go of: what would change something has to ask for them again."""
        self.listings: dict[tuple[int, int], list[bytes]] = {}
        """Listings in progress: (directory, number) → names.  They outlive locks and growth."""
        self._listed = 0
        self.ghosts: list[Ghost] = []
        self.ghost_names: dict[tuple[int, bytes], tuple[int, int]] = {}
        """(directory, name) of each ghost → its sector and inode."""
        self.orphans: set[int] = set()
        """Inodes that have a name in the orphan list."""
        self.orphans_lock = 0
        """Block that is locked, shared, while something of ours is in the orphan list and others may have the lock."""
        self.hidden: dict[tuple[int, bytes], tuple[int, int]] = {}
        """Hidden names seen on disk: (directory, name) → (sector, inode); left by a crash unless a ghost has them."""
        self.limbo: dict[int, set[int]] = {}
        """Removed directory → inodes that its blocks still host."""
        self.growing: set[int] = set()
        self.quarantine: set[int] = set()
        """Sectors with a slot that must not be reused before the next synchronisation (CFFS-2)."""
        self.recent: set[int] = set()
        """Inodes that got a name since the last synchronisation: their fsync is one of everything."""
        self.linked: dict[int, set[tuple[int, bytes]]] = {}
        """Inode that XN knew already → the names, as (directory, name), that it got since the last synchronisation."""
        self.unwritten: set[int] = set()
        """Blocks that crossed and may not be durable."""
        self.writing = 0
        """Synchronisations between writing and flushing: `flush` lets nothing cross then, so that they end."""
        self.errors: dict[int, OSError] = {}
        self.promised = 0
        """Data blocks answered for that have no place on the disk yet."""
        self._allocated = env.counters.word("blocks_allocated")
        self.count_free()
        self.frees_pending = False
        self._pool: list[list[int]] = []
        self._lookup = env.registry.lookup
        self._key = dev << 44
        self._generation = (clock() >> 20) & 0x7FFF_FFFF

    # ---- blocks

    def page_of(self, db: int) -> int:
        """The registry's page of a block; -1: not in core."""
        entry = self._lookup(self._key | db)
        if entry is None or entry.flags & _STATE != _VALID:
            return -1
        return int(entry.page)

    def block(self, db: int) -> memoryview:
        """The bytes of a directory block as XN has them.  Raises NotInCore."""
        page = self.page_of(db)
        if page < 0:
            raise NotInCore([self.fetch_of(db)])
        return self.env.page(page)

    def sector_bytes(self, key: int) -> bytes:
        """A directory sector as it is now, overlay included.  Raises NotInCore."""
        changed = self.overlay.get(key)
        if changed is not None:
            return bytes(changed.data)
        if key >> 3 in self.new_blocks:
            return bytes(SECTOR)
        at = (key & 7) * SECTOR
        return bytes(self.block(key >> 3)[at : at + SECTOR])

    def known_bytes(self, key: int) -> bytes:
        """A directory sector as XN knows it.  Raises NotInCore."""
        if key >> 3 in self.new_blocks:
            return bytes(SECTOR)
        at = (key & 7) * SECTOR
        return bytes(self.block(key >> 3)[at : at + SECTOR])

    def sector(self, key: int) -> Sector:
        """A directory sector to change.  Raises NotInCore."""
        changed = self.overlay.get(key)
        if changed is None:
            data = bytearray(self.sector_bytes(key))
            if not data[0]:
                data = self.rules.fresh(self, key)
            changed = self.overlay[key] = Sector(key, data)
        return changed

    def fetch_of(self, db: int) -> Fetch | FindHome | Remount:
        """The request that brings a directory block into core."""
        if db == self.root_block:
            return Remount()
        home = self.homes.get(db)
        if home is None:
            return FindHome(db)
        node = self.node(home)
        return self.fetches(node, [db])[0]

    @staticmethod
    def holder(node: Node, entry: Entry | None) -> tuple[int, int]:
        """(metadata block, partition) that owns what an entry of the node maps."""
        if entry is not None and entry.cell is not None:
            return entry.cell.node.block, entry.cell.number
        return node.ino >> 5, node.ino >> 2 & 7

    # ---- inodes

    def node(self, ino: int) -> Node:
        """The in-core inode.  Raises NotInCore; ESTALE for a number that is no inode."""
        node = self.nodes.get(ino)
        if node is not None:
            return node
        slot = ino & 3
        block = ino >> 5
        if not slot or not 0 < block < self.nblocks:
            raise OSError(errno.ESTALE, f"{ino} is no inode number")
        home = self.homes.get(block)
        if home is None:
            home = self.rules.home_of(self, block)
        if home is None:
            raise NotInCore([FindHome(block)])
        self.lock(home >> 5, SHARED)
        data = self.sector_bytes(ino >> 2)
        if not data[2] >> slot & 1:
            raise OSError(errno.ESTALE, f"inode {ino} is gone")
        node = Node.unpack(ino, home, data, slot * layout.INODE_BYTES)
        if node.is_directory and node.extents is not None:
            node.extents = self.rules.table(node.extents.items())
        self.nodes[ino] = node
        return node

    def extents(self, node: Node) -> ExtentMap:
        """The node's extent map, its tree loaded.  Raises NotInCore."""
        if node.extents is None:

            def read(db: int, parent: int, part: int) -> bytes:
                page = self.page_of(db)
                if page < 0:
                    block, part = (parent, part) if parent else (node.ino >> 5, node.ino >> 2 & 7)
                    raise NotInCore([Fetch(block, ((db, 1, part),))])
                return bytes(self.env.page(page))

            try:
                kind = self.rules.table if node.is_directory else ExtentMap
                node.extents = load_tree(node.depth, node.tree, read, kind)
            except ValueError as error:
                raise OSError(errno.EIO, f"inode {node.ino}: {error}") from error
        return node.extents

    def touch(self, node: Node) -> None:
        """The node has changes that must cross."""
        self.dirty[node.ino] = node

    def next_generation(self) -> int:
        self._generation = self._generation % 0xFFFF_FFFF + 1
        return self._generation

    # ---- directories

    def directory(self, ino: int) -> tuple[Node, Directory]:
        """A directory to read.  Raises ENOTDIR."""
        node = self.nodes.get(ino) or self.node(ino)
        found = node.directory
        if found is None:
            found = self._open_directory(node)
        return node, found

    def directory_to_change(self, ino: int) -> tuple[Node, Directory]:
        """A directory whose names may be changed: both locks held, and it has not been removed."""
        node = self.nodes.get(ino) or self.node(ino)
        found = node.directory
        if found is None:
            found = self._open_directory(node)
        if not found.writable:
            self.check_writable()
            self.lock(node.home >> 5, EXCLUSIVE)
            self.lock(ino >> 5, EXCLUSIVE)
            self.sector_bytes(ino >> 2)
            found.writable = True
        if node.nlink <= node.ghosts and ino != self.orphans_ino:
            raise OSError(errno.ENOENT, "the directory has been removed")
        return node, found

    def _open_directory(self, node: Node) -> Directory:
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        if node.ino in self.growing or node.growing:
            raise NotInCore([Grow(node.ino, node.level)])
        self.lock(node.ino >> 5, SHARED)
        self.extents(node)
        node.directory = Directory(node.level)
        return node.directory

    def bucket(self, node: Node, directory: Directory, name: bytes) -> Bucket:
        """The bucket that `name` belongs to.  Raises NotInCore."""
        level = directory.level
        base = layout.bucket_base(level, name) if level else 0
        return directory.buckets.get(base) or self.load_bucket(node, directory, base)

    def load_bucket(self, node: Node, directory: Directory, base: int) -> Bucket:
        blocks = self.bucket_blocks(node, base)
        missing = [db for _, db in blocks if db not in self.new_blocks and self.page_of(db) < 0]
        if missing:
            raise NotInCore(self.fetches(node, missing))
        bucket = Bucket(base)
        seen: dict[bytes, tuple[int, int, int]] = {}
        replaced = [entry for _, db in blocks for entry in self._scan(node, bucket, db, seen)]
        if replaced and self.writable:
            # A crash left both a name and what has replaced it.
            self.hidden.update(replaced)
            raise NotInCore([Synchronise()])
        for _, db in blocks:
            directory.places[db] = bucket
        directory.buckets[base] = bucket
        return bucket

    def bucket_blocks(self, node: Node, base: int) -> list[tuple[int, int]]:
        """(logical, block) of the bucket's blocks that exist."""
        extents = self.extents(node)
        found = []
        for logical in range(base, base + layout.BUCKET):
            db, _ = extents.find(logical)
            if db:
                found.append((logical, db))
        return found

    def fetches(self, node: Node, blocks: list[int]) -> list[Fetch]:
        """Requests for several blocks of one directory, one for each block that holds their extents."""
        by_holder: dict[int, list[tuple[int, int, int]]] = {}
        extents = self.extents(node)
        owners = extents.owners_of(blocks)
        for db in blocks:
            if db not in owners:
                raise OSError(errno.EIO, f"block {db} is not one of directory {node.ino}")
            holder, part = self.holder(node, owners[db])
            by_holder.setdefault(holder, []).append((db, 1, part))
        return [Fetch(holder, tuple(extents)) for holder, extents in by_holder.items()]

    def _scan(
        self, node: Node, bucket: Bucket, db: int, seen: dict[bytes, tuple[int, int, int]]
    ) -> Iterator[tuple[tuple[int, bytes], tuple[int, int]]]:
        """Enter a block's names and room into its bucket; gives names that others have replaced, as `hidden` has them.

        `seen`: name → (kind, sector, inode), of the whole bucket."""
        self.homes[db] = node.ino
        raw = bytes(BLOCK) if db in self.new_blocks else bytes(self.block(db))
        for number in range(8):
            key = db << 3 | number
            changed = self.overlay.get(key)
            data = bytes(changed.data) if changed is not None else raw[number * SECTOR : (number + 1) * SECTOR]
            if not data[0]:
                bucket.space[key] = 3 * layout.INODE_BYTES - layout.HEADER_BYTES
                continue
            try:
                names = sector.scan(data, key)
            except ValueError as error:
                raise OSError(errno.EIO, f"directory {node.ino}, block {db}: {error}") from error
            bucket.space[key] = sector.space(data) if key not in self.quarantine else -1
            for name, ino, chain, kind in names:
                if chain is not None:
                    self.learn_chain(node.ino, ino, chain)
                if name[0] == 0:
                    self.hidden.setdefault((node.ino, name), (key, ino))
                    continue
                if self.ghost_names and self.ghost_names.get((node.ino, name)) == (key, ino):
                    continue
                other = seen.get(name)
                if other is not None:
                    if layout.newer(other[0], kind):
                        yield (node.ino, name), (key, ino)
                        continue
                    yield (node.ino, name), other[1:]
                    bucket.directories -= other[0] & 15 == _DIRECTORY_KIND
                    bucket.away.pop(name, None)
                seen[name] = (kind, key, ino)
                bucket.names[name] = ino
                bucket.directories += kind & 15 == _DIRECTORY_KIND
                if chain is not None:
                    bucket.away[name] = key

    def learn_chain(self, directory: int, ino: int, chain: bytes) -> None:
        """Remember the homes that a name elsewhere tells: none told means the name's own directory."""
        block = ino >> 5
        if block in self.homes:
            return
        if not chain:
            self.homes[block] = directory
            return
        for at in range(0, len(chain), 8):
            home = int.from_bytes(chain[at : at + 8], "little")
            if not home:
                return
            self.homes.setdefault(block, home)
            block = home >> 5

    def chain_of(self, directory: int, node: Node) -> bytes:
        """The chain that a name in `directory` needs for an inode that is not in its sector."""
        if node.home == directory:
            return b""
        chain = []
        home = node.home
        while True:
            chain.append(home)
            if home == self.root_ino:
                return b"".join(number.to_bytes(8, "little") for number in chain)
            if len(chain) == layout.CHAIN_MAX:
                return bytes(8)
            home = self.homes[home >> 5]

    # ---- locks

    def check_writable(self) -> None:
        if not self.writable:
            raise OSError(errno.EROFS, "mounted read-only")

    def lock(self, block: int, mode: int) -> None:
        """Make sure that the registry lock on a directory block is held.  Raises NotInCore."""
        block = self.rules.lock_of(self, block)
        if self.locks.get(block, 0) >= mode and not (self.closing and mode == EXCLUSIVE):
            return
        if block in self.new_blocks:
            self.locks[block] = EXCLUSIVE
            self.locks_to_take.append(block)
            return
        if self.writable and block not in self.contended:
            mode = EXCLUSIVE
        raise NotInCore([TakeLock(block, mode)])

    def protected_by(self, block: int) -> list[int]:
        """Inodes in core that others may change when the lock on a directory block goes."""
        return [node.ino for node in self.nodes.values() if self.rules.goes_with(self, node, block)]

    def forget_block(self, block: int, *, readers_stay: bool = False) -> None:
        """The lock on a directory block is going: drop what it protected (VOL-2).

        With `readers_stay` a shared lock remains, and only the right to change goes.
        """
        rules = self.rules
        for node in list(self.nodes.values()):
            directory, mine = node.directory, rules.table_goes_with(self, node, block)
            kept_by_home = rules.goes_with(self, node, block)
            if directory is not None and (mine or kept_by_home):
                directory.writable = False
                if not readers_stay and mine:
                    node.directory = None
            if not readers_stay and kept_by_home and node.ino not in self.dirty and not node.ghosts:
                del self.nodes[node.ino]
        if not readers_stay:
            rules.lock_went(self, block)

    def close_directories(self) -> None:
        """Nobody changes a directory before he has asked for its lock again."""
        for node in self.nodes.values():
            if node.directory is not None:
                node.directory.writable = False

    # ---- listings

    def remember_listing(self, ino: int, names: list[bytes]) -> int:
        """Its number, from 1."""
        self._listed = self._listed % 0x3FFF_FFFF + 1
        self.listings[ino, self._listed] = names
        if len(self.listings) > MAX_LISTINGS:
            del self.listings[next(iter(self.listings))]
        return self._listed

    # ---- pages and space

    def take_pages(self, count: int) -> tuple[int, int]:
        """(first page, how many adjacent ones, at most `count`) of the own write arena."""
        if not self._pool:
            self._refill(count)
        run = self._pool[-1]
        page, have = run
        if have > count:
            run[0] = page + count
            run[1] = have - count
            return page, count
        self._pool.pop()
        return page, have

    def ensure_pages(self, count: int) -> None:
        """Have `count` pages in the pool, so that an operation cannot fail half-way."""
        have = 0
        for run in self._pool:
            have += run[1]
            if have >= count:
                return
        self._refill(count - have)

    def _refill(self, count: int) -> None:
        raise NotImplementedError

    def return_pages(self, page: int, count: int = 1) -> None:
        self._pool.append([page, count])

    def count_free(self) -> None:
        """Look at the free map; `free` is exact then, as far as others leave it alone."""
        self.free = self._counted = freespace.count_free(self.bits, self.nblocks) - len(self.grouping.taken)
        self._allocated_then = self._allocated[0]

    def others_took(self) -> int:
        """Blocks that other libFSes may have allocated since `free` was counted."""
        took: int = self._allocated[0] - self._allocated_then - (self._counted - self.free)
        return took if took > 0 else 0

    def reserve(self, blocks: int) -> None:
        """Promise data blocks to an operation.  Raises ENOSPC."""
        if self.free - self.promised - self.others_took() < blocks:
            self.count_free()
            if self.free - self.promised < blocks:
                if self.frees_pending:
                    raise NotInCore([Synchronise()])
                raise OSError(errno.ENOSPC, "no space left on the disk")
