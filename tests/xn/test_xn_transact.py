"""TRANSACT: what it refuses, that a refusal changes nothing, and what it does (TXN-1 to TXN-5)."""

from __future__ import annotations

import pytest
from toy import (
    DEV,
    NO_PARTITION,
    POINTER,
    Sector,
    Toy,
    access,
    da,
    element,
    guard,
    install_type,
    owns,
    take_pages,
    template,
)

from xok_host.abi.calls import MAX_OPS, Op, OpFlag, OpKind, pack_extents, pack_transaction
from xok_host.abi.errors import (
    BadCall,
    BadCapability,
    BogusPartition,
    BogusUpdate,
    LimitReached,
    NotFree,
    NotInCore,
    RefcountWrong,
    Refused,
    UdfFailed,
    WrongType,
    XokError,
)
from xok_host.abi.template import Kind, Template
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB, Flag, Right
from xok_host.abi.udf import META, NEW, Function, load
from xok_host.kernel.capability import TREE, Capability
from xok_host.kernel.local import LocalXok
from xok_host.kernel.xn import verify


def state(toy: Toy) -> tuple[object, ...]:
    """Everything that a refused transaction must leave alone."""
    kernel = toy.local.kernel
    device = kernel.devices[DEV]
    table = bytes(toy.local.tables.registry)
    pages = {entry.page: bytes(kernel.pages.view(entry.page)) for entry in device.entries() if entry.flags & Flag.VALID}
    return table, pages, bytes(device.freemap.memory), device.freemap.free, kernel.pages.in_use


def refused(toy: Toy, error: type[XokError], *ops: Op, cap: int | None = None, at: int | None = None) -> XokError:
    before = state(toy)
    with pytest.raises(error) as caught:
        toy.env.call("transact", cap=toy.cap if cap is None else cap, data=pack_transaction(ops))
    assert state(toy) == before
    if at is not None:
        assert caught.value.fields["r0"] == at
    return caught.value


def alloc(toy: Toy, block: int, claim: int | None = None, **fields: int) -> Op:
    """ALLOC of `claim` by a pointer to `block` in the root's sector 1."""
    new = toy.sector(toy.root, 1)
    new.pointers.append((block, fields.pop("pointed", 1), fields.pop("kind", TYPE_XN_DB), 0))
    given = {"db": block if claim is None else claim, "count": 1, "type": TYPE_XN_DB, "flags": OpFlag.ZERO} | fields
    return toy.modify(toy.root, 1, new, OpKind.ALLOC, **given)


def test_allocation_takes_the_block_and_shows_it(toy: Toy) -> None:
    free = toy.local.kernel.devices[DEV].freemap.free
    block = toy.add_data(toy.root, 1, b"hello")
    entry = toy.entry(block)
    assert bytes(toy.env.page(entry.page)[:5]) == b"hello"
    assert entry.parent == da(toy.root) and entry.dirty == 0xFF and entry.durable == 0
    assert not toy.env.freemaps[DEV].is_free(block)
    assert toy.local.kernel.devices[DEV].freemap.free == free - 1
    assert toy.sector(toy.root, 1).pointers == [(block, 1, TYPE_XN_DB, 0)]


def test_metadata_starts_as_zeros(toy: Toy) -> None:
    node = toy.add_node(toy.root, 0)
    assert bytes(toy.env.page(toy.entry(node).page)) == bytes(BLOCK)
    assert toy.flags(node) & Flag.META and not toy.flags(node) & Flag.ATTACHED


@pytest.mark.parametrize(
    "change",
    [
        {"pointed": 2},  # the pointer takes more than is allocated
        {"count": 2},  # and less
        {"kind": 99},  # as another type
        {"claim": 400},  # another block
    ],
)
def test_owns_must_grow_by_exactly_what_is_allocated(toy: Toy, change: dict[str, int]) -> None:
    refused(toy, BogusUpdate, alloc(toy, toy.free_block(2, 300), **change))


