"""Who may claim what: address grants, overlap, delegation, bounds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dpf.frames import ARP, HOST, IP, OTHER, OWN, OWN6, TCP, UDP, IPv6, to_env
from xok_host.abi.dpf import IP_HEADER_LENGTH, Filter, Match, connection, listener, where, wildcard
from xok_host.abi.errors import BadCall, BadCapability, Exists, LimitReached, NotFound, Overlap
from xok_host.kernel.dpf import table as table_module
from xok_host.kernel.dpf import trie as trie_module
from xok_host.kernel.dpf.filter import NormalFilter, normalise
from xok_host.kernel.dpf.overlap import candidates, disjoint, inside
from xok_host.kernel.dpf.table import FilterTable

A, B, C = 1, 2, 3
WEB = to_env(IP(src=HOST, dst=OWN) / TCP(dport=80, sport=999))
SSH = to_env(IP(src=HOST, dst=OWN) / TCP(dport=22, sport=999))


def insert(table: FilterTable, env: int, grant: int, source: Filter) -> int:
    """Environments' ports are ten times their numbers here."""
    return table.insert(env, grant, source.pack(), 10 * env)


@pytest.fixture
def table() -> FilterTable:
    return FilterTable()


def test_a_filter_must_be_inside_the_address(table: FilterTable) -> None:
    grant = table.own_address(OWN)
    for source in wildcard(OWN):
        insert(table, A, grant, source)
    for outside in (
        *wildcard(OTHER),
        where({"tcp.dport": 80}),
        where({"eth.type": 0x0800}),
        Filter((Match(30, 4, 0xFFFF_FF00, 0x0A090000), Match(12, 2, 0xFFFF, 0x0800))),
        Filter((Match(30, 4, 0xFFFF_FFFF, 0x0A090002),)),
        Filter((IP_HEADER_LENGTH, Match(30, 4, 0xFFFF_FFFF, 0x0A090002))),
    ):
        with pytest.raises(BadCapability):
            insert(table, A, grant, outside)
    with pytest.raises(BadCapability):
        insert(table, A, 99, listener(OWN, 80))
    with pytest.raises(BadCall):
        table.insert(A, grant, b"nonsense", 10)
    assert len(table.filters) == 2


def test_an_address_has_one_owner(table: FilterTable) -> None:
    table.own_address("fd00::2")
    with pytest.raises(Exists):
        table.own_address("fd00:0::2")


def test_overlap_is_refused_without_delegation(table: FilterTable) -> None:
    grant = table.own_address(OWN)
    insert(table, A, grant, listener(OWN, 80))
    for thief in (
        listener(OWN, 80),
        wildcard(OWN)[0],
        connection(OWN, 80, HOST, 999),
        where({"ip.dst": OWN, "ip.src": HOST}),
        where({"ip.dst": OWN, "tcp.sport": 999}),
        Filter((*where({"ip.dst": OWN}).atoms, Match(36, 2, 0xFFFF, 80))),
    ):
        with pytest.raises(Overlap):
            insert(table, B, grant, thief)
    assert table.refused == 6
    insert(table, B, grant, listener(OWN, 81))
    insert(table, B, grant, listener(OWN, 80, "udp"))
    assert table.port(WEB) == 10


def test_the_same_holder_may_overlap_itself(table: FilterTable) -> None:
    grant = table.own_address(OWN)
    insert(table, A, grant, wildcard(OWN)[0])
    insert(table, A, grant, listener(OWN, 80))
    number = insert(table, A, grant, connection(OWN, 80, HOST, 999))
    with pytest.raises(Overlap):
        insert(table, A, grant, connection(OWN, 80, HOST, 999))
    table.remove(A, number)
    assert table.port(WEB) == 10


