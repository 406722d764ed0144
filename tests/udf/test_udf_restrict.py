"""Restricted Python: a function says the same when Python runs it and when XN's interpreter does (RPY-1)."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xok_host.abi.declare import Structure, array, chars, nested, pad, u8, u16, u32, u64
from xok_host.abi.restrict import (
    MAX_DEPTH,
    MAX_INLINED,
    Fault,
    Place,
    Restricted,
    Udf,
    at,
    context_at,
    emit,
    emit_cap,
    emit_ref,
    less_signed,
    load,
    load_context,
    load_new,
    new_at,
    offset_of,
    udf,
    words,
)
from xok_host.abi.types import SECTOR, TYPE_XN_DB
from xok_host.kernel.xn.interp import Program, UdfFault
from xok_host.kernel.xn.template import import_template

EXTENT = Structure("extent", u32("logical"), u32("count"), u64("start"))
INODE = Structure("inode", u16("mode"), u16("flags"), u32("nlink"), array("extents", EXTENT, 3), size=64)
NODE = Structure(
    "node",
    u8("used"),
    u8("names"),
    u16("end"),
    pad(4),
    nested("first", EXTENT),
    array("numbers", u16(""), 4),
    chars("raw", 8),
    array("inodes", INODE, 3),
    size=512,
)
NAME = Structure("name", u8("length"), u8("kind"))
LIMIT = 5
DIR = 16


def both(compiled: Udf, meta: bytes, part: int = 0, **how: Any) -> tuple[int, list[tuple[int, int, int]]] | None:
    """What both ways say; None if both fault."""
    new = how.get("new")
    try:
        want = compiled.python(meta, part, **how)
    except Fault:
        want = None
    try:
        got = Program(compiled.program).run(meta, part, **how)
    except UdfFault as fault:
        assert want is None, fault
        return None
    assert got == want, new
    return got


def owns_slots(node: Any, part: int) -> None:
    """A directory of C-FFS's kind."""
    for slot in range(1, 4):
        if node.used & 1 << slot:
            inode = node.inodes[slot - 1]
            if inode.flags & 8:
                continue
            kind = DIR if inode.mode & 0xF000 == 0x4000 else int(TYPE_XN_DB)
            for extent in inode.extents:
                if extent.count != 0:
                    emit(extent.start, extent.count, kind)


def refcnt_slots(node: Any, da: int) -> None:
    for slot in range(3):
        inode = node.inodes[slot]
        if node.used >> slot & 1 and inode.nlink:
            emit(da + offset_of(inode), inode.nlink, 0)


def names(node: Any, da: int) -> int:
    """Entries of variable length behind the header; whatever is wrong ends the scan."""
    end = node.end
    if not 16 <= end <= 512:
        return 1
    here = 16
    while here + NAME.size < end:
        entry = at(NAME, here)
        following = here + NAME.size + entry.length
        if entry.length == 0 or following > end:
            return 2
        emit_ref(da + here + (entry.kind & 3) * 128)
        here = following
    return 0


def clamp(value: int, low: int, high: int) -> int:
    if value < low:
        return low
    return high if value > high else value


def with_helpers(node: Any, part: int) -> int:
    def total(inode: Any) -> int:
        result = 0
        for extent in inode.extents:
            if extent.count > LIMIT and extent.logical > part:
                return result + LIMIT
            result += extent.count
        return result

    best = 0
    where = node.inodes[0]
    for i in range(len(node.inodes)):
        found = total(node.inodes[i])
        if found >= best:
            best = found
            where = node.inodes[i]
    emit(where.mode, clamp(best, 2, 9), clamp(node.used, part, 4))
    return best


