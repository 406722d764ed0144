"""Protected methods: what they are told, and that no transaction gets round them (METHOD-1 to METHOD-5, TXN-7).

The type under test is a table of keys.  Its method holds that no key occurs twice below one index node, that every
sector carries the time of its last change, and that it carries the user who made it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from toy import NO_PARTITION, POINTER, POINTERS, Toy, access, da, guard, install_type, owns

from xok_host.abi.calls import MAX_WITNESSES, Op, OpKind, pack_transaction
from xok_host.abi.errors import BadCall, BadCapability, LimitReached, NotInCore, Refused, UdfFailed, XokError
from xok_host.abi.method import Witnesses
from xok_host.abi.template import Template
from xok_host.abi.types import SECTOR, SECTORS, TYPE_XN_DB, Right
from xok_host.abi.udf import CONTEXT, META, NEW, Function, load
from xok_host.kernel.capability import TREE, Capability
from xok_host.kernel.local import LocalXok
from xok_host.kernel.xn.methods import METHOD_BUDGET

KEYS = 62
TABLE = struct.Struct(f"<QQ{KEYS}Q")
LATE = 1_000_000_000


def keys_are_unique() -> bytes:
    f = Function()
    with f.if_(f.part >= SECTORS):
        f.return_(0)
    here = f.var(NEW + f.part * SECTOR)
    before = f.var(META + f.part * SECTOR)
    shown = Witnesses(f)
    stamp = f.var(load(here, 8))
    with f.if_((stamp > shown.context.now) | (shown.context.now - stamp > LATE)):
        f.return_(0)
    with f.if_(load(here + 8, 8) != shown.context.uid):
        f.return_(0)
    index = shown.find(shown.context.parent)
    with f.if_(index == 0):
        f.return_(0)
    with f.for_range(2, 2 + KEYS) as i:
        key = f.var(load(here + i * 8, 8))
        with f.if_((key != 0) & (key != load(before + i * 8, 8))):
            found = f.var(0)
            with f.for_range(0, POINTERS) as p:
                block = f.var(load(index + p * POINTER.size, 8))
                with f.if_(block != 0):
                    data = shown.find(block)
                    with f.if_(data == 0):
                        f.return_(0)
                    with f.for_range(0, SECTORS) as s, f.for_range(2, 2 + KEYS) as k:
                        with f.if_(load(data + s * SECTOR + k * 8, 8) == key):
                            f.set(found, found + 1)
            with f.if_(found != 1):
                f.return_(0)
    f.return_(1)
    return f.finish()


def nothing() -> bytes:
    return Function().finish()


def keyed(name: str, method: bytes, **programs: bytes) -> bytes:
    given = {"access": access(), "owns": nothing(), "guard": guard()} | programs
    return Template(name=name.encode(), parts=SECTORS, method=method, **given).pack()


class Tables:
    """A toy root whose sector 0 has `count` tables with a method."""

    def __init__(self, count: int = 2, method: Callable[[], bytes] = keys_are_unique, **programs: bytes) -> None:
        self.local = LocalXok()
        self.toy = Toy(self.local)
        self.type = install_type(self.toy.env, "keyed", keyed("keyed", method(), **programs))
        self.blocks = [self.add() for _ in range(count)]

    def add(self) -> int:
        toy = self.toy
        new, block = toy.sector(toy.root, 0), toy.free_block()
        new.pointers.append((block, 1, self.type, 0))
        toy.transact(toy.modify(toy.root, 0, new, OpKind.ALLOC, db=block, count=1, type=self.type))
        return block

    def table(self, *keys: int, stamp: int | None = None, uid: int | None = None) -> bytes:
        stamp = self.local.kernel.now if stamp is None else stamp
        uid = self.toy.env.kernel_env.uid if uid is None else uid
        return TABLE.pack(stamp, uid, *keys, *(0 for _ in range(KEYS - len(keys))))

    def put(self, table: int, sector: int, raw: bytes) -> Op:
        return Op(OpKind.MODIFY, da(self.blocks[table]), sector, writes=[(sector * SECTOR, raw)])

    def witnesses(self) -> list[Op]:
        return [Op(OpKind.WITNESS, da(db)) for db in (self.toy.root, *self.blocks)]

    def change(self, table: int, sector: int, raw: bytes) -> None:
        self.toy.transact(*self.witnesses(), self.put(table, sector, raw))

    def refused(self, error: type[XokError], *ops: Op, cap: int | None = None) -> XokError:
        cap = self.toy.cap if cap is None else cap
        with pytest.raises(error) as caught:
            self.toy.env.call("transact", cap=cap, data=pack_transaction(ops))
        return caught.value


def test_a_change_that_keeps_the_invariant_is_made() -> None:
    tables = Tables()
    tables.change(0, 0, tables.table(5, 6))
    tables.change(1, 3, tables.table(7))
    tables.change(0, 0, tables.table(6))
    tables.change(1, 0, tables.table(5))


def test_a_key_that_another_block_has_is_refused_and_nothing_happened() -> None:
    tables = Tables()
    tables.change(0, 0, tables.table(5))
    error = tables.refused(Refused, *tables.witnesses(), tables.put(1, 7, tables.table(5)))
    assert "keyed" in str(error) and str(tables.blocks[1]) in str(error)
    tables.change(1, 7, tables.table(8))


def test_two_changes_of_one_transaction_see_one_another() -> None:
    tables = Tables()
    tables.refused(Refused, *tables.witnesses(), tables.put(0, 0, tables.table(9)), tables.put(1, 0, tables.table(9)))
    tables.change(0, 0, tables.table(9))
    # A move: gone there and come here, which is right only as a whole.
    tables.toy.transact(*tables.witnesses(), tables.put(0, 0, tables.table()), tables.put(1, 2, tables.table(9)))


def test_who_does_not_show_what_the_method_needs_is_refused() -> None:
    tables = Tables()
    write = tables.put(0, 0, tables.table(5))
    shown = tables.witnesses()
    tables.refused(Refused, write)
    for missing in range(len(shown)):
        tables.refused(Refused, *shown[:missing], *shown[missing + 1 :], write)
    tables.toy.transact(write, *shown)


def test_a_table_that_this_transaction_allocates_is_shown_as_it_will_be() -> None:
    tables = Tables(1)
    toy = tables.toy
    tables.change(0, 0, tables.table(5))
    new, block = toy.sector(toy.root, 0), toy.free_block()
    new.pointers.append((block, 1, tables.type, 0))
    add = toy.modify(toy.root, 0, new, OpKind.ALLOC, db=block, count=1, type=tables.type)
    tables.blocks.append(block)
    tables.refused(Refused, add, *tables.witnesses(), tables.put(1, 0, tables.table(5)))
    toy.transact(add, *tables.witnesses(), tables.put(1, 0, tables.table(6)))
    tables.refused(Refused, *tables.witnesses(), tables.put(0, 1, tables.table(6)))


def test_time_and_user_are_xokds() -> None:
    tables = Tables()
    now = tables.local.kernel.now
    for raw in (
        tables.table(5, stamp=now + 1),
        tables.table(5, stamp=max(now - 2 * LATE, 0)) if now > 2 * LATE else tables.table(5, stamp=now + LATE),
        tables.table(5, uid=tables.toy.env.kernel_env.uid + 1),
    ):
        tables.refused(Refused, *tables.witnesses(), tables.put(0, 0, raw))
    tables.change(0, 0, tables.table(5))


def test_every_operation_that_changes_bytes_is_asked_about() -> None:
    """ALLOC and SET_TYPE carry writes too; the method sees them all."""

    def never() -> bytes:
        return Function().finish()  # r0 is 0

    tables = Tables(1, never, owns=owns())
    block = da(tables.blocks[0])
    for kind in (OpKind.MODIFY, OpKind.SET_TYPE):
        tables.refused(Refused, Op(kind, block, 0, writes=[(0, b"x")]))
    free = tables.toy.free_block()
    pointer = POINTER.pack(free, 1, TYPE_XN_DB, 0)
    tables.refused(Refused, Op(OpKind.ALLOC, block, 0, db=free, count=1, type=TYPE_XN_DB, writes=[(0, pointer)]))
    tables.toy.transact(Op(OpKind.MODIFY, block, 0))  # changes nothing


def test_bytes_outside_all_partitions_are_asked_about() -> None:
    def half() -> bytes:
        f = Function()
        f.emit(f.part * SECTOR, SECTOR // 2, 0)
        return f.finish()

    def only_partitions() -> bytes:
        f = Function()
        with f.if_(f.part < SECTORS):
            f.return_(1)
        return f.finish()

    tables = Tables(1, only_partitions, access=half())
    block = da(tables.blocks[0])
    tables.toy.transact(Op(OpKind.MODIFY, block, 0, writes=[(0, b"x")]))
    tables.refused(Refused, Op(OpKind.MODIFY, block, NO_PARTITION, writes=[(SECTOR - 1, b"x")]))


def test_a_method_that_never_ends_is_stopped() -> None:
    def endless() -> bytes:
        f = Function()
        with f.while_(f.var(1) != 0):
            pass
        return f.finish()

    tables = Tables(1, endless)
    error = tables.refused(UdfFailed, Op(OpKind.MODIFY, da(tables.blocks[0]), 0, writes=[(0, b"x")]))
    assert "budget" in str(error)
    assert METHOD_BUDGET <= 1 << 20


def test_a_method_cannot_read_beyond_its_witnesses() -> None:
    def beyond() -> bytes:
        f = Function()
        f.return_(load(CONTEXT + 4096 * 2, 1))
        return f.finish()

    tables = Tables(1, beyond)
    write = Op(OpKind.MODIFY, da(tables.blocks[0]), 0, writes=[(0, b"x")])
    tables.refused(UdfFailed, Op(OpKind.WITNESS, da(tables.toy.root)), write)
    tables.refused(UdfFailed, write)


def test_what_cannot_be_a_witness() -> None:
    tables = Tables()
    toy, write = tables.toy, tables.put(0, 0, tables.table())
    root = Op(OpKind.WITNESS, da(toy.root))
    tables.refused(LimitReached, *[root] * (MAX_WITNESSES + 1), write)
    tables.refused(NotInCore, Op(OpKind.WITNESS, da(toy.free_block())), write)
    tables.refused(BadCall, Op(OpKind.WITNESS, da(toy.root), writes=[(0, b"x")]), write)
    stranger = toy.env.kernel_env.capabilities.add(Capability(TREE, 4711, Right.READ | Right.WRITE, "stranger"))
    tables.refused(BadCapability, root, cap=stranger)


def test_the_method_is_told_who_owns_what() -> None:
    """METHOD-2, also for a block whose pointer moves in this very transaction."""

    def parent_is_new() -> bytes:
        f = Function()
        shown = Witnesses(f)
        with f.if_((shown.context.parent == load(NEW, 8)) & (shown.context.sector == load(NEW + 8, 8))):
            f.return_(1)
        return f.finish()

    tables = Tables(1, parent_is_new)
    toy, block = tables.toy, tables.blocks[0]

    def says(parent: int, sector: int) -> Op:
        return Op(OpKind.MODIFY, da(block), 0, writes=[(0, struct.pack("<QQ", parent, sector))])

    tables.refused(Refused, says(toy.root, 1))
    tables.refused(Refused, says(toy.root + 1, 0))
    toy.transact(says(toy.root, 0))
    # Below a new node under the same sector, which is how metadata may move.
    old, node, inner = toy.sector(toy.root, 0), toy.free_block(), toy.sector(toy.root, 0).copy()
    old.pointers = [(node, 1, toy.type, 0)]
    ops = [
        toy.modify(toy.root, 0, old, OpKind.ALLOC, db=node, count=1, type=toy.type),
        toy.modify(node, 5, inner),
    ]
    tables.refused(Refused, *ops, says(toy.root, 0))
    toy.transact(*ops, says(node, 5))
