"""Writes that make the overlay cross half-way: nothing of them is lost."""

from __future__ import annotations

import pytest
from cffs_harness import Volume

from libfs.cffs.files import PROMISED_LIMIT


@pytest.mark.parametrize("first", [512, 4096, 10240])
def test_writes_across_the_limit_of_promised_blocks(first: int) -> None:
    """In records of 10 KB, as tar writes, the first one shorter or not."""
    volume = Volume(nblocks=4 * PROMISED_LIMIT)
    ino = volume.file(volume.root, b"archive")
    data = b"".join(b"%15d\n" % number for number in range((PROMISED_LIMIT + 64) * 256))
    offset, record = 0, first
    while offset < len(data):
        volume("write", ino, offset, data[offset : offset + record])
        offset, record = offset + record, 10240
    for at in range(0, len(data), 1 << 20):
        assert b"".join(map(bytes, volume("read", ino, at, 1 << 20))) == data[at : at + (1 << 20)]
    volume.remount()
    for at in range(0, len(data), 1 << 20):
        assert b"".join(map(bytes, volume("read", ino, at, 1 << 20))) == data[at : at + (1 << 20)]
