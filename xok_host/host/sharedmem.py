"""Chunks and tables of the kernel in memory that environments can map (`pages.Memory`, `tables.Tables`)."""

from __future__ import annotations

from xok_host.abi.errors import LimitReached
from xok_host.abi.types import CHUNK_BYTES
from xok_host.abi.views import registry_bytes
from xok_host.host.memory import Shared, allocate
from xok_host.kernel.pages import DATA
from xok_host.kernel.tables import REGISTRY_BUCKETS, REGISTRY_ENTRIES, freemap_bytes

_COUNTER_BYTES = 4096


class SharedChunks:
    """Chunks of arenas.  Those whose contents environments write are mappable; the rest only xokd ever wrote."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._chunks: dict[int, Shared] = {}
        self._next = 0

    def new_chunk(self, writable_by: int, kind: str) -> tuple[int, memoryview]:
        if len(self._chunks) >= self.limit:
            raise LimitReached(f"{self.limit} chunks of memory are in use")
        number = self._next
        try:
            chunk = allocate(f"{kind}-{number}", CHUNK_BYTES, private=kind != DATA)
        except OSError as error:
            raise LimitReached(f"the host gives no more memory: {error.strerror}") from None
        self._chunks[number] = chunk
        self._next += 1
        return number, chunk.memory

    def retire_chunk(self, number: int) -> None:
        """Give a chunk's memory back; the kernel knows that nobody uses or maps it.  Its number does not come again."""
        self._chunks.pop(number).close()

    def descriptor(self, number: int, writable: bool) -> int:
        chunk = self._chunks[number]
        if writable and chunk.writer < 0:
            raise AssertionError(f"chunk {number} is xokd's alone to write")
        return chunk.writer if writable else chunk.reader


class SharedTables:
    """Registry, counters and free maps: xokd writes, everybody reads."""

    def __init__(self, entries: int = REGISTRY_ENTRIES, buckets: int = REGISTRY_BUCKETS) -> None:
        self.entries = entries
        self.buckets = buckets
        size = registry_bytes(entries, buckets)
        self._tables = {
            "registry": allocate("registry", size + -size % 4096, private=True),
            "counters": allocate("counters", _COUNTER_BYTES, private=True),
        }
        self.registry = self._tables["registry"].memory[:size]
        self.counters = self._tables["counters"].memory

    def freemap(self, dev: int, nblocks: int) -> memoryview:
        """A disk that was stopped and is started again has the table that it had, which environments have mapped."""
        table = self._tables.get(f"freemap{dev}")
        if table is None or table.nbytes != freemap_bytes(nblocks):
            table = self._tables[f"freemap{dev}"] = allocate(f"freemap{dev}", freemap_bytes(nblocks), private=True)
        return table.memory

    def readers(self) -> dict[str, int]:
        """Table names, as the start message has them, and their read-only descriptors."""
        return {name: table.reader for name, table in self._tables.items()}