def wrapping(node: Any, part: int, length: int) -> int:
    x = 0
    x = x - node.used
    y = node.used - node.names * node.first.start
    if x > 5 or -y < 3:
        emit(x, ~y, x << node.names)
    if less_signed(x, 0) and not less_signed(y, part):
        emit(x // node.names, x % node.names, y >> node.used)
    x += 1 << 40
    x *= 3**5
    x ^= y | 0xFFFF_FFFF_0000
    return x + length


def loops(node: Any, part: int) -> int:
    found = 0
    last = 77
    for i in range(node.used & 7, node.names & 15, 2):
        if i == 9:
            break
        for j in range(i, i + 3):
            if j in (3, 5, node.end):
                continue
            found += j
            if found > 40:
                break
        last = i
        i += 5
        emit(i, found, last)
    count = node.used % 9
    while True:
        if count == 0 or count not in (1, 2, 3, 4):
            break
        count -= 1
        if node.raw[count] == 0:
            continue
        emit(count, node.raw[count], node.numbers[count])
    while count < 3 and (node.numbers[count] != 0 or node.raw[count] > 3):
        count += 1
    for number in node.numbers:
        found = max(found, number)
        last = min(last, number)
    return found * 100 + last * 10 + count


def short_circuit(node: Any, part: int) -> int:
    """The right side of `and` reads far outside, unless the left side forbids it."""
    offset = node.end
    good = 1 if offset < 500 and load(offset, 8) % 3 == 0 and clamp(load(offset + 1, 2), 1, 2) == 2 else 0
    if offset >= 512 or load(offset * 2, 1):
        good += 2
    if 3 <= node.used < load(node.used, 1) <= 200:
        good += 4
    return good


def deep_expression(node: Any, part: int) -> int:
    x = node.used
    y = (x + (node.names * (node.end - (node.used ^ (node.names + (node.end & (x - (part + node.names)))))))) % (
        1 + (node.end ^ (node.used * (node.end + (node.names - (x * (node.used + node.end))))))
    )
    emit(
        (x * (y + (x - (y ^ (x + part))))),
        (y * (y + (x - (y ^ (y + part))))),
        load((x & 7) + ((y & 3) + ((x & 1) + (y & 1) * (x & 1))), 1) + (x * (y + (x - (y ^ (x + part))))),
    )
    return y


def acl(before: Any, after: Any, caller: int, now: int) -> int:
    if caller != before.mode:
        return 0
    if after.flags < before.flags or new_at(EXTENT, 8).start != load_new(16, 8):
        return 0
    return 1 if load_new(4, 4) <= now else 2


def method(before: Any, caller: int) -> int:
    return (context_at(EXTENT, 16).start ^ load_context(1, 4)) + before.mode


def guard(node: Any, tree: int) -> None:
    emit_cap(tree, 3)
    if node.used != 0:
        emit_cap(node.used, 1)


PLACE = {"node": Place(NODE, step=512)}
CORPUS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "owns_slots": (owns_slots, PLACE),
    "refcnt_slots": (refcnt_slots, PLACE),
    "names": (names, {"node": NODE}),
    "with_helpers": (with_helpers, PLACE),
    "wrapping": (wrapping, PLACE),
    "loops": (loops, PLACE),
    "short_circuit": (short_circuit, PLACE),
    "deep_expression": (deep_expression, PLACE),
    "guard": (guard, {"node": NODE}),
}
COMPILED = {name: udf(function, **places) for name, (function, places) in CORPUS.items()}
SPARSE = st.binary(min_size=1024, max_size=1024) | st.lists(
    st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=40
).map(lambda changes: _changed(changes))


def _changed(changes: list[tuple[int, int]]) -> bytes:
    out = bytearray(1024)
    for place, byte in changes:
        out[place % 200 if place & 1 else place] = byte & 0x3F if place & 2 else byte
    return bytes(out)


@pytest.mark.parametrize("name", sorted(COMPILED))
@settings(max_examples=150, deadline=None, derandomize=True)
@given(meta=SPARSE, part=st.integers(0, 1), r4=st.integers(0, 3), r5=st.sampled_from((0, 1 << 56 | 5 << 12, 2**64 - 1)))
def test_python_and_the_interpreter_agree(name: str, meta: bytes, part: int, r4: int, r5: int) -> None:
    both(COMPILED[name], meta, part, r4=r4, r5=r5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(min_size=64, max_size=64), st.binary(min_size=64, max_size=64), st.integers(0, 1 << 32))
def test_acl_sees_both(old: bytes, new: bytes, now: int) -> None:
    compiled = udf(acl, before=INODE, after=Place(INODE, new=True))
    both(compiled, old, new=new, r4=int.from_bytes(old[:2], "little"), r5=now)
    assert both(compiled, old, new=new, r4=1 << 20, r5=now) == (0, [])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.binary(min_size=64, max_size=64), st.binary(min_size=30, max_size=40))
def test_method_sees_the_context(old: bytes, context: bytes) -> None:
    compiled = udf(method, before=INODE)
    said = both(compiled, old, context=context)
    assert (said is None) == (len(context) < 32)


