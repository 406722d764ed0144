"""What must hold of a disk after a power failure, whatever the failure was.

CHECK-1  Reconstruction finds every invariant of XN: nothing owned twice, nothing in use that the free map shows as
         free, no reference into nothing, no count below its references, every type known.
CHECK-2  No block that anybody owns shows what was on the disk before it was given out.
CHECK-3  Each C-FFS shows what its model allows (crash_model), read from the raw image; no data block of one holds
         bytes of another.  Of the toy file system: what a pointer leads to is what it was made for.
CHECK-4  Where the reconstruction's result is a new one, and of the others every `mount_every`th: the repaired disk
         starts, is clean and has lost no block, a fresh C-FFS shows the same, and can be written and emptied; what
         it leaves is sound.
CHECK-5  All that is so as well when the crashed disk is used without a walk, with the free map that it holds; only
         blocks may be lost then and counts be too high, until it is walked.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from crash_model import World
from crash_reader import Found, Reader
from crash_record import CHUNKS, FOREIGN

from libfs.cffs.filesystem import CFFS
from xok_host.abi.types import BLOCK
from xok_host.kernel.local import DEV, LocalXok, RamDisk
from xok_host.kernel.xn import catalogue, recover, types

MOUNT_EVERY = 16
LATER = 1_800_000_000_000_000_000
"""When a volume is mounted after a crash."""


@contextmanager
def remembered() -> Iterator[None]:
    """Parsing a template or a catalogue sector gives the same for the same bytes: done once for all images."""
    load, unpack, import_template = types.load, catalogue.unpack_catalogue_sector, types.import_template
    types.load = lru_cache(64)(load)
    types.import_template = lru_cache(64)(import_template)
    unpack_once = lru_cache(512)(lambda raw: unpack(raw))
    catalogue.unpack_catalogue_sector = lambda raw: unpack_once(bytes(raw))
    try:
        yield
    finally:
        types.load, catalogue.unpack_catalogue_sector, types.import_template = load, unpack, import_template


def reconstructed(read_block: Callable[[int], bytes], nblocks: int) -> recover.Report:
    """CHECK-1."""
    report = recover.reconstruct(read_block, nblocks)
    assert report.sound, ([str(violation) for violation in report.violations], report.unmarked)
    return report


class Checker:
    """Checks images of one disk.  `worlds` and `toys` are what was on it when the power failed."""

    def __init__(self, nblocks: int, worlds: list[World], toys: list[Any] = (), *, mount_every: int = MOUNT_EVERY):  # type: ignore[assignment]
        self.nblocks = nblocks
        self.names = [world.name for world in worlds]
        self.tags = {world.name: world.tag for world in worlds}
        self.toys = list(toys)
        self.mount_every = mount_every
        self._count = 0
        self._results: set[Any] = set()
        self._used = ((1 << nblocks) - 1) & ~1

    def __call__(self, image: bytearray, expect: Any) -> bool:
        """Raises AssertionError; whether the image was mounted, too."""

        def read_block(db: int) -> bytes:
            return bytes(image[db * BLOCK : (db + 1) * BLOCK])

        report = reconstructed(read_block, self.nblocks)
        self._nothing_foreign(image, report)
        for name in self.names:
            entry = report.catalogue.get(name)
            assert entry is not None, f"volume {name} is gone"
            view = Reader(read_block, entry.db).view()
            self._of(expect, name).check(view)
            self._nothing_of_others(name, view, image)
        for toy in self.toys:
            toy.check(read_block, report, self._of(expect, toy.name))
        result = (
            tuple(sorted(report.trees.items())),
            report.leaked,
            report.free,
            tuple(report.over_counts),
            bytes(report.bits[: self.nblocks // 8]),
        )
        self._count += 1
        if result in self._results and self._count % self.mount_every:
            return False
        self._results.add(result)
        self.mounted(image, expect)
        self.unwalked(image, expect)
        return True

    @staticmethod
    def _of(expect: Any, name: str) -> Any:
        return expect.parts[name]

    def _nothing_foreign(self, image: bytearray, report: recover.Report) -> None:
        """CHECK-2."""
        bits = report.bits
        for db in range(report.superblock.first, self.nblocks - 1):
            if bits[db >> 3] >> (db & 7) & 1:
                at = image.find(FOREIGN, db * BLOCK, (db + 1) * BLOCK)
                assert at < 0, f"block {db} is in use and shows somebody else's bytes at {at - db * BLOCK}"

    def _nothing_of_others(self, name: str, view: dict[bytes, Found], image: bytearray) -> None:
        """CHECK-3: in whole blocks, whatever the size of the file says."""
        others = [b"%-8s " % tag for other, tag in self.tags.items() if other != name]
        for path, found in view.items():
            for db in found.blocks:
                for tag in others:
                    at = image.find(tag, db * BLOCK, (db + 1) * BLOCK)
                    assert at < 0, f"{name}: {path!r} has another volume's bytes in block {db}"

    # ---- CHECK-4

    def mounted(self, image: bytes | bytearray, expect: Any) -> None:
        disk = RamDisk(self.nblocks)
        disk.data[:] = disk.durable[:] = image
        xok = start(disk)
        report = reconstructed(disk.read_block, self.nblocks)
        if not self.toys:  # what XN has of its own accord in flux after a start is nothing
            assert not report.leaked and not report.unmarked
        over_counts = bool(report.over_counts)
        self._used_and_emptied(xok, disk, expect, report, over_counts)
        report = reconstructed(disk.read_block, self.nblocks)
        assert over_counts or not report.over_counts
        assert not report.leaked, f"{report.leaked} blocks are lost"

    def _used_and_emptied(
        self, xok: LocalXok, disk: RamDisk, expect: Any, report: recover.Report, over_counts: bool
    ) -> None:
        for name in self.names:
            fs = mount(xok, name)
            self._of(expect, name).check(view_of(fs))
            use_and_empty(fs)
            root = report.catalogue.get(name)
            assert root is not None
            reader = Reader(disk.read_block, root.db)
            assert not reader.all_names(reader.root_ino), "an emptied volume has names"
            if not over_counts:
                assert not reader.all_names(reader.orphans_ino), "the orphan list is not empty"
            fs.close()
            assert not fs.errors
            fs.env.close()
        xok.sync()

    # ---- CHECK-5

    def unwalked(self, image: bytes | bytearray, expect: Any) -> None:
        disk = RamDisk(self.nblocks)
        disk.data[:] = disk.durable[:] = image
        xok = start(disk, walk=False)
        before = reconstructed(disk.read_block, self.nblocks)
        self._used_and_emptied(xok, disk, expect, before, bool(before.over_counts))
        assert reconstructed(disk.read_block, self.nblocks).leaked <= before.leaked, "blocks are lost"
        xok.stop()
        walked = start(disk)
        assert walked.kernel.device(DEV).superblock.surplus == before.superblock.surplus, (
            "an orderly stop proves nothing"
        )
        assert not walked.recover().violations and not walked.kernel.device(DEV).superblock.surplus
        assert not reconstructed(disk.read_block, self.nblocks).leaked


def start(disk: RamDisk, *, walk: bool = True) -> LocalXok:
    """XN on a disk as a crash left it."""
    xok = LocalXok(disk=disk, format=False, max_chunks=CHUNKS, entries=1 << 10)
    if not xok.started:
        if walk:
            xok.recover()
        else:
            xok.resume()
        assert xok.started
    return xok


def mount(xok: LocalXok, name: str) -> CFFS:
    env = xok.environment(roots=[name], name=name)
    now = [LATER]

    def clock() -> int:
        now[0] += 1 << 20
        return now[0]

    return CFFS.mount(env, DEV, name, env.caps[0].index, clock=clock)


def listing(fs: CFFS, directory: int) -> dict[bytes, int]:
    entries = fs.complete(lambda: list(fs.readdir(directory, 0)))
    names = [name for name, _, _ in entries]
    assert len(names) == len(set(names)), f"a name is listed twice: {names}"
    return {name: attr.ino for name, attr, _ in entries}


def view_of(fs: CFFS) -> dict[bytes, Found]:
    """What the library's users see, as the reader gives it."""
    seen: dict[bytes, Found] = {}
    todo = [(b"", fs.root_ino)]
    while todo:
        path, directory = todo.pop()
        for name, ino in listing(fs, directory).items():
            attr = fs.complete(fs.getattr, ino)
            content = b""
            if stat.S_ISREG(attr.mode):
                content = b"".join(bytes(part) for part in fs.complete(fs.read, ino, 0, attr.size))
            elif stat.S_ISLNK(attr.mode):
                content = fs.complete(fs.readlink, ino)
            at = path + b"/" + name
            seen[at] = Found(
                (ino, attr.generation), attr.mode, (attr.uid, attr.gid), attr.mtime_ns, attr.nlink, content
            )
            if stat.S_ISDIR(attr.mode):
                todo.append((at, ino))
    return seen


def use_and_empty(fs: CFFS) -> None:
    """A new file is written, made durable and read back; then everything is removed."""
    ino = fs.complete(fs.create, fs.root_ino, b"after the crash", 0o600, 0, 0).ino
    fs.complete(fs.write, ino, 0, b"new" * 2000)
    fs.fsync(ino)
    assert b"".join(bytes(part) for part in fs.complete(fs.read, ino, 0, 6000)) == b"new" * 2000
    remove_all(fs, fs.root_ino)
    fs.sync_all()
    assert not fs.errors, fs.errors
    assert not listing(fs, fs.root_ino)


def remove_all(fs: CFFS, directory: int) -> None:
    for name, ino in listing(fs, directory).items():
        if stat.S_ISDIR(fs.complete(fs.getattr, ino).mode):
            remove_all(fs, ino)
            fs.complete(fs.rmdir, directory, name)
        else:
            fs.complete(fs.unlink, directory, name)
