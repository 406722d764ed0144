"""Reboot UDFs (thesis 4.6): what may go to the disk because its log says so, and what nobody gets by them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from journal import LOG_SECTOR, Journal, moody, on_disk, silent
from toy import DEV, Sector, Toy, da, element, guard, template

from xok_host.abi.blocks import Blocks
from xok_host.abi.calls import Op, OpKind, pack_extents, pack_transaction
from xok_host.abi.derive import derive
from xok_host.abi.errors import (
    BogusUpdate,
    InUse,
    LimitReached,
    MediaError,
    NotInCore,
    Tainted,
    TypeInvalid,
    UdfFailed,
    WouldCycle,
    XokError,
)
from xok_host.abi.template import HEADER, RANGE, BadTemplate, Partitions, Template
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB, Right
from xok_host.abi.udf import Function
from xok_host.kernel.local import LocalXok
from xok_host.kernel.xn import reboot, recover
from xok_host.kernel.xn.template import MAX_PART_REPORTS, import_template

STRANGER = b"\xee" * BLOCK


@pytest.fixture
def local() -> LocalXok:
    """On a disk full of somebody else's bytes."""
    made = LocalXok(512, max_chunks=16, entries=1 << 10)
    first = made.kernel.devices[DEV].superblock.first
    made.disk.data[first * BLOCK : 511 * BLOCK] = STRANGER * (511 - first)
    made.disk.durable[:] = made.disk.data
    return made


@pytest.fixture
def journal(local: LocalXok) -> Journal:
    return Journal(local)


@pytest.fixture(autouse=True)
def consistent(local: LocalXok) -> Iterator[None]:
    """What XN remembers of logs adds up (`Reports`)."""
    yield
    device = local.kernel.devices.get(DEV)
    if device is not None:
        known = device.reports
        standing = {edge for log in known.logs.values() for edge in log.standing()}
        assert set(known.standing) == standing
        assert sum(known.children.values()) == len(standing) and all(known.children.values())
        assert all(edge in standing for edge in known.needed.values())


def crashed(journal: Journal, keep: bool = False) -> recover.Report:
    """Power fails; of what is not flushed all or nothing is there.  Reconstruct, start again."""
    journal.local.crash(lambda sector: keep)
    report = journal.local.recover()
    assert report.sound
    return report


# ---- what it is for


def test_a_disk_with_logs_is_not_used_before_they_are_heard(journal: Journal) -> None:
    node = journal.add_node(journal.root, 0)
    journal.local.sync()
    block = journal.early(node, 3)
    journal.local.crash(lambda sector: False)
    report = journal.local.resume()
    assert report.whole and report.logs and report.unwritten == [block]
    assert not any(journal.local.disk.read_block(block))


def test_a_pointer_before_its_data(journal: Journal) -> None:
    node = journal.add_node(journal.root, 0)
    journal.local.sync()
    block = journal.early(node, 3)
    assert on_disk(journal.local, node, 3).pointers[0][0] == block
    assert journal.local.disk.read_block(block) == STRANGER
    assert journal.known.needed == {block: (node, 3, block)}
    journal.fill(node, 3, block, b"mine" * 1024)
    journal.durable(block)
    assert not journal.known.needed and journal.known.reported(block) == journal.log
    journal.withdraw((node, 3, block))
    journal.durable(journal.log)
    assert not journal.known.standing and not journal.known.logs
    report = crashed(journal)
    assert not report.unwritten and journal.local.disk.read_block(block) == b"mine" * 1024


@pytest.mark.parametrize("kind", ["data", "node"])
def test_what_was_never_written_is_zeros_after_a_crash(journal: Journal, kind: str) -> None:
    node = journal.add_node(journal.root, 0)
    journal.local.sync()
    block = journal.early(node, 3, TYPE_XN_DB if kind == "data" else journal.type)
    report = crashed(journal)
    assert report.unwritten == [block] and block not in report.metadata
    assert journal.local.disk.read_block(block) == bytes(BLOCK)
    assert not reconstructed_again(journal).unwritten  # of a clean disk nothing is asked


def reconstructed_again(journal: Journal) -> recover.Report:
    journal.local.stop()
    return recover.reconstruct(journal.local.disk.read_block, journal.local.disk.nblocks)


def test_a_whole_extent_and_one_block_of_it(journal: Journal) -> None:
    """A report is about one block: the others of an extent are as they are."""
    new, first = journal.sector(journal.root, 1), journal.free_block(3)
    new.pointers.append((first, 3, TYPE_XN_DB, 0))
    journal.transact(journal.modify(journal.root, 1, new, OpKind.ALLOC, db=first, count=3, type=TYPE_XN_DB))
    for db in (first, first + 2):
        journal.fill(journal.root, 1, db, b"%d" % db)
    journal.report((journal.root, 1, first + 1))
    journal.durable(journal.log, first, first + 2)
    journal.durable(journal.root)
    report = crashed(journal)
    assert report.unwritten == [first + 1]
    for db in (first, first + 2):
        assert journal.local.disk.read_block(db).startswith(b"%d" % db)