def test_a_block_in_use_cannot_be_claimed(toy: Toy) -> None:
    other = Toy(toy.local, "other")
    theirs = other.add_data(other.root, 0, b"theirs")
    refused(toy, NotFree, alloc(toy, theirs), at=0)
    refused(toy, NotFree, alloc(toy, 0))
    refused(toy, NotFree, alloc(toy, toy.local.disk.nblocks - 1))
    refused(toy, NotFree, alloc(toy, toy.root))
    new = toy.sector(toy.root, 0)
    new.pointers.append((theirs, 1, TYPE_XN_DB, 0))
    refused(toy, BogusUpdate, toy.modify(toy.root, 0, new))


def test_a_block_that_waits_to_be_freed_cannot_be_claimed(toy: Toy) -> None:
    toy.durable(toy.root)
    block = toy.add_data(toy.root, 1, b"x")
    toy.durable(block)
    toy.durable(toy.root)
    toy.remove(toy.root, 1, block)
    refused(toy, NotFree, alloc(toy, block))
    toy.durable(toy.root)
    toy.transact(alloc(toy, block))


def test_no_block_twice(toy: Toy) -> None:
    block = toy.free_block(4, 300)
    new = toy.sector(toy.root, 1)
    new.pointers += [(block, 2, TYPE_XN_DB, 0), (block + 1, 2, TYPE_XN_DB, 0)]
    refused(toy, UdfFailed, toy.modify(toy.root, 1, new, OpKind.ALLOC, db=block, count=3, type=TYPE_XN_DB))
    one, two = Sector(pointers=[(block, 1, TYPE_XN_DB, 0)]), Sector(pointers=[(block, 1, TYPE_XN_DB, 0)])
    ops = [
        toy.modify(toy.root, 1, one, OpKind.ALLOC, db=block, count=1, type=TYPE_XN_DB),
        toy.modify(toy.root, 2, two, OpKind.ALLOC, db=block, count=1, type=TYPE_XN_DB),
    ]
    refused(toy, UdfFailed, *ops)
    refused(toy, UdfFailed, ops[0], toy.modify(toy.root, 2, two))


def test_bytes_only_in_the_partition_named(toy: Toy) -> None:
    root = da(toy.root)
    for writes in ([(SECTOR - 1, b"xx")], [(0, b"x")], [(2 * SECTOR, b"x")], [(BLOCK - 1, b"xx")]):
        refused(toy, BogusPartition, Op(OpKind.MODIFY, root, 1, writes=writes), at=0)
    refused(toy, BogusPartition, Op(OpKind.MODIFY, root, SECTORS, writes=[(0, b"x")]))
    refused(toy, BogusPartition, Op(OpKind.MODIFY, root, NO_PARTITION, writes=[(0, b"x")]))
    refused(toy, BogusPartition, Op(OpKind.ALLOC, root, NO_PARTITION, db=300, count=1, type=TYPE_XN_DB))


