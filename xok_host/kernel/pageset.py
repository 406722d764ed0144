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
        """Chunk to 1 for each of its pages that is in the set; a chunk that had some stays."""
        self._count = 0

    def add(self, first: cython.ulonglong, count: cython.ulonglong) -> None:
        """Pages that are not in it yet."""
        self._count += count
        self._mark(first, count, 1)

    def remove(self, first: cython.ulonglong, count: cython.ulonglong) -> None:
        """Pages that are in it."""
        self._count -= count
        self._mark(first, count, 0)

    def _mark(self, first: cython.ulonglong, count: cython.ulonglong, mark: cython.uchar) -> None:
        marks: bytearray
        slot: cython.Py_ssize_t
        begin: cython.Py_ssize_t
        end: cython.Py_ssize_t
        while count:
            begin = first % _CHUNK
            end = min(_CHUNK, begin + count)
            chunk = first // _CHUNK
            if chunk not in self._chunks:
                self._chunks[chunk] = bytearray(CHUNK_PAGES)
            marks = self._chunks[chunk]
            for slot in range(begin, end):
                marks[slot] = mark
            first += end - begin
            count -= end - begin

    def holds(self, first: cython.ulonglong, count: cython.ulonglong) -> cython.bint:
        """Whether all of them are in it."""
        marks: bytearray
        slot: cython.Py_ssize_t
        begin: cython.Py_ssize_t
        end: cython.Py_ssize_t
        while count:
            begin = first % _CHUNK
            end = min(_CHUNK, begin + count)
            chunk = first // _CHUNK
            if chunk not in self._chunks:
                return False
            marks = self._chunks[chunk]
            for slot in range(begin, end):
                if not marks[slot]:
                    return False
            first += end - begin
            count -= end - begin
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