def test_without_a_durable_report_it_is_as_ever(journal: Journal) -> None:
    block = journal.add_of(journal.root, 0, TYPE_XN_DB)
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 0)])) is Tainted
    journal.report((journal.root, 0, block))
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 0)])) is Tainted
    journal.writeback(journal.log)
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 0)])) is Tainted
    assert journal.root not in writeable(journal)
    journal.flush()
    assert journal.root in writeable(journal)
    journal.durable(journal.root)


def writeable(journal: Journal) -> tuple[int, ...]:
    data = journal.env.call("list_writeable", DEV, out_bytes=1 << 12).data
    return struct.unpack(f"<{len(data) // 8}Q", data)


def test_a_report_about_one_of_two_is_not_enough(journal: Journal) -> None:
    one, _ = (journal.add_of(journal.root, 0, TYPE_XN_DB) for _ in range(2))
    journal.report((journal.root, 0, one))
    journal.durable(journal.log)
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 0)])) is Tainted


def test_a_report_about_another_sector_is_not_enough(journal: Journal) -> None:
    block = journal.add_of(journal.root, 0, TYPE_XN_DB)
    journal.report((journal.root, 1, block))
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.log, 1, 0)])) is BogusUpdate


def test_a_log_that_the_disk_does_not_lead_to(journal: Journal) -> None:
    """The log itself must be found after a crash."""
    block = journal.add_of(journal.root, 0, TYPE_XN_DB)
    other = journal.add_log(journal.root, 5)
    journal.report((journal.root, 0, block), log=other)
    journal.durable(other)
    assert journal.known.reported(block) == other
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 1 << 0)])) is Tainted
    journal.writeback(journal.root, mask=1 << 5)
    journal.flush()
    journal.writeback(journal.root, mask=1 << 0)
    journal.flush()
    assert crashed(journal).unwritten == [block]


def test_other_waits_are_no_exception(journal: Journal) -> None:
    """A reference still waits for its count (ORDER-5)."""
    node = journal.add_node(journal.root, 0)
    journal.local.sync()
    block = journal.add_of(journal.root, 2, TYPE_XN_DB)
    source, target = journal.sector(journal.root, 2), journal.sector(node, 0)
    source.references.append(element(node, 0, 0))
    target.counts[0] = 1
    journal.transact(journal.modify(journal.root, 2, source), journal.modify(node, 0, target))
    journal.report((journal.root, 2, block))
    journal.durable(journal.log)
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 0)])) is Tainted
    journal.durable(node)
    journal.durable(journal.root)
    assert crashed(journal).unwritten == [block]


# ---- the log must go on saying it (REBOOT-2)


def test_the_record_stays_until_the_child_is_durable(journal: Journal) -> None:
    block = journal.early(journal.root, 0)
    journal.withdraw((journal.root, 0, block))
    with pytest.raises(Tainted) as refused:
        journal.writeback(journal.log)
    assert refused.value.fields["r0"] == block
    journal.fill(journal.root, 0, block, b"x")
    journal.writeback(block)
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.log, 1, 0)])) is Tainted  # written only
    journal.flush()
    journal.durable(journal.log)
    assert not crashed(journal).unwritten


def test_other_records_of_the_sector_may_change(journal: Journal) -> None:
    block = journal.early(journal.root, 0)
    another = journal.add_of(journal.root, 1, TYPE_XN_DB)
    journal.report((journal.root, 1, another))
    journal.durable(journal.log)
    journal.withdraw((journal.root, 1, another))
    journal.durable(journal.log)
    assert list(journal.known.standing) == [(journal.root, 0, block)]


def test_a_record_moves_to_another_sector_of_the_log(journal: Journal) -> None:
    block = journal.early(journal.root, 0)
    edge = (journal.root, 0, block)
    journal.report(edge, sector=4)
    journal.withdraw(edge)
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.log, 1, 1 << 0)])) is Tainted
    journal.writeback(journal.log, mask=1 << 4)
    journal.flush()
    journal.writeback(journal.log, mask=1 << 0)
    journal.flush()
    assert crashed(journal).unwritten == [block]


def test_a_child_that_is_freed(journal: Journal) -> None:
    """Its report stays until no durable pointer leads there, and it is not given out before."""
    block = journal.early(journal.root, 0)
    journal.remove(journal.root, 0, block)
    journal.withdraw((journal.root, 0, block))
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.log, 1, 0)])) is Tainted
    assert not journal.local.kernel.devices[DEV].freemap.is_free(block, 1)
    journal.durable(journal.root)
    assert journal.local.kernel.devices[DEV].freemap.is_free(block, 1) and not journal.known.needed
    journal.durable(journal.log)
    assert not journal.known.logs