def test_free_must_name_what_is_lost(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    empty = Sector()
    refused(toy, BogusUpdate, toy.modify(toy.root, 1, empty))
    refused(toy, BogusUpdate, toy.modify(toy.root, 1, empty, OpKind.FREE, db=block + 1, count=1, type=TYPE_XN_DB))
    refused(toy, BogusUpdate, toy.modify(toy.root, 1, empty, OpKind.FREE, db=block, count=2, type=TYPE_XN_DB))
    full = toy.sector(toy.root, 1)
    refused(toy, BogusUpdate, toy.modify(toy.root, 1, full, OpKind.FREE, db=block, count=1, type=TYPE_XN_DB))
    toy.transact(toy.modify(toy.root, 1, empty, OpKind.FREE, db=block, count=1))
    assert toy.env.freemaps[DEV].is_free(block) and toy.entry(block) is None


def test_metadata_is_freed_empty(toy: Toy) -> None:
    node = toy.add_node(toy.root, 1)
    block = toy.add_data(node, 3, b"x")
    free = toy.modify(toy.root, 1, Sector(), OpKind.FREE, db=node, count=1, type=toy.type)
    refused(toy, BogusUpdate, free)
    gone = toy.modify(node, 3, Sector(), OpKind.FREE, db=block, count=1, type=TYPE_XN_DB)
    toy.transact(gone, free)
    assert toy.env.freemaps[DEV].is_free(node) and toy.env.freemaps[DEV].is_free(block)


def test_metadata_that_waits_in_quarantine_is_asked_as_what_its_parent_says_it_is(toy: Toy) -> None:
    """TXN-5, of a block that has been fetched and is not bound: it has no type in core yet."""
    node = toy.add_node(toy.root, 0)
    child = toy.add_node(node, 1)
    toy.durable(child, node, toy.root)
    toy.durable(node, toy.root)
    for block in (child, node):
        toy.env.call("delete_attr", DEV, data=pack_extents([(block, 1, 0)]))
    toy.env.call("read_and_insert", DEV, data=pack_extents([(node, 1, 0)]))
    assert toy.flags(node) & Flag.QUARANTINE and toy.flags(node) & Flag.VALID
    with pytest.raises(BogusUpdate, match="partition 1 still owns"):
        toy.remove(toy.root, 0, node)


def test_counted_metadata_is_not_freed(toy: Toy) -> None:
    node = toy.add_node(toy.root, 1)
    counted, referring = Sector(), Sector(references=[element(node, 0, 2)])
    counted.counts[2] = 1
    toy.transact(toy.modify(node, 0, counted), toy.modify(toy.root, 2, referring))
    refused(toy, RefcountWrong, toy.modify(toy.root, 1, Sector(), OpKind.FREE, db=node, count=1, type=toy.type))


def test_all_or_nothing(toy: Toy) -> None:
    good = alloc(toy, toy.free_block(1, 300))
    bad = Op(OpKind.MODIFY, da(toy.root), 2, writes=[(0, b"x")])
    refused(toy, BogusPartition, good, bad, at=1)


def test_references_and_counts_balance(toy: Toy) -> None:
    one = Sector()
    one.counts[0] = 1
    refused(toy, RefcountWrong, toy.modify(toy.root, 1, one))
    lonely = Sector(references=[element(toy.root, 1, 0)])
    refused(toy, RefcountWrong, toy.modify(toy.root, 2, lonely))
    wrong = Sector(references=[element(toy.root, 1, 1)])
    refused(toy, RefcountWrong, toy.modify(toy.root, 2, wrong), toy.modify(toy.root, 1, one))
    two = Sector()
    two.counts[0] = 2
    refused(toy, RefcountWrong, toy.modify(toy.root, 1, two), toy.modify(toy.root, 2, lonely))
    toy.transact(toy.modify(toy.root, 1, one), toy.modify(toy.root, 2, lonely))
    assert toy.env.call("get_refcnt", element(toy.root, 1, 0), cap=toy.cap).r0 == 1


def test_capabilities(toy: Toy) -> None:
    op = alloc(toy, toy.free_block(1, 300))
    refused(toy, BadCapability, op, cap=0)
    refused(toy, BadCapability, op, cap=99)
    tree = toy.local.kernel.tree_capability(DEV, "toy", Right.READ)
    reader = toy.local.environment([tree])
    with pytest.raises(BadCapability):
        reader.call("transact", cap=reader.caps[0].index, data=op.pack())
    stranger = toy.local.environment([Capability(TREE, 12345, Right.READ | Right.WRITE)])
    with pytest.raises(BadCapability):
        stranger.call("transact", cap=stranger.caps[0].index, data=op.pack())


def test_pages_must_be_the_callers_own_and_unpublished(toy: Toy) -> None:
    block = toy.free_block(2, 300)
    mine = toy.page(b"mine")
    refused(toy, BadCapability, alloc(toy, block, page=mine + 1, flags=OpFlag.PAGES))
    other = toy.local.environment(roots=["toy"])
    theirs = take_pages(other, other.caps[0].index, 1)[0]
    refused(toy, BadCapability, alloc(toy, block, page=theirs, flags=OpFlag.PAGES))
    foreign = Toy(toy.local, "foreign", toy.env)
    wrong_arena = foreign.page(b"x")
    refused(toy, BadCapability, alloc(toy, block, page=wrong_arena, flags=OpFlag.PAGES))
    new = Sector(pointers=[(block, 1, TYPE_XN_DB, 0), (block + 1, 1, TYPE_XN_DB, 0)])
    twice = [
        toy.modify(
            toy.root, 1, new, OpKind.ALLOC, db=block + i, count=1, type=TYPE_XN_DB, page=mine, flags=OpFlag.PAGES
        )
        for i in range(2)
    ]
    refused(toy, BadCapability, *twice)
    toy.transact(alloc(toy, block, page=mine, flags=OpFlag.PAGES))
    refused(toy, BadCapability, Op(OpKind.PUBLISH, da(toy.root), 1, db=block, count=1, page=mine))


def test_publish_replaces_the_page_and_leaves_a_pinned_one_alone(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"old")
    before = toy.entry(block)
    assert toy.env.call("pin", da(block), before.generation, cap=toy.cap).r0 == before.page
    toy.transact(Op(OpKind.PUBLISH, da(toy.root), 1, db=block, count=1, page=toy.page(b"new")))
    after = toy.entry(block)
    assert after.page != before.page and after.generation != before.generation
    assert bytes(toy.env.page(before.page)[:3]) == b"old" and bytes(toy.env.page(after.page)[:3]) == b"new"
    toy.env.call("unpin", before.page)
    assert toy.page(b"") == before.page  # free again, so it is the next to be given out
    refused(toy, BogusUpdate, Op(OpKind.PUBLISH, da(toy.root), 2, db=block, count=1, page=toy.page(b"x")))


def test_what_is_not_there(toy: Toy) -> None:
    refused(toy, NotInCore, Op(OpKind.MODIFY, da(400), 0, writes=[(0, b"x")]))
    block = toy.add_data(toy.root, 1, b"x")
    refused(toy, WrongType, Op(OpKind.MODIFY, da(block), 0, writes=[(0, b"x")]))
    refused(toy, WrongType, alloc(toy, 300, type=99, kind=99))
    refused(toy, WrongType, alloc(toy, 300, type=2, kind=2))
    refused(toy, BadCall, alloc(toy, 300, type=toy.type, kind=toy.type, flags=OpFlag.PAGES))


def test_malformed_operands(toy: Toy) -> None:
    good = alloc(toy, toy.free_block(1, 300)).pack()
    for data in (b"", good[:20], good[:-8], good + good[:30]):
        with pytest.raises(BadCall):
            toy.env.call("transact", cap=toy.cap, data=data)
    bad_kind = bytearray(good)
    bad_kind[0] = 77
    bad_flags = bytearray(good)
    bad_flags[1] = 0x80
    many_vectors = bytearray(good)
    many_vectors[2:4] = (60000).to_bytes(2, "little")
    for data in (bytes(bad_kind), bytes(bad_flags), bytes(many_vectors)):
        with pytest.raises(BadCall):
            toy.env.call("transact", cap=toy.cap, data=data)
    nothing = Op(OpKind.MODIFY, da(toy.root), 1)
    refused(toy, BadCall, *[nothing] * (MAX_OPS + 1))
    refused(toy, BadCall, alloc(toy, 300, count=0, claim=300))
    refused(toy, BadCall, Op(OpKind.FREE, da(toy.root), 1, db=1 << 63, count=0xFFFF_FFFF, type=1))


def test_more_than_the_registry_holds() -> None:
    """The registry has 64 entries; everything else about the operation is right."""
    local = LocalXok(4096, max_chunks=16, entries=64)
    small = Toy(local)
    start = small.free_block(70)
    refused(small, LimitReached, alloc(small, start, pointed=70, count=70))
    small.transact(alloc(small, start, pointed=40, count=40))


def acl() -> bytes:
    """Approves only if the first byte of the sector rises."""
    f = Function()
    with f.if_(load(NEW + f.part * SECTOR, 1) > load(META + f.part * SECTOR, 1)):
        f.return_(1)
    f.return_(0)
    return f.finish()


def test_acl_decides(toy: Toy) -> None:
    described = Template(
        name=b"strict", parts=SECTORS, access=access(), owns=_owns_nothing(), guard=guard(), acl=acl()
    ).pack()
    kind = install_type(toy.env, "strict", described)
    root = toy.env.call("install_mount", DEV, 0, 1, kind, data=b"strict-root")
    up = Op(OpKind.MODIFY, da(root.r0), 2, writes=[(2 * SECTOR, b"\5")])
    toy.env.call("transact", cap=root.r1, data=up.pack())
    with pytest.raises(Refused):
        toy.env.call("transact", cap=root.r1, data=up.pack())


def _owns_nothing() -> bytes:
    f = Function()
    f.return_(0)
    return f.finish()


def test_discriminators_change_by_set_type_alone(toy: Toy) -> None:
    described = Template(
        name=b"union",
        kind=Kind.UNION,
        parts=SECTORS,
        discriminators=((0, 1), (SECTOR, 1)),
        access=access(),
        owns=owns(),
        guard=guard(),
    ).pack()
    kind = install_type(toy.env, "union", described)
    root = toy.env.call("install_mount", DEV, 0, 1, kind, data=b"union-root")
    other = Toy(toy.local, "plain")
    other.env, other.cap = toy.env, root.r1
    change = [(16, b"\1")]
    with pytest.raises(BogusUpdate):
        other.transact(Op(OpKind.MODIFY, da(root.r0), 0, writes=[(0, b"\7"), *change]))
    other.transact(Op(OpKind.SET_TYPE, da(root.r0), 0, writes=[(0, b"\7"), *change]))
    with pytest.raises(BogusUpdate):  # set_type may not change what is owned
        other.transact(Op(OpKind.SET_TYPE, da(root.r0), 1, writes=[(SECTOR, POINTER.pack(200, 1, 1, 0))]))


def test_a_guard_that_changes_waits_for_what_it_guards(toy: Toy) -> None:
    f = Function()
    f.emit_cap(f.tree, int(Right.READ | Right.WRITE))
    with f.if_(load(META + GUARD_BYTE, 1) != 0):
        f.emit_cap(load(META + GUARD_BYTE, 1), int(Right.READ))
    kind = install_type(toy.env, "moody", template("moody", guard=f.finish()))
    root = toy.env.call("install_mount", DEV, 0, 1, kind, data=b"moody-root")
    moody = Toy(toy.local, "unused")
    moody.env, moody.cap, moody.root = toy.env, root.r1, root.r0
    block = moody.add_data(moody.root, 0, b"x")
    open_up = Op(OpKind.MODIFY, da(moody.root), 7, writes=[(GUARD_BYTE, b"\x05")])
    assert moody.code("transact", data=open_up.pack()).__name__ == "Locked"
    moody.durable(block)
    moody.durable(moody.root)
    moody.env.call("delete_attr", DEV, data=block.to_bytes(8, "little") + (1).to_bytes(8, "little"))
    moody.transact(open_up)
    guest = toy.local.environment([Capability(TREE, 5, Right.READ)])
    extents = block.to_bytes(8, "little") + (1).to_bytes(8, "little")
    guest.call("insert_and_read", da(moody.root), cap=guest.caps[0].index, data=extents)
    assert bytes(guest.page(guest.registry.lookup(da(block) >> 12).page)[:1]) == b"x"


GUARD_BYTE = 7 * SECTOR + 510


def test_what_others_left_uncounted_is_not_charged_to_the_next() -> None:
    """A type is shared: instructions of refused transactions must not use up somebody else's budget."""
    toy = Toy(LocalXok())
    toy.local.kernel.devices[DEV].types[toy.type].spent = verify.UDF_BUDGET
    toy.add_data(toy.root, 0, b"x")
