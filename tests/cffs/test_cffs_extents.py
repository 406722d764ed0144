"""The extent map against a dictionary of blocks, and its tree through the bytes of its nodes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libfs.cffs import layout
from libfs.cffs.extents import EMPTY_SECTOR, ExtentMap, TreeNode, load_tree, pack_cell, unpack_sector

Image = dict[int, list[bytes]]


def as_blocks(extents: ExtentMap) -> dict[int, int]:
    return {first + i: start + i for first, count, start in extents.items() for i in range(count)}


def cross(extents: ExtentMap, disk: Image, free: list[int]) -> set[tuple[int, int]]:
    """What a crossing does to the disk: blocks for new nodes, changed sectors written; which sectors those were."""
    extents.settle()
    changed = set()
    for node in extents.nodes():
        if not node.block:
            node.block = free.pop()
            disk[node.block] = [EMPTY_SECTOR] * 8
    for node in extents.nodes():
        for cell in node.cells:
            packed = pack_cell(cell, 0)
            if cell.dirty:
                cell.dirty = False
                if disk[node.block][cell.number] != packed:
                    changed.add((node.block, cell.number))
                    disk[node.block][cell.number] = packed
            assert disk[node.block][cell.number] == packed, "a change was not marked"
    return changed


def load(extents: ExtentMap, disk: Image) -> ExtentMap:
    assert extents.root is not None
    return load_tree(extents.root.level + 1, extents.root.block, lambda db, parent, sector: b"".join(disk[db]))


def check_shape(extents: ExtentMap) -> None:
    previous = -1
    for first, count, _ in extents.items():
        assert first >= previous and count > 0
        previous = first + count
    assert extents.keys == [entry.logical for entry in extents.entries]
    for node in extents.nodes():
        assert any(cell.items for cell in node.cells), "an empty node"
        for cell in node.cells:
            assert len(cell.items) <= layout.SECTOR_ENTRIES
            for item in cell.items:
                assert item.cell is cell
                assert not node.level or item.level == node.level - 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("iiiiicx"), st.integers(0, 60), st.integers(1, 5), st.integers(1, 80)), max_size=60
    )
)
def test_map_against_a_dict(steps: list[tuple[str, int, int, int]]) -> None:
    extents = ExtentMap()
    model: dict[int, int] = {}
    disk: Image = {}
    free = list(range(90000, 90500))
    for what, logical, count, start in steps:
        if what == "x":
            cross(extents, disk, free)
        elif what == "c":
            freed = {db for begin, length, _, _ in extents.cut(logical) for db in range(begin, begin + length)}
            assert freed == {db for at, db in model.items() if at >= logical}
            model = {at: db for at, db in model.items() if at < logical}
        else:
            wanted = range(start * 100 + logical, start * 100 + logical + count)
            if any(logical + i in model for i in range(count)) or set(wanted) & set(model.values()):
                continue
            extents.insert(logical, count, start * 100 + logical)
            model |= {logical + i: db for i, db in enumerate(wanted)}
        assert as_blocks(extents) == model
        assert extents.blocks == len(model)
        check_shape(extents)
        for at in range(66):
            db, run = extents.find(at)
            assert db == model.get(at, 0)
            assert run >= 1
    cross(extents, disk, free)
    if not extents.embedded:
        assert as_blocks(load(extents, disk)) == model


@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_deep_trees_never_move_what_has_crossed(order: str) -> None:
    count = layout.NODE_ENTRIES * 5
    blocks = list(range(count))
    if order == "down":
        blocks.reverse()
    elif order == "random":
        random.Random(4).shuffle(blocks)
    extents = ExtentMap()
    disk: Image = {}
    free = list(range(90000, 90500))
    homes: dict[int, tuple[int, int]] = {}
    for number, logical in enumerate(blocks):
        extents.insert(logical * 2, 1, 1000 + 3 * logical)
        if number % 50 == 0:
            cross(extents, disk, free)
            for entry in extents.entries:
                if entry.cell is not None:
                    place = (entry.cell.node.block, entry.cell.number)
                    assert homes.setdefault(entry.logical, place) == place
    cross(extents, disk, free)
    assert extents.root is not None and extents.root.level == 1 and not extents.embedded
    assert as_blocks(extents) == {logical * 2: 1000 + 3 * logical for logical in range(count)}
    check_shape(extents)
    assert len(extents.nodes()) == 6
    loaded = load(extents, disk)
    assert as_blocks(loaded) == as_blocks(extents) and loaded.blocks == extents.blocks
    check_shape(loaded)
    freed = loaded.cut(8)
    assert sum(lost[1] for lost in freed) == count - 4
    assert not loaded.embedded, "what stays keeps its place"
    assert all(part >= 0 and holder in disk for _, _, holder, part in freed)
    loaded.cut(0)
    assert loaded.embedded and sorted(lost[0] for lost in loaded.removed) == sorted(disk)


def test_one_insertion_changes_one_sector() -> None:
    extents = ExtentMap((1000 + number * 2, 1, 5000 + number * 7) for number in range(100))
    disk: Image = {}
    cross(extents, disk, [9])
    extents.insert(1, 1, 77)
    extents.cut(1198)
    extents.insert(3, 1, 79)
    assert cross(extents, disk, []) == {(9, 3)}
    assert as_blocks(load(extents, disk)) == as_blocks(extents)


def test_a_terabyte_of_hole() -> None:
    extents = ExtentMap()
    far = (1 << 40) // 4096
    extents.insert(far, 1, 77)
    assert extents.find(far) == (77, 1)
    assert extents.find(5) == (0, far - 5)
    assert extents.embedded


@pytest.mark.parametrize("at, value", [(0, 7), (3, 32), (1, 5)])
def test_malformed_sectors_are_refused(at: int, value: int) -> None:
    extents = ExtentMap((i * 3, 1, 50 + i) for i in range(20))
    extents.settle()
    assert extents.root is not None
    raw = bytearray(pack_cell(extents.root.cells[0], 0))
    assert unpack_sector(bytes(raw), 0) == list(extents.items())
    raw[at] = value
    with pytest.raises(ValueError):
        unpack_sector(bytes(raw), 0)


def test_overlapping_extents_are_refused() -> None:
    extents = ExtentMap((i * 3, 1, 50 + i) for i in range(20))
    disk: Image = {}
    cross(extents, disk, [9])
    disk[9][1] = disk[9][0]
    with pytest.raises(ValueError):
        load(extents, disk)


def test_nodes_know_who_has_them() -> None:
    root, child = TreeNode(1, 5), TreeNode(0, 6)
    root.cells[3].items.append(child)
    child.cell = root.cells[3]
    assert child.holder() == (5, 3) and root.holder() == (0, -1)
