"""Where new blocks go: explicit grouping, and its absence for comparison (docs/cffs.md section 5).

GROUP-1  A block is chosen at most once until it has crossed or was given back (`taken`).
GROUP-2  Grouping is a preference: as long as the disk has a free block, one is found.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Protocol

from libfs.cffs import freespace

GROUP_BLOCKS = 16
"""Blocks in an explicit group: 64 KB, read and written as one request."""
MAX_RUN = 4096
"""Blocks of the longest run looked for at once."""
LARGE = 16
"""A file with more blocks than this is large: it gets runs of its own."""


class FreeMap(Protocol):
    nblocks: int
    _memory: memoryview


class Grouping:
    """Small files of one directory fill aligned groups; large files get long runs."""

    name = "explicit groups"
    reads_groups = True

    def __init__(self, bits: memoryview, nblocks: int) -> None:
        self._bits = bits
        self._nblocks = nblocks
        self.taken: set[int] = set()
        """Chosen blocks that XN's map does not show yet."""
        self._rotor = 0

    def small(self, group: int, near: int) -> tuple[int, int]:
        """A block for a small file or a directory table: (block, group to go on with).

        `group` is the number of the directory's present group (0: none yet), `near` a block to stay close to.
        """
        taken = self.taken
        if group:
            start = group * GROUP_BLOCKS
            at = start
            end = min(start + GROUP_BLOCKS, self._nblocks)
            while (at := freespace.next_free(self._bits, at, end)) >= 0:
                if at not in taken:
                    taken.add(at)
                    return at, group
                at += 1
        found = self._fresh_group((group + 1) * GROUP_BLOCKS if group else near)
        if found >= 0:
            taken.add(found)
            return found, found // GROUP_BLOCKS
        found = self._any(near)
        return found, group

    def _fresh_group(self, near: int) -> int:
        for begin, end in ((near, self._nblocks), (0, min(near + GROUP_BLOCKS, self._nblocks))):
            at = begin
            while (at := freespace.find_run(self._bits, at, end, GROUP_BLOCKS, GROUP_BLOCKS)) >= 0:
                if self.taken.isdisjoint(range(at, at + GROUP_BLOCKS)):
                    return at
                at += GROUP_BLOCKS
        return -1

    def _any(self, near: int) -> int:
        for begin, end in ((near, self._nblocks), (0, min(near, self._nblocks))):
            at = begin
            while (at := freespace.next_free(self._bits, at, end)) >= 0:
                if at not in self.taken:
                    self.taken.add(at)
                    return at
                at += 1
        raise OSError(errno.ENOSPC, "no free block")

    def large(self, near: int, count: int) -> Iterator[tuple[int, int]]:
        """Runs (start, blocks) for a large file, as few as possible, near `near` if that is free."""
        taken = self.taken
        want = min(count, MAX_RUN)
        if not near:
            near = self._rotor
        while count:
            want = min(want, count)
            start = self._run(near, want)
            if start < 0:
                if want == 1:
                    raise OSError(errno.ENOSPC, "no free block")
                want //= 2
                continue
            taken.update(range(start, start + want))
            yield start, want
            count -= want
            near = self._rotor = start + want

    def _run(self, near: int, want: int) -> int:
        for begin, end in ((near, self._nblocks), (0, min(near + want, self._nblocks))):
            at = begin
            while (at := freespace.find_run(self._bits, at, end, want, 1)) >= 0:
                clash = self.taken.intersection(range(at, at + want)) if self.taken else ()
                if not clash:
                    return at
                at = max(clash) + 1
        return -1


class Scattered(Grouping):
    """No grouping: every small block is the next free one after a rotor that all directories share."""

    name = "scattered"
    reads_groups = False

    def small(self, group: int, near: int) -> tuple[int, int]:
        found = self._any(self._rotor)
        self._rotor = found + 1
        return found, group
