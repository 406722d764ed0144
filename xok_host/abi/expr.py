"""What UDFs compute with, as descriptions: expressions, conditions, fields of structures, and the places of memory.

A description is pure; `xok_host.abi.udf.Function` makes code of it where a statement needs the value.  All is 64-bit
and unsigned.
"""

from __future__ import annotations

from typing import Union

from xok_host.abi.declare import Structure
from xok_host.abi.ebpf import Reg

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
        return Compare("jeq", self, as_expr(other))

    def __ne__(self, other: Operand) -> Cond:  # type: ignore[override]
        return Compare("jne", self, as_expr(other))

    def __lt__(self, other: Operand) -> Cond:
        return Compare("jlt", self, as_expr(other))

    def __le__(self, other: Operand) -> Cond:
        return Compare("jle", self, as_expr(other))

    def __gt__(self, other: Operand) -> Cond:
        return Compare("jgt", self, as_expr(other))

    def __ge__(self, other: Operand) -> Cond:
        return Compare("jge", self, as_expr(other))

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
    return Load(as_expr(address), width)


def bit(value: Expr, mask: int) -> Cond:
    """Whether `value & mask` is not zero, in one instruction."""
    return Compare("jset", value, Const(mask))


def less_signed(left: Expr, right: Operand) -> Cond:
    return Compare("jslt", left, as_expr(right))


def as_expr(value: Operand) -> Expr:
    """A number is a constant."""
    return Const(value) if isinstance(value, int) else value


def _binary(name: str, left: Operand, right: Operand) -> Expr:
    """Build, folding constants and gathering those of sums at the outside, where loads can take them as offsets."""
    a, b = as_expr(left), as_expr(right)
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


def registers_needed(expression: Expr) -> int:
    """How many registers evaluation takes besides the one for the value: an emit's last argument has three."""
    if isinstance(expression, Load):
        return registers_needed(split_address(expression.address)[0])
    if isinstance(expression, Binary):
        right = expression.right
        at_hand = isinstance(right, Const) and -(1 << 31) <= right.signed < 1 << 31
        at_hand = at_hand or (isinstance(right, Var) and isinstance(right.home, Reg))
        return max(registers_needed(expression.left), 0 if at_hand else 1 + registers_needed(right))
    return 0


def is_var_plus(expression: Expr) -> bool:
    if isinstance(expression, Binary) and expression.name == "add" and isinstance(expression.right, Const):
        expression = expression.left
    return isinstance(expression, Var)


def split_address(address: Expr) -> tuple[Expr, int]:
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


def reads_late(expression: Expr, home: Reg) -> bool:
    """Whether evaluating into `home` could overwrite it before the expression has read it for the last time."""
    while isinstance(expression, (Binary, Load)):
        if isinstance(expression, Load):
            expression = split_address(expression.address)[0]
            continue
        if _mentions(expression.right, home):
            return True
        expression = expression.left
    return False