def test_answers_worked_out_by_hand() -> None:
    block = bytearray(1024)
    extents = [{"count": 2, "start": 70}, {}, {"count": 1, "start": 90}]
    inodes = [{"mode": 0x4000, "nlink": 2, "extents": extents}, {"flags": 8, "extents": extents}, {"nlink": 1}]
    NODE.pack_into(block, 512, used=0b0111, inodes=inodes)
    assert both(COMPILED["owns_slots"], block, 1) == (0, [(70, 2, 16), (90, 1, 16)])
    base = 512 + NODE.offset("inodes")
    assert both(COMPILED["refcnt_slots"], block, 1, r5=1 << 56) == (
        0,
        [((1 << 56) + base, 2, 0), ((1 << 56) + base + 128, 1, 0)],
    )
    words_ = bytearray(512)
    NODE.pack_into(words_, end=25)
    words_[16:24] = b"\x01\x02a\x01\x01b\x09\x09"
    assert both(COMPILED["names"], words_, r5=0) == (2, [(16 + 256, 1, 0), (19 + 128, 1, 0)])
    assert both(COMPILED["names"], bytes(512)) == (1, [])


def test_windows_are_kept_both_ways() -> None:
    from array import array as words_array

    for windows, good in (([(0, 512)], True), ([(0, 15)], False)):
        flat = words_array("Q", [edge for window in windows for edge in window])
        block = NODE.pack(end=20)
        try:
            COMPILED["names"].python(block, windows=windows)
            said = True
        except Fault:
            said = False
        try:
            Program(COMPILED["names"].program).run(block, windows=flat)
            ran = True
        except UdfFault:
            ran = False
        assert said == ran == good


def test_closures_and_decorators() -> None:
    def owns_of(data_type: int) -> Udf:
        @udf(node=NODE)
        def owns(node: Any) -> None:
            emit(node.first.start, NODE.size + EXTENT.size, data_type)

        return owns  # type: ignore[no-any-return]

    first, second = owns_of(7), owns_of(1 << 40)
    assert both(first, NODE.pack(first={"start": 3})) == (0, [(3, 528, 7)])
    assert both(second, NODE.pack(first={"start": 3})) == (0, [(3, 528, 1 << 40)])
    assert first.__name__ == "owns"

    @udf
    def plain(part: int) -> int:
        return words.load(part, 1) + 1

    assert both(plain, b"\5\6", 1) == (7, [])


def test_a_loop_over_structures_costs_what_the_builders_does() -> None:
    table = Structure("table", array("extents", EXTENT, 256))

    def owns(table: Any) -> None:
        for extent in table.extents:
            if extent.count != 0:
                emit(extent.start, extent.count, 1)

    program = Program(udf(owns, table=table).program)
    program.run(bytes(4096))
    assert program.executed <= 256 * 4 + 10


# Programs nobody thought of

NUMBERS = ("0", "1", "2", "7", "63", "0xFFFFFFFF", "1 << 40", "-1", "part", "node.used", "node.names", "node.end")
NUMBERS += ("node.numbers[1]", "node.raw[2]", "node.first.start", "load(node.used & 31, 2)", "length", "K")


@st.composite
def expressions(draw: st.DrawFn, known: tuple[str, ...], depth: int = 3) -> str:
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(NUMBERS + known * 3))
    kind = draw(st.sampled_from(("binary", "binary", "binary", "minus", "choice", "helper", "extreme", "index")))
    inner = expressions(known, depth - 1)
    if kind == "binary":
        return f"({draw(inner)} {draw(st.sampled_from('+ - * // % & | ^ << >>'.split()))} {draw(inner)})"
    if kind == "minus":
        return draw(st.sampled_from("-~+")) + f"({draw(inner)})"
    if kind == "choice":
        return f"({draw(inner)} if {draw(conditions(known, depth - 1))} else {draw(inner)})"
    if kind == "helper":
        return f"helper({draw(inner)}, {draw(inner)})"
    if kind == "extreme":
        return f"{draw(st.sampled_from(('min', 'max')))}({draw(inner)}, {draw(inner)})"
    return f"node.inodes[{draw(inner)} & 1].nlink"


