"""Partitions that are traced (thesis 4.1.1) and overlap (4.1.2): what grows and shrinks, who is hidden, what lies."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from toy import DEV, da, install_type
from tracedkit import BASED, DELTAS_AT, ENTRY, EXTENT, SLOTS, Tree, based, choosy, heap, outputs

from xok_host.abi.calls import MAX_DEPENDENTS, Op, OpFlag, OpKind, pack_transaction
from xok_host.abi.errors import (
    BadCall,
    BogusPartition,
    BogusUpdate,
    DependentsMissing,
    NotFound,
    RefcountWrong,
    TypeInvalid,
    UdfFailed,
    WrongType,
    XokError,
)
from xok_host.abi.template import Kind, Partitions, Template
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB
from xok_host.abi.udf import META, Function, load
from xok_host.kernel.local import LocalXok
from xok_host.kernel.xn import readset, verify
from xok_host.kernel.xn.recover import reconstruct
from xok_host.kernel.xn.template import import_template

DB = int(TYPE_XN_DB)


def entry(offset: int, extents: int) -> bytes:
    return ENTRY.pack(offset, extents)


def record(*blocks: int) -> bytes:
    return b"".join(EXTENT.pack(block, 1) for block in blocks)


@pytest.fixture
def tree(local: LocalXok) -> Tree:
    return Tree.of(local, heap())


def refused(tree: Tree, error: type[XokError], *ops: Op) -> XokError:
    before = tree.bytes()
    with pytest.raises(error) as caught:
        tree.transact(*ops)
    assert type(caught.value) is error and tree.bytes() == before
    return caught.value


def place(tree: Tree, slot: int, offset: int, *blocks: int) -> None:
    """A record of newly allocated blocks for a slot of sector 0."""
    first, *others = blocks
    writes = [(slot * ENTRY.size, entry(offset, len(blocks))), (offset, record(*blocks))]
    tree.transact(tree.alloc(slot, first, *writes), *(tree.alloc(slot, db) for db in others))


# ---- growing and shrinking


def test_a_record_grows_moves_and_shrinks(tree: Tree) -> None:
    a, b, c = (tree.free() + i for i in range(3))
    place(tree, 0, 64, a)
    tree.transact(tree.alloc(0, b, (2, struct.pack("<H", 2)), (72, record(b))))  # grows where it is
    assert outputs(tree.accepted(), tree.bytes(), tree.root)[0][0] == [a, 2, DB]
    tree.transact(tree.op(0, (0, entry(400, 2)), (400, record(a, b))))  # moves: nothing of it stays where it was
    assert outputs(tree.accepted(), tree.bytes(), tree.root)[0][0] == [a, 2, DB]
    place(tree, 1, 64, c)  # what it has left is free for others
    tree.transact(tree.op(0, (2, struct.pack("<H", 1)), kind=OpKind.FREE, db=b, count=1, type=DB))
    assert outputs(tree.accepted(), tree.bytes(), tree.root)[:2] == [[[a, 1, DB], [], []], [[c, 1, DB], [], []]]
    tree.transact(tree.op(0, (0, bytes(4)), kind=OpKind.FREE, db=a, count=1, type=DB))
    place(tree, 2, 400, tree.free())


def test_what_a_partition_lost_is_nobodys(tree: Tree) -> None:
    a = tree.free()
    place(tree, 0, 64, a)
    refused(tree, BogusPartition, tree.op(0xFFFFFFFF, (64, b"\1")))
    tree.transact(tree.op(0, (0, bytes(2)), kind=OpKind.FREE, db=a, count=1, type=DB))
    refused(tree, BogusPartition, tree.op(0, (64, b"\xee" * 8)))  # not the partition's any more,
    tree.transact(tree.op(0xFFFFFFFF, (64, b"\xee" * 8)))  # but free for whoever may write the block
    assert tree.bytes()[64:72] == b"\xee" * 8


def test_bytes_change_hands_when_both_are_named(tree: Tree) -> None:
    a, b = tree.free(), tree.free() + 1
    place(tree, 0, 64, a)
    place(tree, 1, 80, b)
    # Slot 1's record goes to slot 0, in one step; slot 0's to slot 1.  Nobody else is concerned.
    tree.transact(tree.op(0, (0, entry(80, 1))), tree.op(1, (4, entry(64, 1))))
    assert outputs(tree.accepted(), tree.bytes(), tree.root)[:2] == [[[b, 1, DB], [], []], [[a, 1, DB], [], []]]


# ---- what would make partitions meet


def test_a_partition_cannot_grow_into_another(tree: Tree) -> None:
    a, b, c = (tree.free() + i for i in range(3))
    place(tree, 0, 64, a)
    place(tree, 1, 72, b)
    # The record behind slot 0's is slot 1's: two extents would read it, whatever is written.
    error = refused(tree, BogusPartition, tree.op(0, (2, struct.pack("<H", 2))))
    assert "would read bytes 72 to 79" in str(error)
    # Into an entry of the directory, which its partition reads although it is empty.
    refused(tree, BogusPartition, tree.alloc(2, c, (8, entry(12, 1))))
    # Two that grow in one transaction, into the same place.
    refused(
        tree,
        BogusPartition,
        tree.alloc(2, c, (8, entry(200, 1)), (200, record(c))),
        tree.op(3, (12, entry(200, 1))),
    )


def test_bytes_of_another_are_not_written(tree: Tree) -> None:
    a, b = tree.free(), tree.free() + 1
    place(tree, 0, 64, a)
    place(tree, 1, 72, b)
    for ops in (
        [tree.op(0, (72, record(a)))],
        [tree.op(0, (4, bytes(2)))],
        [tree.op(0xFFFFFFFF, (72, b"\7"))],
        [tree.op(2, (8, entry(0, 9)), (64, b"\7"))],
    ):
        refused(tree, BogusPartition, *ops)
    refused(tree, BogusPartition, tree.op(0, (SECTOR, b"\7")))  # another sector is not a partition's at all
    tree.transact(tree.op(0, (72, record(b))))  # the same bytes: nothing changes


def test_a_record_outside_the_sector_is_a_fault(tree: Tree) -> None:
    a = tree.free()
    error = refused(tree, UdfFailed, tree.alloc(0, a, (0, entry(508, 1))))
    assert "reads outside what it may see" in str(error)


def peeping(when: int) -> bytes:
    """Reads its own byte, and if that has a certain value, the next partition's."""
    f = Function()
    own = f.var(load(f.var(META + f.part), 1))
    with f.if_(own == when):
        f.set(own, load(META + f.part + 1, 1))
    with f.if_(own > 100):
        f.emit(own, 1, DB)
    return f.finish()


