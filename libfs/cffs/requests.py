"""What an operation may need before it can run: carried by `NotInCore`, carried out by `CFFS.fetch` and `afetch`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fetch:
    """Blocks that `parent`'s partitions own: (first block, count, partition) each."""

    parent: int
    extents: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TakeLock:
    """A registry lock on a directory block."""

    block: int
    mode: int


@dataclass(frozen=True, slots=True)
class Synchronise:
    """Everything durable first: sectors would wait for each other, space is short, or a ghost is in the way."""


@dataclass(frozen=True, slots=True)
class Grow:
    """The directory's table needs this level (or an interrupted growth to it finished)."""

    ino: int
    level: int


@dataclass(frozen=True, slots=True)
class Shrink:
    """A file with many extents, to be cut in steps."""

    ino: int
    size: int


@dataclass(frozen=True, slots=True)
class FindHome:
    """Search the tree for the directory that owns a block: no name told its chain."""

    block: int


@dataclass(frozen=True, slots=True)
class FindParent:
    """Search the tree for the name of a directory: others may have moved it."""

    ino: int


@dataclass(frozen=True, slots=True)
class Remount:
    """The root extent left the registry."""


Request = Fetch | TakeLock | Synchronise | Grow | Shrink | FindHome | FindParent | Remount
