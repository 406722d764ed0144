"""What the proof would notice: disks that lie, a libFS that promises what it has not done, bytes of others."""

from __future__ import annotations

import pytest
from crash_check import Checker
from crash_model import World, check_mixture, contents
from crash_record import FOREIGN, Barrier, Record, Write
from crash_states import Explorer
from crash_workloads import EVERY, LAST, NBLOCKS, ONE_VOLUME, Plan, Stage, perform

from xok_host.abi.types import BLOCK, SECTOR


def run(name: str, plan: Plan) -> Stage:
    stage = Stage()
    perform(ONE_VOLUME[name], plan, stage)
    return stage


def noticed(stage: Stage, log: list[Record]) -> str:
    """What is wrong with the states of a log; empty: nothing."""
    checker = Checker(NBLOCKS, stage.worlds, mount_every=1 << 30)
    explorer = Explorer("oracle", checker, samples=4, exhaustive=4, count=False)
    try:
        explorer.explore(stage.image, log)
    except AssertionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", list(ONE_VOLUME))
def test_a_disk_that_does_not_flush(name: str) -> None:
    stage = run(name, Plan(EVERY, everything=True))
    assert not noticed(stage, stage.disk.log)
    assert noticed(stage, [record for record in stage.disk.log if not isinstance(record, Barrier)])


@pytest.mark.parametrize("name", ["create", "truncate", "rename over", "unlink of an open file"])
def test_a_disk_that_loses_one_write(name: str) -> None:
    """Not every write matters: a time that is written again, a bit of the free map that a freed block had."""
    stage = run(name, Plan(EVERY))
    log = stage.disk.log
    writes = [at for at, record in enumerate(log) if isinstance(record, Write)]
    lost = [at for at in writes if noticed(stage, log[:at] + log[at + 1 :])]
    assert len(lost) > len(writes) * 2 // 5, (len(lost), len(writes))


def test_a_disk_that_swaps_a_write_with_a_barrier() -> None:
    """A pointer is on the disk before what it points to."""
    stage = run("create", Plan(LAST, everything=True))
    log = stage.disk.log
    found = set()
    for at, (write, barrier) in enumerate(zip(log, log[1:], strict=False)):
        if isinstance(write, Write) and isinstance(barrier, Barrier):
            found.add(noticed(stage, [*log[:at], barrier, write, *log[at + 2 :]]) != "")
    assert True in found


def test_a_libfs_that_answers_fsync_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()

    def fsync(world: World, path: bytes) -> None:
        world.flush()
        world.promised(world.at(path))

    monkeypatch.setattr(World, "fsync", fsync)
    perform(ONE_VOLUME["append"], Plan(EVERY), stage)
    assert noticed(stage, stage.disk.log)


def test_bytes_of_others() -> None:
    stage = run("create", Plan(EVERY))
    image = bytearray(stage.disk.data)
    expect = stage.disk.log[-1].expect  # type: ignore[union-attr]
    checker = Checker(NBLOCKS, stage.worlds)
    checker(image, expect)
    at = image.index(contents(b"vol", 1, 1, 32))
    for strange in (FOREIGN, contents(b"vol", 2, 2, 32)):
        spoilt = bytearray(image)
        spoilt[at : at + len(strange)] = strange
        with pytest.raises(AssertionError):
            checker(spoilt, expect)
    spoilt = bytearray(image)
    spoilt[(at // BLOCK + 1) * BLOCK - len(FOREIGN) : (at // BLOCK + 1) * BLOCK] = FOREIGN  # behind the file's end
    with pytest.raises(AssertionError, match="somebody else's"):
        checker(spoilt, expect)


def test_what_mixtures_are_allowed() -> None:
    old, new = b"a" * 10000, b"b" * 10000
    check_mixture(b"f", old[:SECTOR] + new[SECTOR:], (old, new))
    for content in (old[:100] + new[100:], b"c" * 10000, old[:9000]):
        with pytest.raises(AssertionError):
            check_mixture(b"f", content, (old, new))
    cut = (old, old[:100], old[:100] + bytes(9900))
    check_mixture(b"f", old[:BLOCK] + bytes(10000 - BLOCK), cut)  # within the block that stayed
    with pytest.raises(AssertionError):
        check_mixture(b"f", old[:SECTOR] + bytes(8192 - SECTOR) + old[8192:], cut)
