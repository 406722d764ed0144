"""An fsync while others go on changing the file system: it ends, without an error, and what it covers is durable."""

from __future__ import annotations

from typing import Any

from cffs_harness import Volume

ROUNDS = 200


def test_fsync_ends_while_others_write() -> None:
    """Between any two steps of the synchronisation somebody makes a file in the same directory; the loop is idle."""
    volume = Volume()
    made = 0

    def disturb() -> None:
        nonlocal made
        volume.file(volume.root, b"other %d" % made, b"x" * 5000)
        volume.fs.flush()
        made += 1

    for number in range(5):
        volume.file(volume.root, b"mine %d" % number, b"precious" * 700)
        disturb()
        steps = volume.fs.synchronise_steps()
        calls = next(steps)
        for _ in range(ROUNDS):
            disturb()
            results: list[Any] = [
                volume.env.wait(volume.env.submit(name, *scalars, cap=volume.fs.cap, data=data, out_bytes=4096))
                for name, scalars, data in calls
            ]
            try:
                calls = steps.send(results)
            except StopIteration:
                break
        else:
            raise AssertionError(f"no end after {ROUNDS} steps")
    volume.crash()
    for number in range(5):
        ino = volume("lookup", volume.root, b"mine %d" % number).ino
        assert volume.contents(ino) == b"precious" * 700