def test_a_write_of_the_log_that_fails_leaves_either(journal: Journal) -> None:
    """The disk may hold what a failed write brought: a report in one version alone is not certain."""
    block = journal.add_of(journal.root, 0, TYPE_XN_DB)
    journal.report((journal.root, 0, block))
    journal.local.disk.fail = lambda request: 5 if request.op.name == "WRITE" else 0
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.log, 1, 0)])) is MediaError
    journal.local.disk.fail = lambda request: 0
    journal.flush()
    assert journal.known.standing and not journal.known.covers(entry(journal, journal.root), 0)
    journal.durable(journal.log)
    assert journal.known.covers(entry(journal, journal.root), 0)


def entry(journal: Journal, db: int):  # type: ignore[no-untyped-def]
    found = journal.local.kernel.devices[DEV].get(db)
    assert found is not None
    return found


def test_a_log_of_standing_reports_is_not_freed(journal: Journal) -> None:
    block = journal.early(journal.root, 0)
    with pytest.raises(WouldCycle) as refused:
        journal.remove(journal.root, LOG_SECTOR, journal.log)
    assert refused.value.fields["r0"] == journal.log
    journal.fill(journal.root, 0, block, b"x")
    journal.durable(block)
    journal.withdraw((journal.root, 0, block))
    journal.durable(journal.log)
    journal.remove(journal.root, LOG_SECTOR, journal.log)
    journal.local.sync()


def test_a_log_of_standing_reports_is_not_moved(journal: Journal) -> None:
    """To a new block below its sector it could be, where nobody would look for it."""
    journal.early(journal.root, 0)
    between = journal.free_block()
    root, pointer = journal.sector(journal.root, LOG_SECTOR), (journal.log, 1, journal.log_type, 0)
    root.pointers = [(between, 1, journal.type, 0)]
    ops = [
        journal.modify(journal.root, LOG_SECTOR, root, OpKind.ALLOC, db=between, count=1, type=journal.type),
        journal.modify(between, 0, Sector([pointer])),
    ]
    with pytest.raises(WouldCycle):
        journal.transact(*ops)


def test_the_type_of_a_log_of_standing_reports_stays(journal: Journal) -> None:
    """Also while no block of it is in core: reconstruction will need it."""
    journal.early(journal.root, 0)
    journal.env.call("delete_attr", DEV, data=pack_extents([(journal.log, 1, 0)]))
    assert journal.known.logs and entry_or_none(journal, journal.log) is None
    owner = journal.local.environment(roots=["journal-log"])
    held = next(index for index, _ in owner.kernel_env.capabilities)
    with pytest.raises(InUse, match=f"block {journal.log}, of type"):
        owner.call("uninstall_mount", DEV, data=b"journal-log", cap=held)
    assert len(crashed(journal).unwritten) == 1


def entry_or_none(journal: Journal, db: int):  # type: ignore[no-untyped-def]
    return journal.local.kernel.devices[DEV].get(db)


def test_a_log_that_is_not_in_core_is_worth_nothing_for_now(journal: Journal) -> None:
    """Nothing goes to the disk on account of it; nothing is forgotten either."""
    first = journal.early(journal.root, 0)
    second = journal.add_of(journal.root, 1, TYPE_XN_DB)
    journal.report((journal.root, 1, second))
    journal.durable(journal.log)
    journal.env.call("delete_attr", DEV, data=pack_extents([(journal.log, 1, 0)]))
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 0)])) is Tainted
    journal.env.call(
        "insert_and_read", da(journal.root), cap=journal.cap, data=pack_extents([(journal.log, 1, LOG_SECTOR)])
    )
    journal.durable(journal.root)
    journal.withdraw((journal.root, 0, first))
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.log, 1, 0)])) is Tainted
    assert crashed(journal).unwritten == [first, second]


def test_what_was_never_written_is_not_read_either(journal: Journal) -> None:
    """Before the crash: the disk leads to a stranger's bytes, and no call does."""
    block = journal.early(journal.root, 0)
    extent = pack_extents([(block, 1, 0)])
    for name, scalars in (("insert_and_read", (da(journal.root),)), ("read_and_insert", (DEV,))):
        journal.code(name, *scalars, data=extent)
    with pytest.raises(NotInCore):
        journal.env.call("readb", da(block), BLOCK, cap=journal.cap, out_bytes=BLOCK)
    assert journal.code("delete_attr", DEV, data=extent) is InUse


def test_a_type_that_cannot_be_read(journal: Journal) -> None:
    """It may be that of a log."""
    journal.early(journal.root, 0)
    journal.local.crash()
    kind = recover.read_catalogue(journal.local.disk.read_block, 512)[1].find("journal-log").entry

    def read(db: int) -> bytes:
        if db == kind.db:
            raise MediaError("bad sector")
        return journal.local.disk.read_block(db)

    report = recover.reconstruct(read, journal.local.disk.nblocks)
    with pytest.raises(MediaError):
        list(recover.repair(report))