@st.composite
def conditions(draw: st.DrawFn, known: tuple[str, ...], depth: int = 2) -> str:
    kind = draw(st.sampled_from(("compare", "compare", "chain", "not", "and", "or", "number", "in", "signed")))
    number = expressions(known, max(depth - 1, 0))
    if kind in ("not", "and", "or") and depth > 0:
        inner = conditions(known, depth - 1)
        return f"(not {draw(inner)})" if kind == "not" else f"({draw(inner)} {kind} {draw(inner)})"
    comparison = st.sampled_from(("==", "!=", "<", "<=", ">", ">="))
    if kind == "chain":
        return f"({draw(number)} {draw(comparison)} {draw(number)} {draw(comparison)} {draw(number)})"
    if kind == "number":
        return draw(number)
    if kind == "in":
        return f"({draw(number)} {draw(st.sampled_from(('in', 'not in')))} ({draw(number)}, 2, part))"
    if kind == "signed":
        return f"less_signed({draw(number)}, {draw(number)})"
    return f"({draw(number)} {draw(comparison)} {draw(number)})"


@st.composite
def blocks(draw: st.DrawFn, known: tuple[str, ...], depth: int, loop: bool, indent: str) -> list[str]:
    out: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(("set", "set", "add", "emit", "emit", "if", "for", "over", "while", "leave", "view"))
        )
        if depth == 0 and kind in ("if", "for", "over", "while"):
            kind = "emit"
        if kind == "set":
            name = draw(st.sampled_from(("a", "b", "c", "d", "e", "f")))
            out.append(f"{indent}{name} = {draw(expressions(known))}")
            known = tuple(sorted({*known, name}))
        elif kind == "add":
            name = draw(st.sampled_from(tuple(k for k in known if len(k) == 1)))
            out.append(f"{indent}{name} {draw(st.sampled_from(('+=', '-=', '^=', '>>=')))} {draw(expressions(known))}")
        elif kind == "emit":
            numbers = ", ".join(draw(expressions(known, 2)) for _ in range(3))
            out.append(f"{indent}emit({numbers})")
        elif kind == "if":
            out.append(f"{indent}if {draw(conditions(known))}:")
            out += draw(blocks(known, depth - 1, loop, indent + "    "))
            if draw(st.booleans()):
                out.append(f"{indent}else:")
                out += draw(blocks(known, depth - 1, loop, indent + "    "))
        elif kind == "for":
            name = draw(st.sampled_from(("i", "j", "a")))
            ends = f"{draw(expressions(known, 1))} & 3, {draw(expressions(known, 1))} & 7, {draw(st.integers(1, 3))}"
            out.append(f"{indent}for {name} in range({ends}):")
            out += draw(blocks(tuple(sorted({*known, name})), depth - 1, True, indent + "    "))
        elif kind == "over":
            out.append(f"{indent}for x{depth} in node.inodes[{draw(expressions(known, 1))} & 1].extents:")
            out += draw(blocks((*known, f"x{depth}.count", f"x{depth}.start"), depth - 1, True, indent + "    "))
        elif kind == "while":
            name = f"w{depth}{len(out)}"
            out += [f"{indent}{name} = 4", f"{indent}while {name} != 0 and {draw(conditions(known))}:"]
            out.append(f"{indent}    {name} -= 1")
            out += draw(blocks((*known, name), depth - 1, True, indent + "    "))
        elif kind == "view":
            out.append(f"{indent}v = node.inodes[{draw(expressions(known, 1))} % 3]")
            known = tuple(sorted({*known, "v.nlink", "v.extents[1].start"}))
        elif loop and draw(st.booleans()):
            out.append(indent + draw(st.sampled_from(("break", "continue"))))
            break
        else:
            out.append(f"{indent}return {draw(expressions(known))}")
            break
    return out


@st.composite
def functions(draw: st.DrawFn) -> str:
    body = draw(blocks(("a", "b"), 3, False, "    "))
    head = ["def made(node, part, length):", "    a = 3", "    b = node.names"]
    helper = ["def helper(x, y):", "    for k in range(x & 3):", "        if k == y & 3:", "            return k + y"]
    return "\n".join([*helper, "        y += x", "    return x - y", "", *head, *body, ""])


_made = 0


def define(text: str) -> Callable[..., Any]:
    """The function `made` of a file that exists only here."""
    global _made
    _made += 1
    name = f"<made {_made}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space: dict[str, Any] = {"emit": emit, "load": load, "less_signed": less_signed, "K": 12345, "__name__": "made"}
    exec(compile(text, name, "exec"), space)
    return space["made"]  # type: ignore[no-any-return]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(functions(), st.lists(SPARSE, min_size=1, max_size=3))
