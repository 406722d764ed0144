"""Every call of XN: what it gives, and each failure that the call table names."""

from __future__ import annotations

import struct

import pytest
from toy import DEV, NO_PARTITION, Sector, Toy, da, install_type, take_pages, template

from xok_host.abi import errors as e
from xok_host.abi.calls import CallNumber, CatalogueEntry, Op, OpFlag, OpKind, pack_extents
from xok_host.abi.calltable import CALLS
from xok_host.abi.template import Template
from xok_host.abi.types import BLOCK, TYPE_XN_DB, TYPE_XN_TYPE, Flag, Right
from xok_host.abi.udf import Function
from xok_host.abi.views import REGISTRY_ENTRY
from xok_host.kernel.capability import ADDRESS, MAX_CAPABILITIES, TREE, Capability
from xok_host.kernel.env import MAX_WRITE_TREES
from xok_host.kernel.local import LocalEnvironment, LocalXok
from xok_host.kernel.request import IoOp
from xok_host.kernel.xn.catalogue import MAX_NAMES_OF_USER
from xok_host.kernel.xn.format import CATALOGUE_LIMIT


def drop(toy: Toy, *blocks: int) -> None:
    toy.env.call("delete_attr", DEV, data=pack_extents([(db, 1, 0) for db in blocks]))


def test_the_kernel_serves_every_call_but_those_of_other_parts(local: LocalXok) -> None:
    served = set(local.kernel._handlers)
    assert {call.number for call in CALLS} - served == {CallNumber.FILTER_INSERT, CallNumber.FILTER_REMOVE}


def test_unknown_calls_and_devices(toy: Toy) -> None:
    from xok_host.abi.channel import Entry

    answer = toy.local.kernel.execute(toy.env.kernel_env, Entry(9999, 0, 0, 5, 0, 0, 0, 0, b"", 0, 0))
    assert answer is not None and answer.code == e.BadCall.code and answer.cookie == 5
    for name in ("info", "read_catalogue", "flush", "findfree", "root", "list_writeable"):
        assert toy.code(name, 9) is e.NotFound


# ---- pages


def test_pages_are_given_and_taken_back(toy: Toy) -> None:
    in_use = toy.local.kernel.pages.in_use
    pages = take_pages(toy.env, toy.cap, 8)
    assert pages == list(range(pages[0], pages[0] + 8))
    assert toy.local.kernel.pages.in_use == in_use + 8
    toy.env.call("page_free", data=struct.pack("<8Q", *pages))
    assert toy.local.kernel.pages.in_use == in_use
    for data in (struct.pack("<Q", pages[0]), struct.pack("<2Q", 1 << 60, 1 << 60), b"abc"):
        assert toy.code("page_free", data=data) in (e.BadCapability, e.BadCall)
    assert toy.code("page_alloc", 0) is e.BadCall
    assert toy.code("page_alloc", 1, cap=0) is e.BadCapability


def test_pages_have_a_bound(toy: Toy) -> None:
    """Half of memory: 16 chunks of 1024 pages here."""
    for _ in range(8):
        take_pages(toy.env, toy.cap, 1024)
    assert toy.code("page_alloc", 1) is e.LimitReached


def test_chunks_are_mapped_by_right(toy: Toy) -> None:
    mine = toy.page(b"x") // 1024
    assert toy.env.call("chunk_map", mine).r0 == 1
    meta = toy.entry(toy.root).page // 1024
    assert toy.env.call("chunk_map", meta).r0 == 0
    stranger = toy.local.environment()
    with pytest.raises(e.BadCapability):
        stranger.call("chunk_map", meta)
    reader = toy.local.environment(roots=["toy"])
    assert reader.call("chunk_map", mine).r0 == 0
    assert toy.code("chunk_map", 5000) is e.NotFound


