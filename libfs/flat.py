"""A base for a libFS that is one directory with regular files in it: names, and who may have them.

A subclass has `root_ino`, `name_max` and `getattr`, and writes what changes; here is what it would have to look up and
to refuse.  It alone changes `names`, when its change is made.

FLAT-1  A check has no effect, and comes before any: `check_new` first in `create`, `check_rename` first in `rename`.
FLAT-2  `names` has what a user sees.  The root may be in it under a name with a slash, which is never listed or found.
FLAT-3  A directory is listed in the order of inode numbers, which are its cookies: whatever is created or removed
        meanwhile, nothing is listed twice, and what is there throughout is listed once.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

from libfs.api import RENAME_NOREPLACE, Attr, Synchronous, refusal


class Flat(Synchronous):
    """One directory."""

    name_max: int
    """Bytes of the longest name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[bytes, int] = {}
        """Name → inode number."""

    def find(self, name: bytes) -> int:
        """The inode number.  Raises ENOENT."""
        if name not in self.names:
            raise refusal(errno.ENOENT)
        return self.names[name]

    def lookup(self, parent: int, name: bytes) -> Attr:
        return self.getattr(self.find(name))

    def readdir(self, ino: int, cookie: int) -> Iterator[tuple[bytes, Attr, int]]:
        """FLAT-3."""
        for child, name in sorted((child, name) for name, child in self.names.items()):
            if child > cookie and child != self.root_ino:
                yield name, self.getattr(child), child

    def check_new(self, name: bytes, mode: int) -> None:
        """Whether a file may be created.  Raises EEXIST, EPERM for what is no regular file, ENAMETOOLONG."""
        if name in self.names:
            raise refusal(errno.EEXIST)
        if not stat.S_ISREG(mode):
            raise refusal(errno.EPERM)
        self._check_length(name)

    def check_rename(self, name: bytes, new_name: bytes, flags: int) -> tuple[int, int | None]:
        """What `name` is, and what its new name is now, if anything; both may be the same.

        Raises ENOENT, EINVAL for flags other than RENAME_NOREPLACE, ENAMETOOLONG, EEXIST."""
        found = self.find(name)
        if flags & ~RENAME_NOREPLACE:
            raise refusal(errno.EINVAL)
        self._check_length(new_name)
        if flags and new_name in self.names:
            raise refusal(errno.EEXIST)
        return found, self.names.get(new_name)

    def _check_length(self, name: bytes) -> None:
        if len(name) > self.name_max:
            raise refusal(errno.ENAMETOOLONG)
