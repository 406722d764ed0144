"""Start, stop, crash and reconstruction: what each finds on a disk (START-1 to START-5, RECOVER-1 to 3, 6 and 7)."""

from __future__ import annotations

import pytest
from toy import DEV, Sector, Toy, da, element

from xok_host.abi import errors as e
from xok_host.abi.calls import Op, OpKind
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB
from xok_host.kernel.local import LocalXok, RamDisk
from xok_host.kernel.request import IoOp
from xok_host.kernel.xn import recover
from xok_host.kernel.xn.catalogue import FLAG_TAINTED
from xok_host.kernel.xn.format import SUPERBLOCK, Superblock, layout, newest, pack_freemap_sector, unpack_freemap_sector


@pytest.fixture
def stopped(toy: Toy) -> Toy:
    """A tree of a node and two data blocks, in order on a disk that was shut down."""
    node = toy.add_node(toy.root, 2)
    toy.add_data(node, 3, b"one")
    toy.add_data(toy.root, 5, b"two")
    counted, referring = toy.sector(node, 0), Sector(references=[element(node, 0, 0)])
    counted.counts[0] = 1
    toy.transact(toy.modify(node, 0, counted), toy.modify(toy.root, 6, referring))
    toy.local.stop()
    return toy


def examine(toy: Toy) -> recover.Report:
    return recover.reconstruct(toy.local.disk.read_block, toy.local.disk.nblocks)


def put(toy: Toy, db: int, sector: int, new: Sector) -> None:
    """Behind XN's back."""
    toy.local.disk.write_sectors(db * SECTORS + sector, new.pack())


def child(toy: Toy) -> int:
    raw = toy.local.disk.read_sectors(toy.root * SECTORS + 2, 1)
    return Sector.unpack(raw).pointers[0][0]


def test_a_clean_disk_is_sound(stopped: Toy) -> None:
    report = examine(stopped)
    assert report.was_clean and report.sound and not report.over_counts
    assert report.leaked == report.unmarked == 0
    assert report.trees == {"toy-node": 1, "toy": 4}
    assert report.free == 512 - 10 - 1 - 5


def test_a_disk_in_use_does_not_start_again_before_reconstruction(toy: Toy) -> None:
    toy.add_data(toy.root, 1, b"x")
    toy.local.crash()
    assert not toy.local.started
    report = toy.local.recover()
    assert toy.local.started and report.sound and not report.was_clean
    toy.local.stop()
    assert newest(toy.local.disk.read_block(0), toy.local.disk.read_block(511)).clean


def test_what_was_flushed_is_there_after_a_crash(toy: Toy) -> None:
    node = toy.add_node(toy.root, 1)
    block = toy.add_data(node, 1, b"kept")
    toy.local.sync()
    lost = toy.add_data(node, 2, b"lost")
    toy.local.crash()
    report = toy.local.recover()
    assert report.sound and report.trees["toy"] == 3
    assert toy.local.disk.read_block(block)[:4] == b"kept"
    env = toy.local.environment(roots=["toy"])
    assert not env.freemaps[DEV].is_free(block) and env.freemaps[DEV].is_free(lost)
    env.call("type_mount", DEV, data=b"toy-node")
    assert env.call("mount", DEV, cap=1, data=b"toy").r0 == da(toy.root)


def test_dirty_blocks_keep_a_disk_from_stopping(toy: Toy) -> None:
    outcome: list[object] = []
    toy.local.kernel.stop_device(DEV, outcome.append)
    toy.local.pump()
    assert isinstance(outcome[0], e.InUse)
    toy.local.stop()
    with pytest.raises(e.NotFound):
        toy.env.call("info", DEV)


def allocate_without_contents(toy: Toy, node: int, count: int) -> int:
    """Data blocks in sector 0 of `node` that nobody gives contents; the first of them."""
    first, new = toy.free_block(count), toy.sector(node, 0)
    new.pointers.append((first, count, TYPE_XN_DB, 0))
    toy.transact(toy.modify(node, 0, new, OpKind.ALLOC, db=first, count=count, type=TYPE_XN_DB))
    return first