@pytest.mark.parametrize("owner_first", [True, False])
def test_delegation_overrides_whoever_comes_first(table: FilterTable, owner_first: bool) -> None:
    grant = table.own_address(OWN)
    part = table.delegate(grant, [listener(OWN, 80).pack()])
    orders = [(A, grant, wildcard(OWN)[0]), (B, part, listener(OWN, 80))]
    for env, under, source in orders if owner_first else reversed(orders):
        insert(table, env, under, source)
    assert (table.port(WEB), table.port(SSH)) == (20, 10)
    # The owner cannot take back by a still narrower filter what it delegated; it can revoke.
    with pytest.raises(Overlap):
        insert(table, A, grant, connection(OWN, 80, HOST, 999))
    with pytest.raises(BadCapability):
        insert(table, B, part, listener(OWN, 22))
    assert [bound.holder for bound in table.revoke(part)] == [B]
    assert table.port(WEB) == 10
    with pytest.raises(NotFound):
        table.revoke(part)


def test_delegation_of_a_delegation(table: FilterTable) -> None:
    grant = table.own_address(OWN)
    part = table.delegate(grant, [listener(OWN, 80).pack()])
    sub = table.delegate(part, [connection(OWN, 80, HOST, 999).pack()])
    insert(table, A, grant, wildcard(OWN)[0])
    insert(table, B, part, listener(OWN, 80))
    insert(table, C, sub, connection(OWN, 80, HOST, 999))
    assert table.port(WEB) == 30
    with pytest.raises(BadCapability):
        table.delegate(part, [listener(OWN, 22).pack()])
    table.revoke(part)
    assert table.port(WEB) == 10 and set(table.grants) == {grant}


def test_a_dead_holder_falls_back_to_the_owner(table: FilterTable) -> None:
    grant = table.own_address(OWN)
    part = table.delegate(grant, [listener(OWN, 80).pack()])
    insert(table, A, grant, wildcard(OWN)[0])
    insert(table, B, part, listener(OWN, 80))
    assert table.remove_holder(B) == 1 and table.remove_holder(B) == 0
    assert table.port(WEB) == 10


def test_only_the_holder_removes(table: FilterTable) -> None:
    number = insert(table, A, table.own_address(OWN), listener(OWN, 80))
    for env, which in ((B, number), (A, number + 1)):
        with pytest.raises(NotFound):
            table.remove(env, which)
    table.remove(A, number)
    assert table.port(WEB) == -1


def test_fragments_options_and_short_packets(table: FilterTable) -> None:
    grant = table.own_address(OWN)
    part = table.delegate(grant, [listener(OWN, 80).pack()])
    insert(table, A, grant, wildcard(OWN)[0])
    insert(table, B, part, listener(OWN, 80))
    assert table.port(to_env(IP(src=HOST, dst=OWN, frag=100) / UDP(dport=80) / bytes(64))) == 10
    assert table.port(to_env(IP(src=HOST, dst=OWN, flags="MF") / TCP(dport=80))) == 10
    assert table.port(WEB[:37]) == 10  # the port is cut off
    assert table.port(WEB[:38]) == 20
    assert table.port(WEB[:33]) == -1
    assert table.port(b"") == -1


def test_neighbour_discovery_goes_to_the_address(table: FilterTable) -> None:
    from scapy.layers.inet6 import ICMPv6ND_NS

    grant = table.own_address(OWN6)
    for source in wildcard(OWN6):
        insert(table, A, grant, source)
    asked = IPv6(src="fd09::1", dst="ff02::1:ff00:2")
    assert table.port(to_env(asked / ICMPv6ND_NS(tgt=OWN6))) == 10
    assert table.port(to_env(asked / ICMPv6ND_NS(tgt="fd09:1::2"))) == -1
    assert table.port(to_env(ARP(pdst=OWN))) == -1


