"""Little memory: blocks leave the registry at any time, and everything still comes out right."""

from __future__ import annotations

import random

from cffs_harness import Volume


def test_more_data_than_memory() -> None:
    """50 MB of pages, 60 MB of files: write, read, change, read."""
    volume = Volume(20000, max_chunks=12, entries=1 << 12)
    rng = random.Random(3)
    files: dict[int, bytes] = {}
    directories = [volume.root]
    for number in range(30):
        directories.append(volume("mkdir", rng.choice(directories), b"d%d" % number, 0o755, 0, 0).ino)
    for number in range(500):
        data = rng.randbytes(4) * (rng.choice([100, 5000, 60000, 400000]) // 4)
        files[volume.file(rng.choice(directories), b"f%d" % number, data)] = data
        if number % 10 == 0:
            volume.fs.flush()
    for ino in list(files)[::3]:
        volume("write", ino, 50, b"changed")
        files[ino] = files[ino][:50] + b"changed" + files[ino][57:]
    volume.fs.sync_all()
    assert not volume.fs.errors
    assert volume.env.counters.as_dict()["registry_evictions"] > 0
    for ino, data in files.items():
        assert volume.contents(ino) == data
    volume.check_disk()
