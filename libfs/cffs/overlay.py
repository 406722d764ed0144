"""The run-ahead overlay: changed sectors above the registry's read-only pages, and what waits for what.

OVERLAY-1  A sector is here exactly if it was changed since it last crossed; every reader looks here first.
OVERLAY-2  `links` are the sectors that operations have changed together with this one, directly or not; all share the
           one set.  They cross in one transaction, so there is a bound on what they weigh.
OVERLAY-3  `waits` over-approximates XN's order on sectors since the last synchronisation: without a cycle here there is
           none in XN (CFFS-3).
"""

from __future__ import annotations

from libfs.cffs.extents import Lost

MAX_WEIGHT = 40
"""Operations that linked sectors may come to before they have to cross, data pages not counted."""
NODE_WEIGHT = 9


class Sector:
    """A changed sector."""

    __slots__ = ("data", "frees", "key", "links", "nodes_freed")

    def __init__(self, key: int, data: bytearray) -> None:
        self.key = key
        self.data = data
        self.frees: list[tuple[int, int, int, int, int]] = []
        """Extents of inodes that died here: `extents.Lost` and their type."""
        self.nodes_freed: list[tuple[Lost, int]] = []
        """Extent nodes of inodes that died here, and their type."""
        self.links: set[int] | None = None

    def weight(self) -> int:
        """About how many operations it takes to cross."""
        return 2 + len(self.frees) + NODE_WEIGHT * len(self.nodes_freed)


class Order:
    """Which sector's write must come after which other's, as XN will see it."""

    def __init__(self) -> None:
        self._waits: dict[int, set[int]] = {}
        """Sector → sectors that must be durable first."""
        self._children: dict[int, list[int]] = {}
        """Sector → directory blocks that it came to own."""
        self._holder: dict[int, int] = {}
        """Block → the sector that came to own it."""
        self._waiting_in: dict[int, set[int]] = {}
        """Block → its sectors that wait for something."""

    def add_child(self, key: int, block: int) -> None:
        """A sector has come to own a directory block: it waits for all of that."""
        self._children.setdefault(key, []).append(block)
        self._holder[block] = key
        self._waiting_in.setdefault(key >> 3, set()).add(key)

    def allows(self, key: int, before: int) -> bool:
        """Whether `key` may wait for `before` without a circle."""
        return not any(self._reaches(first, key) for first in self._edges(key, before))

    def add_wait(self, key: int, before: int) -> None:
        """Sector `key` waits for `before`."""
        for first in {before, *self._edges(key, before)} - {key}:
            self._waits.setdefault(key, set()).add(first)
            self._waiting_in.setdefault(key >> 3, set()).add(key)

    def _edges(self, key: int, before: int) -> list[int]:
        """What the wait comes to: `before`, and while its block is new the old sector that the block hangs from: any of
        those above it, since some of the blocks may have reached the disk by now.

        What hangs below a sector needs not wait for it: nothing can find it before that sector is written."""
        above = self._above(key)
        return [first for first in (before, *self._above(before)) if first not in above and first != key]

    def _above(self, key: int) -> list[int]:
        """The sectors from which a sector in a new block hangs, the nearest first."""
        found: list[int] = []
        holder = self._holder.get(key >> 3)
        while holder is not None and holder not in found:
            found.append(holder)
            holder = self._holder.get(holder >> 3)
        return found

    def _reaches(self, start: int, goal: int) -> bool:
        """Whether `start` waits, directly or not, for `goal`."""
        seen = set()
        stack = [start]
        while stack:
            key = stack.pop()
            if key == goal:
                return True
            if key in seen:
                continue
            seen.add(key)
            stack.extend(self._waits.get(key, ()))
            for block in self._children.get(key, ()):
                if goal >> 3 == block:
                    return True
                stack.extend(self._waiting_in.get(block, ()))
        return False

    def clear(self) -> None:
        """All that was recorded is durable."""
        self._waits.clear()
        self._children.clear()
        self._holder.clear()
        self._waiting_in.clear()
