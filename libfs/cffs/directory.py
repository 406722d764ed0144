"""A directory in core: its table's buckets, each a dictionary of the names that a scan of its blocks found.

BUCKET-1  A loaded bucket has every visible name of its blocks: a name that is not in it does not exist.
"""

from __future__ import annotations

from libfs.cffs import layout


class Bucket:
    """One bucket: up to `layout.BUCKET` blocks from logical block `base` on."""

    __slots__ = ("away", "base", "directories", "hint", "names", "space")

    def __init__(self, base: int) -> None:
        self.base = base
        self.names: dict[bytes, int] = {}
        """Name → inode number."""
        self.directories = 0
        """How many of the names are directories'."""
        self.away: dict[bytes, int] = {}
        """Sector of the names that are not in their inode's."""
        self.space: dict[int, int] = {}
        """Sector → bytes for a name whose inode would be with it; -1: no slot."""
        self.hint = -1
        """The sector that had room last."""


class Directory:
    """What is loaded of one directory.  It is valid while the lock on the directory is held."""

    __slots__ = ("buckets", "level", "places", "writable")

    def __init__(self, level: int) -> None:
        self.level = level
        self.buckets: dict[int, Bucket] = {}
        self.places: dict[int, Bucket] = {}
        """Block → the loaded bucket that it is of."""
        self.writable = False
        """Both exclusive locks that a change of names needs are held."""

    def bases(self) -> range:
        """First logical blocks of all buckets of the table."""
        first = layout.table_base(self.level)
        return range(first, first + layout.BUCKET * layout.table_buckets(self.level), layout.BUCKET)
