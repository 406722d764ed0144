"""Contents without holes, over extents: against lists of blocks, and on XN."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libfs import contents
from libfs.contents import Extents
from xok_host.abi import errors
from xok_host.abi.blocks import TRIES, Blocks
from xok_host.abi.calls import OpKind
from xok_host.abi.declare import Structure, u32, u64
from xok_host.abi.derive import derive, owns
from xok_host.abi.install import install_type
from xok_host.abi.ops import in_blocks
from xok_host.abi.types import BLOCK, SECTOR, TYPE_XN_DB
from xok_host.abi.views import FreeMapView
from xok_host.kernel.local import DEV, LocalXok

some_extents = st.lists(st.tuples(st.integers(1, 1 << 40), st.integers(1, 50)), max_size=6).map(tuple)


def flat(extents: Extents) -> list[int]:
    return [db for start, count in extents for db in range(start, start + count)]


@given(some_extents, st.integers(0, 400))
def test_the_block_at_an_index(extents: Extents, index: int) -> None:
    blocks = flat(extents)
    assert contents.block_at(extents, index) == (blocks[index] if index < len(blocks) else 0)


@given(some_extents, st.integers(0, 400))
def test_a_cut_keeps_the_first_and_gives_the_others(extents: Extents, keep: int) -> None:
    kept, gone = contents.cut(extents, keep)
    blocks = flat(extents)
    assert (flat(kept), flat(gone)) == (blocks[:keep], blocks[keep:])
    assert all(count for _, count in (*kept, *gone))
    assert len(kept) + len(gone) <= len(extents) + 1


@given(st.integers(0, 1 << 40), st.binary(max_size=3 * BLOCK))
def test_bytes_are_divided_at_block_borders(start: int, data: bytes) -> None:
    """`in_blocks`: neighbours in order, each in one block."""
    at = start
    for block, offset, piece in in_blocks(start, data):
        assert block * BLOCK + offset == at and 0 < len(piece) <= BLOCK - offset
        assert piece == data[at - start :][: len(piece)]
        at += len(piece)
    assert at == start + len(data)


def free_map(used: Iterable[int], nblocks: int = 512) -> FreeMapView:
    memory = bytearray(nblocks // 8)
    for db in {0, *used}:
        memory[db >> 3] |= 1 << (db & 7)
    return FreeMapView(memoryview(memory), nblocks)


@pytest.mark.parametrize(
    ("extents", "used", "grown"),
    [
        ((), (), ((40, 1),)),
        ((), range(40, 50), ((50, 1),)),
        ((), range(40, 500), ((500, 1),)),
        ((), range(40, 512), ((1, 1),)),
        (((60, 3),), range(60, 63), ((60, 4),)),
        (((7, 1), (60, 3)), range(60, 63), ((7, 1), (60, 4))),
        (((60, 3),), range(60, 64), ((60, 3), (64, 1))),
        (((60, 3),), (63, *range(100, 300)), ((60, 3), (300, 1))),  # 64 to 99 is no room to go on
        (((60, 3),), (63, *range(30, 512, 40)), ((60, 3), (64, 1))),  # there is no such room anywhere
        (((510, 2),), (510, 511), ((510, 2), (1, 1))),
        (((60, 3),), {*range(512)} - {9}, ((60, 3), (9, 1))),
    ],
)
def test_a_file_grows_where_it_ends_and_else_where_there_is_room(extents: Any, used: Any, grown: Extents) -> None:
    assert contents.one_more(extents, free_map(used), 512 * 3 + 40, 4) == grown


def test_a_file_that_cannot_grow() -> None:
    for used, most, code in ((range(512), 1, errno.ENOSPC), (range(512), 2, errno.ENOSPC), ((43,), 1, errno.EFBIG)):
        with pytest.raises(OSError) as refused:
            contents.one_more(((40, 3),), free_map(used), 0, most)
        assert refused.value.errno == code
    assert contents.one_more(((40, 3),), free_map(()), 0, 1) == ((40, 4),)


NODE = Structure(
    "node",
    u64("block", "first block"),
    u32("count", "blocks"),
    size=SECTOR,
    meaning=[owns("block", "count", type=int(TYPE_XN_DB))],
)


@dataclass
class File:
    place: tuple[int, int]
    size: int
    extents: Extents


class Disk:
    """A tree of one node on XN in this process, and a file in it."""

    def __init__(self, data: bytes) -> None:
        self.xok = LocalXok(512)
        self.env = self.xok.environment()
        kind = install_type(self.env, DEV, "node", derive(NODE, b"node").pack())
        made = self.env.call("install_mount", DEV, 0, 1, kind, data=b"tree")
        self.blocks = Blocks(self.env, DEV, "tree", made.r1)
        self.file = File((made.r0, 3), 0, ())
        for _, _, piece in in_blocks(0, data):
            self.add(piece)

    def add(self, piece: bytes) -> None:
        file = self.file
        file.extents = contents.one_more(file.extents, self.blocks.free, 100, 1)
        ((start, count),) = file.extents
        put = self.blocks.put(OpKind.ALLOC, file.place, start + count - 1, piece)
        self.transact(put)
        file.size += len(piece)

    def transact(self, *ops: object) -> None:
        ((start, count),) = self.file.extents
        write = (self.file.place[1] * SECTOR, NODE.pack(block=start, count=count))
        modify = self.blocks.op(OpKind.MODIFY, self.file.place, writes=[write])
        self.blocks.transact([*ops, modify])  # type: ignore[list-item]

    def read(self, offset: int, size: int) -> bytes:
        return contents.bytes_of(self.blocks, self.file, offset, size)


DATA = bytes(range(1, 252)) * 50


def test_a_range_is_read_through_blocks() -> None:
    disk = Disk(DATA)
    for offset in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5, len(DATA) - 1, len(DATA), len(DATA) + 1, 9 * BLOCK):
        for size in (0, 1, 100, BLOCK, 2 * BLOCK + 1, 1 << 40):
            assert disk.read(offset, size) == DATA[offset : offset + size], (offset, size)


def test_what_is_not_in_core_comes_in_one_crossing() -> None:
    disk = Disk(DATA)
    disk.blocks.sync()
    disk.xok.stop()
    disk.xok = LocalXok(disk=disk.xok.disk, format=False)
    env = disk.xok.environment(roots=["tree"])
    env.call("type_mount", DEV, data=b"node")
    disk.blocks = Blocks(env, DEV, "tree", env.caps[0].index)
    calls: list[str] = []
    real = env.call

    def call(name: str, *args: Any, **named: Any) -> Any:
        calls.append(name)
        return real(name, *args, **named)

    env.call = call  # type: ignore[method-assign]
    assert disk.read(5, len(DATA)) == DATA[5:] and disk.read(0, 9) == DATA[:9]
    assert [name for name in calls if name != "chunk_map"] == ["insert_and_read"]


def test_beyond_the_size_are_zeros_whatever_the_block_has() -> None:
    """CON-2, and a copy that may be changed."""
    disk = Disk(DATA)
    disk.file.size = BLOCK + 10
    block = contents.block_of(disk.blocks, disk.file, 1)
    assert block == DATA[BLOCK : BLOCK + 10].ljust(BLOCK, b"\0")
    block[:] = bytes(BLOCK)
    assert contents.block_of(disk.blocks, disk.file, 1)[:10] == DATA[BLOCK : BLOCK + 10]
    assert contents.block_of(disk.blocks, disk.file, 2) == contents.block_of(disk.blocks, disk.file, 77) == bytes(BLOCK)
    assert disk.read(0, 1 << 40) == DATA[: BLOCK + 10]


def test_put_gives_a_block_other_contents() -> None:
    disk = Disk(DATA)
    second = contents.block_at(disk.file.extents, 1)
    disk.transact(disk.blocks.put(OpKind.PUBLISH, disk.file.place, second, b"short"))
    assert disk.read(BLOCK, BLOCK) == b"short".ljust(BLOCK, b"\0")
    assert disk.read(0, BLOCK) == DATA[:BLOCK]


def test_blocks_for() -> None:
    assert [contents.blocks_for(size) for size in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]


@pytest.mark.parametrize("name", ["page_alloc", "insert_and_read", "mount", "transact"])
def test_a_call_without_room_is_made_again_a_bounded_number_of_times(name: str) -> None:
    """BLK-4: each looks further for what can leave; where nothing can, the refusal is told."""
    disk = Disk(DATA)
    calls = {
        "page_alloc": lambda: disk.blocks.pages(b"x"),
        "mount": lambda: Blocks(disk.env, DEV, "tree", disk.blocks.cap),
    }
    calls["insert_and_read"] = lambda: disk.blocks.bring(disk.file.place, [disk.blocks.free.nblocks - 1])
    calls["transact"] = lambda: disk.transact()
    real, left, tried = disk.env.call, 0, 0

    def call(called: str, *args: Any, **named: Any) -> Any:
        nonlocal left, tried
        if called != name:
            return real(called, *args, **named)
        tried += 1
        if tried <= left:
            raise errors.LimitReached("no room")
        return SimpleNamespace(data=b"") if name == "insert_and_read" else real(called, *args, **named)

    disk.env.call = call  # type: ignore[method-assign]
    for refusals, reached in ((TRIES - 1, True), (1000, False)):
        left, tried = refusals, 0
        with contextlib.nullcontext() if reached else pytest.raises(errors.LimitReached):
            calls[name]()
        assert tried == TRIES
