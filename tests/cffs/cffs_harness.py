"""A C-FFS on XN in this process, with restarts and crashes; a model of what a file system shows."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator
from typing import Any

from libfs.cffs import mkfs
from libfs.cffs.filesystem import CFFS
from libfs.cffs.grouping import Grouping
from xok_host.kernel.local import DEV, LocalXok


class Clock:
    """Strictly increasing time, XN's as well: a shared volume's methods compare the two."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000_000
        self.xok: LocalXok | None = None

    def __call__(self) -> int:
        self.now += 1_000_000
        if self.xok is not None:
            self.xok.now = self.now
            self.xok.kernel.tick(self.now)
        return self.now

    def drives(self, xok: LocalXok) -> LocalXok:
        self.xok = xok
        self()
        return xok


class Volume:
    """One volume, mounted.  Operations are called as `volume("create", ...)`: everything fetched that is asked for."""

    def __init__(
        self, nblocks: int = 4096, grouping: type[Grouping] = Grouping, *, shared: bool = False, **options: Any
    ) -> None:
        self.clock = Clock()
        self.grouping = grouping
        self.xok = self.clock.drives(LocalXok(nblocks, **options))
        self.env = self.xok.environment()
        cap = mkfs.make(self.env, DEV, "vol", shared=shared, clock=self.clock)
        self.mount(cap)

    def mount(self, cap: int | None = None) -> None:
        if cap is None:
            self.env = self.xok.environment(roots=["vol"])
            cap = self.env.caps[0].index
        self.fs = CFFS.mount(self.env, DEV, "vol", cap, clock=self.clock, grouping=self.grouping)
        self.root = self.fs.root_ino

    def __call__(self, operation: str, *args: Any, **named: Any) -> Any:
        return self.fs.complete(getattr(self.fs, operation), *args, **named)

    def remount(self) -> None:
        """Close, stop XN, start it again from the disk."""
        self.fs.close()
        assert not self.fs.errors
        self.env.close()
        self.xok.stop()
        self.xok = self.clock.drives(LocalXok(disk=self.xok.disk, format=False))
        self.mount()

    def cold(self) -> None:
        """Everything out of the caches: what follows reads the disk."""
        self.remount()

    def kill(self) -> None:
        """The libFS dies without a word; XN lives on, and another takes over."""
        self.env.close()
        self.mount()

    def crash(self, choose: Callable[[int], bool] | None = None) -> Any:
        """Power fails.  XN's report of the reconstruction; the volume is mounted again."""
        self.xok.crash(choose)
        report = self.xok.recover()
        self.mount()
        return report

    # ---- shorthand

    def listing(self, ino: int) -> dict[bytes, int]:
        entries = self.fs.complete(lambda: list(self.fs.readdir(ino, 0)))
        names = [name for name, _, _ in entries]
        assert len(names) == len(set(names)), "a name is listed twice"
        return {name: attr.ino for name, attr, _ in entries}

    def contents(self, ino: int) -> bytes:
        size = self("getattr", ino).size
        return b"".join(bytes(view) for view in self("read", ino, 0, size))

    def walk(self, ino: int | None = None, path: bytes = b"") -> Iterator[tuple[bytes, Any]]:
        """All paths with their attributes."""
        for name, child in sorted(self.listing(self.root if ino is None else ino).items()):
            attr = self("getattr", child)
            yield path + b"/" + name, attr
            if stat.S_ISDIR(attr.mode):
                yield from self.walk(child, path + b"/" + name)

    def tree(self) -> dict[bytes, Any]:
        """What a user sees: path → (kind, contents or target, nlink)."""
        seen: dict[bytes, Any] = {}
        for path, attr in self.walk():
            if stat.S_ISDIR(attr.mode):
                seen[path] = ("dir", b"", attr.nlink)
            elif stat.S_ISLNK(attr.mode):
                seen[path] = ("link", self("readlink", attr.ino), attr.nlink)
            else:
                seen[path] = ("file", self.contents(attr.ino), attr.nlink)
        return seen

    def file(self, parent: int, name: bytes, data: bytes = b"") -> int:
        ino: int = self("create", parent, name, 0o644, 0, 0).ino
        if data:
            self("write", ino, 0, data)
        return ino

    def check_disk(self) -> None:
        """XN's own reconstruction of the synchronised disk finds nothing, and no block is lost."""
        from xok_host.kernel.xn import recover

        self.fs.sync_all()
        assert not self.fs.errors
        self.xok.sync()
        report = recover.reconstruct(self.xok.disk.read_block, self.xok.disk.nblocks)
        assert report.sound, (report.violations, report.unmarked)
        assert not report.over_counts, report.over_counts
        assert not report.leaked


class ErrnoRaised:
    """`with fails(errno.ENOENT): ...`"""

    def __init__(self, *codes: int) -> None:
        self.codes = codes

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, value: object, traceback: object) -> bool:
        assert isinstance(value, OSError), f"{value!r} instead of {[errno.errorcode[c] for c in self.codes]}"
        assert value.errno in self.codes, f"{value!r} instead of {[errno.errorcode[c] for c in self.codes]}"
        return True


fails = ErrnoRaised
