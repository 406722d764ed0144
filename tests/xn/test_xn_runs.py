"""Plain data goes to and from the disk by runs of blocks (io.Flight, io.ReadIn): what happens to one block of a run
must not happen to the others."""

from __future__ import annotations

import errno
import random
import struct

import pytest
from toy import DEV, Sector, Toy, da, take_pages

from xok_host.abi.calls import Op, OpKind, pack_extents, pack_transaction
from xok_host.abi.errors import BadCapability, LimitReached, MediaError
from xok_host.abi.types import BLOCK, CHUNK_PAGES, SECTORS, TYPE_XN_DB, Flag
from xok_host.kernel.local import LocalXok
from xok_host.kernel.pages import Pages, PlainMemory
from xok_host.kernel.pageset import PageSet
from xok_host.kernel.request import IoOp, IoRequest
from xok_host.kernel.xn.io import MAX_RUN

MANY = MAX_RUN * 2 + 100


class Extent:
    """`count` blocks of plain data below sector 0 of a toy's root."""

    def __init__(self, toy: Toy, count: int) -> None:
        self.toy, self.count = toy, count
        self.first = toy.free_block(count, 1000)
        new = toy.sector(toy.root, 0)
        new.pointers.append((self.first, count, TYPE_XN_DB, 0))
        toy.transact(toy.modify(toy.root, 0, new, OpKind.ALLOC, db=self.first, count=count, type=TYPE_XN_DB))

    def blocks(self) -> range:
        return range(self.first, self.first + self.count)

    def publish(self, first: int, count: int, version: int) -> None:
        """New contents for `count` blocks; each block differs."""
        pages = take_pages(self.toy.env, self.toy.cap, count)
        ops = []
        for db, page in zip(range(first, first + count), pages, strict=True):
            self.toy.env.page(page)[:] = contents(db, version)
            if ops and ops[-1].page + ops[-1].count == page and page % CHUNK_PAGES:
                ops[-1].count += 1
            else:
                ops.append(Op(OpKind.PUBLISH, da(self.toy.root), 0, db=db, count=1, type=TYPE_XN_DB, page=page))
        self.toy.transact(*ops)

    def write(self) -> int:
        data = pack_extents([(self.first, self.count, 0)])
        return self.toy.env.submit("writebackv", DEV, data=data)

    def on_disk(self, db: int) -> bytes:
        return self.toy.local.disk.read_block(db)

    def states(self) -> set[tuple[int, int, int]]:
        """(dirty, in flight, written) of the blocks."""
        found = [self.toy.entry(db) for db in self.blocks()]
        return {(entry.dirty, entry.in_flight, entry.written) for entry in found}


