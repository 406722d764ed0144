"""Patch programs: what they may mend, and that hostile ones mend and damage nothing (PATCH-1 to PATCH-5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from toy import DEV, Sector, Toy, access, da, element, guard, install_type

from xok_host.abi import errors as e
from xok_host.abi.calls import ErrorKind, unpack_errors
from xok_host.abi.template import Template
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB, da_block
from xok_host.abi.udf import NEW, Function, load
from xok_host.kernel.local import LocalEnvironment, LocalXok
from xok_host.kernel.xn import recover
from xok_host.kernel.xn.catalogue import FLAG_TAINTED

CAP = 1


class Scene:
    """Two trees of one type.  In `toy` an element of block `node` counts one and has one reference, from the root."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self.local = toy.local
        self.root = toy.root
        self.node = toy.add_node(toy.root, 2)
        self.data = toy.add_data(self.node, 3, b"one")
        self.element = element(self.node, 0, 0)
        sector = Sector()
        sector.counts[0] = 1
        toy.transact(toy.modify(self.node, 0, sector), toy.modify(toy.root, 6, Sector(references=[self.element])))
        self.other = int(toy.env.call("install_mount", DEV, 0, 1, toy.type, data=b"other").r0)
        toy.local.stop()

    def put(self, db: int, sector: int, new: Sector) -> None:
        """Behind XN's back."""
        self.local.disk.write_sectors(db * SECTORS + sector, new.pack())

    def over_count(self, count: int = 3) -> None:
        self.put(self.node, 0, counting(count))

    def image(self) -> bytes:
        return bytes(self.local.disk.data[BLOCK * 8 : -BLOCK])

    def examine(self) -> recover.Report:
        return recover.reconstruct(self.local.disk.read_block, self.local.disk.nblocks)

    def patch(self, program: Callable[[LocalEnvironment], bool]) -> str:
        self.local = LocalXok(disk=self.local.disk, format=False)
        return self.local.patch("toy", program)

    def mounts(self) -> bool:
        env = self.local.environment(roots=["toy"])
        env.call("type_mount", DEV, data=b"toy-node")
        try:
            env.call("mount", DEV, cap=CAP, data=b"toy")
        except e.NotClean as refused:
            assert "xok repair toy" in str(refused)
            return False
        return True


@pytest.fixture
def scene(toy: Toy) -> Scene:
    return Scene(toy)


def counting(count: int) -> Sector:
    sector = Sector()
    sector.counts[0] = count
    return sector


def errors(env: LocalEnvironment) -> list[Any]:
    return unpack_errors(env.call("read_errors", DEV, cap=CAP, data=b"toy", out_bytes=1 << 16).data)


def write(env: LocalEnvironment, db: int, sector: int, new: Sector) -> None:
    env.call("patch_write", da(db) + sector * SECTOR, cap=CAP, data=new.pack())


def test_an_over_count_is_lowered(scene: Scene) -> None:
    scene.over_count(3)
    seen = []

    def program(env: LocalEnvironment) -> bool:
        for error in errors(env):
            seen.append(error)
            assert env.call("patch_read", da(error.db), cap=CAP, out_bytes=BLOCK).r0 == scene.toy.type
            number = error.references.to_bytes(8, "little")
            env.call("patch_write", error.da, cap=CAP, data=number)
        return True

    assert scene.patch(program) == ""
    (error,) = seen
    assert (error.kind, error.db, error.da) == (ErrorKind.OVER_COUNT, scene.node, scene.element)
    assert (error.count, error.references) == (3, 1)
    report = scene.examine()
    assert report.sound and not report.over_counts and report.was_clean is False  # it is in use again
    assert scene.mounts()


def test_a_tainted_tree_can_be_mounted_when_it_has_been_mended(scene: Scene) -> None:
    scene.put(scene.root, 7, Sector(references=[element(scene.node, 1, 1)]))

    def program(env: LocalEnvironment) -> bool:
        for error in errors(env):
            assert error.kind == ErrorKind.DANGLING and error.parent == scene.root
            write(env, error.parent, 7, Sector())
        return True

    scene.local = LocalXok(disk=scene.local.disk, format=False)
    scene.local.crash()
    assert scene.local.recover().tainted == {"toy"} and not scene.mounts()
    env = scene.local.environment(roots=["toy"])
    assert [error.kind for error in errors(env)] == [ErrorKind.DANGLING]
    env.close()
    assert scene.local.patch("toy", program) == ""
    assert scene.mounts()


def test_programs_that_need_several_rounds_get_them(scene: Scene) -> None:
    """A node that is dropped leaves a reference behind, which the next round finds."""
    scene.put(scene.root, 7, Sector(pointers=[(scene.node, 1, scene.toy.type, 0)]))
    rounds = []

    def program(env: LocalEnvironment) -> bool:
        rounds.append([error.kind for error in errors(env)])
        if ErrorKind.DOUBLE in rounds[-1]:
            write(env, scene.root, 7, Sector())
            write(env, scene.root, 2, Sector())
        elif ErrorKind.DANGLING in rounds[-1]:
            write(env, scene.root, 6, Sector())
        return True

    assert scene.patch(program) == ""
    assert rounds == [[ErrorKind.DOUBLE], [ErrorKind.DANGLING]]
    assert scene.examine().trees["toy"] == 1


def lowers_a_correct_count(scene: Scene, env: LocalEnvironment) -> bool:
    write(env, scene.node, 0, counting(0))
    return True


