"""The privileged calls: every failure that their table names, and what a patch program can and cannot do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from toy import COUNTS_AT, DEV, REFERENCES_AT, Sector, Toy, da, element

from xok_host.abi import errors as e
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB
from xok_host.kernel.kernel import Kernel
from xok_host.kernel.local import LocalXok
from xok_host.kernel.request import IoOp
from xok_host.kernel.xn import privileged, recover
from xok_host.kernel.xn.format import MIN_BLOCKS, layout
from xok_host.kernel.xn.privileged import PRIVILEGED

Trigger = Callable[[Toy], object]


def started(local: LocalXok, dev: int, nblocks: int) -> None:
    outcome: list[e.XokError | None] = []
    privileged.init(local.kernel, dev, nblocks, outcome.append)
    local.pump()
    raise outcome[0] or AssertionError("it started")


def stopped(local: LocalXok, dev: int) -> None:
    outcome: list[e.XokError | None] = []
    privileged.shutdown(local.kernel, dev, outcome.append)
    local.pump()
    raise outcome[0] or AssertionError("it stopped")


def fresh(toy: Toy, *, clean: bool = True) -> LocalXok:
    """The same disk under a kernel that has no device yet."""
    if clean:
        toy.local.stop()
    else:
        toy.local.disk.flush()
    local = toy.local
    local.kernel = Kernel(local.memory, local.tables, local.numbers, 1 << 10, 1 << 14)
    return local


def fails(toy: Toy, op: IoOp) -> None:
    toy.local.disk.fail = lambda request: 5 if request.op == op else 0


def no_xn_disk(toy: Toy) -> None:
    local = fresh(toy)
    local.disk.data[:] = bytes(len(local.disk.data))
    started(local, DEV, local.disk.nblocks)


def unreadable(toy: Toy) -> None:
    local = fresh(toy)
    fails(toy, IoOp.READ)
    started(local, DEV, local.disk.nblocks)


def unwritable(toy: Toy) -> None:
    toy.local.sync()
    fails(toy, IoOp.FLUSH)
    stopped(toy.local, DEV)


def counted(toy: Toy) -> tuple[recover.Report, int]:
    """A tree with an element that counts 3 and has one reference; nobody has it in use."""
    node = toy.add_node(toy.root, 2)
    sector, referring = Sector(), Sector(references=[element(node, 0, 0)])
    sector.counts[0] = 1
    toy.transact(toy.modify(node, 0, sector), toy.modify(toy.root, 6, referring))
    toy.local.stop()
    put(toy, node, count=3)
    return examine(toy), element(node, 0, 0)


def put(toy: Toy, node: int, count: int) -> None:
    sector = Sector()
    sector.counts[0] = count
    toy.local.disk.write_sectors(node * SECTORS, sector.pack())


def examine(toy: Toy) -> recover.Report:
    return recover.reconstruct(toy.local.disk.read_block, toy.local.disk.nblocks)


def as_count(value: int) -> bytes:
    return value.to_bytes(8, "little")


def patch(toy: Toy, delta: int, *writes: tuple[int, bytes]) -> None:
    report, there = counted(toy)
    report.mod_refcnt(there, delta, writes)


def faulting(toy: Toy) -> None:
    """An owner of a block twice is no valid answer of `owns`, after the patch."""
    twice = Sector(pointers=[(300, 1, TYPE_XN_DB, 0)] * 2)
    patch(toy, 0, (0, twice.pack()[:48]))


def lost(toy: Toy) -> None:
    report, there = counted(toy)

    def read(db: int) -> bytes:
        raise e.MediaError(f"block {db}")

    report.read = read
    report.mod_refcnt(there, -2, [(COUNTS_AT, as_count(1))])


TRIGGERS: dict[tuple[str, type[e.XokError]], Trigger] = {
    ("init", e.BadCall): lambda toy: started(toy.local, 256, 512),
    ("init", e.Exists): lambda toy: started(toy.local, DEV, 512),
    ("init", e.BadDisk): no_xn_disk,
    ("init", e.NotClean): lambda toy: started(fresh(toy, clean=False), DEV, 512),
    ("init", e.MediaError): unreadable,
    ("shutdown", e.NotFound): lambda toy: stopped(toy.local, 9),
    ("shutdown", e.InUse): lambda toy: stopped(toy.local, DEV),
    ("shutdown", e.MediaError): unwritable,
    ("format", e.BadDisk): lambda toy: privileged.format(MIN_BLOCKS - 1, bytes(16)),
    ("db_alloc", e.BadCall): lambda toy: privileged.db_alloc(layout(512, bytes(16), 16), bytearray(64), 511, 1),
    ("mod_refcnt", e.NotFound): lambda toy: counted(toy)[0].mod_refcnt(da(toy.root), 1, []),
    ("mod_refcnt", e.BogusPartition): lambda toy: patch(toy, -2, (SECTOR + COUNTS_AT, as_count(1))),
    ("mod_refcnt", e.RefcountWrong): lambda toy: patch(toy, -2, (COUNTS_AT, as_count(2))),
    ("mod_refcnt", e.BogusUpdate): lambda toy: patch(
        toy, -2, (COUNTS_AT, as_count(1)), (REFERENCES_AT, as_count(element(toy.root, 0, 0)))
    ),
    ("mod_refcnt", e.UdfFailed): faulting,
    ("mod_refcnt", e.MediaError): lost,
}
ROWS = [(name, error) for name, (_, fails) in PRIVILEGED.items() for error in fails]


@pytest.mark.parametrize(("name", "error"), ROWS, ids=lambda value: getattr(value, "__name__", value))
def test_each_failure_of_the_table(toy: Toy, name: str, error: type[e.XokError]) -> None:
    assert (name, error) in TRIGGERS, f"the table says that {name} fails with {error.__name__}: write a trigger"
    with pytest.raises(e.XokError) as caught:
        TRIGGERS[name, error](toy)
    assert e.by_code(caught.value.code).__class__ is error


def test_every_privileged_call_of_chapter_8_is_there() -> None:
    assert set(PRIVILEGED) == {"init", "shutdown", "format", "db_alloc", "mod_refcnt"}
    assert all(callable(getattr(privileged, name)) for name in PRIVILEGED)


def test_there_is_no_trigger_for_what_the_table_does_not_name() -> None:
    assert set(TRIGGERS) == set(ROWS)


def test_a_device_that_could_not_start_can_be_tried_again(toy: Toy) -> None:
    local = fresh(toy)
    fails(toy, IoOp.READ)
    with pytest.raises(e.MediaError):
        started(local, DEV, 512)
    local.disk.fail = lambda request: 0
    with pytest.raises(AssertionError, match="it started"):
        started(local, DEV, 512)
    with pytest.raises(AssertionError, match="it stopped"):
        stopped(local, DEV)


def test_a_half_formatted_disk_is_none() -> None:
    first, second = privileged.format(512, bytes(16))
    assert first[0] == first[511 * SECTORS] == bytes(SECTOR) and set(second) == {0, 511 * SECTORS}
    disk = bytearray(512 * BLOCK)
    for sector, raw in first.items():
        disk[sector * SECTOR : sector * SECTOR + SECTOR] = raw
    with pytest.raises(e.BadDisk):
        recover.reconstruct(lambda db: bytes(disk[db * BLOCK : db * BLOCK + BLOCK]), 512)


def test_db_alloc_names_what_was_in_use_already() -> None:
    superblock, bits = layout(512, bytes(16), 16), bytearray(64)
    assert privileged.db_alloc(superblock, bits, 100, 3) == []
    assert privileged.db_alloc(superblock, bits, 102, 2) == [102]
    assert [db for db in range(512) if bits[db >> 3] >> (db & 7) & 1] == [100, 101, 102, 103]


def test_an_over_count_is_patched(toy: Toy) -> None:
    report, there = counted(toy)
    assert report.over_counts == [("toy", there, 3, 1)]
    report.mod_refcnt(there, -1, [(COUNTS_AT, as_count(2))])
    assert report.over_counts == [("toy", there, 2, 1)]
    report.mod_refcnt(there, -1, [(COUNTS_AT, as_count(1))])
    assert report.over_counts == [] and report.sound
    with pytest.raises(e.NotFound):  # nothing is wrong with it any more
        report.mod_refcnt(there, 1, [(COUNTS_AT, as_count(2))])
    for step in recover.repair(report):
        for sector, raw in step.items():
            toy.local.disk.write_sectors(sector, raw)
    again = examine(toy)
    assert again.sound and again.over_counts == []


def test_an_under_count_is_patched_and_the_root_can_be_mounted(toy: Toy) -> None:
    report, there = counted(toy)
    put(toy, there >> 12 & (1 << 44) - 1, count=0)
    report = examine(toy)
    assert {violation.kind for violation in report.violations} == {"dangling"}  # a count of 0 is no count at all
    second = Sector(references=[there, there])
    put(toy, there >> 12 & (1 << 44) - 1, count=1)
    toy.local.disk.write_sectors(toy.root * SECTORS + 6, second.pack())
    report = examine(toy)
    assert report.tainted == {"toy"}
    report.mod_refcnt(there, 1, [(COUNTS_AT, as_count(2))])
    assert not report.tainted
    for step in recover.repair(report):
        for sector, raw in step.items():
            toy.local.disk.write_sectors(sector, raw)
    again = LocalXok(disk=toy.local.disk, format=False)
    env = again.environment(roots=["toy"])
    env.call("type_mount", DEV, data=b"toy-node")
    env.call("mount", DEV, cap=1, data=b"toy")