def test_a_disk_with_needed_reports_is_not_clean(journal: Journal) -> None:
    block = journal.early(journal.root, 0)
    outcome: list[XokError | None] = []
    journal.local.sync()
    journal.local.kernel.stop_device(DEV, outcome.append)
    journal.local.pump()
    assert isinstance(outcome[0], InUse) and f"block {block} was never written" in str(outcome[0])
    journal.local.kernel.devices[DEV].fill_uninitialised()
    journal.durable(block)
    journal.local.stop()


@pytest.mark.parametrize("why", ["bogus", "faulting"])
def test_a_log_that_must_not_be_written_does_not_keep_a_disk_from_stopping(local: LocalXok, why: str) -> None:
    """START-6; nor does it keep a syncer busy.  Its own bytes are written when nobody will listen to them."""
    journal = Journal(local, log=log_template(moody()) if why == "faulting" else None)
    if why == "faulting":
        journal.transact(Op(OpKind.MODIFY, da(journal.log), 0, writes=[(0, b"\1")]))
    else:
        journal.report((journal.root, 0, 400))
    local.sync()
    assert entry(journal, journal.log).dirty == 1 and journal.log not in writeable(journal)
    local.stop()
    assert recover.reconstruct(local.disk.read_block, 512).sound
    assert any(local.disk.read_block(journal.log)[:SECTOR])
    again = LocalXok(disk=local.disk, format=False, max_chunks=16, entries=1 << 10)
    assert again.started


def test_a_session_that_cannot_be_ended(journal: Journal) -> None:
    """What was let through before stays reported, and nothing more is let through."""
    journal.report((journal.root, 0, 400))
    journal.local.sync()
    journal.local.disk.fail = lambda request: 5 if request.op.name == "WRITE" else 0
    assert journal.local.kernel.fill_uninitialised(DEV)
    journal.local.pump()
    assert not journal.local.kernel.fill_uninitialised(DEV) and journal.session
    journal.local.disk.fail = lambda request: 0
    journal.withdraw((journal.root, 0, 400))
    block = journal.add_of(journal.root, 0, TYPE_XN_DB)
    journal.report((journal.root, 0, block))
    journal.durable(journal.log)
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 0)])) is Tainted


def test_when_the_session_has_ended_there_are_no_exceptions(journal: Journal) -> None:
    journal.report((journal.root, 0, 400))
    journal.local.sync()
    assert journal.local.kernel.fill_uninitialised(DEV)
    journal.local.pump()
    assert not journal.session and not journal.known.refused
    journal.durable(journal.log)
    block = journal.add_of(journal.root, 0, TYPE_XN_DB)
    journal.report((journal.root, 0, block), session=0)
    journal.durable(journal.log)
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 0)])) is Tainted
    assert not crashed(journal).unwritten


def test_a_root_that_is_a_log_itself(local: LocalXok) -> None:
    journal = Journal(local)
    raw = template("self-log", refs=b"", refcnt=b"", reboot=own_reports())
    from toy import install_type

    kind = install_type(journal.env, "self-log", raw)
    made = journal.env.call("install_mount", DEV, 0, 1, kind, data=b"self")
    root, journal.cap = made.r0, made.r1
    local.sync()
    block = journal.add_of(root, 0, TYPE_XN_DB)
    new = bytes(480) + struct.pack("<QQQ", root << 12, block, journal.session) + bytes(8)
    journal.transact(Op(OpKind.MODIFY, da(root), 6, writes=[(6 * SECTOR, new)]))
    journal.writeback(root, mask=1 << 6)
    journal.flush()
    journal.durable(root)
    assert journal.code("uninstall_mount", DEV, data=b"self") is InUse
    journal.remove(root, 0, block)
    journal.durable(root)
    assert journal.code("uninstall_mount", DEV, data=b"self") is InUse  # the report still stands
    journal.transact(Op(OpKind.MODIFY, da(root), 6, writes=[(6 * SECTOR, bytes(SECTOR))]))
    journal.durable(root)
    journal.env.call("uninstall_mount", DEV, data=b"self", cap=journal.cap)


def own_reports() -> bytes:
    """One record, at byte 480 of sector 6 of a toy node (where others have references)."""
    from xok_host.abi.udf import META, load

    f = Function()
    with f.if_(f.part == 6):
        with f.if_(load(META + 6 * SECTOR + 480, 8) != 0):
            f.emit(load(META + 6 * SECTOR + 480, 8), load(META + 6 * SECTOR + 488, 8), load(META + 6 * SECTOR + 496, 8))
    return f.finish()


