"""CH-5: the other side never sees an index that was not stored."""

from __future__ import annotations

import mmap
import os

import pytest

from xok_host.abi import channel, pktring
from xok_host.abi.channel import CQ_TAIL, RING_BYTES, KernelRing

TURNS = 400_000


@pytest.mark.parametrize("kind", ["call ring", "packet ring"])
def test_an_index_is_stored_whole(kind: str) -> None:
    """A process counts an index up; this one reads it and never sees it fall, or zero."""
    memory = mmap.mmap(-1, max(RING_BYTES, pktring.RING_BYTES))
    view = memoryview(memory)
    if kind == "call ring":
        ring = KernelRing(view)
        store, load = ring._store, ring._load
    else:
        packets = pktring.RingMemory(view)
        store, load = packets.store, packets.load
    store(CQ_TAIL, 1)
    child = os.fork()
    if child == 0:
        for value in range(1, TURNS):
            store(CQ_TAIL, value)
        os._exit(0)
    last, wrong = 0, 0
    while last < TURNS - 1:
        seen = load(CQ_TAIL)
        wrong += seen < last
        last = max(seen, last)
        if os.waitpid(child, os.WNOHANG)[0]:
            break
    assert not wrong
    assert channel.RING_BYTES % 4 == 0
