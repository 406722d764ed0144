"""File contents: read without copying, write into pages of the own arena, truncate (docs/cffs.md sections 4 and 5)."""

from __future__ import annotations

import errno
import stat

from libfs.api import Attr, NotInCore, StatFs
from libfs.cffs import layout
from libfs.cffs.grouping import GROUP_BLOCKS, LARGE
from libfs.cffs.inode import Node
from libfs.cffs.removing import MAX_DYING_EXTENTS
from libfs.cffs.rename import Renaming
from libfs.cffs.requests import Fetch, Shrink
from libfs.cffs.volume import EXCLUSIVE, SHARED
from xok_host.abi.types import BLOCK, CHUNK_PAGES

_ZEROS = memoryview(bytes(1 << 20))
READ_AHEAD = 256
"""Blocks that one miss in a large file brings: 1 MiB."""
MAX_FETCH_EXTENTS = 64
PROMISED_LIMIT = 4096
"""Blocks of uncrossed contents (16 MiB); a write that finds more crosses first."""


class Files(Renaming):
    """Operations on contents and attributes."""

    # ---- attributes

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: int | None = None,
        mtime: int | None = None,
    ) -> Attr:
        node = self.nodes.get(ino) or self.node(ino)
        self.check_writable()
        self.lock(node.home >> 5, EXCLUSIVE)
        now = self.clock()
        if size is not None:
            self._truncate(node, size)
            node.mtime = now
        if mode is not None:
            node.mode = node.mode & 0o170000 | mode & 0o7777
        if uid is not None:
            node.uid = uid
        if gid is not None:
            node.gid = gid
        if atime is not None:
            node.atime = atime
        if mtime is not None:
            node.mtime = mtime
        node.ctime = now
        self.dirty[ino] = node
        return node.attributes()

    def _truncate(self, node: Node, size: int) -> None:
        if stat.S_ISDIR(node.mode):
            raise OSError(errno.EISDIR, "a directory")
        if not stat.S_ISREG(node.mode) or size < 0:
            raise OSError(errno.EINVAL, "only regular files have a size that can be set")
        if size > layout.MAX_LOGICAL * BLOCK:
            raise OSError(errno.EFBIG, "a file has at most 16 TiB")
        if size < node.size:
            extents = self.extents(node)
            keep = (size + BLOCK - 1) // BLOCK
            if self.extents_beyond(node, keep) > MAX_DYING_EXTENTS:
                raise NotInCore([Shrink(node.ino, size)])
            tail = size & (BLOCK - 1)
            if tail and (page := self._page_to_change(node, size // BLOCK)) >= 0:
                self.env.page(page)[tail:] = bytes(BLOCK - tail)
            for logical in [logical for logical in node.pages if logical >= keep]:
                self.drop_page(node, logical)
            freed = extents.cut(keep)
            if freed:
                node.lost += freed
                self.frees_pending = True
        node.size = size

    def extents_beyond(self, node: Node, keep: int) -> int:
        """How many extents a cut at block `keep` removes, as far as it matters for a transaction's size."""
        extents = self.extents(node)
        if len(extents.entries) <= MAX_DYING_EXTENTS:
            return 0
        return sum(1 for first, count, _ in extents.items() if first + count > keep)

    def drop_page(self, node: Node, logical: int) -> None:
        """Forget contents that have not crossed."""
        self.return_pages(node.pages.pop(logical))
        if not self.extents(node).find(logical)[0]:
            node.promised -= 1
            self.promised -= 1

    def _page_to_change(self, node: Node, logical: int) -> int:
        """A private page with the block's present contents; -1 for a hole.  Raises NotInCore."""
        page = node.pages.get(logical)
        if page is not None:
            return page
        db, _ = self.extents(node).find(logical)
        if not db:
            return -1
        old = self.page_of(db)
        if old < 0:
            raise NotInCore(self.data_fetches(node, logical, 1))
        self.ensure_pages(1)
        page, _ = self.take_pages(1)
        self.env.page(page)[:] = self.env.page(old)
        node.pages[logical] = page
        return page

    # ---- open files

    def open(self, ino: int) -> None:
        self.opens[ino] = self.opens.get(ino, 0) + 1

    def release(self, ino: int) -> None:
        count = self.opens.get(ino, 0)
        if count <= 1:
            node = self.nodes.get(ino)
            if node is not None and node.ghosts and node.nlink == 1:
                self.reap(node)
            self.opens.pop(ino, None)
        else:
            self.opens[ino] = count - 1

    def reap(self, node: Node) -> None:
        """The last user of a removed file lets go.  Raises NotInCore."""
        raise NotImplementedError

    # ---- reading

    def readlink(self, ino: int) -> bytes:
        node = self.nodes.get(ino) or self.node(ino)
        if not stat.S_ISLNK(node.mode):
            raise OSError(errno.EINVAL, "not a symbolic link")
        if node.inline:
            return node.inline[: node.size]
        return b"".join(self._read(node, 0, node.size))

    def read(self, ino: int, offset: int, size: int) -> list[memoryview]:
        """Up to `size` bytes from `offset` on, as views of read-only pages (zeros for holes)."""
        node = self.nodes.get(ino) or self.node(ino)
        if node.mode & 0o170000 != stat.S_IFREG:
            raise OSError(errno.EISDIR if node.is_directory else errno.EINVAL, "not a regular file")
        if not self.locks.get(node.home >> 5):
            self.lock(node.home >> 5, SHARED)
        return self._read(node, offset, size)

    def _read(self, node: Node, offset: int, size: int) -> list[memoryview]:
        end = min(offset + size, node.size)
        if end <= offset:
            return []
        extents = node.extents if node.extents is not None else self.extents(node)
        pages = node.pages
        logical = offset >> 12
        last = end - 1 >> 12
        if logical == last and pages:
            page = pages.get(logical)
            if page is not None:
                return [self.env.page(page)[offset & 4095 : (end - 1 & 4095) + 1].toreadonly()]
        # Runs of (first page or -1 for zeros, blocks).
        runs: list[tuple[int, int]] = []
        run_page, run_count = -2, 0
        lookup, key = self._lookup, self._key
        while logical <= last:
            page = pages.get(logical, -1) if pages else -1
            count = 1
            if page < 0:
                db, count = extents.find(logical)
                if db:
                    entry = lookup(key | db)
                    if entry is None or entry.flags & 11 != 1:
                        raise NotInCore(self.data_fetches(node, logical, last - logical + 1))
                    page = entry.page
                    count = 1
                elif pages:
                    count = 1
                else:
                    count = min(count, last - logical + 1)
            if page >= 0 and page == run_page + run_count and page % CHUNK_PAGES:
                run_count += 1
            elif page < 0 and run_page == -1:
                run_count += count
            else:
                if run_count:
                    runs.append((run_page, run_count))
                run_page, run_count = page, count
            logical += count
        runs.append((run_page, run_count))
        views: list[memoryview] = []
        for page, count in runs:
            if page >= 0:
                views.append(self.env.pages(page, count).toreadonly())
            else:
                while count > 0:
                    views.append(_ZEROS[: min(count, 256) << 12])
                    count -= 256
        views[0] = views[0][offset & 4095 :]
        beyond = ((last + 1) << 12) - end
        if beyond:
            views[-1] = views[-1][: len(views[-1]) - beyond]
        return views

    def data_fetches(self, node: Node, logical: int, count: int) -> list[Fetch]:
        """Requests for what is missing of a file from `logical` on, with what is worth bringing along.

        A small file brings its group: the blocks of all files of the same directory block that lie there."""
        extents = self.extents(node)
        if extents.blocks > LARGE:
            count = max(count, READ_AHEAD)
        elif self.grouping.reads_groups and extents.embedded:
            return [self._group_fetch(node, logical)]
        by_holder: dict[int, list[tuple[int, int, int]]] = {}
        total = 0
        end = logical + count
        while logical < end and total < MAX_FETCH_EXTENTS:
            db, run = extents.find(logical)
            run = min(run, end - logical)
            if db:
                block, part = self.holder(node, extents.entry_at(logical))
                by_holder.setdefault(block, []).append((db, run, part))
                total += 1
            logical += run
        return [Fetch(block, tuple(found)) for block, found in by_holder.items()]

    def _group_fetch(self, node: Node, logical: int) -> Fetch:
        block = node.ino >> 5
        wanted, _ = self.extents(node).find(logical)
        first = wanted // GROUP_BLOCKS * GROUP_BLOCKS
        found: set[tuple[int, int, int]] = {(wanted, 1, node.ino >> 2 & 7)}
        try:
            raw = bytes(self.block(block))
        except NotInCore:
            return Fetch(block, tuple(found))
        for number in range(8):
            used = raw[number * 512 + 2]
            for slot in (1, 2, 3):
                if not used >> slot & 1:
                    continue
                at = number * 512 + slot * 128
                fields = layout.INODE_STRUCT.unpack_from(raw, at)
                if fields[0] & 0o170000 != stat.S_IFREG or fields[1] & (layout.INLINE | layout.DEPTH_MASK):
                    continue
                for index in (11, 14, 17, 20):
                    count, start = fields[index + 1], fields[index + 2]
                    begin, end = max(start, first), min(start + count, first + GROUP_BLOCKS)
                    if count and begin < end and not begin <= wanted < end:
                        found.add((begin, end - begin, number))
                    elif count and begin < end:
                        found.discard((wanted, 1, number))
                        found.add((begin, end - begin, number))
        return Fetch(block, tuple(sorted(found)))

    # ---- writing

    def write(self, ino: int, offset: int, data: bytes) -> int:
        """Put `data` into the overlay; visible at once to every read.  Raises ENOSPC, EFBIG, EISDIR."""
        node = self.nodes.get(ino) or self.node(ino)
        if self.locks.get(self.rules.lock_of(self, node.home >> 5)) != EXCLUSIVE:
            self.check_writable()
            self.lock(node.home >> 5, EXCLUSIVE)
        size = len(data)
        if not size:
            return 0
        if node.mode & 0o170000 != stat.S_IFREG:
            raise OSError(errno.EISDIR if node.is_directory else errno.EINVAL, "not a regular file")
        end = offset + size
        pages = node.pages
        logical = offset >> 12
        last = end - 1 >> 12
        if logical == last:
            page = pages.get(logical)
            if page is None:
                page = self._page_to_write(node, logical, offset & 4095, size)
            at = offset & 4095
            self.env.page(page)[at : at + size] = data
        else:
            self._write_long(node, offset, data)
        if end > node.size:
            node.size = end
        node.mtime = node.ctime = self.clock()
        self.dirty[ino] = node
        return size

    def _page_to_write(self, node: Node, logical: int, at: int, size: int) -> int:
        """A private page for one block of which [at, at + size) will be written."""
        if logical >= layout.MAX_LOGICAL:
            raise OSError(errno.EFBIG, "a file has at most 16 TiB")
        extents = node.extents if node.extents is not None else self.extents(node)
        db = extents.find(logical)[0] if extents.blocks else 0
        whole = size == BLOCK or (at == 0 and logical << 12 | size >= node.size)
        if db and not whole:
            return self._page_to_change(node, logical)
        if not db:
            self.reserve(1)
            if self.promised > PROMISED_LIMIT:
                self.cross_early()
        if not self._pool:
            self.ensure_pages(1)
        page, _ = self.take_pages(1)
        if size != BLOCK:
            view = self.env.page(page)
            if at:
                view[:at] = _ZEROS[:at]
            view[at + size :] = _ZEROS[: BLOCK - at - size]
        node.pages[logical] = page
        if not db:
            node.promised += 1
            self.promised += 1
        return page

    def _write_long(self, node: Node, offset: int, data: bytes) -> None:
        """Several blocks: everything that can fail first, then whole runs of pages at once."""
        size = len(data)
        end = offset + size
        first, last = offset >> 12, end - 1 >> 12
        if last >= layout.MAX_LOGICAL:
            raise OSError(errno.EFBIG, "a file has at most 16 TiB")
        extents = self.extents(node)
        if self.promised > PROMISED_LIMIT:
            self.cross_early()
        pages = node.pages  # not before: what crosses leaves another table behind
        fresh = 0
        if extents.blocks or pages:
            for logical in range(first, last + 1):
                if logical not in pages and not extents.find(logical)[0]:
                    fresh += 1
        else:
            fresh = last - first + 1
        if fresh:
            self.reserve(fresh)
        for logical, partial in ((first, offset & 4095), (last, end & 4095 and end < node.size)):
            if partial and logical not in pages:
                db, _ = extents.find(logical)
                if db and self.page_of(db) < 0:
                    raise NotInCore(self.data_fetches(node, logical, 1))
        self.ensure_pages(last - first + 1)
        source = memoryview(data)
        done = 0
        while done < size:
            logical, at = offset + done >> 12, offset + done & 4095
            length = min(BLOCK - at, size - done)
            if length == BLOCK and logical not in pages:
                # A run of whole blocks without pages of their own.
                want = (size - done) >> 12
                if pages:
                    count = 1
                    while count < want and logical + count not in pages:
                        count += 1
                    want = count
                page, count = self.take_pages(want)
                self.env.pages(page, count)[:] = source[done : done + (count << 12)]
                for index in range(count):
                    pages[logical + index] = page + index
                done += count << 12
                continue
            page_here = pages.get(logical)
            if page_here is None:
                page_here = self._page_for_part(node, logical, at, length)
            self.env.page(page_here)[at : at + length] = source[done : done + length]
            done += length
        node.promised += fresh
        self.promised += fresh

    def _page_for_part(self, node: Node, logical: int, at: int, length: int) -> int:
        db, _ = self.extents(node).find(logical)
        page, _ = self.take_pages(1)
        view = self.env.page(page)
        if db and (at or (logical << 12 | length) < node.size):
            view[:] = self.env.page(self.page_of(db))
        else:
            view[:at] = _ZEROS[:at]
            view[at + length :] = _ZEROS[: BLOCK - at - length]
        node.pages[logical] = page
        return page

    # ---- the whole

    def statfs(self) -> StatFs:
        """Free space less what is promised.  Inodes live in directory blocks: as many as fit into free space."""
        self.count_free()
        free = max(0, self.free - self.promised)
        per_block = layout.SLOTS * layout.SECTORS
        return StatFs(BLOCK, self.nblocks, free, free, self.nblocks * per_block, free * per_block, layout.NAME_MAX)
