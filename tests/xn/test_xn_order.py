"""Ordered writes (ORDER-1 to ORDER-7), one rule a test."""

from __future__ import annotations

import time

import pytest
from toy import DEV, Sector, Toy, da, element

from xok_host.abi.calls import Op, OpFlag, OpKind, pack_extents
from xok_host.abi.errors import BogusUpdate, MediaError, Tainted, WouldCycle
from xok_host.abi.types import CHUNK_PAGES, SECTOR, SECTORS, TYPE_XN_DB, Flag
from xok_host.kernel.local import LocalXok
from xok_host.kernel.request import MAX_REQUEST_SECTORS, IoOp, IoRequest, Piece, requests
from xok_host.kernel.xn import order, recover
from xok_host.kernel.xn.order import attached


@pytest.fixture
def toy(toy: Toy) -> Toy:
    """Its root is durable."""
    toy.durable(toy.root)
    toy.flush()
    return toy


def on_disk(toy: Toy, db: int, sector: int) -> Sector:
    return Sector.unpack(toy.local.disk.read_sectors(db * SECTORS + sector, 1))


def test_a_pointer_waits_for_the_contents(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"contents")
    with pytest.raises(Tainted) as caught:
        toy.writeback(toy.root)
    assert caught.value.fields["r0"] == block
    toy.writeback(block)
    with pytest.raises(Tainted):  # written is not durable
        toy.writeback(toy.root)
    toy.flush()
    toy.writeback(toy.root)
    assert on_disk(toy, toy.root, 1).pointers == [(block, 1, TYPE_XN_DB, 0)]


def test_uninitialised_data_counts_as_well(toy: Toy) -> None:
    block, new = toy.free_block(), toy.sector(toy.root, 1)
    new.pointers.append((block, 1, TYPE_XN_DB, 0))
    toy.transact(toy.modify(toy.root, 1, new, OpKind.ALLOC, db=block, count=1, type=TYPE_XN_DB))
    assert not toy.flags(block) & Flag.VALID
    with pytest.raises(Tainted):
        toy.writeback(toy.root)
    toy.transact(Op(OpKind.PUBLISH, da(toy.root), 1, db=block, count=1, page=toy.page(b"now")))
    toy.durable(block)
    toy.writeback(toy.root)


def test_taint_is_of_sectors(toy: Toy) -> None:
    toy.add_data(toy.root, 1, b"x")
    toy.transact(toy.modify(toy.root, 2, Sector(generation=7)))
    toy.writeback(toy.root, mask=1 << 2)
    assert on_disk(toy, toy.root, 2).generation == 7
    assert toy.entry(toy.root).dirty == 1 << 1


def test_the_untainted_sectors_go_even_if_others_are_refused(toy: Toy) -> None:
    toy.add_data(toy.root, 1, b"x")
    toy.transact(toy.modify(toy.root, 2, Sector(generation=7)))
    with pytest.raises(Tainted):
        toy.writeback(toy.root)
    assert on_disk(toy, toy.root, 2).generation == 7


def test_unattached_subtrees_need_two_flushes_whatever_their_depth(toy: Toy) -> None:
    chain = [toy.add_node(toy.root, 0)]
    for _ in range(5):
        chain.append(toy.add_node(chain[-1], 3))
    block = toy.add_data(chain[-1], 4, b"deep")
    toy.writeback(*chain, block)  # parents first, and nobody minds
    assert toy.entry(toy.root).taint == 1
    toy.flush()
    assert toy.entry(toy.root).taint == 0
    toy.durable(toy.root)
    assert recover.reconstruct(toy.local.disk.read_block, toy.local.disk.nblocks).trees["toy"] == 8


def test_a_child_that_changes_before_it_is_attached_taints_again(toy: Toy) -> None:
    node = toy.add_node(toy.root, 0)
    toy.durable(node)
    assert toy.entry(toy.root).taint == 0
    toy.add_data(node, 1, b"x")
    with pytest.raises(Tainted):
        toy.writeback(toy.root)
    assert not toy.flags(node) & Flag.ATTACHED


def test_an_attached_child_is_ordered_by_itself(toy: Toy) -> None:
    node = toy.add_node(toy.root, 0)
    toy.durable(node)
    toy.writeback(toy.root)
    block = toy.add_data(node, 1, b"x")
    assert toy.entry(toy.root).taint == 0
    with pytest.raises(Tainted):
        toy.writeback(node)
    toy.durable(block)
    toy.writeback(node)


