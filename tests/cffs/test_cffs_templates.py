"""C-FFS's UDFs, run by XN's own interpreter, against what the Python code says of the same bytes."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable

import pytest

from libfs.cffs import layout, sector, templates
from libfs.cffs.extents import Entry, TreeNode, pack_cell
from libfs.cffs.inode import Node
from xok_host.abi.types import BLOCK, SECTOR, TYPE_XN_DB
from xok_host.kernel.xn.interp import Program

DIR, NODE = 16, 17
BASE = 3 << 56 | 1234 << 12
"""da of the block under test."""

owns = Program(templates.directory_owns(DIR, NODE, NODE))
refs = Program(templates.directory_refs())
refcnt = Program(templates.directory_refcnt())
node_owns = Program(templates.node_owns(DIR, NODE))
access = Program(templates.access())


def run(program: Program, block: bytes, part: int) -> list[tuple[int, int, int]]:
    return program.run(block, part, r5=BASE)[1]


def directory_block(number: int, build: Callable[[bytearray], None]) -> bytes:
    data = sector.fresh(77)
    build(data)
    block = bytearray(BLOCK)
    block[number * SECTOR : (number + 1) * SECTOR] = data
    return bytes(block)


def put(data: bytearray, slot: int, name: bytes, **changes: object) -> Node:
    node = Node(0, 0, stat.S_IFREG | 0o644, 1, 2, 3, 4)
    for field, value in changes.items():
        setattr(node, field, value)
    sector.take(data, slot)
    node.pack_into(data, slot * 128)
    sector.add(data, name, node.mode >> 12, slot)
    return node


def test_access_is_the_sector() -> None:
    for part in range(8):
        assert run(access, bytes(BLOCK), part) == [(part * 512, 512, 0)]


@pytest.mark.parametrize("program", [owns, refs, refcnt, node_owns])
def test_zero_block_is_empty(program: Program) -> None:
    assert all(run(program, bytes(BLOCK), part) == [] for part in range(8))


def test_owns() -> None:
    def build(data: bytearray) -> None:
        file = Node(0, 0, stat.S_IFREG, 0, 0, 1, 1)
        assert file.extents is not None
        file.extents.insert(0, 3, 500)
        file.extents.insert(9, 1, 90000000000)
        sector.take(data, 3)
        file.pack_into(data, 384)
        directory = Node(0, 0, stat.S_IFDIR, 0, 0, 1, 1)
        assert directory.extents is not None
        directory.extents.insert(0, 8, 600)
        sector.take(data, 2)
        directory.pack_into(data, 256)
        # An inline symbolic link's bytes are not extents.
        link = Node(0, 0, stat.S_IFLNK, 0, 0, 1, 1)
        link.inline = b"\xff" * 72
        sector.take(data, 1)
        link.pack_into(data, 128)

    block = directory_block(5, build)
    assert sorted(run(owns, block, 5)) == [(500, 3, TYPE_XN_DB), (600, 8, DIR), (90000000000, 1, TYPE_XN_DB)]
    assert run(owns, block, 4) == []


def test_owns_a_tree() -> None:
    def build(data: bytearray) -> None:
        file = Node(0, 0, stat.S_IFREG, 0, 0, 1, 1)
        assert file.extents is not None
        for number in range(5):
            file.extents.insert(number * 2, 1, 500 + 7 * number)
        file.extents.settle()
        assert file.extents.root is not None
        file.extents.root.block = 4321
        sector.take(data, 3)
        file.pack_into(data, 384)

    assert run(owns, directory_block(0, build), 0) == [(4321, 1, NODE)]


@pytest.mark.parametrize("level, content, expected", [(0, 0, TYPE_XN_DB), (0, 1, DIR), (2, 1, NODE)])
def test_node_owns(level: int, content: int, expected: int) -> None:
    node = TreeNode(level)
    for number in range(70):
        child = TreeNode(level - 1, 900 + 5 * number) if level else Entry(number * 4, 2, 900 + 5 * number)
        node.cells[number // 31].items.append(child)
    block = b"".join(pack_cell(cell, content) for cell in node.cells)
    found = [entry for part in range(8) for entry in run(node_owns, block, part)]
    assert found == [(900 + 5 * number, 1 if level else 2, expected) for number in range(70)]


def test_references_balance() -> None:
    def build(data: bytearray) -> None:
        put(data, 3, b"one")
        put(data, 2, b"two", nlink=5)
        sector.add(data, b"elsewhere", 8, 0, layout.ino_of(99, 3, 1), b"c" * 24)

    block = directory_block(6, build)
    here = BASE + 6 * 512
    assert sorted(run(refs, block, 6)) == sorted(
        [(here + 384, 1, 0), (here + 256, 1, 0), (3 << 56 | 99 << 12 | 3 * 512 + 128, 1, 0)]
    )
    assert sorted(run(refcnt, block, 6)) == [(here + 256, 5, 0), (here + 384, 1, 0)]


def test_udfs_agree_with_scan_on_random_sectors() -> None:
    rng = random.Random(11)
    for _ in range(300):
        data = sector.fresh(1)
        for number in range(rng.randrange(12)):
            name = b"%d" % number + b"n" * rng.randrange(20)
            slot = sector.free_slot(data)
            if slot and rng.random() < 0.6 and sector.room(data) >= sector.entry_bytes(name, False):
                put(data, slot, name)
            elif sector.room_without_slot(data) >= sector.entry_bytes(name, True, b"8" * 8):
                sector.add(data, name, 8, 0, rng.randrange(1 << 49), b"8" * 8)
        part = rng.randrange(8)
        key = 1234 * 8 + part
        block = bytes(part * 512) + bytes(data) + bytes(BLOCK - part * 512 - 512)
        expected = sorted((3 << 56 | ino << 7) for _, ino, _, _ in sector.scan(bytes(data), key))
        assert sorted(da for da, _, _ in run(refs, block, part)) == expected


def test_udfs_survive_any_bytes() -> None:
    """XN-side safety is the interpreter's; here: no garbage makes our own UDFs run away or read outside the block."""
    rng = random.Random(5)
    for _ in range(300):
        block = rng.randbytes(BLOCK)
        for program in (owns, refs, refcnt, node_owns):
            for part in (0, 7):
                run(program, block, part)