def test_blocks_that_nobody_initialised_are_zeros_after_an_orderly_stop(toy: Toy) -> None:
    """START-5: below a root that is durable, over old bytes."""
    toy.durable(toy.root)
    nodes = [toy.add_node(toy.root, 0) for _ in range(3)]
    first = [allocate_without_contents(toy, node, 120) for node in nodes]
    for db in first:
        toy.local.disk.data[db * BLOCK : (db + 120) * BLOCK] = b"\x55" * (120 * BLOCK)
    kept = toy.add_data(toy.root, 1, b"kept")
    toy.env.close()
    toy.local.sync()
    assert toy.local.kernel.devices[DEV].dirty_blocks  # nobody but xokd can help here
    toy.local.stop()
    assert all(toy.local.disk.read_block(block) == bytes(BLOCK) for db in first for block in range(db, db + 120))
    assert toy.local.disk.read_block(kept)[:4] == b"kept"
    report = recover.reconstruct(toy.local.disk.read_block, toy.local.disk.nblocks)
    assert report.was_clean and report.sound and not report.leaked


def test_filling_goes_in_steps_and_contents_still_win(monkeypatch: pytest.MonkeyPatch, toy: Toy) -> None:
    monkeypatch.setattr("xok_host.kernel.xn.device.FILL_BLOCKS", 4)
    toy.durable(toy.root)
    first = allocate_without_contents(toy, toy.root, 6)
    assert [toy.local.kernel.fill_uninitialised(DEV) for _ in range(3)] == [4, 2, 0]
    page = toy.page(b"late")
    toy.transact(Op(OpKind.PUBLISH, da(toy.root), 0, db=first, count=1, page=page))
    assert toy.local.sync() and toy.local.disk.read_block(first)[:4] == b"late"
    assert toy.local.disk.read_block(first + 1) == bytes(BLOCK)
    toy.local.stop()


@pytest.mark.parametrize("broken", [0, 511])
def test_one_superblock_is_enough(stopped: Toy, broken: int) -> None:
    stopped.local.disk.write_sectors(broken * SECTORS, bytes(SECTOR))
    again = LocalXok(disk=stopped.local.disk, format=False)
    assert again.started


def test_disks_that_cannot_be_used(stopped: Toy) -> None:
    disk = stopped.local.disk
    with pytest.raises(e.BadDisk, match="not an XN disk"):
        LocalXok(disk=RamDisk(512), format=False)
    with pytest.raises(e.BadDisk, match="too few"):
        LocalXok(nblocks=20)
    shorter = RamDisk(256)
    shorter.data[:] = disk.data[: 256 * BLOCK]
    with pytest.raises(e.BadDisk, match="512 blocks and has 256"):
        LocalXok(disk=shorter, format=False)
    for sector in (0, 511 * SECTORS):
        raw = bytearray(disk.read_sectors(sector, 1))
        SUPERBLOCK.view(raw).version = 9
        disk.write_sectors(sector, bytes(raw))
    with pytest.raises(e.BadDisk, match="checksum"):
        LocalXok(disk=disk, format=False)


def test_a_damaged_free_map_is_noticed_and_made_anew(stopped: Toy) -> None:
    disk = stopped.local.disk
    map_sector = layout(512, bytes(16), 16).freemap * SECTORS
    disk.write_sectors(map_sector, bytes(SECTOR))
    with pytest.raises(e.BadDisk, match="damaged"):
        LocalXok(disk=disk, format=False)
    report = examine(stopped)
    assert not report.sound
    for step in recover.repair(report):
        for sector, raw in step.items():
            disk.write_sectors(sector, raw)
    assert examine(stopped).sound
    assert unpack_freemap_sector(0, disk.read_sectors(map_sector, 1))[0] == 0xFF