def test_who_reads_anothers_bytes_in_some_states_only(local: LocalXok) -> None:
    tree = Tree.of(local, Template(name=b"peeping", parts=SLOTS, partitions=Partitions.TRACED, owns=peeping(7)))
    tree.transact(tree.op(0, (0, b"\x06")))
    error = refused(tree, BogusPartition, tree.op(0, (0, b"\x07")))
    assert "would read bytes 1," in str(error)
    refused(tree, BogusPartition, tree.op(0, (0, b"\x07")), tree.op(1))  # naming it does not make it the other's
    tree.transact(tree.op(SLOTS - 1, (SLOTS - 1, b"\x07")))  # nobody has the byte behind the last


# ---- overlapping partitions


@pytest.fixture(params=[False, True], ids=["counted", "by looking"])
def shared(request: pytest.FixtureRequest, local: LocalXok) -> Tree:
    return Tree.of(local, based(by_looking=request.param))


def live(tree: Tree, number: int) -> list[Op]:
    """The count that the libFS keeps; no partition reads it."""
    return [tree.op(0xFFFFFFFF, (8, struct.pack("<H", number)))]


def delta(slot: int, value: int) -> tuple[int, bytes]:
    return DELTAS_AT + 2 * slot, struct.pack("<H", value)


def base(value: int) -> tuple[int, bytes]:
    return 0, struct.pack("<Q", value)


def populate(tree: Tree, slots: int) -> int:
    """Slot i owns block first + i, by way of a base one below."""
    first = tree.free(slots, hint=100)
    for slot in range(slots):
        writes = [delta(slot, slot + 1), *([base(first - 1)] if not slot else [])]
        tree.transact(tree.alloc(slot, first + slot, *writes), *live(tree, slot + 1))
    return first