def contents(db: int, version: int) -> bytes:
    return struct.pack("<II", db, version) * (BLOCK // 8)


@pytest.fixture
def extent() -> Extent:
    made = Extent(Toy(LocalXok(nblocks=8192)), MANY)
    made.publish(made.first, MANY, 1)
    return made


def read(toy: Toy) -> int:
    """Blocks that were read from the disk."""
    return toy.env.counters.as_dict()["disk_blocks_read"]


def requests_of(local: LocalXok, op: IoOp) -> list[IoRequest]:
    return [request for request in local.held if request.op is op]


def test_runs_are_written_and_read_in_few_requests(extent: Extent) -> None:
    toy = extent.toy
    toy.local.hold_io = True
    cookie = extent.write()
    toy.local.pump()
    writes = requests_of(toy.local, IoOp.WRITE)
    assert len(writes) <= 2 + (MANY + MAX_RUN - 1) // MAX_RUN, "a run may be cut where a chunk of memory ends"
    assert all(request.sectors <= MAX_RUN * SECTORS for request in writes)
    assert extent.states() == {(0, 255, 0)}
    toy.local.hold_io = False
    toy.local.release_io()
    answer = toy.env.wait(cookie)
    assert (answer.code, answer.r0, answer.r1) == (0, MANY, MANY) and extent.states() == {(0, 0, 255)}
    toy.flush()
    assert extent.states() == {(0, 0, 0)} and all(toy.entry(db).durable == 255 for db in extent.blocks())
    toy.durable(toy.root)
    assert toy.env.call("delete_attr", DEV, data=pack_extents([(extent.first, MANY, 0)])).r0 == MANY
    before = read(toy)
    data = pack_extents([(extent.first, MANY, 0)])
    assert toy.env.call("insert_and_read", da(toy.root), cap=toy.cap, data=data).r0 == MANY
    assert read(toy) - before == MANY
    for db in extent.blocks():
        assert bytes(toy.env.page(toy.entry(db).page)) == contents(db, 1)
    assert toy.entry(extent.first).flags & Flag.VALID


def test_what_a_transaction_allocates_it_may_publish(extent: Extent) -> None:
    """None of the blocks is in core when the transaction is looked at, and all are when their pages come."""
    toy = extent.toy
    block = toy.free_block(4, extent.first + MANY)
    new = toy.sector(toy.root, 1)
    new.pointers.append((block, 4, TYPE_XN_DB, 0))
    pages = take_pages(toy.env, toy.cap, 3)
    for page in pages:
        toy.env.page(page)[:] = contents(page, 2)
    publish = [Op(OpKind.PUBLISH, da(toy.root), 1, db=block + 1, count=1, type=TYPE_XN_DB, page=pages[0])]
    publish += [
        Op(OpKind.PUBLISH, da(toy.root), 1, db=db, count=1, type=TYPE_XN_DB, page=page)
        for db, page in zip((block + 1, block + 3), pages[1:], strict=True)
    ]
    toy.transact(toy.modify(toy.root, 1, new, OpKind.ALLOC, db=block, count=4, type=TYPE_XN_DB), *publish)
    assert [entry.db for entry in toy.local.kernel.registry.cached.values()].count(block + 1) == 1
    assert toy.entry(block + 1).page == pages[1], "the later of two"
    data = pack_extents([(block + 1, 1, 0), (block + 3, 1, 0)])
    toy.env.call("writebackv", DEV, data=data)
    assert [extent.on_disk(db) for db in (block + 1, block + 3)] == [contents(page, 2) for page in pages[1:]]


def test_a_block_that_was_prefetched_may_be_allocated_and_published(extent: Extent) -> None:
    """What waited in quarantine goes, and the page belongs to the block that took its place."""
    toy = extent.toy
    block = toy.free_block(1, extent.first + MANY)
    toy.env.call("read_and_insert", DEV, data=pack_extents([(block, 1, 0)]))
    assert toy.entry(block).flags & Flag.QUARANTINE
    (page,) = take_pages(toy.env, toy.cap, 1)
    toy.env.page(page)[:] = contents(block, 2)
    in_use = toy.local.kernel.pages.in_use
    new = toy.sector(toy.root, 1)
    new.pointers.append((block, 1, TYPE_XN_DB, 0))
    allocate = toy.modify(toy.root, 1, new, OpKind.ALLOC, db=block, count=1, type=TYPE_XN_DB)
    toy.transact(allocate, Op(OpKind.PUBLISH, da(toy.root), 1, db=block, count=1, type=TYPE_XN_DB, page=page))
    assert toy.entry(block).page == page and not any(entry.dead for entry in toy.env.kernel_env.unsettled)
    assert toy.local.kernel.pages.in_use == in_use - 1, "the prefetched page is free"
    toy.env.call("writebackv", DEV, data=pack_extents([(block, 1, 0)]))
    assert extent.on_disk(block) == contents(block, 2)


def test_a_run_that_fails_leaves_all_its_blocks_dirty(extent: Extent) -> None:
    toy = extent.toy
    bad = (extent.first + MAX_RUN + 7) * SECTORS
    toy.local.disk.fail = lambda r: errno.EIO if r.op is IoOp.WRITE and r.sector <= bad < r.sector + r.sectors else 0
    assert isinstance(
        pytest.raises(MediaError, toy.env.call, "writeback", DEV, extent.first, MANY, 0).value, MediaError
    )
    dirty = [db for db in extent.blocks() if toy.entry(db).dirty]
    assert bad // SECTORS in dirty and len(dirty) <= MAX_RUN and not toy.entry(extent.first).dirty
    toy.local.disk.fail = lambda request: 0
    toy.env.call("writeback", DEV, extent.first, MANY, 0)
    toy.flush()
    assert extent.states() == {(0, 0, 0)} and all(extent.on_disk(db) == contents(db, 1) for db in extent.blocks())


def test_a_failed_flush_makes_the_blocks_of_a_run_dirty_again(extent: Extent) -> None:
    toy = extent.toy
    toy.env.wait(extent.write())
    toy.local.disk.fail = lambda request: errno.EIO if request.op is IoOp.FLUSH else 0
    pytest.raises(MediaError, toy.flush)
    assert extent.states() == {(255, 0, 0)}
    toy.local.disk.fail = lambda request: 0
    toy.env.wait(extent.write())
    toy.flush()
    assert extent.states() == {(0, 0, 0)}


def test_contents_published_while_a_run_is_on_its_way_are_written_after_it(extent: Extent) -> None:
    """IO-2, IO-3."""
    toy, middle = extent.toy, extent.first + 40
    toy.local.hold_io = True
    first = extent.write()
    extent.publish(middle, 3, 2)
    entry = toy.entry(middle)
    assert (entry.dirty, entry.in_flight) == (255, 255)
    second = extent.write()
    assert all(r.op is IoOp.WRITE for r in toy.local.held) and toy.entry(middle).dirty == 255
    toy.local.release_io()
    assert toy.env.wait(first).code == 0 and extent.on_disk(middle) == contents(middle, 1)
    toy.local.hold_io = False
    toy.local.pump()
    toy.local.release_io()
    assert toy.env.wait(second).code == 0
    assert extent.on_disk(middle + 2) == contents(middle + 2, 2)
    assert extent.on_disk(middle + 3) == contents(middle + 3, 1)
    toy.flush()
    assert extent.states() == {(0, 0, 0)}


def test_blocks_that_are_freed_while_their_run_is_on_its_way_are_reused_after_it(extent: Extent) -> None:
    toy = extent.toy
    toy.env.wait(extent.write())
    toy.flush()
    toy.durable(toy.root)
    extent.publish(extent.first, MANY, 2)
    in_use = toy.local.kernel.pages.in_use
    toy.local.hold_io = True
    cookie = extent.write()
    toy.transact(toy.modify(toy.root, 0, Sector(), OpKind.FREE, db=extent.first, count=MANY, type=TYPE_XN_DB))
    assert toy.entry(extent.first) is None and toy.env.call("info", DEV).r1 == MANY
    assert toy.local.kernel.pages.in_use == in_use, "what is on its way holds its pages"
    toy.local.hold_io = False
    toy.local.release_io()
    assert toy.env.wait(cookie).code == 0
    assert toy.local.kernel.pages.in_use == in_use - MANY
    assert toy.env.call("info", DEV).r1 == MANY, "the root on the disk still points there"
    toy.durable(toy.root)
    assert toy.env.call("info", DEV).r1 == 0


def test_a_read_that_fails_leaves_no_block_of_its_run(extent: Extent) -> None:
    """IO-5, and who waits for the same blocks is told."""
    toy = extent.toy
    toy.env.wait(extent.write())
    toy.flush()
    toy.durable(toy.root)
    everything = pack_extents([(extent.first, MANY, 0)])
    toy.env.call("delete_attr", DEV, data=everything)
    in_use = toy.local.kernel.pages.in_use
    toy.local.hold_io = True
    cookies = [toy.env.submit("insert_and_read", da(toy.root), cap=toy.cap, data=everything) for _ in range(2)]
    toy.local.pump()
    assert sum(r.sectors for r in requests_of(toy.local, IoOp.READ)) == MANY * SECTORS
    published = extent.first + 5
    extent.publish(published, 2, 3)  # who has new contents need not wait for the old ones
    bad = (extent.first + MAX_RUN + 7) * SECTORS
    toy.local.disk.fail = lambda r: errno.EIO if r.sector <= bad < r.sector + r.sectors else 0
    toy.local.hold_io = False
    toy.local.release_io()
    assert [toy.env.wait(cookie).code for cookie in cookies] == [MediaError.code, MediaError.code]
    left = [db for db in extent.blocks() if toy.entry(db) is not None]
    assert bad // SECTORS not in left and len(left) >= MANY - MAX_RUN
    assert bytes(toy.env.page(toy.entry(published + 1).page)) == contents(published + 1, 3)
    assert bytes(toy.env.page(toy.entry(published + 2).page)) == contents(published + 2, 1)
    assert toy.local.kernel.pages.in_use == in_use + len(left)


def test_only_whole_blocks_of_data_go_by_runs(extent: Extent) -> None:
    """Clean blocks and masks cut a run; every sector that was asked for is written once."""
    toy = extent.toy
    toy.env.wait(extent.write())
    extent.publish(extent.first, 3, 2)
    extent.publish(extent.first + 5, 2, 2)
    answer = toy.env.call("writeback", DEV, extent.first, 8, 0)
    assert (answer.r0, answer.r1) == (5, 5)
    extent.publish(extent.first, 4, 3)
    answer = toy.env.call("writeback", DEV, extent.first, 4, 0b101)
    assert (answer.r0, answer.r1) == (8, 4) and toy.entry(extent.first).dirty == 0b11111010
    toy.env.wait(extent.write())
    toy.flush()
    assert extent.states() == {(0, 0, 0)}
    assert [extent.on_disk(extent.first + i)[4] for i in range(8)] == [3, 3, 3, 3, 1, 2, 2, 1]


def test_a_run_of_pages_is_published_whole_or_not_at_all(extent: Extent) -> None:
    toy = extent.toy
    pages = take_pages(toy.env, toy.cap, 4)
    toy.env.call("page_free", data=struct.pack("<Q", pages[2]))
    op = Op(OpKind.PUBLISH, da(toy.root), 0, db=extent.first, count=4, type=TYPE_XN_DB, page=pages[0])
    with pytest.raises(BadCapability, match=f"page {pages[2]} is not an unpublished page"):
        toy.env.call("transact", cap=toy.cap, data=pack_transaction([op]))
    op.page = (1 << 64) - 2  # the run would go round all numbers
    with pytest.raises(BadCapability, match=f"page {op.page} is not an unpublished page"):
        toy.env.call("transact", cap=toy.cap, data=pack_transaction([op]))
    assert set(toy.env.kernel_env.pages) == {pages[0], pages[1], pages[3]}


def test_a_page_set_is_a_set() -> None:
    """PAGESET-1: runs over the bounds of chunks, against Python's set."""
    dice, pages, model = random.Random(3), PageSet(), set[int]()
    for _ in range(2000):
        first, count = dice.randrange(3 * CHUNK_PAGES), dice.choice([1, 2, 30, CHUNK_PAGES, 2500])
        run = set(range(first, first + count))
        assert pages.holds(first, count) == (run <= model)
        if run <= model:
            pages.remove(first, count)
            model -= run
        elif not run & model:
            pages.add(first, count)
            model |= run
        elif dice.random() < 0.2:
            for page in run & model:
                pages.remove(page, 1)
            model -= run
        assert len(pages) == len(model) and (first in pages) == (first in model)
    assert list(pages) == sorted(model)
    pages.clear()
    assert not pages and not list(pages)


def test_memory_for_a_run_is_all_or_nothing() -> None:
    pages = Pages(PlainMemory(8))
    arena = pages.arena(pages.access(frozenset({1}), frozenset({1})))
    first = pages.alloc_runs(arena, CHUNK_PAGES * 3 // 2)
    assert sum(length for _, length in first) == pages.in_use == CHUNK_PAGES * 3 // 2
    pytest.raises(LimitReached, pages.alloc_runs, arena, CHUNK_PAGES * 6)
    assert pages.in_use == CHUNK_PAGES * 3 // 2
    for start, length in first:
        pages.hold_run(start, length)
        pages.drop_run(start, length)
    assert pages.in_use == CHUNK_PAGES * 3 // 2
    for start, length in first:
        pages.drop_run(start, length)
    assert pages.in_use == 0