def lies(scene: Scene, env: LocalEnvironment) -> bool:
    """It says that all is well and has changed something else."""
    write(env, scene.root, 5, Sector())
    return True


def dies(scene: Scene, env: LocalEnvironment) -> bool:
    write(env, scene.root, 7, Sector())
    return False


def takes_a_free_block(scene: Scene, env: LocalEnvironment) -> bool:
    write(env, scene.root, 7, Sector(pointers=[(400, 1, TYPE_XN_DB, 0)]))
    return True


def takes_anothers_block(scene: Scene, env: LocalEnvironment) -> bool:
    write(env, scene.root, 7, Sector(pointers=[(scene.other, 1, scene.toy.type, 0)]))
    return True


def refers_to_another_tree(scene: Scene, env: LocalEnvironment) -> bool:
    write(env, scene.root, 7, Sector(references=[element(scene.other, 0, 0)]))
    return True


def points_outside_the_disk(scene: Scene, env: LocalEnvironment) -> bool:
    write(env, scene.root, 7, Sector(pointers=[(1, 2, TYPE_XN_DB, 0)]))
    return True


def writes_into_another_tree(scene: Scene, env: LocalEnvironment) -> bool:
    for db in (scene.other, scene.data, 0, 1, 400, 1 << 43):
        with pytest.raises(e.NotOwned):
            env.call("patch_write", da(db), cap=CAP, data=b"mine")
        with pytest.raises(e.NotOwned):
            env.call("patch_read", da(db), cap=CAP, out_bytes=BLOCK)
    return False


def never_agrees_with_itself(scene: Scene, env: LocalEnvironment) -> bool:
    """Each round it changes something, and never what is wrong."""
    scene.rounds = getattr(scene, "rounds", 0) + 1  # type: ignore[attr-defined]
    write(env, scene.node, 3, counting(scene.rounds % 7))  # type: ignore[attr-defined]
    return True


@pytest.mark.parametrize(
    "program",
    [
        lowers_a_correct_count,
        lies,
        dies,
        takes_a_free_block,
        takes_anothers_block,
        refers_to_another_tree,
        points_outside_the_disk,
        writes_into_another_tree,
        never_agrees_with_itself,
    ],
)
@pytest.mark.parametrize("tainted", [False, True])
def test_a_hostile_program_changes_nothing(
    scene: Scene, program: Callable[[Scene, LocalEnvironment], bool], tainted: bool
) -> None:
    if tainted:
        scene.put(scene.root, 6, Sector(references=[scene.element, scene.element]))
    before = scene.image()
    reason = scene.patch(lambda env: program(scene, env))
    if tainted or program is not lies and program is not never_agrees_with_itself:
        assert reason
        assert scene.image() == before if not tainted else scene.image()[BLOCK * 4 :] == before[BLOCK * 4 :]
    scene.local.crash()
    report = scene.local.recover()
    assert report.tainted == ({"toy"} if tainted else set())
    assert scene.mounts() is not tainted
    flags = scene.local.kernel.devices[DEV].catalogue.find("toy").entry.flags
    assert bool(flags & FLAG_TAINTED) is tainted


def test_two_trees_that_own_one_block(scene: Scene) -> None:
    """The one whose claim comes second may only let go of it."""
    scene.put(scene.other, 0, Sector(pointers=[(scene.data, 1, TYPE_XN_DB, 0)]))
    assert scene.examine().tainted == {"other"}
    scene.local = LocalXok(disk=scene.local.disk, format=False)
    assert scene.local.patch("toy", lambda env: True) == ""

    def lets_go(env: LocalEnvironment) -> bool:
        env.call("patch_write", da(scene.other), cap=CAP, data=Sector().pack())
        return True

    assert scene.local.patch("other", lambda env: True)
    assert scene.local.patch("other", lets_go) == ""
    assert scene.examine().sound


def test_the_log_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recover, "LOG_LIMIT", 2)
    there = [element(scene.node, sector, 1) for sector in range(1, 4)]
    scene.put(scene.root, 7, Sector(references=there))
    report = scene.examine()
    assert report.totals["toy"] == [3, 0] and len(report.violations) == len(report.log("toy")) == 2
    assert report.reason("toy").endswith("and 2 errors more")
    assert all(da_block(error.da) == scene.node for error in report.log("toy"))


@pytest.mark.parametrize("byte", [1, 9])
def test_acl_approves_of_patches_as_of_other_changes(toy: Toy, byte: int) -> None:
    """This one refuses what puts a 9 into the first byte of a sector."""
    acl = Function()
    new = acl.var(load(NEW + acl.part * SECTOR, 1))
    with acl.if_(new == 9):
        acl.return_(0)
    acl.return_(1)
    nothing = Function()
    nothing.return_(0)
    strict = Template(
        name=b"strict", parts=SECTORS, access=access(), owns=nothing.finish(), guard=guard(), acl=acl.finish()
    )
    kind = install_type(toy.env, "strict", strict.pack())
    root = toy.env.call("install_mount", DEV, 0, 1, kind, data=b"guarded").r0
    toy.local.stop()

    def program(env: LocalEnvironment) -> bool:
        env.call("patch_write", da(root, 3 * SECTOR), cap=CAP, data=bytes([byte]))
        return True

    local = LocalXok(disk=toy.local.disk, format=False)
    reason = local.patch("guarded", program)
    assert ("acl of strict refuses" in reason) is (byte == 9)
    assert local.disk.read_block(root)[3 * SECTOR] == (byte if byte != 9 else 0)
