"""What the model and the fuzzer have found: each as short as it became."""

from __future__ import annotations

import pytest
from fuzz_engine import deadline
from toy import DEV, Sector, Toy, da, install_type, take_pages, template

from xok_host.abi import errors as e
from xok_host.abi import ops as build
from xok_host.abi.calls import TEMPORARY_ROOT, Op, OpKind, pack_extents, pack_transaction
from xok_host.abi.ops import Extent, Part
from xok_host.abi.types import SECTOR, TYPE_XN_DB, LockMode
from xok_host.kernel.local import LocalXok


@pytest.fixture
def toy() -> Toy:
    return Toy(LocalXok(256, max_chunks=16, entries=1 << 9))


def part(db: int, sector: int, new: Sector) -> Part:
    return Part(da(db), sector, [(sector * SECTOR, new.pack())])


def temporary(toy: Toy) -> Toy:
    root = toy.env.call("install_mount", DEV, 0, 1, toy.type | TEMPORARY_ROOT, data=b"scratch")
    found = Toy.__new__(Toy)
    found.local, found.env, found.type, found.root, found.cap = toy.local, toy.env, toy.type, root.r0, root.r1
    return found


@pytest.mark.parametrize("make", [lambda toy: toy, temporary], ids=["lasting", "temporary"])
def test_a_node_does_not_move_below_itself(toy: Toy, make) -> None:  # type: ignore[no-untyped-def]
    """It would own itself: nothing leads there any more, and who walks up from it never ends."""
    toy = make(toy)
    node = toy.add_node(toy.root, 0)
    below = toy.add_node(node, 0)
    pointer = toy.sector(toy.root, 0).pointers
    with deadline(20):
        for into in (node, below):
            ops = build.move(part(toy.root, 0, Sector()), part(into, 1, Sector(pointers=pointer)), Extent(node, 1))
            assert toy.code("move", data=pack_transaction(ops)) is e.BogusUpdate
            plain = [toy.modify(toy.root, 0, Sector()), toy.modify(into, 1, Sector(pointers=pointer))]
            assert toy.code("transact", data=pack_transaction(plain)) is e.BogusUpdate
        toy.add_data(below, 2, b"x")


@pytest.mark.parametrize("make", [lambda toy: toy, temporary], ids=["lasting", "temporary"])
def test_two_nodes_do_not_move_below_one_another(toy: Toy, make) -> None:  # type: ignore[no-untyped-def]
    toy = make(toy)
    one, other = toy.add_node(toy.root, 0), toy.add_node(toy.root, 0)
    first, second = toy.sector(toy.root, 0).pointers
    ops = [
        toy.modify(toy.root, 0, Sector()),
        toy.modify(one, 1, Sector(pointers=[second])),
        toy.modify(other, 1, Sector(pointers=[first])),
    ]
    with deadline(20):
        assert toy.code("transact", data=pack_transaction(ops)) is e.BogusUpdate
        kept = [*ops[:2], toy.modify(toy.root, 0, Sector(pointers=[first]))]
        toy.transact(*kept)
        assert toy.sector(one, 1).pointers == [second]


def test_a_free_block_that_somebody_prefetched_can_be_allocated(toy: Toy) -> None:
    stranger = toy.local.environment()
    for hold in (False, True):
        block = toy.free_block()
        toy.local.hold_io = hold
        stranger.submit("read_and_insert", DEV, data=pack_extents([(block, 3, 0)]))
        stranger.dispatch()
        assert toy.add_node(toy.root, 0) == block
        assert toy.add_data(toy.root, 1, b"mine") == block + 1
        installed = toy.env.call("install_mount", DEV, block + 2, 1, TYPE_XN_DB, data=b"raw%d" % hold)
        assert installed.r0 == block + 2
        toy.local.hold_io = False
        toy.local.release_io()
        stranger.dispatch()
        raw = toy.env.call("readb", da(block + 1), 4, cap=toy.cap, out_bytes=4).data
        assert raw == b"mine" and toy.sector(block, 0) == Sector()
    toy.local.sync()
    toy.local.crash()
    assert toy.local.recover().sound


