"""Temporary file systems (thesis 4.4): no order, no trace after a restart, and nothing that lasts leads into one."""

from __future__ import annotations

import pytest
from toy import DEV, Sector, Toy, da, element, install_type, template

from xok_host.abi.calls import TEMPORARY_ROOT, CatalogueEntry, Op, OpFlag, OpKind, pack_transaction
from xok_host.abi.errors import BogusUpdate, WrongType, XokError
from xok_host.abi.types import SECTOR, TYPE_XN_DB, Flag, Right
from xok_host.abi.udf import Function
from xok_host.kernel.local import LocalXok


class Temporary(Toy):
    """A toy file system on a temporary root."""

    def __init__(self, local: LocalXok, name: str = "scratch") -> None:
        self.local = local
        self.env = local.environment()
        self.type = install_type(self.env, f"{name}-node", template(f"{name}-node"))
        root = self.env.call("install_mount", DEV, 0, 1, self.type | TEMPORARY_ROOT, data=name.encode())
        self.root, self.cap = root.r0, root.r1


def free(local: LocalXok) -> int:
    return local.kernel.devices[DEV].freemap.free


@pytest.fixture
def local() -> LocalXok:
    return LocalXok()


def names(local: LocalXok) -> set[str]:
    env = local.environment()
    raw = env.call("read_catalogue", DEV, out_bytes=1 << 16).data
    step = len(CatalogueEntry("", 0, 0, 0, 0, 0, 0, 0).pack())
    return {CatalogueEntry.unpack(raw[at : at + step]).name for at in range(0, len(raw), step)}


def test_everything_below_it_is_temporary_and_goes_out_in_any_order(local: LocalXok) -> None:
    toy = Temporary(local)
    node = toy.add_node(toy.root, 0)
    inner = toy.add_node(node, 3)
    data = toy.add_data(inner, 7, b"scratch")
    for db in (toy.root, node, inner, data):
        assert toy.flags(db) & Flag.TEMPORARY
        assert not toy.flags(db) & Flag.ATTACHED
    for db in (toy.root, node, inner):  # parents first, which a lasting tree is refused
        toy.writeback(db)
    toy.flush()
    toy.writeback(data)
    toy.flush()
    assert all(not toy.flags(db) & Flag.ATTACHED for db in (toy.root, node, inner, data))


def test_an_orderly_restart_has_its_blocks_back_and_the_name_is_gone(local: LocalXok) -> None:
    toy = Temporary(local)
    toy.env.call("flush", DEV)
    before = free(local)
    node = toy.add_node(toy.root, 0)
    for index in range(5):
        toy.add_data(node, index, b"scratch")
    toy.durable(toy.root, node)
    assert "scratch" in names(local) and free(local) == before - 6
    local.stop()
    again = LocalXok(disk=local.disk, format=False)
    assert "scratch" not in names(again) and "scratch-node" in names(again)
    assert free(again) == before + 1


@pytest.mark.parametrize("written", [False, True])
def test_a_crash_has_its_blocks_back_as_well(local: LocalXok, written: bool) -> None:
    lasting = Toy(local, "lasting")
    lasting.durable(lasting.root)
    toy = Temporary(local)
    block = toy.add_data(toy.root, 0, b"scratch")
    kept = lasting.add_data(lasting.root, 0, b"kept")
    if written:
        toy.writeback(toy.root, block)
    lasting.durable(kept)
    lasting.durable(lasting.root)
    local.crash(lambda sector: True)
    report = local.recover()
    assert report.sound and not report.leaked and not report.over_counts
    assert "scratch" not in report.trees and report.trees["lasting"] == 2


def test_what_is_freed_can_be_used_at_once(local: LocalXok) -> None:
    """Nothing waits for a flush: no pointer that survives ever led there."""
    toy = Temporary(local)
    block = toy.add_data(toy.root, 0, b"x")
    toy.durable(block, toy.root)
    before = free(local)
    toy.remove(toy.root, 0, block)
    assert free(local) == before + 1


