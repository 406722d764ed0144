"""The UDF builder: untrusted deterministic functions written as expressions and blocks, compiled to eBPF.

    def owns_of(leaf: int) -> bytes:
        f = Function()
        sector = f.var(META + f.part * 512)
        inode = f.at(INODE, sector + 128)               # fields by name, from the declarer
        with f.for_range(0, 4) as i:
            extent = f.at(EXTENT, inode.address("extents") + i * EXTENT.size)
            with f.if_(extent.block != 0):
                f.emit(extent.block, extent.count, leaf)
        return f.finish()

Expressions are pure descriptions, 64-bit and unsigned; code comes out where a statement uses them, so memory is read
then.  `f.var(expression)` evaluates now and keeps the value; a variable lives until the `with` block it was made in
ends.  Variables sit in r6–r9 and then on the stack, so make the hottest first.  Comparisons are unsigned; conditions
combine with `&`, `|` and `~` and are evaluated only as far as needed.

What a UDF is given: the instance's bytes at META, and the inputs `f.length`, `f.part`, `f.tree` (r4) and `f.address`
(r5); `acl` and `method` also see the proposed bytes at NEW, and `method` other blocks at CONTEXT.  What it gives:
`f.emit…` and the value of `f.return_`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Union

from xok_host.abi.declare import Structure
from xok_host.abi.ebpf import NEGATED, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Assembler, Reg

# Virtual regions: constants, so that no address of the machine reaches a UDF.
META_BASE = 0x1_0000_0000
"""The instance's bytes, read only."""
STACK_BASE = 0x2_0000_0000
NEW_BASE = 0x3_0000_0000
"""The proposed bytes, read only; `acl` and `method` alone see them."""
CONTEXT_BASE = 0x4_0000_0000
"""What a `method` is told besides (`xok_host.abi.method`), read only."""
STACK_BYTES = 512

# Helpers, numbers in `call`
EMIT, EMIT_REF, EMIT_CAP = 1, 2, 3
HELPERS = {EMIT: "emit", EMIT_REF: "emit_ref", EMIT_CAP: "emit_cap"}

_MASK = (1 << 64) - 1
_COMMUTE = frozenset(("add", "mul", "and", "or", "xor"))

Operand = Union["Expr", int]


