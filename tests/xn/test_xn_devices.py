"""Several disks under one kernel: each call is about one of them, and none of them about another's blocks."""

from __future__ import annotations

import errno
import struct

import pytest
from toy import COUNTS_AT, DEV, NO_PARTITION, Sector, Toy, da, element, install_type, take_pages, template

from libfs.cffs import mkfs
from libfs.cffs.filesystem import CFFS
from xok_host.abi import errors as e
from xok_host.abi.calls import Op, OpKind, pack_extents, pack_transaction
from xok_host.abi.types import SECTOR, TYPE_XN_DB, Right, disk_address
from xok_host.abi.udf import Function
from xok_host.kernel.local import LocalXok, RamDisk
from xok_host.kernel.xn.io import FAILED_BLOCKS, FAILED_NS

OTHER = 3


@pytest.fixture
def local() -> LocalXok:
    return LocalXok(512, more=[RamDisk(200), RamDisk(300)], max_chunks=16, entries=1 << 10)


def other_root(toy: Toy, name: bytes = b"toy") -> tuple[int, int]:
    """A root of plain data on the second disk: its block and its capability."""
    made = toy.env.call("install_mount", OTHER, 0, 1, TYPE_XN_DB, data=name)  # the name is free there
    return made.r0, made.r1


def test_the_list_and_what_each_call_says(toy: Toy) -> None:
    listed = toy.env.call("dev_list", out_bytes=64)
    assert listed.r0 == 3 and struct.unpack("<3Q", listed.data) == (DEV, 2, OTHER)
    blocks = [struct.unpack("<6Q", toy.env.call("info", dev, out_bytes=64).data)[0] for dev in (DEV, 2, OTHER)]
    assert blocks == [512, 200, 300]
    assert toy.env.call("read_catalogue", OTHER).r0 == 0
    assert toy.env.freemaps[OTHER].is_free(100)


def test_equal_block_numbers_are_different_blocks(toy: Toy) -> None:
    block, cap = other_root(toy)
    here = toy.add_data(toy.root, 1, b"here")
    toy.env.call("writeb", disk_address(OTHER, block), cap=cap, data=b"there")
    assert toy.env.call("readb", disk_address(OTHER, block), 5, cap=cap).data == b"there"
    assert toy.env.call("readb", da(here), 4, cap=toy.cap).data == b"here"
    with pytest.raises(e.BadCapability):
        toy.env.call("readb", disk_address(OTHER, block), 5, cap=toy.cap)
    listed = [toy.env.call("list_writeable", dev, out_bytes=1 << 10).r0 for dev in (DEV, OTHER)]
    assert listed[1] == 1 and listed[0] >= 2


def test_a_block_number_cannot_name_another_devices_block(toy: Toy) -> None:
    """Bits beyond a block number would be the device's in the registry's key."""
    block, _ = other_root(toy)
    alias = (DEV ^ OTHER) << 44 | block
    assert DEV << 44 | alias == OTHER << 44 | block
    before = toy.local.disks[OTHER].writes
    for extent in ((alias, 1, 0), ((1 << 64) - 1, 2, 0)):
        assert toy.code("writebackv", DEV, data=pack_extents([extent])) is e.NotInCore
        assert toy.code("mark_dirty", DEV, data=pack_extents([extent])) is e.NotInCore
    assert toy.code("writeback", DEV, alias, 1) is e.NotInCore
    assert toy.code("delete_attr", DEV, data=pack_extents([(alias, 1, 0)])) is e.BadCall
    publish = Op(OpKind.PUBLISH, da(toy.root), 1, db=alias, count=1, page=toy.page(b"x"))
    assert toy.code("transact", data=publish.pack()) in (e.BadCall, e.BogusUpdate)
    assert toy.local.disks[OTHER].writes == before


def test_a_page_for_another_devices_root_goes_by_that_devices_number(toy: Toy) -> None:
    """Whoever may write both: extents that reach beyond all numbers are refused as well."""
    raw = [toy.env.call("install_mount", dev, 0, 2, TYPE_XN_DB, data=b"raw%d" % dev) for dev in (DEV, OTHER)]
    theirs = raw[1].r0
    page = take_pages(toy.env, raw[1].r1, 1)[0]
    before = [entry.page for entry in toy.local.kernel.device(OTHER).cached_in(theirs, 2)]
    for db, count in (((DEV ^ OTHER) << 44 | theirs, 1), ((1 << 64) - 1, 2), ((1 << 64) - 1, 1)):
        for part in (NO_PARTITION, 0):
            op = Op(OpKind.PUBLISH, disk_address(DEV, raw[0].r0), part, db=db, count=count, page=page)
            assert toy.code("transact", cap=raw[1].r1, data=op.pack()) is not None, (db, count, part)
    assert [entry.page for entry in toy.local.kernel.device(OTHER).cached_in(theirs, 2)] == before
    op = Op(OpKind.PUBLISH, disk_address(OTHER, theirs), NO_PARTITION, db=theirs, count=1, page=page)
    toy.env.call("transact", cap=raw[1].r1, data=op.pack())


