"""The example file system on XN in this process, with restarts and crashes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from xok_host.kernel.local import DEV, LocalXok
from xok_host.kernel.xn import recover

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "pocketfs.py"


def load() -> ModuleType:
    """The file, as a program that anybody wrote: it is in no package."""
    spec = importlib.util.spec_from_file_location("pocketfs", SOURCE)
    assert spec is not None and spec.loader is not None
    module = sys.modules["pocketfs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pocketfs = load()


class Pocket:
    """One of them, made and mounted."""

    def __init__(self, nblocks: int = 2048, **memory: int) -> None:
        self.xok = LocalXok(nblocks, **memory)
        self.env = self.xok.environment()
        pocketfs.make(self.env, DEV, "pocket", 1000, 100)
        self.env.close()
        self.mount()

    def mount(self) -> None:
        self.env = self.xok.environment(roots=["pocket"])
        self.fs: Any = pocketfs.mount(self.env, DEV, "pocket", self.env.caps[0].index)

    def remount(self) -> None:
        """Close it, stop XN in order, start from what the disk holds."""
        self.fs.close()
        self.env.close()
        self.xok.stop()
        self.xok = LocalXok(disk=self.xok.disk, format=False)
        self.mount()

    def kill(self) -> None:
        """The libFS dies without a word, and another takes over."""
        self.env.close()
        self.mount()

    def crash(self, choose: Callable[[int], bool] | None = None) -> Any:
        """Power fails; XN's report, and the file system is mounted again."""
        self.xok.crash(choose)
        report = self.xok.recover()
        self.mount()
        return report

    def file(self, name: bytes, data: bytes = b"") -> int:
        ino: int = self.fs.create(self.fs.root_ino, name, 0o100644, 0, 0).ino
        self.fs.write(ino, 0, data)
        return ino

    def ino(self, name: bytes) -> int:
        return int(self.fs.lookup(self.fs.root_ino, name).ino)

    def contents(self, name: bytes) -> bytes:
        attr = self.fs.lookup(self.fs.root_ino, name)
        return b"".join(self.fs.read(attr.ino, 0, attr.size))

    def tree(self) -> dict[bytes, bytes]:
        """What a user sees."""
        listed = [name for name, _, _ in self.fs.readdir(self.fs.root_ino, 0)]
        assert len(set(listed)) == len(listed)
        return {name: self.contents(name) for name in listed}

    def check_disk(self) -> None:
        """XN's own reconstruction finds nothing, and every block that nothing owns is free."""
        self.fs.fsync(None)
        self.xok.sync()
        report = recover.reconstruct(self.xok.disk.read_block, self.xok.disk.nblocks)
        assert report.sound and not report.leaked, (report.violations, report.unmarked, report.leaked)
