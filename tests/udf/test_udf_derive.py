"""Templates from declarations: derived UDFs against a plain walk over what `unpack` gives, and in a running XN."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xn.toy import DEV, Toy, da, install_type
from xok_host.abi import derive as d
from xok_host.abi.calls import Op, OpFlag, OpKind
from xok_host.abi.declare import Structure, array, chars, nested, pad, u8, u16, u32, u64, union
from xok_host.abi.derive import counts, derive, only_first, only_if, only_marked, owns, refers
from xok_host.abi.errors import BogusUpdate, DependentsMissing, RefcountWrong
from xok_host.abi.template import Kind, Partitions
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB
from xok_host.abi.udf import Function
from xok_host.kernel.local import LocalXok
from xok_host.kernel.xn.interp import Program
from xok_host.kernel.xn.template import import_template

EXTENT = Structure("extent", u32("start"), u16("count"), u16("kind"), meaning=[owns("start", "count", type="data")])
POINTER = Structure("pointer", u64("block"), u32("what"), pad(4), meaning=[owns("block", 2, type_field="what")])
FILE = Structure("file", array("extents", EXTENT, 3))
TREE = Structure("tree", nested("root", POINTER), u32("depth"), pad(4), meaning=[only_if("depth")])
INODE = Structure(
    "inode",
    u32("nlink"),
    u16("flags"),
    u8("kind"),
    pad(1),
    union("body", "kind", {1: FILE, 2: TREE}, "where the contents are"),
    meaning=[counts("nlink"), only_if("flags", 4, mask=5)],
)
ENTRY = Structure(
    "entry", u32("ino"), u64("whole"), chars("name", 4), meaning=[refers("ino", shift=5), refers("whole")]
)
NODE = Structure(
    "node",
    u8("used"),
    u8("entries_used"),
    u16("magic"),
    pad(4),
    array("inodes", INODE, 2),
    array("entries", ENTRY, 4),
    array("plain", u16(""), 4),
    size=256,
    meaning=[only_marked("inodes", "used", 1), only_first("entries", "entries_used"), only_if("magic", 0x7E)],
)
TYPES = {"data": 1}


def walk(structure: Structure, values: Any, offset: int, kind: type, da_: int, out: list[tuple[int, int, int]]) -> None:
    """What the meanings say, from `unpack`'s values: as plainly as possible."""
    for item in structure.meaning:
        if isinstance(item, d.OnlyIf):
            value = getattr(values, item.field) & (2**64 - 1 if item.mask is None else item.mask)
            if value != item.equals if item.equals is not None else not value:
                return
    for item in structure.meaning:
        if isinstance(item, kind):
            if isinstance(item, d.Owns):
                count = item.count if isinstance(item.count, int) else getattr(values, item.count)
                start = getattr(values, item.start)
                type_id = getattr(values, item.type_field) if item.type_field else TYPES[str(item.type)]
                if count and (start or not isinstance(item.count, int)):
                    out.append((start, count, type_id))
            elif isinstance(item, d.Counts):
                if getattr(values, item.field):
                    out.append((da_ + offset, getattr(values, item.field), 0))
            elif isinstance(item, d.Refers):
                value = getattr(values, item.field)
                if value:
                    target = value << item.shift & 2**64 - 1
                    out.append((target & 2**56 - 1 | da_ >> 56 << 56 if item.same_device else target, 1, 0))
    for field in structure.fields:
        if not field.name:
            continue
        value, at = getattr(values, field.name), offset + field.offset
        if field.kind == "union":
            arm = dict(field.arms).get(getattr(values, field.by))
            if arm is not None:
                walk(arm, value, at, kind, da_, out)
        elif field.inner is not None and not field.count:
            walk(field.inner, value, at, kind, da_, out)
        elif field.inner is not None:
            for index, element in enumerate(value):
                first = [m for m in structure.meaning if isinstance(m, d.OnlyFirst) and m.array == field.name]
                marks = [m for m in structure.meaning if isinstance(m, d.OnlyMarked) and m.array == field.name]
                live = all(index < getattr(values, m.used) for m in first)
                live = live and all(getattr(values, m.bits) >> index + m.first & 1 for m in marks)
                if live:
                    walk(field.inner, element, at + index * field.width, kind, da_, out)


