"""A set of page numbers that come and go in runs: a byte for each page of a chunk that has some in it.

PAGESET-1  What it costs to add, take out or ask for a run does not grow with the pages in the set.
"""

from __future__ import annotations

from collections.abc import Iterator

import cython

from xok_host.abi.types import CHUNK_PAGES

_CHUNK = cython.declare(cython.ulonglong, CHUNK_PAGES)


class PageSet:
    """Pages, each at most once.  A run is (first page, count) and may reach over several chunks."""

    __slots__ = ("_chunks", "_count")

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}
        """Chunk to 1 for each of its pages that is in the set; no chunk without any."""
        self._count = 0

    def add(self, first: cython.ulonglong, count: cython.ulonglong) -> None:
        """Pages that are not in it yet."""
        self._count += count
        while count:
            slot: cython.ulonglong = first % _CHUNK
            here: cython.ulonglong = min(count, _CHUNK - slot)
            marks = self._chunks.get(first // _CHUNK)
            if marks is None:
                marks = self._chunks[first // _CHUNK] = bytearray(CHUNK_PAGES)
            marks[slot : slot + here] = b"\1" * here
            first += here
            count -= here

    def remove(self, first: cython.ulonglong, count: cython.ulonglong) -> None:
        """Pages that are in it."""
        self._count -= count
        while count:
            slot: cython.ulonglong = first % _CHUNK
            here: cython.ulonglong = min(count, _CHUNK - slot)
            marks = self._chunks[first // _CHUNK]
            marks[slot : slot + here] = bytes(here)
            if marks.find(1) < 0:
                del self._chunks[first // _CHUNK]
            first += here
            count -= here

    def holds(self, first: cython.ulonglong, count: cython.ulonglong) -> cython.bint:
        """Whether all of them are in it."""
        while count:
            slot: cython.ulonglong = first % _CHUNK
            here: cython.ulonglong = min(count, _CHUNK - slot)
            marks = self._chunks.get(first // _CHUNK)
            if marks is None or marks.find(0, slot, slot + here) >= 0:
                return False
            first += here
            count -= here
        return True

    def clear(self) -> None:
        self._chunks.clear()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, page: int) -> bool:
        return self.holds(page, 1)

    def __iter__(self) -> Iterator[int]:
        for chunk, marks in sorted(self._chunks.items()):
            for slot in range(CHUNK_PAGES):
                if marks[slot]:
                    yield chunk * CHUNK_PAGES + slot
