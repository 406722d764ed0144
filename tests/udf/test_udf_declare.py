"""The structure declarer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xok_host.abi.declare import Structure, array, chars, nested, pad, u8, u16, u32, u64

POINT = Structure("point", u16("x"), u32("y"))
THING = Structure(
    "thing",
    u8("a", "first"),
    pad(3),
    u64("b"),
    chars("name", 5),
    nested("origin", POINT),
    array("points", POINT, 3),
    array("words", u16(""), 4),
    size=64,
    doc="An example.",
)


def test_offsets() -> None:
    assert (THING.size, POINT.size) == (64, 6)
    paths = ("a", "b", "name", "origin", "origin.y", "points", "points[2].y", "words[3]")
    assert [THING.offset(path) for path in paths] == [0, 4, 12, 17, 19, 23, 37, 47]
    assert THING["b"].width == 8 and THING.locate("points[1].y").width == 4


@given(st.integers(0, 255), st.integers(0, 2**64 - 1), st.binary(max_size=5), st.integers(0, 2**32 - 1))
def test_round_trip(a: int, b: int, name: bytes, y: int) -> None:
    raw = THING.pack(a=a, b=b, name=name, origin={"y": y}, points=[{}, {"x": 7, "y": y}], words=[1, 2])
    assert len(raw) == 64
    got = THING.unpack(b"??" + raw, 2)
    assert (got.a, got.b, got.name, got.origin.y) == (a, b, name.ljust(5, b"\0"), y)
    assert [p.y for p in got.points] == [0, y, 0] and got.words == [1, 2, 0, 0]
    assert THING.pack(**{k: v for k, v in vars(got).items()}) == raw


def test_the_name_of_a_byte() -> None:
    found = [THING.name_at(at) for at in (-1, 0, 1, 4, 11, 12, 19, 23, 37, 38, 47, 48, 49, 64)]
    places = [
        "",
        "a",
        "",
        "b",
        "b",
        "name",
        "origin.y",
        "points[0].x",
        "points[2].y",
        "points[2].y",
        "words[3]",
        "words[3]",
    ]
    assert found == [*places, "", ""]
    paths = ("a", "b", "origin.y", "points[1].y", "words[2]")
    assert all(THING.name_at(THING.offset(path)) == path for path in paths)


def test_views_write_in_place() -> None:
    buffer = bytearray(b"\xff" * 80)
    view = THING.view(buffer, 8)
    view.a, view.b, view.name = 1, 2, b"ab"
    view.origin = {"x": 3}
    view.points[2].y = 4
    view.words[3] = 5
    view.words = [9]
    assert (view.a, view.b, view.name, view.origin.x, view.origin.y) == (1, 2, b"ab\0\0\0", 3, 0)
    assert view.points[2].y == 4 and list(view.words) == [9, 0xFFFF, 0xFFFF, 5]
    assert buffer[:8] == b"\xff" * 8 and buffer[72:] == b"\xff" * 8
    assert len(view.points) == 3
    assert THING.view(memoryview(bytes(buffer)), 8).b == 2


def test_refusals() -> None:
    with pytest.raises(ValueError, match="twice"):
        Structure("s", u8("a"), u8("a"))
    with pytest.raises(ValueError, match="not 3"):
        Structure("s", u32("a"), size=3)
    with pytest.raises(ValueError, match="does not fit into 1 bytes"):
        THING.pack(a=256)
    with pytest.raises(ValueError, match="does not fit"):
        THING.pack(b=-1)
    with pytest.raises(ValueError, match="at most 5"):
        THING.pack(name=b"123456")
    with pytest.raises(ValueError, match="at most 4"):
        THING.pack(words=[0] * 5)
    with pytest.raises(ValueError, match="no field"):
        THING.pack(c=1)
    for use in (THING.unpack, THING.view):
        with pytest.raises(ValueError, match="needs 64 bytes"):
            use(bytes(63))
        with pytest.raises(ValueError, match="needs 64 bytes"):
            use(bytes(100), -1)
    with pytest.raises(ValueError, match="into 63 bytes"):
        THING.pack_into(bytearray(63))
    with pytest.raises(IndexError):
        THING.offset("points[3].x")
    with pytest.raises(IndexError):
        THING.view(bytes(64)).words[4]
    with pytest.raises(KeyError):
        THING.offset("b.x")
    with pytest.raises(ValueError, match="at least one"):
        array("x", POINT, 0)
    with pytest.raises(ValueError, match="integers or structures"):
        array("x", chars("c", 3), 2)


def test_format_page() -> None:
    page = THING.format_page().splitlines()
    assert page[0] == "### thing (64 bytes)" and page[2] == "An example."
    assert "| 0 | 1 | u8 | a | first |" in page
    assert "| 23 | 18 | point × 3 | points |  |" in page
    assert page[-1] == "| 49 | 15 | pad[15] | — | zero |"
