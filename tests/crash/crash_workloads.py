"""Small runs, each about one thing that a file system does.  A workload is a generator: it yields after each operation,
and its driver decides at which of these points something is made durable, and how (`Plan`).
"""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from crash_model import Inode, World
from crash_record import RecordingDisk, RecordingXok
from crash_toy import ToyWorld

NBLOCKS = 128

Point = bytes | None | Callable[[], None]
"""What an fsync at that point would be of: a path of the first volume; None: everything of it; or what to call."""
Steps = Iterator[Point]


_known: dict[Any, int] = {}


@dataclass(frozen=True, eq=False, slots=True)
class Together:
    """What is expected of all that is on one disk; `number` is equal for equal expectations."""

    number: int
    parts: dict[str, Any]


class Stage:
    """One disk with volumes on it; everything on it reports here what may be found."""

    def __init__(self, names: tuple[str, ...] = ("vol",), seed: int = 0, toy: bool = False) -> None:
        self.disk = RecordingDisk(NBLOCKS)
        self.xok = RecordingXok(self.disk, shuffle=random.Random(seed) if seed else None)
        self.worlds: list[World] = []
        self.toys: list[ToyWorld] = []
        self.parts: dict[str, Any] = {}
        for name in names:
            self.worlds.append(World(self.xok, name, lambda promise, name=name: self.on_mark(name, promise)))
        if toy:
            self.toys.append(ToyWorld(self.xok, "toy", lambda promise: self.on_mark("toy", promise)))

    @property
    def world(self) -> World:
        return self.worlds[0]

    def on_mark(self, name: str, promise: bool) -> None:
        if self.disk.recording:
            found = next(part for part in (*self.worlds, *self.toys) if part.name == name)
            self.parts = {**self.parts, name: found.expect()}
            key = tuple(part.key() for part in self.parts.values())
            self.disk.mark(Together(_known.setdefault(key, len(_known) + 1), self.parts), promise)

    def record(self) -> None:
        """All is durable: what follows is looked at."""
        for world in self.worlds:
            world.sync()
        for toy in self.toys:
            toy.promise()
        self.xok.sync()
        self.image = self.disk.record()
        parts = (*self.worlds, *self.toys)
        self.parts = {part.name: part.expect() for part in parts[:-1]}
        self.on_mark(parts[-1].name, True)


# ---- what is done


def create(stage: Stage) -> Steps:
    w = stage.world
    w.create(b"/before", 3000)
    stage.record()
    w.create(b"/a", 100)
    yield b"/a"
    w.create(b"/b", 5000)
    yield b"/b"
    w.create(b"/" + b"long" * 30, 9000)
    yield None
    w.symlink(b"/s", b"before")
    w.create(b"/empty")
    yield b"/empty"


def append(stage: Stage) -> Steps:
    w = stage.world
    w.create(b"/log", 700)
    w.create(b"/other", 6000)
    stage.record()
    for size in (400, 3500, 9000, 100):
        w.append(b"/log", size)
        yield b"/log"


def overwrite(stage: Stage) -> Steps:
    w = stage.world
    w.create(b"/f", 10000)
    w.create(b"/g", 4096)
    stage.record()
    w.write(b"/f", 0, 4096)
    yield b"/f"
    w.write(b"/f", 4000, 600)
    w.write(b"/g", 100, 50)
    yield b"/g"
    w.write(b"/f", 30000, 5000)
    yield b"/f"
    w.write(b"/f", 12288, 8192)
    w.chmod(b"/g", 0o600)
    yield b"/g"


def rename_over(stage: Stage) -> Steps:
    w = stage.world
    w.mkdir(b"/d")
    w.create(b"/conf", 5000)
    w.create(b"/d/conf", 3000)
    stage.record()
    w.create(b"/conf.new", 6000)
    yield b"/conf.new"
    w.rename(b"/conf.new", b"/conf")
    yield b"/conf"
    w.create(b"/tmp", 2000)
    w.rename(b"/tmp", b"/d/conf")
    yield b"/d/conf"
    w.rename(b"/d", b"/e")
    yield b"/e"
    w.rename(b"/e/conf", b"/moved")
    yield b"/moved"


def rename_between_sectors(stage: Stage) -> Steps:
    """Names of one directory in several sectors; files whose inodes are where their names have left."""
    w = stage.world
    w.mkdir(b"/d")
    for number in range(7):
        w.create(b"/n%d" % number, 600)
    for number in (0, 3):
        w.rename(b"/n%d" % number, b"/d/away%d" % number)
    stage.record()
    w.rename(b"/d/away0", b"/n4")
    yield b"/n4"
    w.rename(b"/d/away3", b"/n5")
    yield b"/n5"
    w.rename(b"/n4", b"/d/x")
    w.rename(b"/n5", b"/n1")
    yield b"/n1"
    w.rename(b"/n6", b"/d/x")
    yield b"/d"


