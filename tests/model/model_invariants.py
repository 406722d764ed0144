"""What must hold of an exokernel at rest after every call, whatever the call was.

It is said here a second time, from docs/xn.md: who owns what is read from the bytes of metadata (the toy file system's
format, parsed by the tests), not from the kernel's UDFs, and who may read from a table that the test keeps.

MODEL-1  No block is owned twice; nothing owned is marked free; free, waiting and owned blocks add up to the disk.
MODEL-2  What is in core has one page, of its owner's tree, and nobody else's; what is in quarantine nobody may read.
MODEL-3  Nobody can READB, PIN, LOCK, or map the chunk of, a block of a tree for which he holds no READ capability.
MODEL-4  All that is held (pages, pins, locks) is held by environments that are alive, and adds up.
MODEL-5  The tables that libOSes see say what is so.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from toy import DEV, Sector, da

from xok_host.abi.calls import CatalogueEntry
from xok_host.abi.calltable import BY_NAME
from xok_host.abi.channel import Entry
from xok_host.abi.types import BLOCK, CHUNK_PAGES, SECTOR, TYPE_XN_DB, Flag, Right
from xok_host.kernel.local import LocalEnvironment, LocalXok
from xok_host.kernel.xn.registry import NO_PAGE


def contents(local: LocalXok, db: int) -> bytes:
    """The block as it is: in core, or else on the disk."""
    entry = local.kernel.devices[DEV].get(db)
    if entry is not None and entry.flags & Flag.VALID:
        return bytes(local.page_bytes(entry.page))
    return local.disk.read_block(db)


def owners(local: LocalXok, node_type: int) -> dict[int, tuple[int, int]]:
    """Block to (tree capability, type) of everything in a root's or type's extent, or owned below.  MODEL-1."""
    device = local.kernel.devices[DEV]
    found: dict[int, tuple[int, int]] = {}
    for entry in device.catalogue.entries():
        if entry.kind == CatalogueEntry.RESERVED:
            continue
        kind = entry.type if entry.kind == CatalogueEntry.ROOT else TYPE_XN_DB
        waiting = [(entry.db, entry.count, kind)]
        while waiting:
            first, count, kind = waiting.pop()
            for db in range(first, first + count):
                assert db not in found, f"block {db} is owned twice"
                found[db] = (entry.capability, kind)
                if kind == node_type:
                    raw = contents(local, db)
                    for at in range(0, BLOCK, SECTOR):
                        waiting += [pointer[:3] for pointer in Sector.unpack(raw[at : at + SECTOR]).pointers]
    return found


def check_blocks(local: LocalXok, node_type: int) -> dict[int, tuple[int, int]]:
    """MODEL-1 and MODEL-2."""
    device = local.kernel.devices[DEV]
    owned = owners(local, node_type)
    bits = int.from_bytes(local.tables.freemaps[DEV][: (device.nblocks + 7) // 8], "little")
    for db in owned:
        assert bits >> db & 1, f"block {db} is owned, and marked free"
    used = (bits & (1 << device.nblocks) - 1).bit_count()
    assert device.freemap.free == device.nblocks - used, "the number of free blocks is not what the map says"
    reserved = device.superblock.first + 1  # the second superblock is the last block
    assert used == reserved + len(owned) + device.waiting_frees, (used, reserved, len(owned), device.waiting_frees)
    pages = Counter[int]()
    for entry in device.entries():
        assert entry.access is not None
        if entry.flags & Flag.QUARANTINE:
            assert not entry.access.read and not entry.access.write, f"block {entry.db} is in quarantine, and readable"
            assert entry.xtype is None
        else:
            assert entry.db in owned, f"block {entry.db} is in core and nobody's"
            tree, kind = owned[entry.db]
            assert entry.type == kind, f"block {entry.db} is of type {entry.type}, and owned as {kind}"
            assert set(entry.access.read) == set(entry.access.write) == {tree}, f"block {entry.db} is a stranger's"
        if entry.page != NO_PAGE:
            pages[entry.page] += 1
            arena = local.kernel.pages.arena_of(entry.page)
            assert arena.access is entry.access, f"the page of block {entry.db} is in an arena of others"
            assert entry.writer == arena.writer
    assert all(count == 1 for count in pages.values()), "two blocks share a page"
    check_holdings(local, set(pages))
    return owned


def check_holdings(local: LocalXok, in_core: set[int]) -> None:
    """MODEL-4, when no request is on its way."""
    kernel = local.kernel
    held = set(in_core)
    pins = Counter[int]()
    for env in kernel.environments.values():
        assert env.alive and kernel.environments[env.id] is env
        assert not held.intersection(env.pages), "an unpublished page is a block's, or two environments'"
        held.update(env.pages)
        assert sum(count for count, _ in env.pinned.values()) == env.npins
        for page, (count, _) in env.pinned.items():
            pins[page] += count
        for entry in env.locks:
            assert env in entry.lock_holders or any(waiter.env is env for waiter in entry.lock_queue)
    if not local.held:
        assert kernel.pages.in_use == len(held | set(pins)), "pages are held by nobody who is alive"
    for entry in kernel.registry.cached.values():
        if entry.page != NO_PAGE:
            assert entry.pins == pins[entry.page], (
                f"block {entry.db} has {entry.pins} pins, held are {pins[entry.page]}"
            )
        for env in entry.lock_holders:
            assert env.alive and entry in env.locks, f"block {entry.db} is locked by the dead"
        modes = list(entry.lock_holders.values()) if entry.lock_holders else []
        assert entry.lock == (0xFFFF_FFFF if 2 in modes else len(modes))
        assert 2 not in modes or len(modes) == 1, f"block {entry.db} has an exclusive lock among others"
        if entry.writer:
            assert entry.writer in kernel.environments, f"block {entry.db} is written by the dead"


def execute(local: LocalXok, env: LocalEnvironment, name: str, *scalars: int, cap: int = 0, room: int = 0) -> Any:
    """A look that leaves no completion behind."""
    a0, a1, a2, a3 = (*scalars, 0, 0, 0, 0)[:4]
    entry = Entry(BY_NAME[name].number, 0, cap, 1 << 62, a0, a1, a2, a3, b"", 0, room)
    return local.kernel.execute(env.kernel_env, entry)


def trees_of(env: LocalEnvironment, right: Right) -> dict[int, int]:
    """Capability index to tree, of what it was given."""
    return {held.index: held.id for held in env.caps if held.kind == "tree" and held.rights & right}


def check_strangers(local: LocalXok, env: LocalEnvironment, owned: dict[int, tuple[int, int]]) -> None:
    """MODEL-3, for one environment."""
    device = local.kernel.devices[DEV]
    readable = trees_of(env, Right.READ)
    writeable = trees_of(env, Right.WRITE)
    for entry in device.entries():
        tree = owned[entry.db][0] if entry.db in owned and not entry.flags & Flag.QUARANTINE else None
        for cap in (*sorted({held.index for held in env.caps}), 0, 77):
            may = tree is not None and readable.get(cap) == tree and entry.flags & Flag.VALID != 0
            done = execute(local, env, "readb", da(entry.db), 16, cap=cap, room=16)
            assert (done.code == 0) == may, f"readb of block {entry.db} with capability {cap}: {done}"
            done = execute(local, env, "pin", da(entry.db), entry.generation, cap=cap)
            assert (done.code == 0) == may, f"pin of block {entry.db} with capability {cap}: {done}"
            if not done.code:
                assert not execute(local, env, "unpin", done.r0).code
            if not may:
                assert execute(local, env, "get_nowns", da(entry.db), cap=cap).code
                assert execute(local, env, "udf_enum", da(entry.db), 0, 1, cap=cap).code
                assert execute(local, env, "get_refcnt", da(entry.db), cap=cap).code
                assert execute(local, env, "lock", da(entry.db), 1, cap=cap).code
            if tree is None or writeable.get(cap) != tree:
                assert execute(local, env, "lock", da(entry.db), 2, cap=cap).code
    inside = set(readable.values())
    for number in range(len(local.memory.chunks)):
        done = execute(local, env, "chunk_map", number)
        if done.code:
            continue
        for entry in device.entries():
            if entry.page // CHUNK_PAGES == number and entry.page != NO_PAGE:
                assert entry.db in owned and not entry.flags & Flag.QUARANTINE
                assert owned[entry.db][0] in inside, f"chunk {number} shows block {entry.db} to a stranger"
                assert not done.r0 or not entry.flags & Flag.META, f"chunk {number} lets block {entry.db} be forged"
        for other in local.kernel.environments.values():
            if other is not env.kernel_env and done.r0:
                assert not any(page // CHUNK_PAGES == number for page in other.pages), "another's unpublished page"


def check_tables(local: LocalXok, env: LocalEnvironment) -> None:
    """MODEL-5: the view that a libOS maps says what XN works with."""
    device = local.kernel.devices[DEV]
    assert env.registry.in_use() == len(local.kernel.registry.cached)
    for entry in device.entries():
        seen = env.registry.lookup(entry.key)
        assert seen is not None, f"block {entry.db} is in core, and not in the table"
        said = (
            seen.page,
            seen.generation,
            seen.type,
            seen.flags | Flag.ATTACHED,
            seen.dirty,
            seen.pins,
            seen.lock,
            seen.writer,
        )
        assert said == (
            entry.page,
            entry.generation,
            entry.type,
            entry.flags | Flag.ATTACHED,
            entry.dirty,
            entry.pins,
            entry.lock,
            entry.writer,
        ), entry


def state(local: LocalXok) -> Any:
    """All that a refused call must leave as it was (KERNEL-2)."""
    kernel, device = local.kernel, local.kernel.devices[DEV]
    return (
        {entry.db: tuple(_state_of(local, entry)) for entry in device.entries()},
        tuple(device.catalogue.entries()),
        zlib.crc32(local.tables.freemaps[DEV]),
        device.waiting_frees,
        tuple(sorted(device.types)),
        {
            env.id: (
                tuple(env.capabilities),
                frozenset(env.pages),
                tuple(sorted((page, held[0]) for page, held in env.pinned.items())),
                env.npins,
                env.pending,
                frozenset(entry.db for entry in env.locks),
            )
            for env in kernel.environments.values()
        },
        kernel.pages.in_use,
        {kind: xtype.cached for kind, xtype in device.types.items()},
    )


def _state_of(local: LocalXok, entry: Any) -> Iterator[Any]:
    # ATTACHED is remembered when it is first asked for: it says nothing that was not so before.
    yield from (
        entry.page,
        entry.generation,
        entry.type,
        entry.flags & ~int(Flag.ATTACHED),
        entry.dirty,
        entry.in_flight,
    )
    yield from (entry.written, entry.durable, entry.pins, entry.writer, entry.total_taint, entry.lock)
    yield tuple(entry.taint)
    yield entry.parent_da
    yield zlib.crc32(local.page_bytes(entry.page)) if entry.page != NO_PAGE else 0