def test_a_freed_block_waits_until_its_pointer_is_gone_for_good(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    toy.durable(block)
    toy.durable(toy.root)
    toy.remove(toy.root, 1, block)
    freemap = toy.env.freemaps[DEV]
    assert not freemap.is_free(block) and toy.env.call("info", DEV, out_bytes=64).r1 == 1
    toy.writeback(toy.root)
    assert not freemap.is_free(block)
    toy.flush()
    assert freemap.is_free(block) and toy.env.call("info", DEV, out_bytes=64).r1 == 0


def test_a_block_whose_pointer_never_left_is_free_at_once(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    toy.durable(block)
    toy.remove(toy.root, 1, block)
    assert toy.env.freemaps[DEV].is_free(block)


def test_a_block_on_its_way_to_the_disk_is_not_reused(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    toy.local.hold_io = True
    toy.env.submit("writebackv", DEV, data=pack_extents([(block, 1, 0)]))
    toy.local.pump()
    toy.remove(toy.root, 1, block)
    assert not toy.env.freemaps[DEV].is_free(block)
    toy.local.hold_io = False
    toy.local.release_io()
    assert toy.env.freemaps[DEV].is_free(block)


def test_modification_never_waits_for_a_write(toy: Toy) -> None:
    toy.transact(toy.modify(toy.root, 1, Sector(generation=1)))
    toy.local.hold_io = True
    toy.env.submit("writebackv", DEV, data=pack_extents([(toy.root, 1, 0)]))
    toy.local.pump()
    page = toy.entry(toy.root).page
    toy.transact(toy.modify(toy.root, 1, Sector(generation=2)))
    entry = toy.entry(toy.root)
    assert entry.page != page and entry.in_flight == entry.dirty == 1 << 1
    again = toy.env.submit("writebackv", DEV, data=pack_extents([(toy.root, 1, 0)]))
    toy.local.pump()
    assert len([request for request in toy.local.held if request.op == IoOp.WRITE]) == 1
    toy.local.hold_io = False
    toy.local.release_io()
    assert toy.env.wait(again).code == 0
    assert on_disk(toy, toy.root, 1).generation == 2


def test_a_count_rises_before_its_reference_and_falls_after(toy: Toy) -> None:
    """The element is in sector 3, the reference in sector 4."""
    counted, referring = Sector(), Sector(references=[element(toy.root, 3, 0)])
    counted.counts[0] = 1
    toy.transact(toy.modify(toy.root, 3, counted), toy.modify(toy.root, 4, referring))
    with pytest.raises(Tainted):
        toy.writeback(toy.root, mask=1 << 4)
    toy.writeback(toy.root, mask=1 << 3)
    toy.flush()
    toy.writeback(toy.root, mask=1 << 4)
    toy.flush()
    toy.transact(toy.modify(toy.root, 3, Sector()), toy.modify(toy.root, 4, Sector()))
    with pytest.raises(Tainted):
        toy.writeback(toy.root, mask=1 << 3)
    toy.writeback(toy.root, mask=1 << 4)
    toy.flush()
    toy.writeback(toy.root, mask=1 << 3)


def test_a_reference_waits_until_its_element_can_be_reached(toy: Toy) -> None:
    node = toy.add_node(toy.root, 1)
    counted, referring = Sector(), Sector(references=[element(node, 0, 0)])
    counted.counts[0] = 1
    toy.transact(toy.modify(node, 0, counted), toy.modify(toy.root, 2, referring))
    toy.durable(node)
    with pytest.raises(Tainted):  # the element is durable, the pointer to its block is not
        toy.writeback(toy.root, mask=1 << 2)
    toy.writeback(toy.root, mask=1 << 1)
    with pytest.raises(Tainted):
        toy.writeback(toy.root, mask=1 << 2)
    toy.flush()
    toy.writeback(toy.root, mask=1 << 2)


def test_a_pointer_goes_after_the_references_into_what_it_leads_to(toy: Toy) -> None:
    node = toy.add_node(toy.root, 1)
    counted, referring = Sector(), Sector(references=[element(node, 0, 0)])
    counted.counts[0] = 1
    toy.transact(toy.modify(node, 0, counted), toy.modify(toy.root, 2, referring))
    toy.local.sync()
    toy.transact(toy.modify(node, 0, Sector()), toy.modify(toy.root, 2, Sector()))
    toy.remove(toy.root, 1, node)
    with pytest.raises(Tainted):
        toy.writeback(toy.root, mask=1 << 1)
    toy.writeback(toy.root, mask=1 << 2)
    toy.flush()
    toy.writeback(toy.root, mask=1 << 1)


def test_what_would_wait_for_itself_is_refused(toy: Toy) -> None:
    up, down = Sector(), Sector()
    up.counts[0] = down.counts[0] = 1
    up.references, down.references = [element(toy.root, 4, 0)], [element(toy.root, 3, 0)]
    with pytest.raises(WouldCycle) as caught:
        toy.transact(toy.modify(toy.root, 3, up), toy.modify(toy.root, 4, down))
    assert caught.value.fields["r0"] == toy.root
    half, counted = Sector(references=[element(toy.root, 3, 0)]), Sector()
    counted.counts[0] = 1
    toy.transact(toy.modify(toy.root, 3, counted), toy.modify(toy.root, 4, half))
    with pytest.raises(WouldCycle):
        toy.transact(toy.modify(toy.root, 3, up), toy.modify(toy.root, 4, down))
    toy.local.sync()
    toy.transact(toy.modify(toy.root, 3, up), toy.modify(toy.root, 4, down))
    toy.local.sync()


def test_moved_data_is_never_owned_twice(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    toy.local.sync()
    pointer = toy.sector(toy.root, 1).pointers
    toy.transact(toy.modify(toy.root, 1, Sector()), toy.modify(toy.root, 2, Sector(pointers=pointer)))
    with pytest.raises(Tainted):
        toy.writeback(toy.root, mask=1 << 2)
    toy.writeback(toy.root, mask=1 << 1)
    toy.flush()
    toy.writeback(toy.root, mask=1 << 2)
    assert toy.entry(block) is not None


def test_metadata_does_not_move_where_a_crash_would_lose_it(toy: Toy) -> None:
    toy.add_node(toy.root, 1)
    pointer = toy.sector(toy.root, 1).pointers
    with pytest.raises(BogusUpdate):
        toy.transact(toy.modify(toy.root, 1, Sector()), toy.modify(toy.root, 2, Sector(pointers=pointer)))


def test_metadata_moves_below_the_sector_that_leads_to_it(toy: Toy) -> None:
    """The growth of an extent tree: what the inode owned, its first node owns now, in one transaction."""
    node = toy.add_node(toy.root, 1)
    toy.local.sync()
    pointer = toy.sector(toy.root, 1).pointers
    above = toy.free_block()
    toy.transact(
        toy.modify(
            toy.root, 1, Sector(pointers=[(above, 1, toy.type, 0)]), OpKind.ALLOC, db=above, count=1, type=toy.type
        ),
        toy.modify(above, 5, Sector(pointers=pointer)),
    )
    toy.writeback(above)
    toy.flush()
    assert on_disk(toy, toy.root, 1).pointers == pointer  # still the old way in
    toy.durable(toy.root)
    report = recover.reconstruct(toy.local.disk.read_block, toy.local.disk.nblocks)
    assert report.sound and report.trees["toy"] == 3
    assert toy.entry(node).parent == da(above)


def test_a_root_enters_the_catalogue_when_it_is_durable(toy: Toy) -> None:
    def roots() -> set[str]:
        return set(recover.reconstruct(toy.local.disk.read_block, toy.local.disk.nblocks).trees)

    other = Toy(toy.local, "other")
    toy.flush()
    assert "other" not in roots()
    other.durable(other.root)
    assert "other" in roots()


def test_a_failed_write_leaves_the_sectors_dirty(toy: Toy) -> None:
    toy.transact(toy.modify(toy.root, 1, Sector(generation=9)))
    toy.local.disk.fail = lambda request: 5 if request.op == IoOp.WRITE else 0
    with pytest.raises(MediaError):
        toy.writeback(toy.root)
    assert toy.entry(toy.root).dirty == 1 << 1 and toy.entry(toy.root).in_flight == 0
    toy.local.disk.fail = lambda request: 0
    toy.writeback(toy.root)
    assert on_disk(toy, toy.root, 1).generation == 9


def test_after_a_failed_flush_everything_is_written_again(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    toy.writeback(block)

    def fail(request: IoRequest) -> int:
        return 5 if request.op == IoOp.FLUSH else 0

    toy.local.disk.fail = fail
    with pytest.raises(MediaError):
        toy.flush()
    assert toy.entry(block).dirty == 0xFF and toy.entry(block).durable == 0
    toy.local.disk.fail = lambda request: 0
    with pytest.raises(Tainted):
        toy.writeback(toy.root)
    toy.local.sync()
    report = recover.reconstruct(toy.local.disk.read_block, toy.local.disk.nblocks)
    assert report.sound and report.trees["toy"] == 2


def test_requests_are_sorted_and_merged(toy: Toy) -> None:
    first, new = toy.free_block(16, 100), toy.sector(toy.root, 1)
    new.pointers.append((first, 16, TYPE_XN_DB, 0))
    toy.transact(toy.modify(toy.root, 1, new, OpKind.ALLOC, db=first, count=16, type=TYPE_XN_DB, flags=OpFlag.ZERO))
    toy.local.hold_io = True
    toy.env.submit("writebackv", DEV, data=pack_extents([(first + i, 1, 0) for i in reversed(range(16))]))
    toy.local.pump()
    (request,) = toy.local.held
    assert request.sector == first * SECTORS and request.sectors == 16 * SECTORS
    assert sum(count for _, _, count in request.iov) * SECTOR == 65536


class Told(Piece):
    """A piece that remembers its end."""

    def arrived(self, errno: int) -> None:
        ends.append((self.sector, errno))


ends: list[tuple[int, int]] = []


def test_neighbours_in_memory_are_one_piece_of_a_request_unless_a_chunk_ends() -> None:
    last = CHUNK_PAGES - 1
    pieces = [Told(80, 9, 0, 8), Told(64, last, 0, 8), Told(72, last + 1, 0, 8), Told(88, 10, 0, 3), Told(91, 20, 3, 1)]
    (request,) = requests(IoOp.WRITE, 1, list(pieces))
    assert (request.sector, request.sectors) == (64, 28)
    assert request.iov == [(last, 0, 8), (last + 1, 0, 8), (9, 0, 11), (20, 3, 1)]
    for owner in request.owners:
        owner.arrived(5)
    assert ends == [(sector, 5) for sector in (64, 72, 80, 88, 91)]


def test_no_request_is_longer_than_its_bound() -> None:
    whole = MAX_REQUEST_SECTORS // SECTORS
    made = requests(IoOp.READ, 1, [Told(db * SECTORS, 5 + db, 0, SECTORS) for db in range(2 * whole + 1)])
    assert [request.sectors for request in made] == [MAX_REQUEST_SECTORS, MAX_REQUEST_SECTORS, SECTORS]
    assert [request.sector for request in made] == [0, MAX_REQUEST_SECTORS, 2 * MAX_REQUEST_SECTORS]


# ---- chains: no walk that a libOS can make long


def chain(depth: int, *, write: bool = True) -> tuple[Toy, list[int], float]:
    """`depth` blocks, each below the one before, written and flushed, the root's pointer to them not sent; and seconds
    of this process's time that writing, flushing and changing the deepest one took."""
    toy = Toy(LocalXok(depth * 2 + 1024, max_chunks=4 * (depth // 1024 + 8)))
    toy.durable(toy.root)
    first = toy.free_block(depth + 2)
    blocks = list(range(first, first + depth))
    at = toy.root
    for block in blocks:
        new = Sector(pointers=[(block, 1, toy.type, 0)])
        toy.transact(toy.modify(at, 0, new, OpKind.ALLOC, db=block, count=1, type=toy.type))
        at = block
    began = time.process_time()
    if not write:
        return toy, blocks, 0.0
    toy.env.call("writebackv", DEV, data=pack_extents([(first, depth, 0)]))
    toy.flush()
    toy.transact(toy.modify(at, 3, Sector(generation=7)))
    return toy, blocks, time.process_time() - began


@pytest.mark.slow
def test_what_a_long_chain_costs_grows_as_it_does() -> None:
    """Each of its blocks asks whether the disk leads to it, when it is written and when it is durable."""
    short = min(chain(500)[2] for _ in range(3))
    long = min(chain(8000)[2] for _ in range(2))
    assert long < 16 * short * 5, f"{short * 1e3:.1f} ms for 500 blocks, {long * 1e3:.0f} ms for 8000"


def test_what_is_remembered_of_a_chain_is_forgotten_in_time() -> None:
    """A block is attached when the pointers above it have been sent, whoever was asked before, in whatever order."""
    toy, blocks, _ = chain(20)
    device = toy.local.kernel.device(DEV)
    entries = [device.get(block) for block in blocks]
    assert not any(attached(entry) for entry in reversed(entries))
    toy.writeback(blocks[-1])
    toy.flush()
    toy.durable(toy.root)
    assert all(attached(entry) for entry in entries)


def test_a_reference_below_many_pointers_that_are_not_durable_is_refused() -> None:
    toy, blocks, _ = chain(order.MAX_LINKS + 10, write=False)
    counted = Sector()
    counted.counts[0] = 1
    referring = Sector(references=[element(blocks[-1], 4, 0)])
    ops = [toy.modify(blocks[-1], 4, counted), toy.modify(toy.root, 5, referring)]
    with pytest.raises(WouldCycle, match="pointers above are not durable"):
        toy.transact(*ops)


def test_a_wait_below_many_blocks_that_nothing_leads_to_is_refused() -> None:
    toy, blocks, _ = chain(order.MAX_ABOVE + 10)
    device = toy.local.kernel.device(DEV)
    deepest, root = device.get(blocks[-1]), device.get(toy.root)
    with pytest.raises(WouldCycle, match="blocks above wait to be led to"):
        order.check_cycle([(deepest, 3, root, 5)])
