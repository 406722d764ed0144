"""Rename, which must lose nothing in a crash at any write (docs/cffs.md, CFFS-1).

Three ways, the best that is possible: inside one sector, atomic; of an inode that nothing on disk knows yet, directly;
or with a second name first, the old one becoming a ghost.  A name that is replaced goes in the same write if the new
entry fits into its sector, and otherwise stays as a ghost with an older version.
"""

from __future__ import annotations

import errno

from libfs.api import RENAME_EXCHANGE, RENAME_NOREPLACE, NotInCore
from libfs.cffs import layout, sector
from libfs.cffs.directory import Bucket, Directory
from libfs.cffs.inode import Node
from libfs.cffs.names import NAME_MAX, bad_name
from libfs.cffs.removing import Removing
from libfs.cffs.requests import FindParent, Synchronise
from libfs.cffs.volume import EXCLUSIVE

_HIDDEN_BYTES = len(layout.hidden_name(0))


class Renaming(Removing):
    """The rename operation."""

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """POSIX rename; `flags` may have RENAME_NOREPLACE, or RENAME_EXCHANGE where both names are in one sector."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise OSError(errno.EINVAL, "unknown flags")
        old, old_directory = self.directory_to_change(parent)
        new, new_directory = self.directory_to_change(new_parent)
        if not 0 < len(new_name) <= NAME_MAX or new_name[0] == 0 or b"/" in new_name:
            raise bad_name(new_name)
        source = self.bucket(old, old_directory, name)
        ino = source.names.get(name)
        if ino is None:
            raise OSError(errno.ENOENT, "no such file")
        child = self.node(ino)
        target = self.bucket(new, new_directory, new_name)
        present = target.names.get(new_name)
        victim = self.node(present) if present is not None else None
        if flags & RENAME_EXCHANGE:
            if victim is None:
                raise OSError(errno.ENOENT, "nothing to exchange with")
            self._exchange(old, source, name, child, new, target, new_name, victim)
            return
        if victim is not None:
            if flags & RENAME_NOREPLACE:
                raise OSError(errno.EEXIST, "the name exists")
            if victim is child:
                return
            if child.is_directory and not victim.is_directory:
                raise OSError(errno.ENOTDIR, "a directory cannot replace a file")
            if victim.is_directory and not child.is_directory:
                raise OSError(errno.EISDIR, "a file cannot replace a directory")
            if victim.is_directory:
                self._check_empty(victim)
            elif self.must_stay(victim, new_parent, new_name):
                raise NotInCore([Synchronise()])
        if child.is_directory and parent != new_parent:
            self._check_not_below(child.ino, new_parent)
            if any(ghost.node.is_directory and ghost.parent != self.orphans_ino for ghost in self.ghosts):
                # On the disk a directory is still at an old name, too: with that one this could close a circle.
                # (In the orphan list are empty ones, for as long as they host inodes.)
                raise NotInCore([Synchronise()])
        if parent != new_parent or name != new_name:
            self._move(old, source, name, child, new, new_directory, target, new_name, victim)
        now = self.clock()
        if child.is_directory:
            self.parents[ino] = new_parent
            old.size = max(0, old.size - 1)
            new.size += 1
            source.directories -= 1
            target.directories += 1
        old.mtime = old.ctime = new.mtime = new.ctime = child.ctime = now
        self.touch(old)
        self.touch(new)
        self.touch(child)

    def _check_not_below(self, ino: int, directory: int) -> None:
        """EINVAL if `directory` is `ino` or below it; on an ordinary volume as far up as parents have been seen: what
        the kernel asks for it has looked at itself."""
        while directory != self.root_ino:
            if directory == ino:
                raise OSError(errno.EINVAL, "a directory cannot move into itself")
            following = self.parents.get(directory)
            if following is None and self.shared:
                raise NotInCore([FindParent(directory)])
            if following is None:
                return
            directory = following

    def _move(
        self,
        old: Node,
        source: Bucket,
        name: bytes,
        child: Node,
        new: Node,
        new_directory: Directory,
        target: Bucket,
        new_name: bytes,
        victim: Node | None,
    ) -> None:
        inode_key = child.ino >> 2
        key = source.away.get(name, inode_key)
        self.lock(child.home >> 5, EXCLUSIVE)
        if self.ghost_names and ((new.ino, new_name) in self.ghost_names or (old.ino, name) in self.ghost_names):
            raise NotInCore([Synchronise()])
        if self.rules.crosses_before_name(new.ino, new_name):
            self.cross_early()
        victim_key = key
        if victim is not None:
            victim_key = target.away.get(new_name, victim.ino >> 2)
        data = self.sector(key).data
        if not sector.find_of(data, name, key, child.ino):
            raise OSError(errno.EIO, "a directory entry is not where it was")
        grows = len(new_name) - len(name) + (_HIDDEN_BYTES if victim is not None else 0)
        inside = source is target and victim_key == key and sector.room_without_slot(data) >= grows
        version = None
        prefer = -1
        if not inside and victim is None:
            self._place_for_name(new, new_directory, target, new_name, child)
        if victim is not None:
            if inside or self._fits_instead(new, new_name, child, victim, victim_key):
                prefer = victim_key
                if not inside:
                    self.lighten(prefer, inode_key, victim.ino >> 2)
                if not inside and prefer != inode_key and not self.order.allows(prefer, inode_key):
                    raise NotInCore([Synchronise()])
                self._replace(new, target, new_name, victim)
                if (new.ino, new_name) in self.ghost_names:
                    raise NotInCore([Synchronise()])
            else:
                version = self._replace_elsewhere(new, new_directory, target, new_name, child, victim, victim_key)
        if inside:
            # One sector: atomic, and the inode's count stays as it is.
            data = self.sector(key).data
            at = sector.find_of(data, name, key, child.ino)
            slot = data[at + 1] >> 4 & 3
            _, chain = sector.target(data, at, key)
            sector.remove(data, at)
            sector.add(data, new_name, child.mode >> 12, slot, child.ino, chain)
            self.rules.name_taken(old.ino, name)
            del source.names[name]
            source.names[new_name] = child.ino
            self.recent.add(child.ino)
            if source.away.pop(name, None) is not None:
                source.away[new_name] = key
            self.refresh_space(source, key)
            return
        if not child.crossed and key == inode_key and not child.ghosts:
            # Nothing on disk knows the inode yet: its only name may simply be elsewhere.
            self._add_name(new, new_directory, target, new_name, child, prefer, version)
            self.erase(key, name, child.ino)
            child.nlink -= 1
            del source.names[name]
            self.refresh_space(source, key)
            return
        self._add_name(new, new_directory, target, new_name, child, prefer, version)
        self._ghost(old, source, name, key, child, name)

    def _fits_instead(self, new: Node, name: bytes, child: Node, victim: Node, key: int) -> bool:
        """Whether the new entry fits into the sector `key` of the one it replaces, for then one write does both.

        One of the inodes must be there too: a name that must go before one count falls, and come after another has
        risen, could have to wait for itself."""
        data = self.sector(key).data
        if victim.is_directory or key not in (child.ino >> 2, victim.ino >> 2):
            return False
        away = key != child.ino >> 2
        need = sector.entry_bytes(name, away, self.chain_of(new.ino, child) if away else b"")
        if victim.nlink == 1:
            need += sector.entry_bytes(b"", key != victim.ino >> 2) + _HIDDEN_BYTES + 8 * layout.CHAIN_MAX
        return (
            sector.room_without_slot(data) + sector.size_at(data, sector.find_of(data, name, key, victim.ino)) >= need
        )

    def _replace_elsewhere(
        self,
        new: Node,
        directory: Directory,
        target: Bucket,
        name: bytes,
        child: Node,
        victim: Node,
        key: int,
    ) -> int:
        """The new entry will be in another sector: the old one stays until that is durable, as a ghost, and a reader
        that sees both goes by the version returned (bits of the entry's kind)."""
        place, _ = self._place_for_name(new, directory, target, name, child)
        if place != child.ino >> 2 and not self.order.allows(place, child.ino >> 2):
            raise NotInCore([Synchronise()])
        self.extents(victim)
        self.lock(victim.home >> 5, EXCLUSIVE)
        hosted = self.hosted_by(victim) if victim.is_directory else None
        if hosted:
            self.limbo[victim.ino] = hosted
        data = self.sector(key).data
        kind = data[sector.find_of(data, name, key, victim.ino) + 1]
        self._ghost(new, target, name, key, victim, name)
        if victim.is_directory:
            new.size = max(0, new.size - 1)
            target.directories -= 1
        victim.ctime = self.clock()
        return (kind >> layout.VERSION_SHIFT) + 1 << layout.VERSION_SHIFT & 0xC0

    def _replace(self, new: Node, target: Bucket, name: bytes, victim: Node) -> None:
        """The name that a rename replaces, in the sector where the new one will be."""
        if victim.is_directory:
            self._remove_directory(new, target, name, victim)
            new.size = max(0, new.size - 1)
            target.directories -= 1
        else:
            self._remove_name(new, target, name, victim)
        victim.ctime = self.clock()
        self.touch(new)

    def _exchange(
        self,
        old: Node,
        source: Bucket,
        name: bytes,
        child: Node,
        new: Node,
        target: Bucket,
        new_name: bytes,
        other: Node,
    ) -> None:
        if child is other:
            return
        keys = source.away.get(name, child.ino >> 2), target.away.get(new_name, other.ino >> 2)
        if keys[0] != keys[1] or source is not target or child.is_directory != other.is_directory:
            raise OSError(errno.EINVAL, "names in different sectors are not exchanged")
        data = self.sector(keys[0]).data
        entries = []
        for text, node in ((name, child), (new_name, other)):
            at = sector.find_of(data, text, keys[0], node.ino)
            ino, chain = sector.target(data, at, keys[0])
            entries.append((data[at + 1] & 0xF, data[at + 1] >> 4 & 3, ino, chain))
            sector.remove(data, at)
        for text, (kind, slot, ino, chain) in zip((new_name, name), entries, strict=True):
            sector.add(data, text, kind, slot, ino, chain)
            source.names[text] = ino
            self.recent.add(ino)
            if slot:
                source.away.pop(text, None)
            else:
                source.away[text] = keys[0]
        now = self.clock()
        old.mtime = old.ctime = child.ctime = other.ctime = now
        for node in (old, child, other):
            self.touch(node)