class Expr:
    """A 64-bit unsigned value that a UDF will compute."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Operand) -> Expr:
        return _binary("add", self, other)

    def __radd__(self, other: int) -> Expr:
        return _binary("add", other, self)

    def __sub__(self, other: Operand) -> Expr:
        return _binary("add", self, -other) if isinstance(other, int) else _binary("sub", self, other)

    def __rsub__(self, other: int) -> Expr:
        return _binary("sub", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return _binary("mul", self, other)

    def __rmul__(self, other: int) -> Expr:
        return _binary("mul", other, self)

    def __floordiv__(self, other: Operand) -> Expr:
        return _binary("div", self, other)

    def __mod__(self, other: Operand) -> Expr:
        return _binary("mod", self, other)

    def __and__(self, other: Operand) -> Expr:
        return _binary("and", self, other)

    def __or__(self, other: Operand) -> Expr:
        return _binary("or", self, other)

    def __xor__(self, other: Operand) -> Expr:
        return _binary("xor", self, other)

    def __lshift__(self, other: Operand) -> Expr:
        return _binary("lsh", self, other)

    def __rshift__(self, other: Operand) -> Expr:
        return _binary("rsh", self, other)

    def __eq__(self, other: Operand) -> Cond:  # type: ignore[override]
        return Compare("jeq", self, _expr(other))

    def __ne__(self, other: Operand) -> Cond:  # type: ignore[override]
        return Compare("jne", self, _expr(other))

    def __lt__(self, other: Operand) -> Cond:
        return Compare("jlt", self, _expr(other))

    def __le__(self, other: Operand) -> Cond:
        return Compare("jle", self, _expr(other))

    def __gt__(self, other: Operand) -> Cond:
        return Compare("jgt", self, _expr(other))

    def __ge__(self, other: Operand) -> Cond:
        return Compare("jge", self, _expr(other))

    def __bool__(self) -> bool:
        raise TypeError("a UDF value is not known while the UDF is written: use f.if_ or f.while_")


class Const(Expr):
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value & _MASK

    @property
    def signed(self) -> int:
        return self.value - (1 << 64) if self.value >> 63 else self.value


class Binary(Expr):
    __slots__ = ("left", "name", "right")

    def __init__(self, name: str, left: Expr, right: Expr) -> None:
        self.name, self.left, self.right = name, left, right


class Load(Expr):
    """`width` bytes at an address, zero-extended."""

    __slots__ = ("address", "width")

    def __init__(self, address: Expr, width: int) -> None:
        self.address, self.width = address, width


class Var(Expr):
    """A variable; `home` is its register, or its offset from r10; None once its block has ended."""

    __slots__ = ("_home",)

    def __init__(self, home: Reg | int | None) -> None:
        self._home = home

    @property
    def home(self) -> Reg | int:
        if self._home is None:
            raise ValueError("a variable is used after the block that it was made in")
        return self._home

    def end(self) -> Reg | int:
        home, self._home = self.home, None
        return home


class Cond:
    """A condition: a comparison, or a combination."""

    __slots__ = ()

    def __and__(self, other: Cond) -> Cond:
        return Both(self, other)

    def __or__(self, other: Cond) -> Cond:
        return ~Both(~self, ~other)

    def __invert__(self) -> Cond:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a UDF condition is not known while the UDF is written: use f.if_, and & | ~ to combine")


class Compare(Cond):
    __slots__ = ("left", "name", "right")

    def __init__(self, name: str, left: Expr, right: Expr) -> None:
        self.name, self.left, self.right = name, left, right


class Both(Cond):
    __slots__ = ("left", "right")

    def __init__(self, left: Cond, right: Cond) -> None:
        self.left, self.right = left, right


class Not(Cond):
    __slots__ = ("inner",)

    def __init__(self, inner: Cond) -> None:
        self.inner = inner

    def __invert__(self) -> Cond:
        return self.inner


META = Const(META_BASE)
NEW = Const(NEW_BASE)
CONTEXT = Const(CONTEXT_BASE)


def load(address: Operand, width: int) -> Expr:
    """The little-endian integer of 1, 2, 4 or 8 bytes at an address."""
    if width not in (1, 2, 4, 8):
        raise ValueError(f"no load of {width} bytes")
    return Load(_expr(address), width)


def bit(value: Expr, mask: int) -> Cond:
    """Whether `value & mask` is not zero, in one instruction."""
    return Compare("jset", value, Const(mask))


def less_signed(left: Expr, right: Operand) -> Cond:
    return Compare("jslt", left, _expr(right))


def _expr(value: Operand) -> Expr:
    return Const(value) if isinstance(value, int) else value


def _binary(name: str, left: Operand, right: Operand) -> Expr:
    """Build, folding constants and gathering those of sums at the outside, where loads can take them as offsets."""
    a, b = _expr(left), _expr(right)
    if isinstance(a, Const) and isinstance(b, Const):
        return Const(_FOLD[name](a.value, b.value))
    if name in _COMMUTE and isinstance(a, Const):
        a, b = b, a
    if isinstance(b, Const):
        if name in ("add", "or", "xor", "lsh", "rsh", "arsh") and b.value == 0:
            return a
        if name == "mul" and b.value and b.value & (b.value - 1) == 0:
            return _binary("lsh", a, b.value.bit_length() - 1)
        if name == "add" and isinstance(a, Binary) and a.name == "add" and isinstance(a.right, Const):
            return _binary("add", a.left, a.right.value + b.value & _MASK)
    elif name == "add":
        terms, constant = [], 0
        for side in (a, b):
            if isinstance(side, Binary) and side.name == "add" and isinstance(side.right, Const):
                terms.append(side.left)
                constant += side.right.value
            else:
                terms.append(side)
        if constant:
            return _binary("add", Binary("add", *terms), constant & _MASK)
    return Binary(name, a, b)


_FOLD = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a // b if b else 0,
    "mod": lambda a, b: a % b if b else a,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "lsh": lambda a, b: a << (b & 63),
    "rsh": lambda a, b: a >> (b & 63),
    "arsh": lambda a, b: Const(a).signed >> (b & 63),
}


class Fields:
    """A declared structure at an address of the UDF: attributes are loads of its fields."""

    def __init__(self, structure: Structure, base: Expr) -> None:
        self._structure = structure
        self._base = base

    def address(self, path: str = "") -> Expr:
        """Where the field at `path` (or the structure) starts."""
        return self._base + self._structure.offset(path) if path else self._base

    def get(self, path: str) -> Expr:
        """The integer at a path such as `extents[2].count`."""
        field = self._structure.locate(path)
        if field.kind != "int" or field.count:
            raise ValueError(f"{self._structure.name}.{path} is not an integer")
        return load(self._base + field.offset, field.width)

    def __getattr__(self, name: str) -> Expr:
        try:
            return self.get(name)
        except KeyError:
            raise AttributeError(f"{self._structure.name} has no field {name!r}") from None


class Function:
    """One UDF being written.  Statements append code; `finish` gives the program."""

    _REGISTERS = (R6, R7, R8, R9)

    def __init__(self) -> None:
        self._asm = Assembler()
        self._inputs: dict[Reg, Var] = {}
        self._free: list[Reg | int] = []
        self._used = 0
        self._scopes: list[list[Var]] = [[]]
        self._loops: list[tuple[str, str]] = []
        self._labels = 0
        self._closed: tuple[str, int] | None = None

    # Inputs

    @property
    def length(self) -> Var:
        """Bytes of the instance."""
        return self._input(R2)

    @property
    def part(self) -> Var:
        """The partition."""
        return self._input(R3)

    @property
    def tree(self) -> Var:
        """r4: `guard`: the tree's capability; `acl`: the caller's."""
        return self._input(R4)

    @property
    def address(self) -> Var:
        """r5: `refs`, `refcnt`: the `da` of the instance's first byte; `acl`: the time in ns."""
        return self._input(R5)

    def _input(self, register: Reg) -> Var:
        """Inputs keep one home for the whole function, one that nothing before has used: the prologue fills it."""
        if register not in self._inputs:
            self._inputs[register] = Var(self._fresh())
        return self._inputs[register]

    def _fresh(self) -> Reg | int:
        number = self._used
        self._used += 1
        if number < len(self._REGISTERS):
            return self._REGISTERS[number]
        offset = -8 * (number - len(self._REGISTERS) + 1)
        if offset < -STACK_BYTES:
            raise ValueError("too many variables")
        return offset

    # Statements

    def var(self, value: Operand) -> Var:
        """Evaluate now; the variable lives until the enclosing block ends."""
        expression = _expr(value)
        variable = self.declare()
        self._assign(variable, expression)
        return variable

    def declare(self) -> Var:
        """A variable without a value yet: what it holds before it is first set means nothing."""
        variable = Var(self._free.pop() if self._free else self._fresh())
        self._scopes[-1].append(variable)
        return variable

    def set(self, variable: Var, value: Operand) -> None:
        """Assign."""
        self._assign(variable, _expr(value))

    def at(self, structure: Structure, base: Operand) -> Fields:
        """The fields of a structure at an address; the address is evaluated once if it is not simple."""
        expression = _expr(base)
        if not isinstance(expression, Const) and not _is_var_plus(expression):
            expression = self.var(expression)
        return Fields(structure, expression)

    def emit(self, block: Operand, count: Operand, type_: Operand) -> None:
        """One element of the output: `owns` (db, count, type), `refcnt` (da, count, 0), `access` (offset, n, 0)."""
        self._call(EMIT, block, count, type_)

    def emit_ref(self, da: Operand) -> None:
        """`refs`: the `da` of an element referred to."""
        self._call(EMIT_REF, da)

    def emit_cap(self, capability: Operand, rights: Operand) -> None:
        """`guard`: a capability and what it allows."""
        self._call(EMIT_CAP, capability, rights)

    def return_(self, value: Operand = 0) -> None:
        """Stop, with r0 the value (`acl`: not zero approves; `size`: blocks)."""
        self._evaluate(_expr(value), R0, [R1, R2, R3, R4, R5])
        self._asm.exit()

    def store(self, address: Operand, value: Operand, width: int) -> None:
        """Write to the stack, from STACK_BASE upwards; variables come down from its end, META and NEW are read-only."""
        base, offset = _split(_expr(address))
        register = self._value(base, R0, [R1, R2, R3, R4, R5])
        self._asm.store(register, offset, self._value(_expr(value), R1, [R2, R3, R4, R5]), width)

    @contextmanager
    def if_(self, condition: Cond) -> Iterator[None]:
        """The block runs if the condition holds."""
        otherwise = self._label()
        self._branch(condition, otherwise, jump_if=False)
        with self._scope():
            yield
        self._asm.label(otherwise)
        self._closed = otherwise, self._asm.slot

    @contextmanager
    def else_(self) -> Iterator[None]:
        """Directly after an `if_` block: runs if its condition does not hold."""
        if self._closed is None or self._closed[1] != self._asm.slot:
            raise ValueError("else_ must follow an if_ block directly")
        otherwise, end = self._closed[0], self._label()
        self._asm.jump(end)
        self._asm.label(otherwise, again=True)
        with self._scope():
            yield
        self._asm.label(end)
        self._closed = None

    @contextmanager
    def while_(self, condition: Cond) -> Iterator[None]:
        """Loop; the test comes last in the code, so that a turn costs one jump."""
        body, test, end = self._label(), self._label(), self._label()
        self._asm.jump(test)
        self._asm.label(body)
        with self._loop(test, end):
            yield
        self._asm.label(test)
        self._branch(condition, body, jump_if=True)
        self._asm.label(end)

    @contextmanager
    def for_range(self, start: Operand, stop: Operand, step: int = 1) -> Iterator[Var]:
        """`for i in range(start, stop, step)`, unsigned, step > 0; `stop` is evaluated on each turn."""
        if step < 1:
            raise ValueError("for_range counts upwards")
        low, high = _expr(start), _expr(stop)
        with self._scope():
            index = self.var(low)
            body, advance, test, end = self._label(), self._label(), self._label(), self._label()
            if not (isinstance(low, Const) and isinstance(high, Const) and low.value < high.value):
                self._asm.jump(test)
            self._asm.label(body)
            with self._loop(advance, end):
                yield index
            self._asm.label(advance)
            self.set(index, index + step)
            self._asm.label(test)
            self._branch(index < high, body, jump_if=True)
            self._asm.label(end)

    @contextmanager
    def for_each(self, structure: Structure, start: Operand, count: Operand) -> Iterator[Fields]:
        """Each of `count` structures that lie one after the other from address `start`: the fastest loop."""
        with self._scope():
            here = self.var(start)
            if isinstance(count, int):
                length: Expr = Const(count * structure.size)
            else:
                length = count * structure.size
            end = self.var(here + length)
            body, advance, test, after = self._label(), self._label(), self._label(), self._label()
            if not (isinstance(length, Const) and length.value):
                self._asm.jump(test)
            self._asm.label(body)
            with self._loop(advance, after):
                yield Fields(structure, here)
            self._asm.label(advance)
            self.set(here, here + structure.size)
            self._asm.label(test)
            self._branch(here < end, body, jump_if=True)
            self._asm.label(after)

    def break_(self) -> None:
        self._asm.jump(self._loops[-1][1])

    def continue_(self) -> None:
        self._asm.jump(self._loops[-1][0])

    # Jumps by name, for compilers (xok_host.abi.restrict)

    def label(self) -> str:
        """A new place that `here` will name."""
        return self._label()

    def here(self, label: str) -> None:
        self._asm.label(label)

    def goto(self, label: str) -> None:
        self._asm.jump(label)

    def goto_if(self, condition: Cond, label: str, when: bool = True) -> None:
        """Jump there if the condition is `when`."""
        self._branch(condition, label, when)

    def scope(self) -> AbstractContextManager[None]:
        """Variables made in this block give their places back at its end."""
        return self._scope()

    def finish(self) -> bytes:
        """The program: inputs moved to their homes, the statements, and an exit with r0 = 0."""
        if len(self._scopes) != 1:
            raise ValueError("finish inside a block")
        self.return_(0)
        prologue = Assembler()
        for register, variable in self._inputs.items():
            if isinstance(variable.home, Reg):
                prologue.mov(variable.home, register)
            else:
                prologue.store(R10, variable.home, register, 8)
        return prologue.finish() + self._asm.finish()

    # Code generation

    def _label(self) -> str:
        self._labels += 1
        return f".{self._labels}"

    @contextmanager
    def _scope(self) -> Iterator[None]:
        self._scopes.append([])
        yield
        self._close_scope()

    def _close_scope(self) -> None:
        """Homes go back, the fastest to be taken first."""
        self._free += [variable.end() for variable in self._scopes.pop()]
        self._free.sort(key=lambda home: (isinstance(home, Reg), -home if isinstance(home, Reg) else home))

    @contextmanager
    def _loop(self, again: str, end: str) -> Iterator[None]:
        self._loops.append((again, end))
        with self._scope():
            yield
        self._loops.pop()

    def _assign(self, variable: Var, expression: Expr) -> None:
        temporaries = [R0, R1, R2, R3, R4, R5]
        home = variable.home
        if isinstance(home, Reg):
            if _reads_late(expression, home):
                register = self._evaluate(expression, R0, temporaries[1:])
                self._asm.mov(home, register)
            else:
                self._evaluate(expression, home, temporaries)
            return
        self._asm.store(R10, home, self._value(expression, R0, temporaries[1:]), 8)

    def _call(self, helper: int, *arguments: Operand) -> None:
        for index, argument in enumerate(arguments):
            target = (R1, R2, R3)[index]
            self._evaluate(_expr(argument), target, [r for r in (R1, R2, R3, R4, R5, R0) if r > target or not r])
        self._asm.call(helper)

    def _value(self, expression: Expr, target: Reg, spare: list[Reg]) -> Reg:
        """A register that holds the value: its own home if it has one, otherwise `target`."""
        if isinstance(expression, Var) and isinstance(expression.home, Reg):
            return expression.home
        return self._evaluate(expression, target, spare)

    def _evaluate(self, expression: Expr, target: Reg, spare: list[Reg]) -> Reg:
        """Code that leaves the value in `target`, changing only it and the `spare` registers."""
        asm = self._asm
        if isinstance(expression, Const):
            asm.mov(target, expression.signed)
        elif isinstance(expression, Var):
            if isinstance(expression.home, Reg):
                if expression.home != target:
                    asm.mov(target, expression.home)
            else:
                asm.load(target, R10, expression.home, 8)
        elif isinstance(expression, Load):
            base, offset = _split(expression.address)
            asm.load(target, self._value(base, target, spare), offset, expression.width)
        elif isinstance(expression, Binary):
            self._evaluate(expression.left, target, spare)
            right = expression.right
            if isinstance(right, Const) and -(1 << 31) <= right.signed < 1 << 31:
                asm.alu(expression.name, target, right.signed)
            else:
                asm.alu(expression.name, target, self._operand(right, spare))
        else:
            raise TypeError(f"not an expression: {expression!r}")
        return target

    def _operand(self, expression: Expr, spare: list[Reg]) -> Reg:
        if isinstance(expression, Var) and isinstance(expression.home, Reg):
            return expression.home
        if not spare:
            raise ValueError("expression too deep: keep a part of it in a variable")
        return self._evaluate(expression, spare[0], spare[1:])

    def _branch(self, condition: Cond, label: str, jump_if: bool) -> None:
        """Go to the label if the condition is (or is not) true; otherwise fall through."""
        if isinstance(condition, Not):
            self._branch(condition.inner, label, not jump_if)
        elif isinstance(condition, Both):
            if jump_if:
                skip = self._label()
                self._branch(condition.left, skip, jump_if=False)
                self._branch(condition.right, label, jump_if=True)
                self._asm.label(skip)
            else:
                self._branch(condition.left, label, jump_if=False)
                self._branch(condition.right, label, jump_if=False)
        elif isinstance(condition, Compare):
            name = condition.name
            if not jump_if and name in NEGATED:
                name, jump_if = NEGATED[name], True
            left = self._value(condition.left, R0, [R1, R2, R3, R4, R5])
            right: Reg | int
            if isinstance(condition.right, Const) and -(1 << 31) <= condition.right.signed < 1 << 31:
                right = condition.right.signed
            else:
                right = self._operand(condition.right, [R1, R2, R3, R4, R5])
            if jump_if:
                self._asm.branch(name, left, right, label)
            else:
                skip = self._label()
                self._asm.branch(name, left, right, skip)
                self._asm.jump(label)
                self._asm.label(skip)
        else:
            raise TypeError(f"not a condition: {condition!r}")


