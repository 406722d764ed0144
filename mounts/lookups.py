"""Lookup counts: how often the kernel holds each inode number.

FUSE's contract: a reply that names an inode adds one to its count, FORGET takes some away, and at zero the kernel
will not name it again.  The count keeps an open-unlinked or just-forgotten inode from being reused too early.
"""

from __future__ import annotations

from collections.abc import Callable


class LookupCounts:
    """Counts by inode number.  `on_zero` is called when the kernel has let go of one."""

    def __init__(self, on_zero: Callable[[int], None]) -> None:
        self._counts: dict[int, int] = {}
        self._on_zero = on_zero

    def add(self, ino: int) -> None:
        self._counts[ino] = self._counts.get(ino, 0) + 1

    def forget(self, ino: int, count: int) -> None:
        """Take `count` away.  A kernel never forgets more than it was told; if it does, the inode is simply gone."""
        left = self._counts.get(ino, 0) - count
        if left > 0:
            self._counts[ino] = left
        elif self._counts.pop(ino, None) is not None:
            self._on_zero(ino)

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, ino: int) -> bool:
        return ino in self._counts
