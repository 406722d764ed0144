"""xokd's side of the tables that every environment maps read-only (layouts: xok_host.abi.views)."""

from __future__ import annotations

from typing import Protocol

import cython

from xok_host.abi.views import COUNTERS, registry_bytes

REGISTRY_ENTRIES = 1 << 16
REGISTRY_BUCKETS = 1 << 16


class Tables(Protocol):
    """Preallocated shared memory, zero at first, one buffer a table."""

    registry: memoryview
    counters: memoryview

    def freemap(self, dev: int, nblocks: int) -> memoryview:
        """The free map of device `dev`, `freemap_bytes(nblocks)` long."""
        ...


def freemap_bytes(nblocks: int) -> int:
    """Bytes of the in-core bitmap, whole pages."""
    return (nblocks + 8 * 4096 - 1) // (8 * 4096) * 4096


class PlainTables:
    """Tables in plain memory."""

    def __init__(self, entries: int = REGISTRY_ENTRIES, buckets: int = REGISTRY_BUCKETS) -> None:
        self.entries = entries
        self.buckets = buckets
        self.registry = memoryview(bytearray(registry_bytes(entries, buckets)))
        self.counters = memoryview(bytearray(4096))
        self.freemaps: dict[int, memoryview] = {}

    def freemap(self, dev: int, nblocks: int) -> memoryview:
        self.freemaps[dev] = memoryview(bytearray(freemap_bytes(nblocks)))
        return self.freemaps[dev]


INDEX = {name: index for index, name in enumerate(COUNTERS)}
"""Each counter's place, for those who count at every call (`Counters.count`)."""


class Counters:
    """`counters.add("transactions")`: totals since start, in shared memory."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory[: len(COUNTERS) * 8].cast("Q")

    def add(self, name: str, count: cython.long = 1) -> None:
        index: cython.int = INDEX[name]
        self._words[index] += count

    def count(self, index: cython.int, count: cython.long) -> None:
        """As `add`, by the counter's place in `INDEX`."""
        self._words[index] += count

    def put(self, index: cython.int, value: cython.ulonglong) -> None:
        """The counter at this place in `INDEX` says this from now on."""
        self._words[index] = value

    def get(self, name: str) -> int:
        return self._words[INDEX[name]]
