"""What the UDFs of one transaction may take, all together, whatever it is that asks them: xokd waits for nobody."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from toy import DEV, Sector, Toy, da, install_type, template

from xok_host.abi.calls import Op, OpFlag, OpKind, pack_extents
from xok_host.abi.errors import UdfFailed
from xok_host.abi.template import Template
from xok_host.abi.types import BLOCK, SECTOR, TYPE_XN_DB, Right
from xok_host.abi.udf import META, Function, load
from xok_host.kernel.local import LocalXok
from xok_host.kernel.xn import interp, verify

SPIN = 15000
"""Turns of a loop, which are most of what one run may take."""
MOST = verify.UDF_BUDGET + 4 * interp.BUDGET
"""The last UDFs asked may have gone beyond it before that was seen."""


def spin(f: Function) -> None:
    with f.for_range(0, SPIN) as i:
        with f.if_(i == SPIN):
            f.return_(0)


def slow_owns() -> bytes:
    """What `toy.owns` says, much later."""
    f = Function()
    spin(f)
    sector = f.var(META + f.part * SECTOR)
    with f.for_range(0, 12) as i:
        at = f.var(sector + i * 24)
        count = f.var(load(at + 8, 4))
        with f.if_(count != 0):
            f.emit(load(at, 8), count, load(at + 12, 4))
    return f.finish()


def slow_acl() -> bytes:
    f = Function()
    spin(f)
    f.return_(1)
    return f.finish()


def slow_guard() -> bytes:
    """Its second capability hangs on a byte, so that it is asked for each change."""
    f = Function()
    spin(f)
    f.emit_cap(f.tree, int(Right.READ | Right.WRITE))
    with f.if_(load(META + 7 * SECTOR + 510, 1) == 255):
        f.emit_cap(5, int(Right.READ))
    return f.finish()


@pytest.fixture
def local() -> LocalXok:
    return LocalXok(1024, max_chunks=16, entries=1 << 10)


class Tree(Toy):
    """A root of the plain toy type, and 64 blocks of a slow type to which its sector 0 points."""

    COUNT = 64

    def __init__(self, local: LocalXok, **programs: bytes) -> None:
        super().__init__(local)
        self.slow = install_type(self.env, "slow", template("slow", **programs))
        self.first = self.free_block(self.COUNT)
        said = Sector(pointers=[(self.first, self.COUNT, self.slow, 0)])
        self.transact(self.modify(self.root, 0, said, OpKind.ALLOC, flags=OpFlag.ZERO, **self.extent))

    @property
    def extent(self) -> dict[str, int]:
        return {"db": self.first, "count": self.COUNT, "type": self.slow}

    def changes(self, sectors: int) -> list[Op]:
        """Of that many sectors of each block."""
        return [
            Op(OpKind.MODIFY, da(db), sector, writes=[(sector * SECTOR + 496, b"\1")])
            for db in range(self.first, self.first + self.COUNT)
            for sector in range(sectors)
        ]


def counted(tree: Tree, *ops: Op) -> int:
    """UDF instructions that a transaction takes, which is refused for taking too many."""
    counters = tree.local.kernel.counters
    before = counters.get("udf_instructions")
    with pytest.raises(UdfFailed, match="take more than"):
        tree.transact(*ops)
    return counters.get("udf_instructions") - before


def test_to_see_that_freed_blocks_are_empty(local: LocalXok) -> None:
    tree = Tree(local, owns=slow_owns())
    assert counted(tree, tree.modify(tree.root, 0, Sector(), OpKind.FREE, **tree.extent)) <= MOST


@pytest.mark.parametrize("slow", [slow_owns, slow_guard], ids=lambda program: program.__name__)
def test_to_verify_what_many_blocks_say(local: LocalXok, slow: Callable[[], bytes]) -> None:
    tree = Tree(local, **{slow.__name__.removeprefix("slow_"): slow()})
    assert counted(tree, *tree.changes(1)) <= MOST


def test_what_is_within_the_budget_is_done(local: LocalXok) -> None:
    tree = Tree(local, owns=slow_owns(), acl=slow_acl(), guard=slow_guard())
    tree.transact(*tree.changes(1)[:4])


FINE = 512
"""Partitions of a type that has many; each is slow when its first byte is not zero."""
WIDTH = BLOCK // FINE
BUSY = 100
"""So many of them take more than one call may."""


class Fine(Toy):
    """A root whose first BUSY partitions are slow, and own a block each."""

    def __init__(self, local: LocalXok) -> None:
        self.local, self.env = local, local.environment()
        access, owns = Function(), Function()
        access.emit(access.part * WIDTH, WIDTH, 0)
        with owns.if_(load(META + owns.part * WIDTH, 1) != 0):
            spin(owns)
            owns.emit(load(META + owns.part * WIDTH + 4, 4), 1, int(TYPE_XN_DB))
        packed = Template(name=b"fine", parts=FINE, access=access.finish(), owns=owns.finish()).pack()
        self.type = install_type(self.env, "fine", packed)
        root = self.env.call("install_mount", DEV, 0, 1, self.type, data=b"fine-root")
        self.root, self.cap = root.r0, root.r1
        for first in range(0, BUSY, BUSY // 2):
            self.transact(*map(self.allocation, range(first, first + BUSY // 2)))

    def allocation(self, part: int) -> Op:
        db = self.free_block(hint=300 + 2 * part)
        writes = [(part * WIDTH, struct.pack("<II", 1, db))]
        extent = {"db": db, "count": 1, "type": TYPE_XN_DB}
        return Op(OpKind.ALLOC, da(self.root), part, writes=writes, flags=OpFlag.ZERO, **extent)

    def blocks(self, count: int) -> list[tuple[int, int, int]]:
        """(block, 1, partition) of the first partitions."""
        raw = self.env.call("readb", da(self.root), count * WIDTH, cap=self.cap, out_bytes=BLOCK).data
        return [(struct.unpack_from("<4xI", raw, part * WIDTH)[0], 1, part) for part in range(count)]

    def forget(self) -> None:
        """What the partitions say is not remembered any more, as after a restart."""
        self.local.kernel.devices[DEV].metadata(da(self.root)).memo.clear()

    def counted(self, name: str, *scalars: int, data: bytes = b"") -> int:
        """Instructions of a call that is refused for taking too many."""
        template = self.local.kernel.devices[DEV].types[self.type].template
        assert template is not None
        before: int = template.spent
        with pytest.raises(UdfFailed, match="take more than"):
            self.env.call(name, *scalars, cap=self.cap, data=data, out_bytes=4096)
        return template.spent - before


def test_calls_that_ask_all_partitions_of_a_block(local: LocalXok) -> None:
    fine = Fine(local)
    assert fine.counted("udf_enum", da(fine.root), 0, FINE) <= MOST
    fine.forget()
    assert fine.counted("insert_attr", da(fine.root), data=pack_extents(fine.blocks(BUSY))) <= MOST
    assert fine.counted("uninstall_mount", DEV, data=b"fine-root") <= MOST
    half = BUSY // 2
    assert fine.env.call("udf_enum", da(fine.root), 0, half, cap=fine.cap, out_bytes=4096).r0 == half
    fine.env.call("insert_attr", da(fine.root), cap=fine.cap, data=pack_extents(fine.blocks(half)))


def test_what_a_partition_says_is_asked_once(local: LocalXok) -> None:
    """Binding remembers it with the block, also for the calls behind one that took too many instructions."""
    fine = Fine(local)
    template = local.kernel.devices[DEV].types[fine.type].template
    assert template is not None
    everything = pack_extents(fine.blocks(BUSY))
    fine.forget()
    fine.counted("insert_attr", da(fine.root), data=everything)
    before = template.spent
    fine.env.call("insert_attr", da(fine.root), cap=fine.cap, data=everything)
    asked = template.spent - before
    assert 0 < asked < before
    fine.env.call("insert_attr", da(fine.root), cap=fine.cap, data=everything)
    assert template.spent == before + asked
    fine.transact(fine.allocation(BUSY))
    extent = pack_extents(fine.blocks(BUSY + 1)[BUSY:])
    fine.env.call("insert_attr", da(fine.root), cap=fine.cap, data=extent)