def test_pins(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    entry = toy.entry(block)
    toy.local.sync()
    assert toy.code("pin", da(block), entry.generation + 2) is e.NotInCore
    assert toy.code("pin", da(400), 0) is e.NotInCore
    generation = toy.entry(block).generation
    assert toy.code("pin", da(block), generation, cap=0) is e.BadCapability
    page = toy.env.call("pin", da(block), generation, cap=toy.cap).r0
    toy.env.call("pin", da(block), generation, cap=toy.cap)
    assert toy.entry(block).pins == 2
    assert toy.code("delete_attr", DEV, data=pack_extents([(block, 1, 0)])) is e.InUse
    toy.env.call("unpin", page)
    toy.env.call("unpin", page)
    assert toy.code("unpin", page) is e.NotFound
    drop(toy, block)


def test_pins_survive_the_block_and_die_with_their_holder(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"kept")
    reader = toy.local.environment(roots=["toy"])
    cap = reader.caps[0].index
    page = reader.call("pin", da(block), toy.entry(block).generation, cap=cap).r0
    toy.remove(toy.root, 1, block)
    assert bytes(reader.page(page)[:4]) == b"kept"
    in_use = toy.local.kernel.pages.in_use
    reader.close()
    assert toy.local.kernel.pages.in_use == in_use - 1


# ---- types and roots


def test_types(toy: Toy) -> None:
    assert toy.code("reserve_type", DEV, data=b"toy") is e.Exists
    reserved = toy.env.call("reserve_type", DEV, data=b"later").r0
    assert toy.env.call("reserve_type", DEV, data=b"later").r0 == reserved
    stranger = toy.local.environment(uid=77)
    with pytest.raises(e.Exists):
        stranger.call("reserve_type", DEV, data=b"later")
    assert install_type(toy.env, "later", template("later")) == reserved
    entries = toy.env.call("read_catalogue", DEV, out_bytes=1 << 16).data
    found = [CatalogueEntry.unpack(entries[at : at + 104]) for at in range(0, len(entries), 104)]
    assert [(entry.kind, entry.type) for entry in found if entry.name == "later"] == [(CatalogueEntry.TYPE, reserved)]


def test_a_user_has_a_share_of_the_catalogue() -> None:
    """Whatever its environments are; another user, and what takes no name more, go on."""
    toy = Toy(LocalXok(1024, max_chunks=128))
    many = [toy.local.environment(uid=1000) for _ in range(2)]
    other = toy.local.environment(uid=1001)
    many[0].call("reserve_type", DEV, data=b"later")
    for number in range(MAX_NAMES_OF_USER - 1):
        many[number % 2].call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"r%d" % number)
    for call in (("install_mount", DEV, 0, 1, TYPE_XN_DB), ("reserve_type", DEV)):
        with pytest.raises(e.LimitReached, match=r"user 1000 .* such as 'r\d+'"):
            many[1].call(*call, data=b"more")
    assert many[1].call("reserve_type", DEV, data=b"later").r0
    many[1].call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"later")  # in the place of its reservation
    other.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"of another")
    toy.env.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"of the administrator")
    many[0].call("uninstall_mount", DEV, cap=1, data=b"r0")
    many[0].call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"more")


def test_pages_for_many_trees_are_refused() -> None:
    """Each tree's pages are chunks that nobody else can use."""
    toy = Toy(LocalXok(1024, max_chunks=128))
    caps = [
        toy.env.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"tree%d" % number).r1
        for number in range(MAX_WRITE_TREES + 1)
    ]
    env = toy.local.environment(roots=[f"tree{number}" for number in range(MAX_WRITE_TREES + 1)])
    assert len(caps) == len(env.caps)
    for held in env.caps[:-1]:
        take_pages(env, held.index, 1)
    with pytest.raises(e.LimitReached, match="trees"):
        take_pages(env, env.caps[-1].index, 1)
    take_pages(env, env.caps[0].index, 1)


def test_type_import_refusals(toy: Toy) -> None:
    assert toy.code("type_import", DEV, data=b"nothing") is e.NotFound
    assert toy.code("type_import", DEV, data=b"toy") is e.WrongType
    made = toy.env.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"raw")
    assert toy.code("type_import", DEV, data=b"raw") is e.Tainted
    toy.durable(made.r0)
    assert toy.code("type_import", DEV, data=b"raw") is e.TypeInvalid
    stranger = toy.local.environment()
    with pytest.raises(e.BadCapability):
        stranger.call("type_import", DEV, data=b"raw")
    readable = toy.local.kernel.tree_capability(DEV, "raw", Right.READ)
    with pytest.raises(e.BadCapability):  # who may only read the blocks does not decide that they are a type
        toy.local.environment([readable]).call("type_import", DEV, data=b"raw")
    drop_ = toy.local.kernel.devices[DEV]
    drop_.forget(drop_.get(made.r0))
    assert toy.code("type_import", DEV, data=b"raw") is e.NotInCore


