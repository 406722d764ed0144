"""What takes several crossings and waits for the disk: requests, synchronisation, ghosts, growth.

Each is a generator of steps.  A step is a list of calls, (name, scalars, data), that go in one crossing; the generator
gets the completions.  `filesystem.py` drives them, waiting or under an event loop, one at a time; plain operations may
run between two steps, so every generator looks at the state anew after each `yield`.
"""

from __future__ import annotations

import errno
import stat
import struct
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from libfs.api import NotInCore
from libfs.cffs import layout, sector
from libfs.cffs.crossing import Crossing
from libfs.cffs.inode import Node
from libfs.cffs.requests import Fetch, FindHome, FindParent, Grow, Request, Shrink, Synchronise, TakeLock
from libfs.cffs.volume import EXCLUSIVE, SHARED, Ghost
from xok_host.abi import errors as e
from xok_host.abi.calls import MAX_EXTENTS, pack_extents

Call = tuple[str, tuple[int, ...], bytes]
Steps = Generator[list[Call], list[Any], None]

MAX_ROUNDS = 64
"""Rounds of writing and flushing until everything is durable: the depth of what waits for what."""
BATCH_EXTENTS = MAX_EXTENTS // 2
MAX_ATTEMPTS = 100
FSYNC_ROUNDS = 4
"""Rounds of writing one file before everything is written instead."""
MAX_EXTENT = 1024
"""Blocks in one extent of a write-back."""


def extents_of(blocks: Iterable[int]) -> list[tuple[int, int, int]]:
    """Sorted blocks as (first, count, 0), each within XN's bound."""
    found: list[tuple[int, int, int]] = []
    for db in sorted(blocks):
        if found and found[-1][0] + found[-1][1] == db and found[-1][1] < MAX_EXTENT:
            found[-1] = (found[-1][0], found[-1][1] + 1, 0)
        else:
            found.append((db, 1, 0))
    return found


