"""Media errors: every operation ends, with an error where there is one; nothing that was promised is damaged.

For each n, the n-th read, write or flush of a run fails (a write may have reached the disk in part); or the disk
vanishes at its n-th request and is back after a restart; or it fills.  What a crash at the end leaves is checked as in
test_crash_states, and so is what the libFS makes durable when the disk is well again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crash_check import Checker, mount, reconstructed, view_of
from crash_model import World
from crash_states import Explorer
from crash_workloads import NBLOCKS, Stage

from xok_host.abi import errors as e
from xok_host.kernel.request import IoOp

KINDS = {"read": IoOp.READ, "write": IoOp.WRITE, "flush": IoOp.FLUSH}
ALLOWED = (errno.EIO, errno.ENOSPC)
MOST_REQUESTS = 400


class Broken:
    """Fails requests of one kind (None: of any): the `nth`, or all from there on."""

    def __init__(self, kind: IoOp | None, nth: int, *, for_ever: bool = False) -> None:
        self.kind = kind
        self.left = nth
        self.for_ever = for_ever
        self.failed = 0

    def __call__(self, op: IoOp) -> int:
        if self.kind is not None and op != self.kind:
            return 0
        self.left -= 1
        if self.left == 0 or (self.left < 0 and self.for_ever):
            self.failed += 1
            return errno.EIO
        return 0


def attempt(operation: Callable[..., Any], *args: Any) -> bool:
    """Whether it succeeded; an error must be one of those that a user can be told."""
    try:
        operation(*args)
    except OSError as error:
        assert error.errno in ALLOWED, error
        return False
    except e.XokError as error:
        assert error.errno in ALLOWED, error
        return False
    return True


def script(stage: Stage) -> Iterator[Callable[[], Any]]:
    """Operations that need nothing of one another but what is there from the start."""
    w = stage.world
    yield lambda: w.create(b"/a", 5000)
    yield lambda: w.fsync(b"/old")
    yield lambda: w.write(b"/old", 3000, 6000)
    yield lambda: w.fsync(b"/old")
    yield lambda: w.fs.complete(w.fs.read, w.at(b"/cold").ino, 0, 20000)
    yield lambda: w.rename(b"/cold", b"/d/over")
    yield lambda: w.sync()
    yield lambda: w.unlink(b"/gone")
    yield lambda: w.create(b"/d/new", 9000)
    yield lambda: w.truncate(b"/old", 100)
    yield lambda: w.mkdir(b"/d/e")
    yield lambda: w.sync()
    yield lambda: w.link(b"/old", b"/d/link")
    yield lambda: w.fsync(b"/d")


def prepared() -> Stage:
    """A volume with files, freshly mounted: what is asked for must be read."""
    stage = Stage()
    w = stage.world
    w.mkdir(b"/d")
    for path, size in ((b"/old", 8000), (b"/cold", 20000), (b"/d/over", 3000), (b"/gone", 6000)):
        w.create(path, size)
    stage.record()
    w.fs.close()
    w.env.close()
    stage.xok.stop()
    stage.xok.boot()
    w.fs = mount(stage.xok, w.name)
    w.env = w.fs.env
    return stage


def crash_here(stage: Stage) -> None:
    """What the disk may show if the power fails now, with what is promised now."""
    stage.disk.recording = True
    stage.on_mark(stage.world.name, True)
    explorer = Explorer("media errors", Checker(NBLOCKS, stage.worlds, mount_every=64), samples=2, exhaustive=3)
    explorer.explore(stage.image, stage.disk.log)


def requests_of(kind: IoOp | None) -> int:
    """How many requests of the kind an undisturbed run has."""
    stage = prepared()
    counter = Broken(kind, 1 << 60)
    stage.disk.fault = counter
    for step in script(stage):
        step()
    return (1 << 60) - counter.left


def broken_run(fault: Broken) -> tuple[Stage, int]:
    """The script on a disk with that fault; how many operations failed."""
    stage = prepared()
    stage.disk.fault = fault
    failures = 0
    for step in script(stage):
        try:
            failures += not attempt(step)
        except KeyError:
            pass  # of a path that an operation before would have made
    return stage, failures


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_request_fails_once(kind: str) -> None:
    count = requests_of(KINDS[kind])
    assert 1 < count < MOST_REQUESTS
    for nth in range(1, count + 1):
        fault = Broken(KINDS[kind], nth)
        stage, failures = broken_run(fault)
        assert fault.failed == 1
        # A read may have been one ahead; a write that failed while others waited has been tried again, with success.
        assert failures or kind != "flush", "the error has been told to nobody"
        crash_here(stage)
        # The disk is well again: what is in core becomes durable, and the errors of before have been told.
        stage.disk.fault = lambda op: 0
        assert settles(stage.world)
        stage.xok.sync()
        report = reconstructed(stage.disk.read_block, NBLOCKS)
        assert not report.leaked
        stage.on_mark(stage.world.name, True)
        stage.parts[stage.world.name].check(view_of(stage.world.fs))
        Checker(NBLOCKS, stage.worlds).mounted(stage.disk.data, stage.disk.log[-1].expect)  # type: ignore[union-attr]


def settles(world: World) -> bool:
    """An fsync of everything succeeds, after those errors that are to be told once."""
    return any(attempt(world.sync) for _ in range(8))


def test_a_disk_that_vanishes() -> None:
    """From its n-th request on nothing works; then the machine is started again with the disk back in its place."""
    count = requests_of(None)
    for nth in range(1, count + 1, 2):
        stage, failures = broken_run(Broken(None, nth, for_ever=True))
        assert failures, "nobody was told"
        assert not attempt(stage.world.sync)
        crash_here(stage)


def test_a_disk_that_fills() -> None:
    """Whoever asks for more gets ENOSPC; all else stays, and space that is given back can be used."""
    stage = Stage(("vol-a", "vol-b"))
    a, b = stage.worlds
    a.create(b"/keep", 9000)
    b.create(b"/keep", 9000)
    stage.record()
    number = 0
    while attempt(a.create, b"/n%d" % number, 12000):
        number += 1
        if number % 5 == 0:
            a.sync()
        assert number < NBLOCKS
    a.sync()
    for world in (a, b):
        assert not attempt(world.append, b"/keep", NBLOCKS * 4096)
        assert not attempt(world.create, b"/more", 100 * 4096)
    a.sync()
    b.sync()
    explorer = Explorer("a disk that fills", Checker(NBLOCKS, stage.worlds, mount_every=64), samples=2, exhaustive=3)
    explorer.explore(stage.image, stage.disk.log)
    a.unlink(b"/n1")
    a.sync()
    b.append(b"/keep", 8000)
    b.sync()
    a.expect().check(view_of(a.fs))
    b.expect().check(view_of(b.fs))
