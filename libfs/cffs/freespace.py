"""Search XN's free map: compiled, since a map has a bit for every block of the disk.

The map is shared memory that XN writes; 1 means in use or waiting to be freed.  What is found may be gone when it is
asked for: XN decides, the caller tries again.
"""

from __future__ import annotations

import cython


@cython.locals(at=cython.longlong, stop=cython.longlong, byte=cython.int)
def next_free(bits: cython.const[cython.uchar][:], at: int, stop: int) -> cython.longlong:  # type: ignore[valid-type]
    """First free block in [at, stop), or -1."""
    while at < stop:
        byte = bits[at >> 3]
        if byte == 0xFF:
            at = (at | 7) + 1
            continue
        if not byte >> (at & 7) & 1:
            return at
        at += 1
    return -1


@cython.locals(at=cython.longlong, stop=cython.longlong, byte=cython.int, begin=cython.longlong)
def run_length(bits: cython.const[cython.uchar][:], begin: int, stop: int) -> cython.longlong:  # type: ignore[valid-type]
    """Free blocks from `begin` on, up to `stop`."""
    at = begin
    while at < stop:
        byte = bits[at >> 3]
        if byte == 0 and not at & 7 and at + 8 <= stop:
            at += 8
            continue
        if byte >> (at & 7) & 1:
            break
        at += 1
    return at - begin


@cython.locals(at=cython.longlong, length=cython.longlong, last=cython.longlong)
def find_run(bits: cython.const[cython.uchar][:], begin: int, stop: int, want: int, align: int) -> cython.longlong:  # type: ignore[valid-type]
    """First block in [begin, stop) of `want` free ones, at a multiple of `align`; -1: there is none."""
    at = (begin + align - 1) // align * align
    last = stop - want
    while at <= last:
        length = run_length(bits, at, at + want)
        if length == want:
            return at
        at = next_free(bits, at + length, stop)
        if at < 0:
            return -1
        at = (at + align - 1) // align * align
    return -1


@cython.locals(index=cython.Py_ssize_t, free=cython.longlong, byte=cython.int)
def count_free(bits: cython.const[cython.uchar][:], nblocks: int) -> cython.longlong:  # type: ignore[valid-type]
    """Free blocks on the whole disk."""
    free = 0
    for index in range(nblocks >> 3):
        byte = bits[index] ^ 0xFF
        while byte:
            byte &= byte - 1
            free += 1
    for index in range(nblocks & ~7, nblocks):
        if not bits[index >> 3] >> (index & 7) & 1:
            free += 1
    return free