def hard_link(stage: Stage) -> Steps:
    w = stage.world
    w.mkdir(b"/d")
    w.create(b"/a", 5000)
    stage.record()
    w.link(b"/a", b"/d/b")
    yield b"/a"
    w.link(b"/a", b"/c")
    yield b"/c"
    w.unlink(b"/a")
    yield b"/c"
    w.write(b"/c", 0, 300)
    w.unlink(b"/d/b")
    yield b"/c"
    w.unlink(b"/c")
    yield None


def link_and_unlink(stage: Stage) -> Steps:
    """Moving as programs did before rename: the new name is linked, the old one goes, and nobody waits for a disk."""
    w = stage.world
    w.mkdir(b"/d")
    for number in range(4):
        w.create(b"/f%d" % number, 3000)
    w.create(b"/d/x", 700)
    stage.record()
    w.link(b"/f0", b"/d/moved")
    w.unlink(b"/f0")
    yield b"/d/moved"
    w.link(b"/f1", b"/" + b"long" * 40)
    w.unlink(b"/f1")
    w.link(b"/" + b"long" * 40, b"/d/again")
    yield b"/d/again"
    w.unlink(b"/" + b"long" * 40)
    yield None
    w.link(b"/f2", b"/d/y")
    w.rename(b"/f3", b"/f2")
    yield b"/d/y"
    w.link(b"/d/y", b"/z")
    w.unlink(b"/d/y")
    w.create(b"/d/y", 100)
    yield b"/d/y"
    w.link(b"/d/x", b"/gone")
    w.unlink(b"/d/x")
    w.unlink(b"/gone")
    yield None


def unlink_open(stage: Stage) -> Steps:
    w = stage.world
    w.create(b"/a", 9000)
    w.create(b"/b", 4000)
    stage.record()
    held = w.open(b"/a")
    w.unlink(b"/a")
    yield None
    w.write_to(held, 4096, 3000)
    w.create(b"/a", 500)
    yield b"/a"
    w.release(held)
    yield None
    w.create(b"/c", 12000)
    yield b"/c"
    w.unlink(b"/b")
    yield None


def truncate(stage: Stage) -> Steps:
    w = stage.world
    w.create(b"/f", 14000)
    w.create(b"/g", 5000)
    stage.record()
    w.truncate(b"/f", 5000)
    yield b"/f"
    w.truncate(b"/f", 20000)
    yield b"/f"
    w.write(b"/f", 13000, 2000)
    w.truncate(b"/g", 0)
    yield b"/g"
    w.append(b"/g", 9000)
    yield b"/g"
    w.truncate(b"/f", 0)
    yield b"/f"


def directories(stage: Stage) -> Steps:
    w = stage.world
    w.mkdir(b"/old")
    w.create(b"/old/x", 800)
    stage.record()
    w.mkdir(b"/a")
    w.mkdir(b"/a/b")
    yield b"/a"
    w.mkdir(b"/a/b/c")
    w.create(b"/a/b/c/f", 4500)
    yield b"/a/b/c/f"
    w.unlink(b"/a/b/c/f")
    w.rmdir(b"/a/b/c")
    yield None
    w.rename(b"/old/x", b"/a/x")
    w.rmdir(b"/old")
    yield b"/a/x"
    w.rmdir(b"/a/b")
    yield None


def directories_into_one_another(stage: Stage) -> Steps:
    """Each in the other, one after the other: were both found at once, they would be in a circle and nowhere else."""
    w = stage.world
    w.mkdir(b"/a")
    w.mkdir(b"/b")
    w.create(b"/a/f", 600)
    w.create(b"/b/g", 600)
    w.mkdir(b"/b/deep")
    stage.record()
    w.rename(b"/a", b"/b/a")
    yield b"/b/a"
    w.rename(b"/b/a", b"/a")
    w.rename(b"/b", b"/a/b")
    yield b"/a/b"
    w.rename(b"/a/b", b"/b")
    w.rename(b"/a", b"/b/deep/a")
    yield b"/b/deep"
    w.mkdir(b"/new")
    w.rename(b"/b/deep/a", b"/new/a")
    w.rename(b"/b", b"/new/a/b")
    yield b"/new"
    w.rename(b"/new/a/b/deep", b"/deep")
    w.rename(b"/new/a", b"/deep/a")
    w.rename(b"/new", b"/deep/a/new")
    yield None