def test_a_partition_lies_in_one_sector(toy: Toy) -> None:
    f = Function()
    f.emit(0, 1024, 0)
    nothing = Function()
    nothing.return_(0)
    wide = Template(name=b"wide", parts=1, access=f.finish(), owns=nothing.finish()).pack()
    with pytest.raises(e.TypeInvalid, match="several sectors"):
        install_type(toy.env, "wide", wide)
    tall = Template(name=b"tall", parts=1, blocks=2, access=f.finish(), owns=nothing.finish()).pack()
    with pytest.raises(e.TypeInvalid, match="one block"):
        install_type(toy.env, "tall", tall)


def test_install_mount_refusals(toy: Toy) -> None:
    call = "install_mount"
    assert toy.code(call, DEV, 0, 1, toy.type, data=b"toy") is e.Exists
    assert toy.code(call, DEV, toy.root, 1, toy.type, data=b"new") is e.NotFree
    assert toy.code(call, DEV, 0, 1, 999, data=b"new") is e.WrongType
    assert toy.code(call, DEV, 0, 1, TYPE_XN_TYPE, data=b"new") is e.WrongType
    assert toy.code(call, DEV, 0, 0, toy.type, data=b"new") is e.BadCall
    for name in (b"", b"x" * 65, b"a\0b", b"\xff\xfe", b"a\nb"):
        assert toy.code(call, DEV, 0, 1, toy.type, data=name) is e.BadCall
    small = LocalXok(64)
    env = small.environment()
    with pytest.raises(e.NoSpace):
        env.call(call, DEV, 0, 60, TYPE_XN_DB, data=b"big")


def test_the_catalogue_has_a_bound(local: LocalXok) -> None:
    env = local.environment()
    with pytest.raises(e.NoSpace):
        for number in range(257):
            env.call("reserve_type", DEV, data=b"type %d" % number)
    env.call("uninstall_mount", DEV, data=b"type 7")
    env.call("reserve_type", DEV, data=b"again")


def test_mount_after_a_restart(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"still here")
    toy.local.stop()
    again = LocalXok(disk=toy.local.disk, format=False, seed=5)
    env = again.environment(roots=["toy"])
    cap = env.caps[0].index
    with pytest.raises(e.WrongType):
        env.call("mount", DEV, cap=cap, data=b"toy")
    env.call("type_mount", DEV, data=b"toy-node")
    with pytest.raises(e.BadCapability):
        env.call("mount", DEV, data=b"toy")
    with pytest.raises(e.NotFound):
        env.call("mount", DEV, cap=cap, data=b"nothing")
    with pytest.raises(e.NotFound):
        env.call("type_mount", DEV, data=b"toy")
    mounted = env.call("mount", DEV, cap=cap, data=b"toy", out_bytes=256)
    assert mounted.r0 == da(toy.root) and CatalogueEntry.unpack(mounted.data).name == "toy"
    env.call("insert_and_read", da(toy.root), cap=cap, data=pack_extents([(block, 1, 1)]))
    entry = env.registry.lookup(da(block) >> 12)
    assert bytes(env.page(entry.page)[:10]) == b"still here" and entry.flags & Flag.VALID