@pytest.mark.parametrize("name", ["free", "add_edge", "set_type", "move", "swap"])
def test_a_call_is_refused_an_operation_of_another_before_it_is_looked_into(toy: Toy, name: str) -> None:
    ops = build.alloc(Part(da(toy.root), 0), Extent(toy.root, 1, TYPE_XN_DB))
    assert toy.code(name, data=pack_transaction(ops)) is e.BadCall


def test_contents_under_anothers_exclusive_lock_are_not_replaced(toy: Toy) -> None:
    raw = toy.env.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"raw")
    data = toy.add_data(toy.root, 0, b"before")
    stranger = toy.local.environment(roots=["toy", "raw"])
    for db, at in ((data, 0), (raw.r0, 1)):
        stranger.call("lock", da(db), LockMode.EXCLUSIVE, cap=stranger.caps[at].index)
    page, mine = toy.page(b"after"), take_pages(toy.env, raw.r1, 1)[0]
    publish = Op(OpKind.PUBLISH, da(toy.root), 0, db=data, count=1, page=page)
    assert toy.code("transact", data=pack_transaction([publish])) is e.Locked
    publish = Op(OpKind.PUBLISH, da(raw.r0), 0xFFFF_FFFF, db=raw.r0, count=1, page=mine)
    assert toy.code("transact", cap=raw.r1, data=pack_transaction([publish])) is e.Locked
    stranger.close()
    toy.env.call("transact", cap=raw.r1, data=pack_transaction([publish]))


def test_publishing_no_blocks_is_no_call(toy: Toy) -> None:
    raw = toy.env.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"raw")
    publish = Op(OpKind.PUBLISH, da(raw.r0), 0xFFFF_FFFF, db=raw.r0, count=0)
    assert toy.code("transact", cap=raw.r1, data=pack_transaction([publish])) is e.BadCall


def test_a_block_can_be_named_twice_to_delete_attr(toy: Toy) -> None:
    block = toy.add_data(toy.root, 0, b"x")
    toy.durable(block)
    toy.durable(toy.root)
    assert toy.env.call("delete_attr", DEV, data=pack_extents([(block, 1, 0)] * 3)).r0 == 1
    assert toy.local.kernel.devices[DEV].types[TYPE_XN_DB].cached >= 0
    toy.env.call("insert_and_read", da(toy.root), cap=toy.cap, data=pack_extents([(block, 1, 0)]))


def test_nothing_leaves_quarantine_when_a_type_is_not_in_use(toy: Toy) -> None:
    """The first block's type is, the second one's is not: neither is bound."""
    other = install_type(toy.env, "other", template("other"))
    data = toy.add_data(toy.root, 0, b"data")
    new, block = toy.sector(toy.root, 0), toy.free_block()
    new.pointers.append((block, 1, other, 0))
    toy.transact(toy.modify(toy.root, 0, new, OpKind.ALLOC, db=block, count=1, type=other))
    toy.local.sync()
    toy.local.stop()
    local = LocalXok(disk=toy.local.disk, format=False)
    env = local.environment(roots=["toy"])
    cap = env.caps[0].index
    env.call("type_mount", DEV, data=b"toy-node")
    env.call("mount", DEV, cap=cap, data=b"toy", out_bytes=256)
    both = pack_extents([(data, 1, 0), (block, 1, 0)])
    env.call("read_and_insert", DEV, data=both)
    for name in ("insert_attr", "insert_and_read"):
        with pytest.raises(e.WrongType):
            env.call(name, da(toy.root), cap=cap, data=both)
        with pytest.raises(e.BadCapability):
            env.call("readb", da(data), 4, cap=cap, out_bytes=4)
    env.call("type_mount", DEV, data=b"other")
    env.call("insert_attr", da(toy.root), cap=cap, data=both)
    assert env.call("readb", da(data), 4, cap=cap, out_bytes=4).data == b"data"
