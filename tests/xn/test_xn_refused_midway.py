"""Calls that bring in several blocks and are refused in the middle: what is in core by then is nobody's, and goes."""

from __future__ import annotations

import pytest

from xok_host.abi import errors as e
from xok_host.abi.calls import pack_extents
from xok_host.abi.types import CHUNK_PAGES, TYPE_XN_DB
from xok_host.kernel.local import DEV, LocalEnvironment, LocalXok

ENTRIES = 32
BLOCKS = 40


def nobodys(local: LocalXok, env: LocalEnvironment) -> None:
    """All that is in core can be evicted, and is charged to nobody; another environment has all the room."""
    cached = list(local.kernel.registry.cached.values())
    assert cached
    assert all(entry.evictable() and not entry.pins and entry.charged is None for entry in cached)
    assert not env.kernel_env.pinned and not env.kernel_env.unsettled and not env.kernel_env.pages
    other = local.environment()
    for first in (300, 400, 500):
        found = other.call("read_and_insert", DEV, data=pack_extents([(first, ENTRIES, 0)])).r0
        assert found == ENTRIES
        assert all(other.registry.lookup(DEV << 44 | db) for db in range(first, first + ENTRIES))
    pages = local.kernel.pages
    assert pages.in_use == len(local.kernel.registry.cached)
    assert sum(pages.chunk(number).held for number in range(pages.total // CHUNK_PAGES)) == pages.in_use  # type: ignore[union-attr]


def test_a_prefetch_of_more_than_there_is_room_for() -> None:
    local = LocalXok(nblocks=1024, entries=ENTRIES)
    env = local.environment()
    with pytest.raises(e.LimitReached):
        env.call("read_and_insert", DEV, data=pack_extents([(200, BLOCKS, 0)]))
    assert len(local.kernel.registry.cached) == ENTRIES
    nobodys(local, env)


def test_a_root_of_more_blocks_than_there_is_room_for() -> None:
    local = LocalXok(nblocks=1024)
    env = local.environment()
    env.call("install_mount", DEV, 0, BLOCKS, TYPE_XN_DB, data=b"wide")
    env.close()
    local.stop()
    local = LocalXok(disk=local.disk, format=False, entries=ENTRIES)
    env = local.environment(roots=["wide"])
    with pytest.raises(e.LimitReached):
        env.call("mount", DEV, cap=env.caps[0].index, data=b"wide", out_bytes=256)
    assert len(local.kernel.registry.cached) == ENTRIES
    assert local.kernel.device(DEV).types[TYPE_XN_DB].cached == ENTRIES
    nobodys(local, env)
    assert local.kernel.device(DEV).types[TYPE_XN_DB].cached == 0
    local.stop()


@pytest.mark.parametrize("errno", [5, 19])
def test_a_read_that_fails_in_the_middle(errno: int) -> None:
    local = LocalXok(nblocks=1024, entries=ENTRIES)
    env = local.environment()
    local.disk.fail = lambda request: errno if request.sector <= 210 * 8 < request.sector + request.sectors else 0
    with pytest.raises(e.MediaError):
        env.call("read_and_insert", DEV, data=pack_extents([(200, 20, 0)]))
    local.disk.fail = lambda request: 0
    found = {entry.db for entry in local.kernel.registry.cached.values()}
    assert 210 not in found
    env.call("read_and_insert", DEV, data=pack_extents([(200, 20, 0)]))
    nobodys(local, env)