SMALL = st.integers(0, 5)
EXTENTS = st.fixed_dictionaries({"start": SMALL, "count": SMALL, "kind": SMALL})
BODIES = st.one_of(
    st.tuples(st.just(1), st.fixed_dictionaries({"extents": st.lists(EXTENTS, max_size=3)})),
    st.tuples(
        st.just(2),
        st.fixed_dictionaries({"depth": SMALL, "root": st.fixed_dictionaries({"block": SMALL, "what": SMALL})}),
    ),
    st.tuples(st.integers(3, 255), st.binary(max_size=24)),
)
INODES = st.builds(
    lambda nlink, flags, body: {"nlink": nlink, "flags": flags, "kind": body[0], "body": body[1]},
    SMALL,
    st.sampled_from((4, 4, 6, 5, 0)),
    BODIES,
)
ENTRIES = st.fixed_dictionaries({"ino": SMALL, "whole": st.sampled_from((0, 1, 2**64 - 1)), "name": st.just(b"ab")})
NODES = st.builds(
    lambda **values: NODE.pack(**values),
    used=st.integers(0, 7),
    entries_used=st.integers(0, 6),
    magic=st.sampled_from((0x7E, 0x7E, 0x7E, 0)),
    inodes=st.lists(INODES, max_size=2),
    entries=st.lists(ENTRIES, max_size=4),
)
DERIVED = derive(NODE, b"derived", types=TYPES, step=256)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(NODES | st.binary(min_size=256, max_size=256), st.integers(0, 15))
def test_derived_programs_say_what_the_declaration_means(raw: bytes, part: int) -> None:
    block = bytearray(BLOCK)
    block[part * 256 : part * 256 + 256] = raw
    address = 9 << 56 | 77 << 12
    for name, kind in (("owns", d.Owns), ("refs", d.Refers), ("refcnt", d.Counts)):
        want: list[tuple[int, int, int]] = []
        walk(NODE, NODE.unpack(raw), part * 256, kind, address, want)
        got = Program(getattr(DERIVED, name)).run(block, part, r5=address)[1]
        assert sorted(got) == sorted(want), name


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(min_size=256, max_size=256))
def test_no_bytes_make_a_derived_program_fault(raw: bytes) -> None:
    """DERIVE-1: shown its own partition only."""
    accepted = import_template(DERIVED.pack())
    block = bytes(256 * 3) + raw + bytes(BLOCK)
    for ask in (lambda: accepted._raw("owns", block[:BLOCK], 3, 0), lambda: accepted.refs(block[:BLOCK], 3, 1 << 56)):
        ask()
    accepted.refcnt(block[:BLOCK], 3, 1 << 56)


def test_the_template() -> None:
    accepted = import_template(DERIVED.pack())
    assert accepted.kind == Kind.UNION and accepted.parts == 16
    assert accepted.regions[3] == ((768, 256),)
    places = [part * 256 + NODE.offset(f"inodes[{i}].kind") for part in range(16) for i in (0, 1)]
    assert sorted(accepted.discriminators) == [(place, 1) for place in places]
    assert accepted.guard(bytes(BLOCK), 5) == ((5,), (5,))
    plain = derive(Structure("data", u64("x")), b"plain", parts=2, step=512)
    assert plain.kind == Kind.STRUCT and not plain.refs and not plain.refcnt
    import_template(plain.pack())
    f = Function()
    f.emit_cap(7, 1)
    assert import_template(derive(FILE, b"f", types=TYPES, guard=f.finish()).pack()).guard(bytes(BLOCK), 5) == (
        (7,),
        (),
    )


def test_what_cannot_be_derived() -> None:
    def refused(why: str, *fields: Any, meaning: list[Any]) -> None:
        with pytest.raises(ValueError, match=why):
            Structure("s", u32("n"), chars("raw", 4), *fields, meaning=meaning)

    refused("no field 'x'", meaning=[owns("x", "n", type="data")])
    refused("raw is not an integer", meaning=[counts("raw")])
    refused("raw is not an integer", meaning=[refers("raw")])
    refused("type or type_field", meaning=[owns("n")])
    refused("type or type_field", meaning=[owns("n", type=1, type_field="n")])
    refused("count that is not 0", meaning=[owns("n", 0, type=1)])
    refused("no array of structures 'n'", meaning=[only_first("n", "n")])
    refused("no array of structures 'list'", array("list", u8(""), 3), meaning=[only_first("list", "n")])
    refused("fewer bits", array("list", FILE, 33), meaning=[only_marked("list", "n")])
    refused("no field 'm'", meaning=[only_if("m")])
    with pytest.raises(ValueError, match="no id for the type 'data'"):
        derive(FILE, b"f")
    for how in ({"step": 100}, {"step": 128}, {"step": 0}, {"step": 256, "parts": 17}, {"step": 1024}):
        with pytest.raises(ValueError, match="step|partitions"):
            derive(NODE, b"f", types=TYPES, **how)
    many = Structure("many", array("inodes", INODE, 5))
    with pytest.raises(ValueError, match="80 discriminators, at most 64"):
        derive(many, b"f", types=TYPES, step=256)
    with pytest.raises(ValueError, match="discriminator 'k' is no integer"):
        Structure("s", u8("n"), union("u", "k", {1: FILE}))
    with pytest.raises(ValueError, match="at least one arm"):
        union("u", "k", {})


