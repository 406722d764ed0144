"""Every failure that the call table names, triggered: one trigger for each (call, error).

A trigger sets the scene and makes the call; the call it is for must be refused with exactly that error.  A row that
names an error without a trigger here fails the tests.  (That calls fail with nothing else is seen by conftest.py.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from journal import Journal, moody, silent
from toy import (
    DEV,
    POINTER,
    Sector,
    Toy,
    access,
    da,
    element,
    guard,
    install_type,
    take_pages,
    template,
)
from tracedkit import Tree, based, choosy

from xok_host.abi import errors as e
from xok_host.abi.calls import CallNumber, Op, OpKind, pack_extents, pack_transaction
from xok_host.abi.calltable import BY_NAME, CALLS, COMMON
from xok_host.abi.channel import Entry
from xok_host.abi.ops import (
    Extent,
    Part,
    add_edge,
    alloc,
    drop_edge,
    free,
    move,
    set_type,
    swap,
    writeb,
)
from xok_host.abi.template import Template
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB, Flag, LockMode, Right, disk_address
from xok_host.abi.udf import META, NEW, Function, load
from xok_host.kernel.capability import ADDRESS, TREE, Capability
from xok_host.kernel.env import MAX_LOCKS, MAX_PENDING, MAX_PINS
from xok_host.kernel.local import LocalXok
from xok_host.kernel.request import IoOp
from xok_host.kernel.xn.catalogue import FLAG_TAINTED, MAX_NAMES_OF_USER
from xok_host.kernel.xn.patching import MAX_PATCHED, Patching
from xok_host.kernel.xn.reboot import MAX_VERSIONS

Trigger = Callable[[Toy], object]
TRIGGERS: dict[tuple[str, type[e.XokError]], Trigger] = {}

NOWHERE = 9
"""No device has this number."""


def trigger(name: str, error: type[e.XokError]) -> Callable[[Trigger], Trigger]:
    def note(function: Trigger) -> Trigger:
        assert (name, error) not in TRIGGERS, f"{name} has two triggers for {error.__name__}"
        TRIGGERS[name, error] = function
        return function

    return note


def simply(name: str, error: type[e.XokError], *scalars: int, data: bytes = b"", cap: int | None = None) -> None:
    """A call that is refused whatever the state is."""
    trigger(name, error)(
        lambda toy: toy.env.call(name, *scalars, data=data, cap=toy.cap if cap is None else cap, out_bytes=1 << 16)
    )


# ---- patch programs


def patching(toy: Toy) -> Patching:
    """A session on the tree, as a host that has stopped the disk begins one."""
    toy.local.sync()
    report = toy.local._reconstruct("toy", {})
    session = toy.local.patching.session = Patching(report, "toy", toy.local.disk.read_block)
    return session


def unreadable(db: int) -> bytes:
    raise e.MediaError(f"block {db}")


simply("read_errors", e.NotFound, DEV, data=b"nothing")
simply("read_errors", e.BadCall, DEV, data=b"")
simply("patch_read", e.NotAllowed, da(1))
simply("patch_write", e.NotAllowed, da(1), data=b"x")


@trigger("read_errors", e.BadCapability)
def _(toy: Toy) -> None:
    toy.env.call("read_errors", DEV, data=b"toy", cap=99)


@trigger("patch_read", e.BadCapability)
def _(toy: Toy) -> None:
    patching(toy)
    toy.env.call("patch_read", da(toy.root), cap=99, out_bytes=BLOCK)


@trigger("patch_write", e.BadCapability)
def _(toy: Toy) -> None:
    patching(toy)
    reader = Capability(TREE, toy.local.kernel.devices[DEV].catalogue.find("toy").entry.capability, Right.READ, "toy")
    toy.local.environment([reader]).call("patch_write", da(toy.root), cap=1, data=b"x")


@trigger("patch_read", e.NotOwned)
def _(toy: Toy) -> None:
    data = toy.add_data(toy.root, 1, b"x")
    patching(toy)
    toy.env.call("patch_read", da(data), cap=toy.cap, out_bytes=BLOCK)


@trigger("patch_write", e.NotOwned)
def _(toy: Toy) -> None:
    patching(toy)
    toy.env.call("patch_write", da(1), cap=toy.cap, data=b"x")


@trigger("patch_read", e.BadCall)
def _(toy: Toy) -> None:
    patching(toy)
    toy.env.call("patch_read", da(toy.root), cap=toy.cap, out_bytes=BLOCK - 1)


@trigger("patch_write", e.BadCall)
def _(toy: Toy) -> None:
    patching(toy)
    toy.env.call("patch_write", da(toy.root) + BLOCK - 1, cap=toy.cap, data=b"xy")


@trigger("patch_write", e.LimitReached)
def _(toy: Toy) -> None:
    session = patching(toy)
    session.patches = {-number: b"" for number in range(1, MAX_PATCHED + 1)}
    toy.env.call("patch_write", da(toy.root), cap=toy.cap, data=b"x")


@trigger("patch_read", e.MediaError)
def _(toy: Toy) -> None:
    patching(toy)._read = unreadable
    toy.env.call("patch_read", da(toy.root), cap=toy.cap, out_bytes=BLOCK)


@trigger("patch_write", e.MediaError)
def _(toy: Toy) -> None:
    patching(toy)._read = unreadable
    toy.env.call("patch_write", da(toy.root), cap=toy.cap, data=b"x")


ROWS = [(call.name, error) for call in CALLS for error in call.fails]


@pytest.mark.parametrize(("name", "error"), ROWS, ids=lambda value: getattr(value, "__name__", value))
def test_each_failure_of_the_table(
    toy: Toy, name: str, error: type[e.XokError], refusals: list[tuple[int, int]]
) -> None:
    assert (name, error) in TRIGGERS, f"the table says that {name} fails with {error.__name__}: write a trigger"
    with pytest.raises(error) as caught:
        TRIGGERS[name, error](toy)
    assert type(caught.value) is error
    assert refusals[-1] == (BY_NAME[name].number, error.code)


def test_there_is_no_trigger_for_what_the_table_does_not_name() -> None:
    assert set(TRIGGERS) == set(ROWS)


def test_every_failure_has_a_sentence() -> None:
    assert [(call.name, error.__name__) for call in CALLS for error, why in call.fails.items() if len(why) < 10] == []


def test_what_every_call_may_fail_with(toy: Toy) -> None:
    assert set(COMMON) == {e.BadCall, e.LimitReached, e.Cancelled}
    answer = toy.local.kernel.execute(toy.env.kernel_env, Entry(9999, 0, 0, 5, 0, 0, 0, 0, b"", 0, 0))
    assert answer is not None and answer.code == e.BadCall.code
    with toy.env.batch(chain=True) as batch:
        batch.add("root", NOWHERE)
        batch.add("null")
    assert [completion.code for completion in batch.results] == [e.NotFound.code, e.Cancelled.code]
    toy.env.kernel_env.pending = MAX_PENDING
    assert toy.code("null") is e.LimitReached


# ---- scenes


def durable_root(toy: Toy) -> None:
    toy.durable(toy.root)
    toy.flush()


def counted(*, count: int = 1, **fields: list[int]) -> Sector:
    sector = Sector(**fields)  # type: ignore[arg-type]
    sector.counts[0] = count
    return sector


def fill_registry(toy: Toy, count: int = 50) -> Toy:
    """A file system on an exokernel whose registry has 64 places, `count` of them taken by blocks that cannot go."""
    small = Toy(LocalXok(4096, max_chunks=16, entries=64))
    take_places(small, count)
    return small


def take_places(small: Toy, count: int) -> None:
    """Take places of its registry for metadata that cannot go."""
    other = small.local.environment(roots=["toy"])  # no environment alone can take so many
    for env, cap, sector, part in ((small.env, small.cap, 2, 25), (other, other.caps[0].index, 3, count - 25)):
        start = small.free_block(part)
        new = Sector(pointers=[(start, part, small.type, 0)])
        op = small.modify(small.root, sector, new, OpKind.ALLOC, db=start, count=part, type=small.type)
        env.call("transact", cap=cap, data=pack_transaction([op]))


def forgotten(toy: Toy, db: int) -> None:
    """The block is durable, and not in core any more."""
    device = toy.local.kernel.devices[DEV]
    toy.local.sync()
    entry = device.get(db)
    assert entry is not None
    device.forget(entry)


def poked_root(toy: Toy, name: str, raw: bytes, at: int, contents: bytes) -> tuple[int, int]:
    """A mounted root (its block, its capability) with contents on the disk that no transaction would have allowed."""
    kind = install_type(toy.env, name, raw)
    made = toy.env.call("install_mount", DEV, 0, 1, kind, data=f"{name}-root".encode())
    forgotten(toy, made.r0)
    place = made.r0 * BLOCK + at
    for disk in (toy.local.disk.data, toy.local.disk.durable):
        disk[place : place + len(contents)] = contents
    toy.env.call("mount", DEV, cap=made.r1, data=f"{name}-root".encode(), out_bytes=256)
    return made.r0, made.r1


def confused_root(toy: Toy) -> tuple[int, int]:
    """Its partition 1 says that it owns block 300 twice."""
    twice = POINTER.pack(300, 1, TYPE_XN_DB, 0) * 2
    return poked_root(toy, "confused", template("confused"), SECTOR, twice)


def stranger_locks(toy: Toy, db: int) -> None:
    stranger = toy.local.environment(roots=["toy"])
    stranger.call("lock", da(db), LockMode.EXCLUSIVE, cap=stranger.caps[0].index)


def strict_root(toy: Toy) -> tuple[int, int]:
    """Its acl approves only what raises a sector's first byte."""
    f = Function()
    with f.if_(load(NEW + f.part * SECTOR, 1) > load(META + f.part * SECTOR, 1)):
        f.return_(1)
    f.return_(0)
    nothing = Function()
    nothing.return_(0)
    raw = Template(
        name=b"strict", parts=SECTORS, access=access(), owns=nothing.finish(), guard=guard(), acl=f.finish()
    ).pack()
    kind = install_type(toy.env, "strict", raw)
    made = toy.env.call("install_mount", DEV, 0, 1, kind, data=b"strict-root")
    return made.r0, made.r1