def test_a_freed_block_that_a_lasting_tree_takes_is_in_use_on_the_disk(local: LocalXok) -> None:
    toy, lasting = Temporary(local), Toy(local, "lasting")
    lasting.durable(lasting.root)
    block = toy.add_data(toy.root, 0, b"scratch")
    toy.remove(toy.root, 0, block)
    new, page = lasting.sector(lasting.root, 0), lasting.page(b"kept")
    new.pointers.append((block, 1, TYPE_XN_DB, 0))
    lasting.transact(
        lasting.modify(
            lasting.root, 0, new, OpKind.ALLOC, db=block, count=1, type=TYPE_XN_DB, page=page, flags=OpFlag.PAGES
        )
    )
    lasting.durable(block)
    lasting.durable(lasting.root)
    local.stop()
    again = LocalXok(disk=local.disk, format=False)
    assert not again.kernel.devices[DEV].freemap.is_free(block, 1)


def refused(toy: Toy, *ops: Op) -> XokError:
    with pytest.raises(BogusUpdate) as caught:
        toy.env.call("transact", cap=toy.cap, data=pack_transaction(ops))
    return caught.value


class Both:
    """A lasting and a temporary tree that one capability may write (its guard says so)."""

    def __init__(self, local: LocalXok) -> None:
        self.lasting = Toy(local, "lasting")
        self.lasting.durable(self.lasting.root)
        tree = next(cap.id for cap in self.lasting.env.caps if cap.index == self.lasting.cap)

        def guard() -> bytes:
            f = Function()
            f.emit_cap(f.tree, int(Right.READ | Right.WRITE))
            f.emit_cap(tree, int(Right.READ | Right.WRITE))
            return f.finish()

        env = self.lasting.env
        self.type = install_type(env, "open-node", template("open-node", guard=guard()))
        root = env.call("install_mount", DEV, 0, 1, self.lasting.type | TEMPORARY_ROOT, data=b"scratch")
        self.scratch = Toy.__new__(Toy)
        self.scratch.local, self.scratch.env, self.scratch.cap = local, env, root.r1
        self.scratch.root, self.scratch.type = root.r0, self.type
        self.node = self.scratch.add_node(self.scratch.root, 0)  # its children are open to both
        self.scratch.type = self.type
        self.inner = self.scratch.add_node(self.node, 0)


def test_nothing_that_lasts_refers_into_it_and_nothing_moves_out(local: LocalXok) -> None:
    both = Both(local)
    lasting, inner = both.lasting, both.inner
    target = element(inner, 0, 0)
    counted, naming = Sector(counts=[1] + [0] * 7), Sector(references=[target])
    error = refused(lasting, lasting.modify(inner, 0, counted), lasting.modify(lasting.root, 1, naming))
    assert "temporary" in str(error)
    # The other way round a restart would leave a count without its reference.
    target = element(lasting.root, 2, 0)
    refused(
        lasting,
        lasting.modify(lasting.root, 2, Sector(counts=[1] + [0] * 7)),
        lasting.modify(inner, 1, Sector(references=[target])),
    )
    block = both.scratch.free_block()
    held = Sector(pointers=[(block, 1, TYPE_XN_DB, 0)])
    allocation = Op(
        OpKind.ALLOC, da(inner), 2, db=block, count=1, type=TYPE_XN_DB, writes=[(2 * SECTOR, held.pack())],
        flags=OpFlag.ZERO,
    )  # fmt: skip
    lasting.transact(allocation)
    refused(lasting, lasting.modify(inner, 2, Sector()), lasting.modify(lasting.root, 3, held))


def test_types_survive(local: LocalXok) -> None:
    env = local.environment()
    env.call("install_mount", DEV, 0, 1, TYPE_XN_DB | TEMPORARY_ROOT, data=b"raw")
    with pytest.raises(WrongType):
        env.call("type_import", DEV, data=b"raw")
    env.call("reserve_type", DEV, data=b"later")
    with pytest.raises(WrongType):
        env.call("install_mount", DEV, 0, 1, TYPE_XN_DB | TEMPORARY_ROOT, data=b"later")
