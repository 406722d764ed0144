"""The set arithmetic of induction, against Python's own sets."""

from __future__ import annotations

from array import array
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xok_host.abi.errors import UdfFailed
from xok_host.abi.types import BLOCK_LIMIT

TRIPLES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 6), st.integers(1, 3)), max_size=12)


def flat(triples: list[tuple[int, int, int]]) -> array[int]:
    return array("Q", [word for triple in triples for word in triple])


def listed(words: array[int]) -> list[tuple[int, int, int]]:
    return list(zip(words[0::3], words[1::3], words[2::3], strict=True))


def points(triples: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    return [(block + i, kind) for block, count, kind in triples for i in range(count)]


def disjoint(triples: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The extents that do not overlap an earlier one of the list."""
    seen: set[int] = set()
    out = []
    for triple in triples:
        mine = {block for block, _ in points([triple])}
        if not mine & seen:
            seen |= mine
            out.append(triple)
    return out


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TRIPLES)
def test_canonical(sets: ModuleType, triples: list[tuple[int, int, int]]) -> None:
    blocks = [block for block, _ in points(triples)]
    given_to_it = flat(triples)
    if len(set(blocks)) != len(blocks):
        with pytest.raises(UdfFailed, match="twice"):
            sets.canonical(given_to_it)
        return
    before = given_to_it[:]
    out = listed(sets.canonical(given_to_it))
    assert given_to_it == before, "its argument is left alone"
    assert sorted(points(out)) == sorted(points(triples))
    assert out == sorted(out)
    for (block, count, kind), (following, _, other) in zip(out, out[1:], strict=False):
        assert block + count < following or (block + count == following and kind != other), "neighbours are joined"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TRIPLES, TRIPLES)
def test_difference(sets: ModuleType, one: list[tuple[int, int, int]], two: list[tuple[int, int, int]]) -> None:
    one, two = disjoint(one), disjoint(two)
    a, b = sets.canonical(flat(one)), sets.canonical(flat(two))
    gained, lost = sets.difference(a, b)
    assert set(points(listed(gained))) == set(points(two)) - set(points(one))
    assert set(points(listed(lost))) == set(points(one)) - set(points(two))
    assert sets.canonical(gained) == gained and sets.canonical(lost) == lost
    assert sets.intersect(a, b) == bool({p for p, _ in points(one)} & {p for p, _ in points(two)})
    assert sets.blocks(a) == len(points(one))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TRIPLES, st.integers(0, 70), st.integers(0, 9), st.integers(0, 3))
def test_owns(sets: ModuleType, one: list[tuple[int, int, int]], block: int, count: int, kind: int) -> None:
    one = disjoint(one)
    held = dict(points(one))
    wanted = range(block, block + count)
    truth = count > 0 and all(b in held and kind in (0, held[b]) for b in wanted)
    extents = sets.canonical(flat(one))
    assert sets.owns(extents, block, count, kind) == truth
    assert sets.kind_of(extents, block) == held.get(block, 0)


@pytest.mark.parametrize(
    ("triple", "why"),
    [
        ((0, 1, 1), "no disk has"),
        ((BLOCK_LIMIT, 1, 1), "no disk has"),
        ((2**64 - 1, 1, 1), "no disk has"),
        ((5, 0, 1), "run of 0"),
        ((5, BLOCK_LIMIT - 4, 1), "run of"),
        ((5, 2**64 - 3, 1), "run of"),
        ((5, 1, 0), "type 0"),
        ((5, 1, 1 << 32), "type"),
    ],
)
def test_malformed(sets: ModuleType, triple: tuple[int, int, int], why: str) -> None:
    with pytest.raises(UdfFailed, match=why):
        sets.canonical(flat([triple, (100, 1, 1)]))
    assert listed(sets.canonical(flat([(5, BLOCK_LIMIT - 5, 1)]))) == [(5, BLOCK_LIMIT - 5, 1)]


def test_extremes(sets: ModuleType) -> None:
    whole = sets.canonical(flat([(1, BLOCK_LIMIT - 1, 1)]))
    assert sets.owns(whole, 1, BLOCK_LIMIT - 1, 1)
    assert not sets.owns(whole, 1, BLOCK_LIMIT, 1)
    assert not sets.owns(whole, 2, 2**64 - 1, 1)
    assert not sets.owns(whole, 2**64 - 1, 1)
    gained, lost = sets.difference(whole, sets.canonical(flat([(7, 1, 2)])))
    assert listed(gained) == [(7, 1, 2)]
    assert listed(lost) == [(1, BLOCK_LIMIT - 1, 1)], "block 7 is lost too: it changed its type"
    gained, lost = sets.difference(whole, sets.canonical(flat([(7, 1, 1)])))
    assert not gained and listed(lost) == [(1, 6, 1), (8, BLOCK_LIMIT - 8, 1)]


def test_many_in_any_order(sets: ModuleType) -> None:
    """The most that one run can emit, backwards and shuffled."""
    triples = [(2 * i + 2, 1, 1 + i % 2) for i in range(1365)]
    shuffled = [triples[i * 601 % 1365] for i in range(1365)]
    assert sets.canonical(flat(triples[::-1])) == sets.canonical(flat(shuffled)) == flat(triples)


def test_references(sets: ModuleType) -> None:
    before, after = flat([(8, 1, 0), (9, 1, 0), (8, 1, 0)]), flat([(9, 1, 0), (8, 1, 0), (7, 1, 0)])
    assert sets.reference_changes(before, after) == [(7, 1), (8, -1)]
    assert sets.reference_changes(before, before) == []
    assert sets.reference_changes(before, flat([(8, 1, 0), (8, 1, 0), (9, 1, 0)])) == [], "order does not matter"


def test_counts(sets: ModuleType) -> None:
    before, after = flat([(8, 1, 0), (9, 3, 0)]), flat([(9, 2, 0), (10, 1, 0)])
    assert sets.count_changes(before, after) == [(8, 1, 0), (9, 3, 2), (10, 0, 1)]
    with pytest.raises(UdfFailed, match="two counts"):
        sets.count_changes(before, flat([(8, 1, 0), (8, 1, 0)]))