# ---- devices and names

ONE = pack_extents([(300, 1, 0)])
for _name, _scalars, _data in (
    ("install_mount", (0, 1, TYPE_XN_DB), b"name"),
    ("type_import", (), b"name"),
    ("reserve_type", (), b"name"),
    ("mount", (), b"name"),
    ("type_mount", (), b"name"),
    ("uninstall_mount", (), b"name"),
    ("read_and_insert", (), ONE),
    ("delete_attr", (), ONE),
    ("writeback", (300, 1, 0), b""),
    ("writebackv", (), ONE),
    ("flush", (), b""),
    ("mark_dirty", (), ONE),
    ("read_catalogue", (), b""),
    ("info", (), b""),
    ("findfree", (0, 1), b""),
    ("list_writeable", (), b""),
    ("root", (), b""),
):
    simply(_name, e.NotFound, NOWHERE, *_scalars, data=_data)
    if _data == b"name":
        simply(_name, e.BadCall, DEV, *_scalars, data=b"")
    if _data == ONE:
        simply(_name, e.BadCall, DEV, data=b"short")
for _name, _scalars, _data in (
    ("pin", (0,), b""),
    ("insert_attr", (), ONE),
    ("insert_and_read", (), ONE),
    ("readb", (1,), b""),
    ("read_attr", (), b""),
    ("get_refcnt", (), b""),
    ("get_nowns", (), b""),
    ("udf_enum", (0, 1), b""),
    ("lock", (1,), b""),
    ("unlock", (1,), b""),
    ("writeb", (), b"x"),
):
    simply(_name, e.NotFound, disk_address(NOWHERE, 20), *_scalars, data=_data)
    if _name != "unlock":
        simply(_name, e.NotInCore, da(400), *_scalars, data=_data)
    if _name not in ("read_attr", "unlock"):
        trigger(_name, e.BadCapability)(
            lambda toy, n=_name, s=_scalars, d=_data: toy.env.call(n, da(toy.root), *s, data=d, cap=0)
        )

# ---- pages

simply("page_alloc", e.BadCall, 0)
simply("page_alloc", e.BadCapability, 1, cap=99)
simply("page_free", e.BadCall, data=b"abc")
simply("page_free", e.BadCapability, data=struct.pack("<Q", 1 << 40))
simply("chunk_map", e.NotFound, 5000)
simply("unpin", e.NotFound, 1)


@trigger("page_alloc", e.LimitReached)
def _(toy: Toy) -> None:
    for _ in range(9):
        take_pages(toy.env, toy.cap, 1024)