def moving_about(seed: int) -> Callable[[Stage], Steps]:
    """Directories go into one another at random; another run for every seed."""

    def run(stage: Stage) -> Steps:
        dice = random.Random(seed)
        w = stage.world
        for number in range(4):
            w.mkdir(b"/d%d" % number)
            w.create(b"/d%d/f" % number, 600)
        stage.record()
        for number in range(MIXED_STEPS):
            there = [path for path, inode in w.live.items() if inode.kind == stat.S_IFDIR]
            if dice.random() < 0.2:
                new = dice.choice(there) + b"/m%d" % number
                w.mkdir(new)
                yield new
                continue
            old = dice.choice(there)
            into = dice.choice([b"", *(path for path in there if not (path + b"/").startswith(old + b"/"))])
            w.rename(old, into + b"/r%d" % number)
            yield into + b"/r%d" % number
        yield None

    return run


def reuse(stage: Stage) -> Steps:
    """A full disk: what is new lies where something else was a moment ago."""
    w = stage.world
    w.create(b"/fill", stage.world.fs.statfs().free * 4096 - 12 * 4096)
    w.create(b"/secret", 8000)
    w.create(b"/keep", 3000)
    stage.record()
    w.unlink(b"/secret")
    yield None
    w.create(b"/a", 16000)
    yield b"/a"
    w.truncate(b"/fill", 4096)
    yield b"/fill"
    w.create(b"/b", 30000)
    yield b"/b"
    w.rename(b"/b", b"/keep")
    yield b"/keep"


def two_volumes(stage: Stage) -> Steps:
    """Each takes at once what the other has just freed."""
    a, b = stage.worlds
    a.create(b"/fill", 20 * 4096)
    a.create(b"/big", 5 * 4096)
    b.mkdir(b"/d")
    b.create(b"/d/big", 6 * 4096)
    b.create(b"/fill", a.fs.statfs().free * 4096 - 28 * 4096)
    stage.record()
    a.unlink(b"/big")
    b.create(b"/small", 5000)
    yield lambda: (a.sync(), b.fsync(b"/small"))
    b.unlink(b"/d/big")
    a.create(b"/new", 30000)
    yield lambda: (a.fsync(b"/new"), b.sync())
    a.truncate(b"/fill", 8192)
    b.append(b"/small", 6000)
    yield lambda: sync_together(stage.worlds)
    a.rename(b"/new", b"/fill")
    b.create(b"/d/again", 20000)
    b.rename(b"/d/again", b"/small")
    yield lambda: (b.fsync(b"/small"), a.fsync(b"/fill"))


def beside_the_toy(stage: Stage) -> Steps:
    """A C-FFS, and a libFS with habits of its own, which writes what it likes when it likes."""
    w, (toy,) = stage.world, stage.toys
    root = toy.toy.root
    w.create(b"/f", 9000)
    data = [toy.add(root, 0) for _ in range(3)]
    node = toy.add(root, 1, node=True)
    stage.record()
    toy.remove(root, 0, data[0])
    w.create(b"/a", 5000)
    below = toy.add(node, 2)
    toy.write(node, below)
    yield b"/a"
    inner = toy.add(node, 2, node=True)
    toy.refer((root, 3), (inner, 0), 1)
    w.unlink(b"/f")
    toy.write(root, inner)
    yield lambda: (toy.promise(), w.sync())
    toy.dereference((root, 3), (inner, 0), 1)
    toy.add(inner, 5)
    w.append(b"/a", 9000)
    toy.write(root)
    yield b"/a"
    toy.remove(root, 0, data[1])
    toy.add(root, 4, node=True)
    w.create(b"/b", 20000)
    yield lambda: (w.fsync(b"/b"), toy.promise())


def sync_together(worlds: list[World]) -> None:
    """Synchronise several libFSes so that their requests are at XN, and on the disk, at the same time."""
    running = {world.name: (world, world.fs.synchronise_steps()) for world in worlds}
    results: dict[str, list[Any]] = {}
    while running:
        submitted = []
        for name, (world, steps) in list(running.items()):
            try:
                calls = steps.send(results[name]) if name in results else next(steps)
            except StopIteration:
                del running[name]
                continue
            fs = world.fs
            submitted.append(
                (name, fs, [fs.env.submit(c, *s, cap=fs.cap, data=d, out_bytes=4096) for c, s, d in calls])
            )
        results = {name: [fs.env.wait(cookie) for cookie in cookies] for name, fs, cookies in submitted}
    for world in worlds:
        assert not world.fs.errors
        world.all_promised()