def test_all_that_depend_on_shared_bytes_are_named(shared: Tree) -> None:
    first = populate(shared, 3)
    rebased = [base(first - 2), *(delta(slot, slot + 2) for slot in range(3))]
    shared.transact(shared.op(0, *rebased, dependents=[1, 2]))  # all deltas and the base: nobody owns anything else
    said = outputs(shared.accepted(), shared.bytes(), shared.root)
    assert [one[0] for one in said[:4]] == [[first, 1, DB], [first + 1, 1, DB], [first + 2, 1, DB], []]
    rebased = [base(first - 1), *(delta(slot, slot + 1) for slot in range(3))]
    shared.transact(shared.op(0, *rebased), shared.op(1), shared.op(2))  # operations of their own name them as well
    # One dependent that has no other change: what it owns moves with the base.
    refused(shared, BogusUpdate, shared.op(0, base(first), delta(0, 0), dependents=[1, 2]), *live(shared, 2))


def test_a_dependent_that_is_hidden_is_missed(shared: Tree) -> None:
    first = populate(shared, 3)
    for named in ([], [1], [2], [1, 1], [1, 5], [3, 4, 5, 6, 7]):
        error = refused(shared, DependentsMissing, shared.op(0, base(first - 2), delta(0, 2), dependents=named))
        assert "3 partitions read byte 0" in str(error) and "of them are named" in str(error)
    refused(shared, DependentsMissing, shared.op(0xFFFFFFFF, (0, b"\7")))
    refused(shared, DependentsMissing, shared.op(3, base(first - 2)))
    refused(shared, DependentsMissing, shared.op(0, delta(1, 9)))  # bytes of one, by another


def test_a_count_that_does_not_follow_is_refused(local: LocalXok) -> None:
    tree = Tree.of(local, based())
    first = populate(tree, 3)
    free = tree.free(hint=300)
    more = tree.alloc(3, free, delta(3, free - first + 1))
    gone = tree.op(2, delta(2, 0), kind=OpKind.FREE, db=first + 2, count=1, type=DB)
    for ops in ([more], [more, *live(tree, 3)], [more, *live(tree, 5)], [gone], [gone, *live(tree, 1)]):
        refused(tree, BogusUpdate, *ops)
    for number in (0, 1, 2, 4, 512):  # a count that goes down alone would hide somebody the next time
        refused(tree, BogusUpdate, *live(tree, number))
    refused(tree, UdfFailed, *live(tree, 513))
    tree.transact(gone, *live(tree, 2))
    tree.transact(more, *live(tree, 3))
    tree.transact(more.__class__(OpKind.MODIFY, da(tree.root), 3, dependents=[0, 1]))


def test_a_swap_of_readers_keeps_the_sum(local: LocalXok) -> None:
    tree = Tree.of(local, based())
    first = populate(tree, 2)
    # Slot 1 leaves, slot 2 comes and takes over its block: as many read the base as before.
    tree.transact(tree.op(1, delta(1, 0)), tree.op(2, delta(2, 2)))
    assert outputs(tree.accepted(), tree.bytes(), tree.root)[2][0] == [first + 1, 1, DB]
    tree.transact(tree.op(0, base(first - 2), delta(0, 2), delta(2, 3), dependents=[2]))
    refused(tree, DependentsMissing, tree.op(0, base(first - 1), delta(0, 1), dependents=[1]))


def test_an_element_is_counted_by_its_only_reader(local: LocalXok) -> None:
    f = Function()
    at = f.var((f.part >> 3) * SECTOR)
    with f.if_(load(META + at, 8) != 0):
        f.emit(f.address + at, load(META + at, 8), 0)
    both = based("both", owns=Function().finish(), refcnt=f.finish(), uses=program_uses(0, 8, SLOTS))
    tree = Tree.of(local, both)
    with pytest.raises(UdfFailed, match="which several partitions read"):
        tree.transact(tree.op(0, (0, b"\1"), dependents=list(range(1, SLOTS))))


def program_uses(start: int, length: int, number: int) -> bytes:
    f = Function()
    f.emit(f.part * SECTOR + start, length, number)
    return f.finish()