@trigger("chunk_map", e.BadCapability)
def _(toy: Toy) -> None:
    toy.local.environment().call("chunk_map", toy.entry(toy.root).page // 1024)


@trigger("pin", e.LimitReached)
def _(toy: Toy) -> None:
    toy.env.kernel_env.npins = MAX_PINS
    toy.env.call("pin", da(toy.root), toy.entry(toy.root).generation, cap=toy.cap)


# ---- types and roots

simply("install_mount", e.Exists, DEV, 0, 1, TYPE_XN_DB, data=b"toy")
simply("install_mount", e.WrongType, DEV, 0, 1, 999, data=b"new")
simply("reserve_type", e.Exists, DEV, data=b"toy")
simply("type_import", e.WrongType, DEV, data=b"toy")
simply("mount", e.BadCapability, DEV, data=b"toy", cap=0)
simply("uninstall_mount", e.BadCapability, DEV, data=b"toy", cap=0)


@trigger("install_mount", e.NotFree)
def _(toy: Toy) -> None:
    toy.env.call("install_mount", DEV, toy.root, 1, TYPE_XN_DB, data=b"new")


@trigger("install_mount", e.NoSpace)
def _(toy: Toy) -> None:
    for number in range(3):
        toy.env.call("install_mount", DEV, 0, 256, TYPE_XN_DB, data=b"%d" % number)


@trigger("install_mount", e.UdfFailed)
def _(toy: Toy) -> None:
    kind = install_type(toy.env, "choosy", choosy(300).pack())
    toy.env.call("install_mount", DEV, 300, 1, kind, data=b"new")


@trigger("install_mount", e.LimitReached)
def _(toy: Toy) -> None:
    small = fill_registry(toy)
    small.env.call("install_mount", DEV, 0, 60, TYPE_XN_DB, data=b"new")


@trigger("reserve_type", e.NoSpace)
def _(toy: Toy) -> None:
    for number in range(257):
        toy.env.call("reserve_type", DEV, data=b"type %d" % number)


@trigger("reserve_type", e.LimitReached)
def _(toy: Toy) -> None:
    env = toy.local.environment(uid=1000)
    for number in range(MAX_NAMES_OF_USER + 1):
        env.call("reserve_type", DEV, data=b"type %d" % number)


def raw_root(toy: Toy) -> tuple[int, int]:
    made = toy.env.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"raw")
    return made.r0, made.r1


@trigger("type_import", e.BadCapability)
def _(toy: Toy) -> None:
    raw_root(toy)
    toy.local.environment().call("type_import", DEV, data=b"raw")


@trigger("type_import", e.NotInCore)
def _(toy: Toy) -> None:
    block, _ = raw_root(toy)
    forgotten(toy, block)
    toy.env.call("type_import", DEV, data=b"raw")


@trigger("type_import", e.Tainted)
def _(toy: Toy) -> None:
    raw_root(toy)
    toy.env.call("type_import", DEV, data=b"raw")


@trigger("type_import", e.TypeInvalid)
def _(toy: Toy) -> None:
    toy.durable(raw_root(toy)[0])
    toy.env.call("type_import", DEV, data=b"raw")


def mount(toy: Toy) -> None:
    toy.env.call("mount", DEV, cap=toy.cap, data=b"toy", out_bytes=256)


@trigger("mount", e.NotClean)
def _(toy: Toy) -> None:
    toy.local.kernel.devices[DEV].catalogue.change("toy", flags=FLAG_TAINTED)
    mount(toy)


@trigger("mount", e.WrongType)
def _(toy: Toy) -> None:
    del toy.local.kernel.devices[DEV].types[toy.type]
    mount(toy)


@trigger("mount", e.InUse)
def _(toy: Toy) -> None:
    forgotten(toy, toy.root)
    toy.local.hold_io = True
    toy.env.submit("read_and_insert", DEV, data=pack_extents([(toy.root, 1, 0)]))
    mount(toy)


def reads_fail(toy: Toy) -> None:
    toy.local.disk.fail = lambda request: 5 if request.op == IoOp.READ else 0


@trigger("mount", e.MediaError)
def _(toy: Toy) -> None:
    forgotten(toy, toy.root)
    reads_fail(toy)
    mount(toy)


@trigger("type_mount", e.MediaError)
def _(toy: Toy) -> None:
    del toy.local.kernel.devices[DEV].types[toy.type]
    reads_fail(toy)
    toy.env.call("type_mount", DEV, data=b"toy-node")


@trigger("type_mount", e.TypeInvalid)
def _(toy: Toy) -> None:
    device = toy.local.kernel.devices[DEV]
    del device.types[toy.type]
    at = device.catalogue.find("toy-node").entry.db * BLOCK
    toy.local.disk.data[at : at + BLOCK] = b"?" * BLOCK
    toy.env.call("type_mount", DEV, data=b"toy-node")


@trigger("uninstall_mount", e.UdfFailed)
def _(toy: Toy) -> None:
    _, cap = confused_root(toy)
    toy.env.call("uninstall_mount", DEV, cap=cap, data=b"confused-root")


@trigger("uninstall_mount", e.InUse)
def _(toy: Toy) -> None:
    toy.add_data(toy.root, 1, b"x")
    toy.env.call("uninstall_mount", DEV, cap=toy.cap, data=b"toy")


# ---- the buffer cache


@trigger("read_and_insert", e.LimitReached)
def _(toy: Toy) -> None:
    small = fill_registry(toy)
    small.env.call("read_and_insert", DEV, data=pack_extents([(2000, 60, 0)]))


@trigger("read_and_insert", e.MediaError)
def _(toy: Toy) -> None:
    reads_fail(toy)
    toy.env.call("read_and_insert", DEV, data=ONE)


def binding(name: str) -> None:
    trigger(name, e.BadCall)(lambda toy: bind(toy, toy.root, b"short"))
    trigger(name, e.WrongType)(lambda toy: bind(toy, toy.add_data(toy.root, 1, b"x"), ONE))
    trigger(name, e.BogusPartition)(lambda toy: bind(toy, toy.root, pack_extents([(300, 1, 99)])))
    trigger(name, e.NotOwned)(lambda toy: bind(toy, toy.root, pack_extents([(300, 1, 1)])))

    def bind(toy: Toy, parent: int, extents: bytes, cap: int = 0) -> None:
        toy.env.call(name, da(parent), cap=cap or toy.cap, data=extents)

    @trigger(name, e.UdfFailed)
    def _(toy: Toy) -> None:
        root, cap = confused_root(toy)
        bind(toy, root, pack_extents([(300, 1, 1)]), cap)


binding("insert_attr")
binding("insert_and_read")


