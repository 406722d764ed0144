"""Records: values with the fields of a declared structure."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xok_host.abi.declare import Structure, array, chars, nested, pad, u8, u16, u32, union
from xok_host.abi.record import record

PAIR = Structure("pair", u32("start"), u32("count"), pad(4))
THING = Structure(
    "thing",
    u32("mode"),
    pad(3),
    chars("name", 8),
    nested("first", PAIR),
    array("pairs", PAIR, 3),
    array("words", u16(""), 4),
    size=96,
)


class Thing(record(THING, "number")):  # type: ignore[misc]
    @property
    def twice(self) -> Any:
        return 2 * self.number


numbers = st.integers(0, 2**32 - 1)
pairs = st.tuples(numbers, numbers)
without_zeros = st.lists(pairs, max_size=3).map(tuple).filter(lambda found: not found or any(found[-1]))


@given(numbers, st.binary(max_size=8).filter(lambda name: not name.endswith(b"\0")), pairs, without_zeros)
def test_what_is_packed_is_unpacked(mode: int, name: bytes, first: tuple[int, int], found: Any) -> None:
    thing = Thing(7, mode, name, first, found, words=(1, 0, 2))
    raw = thing.pack()
    assert raw == THING.pack(
        mode=mode,
        name=name,
        first=dict(zip(("start", "count"), first, strict=True)),
        pairs=[{"start": start, "count": count} for start, count in found],
        words=[1, 0, 2],
    )
    assert Thing.unpack(raw, number=7) == thing and Thing.unpack(raw + b"more", number=7) == thing


@given(st.binary(min_size=THING.size, max_size=THING.size))
def test_nothing_of_the_structure_is_lost(raw: bytes) -> None:
    """REC-1: any bytes, but for the padding."""
    again = Thing.unpack(raw, number=1).pack()
    assert THING.unpack(again) == THING.unpack(raw)


def test_what_is_not_given_is_zero_and_zeros_at_the_end_are_not_there() -> None:
    thing = Thing(7)
    assert (thing.mode, thing.name, thing.first, thing.pairs, thing.words) == (0, b"", (0, 0), (), ())
    assert thing.pack() == bytes(THING.size)
    raw = THING.pack(name=b"a\0b", pairs=[{}, {"start": 1}], words=[0, 5])
    thing = Thing.unpack(raw, number=7)
    assert (thing.name, thing.pairs, thing.words) == (b"a\0b", ((0, 0), (1, 0)), (0, 5))


def test_a_record_is_a_value() -> None:
    """REC-2."""
    thing = Thing(7, mode=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        thing.mode = 2
    other = dataclasses.replace(thing, mode=2)
    assert (type(other), other.number, other.twice, other.mode, thing.mode) == (Thing, 7, 14, 2, 1)
    assert other != thing and dataclasses.replace(other, mode=1) == thing and hash(thing) == hash(Thing(7, mode=1))


def test_what_does_not_fit_is_refused() -> None:
    for fields in ({"mode": 1 << 32}, {"name": b"123456789"}, {"pairs": ((1, 2),) * 4}, {"first": (1,)}):
        with pytest.raises(ValueError):
            Thing(7, **fields).pack()
    with pytest.raises(ValueError):
        Thing.unpack(bytes(THING.size - 1), number=7)
    with pytest.raises(TypeError):
        Thing.unpack(bytes(THING.size))
    with pytest.raises(ValueError, match="union"):
        record(Structure("either", u8("kind"), union("body", "kind", {1: PAIR})))
    for name in ("pack", "unpack", "layout", "number"):
        with pytest.raises(ValueError, match="another use"):
            record(Structure("clash", u32(name)), "number")