def test_any_function(text: str, instances: list[bytes]) -> None:
    try:
        compiled = udf(define(text), node=Place(NODE, step=512))
        Program(compiled.program)
    except Restricted as error:
        assert "too many variables" in str(error) or "may not be set yet" in str(error) or "inlined" in str(error), text
        return
    except ValueError as error:
        assert "slots" in str(error) or "constants" in str(error)
        return
    for meta in (bytes(1024), *instances):
        for part in (0, 1):
            both(compiled, meta, part)


# Refusals

REFUSED: dict[str, tuple[str, str]] = {
    "with open('x') as f: pass": ("2: a with block", "nothing open"),
    "x = 1.5": ("float is not a number", "integers only"),
    "x = 'text'": ("str is not a number", ""),
    "x = part / 2": ("operator Div", "use //"),
    "x = part @ 2": ("operator MatMult", ""),
    "x = part < 3": ("a condition used as a number", "1 if … else 0"),
    "x = [1, 2]": ("list is not for UDFs", ""),
    "x = [i for i in range(3)]": ("a comprehension", "loop over range"),
    "x = y": ("y is not defined", "xok_host.abi.restrict"),
    "x, y = 1, 2": ("several targets", "one variable at a time"),
    "x = z = 1": ("several targets", "one assignment a line"),
    "node.used = 1": ("a write to memory", "read only"),
    "node.used += 1": ("a write to memory", "read only"),
    "part = node": ("changes between a number and structures", ""),
    "import os": ("import", "top of the file"),
    "assert part": ("assert", "an if with a return"),
    "raise ValueError": ("raise", "return"),
    "try:\n        pass\n    finally:\n        pass": ("try", "test before you read"),
    "global K": ("global", "no state"),
    "del part": ("del", ""),
    "match part:\n        case 1: pass": ("match", "elif"),
    "class C: pass": ("a class", "Structure"),
    "for i in range(3):\n        pass\n    else:\n        pass": ("else of a loop", ""),
    "for i in node: pass": ("a loop over something else", "range"),
    "for i, j in node.inodes: pass": ("several variables", ""),
    "for i in range(3, 0, -1): pass": ("a step that is not a positive constant", "count upwards"),
    "for i in range(0, 3, part): pass": ("a step that is not a positive constant", ""),
    "print(part)": ("a call of print", "emit"),
    "part()": ("a call of part", "only words"),
    "emit(1, 2)": ("emit takes 3 numbers", ""),
    "emit(1, 2, type=3)": ("emit takes 3 numbers", ""),
    "x = emit(1, 2, 3)": ("the value of emit", "line of its own"),
    "x = less_signed(1, 2)": ("less_signed used as a number", "condition"),
    "emit(node, 1, 1)": ("node is a structure, not a number", "its fields"),
    "emit(node.raw, 1, 1)": ("raw is an array, not a number", "index it"),
    "emit(node.nothing, 1, 1)": ("node has no field nothing", "it has used, names"),
    "emit(node.raw[8], 1, 1)": ("index 8 of raw", "0 to 7"),
    "emit(node.raw[-1], 1, 1)": ("index -1 of raw", "0 to 7"),
    "emit(node.raw[1:2], 1, 1)": ("this subscript", ""),
    "emit(part.x, 1, 1)": (".x of a number", ""),
    "emit(load(0, 3), 1, 1)": ("this width", "1, 2, 4 or 8"),
    "emit(load(0, part), 1, 1)": ("this width", ""),
    "emit(18446744073709551616, 1, 1)": ("does not fit into 64 bits", ""),
    "emit(part ** 2, 1, 1)": ("operator Pow", ""),
    "part + 1": ("value goes nowhere", "assign it"),
    "if part:\n        x = 1\n    emit(x, 1, 1)": ("4: x may not be set yet", "before the branch"),
    "while part:\n        x = 1\n    emit(x, 1, 1)": ("x may not be set yet", ""),
    "for i in range(part): pass\n    emit(i, 1, 1)": ("i may not be set yet", ""),
    "emit(x, 1, 1)\n    x = 1": ("x may not be set yet", ""),
    "def f(y): return f(y)\n    emit(f(1), 1, 1)": ("f calls itself", "a loop"),
    "def f(y=1): return y\n    emit(f(1), 1, 1)": ("default", "plain parameters"),
    "def f(y):\n        if y: return 1\n    emit(f(1), 1, 1)": ("f may end without a value", ""),
    "def f(y): pass\n    emit(f(1), 1, 1)": ("f gives no value", ""),
    "def f(y): return y + z\n    emit(f(1), 1, 1)\n    z = 1": ("z may not be set yet", ""),
    "if part is node.used: pass": ("is", "=="),
    "if 1 < part in (1, 2): pass": ("chain", ""),
    "if part in node.raw: pass": ("in of something else", ""),
    "x = (y := 3)": ("an assignment inside an expression", "line of its own"),
    "yield part": ("yield", "emit"),
    "x = lambda: 1": ("lambda", "define it with def"),
}