def armed() -> Template:
    """Two partitions of one union: {kind u8} decides for both what {x u32, y u32} of each own: x, or y, or nothing."""
    f = Function()
    kind = f.var(load(META, 1))
    own = f.var(META + 8 + f.part * 8)
    with f.if_((kind != 0) & (kind < 3)):
        block = f.var(load(own + (kind - 1) * 4, 4))
        with f.if_(block != 0):
            f.emit(block, 1, DB)
    u = Function()
    with u.if_(u.part == 0):
        u.emit(0, 1, 2)
        kind = u.var(load(META, 1))
        with u.if_((kind != 0) & (kind < 3)), u.for_range(0, 2) as i:
            u.emit(8 + i * 8 + (kind - 1) * 4, 4, 1)
    return Template(
        name=b"armed",
        kind=Kind.UNION,
        parts=2,
        discriminators=((0, 1),),
        partitions=Partitions.OVERLAPPING,
        owns=f.finish(),
        uses=u.finish(),
    )


def test_two_partitions_share_the_choice_of_their_arms(local: LocalXok) -> None:
    tree = Tree.of(local, armed())
    a, b = tree.free(), tree.free() + 1

    def choose(kind: int, *writes: tuple[int, bytes], dependents: tuple[int, ...] = (1,)) -> Op:
        return tree.op(0, (0, bytes([kind])), *writes, kind=OpKind.SET_TYPE, dependents=dependents)

    tree.transact(choose(1))
    tree.transact(tree.alloc(0, a, (8, struct.pack("<I", a))), tree.alloc(1, b, (16, struct.pack("<I", b))))
    refused(tree, BogusPartition, tree.op(0, (12, b"\1")))  # bytes of the other arm are nobody's now
    blocks = [(at, struct.pack("<I", block)) for at, block in ((12, a), (20, b))]
    refused(tree, DependentsMissing, choose(2, blocks[0], dependents=()))
    refused(tree, BogusUpdate, choose(2, blocks[0]))  # the dependent would lose its block
    refused(tree, BogusUpdate, tree.op(0, (0, b"\2"), *blocks, dependents=[1]))  # not by MODIFY
    tree.transact(choose(2, *blocks))
    assert [one[0] for one in outputs(tree.accepted(), tree.bytes(), tree.root)] == [[a, 1, DB], [b, 1, DB]]


# ---- the import, and where a block lies


def program(write: Any) -> bytes:
    f = Function()
    write(f)
    return f.finish()


def invalid(why: str, template: Template) -> None:
    with pytest.raises(TypeInvalid, match=why):
        import_template(template.pack())