def test_read_errors_at_start(stopped: Toy) -> None:
    fresh = LocalXok(64)
    fresh.stop()
    fresh.disk.fail = lambda request: 5 if request.op == IoOp.READ else 0
    with pytest.raises(e.MediaError):
        LocalXok(disk=fresh.disk, format=False)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("double", lambda toy, node: put(toy, toy.root, 7, Sector(pointers=[(node, 1, toy.type, 0)]))),
        ("range", lambda toy, node: put(toy, toy.root, 7, Sector(pointers=[(1, 1, TYPE_XN_DB, 0)]))),
        ("range", lambda toy, node: put(toy, toy.root, 7, Sector(pointers=[(511, 1, TYPE_XN_DB, 0)]))),
        ("range", lambda toy, node: put(toy, toy.root, 7, Sector(pointers=[(500, 1 << 20, TYPE_XN_DB, 0)]))),
        ("type", lambda toy, node: put(toy, toy.root, 7, Sector(pointers=[(300, 1, 77, 0)]))),
        ("udf", lambda toy, node: put(toy, toy.root, 7, Sector(pointers=[(1 << 50, 1, TYPE_XN_DB, 0)]))),
        ("dangling", lambda toy, node: put(toy, toy.root, 7, Sector(references=[element(node, 1, 1)]))),
        ("under-count", lambda toy, node: put(toy, toy.root, 7, Sector(references=[element(node, 0, 0)]))),
    ],
)
def test_violations_taint_their_root(stopped: Toy, kind: str, damage) -> None:  # type: ignore[no-untyped-def]
    damage(stopped, child(stopped))
    report = examine(stopped)
    assert kind in {violation.kind for violation in report.violations} and report.tainted == {"toy"}
    for step in recover.repair(report):
        for sector, raw in step.items():
            stopped.local.disk.write_sectors(sector, raw)
    again = LocalXok(disk=stopped.local.disk, format=False)
    assert again.kernel.devices[DEV].catalogue.find("toy").entry.flags & FLAG_TAINTED
    env = again.environment(roots=["toy"])
    env.call("type_mount", DEV, data=b"toy-node")
    with pytest.raises(e.NotClean):
        env.call("mount", DEV, cap=1, data=b"toy")
    put(stopped, stopped.root, 7, Sector())
    mended = examine(stopped)
    assert mended.sound
    for step in recover.repair(mended):
        for sector, raw in step.items():
            stopped.local.disk.write_sectors(sector, raw)
    once_more = LocalXok(disk=stopped.local.disk, format=False)
    assert not once_more.kernel.devices[DEV].catalogue.find("toy").entry.flags & FLAG_TAINTED


def test_an_over_count_is_benign(stopped: Toy) -> None:
    put(stopped, stopped.root, 6, Sector())
    report = examine(stopped)
    assert report.sound
    assert report.over_counts == [("toy", element(child(stopped), 0, 0), 1, 0)]


def test_a_leak_is_found_and_freed(stopped: Toy) -> None:
    put(stopped, stopped.root, 5, Sector())
    report = examine(stopped)
    assert report.sound and report.leaked == 1


def test_unreadable_metadata_is_a_violation(stopped: Toy) -> None:
    node = child(stopped)

    def read_block(db: int) -> bytes:
        if db == node:
            raise e.MediaError("gone")
        return stopped.local.disk.read_block(db)

    report = recover.reconstruct(read_block, 512)
    assert {violation.kind for violation in report.violations} == {"unreadable", "dangling"}


def test_uninstalled_roots_do_not_come_back(toy: Toy) -> None:
    toy.local.sync()
    toy.env.call("uninstall_mount", DEV, cap=toy.cap, data=b"toy")
    toy.flush()
    toy.local.crash()
    report = toy.local.recover()
    assert report.trees == {"toy-node": 1} and report.sound


def test_type_ids_are_never_given_out_twice(toy: Toy) -> None:
    first = toy.env.call("reserve_type", DEV, data=b"a").r0
    toy.env.call("uninstall_mount", DEV, data=b"a")
    toy.flush()
    toy.local.crash()
    toy.local.recover()
    assert toy.local.environment().call("reserve_type", DEV, data=b"b").r0 == first + 1


# ---- RECOVER-6: a crash without a walk


def superblock(local: LocalXok) -> Superblock:
    return newest(local.disk.read_block(0), local.disk.read_block(local.disk.nblocks - 1))


def test_a_crashed_disk_is_used_without_a_walk(toy: Toy) -> None:
    """No block of a tree is read.  What was allocated and is not led to stays in use, stops and starts included, until
    the trees are walked."""
    node = toy.add_node(toy.root, 1)
    toy.local.sync()
    lost = toy.free_block(1)
    new = toy.sector(node, 2)
    new.pointers.append((lost, 1, TYPE_XN_DB, 0))
    toy.transact(toy.modify(node, 2, new, OpKind.ALLOC, db=lost, count=1, type=TYPE_XN_DB))
    toy.flush()  # the map says so, and nothing leads there: the block was never written
    toy.local.crash()
    disk = toy.local.disk
    read: list[int] = []
    original = disk.read_block
    disk.read_block = lambda db: (read.append(db), original(db))[1]  # type: ignore[method-assign]
    report = toy.local.resume()
    del disk.read_block
    assert toy.local.started and not report.whole and not {toy.root, node} & set(read)
    for _ in range(2):
        assert toy.local.kernel.device(DEV).superblock.surplus
        assert not toy.local.environment(roots=["toy"]).freemaps[DEV].is_free(lost)
        toy.local.stop()
        assert superblock(toy.local).clean
        found = recover.reconstruct(disk.read_block, disk.nblocks)
        assert found.sound and found.leaked == 1
        toy.local._boot()
    report = toy.local.recover()
    assert report.leaked == 1 and not superblock(toy.local).surplus
    assert toy.local.environment(roots=["toy"]).freemaps[DEV].is_free(lost)