def test_bounds(table: FilterTable, monkeypatch: pytest.MonkeyPatch) -> None:
    grant = table.own_address(OWN)
    monkeypatch.setattr(table_module, "MAX_HOLDER_FILTERS", 3)
    for port in (1, 2, 3):
        insert(table, A, grant, listener(OWN, port))
    with pytest.raises(LimitReached):
        insert(table, A, grant, listener(OWN, 4))
    insert(table, B, grant, listener(OWN, 5))
    monkeypatch.undo()
    table.remove_holder(B)
    base = where({"ip.dst": OWN}).atoms
    with pytest.raises(LimitReached, match="from one point"):
        for mask in range(1, 200):
            insert(table, A, grant, Filter((*base, Match(40, 1, mask, 0))))
    with pytest.raises(LimitReached, match="different shapes"):
        for offset in range(41, 200):
            more = tuple(Match(offset + step, 1, 0xFF, 0) for step in range(6))
            insert(table, A, grant, Filter((*base, Match(40, 1, 1, 0), *more)))
    assert table.trie.table and sum(1 for _ in table.trie.edges()) <= trie_module.MAX_EDGES
    table.remove_holder(A)
    insert(table, A, grant, listener(OWN, 4))


def test_a_refused_insertion_changes_nothing(table: FilterTable) -> None:
    grant = table.own_address(OWN)
    insert(table, A, grant, listener(OWN, 80))
    before = (dict(table.trie.table), table.trie.shape_version, len(table.filters), len(table.trie.changes))
    for source in (listener(OWN, 80), connection(OWN, 80, HOST, 1), where({"ip.dst": OWN, "icmp.type": 8})):
        if source.atoms[-1] == Match(14, 1, 0xFF, 8):
            source = where({"ip.dst": OTHER, "icmp.type": 8})
        with pytest.raises((Overlap, BadCapability)):
            insert(table, B, grant, source)
    after = (dict(table.trie.table), table.trie.shape_version, len(table.filters), len(table.trie.changes))
    assert before == after


_PARTS = st.builds(
    lambda offset, mask, value: Match(offset, 1, mask, value & mask),
    st.integers(0, 2),
    st.sampled_from([0xFF, 0x0F, 0xF0, 0x01]),
    st.sampled_from([0, 1, 0x10, 0x11]),
)
_FILTERS = st.lists(_PARTS, min_size=1, max_size=3).map(tuple)


def _accepts(atoms: tuple[Match, ...], frame: bytes) -> bool:
    return all(frame[atom.offset] & atom.mask == atom.value for atom in atoms)


def _normal(atoms: tuple[Match, ...]) -> NormalFilter | None:
    try:
        return normalise(Filter(atoms))
    except ValueError:
        return None


_BYTES = [0, 1, 0x10, 0x11, 0x22, 0xFF]
_UNIVERSE = [bytes([a, b, c]) for a in _BYTES for b in _BYTES for c in _BYTES]


@settings(max_examples=200, deadline=None)
@given(_FILTERS, _FILTERS)
def test_overlap_is_proved_right_by_all_packets(one: tuple[Match, ...], two: tuple[Match, ...]) -> None:
    """OV-1, OV-2 against a universe of packets in which every combination of the values occurs."""
    a, b = _normal(one), _normal(two)
    if a is None or b is None:
        return
    both = any(_accepts(one, frame) and _accepts(two, frame) for frame in _UNIVERSE)
    assert disjoint(a, b) is not both
    if inside(a, b):
        assert all(_accepts(two, frame) for frame in _UNIVERSE if _accepts(one, frame))
    trie = trie_module.Trie()
    trie.insert(1, a, 0)
    found = [entry.filter for entry in candidates(trie, b)]
    assert found == [1] or not both


def test_new_shapes_are_used_up_in_a_life(table: FilterTable) -> None:
    """A holder that keeps bringing and removing kinds of filter would have xokd load a program each time."""
    grant = table.own_address(OWN)
    base = where({"ip.dst": OWN}).atoms
    with pytest.raises(LimitReached, match="in the life"):
        for number in range(2000):
            kind = Match(40 + number % 100, 1, 1 + number % 255, 0)
            table.remove(A, insert(table, A, grant, Filter((*base, kind))))
    assert table.trie.shape_version <= table_module.MAX_NEW_SHAPES + 16
    insert(table, B, grant, listener(OWN, 80))