def test_the_import_surveys_the_empty_instance() -> None:
    same = program(lambda f: f.return_(load(META + 16, 1)))
    invalid("byte 16 is read by 64 partitions", heap(owns=same))
    invalid(
        "uses says that 0 partitions read byte 0; 1 do",
        based(uses=program_uses(DELTAS_AT, 2 * SLOTS, 1), parts=1, owns=heap().owns),
    )
    invalid("uses says that 2 partitions read byte 10; 1 do", based(uses=program_uses(DELTAS_AT, 2 * SLOTS, 2)))
    invalid("uses says that 1 partitions read byte 26; 0 do", based(uses=program_uses(DELTAS_AT, 2 * SLOTS + 17, 1)))
    invalid("speaks of 8 bytes at 508, which are not in the sector", based(uses=program_uses(508, 8, 1)))
    invalid("speaks of 0 bytes", based(uses=program_uses(8, 0, 1)))
    invalid("gives byte 8 0 users", based(uses=program_uses(8, 1, 0)))
    invalid("gives byte 8 513 users", based(uses=program_uses(8, 1, readset.MAX_READERS + 1)))
    invalid("reads nowhere; it must read in one sector", heap(owns=program(lambda f: f.return_(0))))
    across = program(lambda f: f.return_(load(META + f.part * 4 + SECTOR - 2, 4)))
    invalid("partition 0 of the empty instance reads in the sectors 0, 1", heap(owns=across))
    invalid(
        "partition 3 of the empty instance cannot be traced",
        heap(owns=program(lambda f: f.return_(load(META + BLOCK * (f.part // 3) + f.part, 1)))),
    )
    invalid("one block", heap(blocks=2))
    invalid("no uses program", based(uses=b""))
    invalid("no owns program", heap(owns=b""))


def test_a_discriminator_lies_in_one_sector(local: LocalXok) -> None:
    invalid("does not lie in one sector", heap(kind=Kind.UNION, discriminators=((510, 4),)))
    tree = Tree.of(local, heap(kind=Kind.UNION, discriminators=((32, 2),)))
    with pytest.raises(BogusUpdate):
        tree.transact(tree.op(0xFFFFFFFF, (32, b"\1\0")))
    tree.transact(tree.op(0xFFFFFFFF, (32, b"\1\0"), kind=OpKind.SET_TYPE))


@pytest.mark.parametrize("emit", [False, True])
def test_what_is_read_may_depend_on_where_the_block_lies(local: LocalXok, emit: bool) -> None:
    chosen = 300
    env = local.environment()
    kind = install_type(env, "choosy", choosy(chosen, emit).pack())
    with pytest.raises(UdfFailed, match="read by 2 partitions" if not emit else "is not empty"):
        env.call("install_mount", DEV, chosen, 1, kind, data=b"there")
    with pytest.raises(UdfFailed):
        env.call("install_mount", DEV, chosen - 4, 8, kind, data=b"there")
    env.call("install_mount", DEV, chosen + 1, 1, kind, data=b"beside")
    # Below a parent of another type.
    tree = Tree.of(local, Template(name=b"owner", parts=1, partitions=Partitions.TRACED, owns=owns_first()), "other")
    for db, error in ((chosen, UdfFailed), (chosen + 2, None)):
        give = tree.op(0, (0, struct.pack("<II", db, kind)), kind=OpKind.ALLOC, db=db, count=1, type=kind)
        if error is None:
            tree.transact(give)
        else:
            refused(tree, error, give)


def owns_first() -> bytes:
    f = Function()
    with f.if_(load(META, 4) != 0):
        f.emit(load(META, 4), 1, load(META + 4, 4))
    return f.finish()


# ---- bounds


def test_dependents_are_bounded_and_well_formed(shared: Tree, toy: Any) -> None:
    populate(shared, 1)
    change = (DELTAS_AT + 2, b"\0\0")
    shared.transact(shared.op(1, change, dependents=[0] * MAX_DEPENDENTS))
    too_many = shared.op(1, change, dependents=[0] * MAX_DEPENDENTS), shared.op(1, change, dependents=[0])
    assert "more than 512 dependents" in str(refused(shared, BadCall, *too_many))
    refused(shared, BogusPartition, shared.op(1, change, dependents=[shared.accepted().parts]))
    refused(shared, BogusPartition, shared.op(1, change, dependents=[0xFFFFFFFF]))
    for ids in (b"", b"\0\0\0", b"\0" * 6):
        refused(shared, BadCall, shared.op(1, (0, ids), flags=OpFlag.DEPENDENTS))
    refused(shared, BadCall, shared.op(1, flags=OpFlag.DEPENDENTS))
    assert (
        toy.code("transact", data=pack_transaction([Op(OpKind.MODIFY, da(toy.root), 0, dependents=[1])])) is WrongType
    )
    other = Tree.of(shared.local, heap("apart"), "other")
    refused(other, WrongType, other.op(0, dependents=[1]))


def test_a_sector_has_so_many_partitions_that_all_can_be_named(local: LocalXok) -> None:
    assert readset.MAX_READERS <= MAX_DEPENDENTS
    crowded = based("crowded", owns=program(lambda f: f.return_(load(META, 1))), uses=program(crowd))
    invalid("more than 512 partitions read in sector 0", replace(crowded, parts=readset.MAX_READERS + 1))
    tree = Tree.of(local, replace(crowded, parts=readset.MAX_READERS))
    tree.transact(tree.op(0, (0, b"\1"), dependents=list(range(1, readset.MAX_READERS))))
    refused(tree, DependentsMissing, tree.op(0, (0, b"\2"), dependents=list(range(1, readset.MAX_READERS - 1))))


def crowd(f: Function) -> None:
    with f.if_(f.part == 0):
        f.emit(0, 1, readset.MAX_READERS)


def test_uses_says_at_most_one_thing_of_each_byte(local: LocalXok) -> None:
    def every_byte(f: Function, more: int = 0, twice: int = 0) -> None:
        at = f.var(f.part * SECTOR)
        with f.for_range(0, SECTOR - twice + more) as i:
            f.emit(at + i, 1, 1)
        with f.for_range(0, twice) as i:
            f.emit(at + i, 1, 1)

    one = Template(
        name=b"bytes", parts=8, partitions=Partitions.OVERLAPPING, owns=program(reads_all), uses=program(every_byte)
    )
    tree = Tree.of(local, one)
    tree.transact(tree.op(3, (3 * SECTOR, b"\1" * SECTOR)))
    invalid("emits more than its bound", replace(one, uses=program(lambda f: every_byte(f, more=1))))
    invalid("speaks of byte 0 twice", replace(one, uses=program(lambda f: every_byte(f, twice=1))))


def reads_all(f: Function) -> None:
    with f.for_range(0, SECTOR // 8) as i:
        with f.if_(load(META + f.part * SECTOR + i * 8, 8) == 77):
            f.return_(0)


def test_tracing_many_partitions_stops_at_the_transactions_budget(local: LocalXok) -> None:
    f = Function()
    own = f.var(load(META, 1))
    with f.if_(own != 0), f.for_range(0, 10_000) as i, f.if_(i == own):
        f.set(own, 0)
    tree = Tree.of(local, based("slow", owns=f.finish(), uses=program(crowd), parts=readset.MAX_READERS))
    change = tree.op(0, (0, b"\1"), dependents=list(range(1, readset.MAX_READERS)))
    kind = local.kernel.devices[DEV].types[tree.type]
    before = kind.spent
    assert "tracing the partitions takes more" in str(refused(tree, UdfFailed, change))
    assert verify.UDF_BUDGET < kind.spent - before < verify.UDF_BUDGET + (1 << 17), "it stops in the middle"


def test_a_survey_that_never_ends_is_stopped() -> None:
    spinning = Function()
    with spinning.for_range(0, 16000) as i:
        with spinning.if_(i == 16000):
            spinning.emit(1, 1, 1)
    spinning.return_(load(META + spinning.part, 1))
    invalid("more instructions than may be spent|takes more than", heap(owns=spinning.finish(), parts=512))


# ---- what stays on the disk


def again(local: LocalXok, tree: Tree, kind: str) -> Tree:
    env = local.environment(roots=["tree"])
    env.call("type_mount", DEV, data=kind.encode())
    assert env.call("mount", DEV, cap=1, data=b"tree").r0 == da(tree.root)
    return Tree(local, env, tree.root, 1, tree.type)


def test_a_restart_goes_on_where_it_was(local: LocalXok) -> None:
    tree = Tree.of(local, heap())
    a, b = tree.free(), tree.free() + 1
    place(tree, 0, 64, a)
    place(tree, 1, 72, b)
    local.sync()
    local.crash()
    report = local.recover()
    assert report.sound and report.trees["tree"] == 3
    tree = again(local, tree, "heap")
    refused(tree, BogusPartition, tree.op(0, (2, struct.pack("<H", 2))))
    refused(tree, BogusPartition, tree.op(0, (76, b"\2")))
    tree.transact(tree.op(0, (0, entry(400, 1)), (400, record(a))))


def test_shared_state_is_counted_after_a_restart(local: LocalXok) -> None:
    tree = Tree.of(local, based())
    first = populate(tree, 3)
    local.sync()
    local.crash()
    assert local.recover().sound
    tree = again(local, tree, "based")
    refused(tree, DependentsMissing, tree.op(0, base(first - 2), dependents=[1]))
    rebased = [base(first - 2), *(delta(slot, slot + 2) for slot in range(3))]
    tree.transact(tree.op(0, *rebased, dependents=[1, 2]))


@pytest.mark.parametrize(
    ("template", "raw", "why"),
    [
        (heap(), entry(64, 2) + entry(72, 1), "byte 76 is read by 2 partitions"),
        (based(), BASED.pack(0, 2, 300, *[0] * 7), "uses says that 2 partitions read byte 0; 1 do"),
    ],
    ids=["traced", "overlapping"],
)
def test_reconstruction_surveys_what_it_finds(local: LocalXok, template: Template, raw: bytes, why: str) -> None:
    """Bytes that XN has never let through: somebody wrote to the disk while no xokd did."""
    tree = Tree.of(local, template)
    local.sync()
    local.disk.write_sectors(tree.root * SECTORS, raw.ljust(SECTOR, b"\0"))
    local.disk.flush()
    local.crash()
    report = local.recover()
    assert not report.sound and any(why in str(violation) for violation in report.violations)


def test_a_patch_must_leave_partitions_apart(local: LocalXok) -> None:
    tree = Tree.of(local, heap(acl=program(lambda f: f.return_(1))))
    local.sync()
    raw = (entry(64, 2) + entry(72, 1)).ljust(SECTOR, b"\0")
    local.disk.write_sectors(tree.root * SECTORS, raw)
    local.disk.flush()
    local.crash()
    assert not local.recover().sound

    def with_bytes(offset: int, data: bytes) -> Any:
        def patch(env: Any) -> bool:
            env.call("patch_write", da(tree.root, offset), cap=1, data=data)
            return True

        return patch

    assert "errors are left" in local.patch("tree", with_bytes(2, b"\3"))
    assert local.patch("tree", with_bytes(2, b"\1")) == ""
    local.stop()


def counting() -> Template:
    """Partition p is {place u16, reference u64}: what it refers to, and where a count u64 lies that is its own."""
    f = Function()
    at = f.var((f.part >> 3) * SECTOR + (f.part & 7) * 16)
    place_of = f.var(load(META + at, 2))
    with f.if_(place_of != 0):
        f.emit(f.address + place_of, load(META + place_of, 8), 0)
    refs = Function()
    own = refs.var(load(META + (refs.part >> 3) * SECTOR + (refs.part & 7) * 16 + 8, 8))
    with refs.if_(own != 0):
        refs.emit_ref(own)
    return heap(owns=Function().finish(), refcnt=f.finish(), refs=refs.finish())


def counted_twice(tree: Tree) -> int:
    """The address of an element of slot 0 with two references, of slots 1 and 2."""
    counted = da(tree.root, 256)
    tree.transact(
        tree.op(0, (0, b"\0\1"), (256, struct.pack("<Q", 2))),
        *(tree.op(slot, (slot * 16 + 8, struct.pack("<Q", counted))) for slot in (1, 2)),
    )
    return counted


def test_counts_are_found_by_asking(local: LocalXok) -> None:
    """GET_REFCNT and reconstruction look for the partition that counts an element."""
    tree = Tree.of(local, counting())
    counted = counted_twice(tree)
    assert tree.env.call("get_refcnt", counted, cap=tree.cap).r0 == 2
    refused(tree, BogusPartition, tree.op(3, (48, b"\0\1")))  # another that would count it
    with pytest.raises(XokError):
        tree.env.call("get_refcnt", da(tree.root, 264), cap=tree.cap)
    refused(tree, RefcountWrong, tree.op(1, (24, bytes(8))))
    tree.transact(tree.op(0, (256, struct.pack("<Q", 1))), tree.op(1, (24, bytes(8))))
    local.sync()
    local.crash()
    assert local.recover().sound


def test_a_count_of_a_traced_partition_is_mended(local: LocalXok) -> None:
    """MOD_REFCNT: a count that a crash has left too high, in a partition that is found by asking."""
    tree = Tree.of(local, counting())
    counted = counted_twice(tree)
    local.sync()
    raw = bytearray(local.disk.read_block(tree.root)[:SECTOR])
    raw[256] = 3
    local.disk.write_sectors(tree.root * SECTORS, bytes(raw))
    local.disk.flush()
    local.crash()
    report = reconstruct(local.disk.read_block, local.disk.nblocks)
    assert report.over_counts == [("tree", counted, 3, 2)]
    for writes in ([(264, b"\1")], [(24, b"\1")], [(SECTOR, b"\1")], [(252, bytes(8))], [(256, b"")]):
        with pytest.raises(BogusPartition):  # nobody's, another's, another sector's, and not wholly its own
            report.mod_refcnt(counted, -1, writes)
    with pytest.raises(NotFound):
        report.mod_refcnt(da(tree.root, 264), -1, [(264, b"\1")])
    with pytest.raises(RefcountWrong):
        report.mod_refcnt(counted, -1, [(256, b"\1")])
    report.mod_refcnt(counted, -1, [(256, b"\2")])
    assert report.over_counts == [] and report.sound