class Settling(Crossing):
    """Everything that takes time."""

    # ---- requests

    def steps_of(self, request: Request) -> Steps:
        """How to carry out one request of a `NotInCore`."""
        if isinstance(request, Fetch):
            return self._fetch_steps([request])
        if isinstance(request, TakeLock):
            return self._lock_steps(request)
        if isinstance(request, Synchronise):
            return self.synchronise_steps()
        if isinstance(request, Grow):
            return self._grow_steps(request.ino, request.level)
        if isinstance(request, Shrink):
            return self._shrink_steps(request.ino, request.size)
        if isinstance(request, FindHome):
            return self._find_steps(request.block)
        if isinstance(request, FindParent):
            return self._find_parent_steps(request.ino)
        return self._remount_steps()

    def steps_of_all(self, requests: Sequence[Request]) -> Steps:
        """Fetches together in one crossing, the others one after another."""
        fetches = [request for request in requests if isinstance(request, Fetch)]
        if fetches:
            yield from self._fetch_steps(fetches)
        for request in requests:
            if not isinstance(request, Fetch):
                yield from self.steps_of(request)

    def until_in_core(self, operation: Any, *args: Any) -> Generator[list[Call], list[Any], Any]:
        """Run an operation, carrying out what it asks for."""
        for _ in range(MAX_ATTEMPTS):
            try:
                return operation(*args)
            except NotInCore as missing:
                yield from self.steps_of_all(missing.requests)
        raise OSError(errno.EIO, "blocks do not stay in core")

    def _fetch_steps(self, fetches: Sequence[Fetch]) -> Steps:
        calls: list[Call] = []
        for fetch in fetches:
            extents = list(fetch.extents)
            for at in range(0, len(extents), BATCH_EXTENTS):
                data = pack_extents(extents[at : at + BATCH_EXTENTS])
                calls.append(("insert_and_read", (self.dev << 56 | fetch.parent << 12,), data))
        for fetch, completion in zip(fetches, (yield calls), strict=False):
            if completion.code == e.NotInCore.code:
                yield from self._bring_parent(fetch)
            elif completion.code == e.LimitReached.code:
                yield from self.synchronise_steps()
            elif completion.code:
                raise self._failure(completion)

    def _bring_parent(self, fetch: Fetch) -> Steps:
        """The parent has left the registry; the next attempt of the operation fetches the rest."""
        if self.page_of(fetch.parent) >= 0:
            return
        if fetch.parent in self.homes:
            yield from self.steps_of(self.fetch_of(fetch.parent))
            return
        for node in list(self.nodes.values()):
            if node.extents is not None:
                for tree in node.extents.nodes():
                    if tree.block == fetch.parent:
                        holder, part = tree.holder()
                        if not holder:
                            holder, part = node.ino >> 5, node.ino >> 2 & 7
                        yield from self._fetch_steps([Fetch(holder, ((tree.block, 1, part),))])
                        return

    @staticmethod
    def _failure(completion: Any) -> OSError:
        error = e.by_code(completion.code, bytes(completion.data).decode(errors="replace"))
        return OSError(errno.EIO if isinstance(error, e.NotFound) else error.errno, str(error))  # the disk has gone

    def _remount_steps(self) -> Steps:
        (completion,) = yield [("mount", (self.dev,), self.name.encode())]
        if completion.code:
            raise self._failure(completion)

    def _find_steps(self, block: int) -> Steps:
        """Walk until `block` shows up in a directory: only names from very deep below need this."""
        yield from self._walk_until(lambda: block in self.homes, self.root_ino, self.orphans_ino)
        if block not in self.homes:
            raise OSError(errno.ESTALE, f"block {block} is in no directory")

    def _find_parent_steps(self, ino: int) -> Steps:
        yield from self._walk_until(lambda: ino in self.parents, self.root_ino)
        if ino not in self.parents:
            raise OSError(errno.ESTALE, f"directory {ino} has no name")

    def _walk_until(self, found: Callable[[], bool], *roots: int) -> Steps:
        """Look at all directories below these until what is looked for has been learnt."""
        todo = list(roots)
        seen: set[int] = set()
        while todo and not found():
            ino = todo.pop()
            if ino in seen:
                continue
            seen.add(ino)
            todo += yield from self.until_in_core(self._children, ino)

    def _children(self, ino: int) -> list[int]:
        """Directories that have a name in directory `ino`; learns its blocks."""
        node, directory = self.directory(ino)
        self._load_all(node, directory)
        found = []
        for bucket in directory.buckets.values():
            for child in bucket.names.values():
                if self.homes.get(child >> 5) is not None and self.node(child).is_directory:
                    self.parents[child] = ino
                    found.append(child)
        return found

    # ---- locks

    def _lock_steps(self, request: TakeLock) -> Steps:
        yield from self.until_in_core(self._need_block, request.block)
        held = self.locks.get(request.block, 0)
        if held >= request.mode:
            return
        da = self.dev << 56 | request.block << 12
        if held:
            # Upgrading by waiting while sharing could wait for one's own kind for ever.
            inos = self.protected_by(request.block) if self.shared else []
            self.forget_block(request.block)
            self.locks.pop(request.block, None)
            yield [("unlock", (da, 0), b"")]
            for ino in inos:
                self.on_invalidate(ino)
        (completion,) = yield [("lock", (da, request.mode), b"")]
        if completion.code == e.LimitReached.code:
            yield from self.let_go(list(self.locks)[: max(1, len(self.locks) // 2)])
            (completion,) = yield [("lock", (da, request.mode), b"")]
        if completion.code == e.NotInCore.code:
            return
        if completion.code:
            raise self._failure(completion)
        self.locks[request.block] = request.mode
        self.lock_taken = time.monotonic()

    def _need_block(self, block: int) -> None:
        if self.page_of(block) < 0 and block not in self.new_blocks:
            raise NotInCore([self.fetch_of(block)])

    def let_go(self, blocks: Sequence[int], mode: int = EXCLUSIVE) -> Steps:
        """Cross everything, then release locks (or keep shared ones, when others want to share).

        On a shared volume nothing makes ghosts meanwhile: the others would see them."""
        steps = self._let_go(blocks, mode)
        if not self.shared:
            yield from steps
            return
        self.close_directories()
        results: list[Any] | None = None
        while True:
            try:
                calls = next(steps) if results is None else steps.send(results)
            except StopIteration:
                return
            self.closing = True
            try:
                results = yield calls
            finally:
                self.closing = False

    def _let_go(self, blocks: Sequence[int], mode: int) -> Steps:
        self.cross()
        if self.ghosts or self.quarantine or self.linked:
            yield from self.synchronise_steps()
            self.cross()
        calls: list[Call] = []
        if self.shared:
            calls += self._mark_orphans()
        for block in blocks:
            held = self.locks.get(block)
            if not held:
                continue
            self.contended.add(block)
            keep = mode != EXCLUSIVE and held == EXCLUSIVE
            self.forget_block(block, readers_stay=keep)
            if keep:
                self.locks[block] = 1
            else:
                del self.locks[block]
            calls.append(("unlock", (self.dev << 56 | block << 12, int(keep)), b""))
        if calls:
            yield calls

    def _mark_orphans(self) -> list[Call]:
        """Calls that tell who mounts while nobody has the lock whether the orphan list has something of ours: then we
        share a lock on its first block, which nobody wants for himself."""
        base = self.dev << 56
        if self.orphans_lock and not self.orphans:
            block, self.orphans_lock = self.orphans_lock, 0
            return [("unlock", (base | block << 12, 0), b"")]
        node = self.nodes.get(self.orphans_ino)
        if self.orphans_lock or not self.orphans or node is None:
            return []
        self.orphans_lock, _ = self.extents(node).find(0)
        return [("lock", (base | self.orphans_lock << 12, SHARED), b"")]

    # ---- synchronisation

    def write_steps(self) -> Steps:
        """Write back all that has crossed by now and make it durable; raises the device's errors."""
        self.writing += 1
        try:
            yield from self._write_rounds(set(self.unwritten))
        finally:
            self.writing -= 1

    def _write_rounds(self, todo: set[int]) -> Steps:
        for _ in range(MAX_ROUNDS):
            if not todo:
                return
            left = len(todo)
            yield from self._write_round(todo)
            todo &= self.unwritten
            if len(todo) == left:
                yield from self._write_others()
        raise OSError(errno.EIO, "the disk does not come to rest")

    def _write_others(self) -> Steps:
        """Ours wait for what somebody else has changed, on a shared volume or before he died: write what XN lists."""
        (listed,) = yield [("list_writeable", (self.dev,), b"")]
        if listed.code:
            raise self._failure(listed)
        yield from self._write_round({db for (db,) in struct.iter_unpack("<Q", bytes(listed.data))})

    def _write_round(self, todo: set[int], sector: tuple[int, int, int] = (0, 0, 0)) -> Steps:
        """Write what may be written of these blocks, and flush; what is durable then leaves `unwritten`.

        `sector`: (block, 1, mask), only those sectors of one more block."""
        extents = extents_of(todo)
        if sector[2]:
            extents.append(sector)
        calls: list[Call] = []
        for at in range(0, len(extents), BATCH_EXTENTS):
            calls.append(("writebackv", (self.dev,), pack_extents(extents[at : at + BATCH_EXTENTS])))
        for completion in (yield calls):
            if completion.code == e.NotInCore.code:
                # Some of it was freed meanwhile; the rest of that call was not looked at.
                self.unwritten -= {db for db in todo if not self._in_registry(db)}
                return
            if completion.code not in (0, e.Tainted.code):
                raise self._failure(completion)
        (flushed,) = yield [("flush", (self.dev,), b"")]
        if flushed.code:
            raise self._failure(flushed)
        self.unwritten -= {db for db in todo if not self._dirty_in_registry(db)}

    def _in_registry(self, db: int) -> bool:
        return self._lookup(self._key | db) is not None

    def _dirty_in_registry(self, db: int) -> bool:
        entry = self._lookup(self._key | db)
        return entry is not None and bool(entry.dirty | entry.in_flight | entry.written)

    def synchronise_steps(self) -> Steps:
        """Everything that was answered becomes durable, and ghosts go."""
        for _ in range(MAX_ROUNDS):
            self.cross()
            ghosts, quarantined = list(self.ghosts), set(self.quarantine)
            recent, linked = self.recent, self.linked
            self.recent, self.linked = set(), {}
            try:
                yield from self.write_steps()
            except OSError:
                self.recent |= recent
                for ino, names in linked.items():
                    self.linked.setdefault(ino, set()).update(names)
                raise
            if not self.unwritten and not self.overlay and not self.dirty:
                self.order.clear()
            self.frees_pending = False
            self._end_quarantine(quarantined)
            ghosts += yield from self._adopt_hidden()
            moved = yield from self._settle_ghosts(ghosts)
            if not moved:
                return

    def fsync_steps(self, ino: int | None) -> Steps:
        """What one file's fsync needs: its blocks, and what XN wants written before its inode's sector.

        A name that is not durable yet, or anything unusual, makes it a synchronisation of everything."""
        self.cross()
        node = self.nodes.get(ino) if ino is not None else None
        if node is None or ino in self.recent or node.ghosts or node.is_directory or node.extents is None:
            yield from self.synchronise_steps()
            return
        self.writing += 1
        try:
            for _ in range(FSYNC_ROUNDS):
                needed, sector_bit = self._needed_by(node), 1 << (node.ino >> 2 & 7)
                entry = self._lookup(self._key | node.ino >> 5)
                if entry is None or not (entry.dirty | entry.in_flight | entry.written) & sector_bit:
                    sector_bit = 0
                if not needed and not sector_bit:
                    return
                yield from self._write_round(needed, (node.ino >> 5, 1, sector_bit))
        finally:
            self.writing -= 1
        yield from self.synchronise_steps()

    def _needed_by(self, node: Node) -> set[int]:
        """Blocks not durable yet that belong to the inodes of the node's sector."""
        needed: set[int] = set()
        for slot in (1, 2, 3):
            other = self.nodes.get(node.ino & ~3 | slot)
            if other is not None and other.extents is not None:
                needed.update(start + i for _, count, start in other.extents.items() for i in range(count))
                needed.update(tree.block for tree in other.extents.nodes())
        return needed & self.unwritten

    def _end_quarantine(self, keys: set[int]) -> None:
        """CFFS-2: the removals are durable."""
        self.quarantine -= keys
        for key in keys:
            home = self.nodes.get(self.homes.get(key >> 3, 0))
            if home is None or home.directory is None:
                continue
            bucket = home.directory.places.get(key >> 3)
            if bucket is not None:
                try:
                    bucket.space[key] = sector.space(self.sector_bytes(key))
                except NotInCore:
                    home.directory = None

    def _settle_ghosts(self, ghosts: list[Ghost]) -> Generator[list[Call], list[Any], bool]:
        """Of these ghosts, which are on disk, those go that may; what is still in use and has no name moves to the
        orphan list.  True: something has changed."""
        moved = False
        for ghost in ghosts:
            if ghost not in self.ghosts:
                continue
            node = ghost.node
            if node.nlink > node.ghosts:
                # A rename, or a link and an unlink: the other name is durable (CFFS-1).
                yield from self.until_in_core(self._drop_ghost, ghost)
                moved = True
            elif node.nlink > 1:
                # Orphan name and old name: the old one goes.
                if ghost.parent != self.orphans_ino:
                    yield from self.until_in_core(self._drop_ghost, ghost)
                    moved = True
            elif node.ino not in self.opens and not self.limbo.get(node.ino):
                yield from self.reap_steps(node)
                moved = True
            elif ghost.parent != self.orphans_ino:
                yield from self.until_in_core(self._make_orphan, node)
                moved = True
        return moved

    def _adopt_hidden(self) -> Generator[list[Call], list[Any], list[Ghost]]:
        """Hidden names that a directory scan came upon and nobody here has made become ghosts: a crash left them."""
        adopted = []
        for (directory, name), (key, ino) in list(self.hidden.items()):
            del self.hidden[directory, name]
            if (directory, name) in self.ghost_names or directory == self.orphans_ino:
                continue
            try:
                node = yield from self.until_in_core(self.node, ino)
            except OSError:
                continue
            if node.is_directory:
                yield from self._clear_removed(node)
            adopted.append(self._enlist(directory, name, key, node))
        return adopted

    def _clear_removed(self, node: Node) -> Steps:
        """A removed directory that a crash has left: that it was empty may be what the crash has lost."""
        _, directory = yield from self.until_in_core(self.directory, node.ino)
        yield from self.until_in_core(self._load_all, node, directory)
        for name in [name for bucket in directory.buckets.values() for name in bucket.names]:
            child = yield from self.until_in_core(self.lookup, node.ino, name)
            if child.mode & 0o170000 == stat.S_IFDIR:
                inner = yield from self.until_in_core(self.node, child.ino)
                yield from self._clear_removed(inner)
                yield from self.until_in_core(self.rmdir, node.ino, name)
            else:
                yield from self.until_in_core(self.unlink, node.ino, name)
        hosted = yield from self.until_in_core(self.hosted_by, node)
        if hosted:
            self.limbo[node.ino] = hosted

    def _enlist(self, directory: int, name: bytes, key: int, node: Node) -> Ghost:
        ghost = Ghost(directory, name, key, node)
        self.ghosts.append(ghost)
        self.ghost_names[directory, name] = (key, node.ino)
        node.ghosts += 1
        return ghost

    def _drop_ghost(self, ghost: Ghost) -> None:
        """The name leaves the disk; with the last one the inode dies."""
        if ghost not in self.ghosts:
            return  # a synchronisation that this had to wait for has done it
        node = ghost.node
        inode_key = node.ino >> 2
        self.lock(node.home >> 5, EXCLUSIVE)
        self.lock(ghost.parent >> 5, EXCLUSIVE)
        self.extents(node)
        self.sector(ghost.key)
        self.sector(inode_key)
        if ghost.key != inode_key:
            self.pair(ghost.key, inode_key, before=ghost.key, after=inode_key)
        self.erase(ghost.key, ghost.name, node.ino)
        self.ghosts.remove(ghost)
        self.ghost_names.pop((ghost.parent, ghost.name), None)
        self.hidden.pop((ghost.parent, ghost.name), None)
        node.ghosts -= 1
        node.nlink -= 1
        if ghost.parent == self.orphans_ino:
            self.orphans.discard(node.ino)
        if node.nlink:
            self.touch(node)
        else:
            self.die(node, away=ghost.key != inode_key)
            self.limbo.pop(node.ino, None)
        self.refresh_sector(ghost.parent, ghost.key)
        self.refresh_sector(node.home, inode_key)

    def _make_orphan(self, node: Node) -> None:
        """Another name, in the orphan list, for what has no visible one."""
        if node.ino in self.orphans:
            return
        holder, directory = self.directory_to_change(self.orphans_ino)
        name = layout.hidden_name(node.ino)
        bucket = self.bucket(holder, directory, name)
        self._add_name(holder, directory, bucket, name, node)
        key = bucket.away.pop(name, node.ino >> 2)
        del bucket.names[name]
        self.ghosts.append(Ghost(self.orphans_ino, name, key, node))
        self.ghost_names[self.orphans_ino, name] = (key, node.ino)
        node.ghosts += 1
        self.orphans.add(node.ino)

    def reap(self, node: Node) -> None:
        """The last user of a small removed file has gone: it can go at once.  Otherwise synchronisation does it."""
        if node.nlink != 1 or self.limbo.get(node.ino) or self.is_heavy(self.extents(node)):
            return
        for ghost in self.ghosts:
            if ghost.node is node:
                self._drop_ghost(ghost)
                return

    def reap_steps(self, node: Node) -> Steps:
        """Free what has neither name nor user; large files in steps."""
        ghost = next((ghost for ghost in self.ghosts if ghost.node is node), None)
        if ghost is None:
            return
        extents = yield from self.until_in_core(self.extents, node)
        if self.is_heavy(extents):
            yield from self._shrink_node(node, 0)
        yield from self.until_in_core(self._drop_ghost, ghost)

    # Cutting large files and growing directories: growth.py

    def _shrink_steps(self, ino: int, size: int) -> Steps:
        raise NotImplementedError

    def _shrink_node(self, node: Node, size: int) -> Steps:
        raise NotImplementedError

    def _grow_steps(self, ino: int, level: int) -> Steps:
        raise NotImplementedError

    # ---- after mounting

    def recover_steps(self) -> Steps:
        """Empty the orphan list: what is in it was removed, and had a user when the last mount ended."""
        if not self.writable:
            return
        node, directory = yield from self.until_in_core(self.directory, self.orphans_ino)
        if self.rules.others_have_orphans(self, node):
            return
        yield from self.until_in_core(self._load_all, node, directory)
        found = [item for item in self.hidden.items() if item[0][0] == self.orphans_ino]
        for (parent, name), (key, ino) in found:
            child = yield from self.until_in_core(self.node, ino)
            del self.hidden[parent, name]
            if child.is_directory:
                yield from self._clear_removed(child)
            self._enlist(parent, name, key, child)
            self.orphans.add(ino)
        if found:
            yield from self.synchronise_steps()


__all__ = ["Settling"]
