"""The merged trie against filters tried one by one, and its promises about order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xok_host.abi.dpf import Filter, Match, Shift, listener, where
from xok_host.abi.errors import Exists, LimitReached
from xok_host.kernel.dpf.classify import Classifier
from xok_host.kernel.dpf.filter import normalise
from xok_host.kernel.dpf.trie import MAX_BRANCHES, MAX_EDGES, Key, Trie, Value, verdict


def field(frame: bytes, offset: int, width: int) -> int | None:
    return int.from_bytes(frame[offset : offset + width], "big") if offset + width <= len(frame) else None


def accepts(source: Filter, frame: bytes) -> bool:
    """The language's definition, as plainly as it can be written."""
    base = 0
    for atom in source.atoms:
        found = field(frame, base + atom.offset, atom.width)
        if found is None:
            return False
        found &= atom.mask
        if isinstance(atom, Shift):
            base += found << atom.shift if atom.shift >= 0 else found >> -atom.shift
        elif found != atom.value:
            return False
    return True


_MATCHES = st.builds(
    lambda offset, width, mask, value: Match(offset, width, mask & ((1 << 8 * width) - 1), value & mask & 0xFF),
    st.integers(0, 6),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0xFFFF_FFFF, 0x0F]),
    st.integers(0, 2),
)
_SHIFTS = st.builds(Shift, st.integers(0, 3), st.just(1), st.sampled_from([1, 3]), st.integers(-1, 1))
_FILTERS = st.builds(
    lambda atoms, last: Filter((*atoms, last)), st.lists(st.one_of(_MATCHES, _SHIFTS), max_size=3), _MATCHES
)
FRAMES = st.lists(st.sampled_from([0, 0, 1, 2]), max_size=14).map(bytes)


@settings(max_examples=300, deadline=None)
@given(st.lists(_FILTERS, min_size=1, max_size=10), st.lists(FRAMES, min_size=1, max_size=8), st.data())
def test_the_trie_finds_the_heaviest_filter(filters: list[Filter], frames: list[bytes], data: st.DataObject) -> None:
    trie = Trie()
    classifier = Classifier(trie)
    live: dict[int, tuple[Filter, int]] = {}

    def compare() -> None:
        for frame in frames:
            matching = [weight for source, weight in live.values() if accepts(source, frame)]
            assert classifier.verdict(frame) == max(matching, default=0)

    for number, source in enumerate(filters):
        try:
            normal = normalise(source)
            trie.insert(number, normal, number)
        except (Exists, ValueError):
            continue
        live[number] = (source, verdict(normal.weight, number))
        compare()
    for number in data.draw(st.permutations(list(live))):
        trie.remove(number)
        del live[number]
        compare()
    assert trie.table == {}


def _replay(changes: list[tuple[Key, Value | None]], table: dict[Key, Value]) -> None:
    for key, value in changes:
        if value is None:
            del table[key]
        else:
            table[key] = value


FRAME = bytes.fromhex("020000000099020000000001080045000028000100004006") + bytes.fromhex(
    "00000a0000010a00000203e70050" + "00" * 16
)
"""TCP from 10.0.0.1:999 to 10.0.0.2:80"""


def test_a_filter_is_gone_whole_or_not_at_all() -> None:
    """TR-2: with the changes of a removal made one by one, a packet's owner changes once."""
    trie, live = Trie(), Trie()
    sources = (where({"ip.dst": "10.0.0.2"}), listener("10.0.0.2", 80), listener("10.0.0.2", 81))
    for number, source in enumerate((*sources, where({"ip.src": "10.0.0.1", "tcp.sport": 999}))):
        for one in (trie, live):
            one.insert(number, normalise(source), number)
    trie.drain()
    classifier = Classifier(live)
    owners = [classifier.port(FRAME)]
    for number in (3, 1, 2, 0):
        trie.remove(number)
        for change in trie.drain():
            _replay([change], live.table)
            if classifier.port(FRAME) != owners[-1]:
                owners.append(classifier.port(FRAME))
        assert live.table == trie.table
    assert owners == [3, 1, 0, -1]


def test_a_filter_is_there_whole_or_not_at_all() -> None:
    source = normalise(listener("10.0.0.2", 80))
    trie = Trie()
    trie.insert(1, source, 7)
    changes = trie.drain()
    assert [key[0] for key, _ in changes] == sorted((key[0] for key, _ in changes), reverse=True), "leaf first"
    live = Trie()
    live.insert(1, source, 7)
    live.table = {}
    classifier = Classifier(live)
    for change in changes[:-1]:
        _replay([change], live.table)
        assert classifier.verdict(FRAME) == 0
    _replay(changes[-1:], live.table)
    assert classifier.port(FRAME) == 7


def test_numbers_are_never_used_twice() -> None:
    """TR-1."""
    trie = Trie()
    seen: set[Key] = set()
    for round_ in range(5):
        trie.insert(round_, normalise(listener("10.0.0.2", 80)), 0)
        fresh = set(trie.table)
        trie.insert(100, normalise(where({"ip.dst": "10.0.0.3", "icmp.type": round_})), 0)
        trie.remove(100)
        trie.remove(round_)
        nodes = {key for key in fresh if key[0] != 1}
        assert not nodes & seen
        seen |= nodes


def test_a_thousand_filters_of_one_shape_are_one_program() -> None:
    trie = Trie()
    trie.insert(0, normalise(listener("10.0.0.2", 1)), 0)
    version = trie.shape_version
    for port in range(2, 1002):
        trie.insert(port, normalise(listener("10.0.0.2", port)), 0)
    assert trie.shape_version == version and len(trie.table) == 1002


def test_bounds() -> None:
    trie = Trie()
    with pytest.raises(LimitReached, match="from one point"):
        for mask in range(1, 255):
            trie.insert(mask, normalise(Filter((Match(30, 1, mask, 0),))), 0)
    assert len(trie) == MAX_BRANCHES
    with pytest.raises(LimitReached, match="kinds of filter at most"):
        for number in range(1000, 1100):
            atoms = tuple(Match(40 + offset, 1, 1 + number % 200, 0) for offset in range(16))
            trie.insert(number, normalise(Filter((Match(30, 1, 1, 0), *atoms[1:]))), 0)
    assert sum(1 for _ in trie.edges()) <= MAX_EDGES
    with pytest.raises(Exists):
        trie.insert(5000, normalise(Filter((Match(30, 1, 1, 0),))), 0)
    # Room comes back with what is removed, at the next new shape.
    for number in list(trie._filters):
        trie.remove(number)
    for mask in range(1, MAX_BRANCHES + 1):
        trie.insert(mask, normalise(Filter((Match(31, 1, mask, 0),))), 0)


def test_guards_are_part_of_the_shape() -> None:
    """What says which protocol follows is compared with constants; addresses and ports are looked up."""
    steps = normalise(listener("10.0.0.2", 80)).steps
    assert [value for _, value in steps] == [0x0A000002, 80]
    assert [len(shape.guards) for shape, _ in steps] == [1, 2]
    assert [len(shape.shifts) for shape, _ in steps] == [0, 1]
    # A filter that ends with such a field has nothing else to look up.
    assert [value for _, value in normalise(where({"ip.proto": 17})).steps] == [17]
