"""The filter language: names, wire form, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xok_host.abi import dpf
from xok_host.abi.dpf import BadFilter, Filter, Match, Shift, connection, listener, solicited_node, where, wildcard
from xok_host.abi.errors import BadCall
from xok_host.kernel.dpf.filter import import_filter, normalise


def test_a_name_brings_what_it_needs_in_canonical_order() -> None:
    assert listener("10.0.0.2", 80).atoms == (
        Match(12, 2, 0xFFFF, 0x0800),
        Match(30, 4, 0xFFFF_FFFF, 0x0A000002),
        Match(23, 1, 0xFF, 6),
        Match(20, 2, 0x3FFF, 0),
        Shift(14, 1, 0x0F, 2),
        Match(16, 2, 0xFFFF, 80),
    )
    assert where({"tcp.dport": 80, "ip.dst": "10.0.0.2"}) == listener("10.0.0.2", 80)


def test_the_base_moves_once() -> None:
    atoms = connection("10.0.0.2", 5000, "10.0.0.1", 80).atoms
    assert [atom for atom in atoms if isinstance(atom, Shift)] == [dpf.IP_HEADER_LENGTH]
    assert atoms[-2:] == (Match(16, 2, 0xFFFF, 5000), Match(14, 2, 0xFFFF, 80))


def test_ip6() -> None:
    assert len(connection("fd00::2", 5000, "fd00::1", 80).atoms) == 12
    assert solicited_node("fd00::12:3456") == "ff02::1:ff12:3456"
    assert [len(claim.atoms) for claim in wildcard("fd00::2")] == [5, 11]


@pytest.mark.parametrize(
    "fields",
    [
        {"tcp.port": 80},
        {"tcp.dport": 65536},
        {"tcp.dport": "80"},
        {"ip.dst": "fd00::2"},
        {"tcp.dport": 80, "udp.dport": 80},
        {"ip.dst": "10.0.0.2", "arp.tpa": "10.0.0.2"},
        {"ip6.dst": "fd00::2", "tcp.dport": 80},
        {},
    ],
)
def test_what_no_packet_has_is_refused(fields: dict[str, int | str]) -> None:
    with pytest.raises(BadFilter):
        where(fields)


@pytest.mark.parametrize(
    "atoms",
    [
        (Match(12, 3, 0xFF, 0),),
        (Match(256, 1, 0xFF, 0),),
        (Match(-1, 1, 0xFF, 0),),
        (Match(0, 1, 0x1FF, 0),),
        (Match(0, 1, 0, 0),),
        (Match(0, 1, 0x0F, 0x10),),
        (Shift(14, 1, 0x0F, 2),),
        (Match(0, 1, 1, 1), Shift(14, 1, 0x0F, 2)),
        (Shift(14, 1, 0xFF, 3), Match(0, 1, 1, 1)),
        (Shift(14, 4, 0xFFFF_FFFF, 0), Match(0, 1, 1, 1)),
        (Shift(14, 1, 1, 11), Match(0, 1, 1, 1)),
        (Match(0, 1, 1, 1),) * 17,
    ],
)
def test_malformed_atoms_are_refused(atoms: tuple[dpf.Atom, ...]) -> None:
    with pytest.raises(BadFilter):
        Filter(atoms)


def test_the_longest_shift_that_is_allowed() -> None:
    Filter((Shift(14, 1, 0x80, 3), Match(0, 1, 1, 1)))


def test_a_filter_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(BadFilter, match="two values"):
        normalise(Filter((Match(12, 2, 0xFFFF, 0x0800), Match(13, 1, 0xFF, 6))))
    with pytest.raises(BadCall):
        import_filter(Filter((Match(0, 4, 0xFF00, 0x100), Match(2, 1, 1, 0))).pack())
    # From another base it is another byte.
    normalise(Filter((Match(20, 1, 1, 1), Shift(14, 1, 0x0F, 2), Match(20, 1, 1, 0))))


_MATCHES = st.builds(
    lambda width, offset, mask, value: Match(
        offset, width, mask % (1 << 8 * width) or 1, value & (mask % (1 << 8 * width) or 1)
    ),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 255),
    st.integers(1, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
_SHIFTS = st.builds(Shift, st.integers(0, 255), st.just(1), st.integers(1, 15), st.integers(-8, 3))


@settings(deadline=None)
@given(st.lists(st.one_of(_MATCHES, _SHIFTS), max_size=6), _MATCHES)
def test_the_wire_form_keeps_everything(atoms: list[dpf.Atom], last: Match) -> None:
    source = Filter((*atoms, last))
    assert Filter.unpack(source.pack()) == source


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 5))
def test_any_bytes_are_a_filter_or_refused(raw: bytes, count: int) -> None:
    for candidate in (raw, bytes([1, count]) + raw[: 16 * count]):
        try:
            assert Filter.unpack(candidate).pack() == candidate
        except BadFilter:
            with pytest.raises(BadCall):
                import_filter(candidate)