@pytest.mark.parametrize("line", sorted(REFUSED))
def test_refused_with_file_line_and_advice(line: str) -> None:
    what, instead = REFUSED[line]
    text = f"def made(node, part):\n    {line}\n"
    with pytest.raises(Restricted) as caught:
        udf(define(text), node=NODE)
    message = str(caught.value)
    assert message.startswith("<made ") and ":" in message
    where, _, rest = message[1:].partition(">:")
    assert rest[0].isdigit() and what in rest and instead in rest, message


def test_refused_as_a_whole() -> None:
    with pytest.raises(Restricted, match="x is no input; inputs are part, length"):
        udf(define("def made(x):\n    pass\n"))
    with pytest.raises(Restricted, match="no parameter other"):
        udf(define("def made(part):\n    pass\n"), other=NODE)
    with pytest.raises(Restricted, match="not a function"):
        udf(lambda part: part)
    many = "".join(f"    v{i} = load({i}, 1)\n" for i in range(80))
    use = "    emit(" + " + ".join(f"v{i}" for i in range(80)) + ", 1, 1)\n"
    with pytest.raises(Restricted, match="too many variables; split"):
        udf(define("def made(part):\n" + many + use))
    with pytest.raises(TypeError, match="word of restricted Python"):
        emit(1, 2, 3)


def test_bounds_of_inlining() -> None:
    def calls(count: int) -> str:
        return "def f(x): return x\ndef made(part):\n" + "    emit(f(part), 1, 1)\n" * count

    udf(define(calls(MAX_INLINED)))
    with pytest.raises(Restricted, match=f"more than {MAX_INLINED} calls"):
        udf(define(calls(MAX_INLINED + 1)))

    def chain(count: int) -> str:
        text = "def f0(x): return x\n"
        text += "".join(f"def f{i}(x): return f{i - 1}(x) + 1\n" for i in range(1, count))
        return text + f"def made(part):\n    return f{count - 1}(part)\n"

    assert both(udf(define(chain(MAX_DEPTH))), b"", 5) == (5 + MAX_DEPTH - 1, [])
    with pytest.raises(Restricted, match=f"more than {MAX_DEPTH} helpers"):
        udf(define(chain(MAX_DEPTH + 1)))


def test_uses_in_python() -> None:
    """How many partitions read the base of a sector (tracedkit's type), counted by a function."""
    from tests.xn.tracedkit import BASED, DELTAS_AT, SLOTS, based

    entries = Structure("entries", u64("base"), u16("live"), array("deltas", u16(""), SLOTS))

    @udf(sector=Place(entries, step=SECTOR))
    def uses(sector: Any, part: int) -> None:
        readers = 0
        for i in range(SLOTS):
            if sector.deltas[i] != 0:
                readers += 1
        if readers != 0:
            emit(part * SECTOR, 8, readers)
        emit(part * SECTOR + DELTAS_AT, 2 * SLOTS, 1)

    template = import_template(based(uses=uses.program).pack())
    block = bytes(SECTOR) + BASED.pack(100, 0, 5, 6, 0, 0, 0, 0, 0, 9).ljust(SECTOR, b"\0")
    assert uses.python(block, 1)[1] == template.programs["uses"].run(block, 1)[1] == [(512, 8, 3), (522, 16, 1)]
    assert template.read_sets is not None
    template.read_sets.begin(1 << 20)
    assert template.read_sets.survey(block.ljust(4096, b"\0"), 1, 7)