def registers_needed(expression: Expr) -> int:
    """How many registers evaluation takes besides the one for the value: an emit's last argument has three."""
    if isinstance(expression, Load):
        return registers_needed(_split(expression.address)[0])
    if isinstance(expression, Binary):
        right = expression.right
        at_hand = isinstance(right, Const) and -(1 << 31) <= right.signed < 1 << 31
        at_hand = at_hand or (isinstance(right, Var) and isinstance(right.home, Reg))
        return max(registers_needed(expression.left), 0 if at_hand else 1 + registers_needed(right))
    return 0


def _is_var_plus(expression: Expr) -> bool:
    if isinstance(expression, Binary) and expression.name == "add" and isinstance(expression.right, Const):
        expression = expression.left
    return isinstance(expression, Var)


def _split(address: Expr) -> tuple[Expr, int]:
    """An address as base and constant offset, where the load instruction can hold the offset."""
    if isinstance(address, Binary) and address.name == "add" and isinstance(address.right, Const):
        offset = address.right.signed
        if -(1 << 15) <= offset < 1 << 15:
            return address.left, offset
    return address, 0


def _mentions(expression: Expr, home: Reg) -> bool:
    if isinstance(expression, Var):
        return expression.home == home
    if isinstance(expression, Load):
        return _mentions(expression.address, home)
    if isinstance(expression, Binary):
        return _mentions(expression.left, home) or _mentions(expression.right, home)
    return False


def _reads_late(expression: Expr, home: Reg) -> bool:
    """Whether evaluating into `home` could overwrite it before the expression has read it for the last time."""
    while isinstance(expression, (Binary, Load)):
        if isinstance(expression, Load):
            expression = _split(expression.address)[0]
            continue
        if _mentions(expression.right, home):
            return True
        expression = expression.left
    return False
