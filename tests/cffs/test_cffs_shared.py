"""What C-FFS does differently on a shared volume (docs/cffs.md section 7)."""

from __future__ import annotations

import errno

import pytest
from cffs_harness import Volume, fails

from libfs.cffs import layout, mkfs
from libfs.cffs.filesystem import CFFS
from libfs.cffs.rules import OneWriter, Sharing
from xok_host.abi.calls import MAX_OPS, MAX_WITNESSES, OP_HEADER, OpKind
from xok_host.kernel.local import DEV


@pytest.fixture
def volume() -> Volume:
    return Volume(shared=True)


def test_the_roots_type_tells_the_kinds_apart() -> None:
    volume = Volume(shared=True)
    assert type(volume.fs.rules) is Sharing
    cap = mkfs.make(volume.env, DEV, "other", clock=volume.clock)
    other = CFFS.mount(volume.env, DEV, "other", cap, clock=volume.clock)
    assert type(other.rules) is OneWriter
    other.complete(other.create, other.root_ino, b"a", 0o644, 0, 0)
    other.close()
    volume.file(volume.root, b"a")
    volume.check_disk()
    volume.remount()
    assert type(volume.fs.rules) is Sharing


def test_a_directory_is_full_before_the_answer(volume: Volume) -> None:
    made = 0
    with fails(errno.ENOSPC):
        for made in range(3000):
            volume.file(volume.root, b"%d" % made)
    assert made > 1000
    node = volume.fs.nodes[volume.root]
    assert node.level == layout.SHARED_MAX_LEVEL
    assert max(logical for logical, _, _ in volume.fs.extents(node).items()) < layout.SHARED_BLOCKS
    volume.check_disk()
    volume.remount()
    assert len(volume.listing(volume.root)) == made
    volume("unlink", volume.root, b"7")
    volume.file(volume.root, b"7")
    volume.check_disk()


def test_transactions_stay_within_their_bounds(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES-1, with much waiting in the overlay: many new directories, each with names and blocks of its own."""
    seen: list[tuple[int, int]] = []
    data_of = CFFS._data_of

    def watched(self: CFFS, transaction: list[list[object]]) -> bytes:
        data = data_of(self, transaction)  # type: ignore[arg-type]
        parts = [part for component in transaction for part in component]
        witnesses = self.rules.witnesses(self, transaction)
        assert data.endswith(witnesses)
        count = len(witnesses) // OP_HEADER.size
        assert all(OP_HEADER.unpack_from(witnesses, n * OP_HEADER.size)[0] == OpKind.WITNESS for n in range(count))
        seen.append((count, sum(len(part.ops) for part in parts) + count))  # type: ignore[attr-defined]
        return data

    monkeypatch.setattr(CFFS, "_data_of", watched)
    for number in range(40):
        parent = volume("mkdir", volume.root, b"d%d" % number, 0o755, 0, 0).ino
        for name in (b"x", b"y" * 200, b"z" * 250):
            volume("symlink", parent, name, b"t" * 60, 0, 0)
        assert not volume.fs.new_blocks
    volume.fs.flush()
    assert not volume.fs.errors
    assert max(witnesses for witnesses, _ in seen) <= MAX_WITNESSES and max(ops for _, ops in seen) <= MAX_OPS
    volume.check_disk()


def test_a_name_taken_and_given_again_elsewhere(volume: Volume) -> None:
    """RULES-3: the two sectors may cross in any order."""
    for number in range(30):
        volume.file(volume.root, b"f%d" % number)
    volume.fs.sync_all()
    for number in (0, 5, 20):
        volume("unlink", volume.root, b"f%d" % number)
        volume("unlink", volume.root, b"f%d" % (number + 1))
        volume("rename", volume.root, b"f%d" % (number + 2), volume.root, b"f%d" % number)
        volume("link", volume("lookup", volume.root, b"f29").ino, volume.root, b"f%d" % (number + 1))
        volume.file(volume.root, b"f%d" % (number + 2))
    volume.check_disk()


def test_what_waited_for_long_crosses_with_a_new_time(volume: Volume) -> None:
    """RULES-4: for an hour nobody called `idle`."""
    ino = volume.file(volume.root, b"late", b"x")
    volume.clock.now += 3600 * 10**9
    volume.fs.flush()
    assert not volume.fs.errors
    assert volume("getattr", ino).ctime_ns >= volume.clock.now - 60 * 10**9
    assert volume("getattr", ino).mtime_ns < volume.clock.now - 3500 * 10**9
    volume.clock.now += 3600 * 10**9
    before = volume("getattr", ino).ctime_ns
    volume("link", ino, volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino, b"second")
    volume.fs.flush()
    assert not volume.fs.errors
    assert volume("getattr", ino).ctime_ns > before
    volume.check_disk()


def test_a_rename_over_a_name_in_another_sector_is_never_torn() -> None:
    """The new entry goes beside its inode, in another sector than the one it replaces: then both stay for a while."""
    for shared in (False, True):
        volume = Volume(shared=shared)
        for number in range(7):
            volume.file(volume.root, b"f%d" % number)
        volume.fs.sync_all()
        volume("rename", volume.root, b"f6", volume.root, b"f0")
        assert volume.fs.ghosts, "the old entry is there until the new one is durable"
        volume.fs.flush()
        assert not volume.fs.errors
        volume.check_disk()
        assert b"f6" not in volume.listing(volume.root)