@trigger("insert_and_read", e.MediaError)
def _(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    forgotten(toy, block)
    reads_fail(toy)
    toy.env.call("insert_and_read", da(toy.root), cap=toy.cap, data=pack_extents([(block, 1, 1)]))


def no_place_left(small: Toy) -> None:
    """The registry's 64 places are taken by blocks that cannot go."""
    take_places(small, 64 - len(small.local.kernel.registry.cached))


@trigger("mount", e.LimitReached)
def _(toy: Toy) -> None:
    small = Toy(LocalXok(4096, max_chunks=16, entries=64))
    made = small.env.call("install_mount", DEV, 0, 1, small.type, data=b"other")
    forgotten(small, made.r0)
    no_place_left(small)
    kind = small.local.kernel.devices[DEV].types[small.type]
    before = kind.cached, small.local.kernel.pages.in_use
    try:
        small.env.call("mount", DEV, cap=made.r1, data=b"other", out_bytes=256)
    finally:
        assert (kind.cached, small.local.kernel.pages.in_use) == before  # KERNEL-2


@trigger("insert_and_read", e.LimitReached)
def _(toy: Toy) -> None:
    small = Toy(LocalXok(4096, max_chunks=16, entries=64))
    block = small.add_data(small.root, 1, b"x")
    forgotten(small, block)
    no_place_left(small)
    small.env.call("insert_and_read", da(small.root), cap=small.cap, data=pack_extents([(block, 1, 1)]))


@trigger("delete_attr", e.InUse)
def _(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    toy.env.call("delete_attr", DEV, data=pack_extents([(block, 1, 0)]))


def tainted(toy: Toy) -> None:
    durable_root(toy)
    toy.add_data(toy.root, 1, b"x")


def writes_fail(toy: Toy) -> None:
    toy.local.disk.fail = lambda request: 0 if request.op == IoOp.READ else 5


simply("writeback", e.BadCall, DEV, 300, 0)
simply("writeback", e.NotInCore, DEV, 400, 1)
simply("writebackv", e.NotInCore, DEV, data=pack_extents([(400, 1, 0)]))


@trigger("writeback", e.Tainted)
def _(toy: Toy) -> None:
    tainted(toy)
    toy.env.call("writeback", DEV, toy.root, 1)


@trigger("writeback", e.MediaError)
def _(toy: Toy) -> None:
    writes_fail(toy)
    toy.env.call("writeback", DEV, toy.root, 1)


@trigger("writebackv", e.Tainted)
def _(toy: Toy) -> None:
    tainted(toy)
    toy.env.call("writebackv", DEV, data=pack_extents([(toy.root, 1, 0)]))


@trigger("writebackv", e.MediaError)
def _(toy: Toy) -> None:
    writes_fail(toy)
    toy.env.call("writebackv", DEV, data=pack_extents([(toy.root, 1, 0)]))


def reports(toy: Toy, fault: type[e.XokError]) -> bytes:
    """A log whose write is refused with that; the extent of it."""
    odd = Template(name=b"odd", parts=SECTORS, access=access(), owns=silent(), guard=guard(), reboot=moody()).pack()
    journal = Journal(toy.local, env=toy.env, log=odd if fault is e.UdfFailed else None)
    if fault is e.UdfFailed:
        journal.transact(Op(OpKind.MODIFY, da(journal.log), 0, writes=[(0, b"\1")]))
    elif fault is e.BogusUpdate:
        journal.report((journal.root, 0, 400))
    else:
        for _ in range(MAX_VERSIONS + 1):
            journal.report((journal.root, 0, journal.add_of(journal.root, 0, TYPE_XN_DB)))
            if len(journal.records[journal.log, 0]) <= MAX_VERSIONS:
                journal.writeback(journal.log)
    return pack_extents([(journal.log, 1, 0)])


def _triggers_of_logs(fault: type[e.XokError]) -> None:
    @trigger("writeback", fault)
    def _(toy: Toy) -> None:
        toy.env.call("writeback", DEV, *struct.unpack("<QII", reports(toy, fault)))

    @trigger("writebackv", fault)
    def _(toy: Toy) -> None:
        toy.env.call("writebackv", DEV, data=reports(toy, fault))


for _fault in (e.BogusUpdate, e.UdfFailed, e.LimitReached):
    _triggers_of_logs(_fault)


@trigger("flush", e.MediaError)
def _(toy: Toy) -> None:
    writes_fail(toy)
    toy.flush()


simply("mark_dirty", e.NotInCore, DEV, data=pack_extents([(400, 1, 0)]))


@trigger("mark_dirty", e.BadCapability)
def _(toy: Toy) -> None:
    toy.env.call("mark_dirty", DEV, data=pack_extents([(toy.root, 1, 0)]))


@trigger("mark_dirty", e.LimitReached)
def _(toy: Toy) -> None:
    small = Toy(LocalXok(4096, max_chunks=16, entries=64))
    blocks = [small.add_data(small.root, 1 + number // 10, b"in place") for number in range(30)]
    small.local.sync()
    for number in range(30):
        small.add_data(small.root, 5 + number // 10, b"new")
    small.env.call("mark_dirty", DEV, data=pack_extents([(block, 1, 0) for block in blocks]))


# ---- operations (the calls that are one, and TRANSACT)


def shaped(name: str, at: int, own_id: int = 1, writes: object = ()) -> list[Op]:
    """Operations as that call takes them, on this block and partition; nothing else about them need be right."""
    part = Part(at, own_id, writes)  # type: ignore[arg-type]
    return {
        "transact": lambda: [Op(OpKind.MODIFY, at, own_id, writes=part.writes)],
        "alloc": lambda: alloc(part, Extent(300, 1, TYPE_XN_DB)),
        "free": lambda: free(part, Extent(300, 1, TYPE_XN_DB)),
        "add_edge": lambda: add_edge(part, element(20, 0, 0)),
        "set_type": lambda: set_type(part),
        "move": lambda: move(part, Part(at, 2), Extent(300, 1)),
        "swap": lambda: swap(part, Extent(300, 1), Part(at, 2), Extent(301, 1)),
    }[name]()


def write(sector: int, contents: Sector) -> list[tuple[int, bytes]]:
    return [(sector * SECTOR, contents.pack())]


def run(toy: Toy, name: str, operations: list[Op], cap: int | None = None) -> None:
    toy.env.call(name, cap=toy.cap if cap is None else cap, data=pack_transaction(operations))


def operation(name: str) -> None:
    simply(name, e.BadCall, data=b"short")
    trigger(name, e.NotFound)(lambda toy: run(toy, name, shaped(name, disk_address(NOWHERE, 20))))
    trigger(name, e.BadCapability)(lambda toy: run(toy, name, shaped(name, da(toy.root)), 0))
    trigger(name, e.NotInCore)(lambda toy: run(toy, name, shaped(name, da(400))))
    trigger(name, e.BogusPartition)(lambda toy: run(toy, name, shaped(name, da(toy.root), 99)))
    trigger(name, e.WrongType)(lambda toy: run(toy, name, shaped(name, da(toy.add_data(toy.root, 1, b"x")))))

    @trigger(name, e.Locked)
    def _(toy: Toy) -> None:
        stranger_locks(toy, toy.root)
        run(toy, name, shaped(name, da(toy.root)))

    @trigger(name, e.UdfFailed)
    def _(toy: Toy) -> None:
        twice = Sector(pointers=[(300, 1, TYPE_XN_DB, 0)] * 2)
        run(toy, name, shaped(name, da(toy.root), 1, write(1, twice)))

    @trigger(name, e.Refused)
    def _(toy: Toy) -> None:
        root, cap = strict_root(toy)
        run(toy, name, shaped(name, da(root), 1, [(SECTOR, b"\0")]), cap)

    if name not in ("alloc", "free"):
        trigger(name, e.RefcountWrong)(lambda toy: run(toy, name, shaped(name, da(toy.root), 1, write(1, counted()))))
    if name not in ("transact", "set_type"):
        trigger(name, e.BogusUpdate)(lambda toy: run(toy, name, shaped(name, da(toy.root))))
    else:
        stolen = Sector(pointers=[(300, 1, TYPE_XN_DB, 0)])
        trigger(name, e.BogusUpdate)(lambda toy: run(toy, name, shaped(name, da(toy.root), 1, write(1, stolen))))


for _name in ("transact", "alloc", "free", "add_edge", "set_type", "move", "swap"):
    operation(_name)


@trigger("alloc", e.RefcountWrong)
def _(toy: Toy) -> None:
    new = counted(pointers=[(300, 1, TYPE_XN_DB, 0)])  # type: ignore[list-item]
    run(toy, "alloc", shaped("alloc", da(toy.root), 1, write(1, new)))


@trigger("free", e.RefcountWrong)
def _(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    run(toy, "free", free(Part(da(toy.root), 1, write(1, counted())), Extent(block, 1)))


def in_use(toy: Toy) -> list[Op]:
    return alloc(Part(da(toy.root), 1), Extent(toy.root, 1, TYPE_XN_DB))


def too_many(toy: Toy) -> tuple[Toy, list[Op]]:
    big = Toy(LocalXok(8192))
    return big, alloc(Part(da(big.root), 1), Extent(300, 5000, TYPE_XN_DB))


for _name in ("transact", "alloc"):
    trigger(_name, e.NotFree)(lambda toy, n=_name: run(toy, n, in_use(toy)))
    trigger(_name, e.LimitReached)(lambda toy, n=_name: run(too_many(toy)[0], n, too_many(toy)[1]))


def waiting(toy: Toy) -> None:
    """Sector 4 of the root refers to an element in sector 3, and waits for it."""
    durable_root(toy)
    there = element(toy.root, 3, 0)
    source = Part(da(toy.root), 4, write(4, Sector(references=[there])))
    run(toy, "add_edge", add_edge(source, there, Part(da(toy.root), 3, write(3, counted()))))


def against(toy: Toy) -> list[Op]:
    """What would make sector 3 wait for sector 4."""
    there = element(toy.root, 4, 0)
    source = Part(da(toy.root), 3, write(3, counted(references=[there])))
    return add_edge(source, there, Part(da(toy.root), 4, write(4, counted(references=[element(toy.root, 3, 0)]))))


for _name in ("transact", "add_edge"):
    trigger(_name, e.WouldCycle)(lambda toy, n=_name: (waiting(toy), run(toy, n, against(toy))))


@trigger("free", e.WouldCycle)
def _(toy: Toy) -> None:
    waiting(toy)
    source = Part(da(toy.root), 4, write(4, Sector()))
    run(toy, "free", drop_edge(source, element(toy.root, 3, 0), Part(da(toy.root), 3, write(3, Sector()))))


@trigger("move", e.WouldCycle)
def _(toy: Toy) -> None:
    block = toy.add_data(toy.root, 4, b"x")
    toy.local.sync()
    old = toy.sector(toy.root, 4).pointers
    there = element(toy.root, 3, 0)
    source = Part(da(toy.root), 4, write(4, Sector(pointers=old, references=[there])))
    run(toy, "add_edge", add_edge(source, there, Part(da(toy.root), 3, write(3, counted()))))
    loser = Part(da(toy.root), 4, write(4, Sector(references=[there])))
    gainer = Part(da(toy.root), 3, write(3, counted(pointers=old)))  # type: ignore[arg-type]
    run(toy, "move", move(loser, gainer, Extent(block, 1)))


@trigger("swap", e.WouldCycle)
def _(toy: Toy) -> None:
    one, two = toy.add_data(toy.root, 1, b"1"), toy.add_data(toy.root, 2, b"2")
    run(toy, "swap", exchange(toy, one, 1, two, 2))


def exchange(toy: Toy, one: int, ones: int, other: int, others: int) -> list[Op]:
    """Blocks `one` and `other` change places between sectors of the root."""
    first, second = toy.sector(toy.root, ones), toy.sector(toy.root, others)
    first.pointers, second.pointers = second.pointers, first.pointers
    return swap(
        Part(da(toy.root), ones, write(ones, first)),
        Extent(one, 1),
        Part(da(toy.root), others, write(others, second)),
        Extent(other, 1),
    )


@trigger("writeb", e.BadCall)
def _(toy: Toy) -> None:
    toy.env.call("writeb", da(toy.root), cap=toy.cap)


@trigger("writeb", e.Locked)
def _(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    stranger_locks(toy, block)
    toy.env.call("writeb", da(block), cap=toy.cap, data=b"y")


@trigger("writeb", e.BogusPartition)
def _(toy: Toy) -> None:
    toy.env.call("writeb", da(toy.root), cap=toy.cap, data=b"y")


def half(acl: bytes | None = None) -> bytes:
    """The first half of each sector is a partition, the second is nobody's."""
    where = Function()
    where.emit(where.part * SECTOR, 256, 0)
    nothing = Function()
    nothing.return_(0)
    given = {"access": where.finish(), "owns": nothing.finish(), "guard": guard()}
    return Template(name=b"half", parts=SECTORS, **given, **({"acl": acl} if acl else {})).pack()


def half_root(toy: Toy, acl: Function | None = None) -> tuple[int, int]:
    kind = install_type(toy.env, "half", half(acl.finish() if acl else None))
    made = toy.env.call("install_mount", DEV, 0, 1, kind, data=b"half-root")
    return made.r0, made.r1


@trigger("writeb", e.Refused)
def _(toy: Toy) -> None:
    f = Function()
    f.return_(0)
    root, cap = half_root(toy, f)
    toy.env.call("writeb", da(root, 256), cap=cap, data=b"x")


@trigger("writeb", e.UdfFailed)
def _(toy: Toy) -> None:
    f = Function()
    f.return_(load(META + f.part * SECTOR, 1))  # there is no such partition, so nothing to load
    root, cap = half_root(toy, f)
    toy.env.call("writeb", da(root, 256), cap=cap, data=b"x")


# ---- reading

simply("findfree", e.BadCall, DEV, 0, 0)
simply("findfree", e.NoSpace, DEV, 0, 512)
trigger("dev_list", e.BadCall)(lambda toy: no_room(toy, "dev_list", 0))
trigger("read_attr", e.BadCall)(lambda toy: no_room(toy, "read_attr", da(toy.root)))
trigger("readb", e.BadCall)(lambda toy: toy.env.call("readb", da(toy.root), 65 * BLOCK, cap=toy.cap))


def no_room(toy: Toy, name: str, a0: int) -> None:
    entry = Entry(BY_NAME[name].number, 0, toy.cap, 5, a0, 0, 0, 0, b"", 0, 4)
    answer = toy.local.kernel.execute(toy.env.kernel_env, entry)
    assert answer is not None
    raise e.by_code(answer.code)


@trigger("get_refcnt", e.WrongType)
def _(toy: Toy) -> None:
    toy.env.call("get_refcnt", da(toy.add_data(toy.root, 1, b"x")), cap=toy.cap)


@trigger("get_refcnt", e.UdfFailed)
def _(toy: Toy) -> None:
    f = Function()
    with f.if_(load(META + f.part * SECTOR, 1) != 0):
        f.emit(f.address + f.part * SECTOR, 1, 0)
        f.emit(f.address + f.part * SECTOR, 2, 0)
    root, cap = poked_root(toy, "twice", template("twice", refcnt=f.finish()), SECTOR, b"\1")
    toy.env.call("get_refcnt", da(root, SECTOR), cap=cap)


@trigger("udf_enum", e.BogusPartition)
def _(toy: Toy) -> None:
    toy.env.call("udf_enum", da(toy.root), 0, 9, cap=toy.cap)


@trigger("udf_enum", e.UdfFailed)
def _(toy: Toy) -> None:
    root, cap = confused_root(toy)
    toy.env.call("udf_enum", da(root), 0, 8, cap=cap)


@trigger("udf_enum", e.LimitReached)
def _(toy: Toy) -> None:
    f = Function()
    many = f.var(load(META + f.part * SECTOR, 2))
    with f.for_range(0, 1000) as i, f.if_(i < many):
        f.emit(f.part * 100_000 + i * 2 + 1, 1, TYPE_XN_DB)
    full = b"".join(struct.pack("<H510x", 1000) for _ in range(SECTORS))
    root, cap = poked_root(toy, "many", template("many", owns=f.finish()), 0, full)
    toy.env.call("udf_enum", da(root), 0, 8, cap=cap, out_bytes=1 << 18)


# ---- overlapping partitions: the base of a block is changed, and those that depend on it are not named


def hidden(name: str, *kinds: OpKind) -> None:
    @trigger(name, e.DependentsMissing)
    def _(toy: Toy) -> None:
        tree = Tree.of(toy.local, based())
        block = tree.free(hint=200)
        tree.transact(
            tree.alloc(0, block, (0, struct.pack("<QH", block - 1, 1)), (10, b"\1")), tree.op(0xFFFFFFFF, (8, b"\1"))
        )
        given = {"db": block, "count": 1, "page": da(tree.root)}
        change = (0, struct.pack("<Q", block))
        ops = [tree.op(part, change, kind=kind, **given) for part, kind in enumerate(kinds, 1)]
        if OpKind.ALLOC in kinds:
            ops = [tree.alloc(1, block + 1, change)]
        tree.env.call(name, cap=tree.cap, data=pack_transaction(ops))


hidden("transact", OpKind.MODIFY)
hidden("alloc", OpKind.ALLOC)
hidden("free", OpKind.FREE)
hidden("add_edge", OpKind.ADD_EDGE)
hidden("set_type", OpKind.SET_TYPE)
hidden("move", OpKind.MODIFY, OpKind.MOVE)
hidden("swap", OpKind.MOVE, OpKind.MOVE)


@trigger("writeb", e.DependentsMissing)
def _(toy: Toy) -> None:
    tree = Tree.of(toy.local, based())
    tree.env.call("writeb", da(tree.root, 10), cap=tree.cap, data=b"x")


@trigger("writeb", e.BogusUpdate)
def _(toy: Toy) -> None:
    tree = Tree.of(toy.local, based())
    tree.env.call("writeb", da(tree.root, 8), cap=tree.cap, data=b"\1")


# ---- locks

trigger("lock", e.BadCall)(lambda toy: toy.env.call("lock", da(toy.root), 7, cap=toy.cap))


@trigger("lock", e.LimitReached)
def _(toy: Toy) -> None:
    toy.env.kernel_env.locks = set(range(MAX_LOCKS))
    toy.env.call("lock", da(toy.root), 1, cap=toy.cap)


# ---- filters: xokd's own handlers, with nothing under the table of filters


def network(toy: Toy, insert: object = None, *, up: bool = True) -> int:
    """Let the kernel serve filter calls as `System` does; the index of a capability for the address."""
    from xok_host.abi.dpf import listener
    from xok_host.host.network import Network
    from xok_host.host.system import System
    from xok_host.kernel.dpf.table import FilterTable

    class Edge:
        def insert_filter(self, table: FilterTable, slot: int, grant: int, wire: bytes) -> int:
            return table.insert(slot, grant, wire, slot)

    system = object.__new__(System)
    system.network = None
    grant = 1
    if up:
        system.network = object.__new__(Network)
        system.network.table = FilterTable()
        system.network.edge = Edge()  # type: ignore[assignment]
        system.network._holdings = {toy.env.id: None}  # type: ignore[dict-item]
        grant = system.network.table.own_address("10.0.0.2")
        system.network.table.insert(99, grant, listener("10.0.0.2", 80).pack(), 99)
    kernel = toy.local.kernel
    kernel.add_handler(CallNumber.FILTER_INSERT, system._filter_insert)
    kernel.add_handler(CallNumber.FILTER_REMOVE, system._filter_remove)
    return toy.env.kernel_env.capabilities.add(Capability(ADDRESS, grant, Right.READ | Right.WRITE))


def filter_insert(toy: Toy, address: str, port: int, *, up: bool = True) -> None:
    from xok_host.abi.dpf import listener

    toy.env.call("filter_insert", cap=network(toy, up=up), data=listener(address, port).pack())


trigger("filter_insert", e.NotAllowed)(lambda toy: filter_insert(toy, "10.0.0.2", 81, up=False))
trigger("filter_insert", e.BadCapability)(lambda toy: filter_insert(toy, "10.0.0.3", 81))
trigger("filter_insert", e.Overlap)(lambda toy: filter_insert(toy, "10.0.0.2", 80))
trigger("filter_insert", e.BadCall)(lambda toy: toy.env.call("filter_insert", cap=network(toy), data=b"nonsense"))
trigger("filter_remove", e.NotAllowed)(lambda toy: (network(toy, up=False), toy.env.call("filter_remove", 1)))
trigger("filter_remove", e.NotFound)(lambda toy: (network(toy), toy.env.call("filter_remove", 77)))


@trigger("filter_insert", e.LimitReached)
def _(toy: Toy) -> None:
    from xok_host.abi.dpf import listener

    cap = network(toy)
    for port in range(1000, 70000):
        toy.env.call("filter_insert", cap=cap, data=listener("10.0.0.2", port % 65536).pack())


# ---- what the calls do when nothing is wrong

CHAPTER_8 = (
    "install_mount type_import reserve_type mount type_mount uninstall_mount read_and_insert insert_attr delete_attr "
    "writeback writebackv writeb readb alloc free add_edge set_type read_attr read_catalogue dev_list info findfree "
    "list_writeable root get_refcnt get_nowns udf_enum"
).split()
"""The thesis's public calls, without their prefix; the privileged ones are in test_xn_privileged.py."""


def test_every_public_call_of_chapter_8_is_there(local: LocalXok) -> None:
    assert set(CHAPTER_8) <= set(BY_NAME)
    assert {BY_NAME[name].number for name in CHAPTER_8} <= set(local.kernel._handlers)


def test_a_type_is_made_by_the_four_steps_of_chapter_8(toy: Toy) -> None:
    """B.1: install, writeb, writeback (and flush), import."""
    raw = template("by hand")
    reserved = toy.env.call("reserve_type", DEV, data=b"by hand").r0
    made = toy.env.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"by hand")
    toy.env.call("writeb", da(made.r0), cap=made.r1, data=raw)
    assert toy.code("type_import", DEV, data=b"by hand") is e.Tainted
    toy.env.call("writeback", DEV, made.r0, 1)
    toy.flush()
    assert toy.env.call("type_import", DEV, data=b"by hand").r0 == reserved
    root = toy.env.call("install_mount", DEV, 0, 1, reserved, data=b"root by hand")
    assert toy.env.call("get_nowns", da(root.r0), cap=root.r1).r0 == SECTORS


def test_alloc_free_and_their_composition(toy: Toy) -> None:
    block = toy.free_block(1, 300)
    new = Sector(pointers=[(block, 1, TYPE_XN_DB, 0)])
    taken = alloc(Part(da(toy.root), 1, write(1, new)), Extent(block, 1, TYPE_XN_DB), zero=True)
    run(toy, "alloc", taken)
    assert toy.sector(toy.root, 1).pointers == new.pointers and toy.flags(block) & Flag.VALID
    moved = move(
        Part(da(toy.root), 1, write(1, Sector())), Part(da(toy.root), 2, write(2, new)), Extent(block, 1, TYPE_XN_DB)
    )
    other = toy.free_block(1, block + 1)
    third = alloc(
        Part(da(toy.root), 3, write(3, Sector(pointers=[(other, 1, toy.type, 0)]))), Extent(other, 1, toy.type)
    )
    run(toy, "transact", [*moved, *third, *writeb(da(block), b"all at once")])
    assert toy.sector(toy.root, 1).pointers == [] and toy.sector(toy.root, 2).pointers == new.pointers
    assert toy.env.call("readb", da(block), 11, cap=toy.cap).data == b"all at once"
    run(toy, "free", free(Part(da(toy.root), 2, write(2, Sector())), Extent(block, 1)))
    assert toy.entry(block) is None and toy.entry(other) is not None


def test_a_transaction_with_a_claim_that_is_not_so_changes_nothing(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"kept")
    pointers = toy.sector(toy.root, 1).pointers
    elsewhere = move(
        Part(da(toy.root), 1, write(1, Sector())),
        Part(da(toy.root), 2, write(2, Sector(pointers=pointers))),
        Extent(block + 1, 1),
    )
    with pytest.raises(e.BogusUpdate) as caught:
        run(toy, "transact", [*writeb(da(block), b"lost"), *elsewhere])
    assert caught.value.fields["r0"] == 2  # the operation at fault
    assert toy.env.call("readb", da(block), 4, cap=toy.cap).data == b"kept"
    from_another = move(
        Part(da(toy.root), 1, write(1, Sector())),
        Part(da(toy.root), 2, write(2, Sector(pointers=pointers))),
        Extent(block, 1),
    )
    from_another[1].page = da(toy.root + 1)
    with pytest.raises(e.BogusUpdate):
        run(toy, "transact", from_another)
    assert toy.sector(toy.root, 1).pointers == pointers


def test_edges_are_added_and_dropped(toy: Toy) -> None:
    node = toy.add_node(toy.root, 1)
    there = element(node, 0, 0)
    source = Part(da(toy.root), 2, write(2, Sector(references=[there])))
    run(toy, "add_edge", add_edge(source, there, Part(da(node), 0, write(0, counted()))))
    assert toy.env.call("get_refcnt", there, cap=toy.cap).r0 == 1
    second = Part(da(toy.root), 3, write(3, Sector(references=[there])))
    with pytest.raises(e.BogusUpdate):  # it forms an edge, but not that one
        claimed = add_edge(second, element(node, 0, 1), Part(da(node), 0, write(0, counted(count=2))))
        run(toy, "transact", claimed)
    run(toy, "add_edge", add_edge(second, there, Part(da(node), 0, write(0, counted(count=2)))))
    toy.local.sync()
    gone = Part(da(toy.root), 2, write(2, Sector()))
    run(toy, "free", drop_edge(gone, there, Part(da(node), 0, write(0, counted()))))
    assert toy.env.call("get_refcnt", there, cap=toy.cap).r0 == 1


def test_an_edge_and_its_count_in_one_partition(toy: Toy) -> None:
    there = element(toy.root, 2, 0)
    run(toy, "add_edge", add_edge(Part(da(toy.root), 2, write(2, counted(references=[there]))), there))
    assert toy.env.call("get_refcnt", there, cap=toy.cap).r0 == 1


def halves() -> bytes:
    """A type with two partitions a sector, each with one pointer: {block u64, count u32, type u32} at 0 and 256."""
    where = Function()
    where.emit(where.part * 256, 256, 0)
    f = Function()
    at = f.var(META + f.part * 256)
    count = f.var(load(at + 8, 4))
    with f.if_(count != 0):
        f.emit(load(at, 8), count, load(at + 12, 4))
    return Template(name=b"halves", parts=2 * SECTORS, access=where.finish(), owns=f.finish(), guard=guard()).pack()


def test_two_partitions_of_a_sector_swap(toy: Toy) -> None:
    kind = install_type(toy.env, "halves", halves())
    made = toy.env.call("install_mount", DEV, 0, 1, kind, data=b"halves-root")
    root, cap = da(made.r0), made.r1
    blocks = [toy.free_block(1, 300), toy.free_block(1, 310)]
    for part, block in enumerate(blocks):
        given = alloc(
            Part(root, part, [(part * 256, struct.pack("<QII", block, 1, TYPE_XN_DB))]),
            Extent(block, 1, TYPE_XN_DB),
            zero=True,
        )
        run(toy, "alloc", given, cap)
    ends = [Part(root, part, [(part * 256, struct.pack("<Q", blocks[1 - part]))]) for part in (0, 1)]
    run(toy, "swap", swap(ends[0], Extent(blocks[0], 1), ends[1], Extent(blocks[1], 1)), cap)
    found = [toy.env.call("udf_enum", root, part, part + 1, cap=cap).data for part in (0, 1)]
    assert [struct.unpack("<QQQ", data)[0] for data in found] == [blocks[1], blocks[0]]
    toy.local.sync()  # no sector waits for the other: they are one
    assert toy.local.kernel.devices[DEV].dirty_blocks == []


def test_writeb_reaches_over_blocks_and_readb_too(toy: Toy) -> None:
    first = toy.free_block(2, 300)
    new = Sector(pointers=[(first, 2, TYPE_XN_DB, 0)])
    run(toy, "alloc", alloc(Part(da(toy.root), 1, write(1, new)), Extent(first, 2, TYPE_XN_DB), zero=True))
    toy.durable(first, first + 1)
    before = toy.entry(first).generation
    done = toy.env.call("writeb", da(first, BLOCK - 3), cap=toy.cap, data=b"abcdef")
    assert done.r0 == 2 and toy.entry(first).generation != before
    assert toy.entry(first).dirty == 1 << 7 and toy.entry(first + 1).dirty == 1
    assert toy.env.call("readb", da(first, BLOCK - 4), 8, cap=toy.cap).data == b"\0abcdef\0"


def test_writeb_leaves_a_pinned_page_alone(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"before")
    page = toy.env.call("pin", da(block), toy.entry(block).generation, cap=toy.cap).r0
    toy.env.call("writeb", da(block), cap=toy.cap, data=b"AFTER")
    assert bytes(toy.env.page(page)[:6]) == b"before"
    assert toy.env.call("readb", da(block), 6, cap=toy.cap).data == b"AFTERe"
    toy.env.call("unpin", page)


def test_writeb_changes_what_no_udf_reads(toy: Toy) -> None:
    root, cap = half_root(toy)
    toy.env.call("writeb", da(root, 256), cap=cap, data=b"x" * 256)
    assert toy.env.call("readb", da(root, 256), 256, cap=cap, out_bytes=256).data == b"x" * 256
    with pytest.raises(e.BogusPartition):
        toy.env.call("writeb", da(root, 255), cap=cap, data=b"xx")


def test_what_writeb_and_publish_cannot_do_together(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    publish = Op(OpKind.PUBLISH, da(toy.root), 1, db=block, count=1, page=toy.page(b"y"))
    with pytest.raises(e.BadCall):
        run(toy, "transact", [publish, *writeb(da(block), b"z")])
    with pytest.raises(e.WrongType):
        run(toy, "transact", [*writeb(da(block), b"z"), Op(OpKind.MODIFY, da(block), 0)])
    with pytest.raises(e.BogusPartition):
        run(toy, "transact", [Op(OpKind.WRITEB, da(toy.root), 1, writes=[(SECTOR, b"z")])])


def test_prefetched_blocks_cannot_be_written(toy: Toy) -> None:
    toy.env.call("read_and_insert", DEV, data=ONE)
    assert toy.code("writeb", da(300), data=b"x") is e.BadCapability


def test_each_call_takes_its_own_operations(toy: Toy) -> None:
    for name in ("alloc", "free", "add_edge", "set_type", "move", "swap"):
        for other in ("alloc", "free", "add_edge", "set_type", "move", "swap", "transact"):
            if name != other:
                with pytest.raises(e.BadCall, match=f"{name} takes"):
                    run(toy, name, shaped(other, da(toy.root)))
    lopsided = swap(Part(da(toy.root), 1), Extent(300, 1), Part(da(toy.root), 2), Extent(301, 1))
    lopsided[0].page = da(400)
    with pytest.raises(e.BadCall, match="each from where the other goes"):
        run(toy, "swap", lopsided)


def test_writeback_of_nothing_in_core_writes_nothing(toy: Toy) -> None:
    before = toy.local.disk.writes
    with pytest.raises(e.NotInCore):
        toy.env.call("writebackv", DEV, data=pack_extents([(toy.root, 1, 0), (400, 1, 0)]))
    assert toy.local.disk.writes == before and toy.entry(toy.root).dirty
    assert toy.env.call("writeback", DEV, toy.root, 1, 1).r1 == 1
    assert toy.entry(toy.root).dirty == 0xFE  # only the sector asked for
