"""A directory grows in several steps, and plain operations come between them (GROW-1 to GROW-3)."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
from cffs_harness import Volume

from libfs.cffs.directory import Directory
from libfs.cffs.settle import Steps


def between(steps: Steps, name: str, action: Callable[[], Any]) -> Generator[list[Any], list[Any], None]:
    """The same steps; `action` runs when the first call `name` has been carried out."""
    calls = next(steps)
    todo = [action]
    while True:
        results = yield calls
        if todo and any(call[0] == name for call in calls):
            todo.pop()()
        try:
            calls = steps.send(results)
        except StopIteration:
            return


def directory_of(volume: Volume, ino: int) -> Directory:
    return volume.fs.complete(volume.fs.directory, ino)[1]


@pytest.mark.parametrize("shared", [False, True])
def test_a_name_that_moves_in_the_last_moment_before_the_growth(shared: bool) -> None:
    """It leaves a ghost in the old table: that must go before the names are counted, or it would come back."""
    volume = Volume(shared=shared)
    fs = volume.fs
    ino = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
    expected = {b"file%d" % number: volume.file(ino, b"file%d" % number) for number in range(30)}
    longer = b"y" * 200  # does not fit into the sector that the name is in
    ghosts: list[bytes] = []

    def rename() -> None:
        fs.rename(ino, b"file7", ino, longer)
        ghosts.extend(ghost.name for ghost in fs.ghosts)

    fs._drive(between(fs._grow_steps(ino, 1), "flush", rename))
    assert ghosts == [b"file7"]
    expected[longer] = expected.pop(b"file7")
    assert not fs.errors
    assert directory_of(volume, ino).level == 1
    assert volume.listing(ino) == expected
    assert all(volume("getattr", number).nlink == 1 for number in expected.values())
    volume.check_disk()
    volume.remount()
    assert volume.listing(ino) == expected
