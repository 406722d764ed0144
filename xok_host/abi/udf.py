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

from xok_host.abi.declare import Structure
from xok_host.abi.ebpf import NEGATED, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Assembler, Reg
from xok_host.abi.expr import (
    CONTEXT,
    CONTEXT_BASE,
    EMIT,
    EMIT_CAP,
    EMIT_REF,
    HELPERS,
    META,
    META_BASE,
    NEW,
    NEW_BASE,
    STACK_BASE,
    STACK_BYTES,
    Binary,
    Both,
    Compare,
    Cond,
    Const,
    Expr,
    Fields,
    Load,
    Not,
    Operand,
    Var,
    as_expr,
    bit,
    is_var_plus,
    less_signed,
    load,
    reads_late,
    registers_needed,
    split_address,
)

__all__ = [
    "CONTEXT",
    "CONTEXT_BASE",
    "Cond",
    "Const",
    "EMIT",
    "EMIT_CAP",
    "EMIT_REF",
    "Expr",
    "Fields",
    "Function",
    "HELPERS",
    "META",
    "META_BASE",
    "NEW",
    "NEW_BASE",
    "Operand",
    "STACK_BASE",
    "STACK_BYTES",
    "Var",
    "bit",
    "less_signed",
    "load",
    "registers_needed",
]


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
        expression = as_expr(value)
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
        self._assign(variable, as_expr(value))

    def at(self, structure: Structure, base: Operand) -> Fields:
        """The fields of a structure at an address; the address is evaluated once if it is not simple."""
        expression = as_expr(base)
        if not isinstance(expression, Const) and not is_var_plus(expression):
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
        self._evaluate(as_expr(value), R0, [R1, R2, R3, R4, R5])
        self._asm.exit()

    def store(self, address: Operand, value: Operand, width: int) -> None:
        """Write to the stack, from STACK_BASE upwards; variables come down from its end, META and NEW are read-only."""
        base, offset = split_address(as_expr(address))
        register = self._value(base, R0, [R1, R2, R3, R4, R5])
        self._asm.store(register, offset, self._value(as_expr(value), R1, [R2, R3, R4, R5]), width)

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
        low, high = as_expr(start), as_expr(stop)
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
            if reads_late(expression, home):
                register = self._evaluate(expression, R0, temporaries[1:])
                self._asm.mov(home, register)
            else:
                self._evaluate(expression, home, temporaries)
            return
        self._asm.store(R10, home, self._value(expression, R0, temporaries[1:]), 8)

    def _call(self, helper: int, *arguments: Operand) -> None:
        for index, argument in enumerate(arguments):
            target = (R1, R2, R3)[index]
            self._evaluate(as_expr(argument), target, [r for r in (R1, R2, R3, R4, R5, R0) if r > target or not r])
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
            base, offset = split_address(expression.address)
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