# ---- who may report what (REBOOT-3, REBOOT-5)


def refused_log(journal: Journal, why: str, log: int = 0) -> None:
    with pytest.raises(BogusUpdate, match=why):
        journal.writeback(log or journal.log)


def test_reports_about_what_the_disk_points_to_already(journal: Journal) -> None:
    """Otherwise a log could have somebody's data zeroed."""
    block = journal.add_data(journal.root, 0, b"precious")
    journal.local.sync()
    journal.report((journal.root, 0, block))
    refused_log(journal, "may point already")
    assert not crashed(journal, keep=True).unwritten


def test_reports_about_what_is_on_its_way(journal: Journal) -> None:
    block = journal.add_data(journal.root, 0, b"precious")
    journal.durable(block)
    journal.local.hold_io = True
    cookie = journal.env.submit("writebackv", DEV, data=pack_extents([(journal.root, 1, 0)]))
    journal.report((journal.root, 0, block))
    with pytest.raises(BogusUpdate, match="may point already"):
        journal.writeback(journal.log)
    journal.local.hold_io = False
    journal.local.release_io()
    journal.env.wait(cookie)


def test_reports_about_nothing(journal: Journal) -> None:
    journal.report((journal.root, 0, 400))
    refused_log(journal, "does not own")
    journal.withdraw((journal.root, 0, 400))
    journal.report((1 << 43, 0, 400))
    refused_log(journal, "does not own")
    journal.withdraw((1 << 43, 0, 400))
    journal.report((journal.root, 0, 1 << 60))
    refused_log(journal, "does not own")


def test_a_log_of_another_tree(journal: Journal) -> None:
    """Hints at somebody else's log, and logs about somebody else."""
    theirs = Journal(journal.local, "theirs", journal.local.environment())
    block = theirs.add_of(theirs.root, 0, TYPE_XN_DB)
    journal.report((theirs.root, 0, block))
    refused_log(journal, "writers are not the log's")
    journal.withdraw((theirs.root, 0, block))
    journal.durable(journal.log)
    own = journal.add_of(journal.root, 0, TYPE_XN_DB)
    theirs.report((journal.root, 0, own))
    refused_log(theirs, "writers are not the log's")


def test_holders_that_others_write(local: LocalXok) -> None:
    """Below a node with a guard of its own the log's writers have no say."""
    journal = Journal(local)
    f = Function()
    f.emit_cap(f.tree, int(Right.READ | Right.WRITE))
    f.emit_cap(4711, int(Right.WRITE))
    from toy import install_type

    shared = install_type(journal.env, "shared", template("shared", guard=f.finish()))
    node = journal.add_of(journal.root, 0, shared)
    below = journal.add_of(node, 0, journal.type)
    block = journal.add_of(below, 0, TYPE_XN_DB)
    journal.report((below, 0, block))
    refused_log(journal, "writers are not the log's")


def test_a_tree_that_does_not_take_part(local: LocalXok) -> None:
    journal = Journal(local, consents=False)
    block = journal.add_of(journal.root, 0, TYPE_XN_DB)
    journal.report((journal.root, 0, block))
    refused_log(journal, "root has no reboot program")


def test_a_log_deep_in_the_tree(journal: Journal) -> None:
    """Reconstruction does not look for logs there."""
    node = journal.add_node(journal.root, 0)
    deep = journal.add_log(node, 0)
    block = journal.add_of(journal.root, 1, TYPE_XN_DB)
    journal.report((journal.root, 1, block), log=deep)
    refused_log(journal, "neither a root block nor owned by one", deep)


def test_a_log_is_never_reported(journal: Journal) -> None:
    other = journal.add_log(journal.root, 2)
    journal.report((journal.root, 2, other))
    refused_log(journal, "is a log itself")


def test_reports_of_other_sessions(journal: Journal) -> None:
    """They mean nothing, whatever they say."""
    block = journal.add_of(journal.root, 0, TYPE_XN_DB)
    assert journal.session == Blocks(journal.env, DEV, "journal", journal.cap).session() != 0
    for session in (0, 1, journal.session - 1, journal.session ^ 1 << 63):
        journal.report((journal.root, 0, block), session=session)
    journal.durable(journal.log)
    assert not journal.known.standing
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 0)])) is Tainted


def test_old_reports_harm_nobody(journal: Journal) -> None:
    """The log of a session that ended in order still says so, and the next crash does not listen."""
    block = journal.early(journal.root, 0)
    journal.fill(journal.root, 0, block, b"precious")
    journal.durable(block)
    before = journal.session
    journal.local.stop()
    again = LocalXok(disk=journal.local.disk, format=False, max_chunks=16, entries=1 << 10)
    assert again.kernel.devices[DEV].superblock.session not in (0, before)
    again.crash()
    assert not again.recover().unwritten
    assert again.disk.read_block(block).startswith(b"precious")


