# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, initializedcheck=False
"""Gather buffers: bytes that are sent from where they lie, and stay where they lie until they are acknowledged.

A `Gather` names pieces of memory: a response header, pages of the file cache. The same Gather may be queued on any
number of connections at once; TCP sends from it, retransmits from it, and counts its users in `pins`. This is the
thesis's merged file cache and retransmission pool: no copy is ever made of what is sent.

GATHER-1  Pieces do not change, move or go away while `pins > 0`. The owner of the memory sees to it.
GATHER-2  `released()` is called each time the last pin goes; a subclass unpins its pages there.
GATHER-3  A Gather holds a reference to every bytes-like object added to it; raw addresses are the caller's business.

An `Iov` is the vector handed to a Link: one frame, header first. It refers to memory and owns none.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import cython

if TYPE_CHECKING:
    from netstack.wire.octets import Octets

if not cython.compiled:
    PIECES = 256  # pieces of one frame (the kernel's limit is 1024); gather.pxd has it for C


class Iov:
    """The pieces of one frame, in order. `length` is their sum in octets."""

    def __init__(self) -> None:
        self.count = 0
        self.length = 0
        if not cython.compiled:
            self.pieces: list[memoryview] = []

    def clear(self) -> int:
        """Forget all pieces."""
        self.count = 0
        self.length = 0
        if not cython.compiled:
            self.pieces.clear()
        return 0

    def add(self, buffer: Octets, offset: int, length: int) -> int:
        """Append `length` octets at `buffer + offset`. The caller stays within PIECES."""
        if cython.compiled:
            self.vector[self.count].iov_base = cython.cast("void *", buffer + offset)  # type: ignore
            self.vector[self.count].iov_len = length  # type: ignore
        else:
            self.pieces.append(memoryview(buffer)[offset : offset + length])  # type: ignore[arg-type]
        self.count += 1
        self.length += length
        return 0

    def join(self) -> bytes:
        """The frame as one bytes object: for tests, tracers and links that must copy."""
        if not cython.compiled:
            return b"".join(self.pieces)
        whole = []
        for i in range(self.count):
            start = cython.cast("const char *", self.vector[i].iov_base)  # type: ignore
            whole.append(start[: self.vector[i].iov_len])  # type: ignore
        return b"".join(whole)


class Gather:
    """Pieces of memory in order; `length` octets together. Build it with `add` and `add_address`, then queue it."""

    def __init__(self, *buffers: bytes | bytearray | memoryview) -> None:
        self.length = 0
        self.pins = 0
        self.count = 0
        self.owners: list[object] = []
        if not cython.compiled:
            self.starts: list[memoryview] = []
            self.ends: list[int] = []
        for buffer in buffers:
            self.add(buffer)

    if cython.compiled:

        def __dealloc__(self) -> None:
            free(self.starts)  # type: ignore # noqa: F821
            free(self.ends)  # type: ignore # noqa: F821

    def add(self, buffer: bytes | bytearray | memoryview) -> int:
        """Append a bytes-like object without copying it; a reference is kept. Raises BufferError or TypeError
        if it is not contiguous bytes."""
        if len(buffer) == 0:
            return 0
        if cython.compiled:
            view = cython.declare(cython.const[cython.uchar][::1], buffer)  # type: ignore
            self.owners.append(view)
            self.add_piece(cython.address(view[0]), len(buffer))
        else:
            self.owners.append(buffer)
            self.add_piece(memoryview(buffer), len(buffer))
        return 0

    def add_address(self, address: int, length: int) -> int:
        """Append `length` octets at a raw address, for example of an arena's page (GATHER-1 is the caller's)."""
        if length == 0:
            return 0
        if cython.compiled:
            self.add_piece(cython.cast("const uint8_t *", address), length)  # type: ignore
        else:
            self.add_piece(memoryview((ctypes.c_ubyte * length).from_address(address)).cast("B"), length)
        return 0

    def add_piece(self, pointer: Octets, length: int) -> int:
        """Append `length` > 0 octets at a pointer (C callers; elsewhere a view). Raises MemoryError."""
        if cython.compiled:
            if self.count == self.space:
                self.grow()
            self.starts[self.count] = pointer  # type: ignore
            self.ends[self.count] = self.length + length
        else:
            self.starts.append(memoryview(pointer))  # type: ignore[arg-type, assignment]
            self.ends.append(self.length + length)
        self.length += length
        self.count += 1
        return 0

    if cython.compiled:

        def grow(self) -> int:
            space = self.space * 2 if self.space else 4  # type: ignore[has-type]
            starts = realloc(self.starts, space * cython.sizeof(self.starts[0]))  # type: ignore # noqa: F821
            if starts == cython.NULL:  # type: ignore
                raise MemoryError("gather: no memory for more pieces")
            self.starts = cython.cast("const uint8_t **", starts)  # type: ignore
            ends = realloc(self.ends, space * cython.sizeof(self.ends[0]))  # type: ignore # noqa: F821
            if ends == cython.NULL:  # type: ignore
                raise MemoryError("gather: no memory for more pieces")
            self.ends = cython.cast("Py_ssize_t *", ends)  # type: ignore
            self.space = space
            return 0

    def released(self) -> int:
        """Called when the last pin goes (GATHER-2). The base does nothing."""
        return 0

    def pin(self) -> int:
        """One more user."""
        self.pins += 1
        return 0

    def unpin(self) -> int:
        """One user fewer; the last one calls `released`."""
        self.pins -= 1
        if self.pins == 0:
            self.released()
        return 0

    def fill(self, iov: Iov, offset: int, length: int) -> int:
        """Append up to `length` octets from `offset` to `iov`; returns how many fitted."""
        low = 0
        high = self.count
        while low < high:
            middle = (low + high) >> 1
            if self.ends[middle] <= offset:
                low = middle + 1
            else:
                high = middle
        done = 0
        while done < length and low < self.count and iov.count < PIECES:
            start = self.ends[low - 1] if low > 0 else 0
            n = self.ends[low] - offset
            if n > length - done:
                n = length - done
            iov.add(self.starts[low], offset - start, n)
            done += n
            offset += n
            low += 1
        return done
