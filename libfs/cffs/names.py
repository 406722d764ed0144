"""The name space: lookup, create, link, unlink, rename (docs/cffs.md sections 3 and 4).

Each operation first looks at everything it needs, and may raise `NotInCore` there; then it changes the overlay and
cannot fail any more.  N is always the sector that a name is in, I the sector of its inode.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

from libfs.api import Attr, NotInCore
from libfs.cffs import layout, sector
from libfs.cffs.directory import Bucket, Directory
from libfs.cffs.inode import Node
from libfs.cffs.overlay import Sector
from libfs.cffs.requests import Fetch, Grow, Synchronise
from libfs.cffs.volume import EXCLUSIVE, Volume
from xok_host.abi.types import TYPE_XN_DB

NAME_MAX = layout.NAME_MAX
LIST_AHEAD = 1024
"""Names of a listing whose inodes are fetched together."""
PLENTY = 1024
"""Free blocks from which on directories get some before they need them."""
FIRST_BLOCKS = 2
"""What a bucket gets first then; the second time it gets all the rest."""
_NO_SLOT = -1
_HIDDEN_BYTES = len(layout.hidden_name(0))
_DATA = int(TYPE_XN_DB)


def bad_name(name: bytes) -> OSError:
    if len(name) > NAME_MAX:
        return OSError(errno.ENAMETOOLONG, f"a name has at most {NAME_MAX} bytes")
    return OSError(errno.EINVAL, "not a name")


class Names(Volume):
    """Operations on names."""

    # ---- looking

    def lookup(self, parent: int, name: bytes) -> Attr:
        node, directory = self.directory(parent)
        ino = self.bucket(node, directory, name).names.get(name)
        if ino is None:
            if len(name) > NAME_MAX:
                raise bad_name(name)
            raise OSError(errno.ENOENT, "no such file")
        child = self.nodes.get(ino) or self.node(ino)
        if child.is_directory:
            self.parents[ino] = parent
        return child.attributes()

    def getattr(self, ino: int) -> Attr:
        return (self.nodes.get(ino) or self.node(ino)).attributes()

    def parent(self, ino: int) -> int:
        """The directory that has directory `ino`'s name, as far as it was seen; else (and for the root) itself."""
        return self.parents.get(ino, ino)

    def readdir(self, ino: int, cookie: int) -> Iterator[tuple[bytes, Attr, int]]:
        """Entries after `cookie` (0: from the start), without `.` and `..`.

        A cookie is the number of a remembered listing and the position in it: what is created or removed meanwhile
        may or may not be shown, and nothing else is shown twice or left out.
        """
        node, directory = self.directory(ino)
        number, position = cookie >> 32, cookie & 0xFFFF_FFFF
        names = self.listings.get((ino, number))
        if names is None or not cookie:
            self._load_all(node, directory)
            names = [
                name
                for base in directory.bases()
                if base in directory.buckets
                for name in directory.buckets[base].names
            ]
            number = self.remember_listing(ino, names)
        while position < len(names):
            name = names[position]
            position += 1
            found = self.bucket(node, directory, name).names.get(name)
            if found is None:
                continue
            try:
                child = self.nodes.get(found) or self.node(found)
            except NotInCore as missing:
                ahead = self._ahead(node, directory, names[position - 1 : position + LIST_AHEAD])
                raise NotInCore(ahead or missing.requests) from None
            if child.is_directory:
                self.parents[found] = ino
            yield name, child.attributes(), number << 32 | position

    def _ahead(self, node: Node, directory: Directory, names: list[bytes]) -> list[Fetch]:
        """Requests for the blocks of the directory that host the inodes of these names and are missing."""
        blocks = set()
        for name in names:
            ino = self.bucket(node, directory, name).names.get(name, 0)
            block = ino >> 5
            if self.homes.get(block) == node.ino and block not in self.new_blocks and self.page_of(block) < 0:
                blocks.add(block)
        return self.fetches(node, sorted(blocks))

    def _load_all(self, node: Node, directory: Directory) -> None:
        """All buckets that have blocks; one NotInCore for all that are missing."""
        missing = []
        wanted = []
        for base in directory.bases():
            if base not in directory.buckets:
                blocks = [db for _, db in self.bucket_blocks(node, base)]
                if blocks:
                    wanted.append(base)
                    missing += [db for db in blocks if db not in self.new_blocks and self.page_of(db) < 0]
        if missing:
            raise NotInCore(self.fetches(node, missing))
        for base in wanted:
            self.load_bucket(node, directory, base)
        # The count is in another sector than the names: a crash may have kept only one of them.
        directories = sum(bucket.directories for bucket in directory.buckets.values())
        if node.size != directories:
            node.size = directories
            if directory.writable:
                self.touch(node)

    # ---- making

    def create(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attr:
        """A regular file, or what the type bits of `mode` say (FIFO, socket, device)."""
        kind = mode & 0o170000
        inline = b""
        if kind == stat.S_IFCHR or kind == stat.S_IFBLK:
            inline = rdev.to_bytes(8, "little").ljust(layout.INLINE_BYTES, b"\0")
        elif not kind:
            mode |= stat.S_IFREG
        elif kind == stat.S_IFDIR or kind == stat.S_IFLNK:
            raise OSError(errno.EINVAL, "create makes neither directories nor symbolic links")
        return self._make(parent, name, mode, uid, gid, inline).attributes()

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attr:
        child = self._make(parent, name, stat.S_IFDIR | mode & 0o7777, uid, gid)
        home = self.nodes[parent]
        home.size += 1
        self.bucket_of(home, name).directories += 1
        child.group = home.group
        self.parents[child.ino] = parent
        return child.attributes()

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attr:
        size = len(target)
        if size > layout.SYMLINK_MAX:
            raise OSError(errno.ENAMETOOLONG, f"a link's target has at most {layout.SYMLINK_MAX} bytes")
        if not target:
            raise OSError(errno.ENOENT, "an empty target")
        if size <= layout.INLINE_BYTES:
            child = self._make(parent, name, stat.S_IFLNK | 0o777, uid, gid, target.ljust(layout.INLINE_BYTES, b"\0"))
        else:
            self.reserve(1)
            self.ensure_pages(1)
            child = self._make(parent, name, stat.S_IFLNK | 0o777, uid, gid)
            page, _ = self.take_pages(1)
            self.env.page(page)[:] = target.ljust(layout.BLOCK_BYTES, b"\0")
            child.pages[0] = page
            child.promised = 1
            self.promised += 1
        child.size = size
        return child.attributes()

    @staticmethod
    def bucket_of(node: Node, name: bytes) -> Bucket:
        """The bucket of a name, which is loaded."""
        directory = node.directory
        assert directory is not None
        return directory.buckets[layout.bucket_base(directory.level, name)]

    def _make(self, parent: int, name: bytes, mode: int, uid: int, gid: int, inline: bytes = b"") -> Node:
        """A name with its inode in one sector."""
        node, directory = self.directory_to_change(parent)
        length = len(name)
        if not 0 < length <= NAME_MAX or name[0] == 0 or b"/" in name:
            raise bad_name(name)
        bucket = directory.buckets.get(0) if not directory.level else None
        if bucket is None:
            bucket = self.bucket(node, directory, name)
        if name in bucket.names:
            raise OSError(errno.EEXIST, "the name exists")
        if self.ghost_names and (parent, name) in self.ghost_names:
            raise NotInCore([Synchronise()])
        if self.rules.crosses_before_name(parent, name):
            self.cross_early()
        key = bucket.hint
        if bucket.space.get(key, _NO_SLOT) < length + 3:
            key = self._room(node, directory, bucket, length + 3)
        changed = self.overlay.get(key) or self.sector(key)
        slot = sector.place(changed.data, name, mode >> 12)
        bucket.space[key] = sector.room(changed.data)
        bucket.hint = key
        ino = key << 2 | slot
        now = self.clock()
        if node.mode & stat.S_ISGID:
            gid = node.gid
            if mode & 0o170000 == stat.S_IFDIR:
                mode |= stat.S_ISGID
        child = Node(ino, parent, mode, uid, gid, self.next_generation(), now)
        if child.is_directory:
            child.extents = self.rules.table()
        child.inline = inline
        bucket.names[name] = ino
        self.nodes[ino] = child
        self.dirty[ino] = child
        self.recent.add(ino)
        node.mtime = node.ctime = now
        self.dirty[parent] = node
        return child

    def _room(self, node: Node, directory: Directory, bucket: Bucket, need: int) -> int:
        """A sector of the bucket with room for a name of `need` bytes and its inode.  Raises NotInCore or ENOSPC."""
        for key, space in bucket.space.items():
            if space >= need:
                return key
        return self._new_blocks(node, directory, bucket) << 3

    def _room_away(self, node: Node, directory: Directory, bucket: Bucket, need: int) -> int:
        """A sector of the bucket with room for a name whose inode is elsewhere."""
        for key in bucket.space:
            data = self.sector_bytes(key)
            if not data[0] or sector.room_without_slot(bytearray(data)) >= need:
                return key
        return self._new_blocks(node, directory, bucket) << 3

    def _new_blocks(self, node: Node, directory: Directory, bucket: Bucket) -> int:
        """At least one more block for the bucket; the first of them."""
        extents = self.extents(node)
        for logical in range(bucket.base, bucket.base + layout.BUCKET):
            if not extents.find(logical)[0]:
                break
        else:
            if directory.level == self.rules.max_level:
                raise OSError(errno.ENOSPC, "the directory is full")
            raise NotInCore([Grow(node.ino, directory.level + 1)])
        count = min(self._how_many(logical - bucket.base), extents.find(logical)[1])
        blocks = self.gain_blocks(node, logical, count)
        for db in blocks:
            for key in range(db << 3, (db << 3) + 8):
                bucket.space[key] = 3 * layout.INODE_BYTES - layout.HEADER_BYTES
            directory.places[db] = bucket
        return blocks[0]

    def _how_many(self, has: int) -> int:
        """How many blocks a bucket that has so many gets at once: each gain is a crossing that a create waits for."""
        if self.rules.gains_ahead and self.free - self.promised - self.others_took() > PLENTY:
            return layout.BUCKET - has if has else FIRST_BLOCKS
        self.reserve(1)
        return 1

    def gain_blocks(self, node: Node, logical: int, count: int = 1) -> list[int]:
        """More blocks for a directory, from a hole of its table on: XN has given them before an inode number names them
        (VOL-3).  Raises NotInCore when it must be tried again."""
        if self.writing:
            raise NotInCore([])  # CFFS-5
        gained: list[tuple[int, int]] = []
        for ahead in range(count):
            try:
                db, node.group = self.grouping.small(node.group, node.ino >> 5)
            except OSError:
                if not gained:
                    raise
                break
            gained.append((db, logical + ahead))
        self.cross_gain(node, gained)
        return [db for db, _ in gained]

    def link(self, ino: int, parent: int, name: bytes) -> Attr:
        node, directory = self.directory_to_change(parent)
        if not 0 < len(name) <= NAME_MAX or name[0] == 0 or b"/" in name:
            raise bad_name(name)
        child = self.node(ino)
        if child.is_directory:
            raise OSError(errno.EPERM, "directories have one name")
        if child.nlink <= child.ghosts:
            raise OSError(errno.ENOENT, "the file has been removed")
        bucket = self.bucket(node, directory, name)
        if name in bucket.names:
            raise OSError(errno.EEXIST, "the name exists")
        if self.rules.crosses_before_name(parent, name):
            self.cross_early()
        self._add_name(node, directory, bucket, name, child)
        now = self.clock()
        child.ctime = now
        node.mtime = node.ctime = now
        self.touch(node)
        return child.attributes()

    def _place_for_name(
        self, node: Node, directory: Directory, bucket: Bucket, name: bytes, child: Node, prefer: int = -1
    ) -> tuple[int, bytes | None]:
        """(sector, chain) for another name of an inode: `prefer` if that is of this bucket and has room; else the
        inode's own sector (where chain is None), or another of the bucket.  Changes nothing that matters."""
        if child.nlink >= layout.LINK_MAX:
            raise OSError(errno.EMLINK, f"at most {layout.LINK_MAX} names")
        self.lock(child.home >> 5, EXCLUSIVE)
        inode_key = child.ino >> 2
        for key in (prefer, inode_key):
            if key == inode_key and key in bucket.space:
                if sector.room_without_slot(self.sector(key).data) >= sector.entry_bytes(name, False):
                    return key, None
            elif key in bucket.space:
                chain = self.chain_of(node.ino, child)
                if sector.room_without_slot(self.sector(key).data) >= sector.entry_bytes(name, True, chain):
                    return key, chain
        self.sector(inode_key)
        chain = self.chain_of(node.ino, child)
        need = sector.entry_bytes(name, True, chain)
        return self._room_away(node, directory, bucket, need), chain

    def _add_name(
        self,
        node: Node,
        directory: Directory,
        bucket: Bucket,
        name: bytes,
        child: Node,
        prefer: int = -1,
        version: int | None = None,
    ) -> None:
        """Another name for an inode; with a `version` (bits of the kind) one that replaces a ghost of that name."""
        if self.ghost_names and version is None and (node.ino, name) in self.ghost_names:
            raise NotInCore([Synchronise()])
        key, chain = self._place_for_name(node, directory, bucket, name, child, prefer)
        inode_key = child.ino >> 2
        if key != inode_key:
            self.pair(key, inode_key, before=inode_key, after=key)
        changed = self.sector(key)
        kind = child.mode >> 12 | (version or 0)
        if chain is not None:
            sector.add(changed.data, name, kind, 0, child.ino, chain)
            bucket.away[name] = key
        else:
            sector.add(changed.data, name, kind, child.ino & 3)
        self.refresh_space(bucket, key)
        bucket.names[name] = child.ino
        self.recent.add(child.ino)
        if child.crossed:
            self.linked.setdefault(child.ino, set()).add((node.ino, name))
        child.nlink += 1
        self.touch(child)

    def pair(self, one: int, other: int, *, before: int, after: int) -> None:
        """Two sectors are about to be changed by one operation, and `after` must be durable later than `before`.

        Raises NotInCore if that would close a circle (CFFS-3)."""
        if one == other:
            return
        if not self.order.allows(after, before):
            raise NotInCore([Synchronise()])
        self.lighten(one, other)
        self.join(self.sector(one), self.sector(other))
        self.order.add_wait(after, before)

    def lighten(self, *keys: int) -> None:
        """Sectors are about to cross together: let the overlay cross before if that would be too much."""
        together = {other for key in keys for other in (key, *(self.sector(key).links or ()))}
        if self.rules.too_heavy(self, together):
            self.cross_early()

    def weight_of(self, key: int) -> int:
        """About how many operations a changed sector takes to cross."""
        weight = self.overlay[key].weight()
        for ino in range(key << 2 | 1, (key << 2) + 4):
            node = self.nodes.get(ino)
            if node is not None:
                weight += len(node.gained)
        return weight

    def join(self, first: Sector, second: Sector) -> None:
        """Both cross in one transaction from now on, with what is joined to either."""
        if first is second or (first.links is not None and first.links is second.links):
            return
        together = {first.key, second.key, *(first.links or ()), *(second.links or ())}
        for key in together:
            self.overlay[key].links = together

    def refresh_space(self, bucket: Bucket, key: int) -> None:
        """The sector's names or slots have changed."""
        if key in bucket.space:
            bucket.space[key] = _NO_SLOT if key in self.quarantine else sector.room(self.sector(key).data)

    def refresh_sector(self, directory: int, key: int) -> None:
        """The same for a sector of whatever bucket of a directory."""
        node = self.nodes.get(directory)
        if node is not None and node.directory is not None:
            bucket = node.directory.places.get(key >> 3)
            if bucket is not None:
                self.refresh_space(bucket, key)

    def cross(self) -> None:
        raise NotImplementedError

    def cross_gain(self, node: Node, gained: list[tuple[int, int]]) -> None:
        raise NotImplementedError

    def cross_early(self) -> None:
        """An operation has to let the overlay cross before it adds to it.

        Not while a synchronisation writes: what that waits for would grow, so then the operation waits for its end."""
        if self.writing:
            raise NotInCore([Synchronise()])
        self.cross()


__all__ = ["Names", "bad_name"]