def test_reports_about_blocks_that_moved_on(journal: Journal) -> None:
    """A stale report is about one sector's pointer: the block's next owner is not concerned."""
    block = journal.add_of(journal.root, 0, TYPE_XN_DB, block=400)
    journal.report((journal.root, 0, block))
    journal.durable(journal.log)
    journal.remove(journal.root, 0, block)
    theirs = Journal(journal.local, "theirs", journal.local.environment())
    theirs.add_of(theirs.root, 0, TYPE_XN_DB, block=block, **theirs.with_pages(b"theirs"))
    journal.local.sync()
    assert not crashed(journal).unwritten
    assert journal.local.disk.read_block(block).startswith(b"theirs")


def test_a_report_is_about_no_later_child(journal: Journal) -> None:
    """The block was given back unused; who puts it there again needs a new report, or none."""
    block = journal.add_of(journal.root, 0, TYPE_XN_DB)
    journal.report((journal.root, 0, block))
    journal.durable(journal.log)
    journal.remove(journal.root, 0, block)
    journal.flush()
    with pytest.raises(WouldCycle) as refused:
        journal.add_of(journal.root, 0, TYPE_XN_DB, block=block)
    assert refused.value.fields["r0"] == journal.log
    assert journal.add_of(journal.root, 1, TYPE_XN_DB, block=block) == block  # another sector
    moved, root = journal.sector(journal.root, 0), journal.sector(journal.root, 1)
    moved.pointers, root.pointers = root.pointers, []
    ops = [journal.modify(journal.root, 1, root), journal.modify(journal.root, 0, moved)]
    with pytest.raises(WouldCycle):
        journal.transact(*ops)
    journal.withdraw((journal.root, 0, block))
    journal.durable(journal.log)
    journal.transact(*ops)


# ---- what hangs on a reported block (REBOOT-4)


def test_a_reported_node_gains_nothing_to_own(journal: Journal) -> None:
    node = journal.early(journal.root, 0, journal.type)
    with pytest.raises(WouldCycle) as refused:
        journal.add_data(node, 1, b"below")
    assert refused.value.fields["r0"] == journal.log
    journal.durable(node)
    assert not journal.known.needed
    with pytest.raises(WouldCycle):
        journal.add_data(node, 1, b"below")
    journal.withdraw((journal.root, 0, node))
    journal.durable(journal.log)
    below = journal.add_data(node, 1, b"below")
    journal.local.sync()
    assert not crashed(journal).unwritten
    assert on_disk(journal.local, node, 1).pointers[0][0] == below


def test_a_reported_node_may_have_elements_that_it_names_itself(journal: Journal) -> None:
    """Name and count in one partition come and go together; it does not keep the node, or its parent, off the disk."""
    node = journal.add_node(journal.root, 0)
    journal.report((journal.root, 0, node))
    journal.durable(journal.log)
    journal.writeback(journal.root)
    new = Sector([], [1] + [0] * 7, [element(node, 2, 0)])
    journal.transact(journal.modify(node, 2, new))
    root = journal.sector(journal.root, 0)
    root.generation = 9
    journal.transact(journal.modify(journal.root, 0, root))
    journal.durable(journal.root)
    journal.durable(node)
    assert crashed(journal).unwritten == [node]


def test_a_node_that_owns_something_is_no_reported_child(journal: Journal) -> None:
    node = journal.add_node(journal.root, 0)
    journal.add_of(node, 1, TYPE_XN_DB)
    journal.report((journal.root, 0, node))
    journal.durable(journal.log)
    with pytest.raises(Tainted) as refused:
        journal.writeback(journal.root)
    assert refused.value.fields["r0"] == journal.log


def test_nor_one_that_is_complete_but_not_empty(journal: Journal) -> None:
    """Nobody may lose what is durable below it to a report made before."""
    node = journal.add_node(journal.root, 0)
    data = journal.add_data(node, 1, b"x")
    journal.report((journal.root, 0, node))
    journal.durable(journal.log, data, node)
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 1)])) is Tainted
    journal.withdraw((journal.root, 0, node))
    journal.durable(journal.log)
    journal.durable(journal.root)
    assert not crashed(journal).unwritten


def test_no_reference_leads_into_a_reported_block(journal: Journal) -> None:
    node = journal.early(journal.root, 0, journal.type)
    journal.durable(node)
    source, target = journal.sector(journal.root, 2), journal.sector(node, 0)
    source.references.append(element(node, 0, 0))
    target.counts[0] = 1
    ops = [journal.modify(journal.root, 2, source), journal.modify(node, 0, target)]
    with pytest.raises(WouldCycle) as refused:
        journal.transact(*ops)
    assert refused.value.fields["r0"] == journal.log
    journal.withdraw((journal.root, 0, node))
    journal.durable(journal.log)
    journal.transact(*ops)
    journal.local.sync()