MIXED_STEPS = 10


def mixed(seed: int) -> Callable[[Stage], Steps]:
    """Random operations of all kinds; another run for every seed."""

    def run(stage: Stage) -> Steps:
        dice = random.Random(seed)
        w = stage.world
        w.mkdir(b"/d")
        w.mkdir(b"/e")
        for number in range(4):
            w.create(dice.choice((b"", b"/d", b"/e")) + b"/old%d" % number, dice.choice((0, 600, 5000, 13000)))
        if dice.random() < 0.5:
            w.sync()
            w.create(b"/fill", max(0, w.fs.statfs().free - dice.randrange(12, 30)) * 4096)
        stage.record()
        held: list[Inode] = []
        for number in range(MIXED_STEPS):
            yield _one_of_all(w, dice, number, held)
        for inode in held:
            w.release(inode)
        yield None

    return run


def _one_of_all(w: World, dice: random.Random, number: int, held: list[Inode]) -> Point:
    """One random operation; the path that an fsync could be of."""
    files = [path for path, inode in w.live.items() if inode.kind == stat.S_IFREG]
    directories = [b"", *(path for path, inode in w.live.items() if inode.kind == stat.S_IFDIR)]
    new = dice.choice(directories) + b"/new%d" % number + b"y" * dice.choice((0, 0, 40))
    some = dice.choice(files) if files else None
    what = dice.randrange(11)
    try:
        if what == 0 or some is None:
            w.create(new, dice.choice((0, 100, 4096, 9000)))
            return new
        if what == 1:
            w.append(some, dice.choice((50, 4000, 9000)))
        elif what == 2:
            w.write(some, dice.choice((0, 100, 4096, 20000)), dice.choice((10, 512, 5000)))
        elif what == 3:
            w.truncate(some, dice.choice((0, 700, 4096, 15000)))
        elif what == 4:
            if dice.random() < 0.5:
                held.append(w.open(some))
            w.unlink(some)
            return None
        elif what == 5:
            other = dice.choice(files)
            if other != some and w.at(other) is not w.at(some):
                w.rename(some, other)
                return other
        elif what == 6:
            w.rename(some, new)
            return new
        elif what == 7:
            w.link(some, new)
            return new
        elif what == 8:
            w.mkdir(new)
            return new
        elif what == 9:
            empty = [path for path in directories[1:] if not any(other.startswith(path + b"/") for other in w.live)]
            if empty:
                w.rmdir(dice.choice(empty))
                return None
        elif len(directories) > 1:
            old = dice.choice(directories[1:])
            if not new.startswith(old + b"/"):
                w.rename(old, new)
                return new
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return None
    return some


ONE_VOLUME: dict[str, Callable[[Stage], Steps]] = {
    "create": create,
    "append": append,
    "overwrite": overwrite,
    "rename over": rename_over,
    "rename between sectors": rename_between_sectors,
    "hard link": hard_link,
    "link and unlink": link_and_unlink,
    "unlink of an open file": unlink_open,
    "truncate": truncate,
    "mkdir and rmdir": directories,
    "directories into one another": directories_into_one_another,
    "reuse on a full disk": reuse,
}


# ---- when it is made durable


@dataclass(frozen=True)
class Plan:
    """`at`: the only point with an fsync; -1: none but the last; -2: every point.  `everything`: fsync of all instead
    of one file; `cross`: at the other points everything crosses to XN, and nothing is written."""

    at: int
    everything: bool = False
    cross: bool = False
    seed: int = 0


EVERY, LAST = -2, -1


def plans(points: int) -> list[Plan]:
    """An fsync at each point alone, at every point, and at the end only; of one file and of all."""
    found = [Plan(EVERY), Plan(EVERY, everything=True), Plan(LAST, everything=True), Plan(LAST, cross=True)]
    return found + [Plan(at, everything=at % 2 == 1, cross=at % 3 == 1) for at in range(points)]


def perform(workload: Callable[[Stage], Steps], plan: Plan, stage: Stage) -> int:
    """Run it; how many points it has."""
    point = -1
    for point, path in enumerate(workload(stage)):
        if plan.at in (EVERY, point):
            if callable(path):
                path()
            elif plan.everything or path is None:
                stage.world.sync()
            else:
                stage.world.fsync(path)
        elif plan.cross:
            for world in stage.worlds:
                world.flush()
    for world in stage.worlds:
        world.sync()
    for toy in stage.toys:
        toy.promise()
    return point + 1
