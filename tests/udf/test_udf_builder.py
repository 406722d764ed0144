"""The builder: what a function says in expressions and blocks is what its program does."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xok_host.abi.declare import Structure, array, chars, pad, u8, u16, u32, u64
from xok_host.abi.ebpf import disassemble
from xok_host.abi.udf import META, STACK_BASE, Cond, Expr, Function, bit, less_signed, load
from xok_host.kernel.xn.interp import Program

MASK = 2**64 - 1


def run(f: Function, meta: bytes = b"", part: int = 0, **how: Any) -> tuple[int, list[tuple[int, int, int]]]:
    return Program(f.finish()).run(meta, part, **how)


OPERATORS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[int, int], int]]] = {
    "+": (operator.add, operator.add),
    "-": (operator.sub, operator.sub),
    "*": (operator.mul, operator.mul),
    "&": (operator.and_, operator.and_),
    "|": (operator.or_, operator.or_),
    "^": (operator.xor, operator.xor),
    "//": (operator.floordiv, lambda a, b: a // b if b else 0),
    "%": (operator.mod, lambda a, b: a % b if b else a),
    "<<": (operator.lshift, lambda a, b: a << b % 64),
    ">>": (operator.rshift, lambda a, b: a >> b % 64),
}
LEAVES = (
    st.integers(0, 8).map(lambda i: ("var", i))
    | st.sampled_from((0, 1, 5, 63, 0x7FFFFFFF, 0x80000000, MASK, 1 << 40)).map(lambda c: ("const", c))
    | st.integers(0, 24).map(lambda i: ("load", i))
)
TREES = st.recursive(LEAVES, lambda inner: st.tuples(st.sampled_from(sorted(OPERATORS)), inner, inner), max_leaves=9)
BYTES = bytes(range(3, 35))


def build(tree: Any, variables: list[Any]) -> Any:
    kind = tree[0]
    if kind == "var":
        return variables[tree[1]]
    if kind == "const":
        return load(META, 1) - load(META, 1) + tree[1]
    if kind == "load":
        return load(META + tree[1], 8)
    return OPERATORS[kind][0](build(tree[1], variables), build(tree[2], variables))


def value(tree: Any, variables: list[int]) -> int:
    kind = tree[0]
    if kind == "var":
        return variables[tree[1]]
    if kind == "const":
        return int(tree[1])
    if kind == "load":
        return int.from_bytes(BYTES[tree[1] : tree[1] + 8], "little")
    return OPERATORS[kind][1](value(tree[1], variables), value(tree[2], variables)) & MASK


@settings(max_examples=400, deadline=None, derandomize=True)
@given(TREES, st.integers(0, 8))
def test_expressions(tree: Any, target: int) -> None:
    """Any expression, over variables in registers and on the stack, also assigned to one it reads."""
    f = Function()
    variables = [f.var(7 * i + 1) for i in range(8)] + [f.part]
    expression = build(tree, variables)
    try:
        f.set(variables[target], expression)
    except ValueError as error:
        assert "too deep" in str(error)
        return
    for index, variable in enumerate(variables):
        f.emit(index, variable, variable + 1)
    numbers = [7 * i + 1 for i in range(8)] + [11]
    numbers[target] = value(tree, numbers)
    assert run(f, BYTES, 11)[1] == [(i, n, n + 1 & MASK) for i, n in enumerate(numbers)]


CONDITIONS: dict[str, tuple[Callable[[Expr, Expr], Cond], Callable[[int, int], bool]]] = {
    "==": (operator.eq, operator.eq),
    "!=": (operator.ne, operator.ne),
    "<": (operator.lt, operator.lt),
    "<=": (operator.le, operator.le),
    ">": (operator.gt, operator.gt),
    ">=": (operator.ge, operator.ge),
}


def cond(tree: Any, a: Expr, b: Expr) -> Cond:
    if tree[0] in ("&", "|"):
        return OPERATORS[tree[0]][0](cond(tree[1], a, b), cond(tree[2], a, b))  # type: ignore[no-any-return]
    if tree[0] == "~":
        return ~cond(tree[1], a, b)
    if tree[0] == "bit":
        return bit(a, tree[1])
    return CONDITIONS[tree[0]][0](a if tree[1] else b, b + tree[2])


def truth(tree: Any, a: int, b: int) -> bool:
    if tree[0] == "&":
        return truth(tree[1], a, b) and truth(tree[2], a, b)
    if tree[0] == "|":
        return truth(tree[1], a, b) or truth(tree[2], a, b)
    if tree[0] == "~":
        return not truth(tree[1], a, b)
    if tree[0] == "bit":
        return bool(a & tree[1])
    return CONDITIONS[tree[0]][1](a if tree[1] else b, b + tree[2])


SIMPLE = st.tuples(st.sampled_from(sorted(CONDITIONS)), st.booleans(), st.integers(0, 2)) | st.tuples(
    st.just("bit"), st.integers(1, 7)
)
COMBINED = st.recursive(
    SIMPLE,
    lambda inner: st.tuples(st.sampled_from("&|"), inner, inner) | st.tuples(st.just("~"), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(COMBINED)
def test_conditions(tree: Any) -> None:
    """Any combination, as the test of an if with else and of a loop."""
    f = Function()
    a, b = f.var(f.part & 7), f.var(f.part >> 3)
    with f.if_(cond(tree, a, b)):
        f.emit(1, a, b)
    with f.else_():
        f.emit(0, a, b)
    with f.while_(cond(tree, a, b)):
        f.return_(9)
    program = Program(f.finish())
    for x in range(8):
        for y in (0, 1, 5):
            want = truth(tree, x, y)
            assert program.run(b"", y << 3 | x) == (9 if want else 0, [(int(want), x, y)])


def test_signed_comparison() -> None:
    f = Function()
    with f.if_(less_signed(f.part, 3)):
        f.return_(1)
    program = Program(f.finish())
    assert program.run(b"", 2)[0] == 1 and program.run(b"", MASK)[0] == 1 and program.run(b"", 3)[0] == 0


def test_loops() -> None:
    f = Function()
    with f.for_range(2, f.part) as i:
        with f.if_(i == 4):
            f.continue_()
        with f.for_range(0, i, step=2) as j:
            with f.if_(j > 5):
                f.break_()
            f.emit(i, j, 1)
    want = [(i, j, 1) for i in range(2, 9) if i != 4 for j in range(0, i, 2) if j <= 5]
    program = Program(f.finish())
    assert program.run(b"", 9)[1] == want
    assert program.run(b"", 2)[1] == program.run(b"", 0)[1] == []


EXTENT = Structure("extent", u32("logical"), u32("count"), u64("start"))
SLOT = Structure("slot", u16("mode"), pad(6), array("extents", EXTENT, 3), size=64)
HEADER = Structure("header", u8("used"), u8("names"), u16("end"), pad(4), u64("owner"), chars("rest", 48))


def test_file_system_functions() -> None:
    """A sector with a bitmap of slots, extents in each, and names of variable length: what C-FFS needs."""
    owns = Function()
    sector = owns.var(META + owns.part * 512)
    header = owns.at(HEADER, sector)
    with owns.for_range(1, 4) as slot:
        with owns.if_(bit(header.used >> slot, 1)):
            inode = owns.at(SLOT, sector + slot * 64)
            with owns.for_each(EXTENT, inode.address("extents"), 3) as extent:
                with owns.if_(extent.count != 0):
                    owns.emit(extent.start, extent.count, inode.mode)
    names = Function()
    base = names.var(META + names.part * 512)
    here = names.var(base + 256)
    with names.for_range(0, load(base + HEADER.offset("names"), 1)):
        names.emit_ref(names.address + (here - META) + load(here, 1))
        names.set(here, here + load(here, 1) + 1)
    block = bytearray(4096)
    view = HEADER.view(block, 1024)
    view.used, view.names = 0b1010, 3
    SLOT.pack_into(block, 1024 + 64, mode=5, extents=[{"count": 1, "start": 77}])
    SLOT.pack_into(block, 1024 + 128, mode=6, extents=[{"count": 1, "start": 88}])
    third = [{"count": 2, "start": 1 << 40}, {}, {"count": 3, "start": 99}]
    SLOT.pack_into(block, 1024 + 192, mode=7, extents=third)
    assert run(owns, block, 2)[1] == [(77, 1, 5), (1 << 40, 2, 7), (99, 3, 7)]
    assert run(owns, block, 1)[1] == []
    block[1280:1290] = b"\x03abc\x00\x04defg"
    assert run(names, block, 2, r5=5 << 12)[1] == [((5 << 12) + at, 1, 0) for at in (1283, 1284, 1289)]


def test_fast_loop_is_short() -> None:
    """An empty extent costs four instructions; the format of UDFs is judged by this loop."""
    f = Function()
    with f.for_each(EXTENT, META, 256) as extent:
        with f.if_(extent.count != 0):
            f.emit(extent.start, extent.count, 1)
    program = Program(f.finish())
    program.run(bytes(4096))
    assert program.executed <= 256 * 4 + 8


def test_stack_as_scratch() -> None:
    f = Function()
    with f.for_range(0, 16) as i:
        f.store(i * 4 + STACK_BASE, i * i, 4)
    f.return_(load(f.part * 4 + STACK_BASE, 4))
    program = Program(f.finish())
    assert [program.run(b"", i)[0] for i in range(16)] == [i * i for i in range(16)]


def test_many_variables_do_not_collide() -> None:
    f = Function()
    kept = []
    for i in range(20):
        kept.append(f.var(f.part + i))
        with f.if_(f.length != 1):
            inner = f.var(1000 + i)
            f.set(inner, inner + 1)
    for variable in kept:
        f.emit(variable, f.tree, f.address)
    assert run(f, b"", 5, r4=6, r5=7)[1] == [(5 + i, 6, 7) for i in range(20)]


def test_misuse_is_named() -> None:
    f = Function()
    with pytest.raises(TypeError, match="if_ or f.while_"):
        bool(f.part + 1)
    with pytest.raises(TypeError, match="combine"):
        bool(f.part == 1)
    with f.if_(f.part == 0):
        inner = f.var(1)
    with pytest.raises(ValueError, match="after the block"):
        f.emit(inner, 1, 1)
    f.emit(1, 1, 1)
    with pytest.raises(ValueError, match="directly"):
        with f.else_():
            pass
    with pytest.raises(ValueError, match="upwards"):
        with f.for_range(0, 3, step=0):
            pass
    with pytest.raises(AttributeError, match="no field"):
        f.at(EXTENT, META).size  # noqa: B018
    with pytest.raises(ValueError, match="not an integer"):
        f.at(SLOT, META).extents  # noqa: B018
    with pytest.raises(ValueError, match="no load"):
        load(META, 3)
    g = Function()
    with g.if_(g.part == 0):
        with pytest.raises(ValueError, match="inside a block"):
            g.finish()
    h = Function()
    with pytest.raises(ValueError, match="too many variables"):
        for i in range(100):
            h.var(i)


def test_disassembly() -> None:
    f = Function()
    with f.if_(f.part < 3):
        f.emit(1 << 40, 2, 3)
    assert disassemble(f.finish()).splitlines() == [
        "   0  mov64 r6, r3",
        "   1  jge r6, 3, +5  → 7",
        "   2  lddw r1, 0x10000000000",
        "   4  mov64 r2, 2",
        "   5  mov64 r3, 3",
        "   6  call 1",
        "   7  mov64 r0, 0",
        "   8  exit",
    ]