def test_unions_are_packed_unpacked_and_viewed_as_their_arm() -> None:
    raw = INODE.pack(nlink=1, kind=1, body={"extents": [{"start": 7, "count": 2}]})
    assert len(raw) == INODE.size == 8 + FILE.size and INODE.unpack(raw).body.extents[0].start == 7
    assert INODE.pack(**vars(INODE.unpack(raw))) == raw
    page = bytearray(raw)
    view = INODE.view(page)
    assert view.body.extents[0].count == 2
    view.kind = 2
    assert view.body.root.block == 7 | 2 << 32
    view.body = {"depth": 3}
    assert (view.body.depth, view.body.root.block) == (3, 0)
    view.kind = 9
    assert isinstance(view.body, bytes) and len(INODE.unpack(page).body) == FILE.size
    view.body = b"xy"
    assert bytes(page[8:]) == b"xy" + bytes(FILE.size - 2)
    with pytest.raises(ValueError, match="kind is 9, for which it has no arm"):
        view.body = {"depth": 3}
    with pytest.raises(ValueError, match="kind is 0"):
        INODE.pack(body={"depth": 3})
    with pytest.raises(ValueError, match="at most 24"):
        INODE.pack(body=bytes(25))


def test_the_format_page_tells_the_meaning() -> None:
    page = INODE.format_page()
    assert "| 8 | 24 | union by kind: 1 file, 2 tree | body | where the contents are |" in page
    assert page.endswith("\n* is an element with `nlink` references\n* means something only if `flags` & 0x5 is 0x4\n")
    assert "* owns `count` blocks from `start`, of type data" in EXTENT.format_page()
    assert "* refers to the element at `ino` << 5 on its own device" in ENTRY.format_page()
    assert "* of `inodes` those whose bit in `used` is set, from bit 1" in NODE.format_page()


SIMPLE_INODE = Structure(
    "i", u32("nlink"), u32("size"), u64("block"), meaning=[counts("nlink"), owns("block", type="data")]
)
SIMPLE_NAME = Structure("n", u64("inode"), chars("name", 24), meaning=[refers("inode")])
SIMPLE = Structure("simple", array("inodes", SIMPLE_INODE, 8), array("names", SIMPLE_NAME, 8), size=SECTOR)


def test_a_file_system_without_a_hand_written_udf() -> None:
    """Create, a second name, and removal, by transactions that XN checks with derived programs only."""
    local = LocalXok(nblocks=512)
    toy = Toy(local)
    kind = install_type(toy.env, "simple", derive(SIMPLE, b"simple", types={"data": TYPE_XN_DB}).pack())
    root = toy.env.call("install_mount", DEV, 0, 1, kind, data=b"simple-root")
    toy.cap = root.r1
    sector = bytearray(SECTOR)
    view = SIMPLE.view(sector)
    block = toy.free_block()
    element = da(root.r0, SIMPLE.offset("inodes[2]"))
    view.inodes[2] = {"nlink": 1, "size": 5, "block": block}
    view.names[0] = {"inode": element, "name": b"first"}
    page = toy.page(b"hello")
    create = Op(OpKind.ALLOC, da(root.r0), 0, writes=[(0, bytes(sector))], db=block, count=1, type=TYPE_XN_DB)
    with pytest.raises(BogusUpdate):  # the declaration says that a block is gained; MODIFY says that none is
        toy.transact(Op(OpKind.MODIFY, da(root.r0), 0, writes=[(0, bytes(sector))]))
    toy.transact(replace(create, page=page, flags=OpFlag.PAGES))
    toy.durable(block, root.r0)
    view.names[1] = {"inode": element, "name": b"second"}
    with pytest.raises(RefcountWrong):  # two names and a count of one
        toy.transact(Op(OpKind.MODIFY, da(root.r0), 0, writes=[(0, bytes(sector))]))
    view.inodes[2].nlink = 2
    toy.transact(Op(OpKind.MODIFY, da(root.r0), 0, writes=[(0, bytes(sector))]))
    toy.durable(root.r0)
    sector[:] = bytes(SECTOR)
    toy.transact(Op(OpKind.FREE, da(root.r0), 0, writes=[(0, bytes(sector))], db=block, count=1, type=TYPE_XN_DB))
    toy.durable(root.r0)
    assert not local.recover().violations


# Each element a partition of its own

ROW = Structure(
    "row",
    u32("start"),
    u16("count"),
    u8("kind"),
    u8("nlink"),
    union("rest", "kind", {1: Structure("more", u32("at"), meaning=[owns("at", 1, type="data")])}),
    meaning=[counts("nlink"), owns("start", "count", type="data"), refers("start", shift=12)],
)
TABLE = Structure(
    "table",
    u16("live"),
    u8("on"),
    u8("bits"),
    pad(4),
    array("rows", ROW, 8),
    size=128,
    meaning=[only_first("rows", "live"), only_marked("rows", "bits"), only_if("on", 1)],
)
ROWS = Structure("rows", u64("name", "not read"), array("rows", EXTENT, 9), size=256)


