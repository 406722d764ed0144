"""Sector and layout arithmetic, against a model and against malformed bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libfs.cffs import layout, sector


def test_inode_numbers_are_locations() -> None:
    ino = layout.ino_of((1 << 44) - 1, 7, 3)
    assert ino << 7 >> 12 == (1 << 44) - 1
    assert (layout.block_of(ino), layout.sector_of(ino), layout.slot_of(ino)) == ((1 << 44) - 1, 7, 3)
    assert layout.sector_key(ino) == ((1 << 44) - 1) * 8 + 7
    # The byte address of the inode is its number times 128: what `refs` emits.
    assert ino * 128 == ((1 << 44) - 1) * 4096 + 7 * 512 + 3 * 128


def test_tables_do_not_overlap() -> None:
    for level in range(layout.MAX_LEVEL):
        end = layout.table_base(level) + layout.BUCKET * layout.table_buckets(level)
        assert end == layout.table_base(level + 1)
    last = layout.table_base(layout.MAX_LEVEL) + layout.BUCKET * layout.table_buckets(layout.MAX_LEVEL)
    assert last < layout.MAX_LOGICAL


def test_buckets_are_even() -> None:
    counts: dict[int, int] = {}
    for number in range(8000):
        base = layout.bucket_base(1, b"file%d.c" % number)
        counts[base] = counts.get(base, 0) + 1
    assert len(counts) == 8
    assert max(counts.values()) < 1200 and min(counts.values()) > 800


def test_longest_name_fits_beside_an_inode() -> None:
    data = sector.fresh(99)
    assert sector.owner_of(bytes(data)) == 99
    name = b"n" * 255
    assert sector.room(data) >= sector.entry_bytes(name, False)
    slot = sector.free_slot(data)
    assert slot == 3
    sector.take(data, slot)
    sector.add(data, name, 8, slot)
    # The names end at 274: slot 2 (at 256) is covered, so nothing more fits with an inode.
    assert sector.free_slot(data) == 0 and sector.room(data) == -1
    assert sector.scan(bytes(data), 5) == [(name, 5 << 2 | 3, None, 8)]


def test_three_names_of_34_bytes_share_a_sector() -> None:
    data = sector.fresh(1)
    for number in range(3):
        name = b"%034d" % number
        assert sector.room(data) >= sector.entry_bytes(name, False)
        slot = sector.free_slot(data)
        sector.take(data, slot)
        sector.add(data, name, 8, slot)
    assert sector.room(data) == -1
    assert len(sector.scan(bytes(data), 0)) == 3


def test_longest_chain_fits() -> None:
    data = sector.fresh(1)
    chain = bytes(range(120))
    sector.add(data, b"x" * 255, 8, 0, 0x123456789, chain)
    assert sector.scan(bytes(data), 0) == [(b"x" * 255, 0x123456789, chain, 8)]
    assert sector.target(data, 16, 0) == (0x123456789, chain)


@pytest.mark.parametrize(
    "change",
    [{4: 0xFF, 5: 0xFF}, {16: 200}, {16: 0}, {17: 0}, {2: 2, 4: 140}, {0: 0xAA}, {1: 9}],
    ids=["end", "long", "empty", "cut", "into-inode", "magic", "version"],
)
def test_malformed_sectors_are_refused(change: dict[int, int]) -> None:
    data = sector.fresh(1)
    sector.add(data, b"abc", 8, 3)
    for at, value in change.items():
        data[at] = value
    with pytest.raises(ValueError):
        sector.scan(bytes(data), 0)


names = st.binary(min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["local", "away", "remove"]), names, st.integers(1, 1 << 48)), max_size=40))
def test_sector_against_a_dict(steps: list[tuple[str, bytes, int]]) -> None:
    key = 7
    data = sector.fresh(3)
    model: dict[bytes, tuple[int, bytes | None]] = {}
    for what, name, ino in steps:
        if what == "remove":
            at = sector.find(data, name)
            assert bool(at) == (name in model)
            if at:
                target, _ = sector.target(data, at, key)
                sector.remove(data, at)
                if model.pop(name)[1] is None:
                    sector.drop(data, target & 3)
        elif name in model:
            continue
        elif what == "local":
            if sector.room(data) >= sector.entry_bytes(name, False):
                slot = sector.free_slot(data)
                sector.take(data, slot)
                sector.add(data, name, 8, slot)
                model[name] = (key << 2 | slot, None)
        elif sector.room_without_slot(data) >= sector.entry_bytes(name, True, b"c" * 16):
            sector.add(data, name, 4, 0, ino, b"c" * 16)
            model[name] = (ino, b"c" * 16)
        assert {n: (i, c) for n, i, c, _ in sector.scan(bytes(data), key)} == model
        assert sector.end_of(data) <= sector.lowest(data)