def test_uninstall(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    assert toy.code("uninstall_mount", DEV, data=b"toy") is e.InUse
    assert toy.code("uninstall_mount", DEV, data=b"nothing") is e.NotFound
    assert toy.code("uninstall_mount", DEV, cap=0, data=b"toy") is e.BadCapability
    toy.local.sync()
    toy.remove(toy.root, 1, block)
    toy.local.sync()
    assert toy.code("uninstall_mount", DEV, cap=1, data=b"toy-node") is e.InUse
    toy.env.call("uninstall_mount", DEV, cap=toy.cap, data=b"toy")
    assert not toy.env.freemaps[DEV].is_free(toy.root)
    toy.flush()
    assert toy.env.freemaps[DEV].is_free(toy.root)
    toy.env.call("uninstall_mount", DEV, cap=1, data=b"toy-node")
    toy.flush()
    toy.local.stop()
    device_free = 512 - 10 - 1
    again = LocalXok(disk=toy.local.disk, format=False)
    assert again.kernel.devices[DEV].freemap.free == device_free
    assert again.environment().call("read_catalogue", DEV).r0 == 0


# ---- the buffer cache


@pytest.fixture
def cold(toy: Toy) -> tuple[Toy, int, int]:
    """A node and a data block below it, durable and not in core."""
    node = toy.add_node(toy.root, 2)
    block = toy.add_data(node, 3, b"cold")
    toy.local.sync()
    drop(toy, block, node)
    assert toy.entry(node) is None and toy.entry(block) is None
    return toy, node, block


def test_a_block_is_bound_by_its_parent_alone(cold: tuple[Toy, int, int]) -> None:
    toy, node, block = cold
    bind = "insert_and_read"
    assert toy.code(bind, da(node), data=pack_extents([(block, 1, 3)])) is e.NotInCore
    toy.env.call(bind, da(toy.root), cap=toy.cap, data=pack_extents([(node, 1, 2)]))
    assert toy.flags(node) & Flag.META and toy.flags(node) & Flag.ATTACHED
    assert toy.code(bind, da(node), data=pack_extents([(block, 1, 2)])) is e.NotOwned
    assert toy.code(bind, da(node), data=pack_extents([(block, 2, 3)])) is e.NotOwned
    assert toy.code(bind, da(node), data=pack_extents([(block, 1, 9)])) is e.BogusPartition
    assert toy.code(bind, da(node), cap=0, data=pack_extents([(block, 1, 3)])) is e.BadCapability
    assert toy.code(bind, da(node), data=b"short") is e.BadCall
    assert toy.code(bind, da(node), data=pack_extents([(block, 0, 3)])) is e.BadCall
    assert toy.env.call(bind, da(node), cap=toy.cap, data=pack_extents([(block, 1, 3)])).r0 == 1
    assert toy.env.call(bind, da(node), cap=toy.cap, data=pack_extents([(block, 1, 3)])).r0 == 0
    assert bytes(toy.env.page(toy.entry(block).page)[:4]) == b"cold"


def test_prefetched_blocks_wait_where_nobody_can_read_them(cold: tuple[Toy, int, int]) -> None:
    toy, node, block = cold
    assert toy.env.call("read_and_insert", DEV, data=pack_extents([(block, 1, 0), (node, 1, 0)])).r0 == 2
    entry = toy.entry(block)
    assert entry.flags & Flag.QUARANTINE and entry.type == 0
    assert toy.code("chunk_map", entry.page // 1024) is e.BadCapability
    assert toy.code("readb", da(block), 8) is e.BadCapability
    assert toy.code("pin", da(block), entry.generation) is e.BadCapability
    assert toy.code("transact", data=Op(OpKind.MODIFY, da(node), 0, writes=[(0, b"x")]).pack()) is e.WrongType
    toy.env.call("insert_attr", da(toy.root), cap=toy.cap, data=pack_extents([(node, 1, 2)]))
    toy.env.call("insert_attr", da(node), cap=toy.cap, data=pack_extents([(block, 1, 3)]))
    entry = toy.entry(block)
    assert not entry.flags & Flag.QUARANTINE and bytes(toy.env.page(entry.page)[:4]) == b"cold"


def test_binding_while_the_prefetch_is_on_its_way(cold: tuple[Toy, int, int]) -> None:
    toy, node, block = cold
    toy.env.call("insert_and_read", da(toy.root), cap=toy.cap, data=pack_extents([(node, 1, 2)]))
    toy.local.hold_io = True
    first = toy.env.submit("read_and_insert", DEV, data=pack_extents([(block, 1, 0)]))
    second = toy.env.submit("insert_and_read", da(node), cap=toy.cap, data=pack_extents([(block, 1, 3)]))
    toy.local.pump()
    assert toy.flags(block) & Flag.READING and not toy.flags(block) & Flag.VALID
    toy.transact(Op(OpKind.PUBLISH, da(node), 3, db=block, count=1, page=toy.page(b"newer")))
    toy.local.hold_io = False
    toy.local.release_io()
    assert toy.env.wait(first).code == toy.env.wait(second).code == 0
    assert bytes(toy.env.page(toy.entry(block).page)[:5]) == b"newer"
    assert toy.local.kernel.pages.in_use == sum(
        1 for entry in toy.local.kernel.devices[DEV].entries() if entry.page < 1 << 40
    )


def test_insert_attr_needs_the_block_in_core(cold: tuple[Toy, int, int]) -> None:
    toy, node, _ = cold
    assert toy.code("insert_attr", da(toy.root), data=pack_extents([(node, 1, 2)])) is e.NotInCore


def test_reads_outside_the_disk(toy: Toy) -> None:
    for extent in ((0, 1, 0), (511, 2, 0), (1 << 50, 1, 0), (20, 0, 0), (20, 1 << 31, 0)):
        assert toy.code("read_and_insert", DEV, data=pack_extents([extent])) is e.BadCall


def test_a_read_that_fails_leaves_nothing(cold: tuple[Toy, int, int]) -> None:
    toy, node, block = cold
    in_use = toy.local.kernel.pages.in_use
    toy.local.disk.fail = lambda request: 5 if request.op == IoOp.READ else 0
    assert toy.code("read_and_insert", DEV, data=pack_extents([(block, 1, 0)])) is e.MediaError
    assert toy.code("insert_and_read", da(toy.root), data=pack_extents([(node, 1, 2)])) is e.MediaError
    assert toy.entry(node) is None and toy.entry(block) is None
    assert toy.local.kernel.pages.in_use == in_use


def test_memory_is_reused_least_recently_used_first(local: LocalXok) -> None:
    small = LocalXok(4096, entries=64, max_chunks=16)
    toy = Toy(small)
    blocks = []
    for number in range(200):
        sector = number // 12 % 8
        node = toy.root
        if len(toy.sector(node, sector).pointers) == 12:
            break
        blocks.append(toy.add_data(node, sector, b"%d" % number))
        if number % 20 == 19:
            small.sync()
    assert toy.entry(blocks[-1]) is not None and toy.entry(blocks[0]) is None
    toy.env.call("insert_and_read", da(toy.root), cap=toy.cap, data=pack_extents([(blocks[0], 1, 0)]))
    assert bytes(toy.env.page(toy.entry(blocks[0]).page)[:2]) == b"0\0"


def test_writeback_and_mark_dirty(toy: Toy) -> None:
    assert toy.code("writebackv", DEV, data=pack_extents([(400, 1, 0)])) is e.NotInCore
    page = toy.page(b"first")
    block = toy.free_block()
    new = Sector(pointers=[(block, 1, TYPE_XN_DB, 0)])
    given = {"db": block, "count": 1, "type": TYPE_XN_DB, "page": page, "flags": OpFlag.PAGES}
    toy.transact(toy.modify(toy.root, 1, new, OpKind.ALLOC, **given))
    done = toy.env.call("writebackv", DEV, data=pack_extents([(block, 1, 0)]))
    assert (done.r0, done.r1) == (1, 1)
    toy.env.page(page)[:6] = b"second"
    generation = toy.entry(block).generation
    toy.env.call("mark_dirty", DEV, data=pack_extents([(block, 1, 1)]))
    assert toy.entry(block).dirty == 1 and toy.entry(block).generation != generation
    stranger = toy.local.environment(roots=["toy"])
    with pytest.raises(e.BadCapability):
        stranger.call("mark_dirty", DEV, data=pack_extents([(block, 1, 1)]))
    assert toy.code("mark_dirty", DEV, data=pack_extents([(toy.root, 1, 1)])) is e.BadCapability
    assert toy.code("mark_dirty", DEV, data=pack_extents([(400, 1, 1)])) is e.NotInCore
    assert toy.code("mark_dirty", DEV, data=pack_extents([(block, 1, 0x100)])) is e.BadCall
    stranger.call("writebackv", DEV, data=pack_extents([(block, 1, 0)]))  # anyone may
    assert toy.local.disk.read_block(block)[:6] == b"second"


def test_navigation(toy: Toy) -> None:
    node = toy.add_node(toy.root, 2)
    block = toy.add_data(toy.root, 5, b"x")
    assert toy.env.call("get_nowns", da(toy.root), cap=toy.cap).r0 == 8
    found = toy.env.call("udf_enum", da(toy.root), 0, 8, cap=toy.cap, out_bytes=1 << 12)
    assert list(struct.iter_unpack("<QQQ", found.data)) == [(node, 1, toy.type), (block, 1, TYPE_XN_DB)]
    assert toy.env.call("udf_enum", da(toy.root), 3, 5, cap=toy.cap).r0 == 0
    assert toy.code("udf_enum", da(toy.root), 0, 9) is e.BogusPartition
    assert toy.code("udf_enum", da(toy.root), 3, 2) is e.BogusPartition
    assert toy.code("udf_enum", da(toy.root), 0, 8, cap=0) is e.BadCapability
    assert toy.code("get_refcnt", da(toy.root)) is e.NotInCore
    assert toy.code("get_nowns", da(400)) is e.NotInCore
    attributes = toy.env.call("read_attr", da(node), out_bytes=64).data
    assert REGISTRY_ENTRY.unpack(attributes)[0] == da(node) >> 12
    assert toy.code("read_attr", da(400)) is e.NotInCore
    assert toy.code("readb", da(block, 4000), 97) is e.NotInCore  # the block behind it
    assert len(toy.env.call("readb", da(node, 4000), 96, cap=toy.cap, out_bytes=BLOCK).data) == 96


def test_device_calls(toy: Toy) -> None:
    assert struct.unpack("<Q", toy.env.call("dev_list", out_bytes=64).data) == (DEV,)
    info = struct.unpack("<6Q", toy.env.call("info", DEV, out_bytes=64).data)
    assert info[0] == 512 and info[1] == toy.local.kernel.devices[DEV].freemap.free and info[2:4] == (1, 9)
    assert toy.env.call("root", DEV).r0 == 0
    assert toy.env.call("findfree", DEV, 300, 5).r0 == 300
    with pytest.raises(e.NoSpace):
        toy.env.call("findfree", DEV, 0, 512)
    assert toy.code("findfree", DEV, 0, 513) is e.BadCall
    toy.add_data(toy.root, 1, b"x")
    listed = toy.env.call("list_writeable", DEV, out_bytes=1 << 12)
    assert listed.r0 == len(listed.data) // 8 == 2


def test_capability_numbers_are_shown_to_their_holders_alone(toy: Toy) -> None:
    def number(env: LocalEnvironment) -> int:
        entries = env.call("read_catalogue", DEV, out_bytes=1 << 16).data
        found = [CatalogueEntry.unpack(entries[at : at + 104]) for at in range(0, len(entries), 104)]
        return next(entry.capability for entry in found if entry.name == "toy")

    assert number(toy.env) != 0
    assert number(toy.local.environment()) == 0


def test_wrong_kinds_of_capability(toy: Toy) -> None:
    env = toy.local.environment([Capability(ADDRESS, 1, 7), Capability(TREE, 2, Right.READ)])
    for index in (1, 2, 3, 255, 1 << 31):
        with pytest.raises(e.BadCapability):
            env.call("page_alloc", 1, cap=index)
    with pytest.raises(e.BadCapability):
        Capability(TREE, 2, Right.READ).weakened(Right.READ)
    assert Capability(TREE, 2, Right.READ | Right.GRANT).weakened(Right.READ).rights == Right.READ
    with pytest.raises(e.BadCapability):
        Capability(TREE, 2, Right.READ | Right.GRANT).weakened(Right.WRITE)


# ---- chains


def test_a_chain_stops_at_the_first_failure(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    with toy.env.batch(chain=True) as batch:
        for db in (block, toy.root, block):
            batch.add("writebackv", DEV, data=pack_extents([(db, 1, 0)]))
            batch.add("flush", DEV)
    assert [completion.code for completion in batch.results] == [0] * 6
    toy.add_data(toy.root, 2, b"y")
    with toy.env.batch(chain=True) as batch:
        batch.add("flush", DEV)
        batch.add("writebackv", DEV, data=pack_extents([(toy.root, 1, 0)]))
        batch.add("flush", DEV)
        batch.add("null")
    assert [c.code for c in batch.results] == [0, e.Tainted.code, e.Cancelled.code, e.Cancelled.code]


def test_the_environment_may_die_while_its_calls_wait(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    toy.local.hold_io = True
    toy.env.submit("writebackv", DEV, data=pack_extents([(block, 1, 0)]))
    toy.env.submit("flush", DEV, flags=1)
    toy.local.pump()
    toy.env.close()
    toy.env.close()
    toy.local.hold_io = False
    toy.local.release_io()
    toy.local.pump()
    survivor = toy.local.environment(roots=["toy"])
    assert survivor.registry.lookup(da(block) >> 12).writer == 0
    toy.local.stop()


def test_what_died_leaves_its_pages_to_others(local: LocalXok) -> None:
    toy = Toy(local)
    in_use = local.kernel.pages.in_use
    for _ in range(40):
        env = local.environment(roots=["toy"])
        take_pages(env, env.caps[0].index, 300)
        env.close()
    assert local.kernel.pages.in_use == in_use
    assert toy.code("null") is None


def test_publishing_into_raw_roots(toy: Toy) -> None:
    made = toy.env.call("install_mount", DEV, 0, 2, TYPE_XN_DB, data=b"raw")
    page = take_pages(toy.env, made.r1, 1)[0]
    op = Op(OpKind.PUBLISH, da(made.r0), NO_PARTITION, db=made.r0 + 1, count=1, page=page)
    assert toy.code("transact", data=op.pack()) is e.BadCapability
    toy.env.call("transact", cap=made.r1, data=op.pack())
    beyond = Op(OpKind.PUBLISH, da(made.r0), NO_PARTITION, db=made.r0 + 1, count=2, page=page)
    assert toy.code("transact", cap=made.r1, data=beyond.pack()) is e.NotInCore


# ---- further conditions of failures that other conditions trigger as well (test_xn_failures has one of each)


def test_a_full_catalogue_takes_no_root(toy: Toy) -> None:
    for number in range(CATALOGUE_LIMIT):
        if toy.code("reserve_type", DEV, data=b"type-%d" % number) is not None:
            break
    free = toy.local.kernel.device(DEV).freemap.free
    with pytest.raises(e.NoSpace, match="the catalogue is full"):
        toy.env.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"one more")
    assert toy.local.kernel.device(DEV).freemap.free == free


def test_who_has_his_most_capabilities_gets_no_root(toy: Toy) -> None:
    held = toy.env.kernel_env.capabilities
    while len(list(held)) < MAX_CAPABILITIES:
        held.add(Capability(TREE, 1 << 60 | len(list(held)), Right.READ, "filler"))
    in_use, free = toy.local.kernel.pages.in_use, toy.local.kernel.device(DEV).freemap.free
    with pytest.raises(e.LimitReached, match="capabilities in one environment"):
        toy.env.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"new")
    assert (toy.local.kernel.pages.in_use, toy.local.kernel.device(DEV).freemap.free) == (in_use, free)
    assert toy.local.kernel.device(DEV).catalogue.get("new") is None


def test_a_type_that_a_root_has_stays(toy: Toy) -> None:
    """Nothing of it is in core: only the catalogue tells."""
    toy.local.stop()
    toy.local._boot()
    env = toy.local.environment(roots=["toy-node"])
    env.call("type_mount", DEV, data=b"toy-node")
    with pytest.raises(e.InUse, match="a root is of type 'toy-node'"):
        env.call("uninstall_mount", DEV, cap=1, data=b"toy-node")