@given(st.integers(0, 1 << 32))
@settings(max_examples=60)
def test_elements_say_together_what_the_structure_says(seed: int) -> None:
    chance = Random(seed)
    place = chance.randrange(SECTORS)
    start = place * SECTOR
    block = bytearray(chance.choice([0, 1, 255, chance.randrange(256)]) for _ in range(BLOCK))
    block[start : start + 4] = bytes([chance.randrange(10), 0, chance.choice([0, 1, 1]), chance.randrange(256)])
    whole, apart = (import_template(derive(TABLE, b"t", types=TYPES, each=each).pack()) for each in ("", "rows"))
    assert (whole.parts, apart.parts) == (8, 64) and apart.described.partitions == Partitions.OVERLAPPING
    for name in ("owns", "refs", "refcnt"):
        together = []
        for part in range(place * 8, place * 8 + 8):
            together += apart.programs[name].run(block, part, r5=DA, windows=apart.windows[part])[1]
        expected = whole.programs[name].run(block, place, r5=DA, windows=whole.windows[place])[1]
        assert together == expected
    for part in range(place * 8, place * 8 + 8):  # DERIVE-3
        seen = []
        for instance in (block, bytes(BLOCK)):
            read = bytearray(SECTOR // 8)
            for name in ("owns", "refs", "refcnt"):
                apart.programs[name].run_traced(instance, part, apart.windows[part], read, r5=DA)
            seen.append(read)
        assert seen[0] == seen[1]


DA = 1 << 56 | 5 << 12


def test_an_element_changes_alone_and_what_all_read_does_not() -> None:
    local = LocalXok(nblocks=512)
    toy = Toy(local)
    kind = install_type(toy.env, "table", derive(TABLE, b"table", types={"data": TYPE_XN_DB}, each="rows").pack())
    root = toy.env.call("install_mount", DEV, 0, 1, kind, data=b"table-root")
    toy.cap = root.r1
    others = [1, 2, 3, 4, 5, 6, 7]
    head = Op(OpKind.MODIFY, da(root.r0), 0, writes=[(0, b"\x08\0\x01\xff")])
    with pytest.raises(DependentsMissing):
        toy.transact(replace(head, dependents=others[:-1]))
    toy.transact(replace(head, dependents=others))
    block = toy.free_block()
    row = bytearray(ROW.size)
    ROW.view(row).start, ROW.view(row).count = block, 1
    at = TABLE.offset("rows[3]")
    give = Op(OpKind.ALLOC, da(root.r0), 3, writes=[(at, bytes(row))], db=block, count=1, type=TYPE_XN_DB)
    with pytest.raises(RefcountWrong):  # it refers to the block as well, and no element there is counted
        toy.transact(give)
    with pytest.raises(DependentsMissing):
        toy.transact(replace(give, own_id=2))
    ROW.view(row).start = 0  # what is at block 0 is nobody's element either, and zero refers to nothing
    ROW.view(row).count, ROW.view(row).kind = 0, 1
    row[8:12] = block.to_bytes(4, "little")
    toy.transact(Op(OpKind.SET_TYPE, da(root.r0), 3, writes=[(at + 6, b"\1")]))
    toy.transact(replace(give, writes=[(at, bytes(row))]))
    toy.transact(replace(head, writes=[(0, b"\x04")], dependents=others))  # 4 to 7 mean nothing any more
    with pytest.raises(BogusUpdate):
        toy.transact(replace(head, writes=[(0, b"\x03")], dependents=others))  # 3 would lose its block
    local.sync()
    local.crash()
    assert local.recover().sound


def test_elements_that_nothing_decides_about_do_not_overlap() -> None:
    rows = derive(ROWS, b"rows", types=TYPES, each="rows", step=256)
    assert rows.partitions == Partitions.TRACED and rows.parts == 16 * 9 and not rows.uses
    import_template(rows.pack())


@pytest.mark.parametrize(
    ("structure", "each", "why"),
    [
        (TABLE, "lines", "has no array of structures 'lines'"),
        (TABLE, "live", "has no array of structures 'live'"),
        (NODE, "inodes", "only the elements mean something"),
        (Structure("two", array("a", ROW, 2), array("b", ROW, 2)), "a", "b means something besides a"),
        (
            Structure("own", u32("start"), array("a", ROW, 2), meaning=[owns("start", 1, type=1)]),
            "a",
            "only the elements",
        ),
    ],
)
def test_what_elements_cannot_mean(structure: Structure, each: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        derive(structure, b"bad", types=TYPES, each=each)
