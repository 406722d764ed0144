# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""Verification by induction (thesis section 4.1): the trusted arithmetic on what untrusted functions say.

XN never believes an `owns`; it compares what it said before a modification with what it says after.  Here are the sets
that this takes.  An output is an array('Q') of triples, as `Program.run_raw` gives it:

* an *extent set*, from `owns`: (block, count, type).  `canonical` sorts it, refuses malformed elements and overlaps,
  and joins neighbours of one type, so that equal sets are equal arrays.  All other functions here take canonical sets.
* a *reference multiset*, from `refs`: (da, 1, 0), repetitions counted.
* *counts*, from `refcnt`: (da, count, 0), each da once.  Elements are named as if every disk were device 1 (`element`):
  disks change their numbers from start to start, and a type must say the same of a block on each of them.

UDF-1  A canonical set is strictly ascending and disjoint, its blocks are in 1 … BLOCK_LIMIT-1, counts and types not 0.
UDF-2  `difference(a, b)` is (b − a, a − b), where a block counts together with its type: a change of type is a loss and
       a gain.

Uncompiled and compiled, results are the same; nothing here keeps state.
"""

from __future__ import annotations

from array import array
from typing import Any

import cython

if cython.compiled:
    from cython.cimports.cpython import array as carray
    from cython.cimports.libc.string import memcpy

from xok_host.abi.errors import UdfFailed
from xok_host.abi.types import BLOCK_LIMIT

_LIMIT = cython.declare(cython.ulonglong, BLOCK_LIMIT)
_ADDRESS = cython.declare(cython.ulonglong, (1 << 56) - 1)
_DEVICE = cython.declare(cython.ulonglong, 1 << 56)
EMPTY = array("Q")


def words(flat: Any) -> cython.p_ulonglong:
    """The integers of an array('Q'): compiled, their address, which costs less than a view of a few of them."""
    if cython.compiled:
        return cython.cast(carray.array, flat).data.as_ulonglongs
    else:
        return flat


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def length(flat: Any) -> cython.Py_ssize_t:
    """Of an array."""
    if cython.compiled:
        return len(cython.cast(carray.array, flat))
    else:
        return len(flat)


@cython.cfunc
def _sort(v: cython.p_ulonglong, n: cython.Py_ssize_t) -> cython.bint:
    """Sort triples by their first word, in place; gives whether two of them share it.  Shell's sort: nearly sorted
    input, which a scan of a block gives, costs one pass, and no input costs more than n^1.5."""
    gap: cython.Py_ssize_t = 1
    i: cython.Py_ssize_t
    j: cython.Py_ssize_t
    a: cython.ulonglong
    b: cython.ulonglong
    c: cython.ulonglong
    for i in range(1, n):
        if v[3 * i - 3] >= v[3 * i]:
            break
    else:
        return False
    while gap < n // 3:
        gap = 3 * gap + 1
    while gap:
        for i in range(gap, n):
            a = v[3 * i]
            b = v[3 * i + 1]
            c = v[3 * i + 2]
            j = i
            while j >= gap and v[3 * (j - gap)] > a:
                v[3 * j] = v[3 * (j - gap)]
                v[3 * j + 1] = v[3 * (j - gap) + 1]
                v[3 * j + 2] = v[3 * (j - gap) + 2]
                j -= gap
            v[3 * j] = a
            v[3 * j + 1] = b
            v[3 * j + 2] = c
        gap //= 3
    for i in range(1, n):
        if v[3 * i - 3] == v[3 * i]:
            return True
    return False


def element(da: cython.ulonglong) -> cython.ulonglong:
    """The name of the element at a disk address."""
    return da & _ADDRESS | _DEVICE


def elements(raw: array[int]) -> array[int]:
    """An output of `refs` or `refcnt`, its addresses made names of elements in place."""
    name_elements(words(raw), len(raw))
    return raw


@cython.cfunc
@cython.exceptval(check=False)
def name_elements(v: cython.p_ulonglong, n: cython.Py_ssize_t) -> cython.void:
    i: cython.Py_ssize_t
    for i in range(0, n, 3):
        v[i] = v[i] & _ADDRESS | _DEVICE


def answer(v: cython.p_ulonglong, count: cython.Py_ssize_t, named: cython.bint, said: array[int]) -> array[int]:
    """`count` triples at `v`, which a UDF has emitted, as an array; the addresses of `refs` and `refcnt` are made names
    of elements (`named`).  If they are what it has `said` before, as they are most of the time, that is the answer."""
    n: cython.Py_ssize_t = 3 * count
    if named:
        name_elements(v, n)
    if length(said) == n and same(words(said), v, n):
        return said
    if cython.compiled:
        out = cython.declare(carray.array, carray.clone(cython.cast(carray.array, EMPTY), n, False))
        memcpy(out.data.as_voidptr, v, 8 * n)
        return out
    else:
        return array("Q", v[:n].tolist())


@cython.cfunc
@cython.exceptval(check=False)
def same(a: cython.p_ulonglong, b: cython.p_ulonglong, n: cython.Py_ssize_t) -> cython.bint:
    """Whether `n` words are equal."""
    i: cython.Py_ssize_t
    for i in range(n):
        if a[i] != b[i]:
            return False
    return True


def canonical(raw: array[int]) -> array[int]:
    """The extent set of an output: `raw` itself if it is one.  Raises UdfFailed for what is no extent, and overlaps."""
    v: cython.p_ulonglong = words(raw)
    n: cython.Py_ssize_t = len(raw) // 3
    i: cython.Py_ssize_t
    kept: cython.Py_ssize_t = 0
    end: cython.ulonglong = 0
    is_one: cython.bint = True
    for i in range(n):
        if v[3 * i] == 0 or v[3 * i] >= _LIMIT:
            raise UdfFailed(f"owns names block {v[3 * i]}, which no disk has")
        if v[3 * i + 1] == 0 or v[3 * i + 1] > _LIMIT - v[3 * i]:
            raise UdfFailed(f"owns gives a run of {v[3 * i + 1]} blocks at {v[3 * i]}")
        if v[3 * i + 2] == 0 or v[3 * i + 2] >> 32:
            raise UdfFailed(f"owns gives block {v[3 * i]} the type {v[3 * i + 2]}")
        is_one = is_one and v[3 * i] > end  # a gap between neighbours: nothing to sort, to refuse or to join
        end = v[3 * i] + v[3 * i + 1]
    if is_one:
        return raw
    out = array("Q", raw)
    v = words(out)
    if _sort(v, n):
        raise UdfFailed("owns names a block twice")
    for i in range(1, n):
        end = v[3 * kept] + v[3 * kept + 1]
        if v[3 * i] < end:
            raise UdfFailed(f"owns names block {v[3 * i]} twice")
        if v[3 * i] == end and v[3 * i + 2] == v[3 * kept + 2]:
            v[3 * kept + 1] += v[3 * i + 1]
        else:
            kept += 1
            v[3 * kept] = v[3 * i]
            v[3 * kept + 1] = v[3 * i + 1]
            v[3 * kept + 2] = v[3 * i + 2]
    return out if kept + 1 == n else out[: 3 * kept + 3]


def difference(before: array[int], after: array[int]) -> tuple[array[int], array[int]]:
    """(gained, lost) of two canonical sets, each canonical (UDF-2)."""
    if before == after:
        return EMPTY[:], EMPTY[:]
    return _minus(after, before), _minus(before, after)


@cython.cfunc
def _minus(left: array, right: array) -> array:  # type: ignore[type-arg]
    """The blocks of `left` that `right` does not have with the same type."""
    out = array("Q")
    a: cython.p_ulonglong = words(left)
    b: cython.p_ulonglong = words(right)
    n: cython.Py_ssize_t = len(left) // 3
    m: cython.Py_ssize_t = len(right) // 3
    i: cython.Py_ssize_t
    j: cython.Py_ssize_t = 0
    k: cython.Py_ssize_t
    at: cython.ulonglong
    end: cython.ulonglong
    kind: cython.ulonglong
    start: cython.ulonglong
    stop: cython.ulonglong
    for i in range(n):
        at = a[3 * i]
        end = at + a[3 * i + 1]
        kind = a[3 * i + 2]
        while j < m and b[3 * j] + b[3 * j + 1] <= at:
            j += 1
        k = j
        while at < end and k < m and b[3 * k] < end:
            start = b[3 * k]
            stop = start + b[3 * k + 1]
            if b[3 * k + 2] == kind:
                if start > at:
                    out.extend((at, start - at, kind))
                if stop > at:
                    at = stop
            k += 1
        if at < end:
            out.extend((at, end - at, kind))
    return out


def owns(extents: Any, block: cython.ulonglong, count: cython.ulonglong, kind: cython.ulonglong = 0) -> cython.bint:
    """Whether a canonical set holds all `count` blocks at `block` (with type `kind`, unless that is 0)."""
    v: cython.p_ulonglong = words(extents)
    low: cython.Py_ssize_t = 0
    high: cython.Py_ssize_t = len(extents) // 3
    n: cython.Py_ssize_t = high
    middle: cython.Py_ssize_t
    if count == 0 or block >= _LIMIT or count > _LIMIT - block:
        return False
    while low < high:
        middle = (low + high) // 2
        if v[3 * middle] <= block:
            low = middle + 1
        else:
            high = middle
    low -= 1
    while low >= 0 and low < n and v[3 * low] <= block < v[3 * low] + v[3 * low + 1]:
        if kind and v[3 * low + 2] != kind:
            return False
        if count <= v[3 * low] + v[3 * low + 1] - block:
            return True
        count -= v[3 * low] + v[3 * low + 1] - block
        block = v[3 * low] + v[3 * low + 1]
        low += 1
    return False


def run_of(extents: Any, block: cython.ulonglong) -> cython.Py_ssize_t:
    """The number of the run by which a canonical set owns a block; -1 if it does not."""
    v: cython.p_ulonglong = words(extents)
    i: cython.Py_ssize_t
    for i in range(length(extents) // 3):
        if v[3 * i] > block:
            break
        if block - v[3 * i] < v[3 * i + 1]:
            return i
    return -1


def kind(extents: Any, run: cython.Py_ssize_t) -> cython.ulonglong:
    """The type of a run that there is."""
    return words(extents)[3 * run + 2]


def end(extents: Any, run: cython.Py_ssize_t) -> cython.ulonglong:
    """The block behind a run that there is."""
    return words(extents)[3 * run] + words(extents)[3 * run + 1]


def kind_of(extents: Any, block: cython.ulonglong) -> cython.ulonglong:
    """The type with which a canonical set owns a block; 0 if it does not."""
    run: cython.Py_ssize_t = run_of(extents, block)
    return 0 if run < 0 else kind(extents, run)


def intersect(left: array[int], right: array[int]) -> bool:
    """Whether two canonical sets share a block, whatever its types."""
    a: cython.p_ulonglong = words(left)
    b: cython.p_ulonglong = words(right)
    n: cython.Py_ssize_t = len(left) // 3
    m: cython.Py_ssize_t = len(right) // 3
    i: cython.Py_ssize_t = 0
    j: cython.Py_ssize_t = 0
    while i < n and j < m:
        if a[3 * i] + a[3 * i + 1] <= b[3 * j]:
            i += 1
        elif b[3 * j] + b[3 * j + 1] <= a[3 * i]:
            j += 1
        else:
            return True
    return False


def blocks(extents: array[int]) -> int:
    """Number of blocks in a set."""
    return sum(extents[1::3])


def extents(flat: array[int]) -> list[tuple[int, int, int]]:
    """The triples of a flat array."""
    return list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))


def reference_changes(before: array[int], after: array[int]) -> list[tuple[int, int]]:
    """(da, how many more references) for each element whose references changed; references may repeat."""
    if before == after:
        return []
    tally: dict[int, int] = {}
    for da in after[0::3]:
        tally[da] = tally.get(da, 0) + 1
    for da in before[0::3]:
        tally[da] = tally.get(da, 0) - 1
    return sorted((da, delta) for da, delta in tally.items() if delta)


def counted_within(raw: array[int], da: cython.ulonglong, windows: array[int]) -> bool:
    """Whether every element of `refcnt`'s output lies in the windows (byte ranges behind `da`) and is there once."""
    v: cython.p_ulonglong = words(raw)
    w: cython.p_ulonglong = words(windows)
    n: cython.Py_ssize_t = len(raw) // 3
    m: cython.Py_ssize_t = len(windows) // 2
    i: cython.Py_ssize_t
    j: cython.Py_ssize_t
    ascending: cython.bint = True
    for i in range(n):
        if v[3 * i] < da:
            return False
        for j in range(m):
            if w[2 * j] <= v[3 * i] - da < w[2 * j + 1]:
                break
        else:
            return False
        if i and v[3 * i - 3] >= v[3 * i]:
            ascending = False
    return ascending or len(set(raw[0::3])) == n


def counts(raw: array[int]) -> dict[int, int]:
    """Reference counts by da.  Raises UdfFailed if a da has two."""
    out = dict(zip(raw[0::3], raw[1::3], strict=True))
    if 3 * len(out) != len(raw):
        raise UdfFailed("refcnt gives one element two counts")
    return out


def count_changes(before: array[int], after: array[int]) -> list[tuple[int, int, int]]:
    """(da, count before, count after) where they differ; an element that is absent counts 0."""
    if before == after:
        return []
    old, new = counts(before), counts(after)
    return [
        (da, old.get(da, 0), new.get(da, 0))
        for da in sorted(old.keys() | new.keys())
        if old.get(da, 0) != new.get(da, 0)
    ]