def test_a_transaction_is_about_one_device(toy: Toy) -> None:
    block, cap = other_root(toy)
    capability = toy.local.kernel.tree_capability(OTHER, "toy", Right.WRITE)
    assert toy.env.kernel_env.capabilities.get(cap, "tree", Right.WRITE).id == capability.id
    ops = [
        Op(OpKind.MODIFY, da(toy.root), 1, writes=[(SECTOR, Sector(generation=3).pack())]),
        Op(OpKind.WRITEB, disk_address(OTHER, block), 0xFFFF_FFFF, writes=[(0, b"x")]),
    ]
    with pytest.raises(e.BadCall, match="one device"):
        toy.env.call("transact", cap=toy.cap, data=pack_transaction(ops))
    assert toy.sector(toy.root, 1).generation == 0


def test_types_are_of_a_device(toy: Toy) -> None:
    with pytest.raises(e.WrongType):
        toy.env.call("install_mount", OTHER, 0, 1, toy.type, data=b"no such type there")
    assert install_type(toy.env, "elsewhere", template("elsewhere")) != toy.type


def test_one_disk_fails_and_the_other_does_not_notice(toy: Toy) -> None:
    block, _ = other_root(toy)
    toy.local.disks[OTHER].fail = lambda request: 5
    assert toy.code("writeback", OTHER, block, 1) is e.MediaError
    assert toy.code("flush", OTHER) is e.MediaError
    assert toy.code("read_and_insert", OTHER, data=pack_extents([(200, 1, 0)])) is e.MediaError
    toy.add_data(toy.root, 1, b"still")
    toy.local.sync(DEV)
    outcome: list[e.XokError | None] = []
    toy.local.kernel.stop_device(DEV, outcome.append)
    toy.local.pump()
    assert outcome == [None]
    assert struct.unpack("<2Q", toy.env.call("dev_list", out_bytes=64).data) == (2, OTHER)
    toy.local.disks[OTHER].fail = lambda request: 0
    toy.env.call("writeback", OTHER, block, 1)  # what could not be written is still there


@pytest.mark.parametrize("code", [5, 19])
def test_a_disk_that_is_gone_gives_back_what_waited_for_it(toy: Toy, code: int) -> None:
    """After FAILED_NS of failures, or at once if the device says that it is no more."""
    local, kernel = toy.local, toy.local.kernel
    block, capability = other_root(toy)
    local.sync(OTHER)
    clean = toy.env.call("read_and_insert", OTHER, data=pack_extents([(200, 4, 0)]))
    root, second = other_root(toy, b"second")  # dirty, and not anchored in the catalogue
    entry = toy.env.registry.lookup(OTHER << 44 | block)
    assert clean.r0 == 4 and entry is not None
    pinned = toy.env.call("pin", disk_address(OTHER, block), entry.generation, cap=capability).r0
    toy.env.call("lock", disk_address(OTHER, root), 1, cap=second)
    mine = toy.add_data(toy.root, 1, b"still")
    local.disks[OTHER].fail = lambda request: code
    assert toy.code("writeback", OTHER, root, 1) is e.MediaError
    if code == 5:
        local.tick(FAILED_NS / 1e9 - 1)
        assert toy.code("flush", OTHER) is e.MediaError
        assert kernel.device(OTHER).dirty_blocks, "it may come back"
        local.tick(2)
        assert toy.code("flush", OTHER) is e.MediaError
    assert not [entry for entry in kernel.registry.cached.values() if entry.device.number == OTHER]
    assert all(entry.device.number == DEV for entry in toy.env.kernel_env.unsettled)
    assert toy.code("writeback", OTHER, root, 1) is toy.code("flush", OTHER) is e.NotFound
    with pytest.raises(e.NotFound, match=f"failed with error {code}"):
        toy.env.call("read_and_insert", OTHER, data=pack_extents([(200, 1, 0)]))
    toy.env.call("unpin", pinned)
    local.sync(DEV)
    assert toy.entry(mine).dirty == 0
    toy.env.close()
    pages = kernel.pages
    assert pages.in_use == len(kernel.registry.cached)


@pytest.mark.parametrize("blocks, gone", [(1, False), (FAILED_BLOCKS - 1, False), (FAILED_BLOCKS, True)])
def test_a_few_bad_blocks_are_no_reason_to_give_a_disk_up(toy: Toy, blocks: int, gone: bool) -> None:
    local = toy.local
    first = toy.env.call("install_mount", OTHER, 0, blocks, TYPE_XN_DB, data=b"wide").r0
    local.disks[OTHER].fail = lambda request: 5
    for seconds in (0, FAILED_NS / 1e9 + 1):
        local.tick(seconds)
        for block in range(first, first + blocks):
            if not local.kernel.failed:
                assert toy.code("writeback", OTHER, block, 1) is e.MediaError
    assert bool(local.kernel.failed) is gone