def test_a_reference_made_before_keeps_the_node_back(journal: Journal) -> None:
    node = journal.add_node(journal.root, 0)
    source, target = journal.sector(journal.root, 2), journal.sector(node, 0)
    source.references.append(element(node, 0, 0))
    target.counts[0] = 1
    journal.transact(journal.modify(journal.root, 2, source), journal.modify(node, 0, target))
    journal.report((journal.root, 0, node))
    journal.durable(journal.log)
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 0)])) is Tainted
    journal.durable(node)
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.root, 1, 1)])) is Tainted
    journal.withdraw((journal.root, 0, node))
    journal.durable(journal.log)
    journal.local.sync()


# ---- bounds (REBOOT-6)


def several(journal: Journal, count: int) -> list[tuple[int, int, int]]:
    new, first = journal.sector(journal.root, 1), journal.free_block(count)
    new.pointers.append((first, count, TYPE_XN_DB, 0))
    journal.transact(journal.modify(journal.root, 1, new, OpKind.ALLOC, db=first, count=count, type=TYPE_XN_DB))
    return [(journal.root, 1, db) for db in range(first, first + count)]


@pytest.mark.parametrize("bound", ["MAX_REPORTS", "MAX_ENV_REPORTS"])
def test_bounds_of_reports(journal: Journal, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(reboot, bound, 3)
    theirs = Journal(journal.local, "theirs", journal.local.environment())
    edges = several(journal, 4)
    journal.report(*edges[:3])
    journal.durable(journal.log)
    journal.report(edges[3], sector=1)
    with pytest.raises(LimitReached):
        journal.writeback(journal.log)
    if bound == "MAX_ENV_REPORTS":
        theirs.report(*several(theirs, 1))
        theirs.durable(theirs.log)
    journal.withdraw(edges[0])
    journal.writeback(journal.log, mask=1)
    journal.flush()
    journal.durable(journal.log)
    assert len(journal.known.standing) <= 4


def test_bound_of_versions(journal: Journal) -> None:
    edges = several(journal, reboot.MAX_VERSIONS + 1)
    for edge in edges[:-1]:
        journal.report(edge)
        journal.writeback(journal.log)
    journal.report(edges[-1])
    with pytest.raises(LimitReached, match="flush"):
        journal.writeback(journal.log)
    journal.flush()
    journal.durable(journal.log)
    assert len(journal.known.standing) == len(edges)


def test_bound_of_instructions(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reboot, "WRITE_BUDGET", 10)
    journal.report(*several(journal, 1))
    with pytest.raises(UdfFailed, match="write less at a time"):
        journal.writeback(journal.log)


def test_bound_of_one_partition(local: LocalXok) -> None:
    f = Function()
    from xok_host.abi.udf import META, load

    with f.if_(load(META + f.part * SECTOR, 1) != 0):
        with f.for_range(0, 257) as i:
            f.emit(1 << 12, i, 0)
    journal = Journal(local, log=log_template(f.finish()))
    journal.transact(Op(OpKind.MODIFY, da(journal.log), 0, writes=[(0, b"\1")]))
    with pytest.raises(UdfFailed, match="more than 256"):
        journal.writeback(journal.log)


def log_template(code: bytes) -> bytes:
    from toy import access

    return Template(name=b"odd-log", parts=SECTORS, access=access(), owns=silent(), guard=guard(), reboot=code).pack()


def test_a_log_that_faults(local: LocalXok) -> None:
    journal = Journal(local, log=log_template(moody()))
    journal.transact(Op(OpKind.MODIFY, da(journal.log), 0, writes=[(0, b"\1")]))
    assert journal.code("writebackv", DEV, data=pack_extents([(journal.log, 1, 0)])) is UdfFailed
    assert journal.local.kernel.devices[DEV].get(journal.log).dirty == 1  # type: ignore[union-attr]


# ---- trees and types without it


def test_a_temporary_tree_needs_none(local: LocalXok) -> None:
    from xok_host.abi.calls import TEMPORARY_ROOT

    journal = Journal(local)
    made = journal.env.call("install_mount", DEV, 0, 1, journal.root_type | TEMPORARY_ROOT, data=b"ram")
    journal.cap, root = made.r1, made.r0
    log = journal.add_log(root, LOG_SECTOR)
    journal.report((journal.root, 0, 400), log=log)
    journal.durable(log)
    assert not journal.known.logs


def test_types_without_it_never_ask(local: LocalXok, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("asked")

    for name in ("admit", "sent", "durable", "_check_log"):
        monkeypatch.setattr(reboot.Reports, name, never)
    toy = Toy(local)
    toy.add_data(toy.add_node(toy.root, 0), 0, b"x")
    local.sync()


# ---- reconstruction trusts nobody (RECOVER-3, WALK-4)


def test_garbage_in_what_is_reported_is_not_walked(journal: Journal) -> None:
    """The old bytes of an unwritten block, which say that it owns everything, mean nothing."""
    raw = b"".join(Sector([(journal.log, 1, TYPE_XN_DB, 0)]).pack() for _ in range(SECTORS))
    for db in range(journal.log + 1, 500):
        if journal.local.kernel.devices[DEV].freemap.is_free(db, 1):
            journal.local.disk.data[db * BLOCK : (db + 1) * BLOCK] = raw
    journal.local.disk.durable[:] = journal.local.disk.data
    node = journal.early(journal.root, 0, journal.type)
    assert journal.local.disk.read_block(node) == raw
    report = crashed(journal)
    assert report.unwritten == [node] and not report.violations


def test_a_log_that_cannot_be_read(journal: Journal) -> None:
    """Nobody knows what was never written: the disk stays as it is."""
    journal.early(journal.root, 0)
    journal.local.crash()

    def read(db: int) -> bytes:
        if db == journal.log:
            raise MediaError("bad sector")
        return journal.local.disk.read_block(db)

    report = recover.reconstruct(read, journal.local.disk.nblocks)
    assert report.unheard == [journal.log]
    with pytest.raises(MediaError, match=f"log block {journal.log}"):
        list(recover.repair(report))


def test_too_many_reports_on_a_disk(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    edges = several(journal, 4)
    journal.report(*edges)
    journal.durable(journal.log)
    journal.durable(journal.root)
    journal.local.crash()
    monkeypatch.setattr(reboot, "MAX_REPORTS", 3)
    report = recover.reconstruct(journal.local.disk.read_block, journal.local.disk.nblocks)
    assert len(report.unwritten) == 3 and "report 4 pointers" in report.reason("journal")


# ---- the type


def test_templates_without_it_are_as_before(journal: Journal) -> None:
    old = Template(name=b"old", parts=1, access=b"\x95" + bytes(7), owns=b"\x95" + bytes(7))
    assert HEADER.unpack(old.pack()).version == 1
    new = Template(name=b"old", parts=1, access=old.access, owns=old.owns, reboot=silent())
    assert HEADER.unpack(new.pack()).version == 2 and len(new.pack()) == len(old.pack()) + RANGE.size + len(silent())
    assert Template.unpack(new.pack()) == new


def test_import_refuses_what_reports_of_nothing() -> None:
    f = Function()
    f.emit(1, 2, 3)
    with pytest.raises(TypeInvalid, match=r"reboot\(0\) of the empty instance is not empty"):
        import_template(log_template(f.finish()))
    f = Function()
    f.emit_ref(1)
    with pytest.raises(TypeInvalid, match="reboot calls helper 2"):
        import_template(log_template(f.finish()))
    with pytest.raises(BadTemplate, match="traced partitions has no reboot"):
        Template(name=b"x", parts=1, partitions=Partitions.TRACED, owns=silent(), reboot=silent()).pack()


def test_what_a_declaration_reports() -> None:
    from journal import LOG

    kind = import_template(derive(LOG, b"log").pack())
    raw = LOG.pack(records=[{"holder": 5 << 12, "block": 7, "session": 9}]).ljust(BLOCK, b"\0")
    assert list(kind.reboot(raw, 0)) == [5 << 12, 7, 9] and not kind.reboot(raw, 1)
    assert not kind.owns(raw, 0)


def test_a_writer_of_both_in_one_transaction(journal: Journal) -> None:
    """Pointer and record in one step; the log first, then the holder: one flush between them."""
    block = journal.free_block()
    new = Sector([(block, 1, TYPE_XN_DB, 0)])
    ops = [
        journal.modify(journal.root, 0, new, OpKind.ALLOC, db=block, count=1, type=TYPE_XN_DB),
        journal.log_op(journal.log, 0, [(journal.root << 12, block, journal.session)]),
    ]
    journal.env.call("transact", cap=journal.cap, data=pack_transaction(ops))
    journal.durable(journal.log)
    journal.durable(journal.root)
    assert crashed(journal).unwritten == [block]


def test_the_bounds_are_the_documented_ones() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "xn.md").read_text().split())
    for number, phrase in (
        (reboot.MAX_REPORTS, "At most {} standing reports of a device"),
        (reboot.MAX_ENV_REPORTS, "and {} of an environment"),
        (MAX_PART_REPORTS, "{} of a partition"),
        (reboot.MAX_VERSIONS, "{} versions of a log's sector"),
        (reboot.WRITE_BUDGET, "{} instructions of UDFs in one call that writes"),
    ):
        assert any(phrase.format(shown) in text for shown in (number, f"{number:,}")), phrase
    for rule in range(1, 7):
        assert f"**REBOOT-{rule}**" in text and f"REBOOT-{rule} " in (reboot.__doc__ or "")