def half_walked(local: LocalXok) -> recover.Report:
    """As far as a walk must be when it does not take the disk as it is."""
    began: list[recover.Report] = []
    steps = recover.reconstruction(local.disk.nblocks, began=began.append)
    wanted = next(steps)
    while not (began and began[0].trees.get("toy")):
        wanted = steps.send([local.disk.read_block(db) for db in wanted])
    steps.close()
    return began[0]


def refused_as_it_is(report: recover.Report) -> None:
    with pytest.raises(e.NotClean):
        recover.as_it_is(report)


def test_half_a_walk_is_no_map(toy: Toy) -> None:
    toy.local.sync()
    toy.local.crash()
    report = half_walked(toy.local)
    assert report.may_start and not report.whole
    with pytest.raises(ValueError, match="free what is in use"):
        recover.repair(report)


def test_a_repair_that_was_cut_is_walked_to_the_end(toy: Toy) -> None:
    """RECOVER-7: a map without what hangs below an unreadable block, and no taint mark, wherever the power fails."""
    node = toy.add_node(toy.root, 1)
    block = toy.add_data(node, 0, b"victim")
    toy.local.sync()
    toy.local.crash()
    disk = toy.local.disk

    def read_block(db: int) -> bytes:
        if db == node:
            raise e.MediaError("EIO")
        return disk.read_block(db)

    demand, rest, _ = recover.repair(recover.reconstruct(read_block, disk.nblocks))
    crashed = bytes(disk.data)
    last = disk.nblocks - 1
    assert set(demand) == {0, last * SECTORS}
    for cut in range(len(rest) + 1):
        disk.data[:] = crashed
        for sector, raw in (*demand.items(), *list(rest.items())[:cut]):
            disk.write_sectors(sector, raw)
        disk.flush()
        toy.local._boot()
        assert not toy.local.started
        report = toy.local.resume()
        assert report.whole, f"after {cut} sectors of the repair it started without a walk"
        assert not toy.local.environment(roots=["toy"]).freemaps[DEV].is_free(block)
        assert not superblock(toy.local).walk
        toy.local.stop()


def test_a_map_that_shows_too_little_is_not_taken(toy: Toy) -> None:
    toy.add_node(toy.root, 1)
    toy.local.stop()
    first = superblock(toy.local).freemap * SECTORS
    bits = bytearray(unpack_freemap_sector(0, toy.local.disk.read_sectors(first, 1)))
    bits[toy.root >> 3] &= ~(1 << (toy.root & 7))
    toy.local.disk.write_sectors(first, pack_freemap_sector(0, bits))
    refused_as_it_is(half_walked(toy.local))


def test_a_disk_is_walked_where_something_is_wrong(toy: Toy) -> None:
    """A damaged map, a tree that reconstruction found damaged before, and what a walk has found so far."""
    toy.add_node(toy.root, 1)
    broken = toy.sector(toy.root, 3)
    broken.pointers.append((toy.root, 1, TYPE_XN_DB, 0))
    toy.local.stop()
    good = bytes(toy.local.disk.data)
    sector = superblock(toy.local).freemap * SECTORS
    toy.local.disk.write_sectors(sector, bytes(SECTOR))
    refused_as_it_is(half_walked(toy.local))
    toy.local.disk.data[:] = good

    toy.local._boot()
    catalogue = toy.local.kernel.device(DEV).catalogue
    catalogue.change("toy", flags=FLAG_TAINTED)
    toy.local.environment().call("flush", DEV)
    toy.local.crash()
    refused_as_it_is(half_walked(toy.local))
    toy.local.disk.data[:] = good

    put(toy, toy.root, 3, broken)
    assert half_walked(toy.local).may_start, "the root has not been looked at yet"
    refused_as_it_is(recover.reconstruct(toy.local.disk.read_block, toy.local.disk.nblocks))