def test_a_whole_file_system_of_a_disk_that_is_gone() -> None:
    """With all that its blocks wait for, and writes on their way."""
    local = LocalXok(512, more=[RamDisk(2000)], entries=1 << 10)
    env = local.environment()
    fs = CFFS.mount(env, 2, "vol", mkfs.make(env, 2, "vol"))
    made = fs.complete(fs.mkdir, fs.root_ino, b"kept", 0o755, 0, 0).ino
    fs.sync_all()
    for number in range(30):
        above = fs.complete(fs.mkdir, made, b"d%d" % number, 0o755, 0, 0).ino
        ino = fs.complete(fs.create, above, b"f", 0o644, 0, 0).ino
        fs.complete(fs.write, ino, 0, b"data" * 3000)
        fs.complete(fs.link, ino, fs.root_ino, b"l%d" % number)
    fs.cross()
    assert any(entry.total_taint for entry in local.kernel.registry.cached.values())
    local.hold_io = True
    env.submit("writebackv", 2, data=pack_extents((db, 1, 0) for db in sorted(fs.unwritten)))
    env.submit("flush", 2)
    local.pump()
    local.disks[2].fail = lambda request: 6
    local.hold_io = False
    local.release_io()
    local.pump()
    assert local.kernel.failed == {2: 6}
    assert not local.kernel.registry.cached and not env.kernel_env.unsettled
    with pytest.raises(OSError, match="has failed") as raised:
        fs.fsync(made)
    assert raised.value.errno == errno.EIO
    env.close()
    assert local.kernel.pages.in_use == 0
    local.environment().call("read_and_insert", DEV, data=pack_extents([(200, 200, 0)]))


def test_a_disk_that_fails_now_and_then_is_not_given_up(toy: Toy) -> None:
    local = toy.local
    for number in range(5):
        block, _ = other_root(toy, b"root %d" % number)
        local.disks[OTHER].fail = lambda request: 5
        assert toy.code("writeback", OTHER, block, 1) is e.MediaError
        local.tick(FAILED_NS / 1e9 / 2 + 1)
        local.disks[OTHER].fail = lambda request: 0
        toy.env.call("writeback", OTHER, block, 1)
    assert not local.kernel.failed


def test_a_crash_and_reconstruction_of_both(toy: Toy) -> None:
    block, cap = other_root(toy)
    toy.env.call("writeb", disk_address(OTHER, block), cap=cap, data=b"kept")
    for dev in (DEV, OTHER):
        toy.local.sync(dev)
    toy.local.crash()
    assert not toy.local.started
    toy.local.recover()
    assert toy.local.started and toy.local.disks[OTHER].read_block(block)[:4] == b"kept"


def test_a_copy_of_an_active_disk_does_not_start(toy: Toy) -> None:
    toy.local.stop()
    copied = RamDisk(512)
    copied.data[:] = toy.local.disk.data
    with pytest.raises(e.BadDisk, match="copy"):
        LocalXok(disk=toy.local.disk, more=[copied], format=False)


def test_a_type_cannot_tell_on_which_device_it_is(local: LocalXok) -> None:
    """Else it could say one thing to verification and another to reconstruction, which numbers devices afresh."""

    def refs_elsewhere() -> bytes:
        f = Function()
        with f.if_(f.address >> 56 != 1):
            f.emit_ref(f.address)  # a reference that reconstruction would never see
        return f.finish()

    env = local.environment()
    raw = template("sly", refs=refs_elsewhere(), refcnt=Function().finish())
    kind = install_type(env, "sly", raw, OTHER)
    root = env.call("install_mount", OTHER, 0, 1, kind, data=b"root")
    op = Op(OpKind.MODIFY, disk_address(OTHER, root.r0), 0, writes=[(SECTOR - 8, b"x")])
    env.call("transact", cap=root.r1, data=pack_transaction([op]))  # no reference is gained: it balances


def test_links_are_counted_on_any_device(local: LocalXok) -> None:
    """Elements are named by block and byte; the number that the disk has today is no part of the name."""
    env = local.environment()
    kind = install_type(env, "node", template("node"), OTHER)
    root = env.call("install_mount", OTHER, 0, 1, kind, data=b"root")
    at = disk_address(OTHER, root.r0)
    stored = element(root.r0, 0, 0)  # names device 1, as a disk that was attached first once would
    both = Sector(counts=[1] + [0] * 7, references=[stored])
    env.call("transact", cap=root.r1, data=pack_transaction([Op(OpKind.MODIFY, at, 0, writes=[(0, both.pack())])]))
    there = disk_address(OTHER, root.r0, COUNTS_AT)
    assert env.call("get_refcnt", there, cap=root.r1).r0 == 1
