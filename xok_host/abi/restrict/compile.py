"""Restricted Python to eBPF, through the builder's expressions, variables and labels.

Values while compiling are `Expr` (a number), `View` (a structure at an address), `Array`, `Helper` (a function to be
inlined) or the objects that the file's own names stand for.  Memory does not change while a UDF runs and calls change
no variable of their caller, so numbers may stay descriptions until a statement needs them.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from types import FunctionType
from typing import Any

from xok_host.abi.declare import Structure
from xok_host.abi.restrict import words
from xok_host.abi.restrict.check import Check, counters, placements
from xok_host.abi.restrict.source import Restricted, Source, parameters, stored, walk, without_docstring
from xok_host.abi.restrict.values import Array, Frame, Helper, Slot, View, element, not_zero, opened
from xok_host.abi.udf import (
    CONTEXT_BASE,
    META_BASE,
    NEW_BASE,
    Const,
    Expr,
    Function,
    Var,
    less_signed,
    load,
    registers_needed,
)

MAX_INLINED = 256
"""Calls of helper functions in one program, those inside helpers included."""
MAX_DEPTH = 8
"""Helper functions that call one another."""
_SPARE = 3
"""Registers that any statement leaves to an expression."""

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
}
_OPERATIONS: dict[str, Any] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "<<": lambda a, b: a << b,
    ">>": lambda a, b: a >> b,
}
_COMPARE: dict[type[ast.cmpop], Any] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
_EMITTERS = {words.emit: (3, "emit"), words.emit_ref: (1, "emit_ref"), words.emit_cap: (2, "emit_cap")}
_CONDITIONS = (ast.Compare, ast.BoolOp)


def compile_function(source: Source, places: dict[str, words.Place]) -> bytes:
    """The program.  Raises Restricted."""
    try:
        return _Compiler(source, places).program()
    except Restricted:
        raise
    except ValueError as error:  # of the builder: too many variables, a jump too far
        source.refuse(source.node, str(error), "split the function, or keep fewer variables")


class _Compiler:
    def __init__(self, source: Source, places: dict[str, words.Place]) -> None:
        self._f = Function()
        self._inlined = 0
        self._chain: list[ast.FunctionDef] = []
        self._frame = Frame(source, source.node, None)
        self._bind_inputs(places)

    def program(self) -> bytes:
        check = Check(self._frame.source, self._frame.node)
        self._enter(self._frame, check)
        self._body(without_docstring(self._frame.node.body))
        return self._f.finish()

    def _bind_inputs(self, places: dict[str, words.Place]) -> None:
        frame, f = self._frame, self._f
        for name in parameters(frame.source, frame.node):
            if name in places:
                place = places[name]
                base: Expr = Const((NEW_BASE if place.new else META_BASE) + place.start)
                if place.step:
                    base = f.var(base + f.part * place.step)
                frame.names[name] = View(place.structure, base)
            elif name in words.INPUTS:
                frame.names[name] = Slot(getattr(f, words.INPUTS[name]), int)
            else:
                known = ", ".join(words.INPUTS)
                frame.source.refuse(frame.node, f"{name} is no input", f"inputs are {known}; structures need a Place")

    def _enter(self, frame: Frame, check: Check) -> None:
        given = set(parameters(frame.source, frame.node))
        functions = {n.name for n in walk(list(frame.node.body)) if isinstance(n, ast.FunctionDef)}
        frame.locals = check.locals
        frame.begins = placements(frame.node.body, check.locals - given - functions - counters(frame.node.body))

    def _refuse(self, node: ast.AST, what: str, instead: str = "") -> Any:
        self._frame.source.refuse(node, what, instead)

    # Statements

    def _body(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            for name in self._frame.begins.get(id(statement), ()):
                self._frame.names[name] = Slot(self._f.declare())
            with self._f.scope():
                self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        method = getattr(self, "_do_" + type(node).__name__.lower(), None)
        if method is None:
            self._refuse(node, type(node).__name__.lower(), "leave it out")
        else:
            method(node)

    def _do_pass(self, node: ast.Pass) -> None:
        pass

    def _do_functiondef(self, node: ast.FunctionDef) -> None:
        if node.decorator_list:
            self._refuse(node, "a decorated helper", "write it without the decorator")
        self._frame.names[node.name] = Helper(node, self._frame.source, self._frame)

    def _do_expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Call):
            self._refuse(node, "an expression whose value goes nowhere", "assign it or leave it out")
        self._call(node.value, wanted=False)  # type: ignore[arg-type]

    def _do_assign(self, node: ast.Assign) -> None:
        if len(node.targets) != 1:
            self._refuse(node, "several targets", "one assignment a line")
        self._check_target(node.targets[0])
        self._assign(node.targets[0], self._value(node.value))

    def _do_annassign(self, node: ast.AnnAssign) -> None:
        if node.value is None:
            self._refuse(node, "a variable without a value", "assign one")
        self._assign(node.target, self._value(node.value))  # type: ignore[arg-type]

    def _do_augassign(self, node: ast.AugAssign) -> None:
        if not isinstance(node.target, ast.Name):
            self._refuse(node, "a write to memory", "a UDF's memory is read only; keep values in variables")
            return
        read = ast.copy_location(ast.Name(node.target.id, ast.Load()), node)
        self._assign(node.target, self._binary(node, node.op, self._number(read), self._number(node.value)))

    def _assign(self, target: ast.expr, value: Any) -> None:
        self._check_target(target)
        name = target.id  # type: ignore[attr-defined]
        slot = self._frame.names.get(name)
        if not isinstance(slot, Slot):
            self._refuse(target, f"{name} is a structure or a function already", "use another name")
        self._set(target, slot, value)  # type: ignore[arg-type]

    def _check_target(self, target: ast.expr) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            self._refuse(target, "several targets", "one variable at a time")
        if not isinstance(target, ast.Name):
            self._refuse(target, "a write to memory", "a UDF's memory is read only; keep values in variables")

    def _set(self, node: ast.AST, slot: Slot, value: Any) -> None:
        shape: Any
        if isinstance(value, View):
            shape, number = value.structure, value.base
        elif isinstance(value, Array):
            shape, number = value.field, value.base
        else:
            shape, number = int, self._as_number(node, value)
        if slot.shape is None:
            slot.shape = shape
        if slot.shape != shape:
            self._refuse(node, "a variable that changes between a number and structures", "use two variables")
        self._f.set(slot.variable, number)

    def _do_return(self, node: ast.Return) -> None:
        frame = self._frame
        if frame.outer is None and not frame.done:
            self._f.return_(0 if node.value is None else self._number(node.value))
            return
        if frame.result is not None:
            if node.value is None:
                self._refuse(node, "return without a value beside others with one", "return a value everywhere")
            self._set(node, frame.result, self._value(node.value))  # type: ignore[arg-type]
        self._f.goto(frame.done)

    def _do_if(self, node: ast.If) -> None:
        f = self._f
        otherwise = f.label()
        self._branch(node.test, otherwise, when=False)
        with f.scope():
            self._body(node.body)
        if not node.orelse:
            f.here(otherwise)
            return
        end = f.label()
        f.goto(end)
        f.here(otherwise)
        with f.scope():
            self._body(node.orelse)
        f.here(end)

    def _do_while(self, node: ast.While) -> None:
        f = self._f
        body, test, end = f.label(), f.label(), f.label()
        f.goto(test)
        f.here(body)
        self._loop_body(node.body, test, end)
        f.here(test)
        self._branch(node.test, body, when=True)
        f.here(end)

    def _loop_body(self, body: list[ast.stmt], again: str, end: str) -> None:
        self._frame.loops.append((again, end))
        with self._f.scope():
            self._body(body)
        self._frame.loops.pop()

    def _do_break(self, node: ast.Break) -> None:
        self._f.goto(self._frame.loops[-1][1])

    def _do_continue(self, node: ast.Continue) -> None:
        self._f.goto(self._frame.loops[-1][0])

    def _do_for(self, node: ast.For) -> None:
        if not isinstance(node.target, ast.Name):
            self._refuse(node.target, "a loop over several variables", "one variable a loop")
        if isinstance(node.iter, ast.Call) and self._callee(node.iter) is range:
            self._for_range(node, node.iter)
            return
        over = self._value(node.iter)
        if not isinstance(over, Array):
            self._refuse(node.iter, "a loop over something else than range(…) or an array", "count with range(…)")
            return
        start = self._f.var(over.base)
        stop = self._f.var(start + over.count * over.width)
        self._count(node, start, stop, over.width, lambda: element(over, start))

    def _for_range(self, node: ast.For, call: ast.Call) -> None:
        if call.keywords or not 1 <= len(call.args) <= 3:
            self._refuse(call, "this form of range", "range(stop), range(start, stop) or range(start, stop, step)")
        numbers = [self._number(argument) for argument in call.args]
        start, stop = (Const(0), numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
        step = numbers[2] if len(numbers) == 3 else Const(1)
        if not isinstance(step, Const) or not 0 < step.value < 1 << 31:
            self._refuse(call, "a step that is not a positive constant", "count upwards and subtract")
        # Python looks at both ends once, before the first turn.
        if not isinstance(stop, Const) or stop.value >> 31:
            stop = self._f.var(stop)
        here = self._f.var(start)
        self._count(node, here, stop, step.value, lambda: here)  # type: ignore[attr-defined]

    def _count(self, node: ast.For, here: Var, stop: Expr, step: int, item: Any) -> None:
        """The loop; the variable shares the counter's place if nothing else ever sets it or looks at it afterwards."""
        f = self._f
        body, again, test, end = f.label(), f.label(), f.label(), f.label()
        f.goto(test)
        f.here(body)
        name = node.target.id  # type: ignore[attr-defined]
        slot = self._frame.names.get(name)
        if slot is None:
            value = item()
            self._frame.names[name] = value if isinstance(value, View) else Slot(value, int)
        with f.scope():
            if slot is None and isinstance(value, Expr) and not isinstance(value, Var):
                self._frame.names[name] = Slot(f.var(value), int)
            elif slot is not None:
                self._assign(node.target, item())
            self._loop_body(node.body, again, end)
        f.here(again)
        f.set(here, here + step)
        f.here(test)
        f.goto_if(here < stop, body)
        f.here(end)
        if slot is None:
            del self._frame.names[name]

    # Conditions

    def _branch(self, node: ast.expr, label: str, when: bool) -> None:
        """Jump if the condition is `when`; every part is evaluated only if Python would."""
        f = self._f
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._branch(node.operand, label, not when)
        elif isinstance(node, ast.BoolOp):
            decides = isinstance(node.op, ast.Or)
            out = label if decides == when else f.label()
            for part in node.values[:-1]:
                self._branch(part, out, decides)
            self._branch(node.values[-1], label, when)
            if out != label:
                f.here(out)
        elif isinstance(node, ast.Compare):
            self._compare(node, label, when)
        elif isinstance(node, ast.Call) and self._callee(node) is words.less_signed:
            left, right = self._arguments(node, 2)
            f.goto_if(less_signed(left, right), label, when)
        elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int)):
            if bool(node.value) == when:
                f.goto(label)
        else:
            number = self._number(node)
            f.goto_if(not_zero(number), label, when)

    def _compare(self, node: ast.Compare, label: str, when: bool) -> None:
        f = self._f
        out = f.label() if when else label
        left = self._number(node.left)
        for index, (operator, right_node) in enumerate(zip(node.ops, node.comparators, strict=True)):
            last = index + 1 == len(node.ops)
            if isinstance(operator, (ast.In, ast.NotIn)):
                if len(node.ops) > 1:
                    self._refuse(node, "in as a part of a chain", "write the comparisons one by one, with and")
                self._member(left, operator, right_node, label, when)
                return
            if type(operator) not in _COMPARE:
                self._refuse(node, "is", "compare numbers with == and !=")
            right = self._number(right_node)
            f.goto_if(_COMPARE[type(operator)](left, right), label if last else out, when if last else False)
            left = right
        if out != label:
            f.here(out)

    def _member(self, value: Expr, operator: ast.cmpop, choices: ast.expr, label: str, when: bool) -> None:
        """`x in (1, 2, 3)`: one comparison each."""
        f = self._f
        if not isinstance(choices, (ast.Tuple, ast.List, ast.Set)):
            self._refuse(choices, "in of something else than listed numbers", "in (1, 2, 3)")
            return
        if not isinstance(value, (Const, Var)):
            value = f.var(value)
        found_is = isinstance(operator, ast.In)
        found = label if found_is == when else f.label()
        for choice in choices.elts:
            f.goto_if(value == self._number(choice), found)
        if found != label:
            f.goto(label)
            f.here(found)

    # Values

    def _number(self, node: ast.expr) -> Expr:
        return self._as_number(node, self._value(node))

    def _as_number(self, node: ast.AST, value: Any) -> Expr:
        if isinstance(value, Expr):
            return value
        if isinstance(value, int):
            if not -(1 << 63) <= value < 1 << 64:
                self._refuse(node, f"{value} does not fit into 64 bits", "UDFs compute with 64-bit numbers")
            return Const(int(value))
        if isinstance(value, View):
            self._refuse(node, f"{value.structure.name} is a structure, not a number", "name one of its fields")
        if isinstance(value, Array):
            self._refuse(node, f"{value.field.name} is an array, not a number", "index it")
        return self._refuse(node, f"{type(value).__name__} is not a number", "UDFs compute with integers only")  # type: ignore[no-any-return]

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return self._as_number(node, node.value)
        if isinstance(node, ast.Name):
            return self._name(node)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Subscript):
            return self._subscript(node)
        if isinstance(node, ast.Call):
            return self._call(node, wanted=True)
        if isinstance(node, ast.BinOp):
            return self._binary(node, node.op, self._number(node.left), self._number(node.right))
        if isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.Not):
            operand = self._number(node.operand)
            if isinstance(node.op, ast.USub):
                return self._keep(0 - operand)
            return operand ^ -1 if isinstance(node.op, ast.Invert) else operand
        if isinstance(node, ast.IfExp):
            return self._choice(node)
        if isinstance(node, (*_CONDITIONS, ast.UnaryOp)):
            self._refuse(node, "a condition used as a number", "write `1 if … else 0`")
        return self._refuse(node, f"{type(node).__name__.lower()} is not for UDFs", "numbers, fields and calls only")

    def _name(self, node: ast.Name) -> Any:
        frame: Frame | None = self._frame
        while frame is not None:
            if node.id in frame.names:
                found = frame.names[node.id]
                return opened(found) if isinstance(found, Slot) else found
            if node.id in frame.locals:
                self._refuse(node, f"{node.id} may not be set yet", f"set {node.id} before")
            frame = frame.outer
        return self._frame.source.look_up(node)

    def _attribute(self, node: ast.Attribute) -> Any:
        owner = self._value(node.value)
        if isinstance(owner, View):
            try:
                found = owner.structure[node.attr]
            except KeyError:
                fields = ", ".join(f.name for f in owner.structure.fields if f.name)
                self._refuse(node, f"{owner.structure.name} has no field {node.attr}", f"it has {fields}")
            base = owner.base + found.offset
            if found.count or found.kind == "bytes":
                return Array(found, base)
            return View(found.inner, base) if found.inner is not None else load(base, found.width)
        if isinstance(owner, (Expr, Array)):
            self._refuse(node, f".{node.attr} of a number or array", "only structures have fields")
        try:
            return getattr(owner, node.attr)
        except AttributeError:
            return self._refuse(node, f"there is no {node.attr} there", "check the name")

    def _subscript(self, node: ast.Subscript) -> Any:
        over = self._value(node.value)
        if not isinstance(over, Array) or isinstance(node.slice, (ast.Slice, ast.Tuple)):
            return self._refuse(node, "this subscript", "index an array field with one number")
        index = self._number(node.slice)
        if isinstance(index, Const) and not index.value < over.count:
            self._refuse(node, f"index {index.signed} of {over.field.name}", f"it has elements 0 to {over.count - 1}")
        return element(over, self._keep(over.base + self._keep(index * over.width)))

    def _binary(self, node: ast.AST, operator: ast.operator, left: Expr, right: Expr) -> Expr:
        if isinstance(operator, ast.Pow) and isinstance(left, Const) and isinstance(right, Const):
            return Const(pow(left.value, right.value, 1 << 64))
        if type(operator) not in _BINARY:
            instead = "use // for division" if isinstance(operator, ast.Div) else "use + - * // % & | ^ << >>"
            self._refuse(node, f"operator {type(operator).__name__}", instead)
        if registers_needed(right) >= _SPARE:
            right = self._f.var(right)
        operation = _OPERATIONS[_BINARY[type(operator)]]
        if isinstance(left, Const) and isinstance(right, Const):
            return operation(left, right)  # type: ignore[no-any-return]
        return self._keep(operation(left, right))

    def _keep(self, expression: Expr) -> Expr:
        """The expression, in a variable if it would take more registers than a statement may have left."""
        return self._f.var(expression) if registers_needed(expression) > _SPARE else expression

    def _choice(self, node: ast.IfExp) -> Any:
        f = self._f
        result, otherwise, end = Slot(f.declare()), f.label(), f.label()
        self._branch(node.test, otherwise, when=False)
        with f.scope():
            self._set(node.body, result, self._value(node.body))
        f.goto(end)
        f.here(otherwise)
        with f.scope():
            self._set(node.orelse, result, self._value(node.orelse))
        f.here(end)
        return opened(result)

    # Calls

    def _callee(self, node: ast.Call) -> Any:
        if not isinstance(node.func, (ast.Name, ast.Attribute)):
            return None
        return self._value(node.func)

    def _arguments(self, node: ast.Call, count: int) -> list[Expr]:
        if node.keywords or len(node.args) != count or any(isinstance(a, ast.Starred) for a in node.args):
            self._refuse(node, f"{ast.unparse(node.func)} takes {count} numbers by position", "give just these")
        return [self._number(argument) for argument in node.args]

    def _call(self, node: ast.Call, wanted: bool) -> Any:
        callee = self._callee(node)
        if not callable(callee) and not isinstance(callee, Helper):
            self._refuse(node, f"a call of {ast.unparse(node.func)}", "only words and helper functions can be called")
        if isinstance(callee, Helper):
            return self._inline(node, callee, wanted)
        if callee in _EMITTERS:
            if wanted:
                self._refuse(node, f"the value of {_EMITTERS[callee][1]}", "it has none: put it on a line of its own")
            count, name = _EMITTERS[callee]
            return getattr(self._f, name)(*self._arguments(node, count))
        if callee in (min, max):
            return self._extreme(node, less=callee is min)
        if callee in _WORDS:
            return _WORDS[callee](self, node)
        if isinstance(callee, FunctionType):
            if callee.__module__ == words.__name__:
                self._refuse(node, f"{callee.__name__} used as a number", "put it into a condition")
            return self._inline(node, Helper(Source(callee).node, Source(callee), None), wanted)
        name = ast.unparse(node.func)
        return self._refuse(node, f"a call of {name}", "UDFs call emit, helper functions, range, len, min and max")

    def _extreme(self, node: ast.Call, less: bool) -> Expr:
        left, right = self._arguments(node, 2)
        f, end = self._f, self._f.label()
        result = f.var(left)
        other = right if isinstance(right, (Const, Var)) else f.var(right)
        f.goto_if(result <= other if less else result >= other, end)
        f.set(result, other)
        f.here(end)
        return result

    def _length(self, node: ast.Call) -> Expr:
        over = self._value(node.args[0]) if len(node.args) == 1 else None
        if not isinstance(over, Array):
            return self._refuse(node, "len of something else than an array field", "")  # type: ignore[no-any-return]
        return Const(over.count)

    def _at(self, node: ast.Call, base: int) -> View:
        structure = self._value(node.args[0]) if len(node.args) == 2 and not node.keywords else None
        if not isinstance(structure, Structure):
            self._refuse(node, "this form", "at(STRUCTURE, offset)")
        return View(structure, self._keep(self._number(node.args[1]) + base))  # type: ignore[arg-type]

    def _load(self, node: ast.Call, base: int) -> Expr:
        offset, width = self._arguments(node, 2)
        if not isinstance(width, Const) or width.value not in (1, 2, 4, 8):
            return self._refuse(node.args[1], "this width", "1, 2, 4 or 8 bytes")  # type: ignore[no-any-return]
        return load(self._keep(offset + base), width.value)

    def _offset_of(self, node: ast.Call) -> Expr:
        if len(node.args) == 1 and not node.keywords:
            found = self._value(node.args[0])
            if isinstance(found, (View, Array)):
                return found.base & 0xFFFF_FFFF
        return self._refuse(node, "this form", "offset_of(a structure, array or field of raw bytes)")  # type: ignore[no-any-return]

    def _inline(self, node: ast.Call, helper: Helper, wanted: bool) -> Any:
        """The helper's statements here, with its own names; `return` jumps behind them."""
        names = parameters(helper.source, helper.node)
        if node.keywords or len(node.args) != len(names):
            self._refuse(node, f"{helper.node.name} takes {len(names)} values by position", "give just these")
        caller: Frame = self._frame
        self._bound_inlining(node, helper)
        frame = Frame(helper.source, helper.node, helper.frame)
        check = Check(helper.source, helper.node)
        returns = [n for n in walk(list(helper.node.body)) if isinstance(n, ast.Return)]
        gives = any(r.value is not None for r in returns)
        if gives and check.ends:
            helper.source.refuse(helper.node, f"{helper.node.name} may end without a value", "return one at the end")
        if wanted and not gives:
            self._refuse(node, f"{helper.node.name} gives no value", "put the call on a line of its own")
        f = self._f
        frame.done, frame.result = f.label(), Slot(f.declare()) if gives else None
        changed = stored(helper.node.body)
        for name, argument in zip(names, node.args, strict=True):
            frame.names[name] = self._argument(argument, name in changed)
        with f.scope():
            self._frame = frame
            self._chain.append(helper.node)
            try:
                self._enter(frame, check)
                self._body(without_docstring(helper.node.body))
            finally:
                self._chain.pop()
                self._frame = caller
        f.here(frame.done)
        return None if frame.result is None else opened(frame.result)

    def _bound_inlining(self, node: ast.Call, helper: Helper) -> None:
        self._inlined += 1
        name = helper.node.name
        same = {(n.name, n.lineno) for n in self._chain} | {(self._frame.node.name, self._frame.node.lineno)}
        if (name, helper.node.lineno) in same:
            self._refuse(node, f"{name} calls itself", "write a loop")
        if len(self._chain) >= MAX_DEPTH:
            self._refuse(node, f"more than {MAX_DEPTH} helpers that call one another", "flatten them")
        if self._inlined > MAX_INLINED:
            self._refuse(node, f"more than {MAX_INLINED} calls of helpers, all inlined", "write a loop around one call")

    def _argument(self, node: ast.expr, changed: bool) -> Any:
        """A parameter's value: copied, unless it is at hand already and stays as it is."""
        value = self._value(node)
        base = value.base if isinstance(value, (View, Array)) else value
        if not changed and isinstance(base, (Const, Var, int)):
            return value
        if isinstance(value, (View, Array, Expr, int)):
            slot = Slot(self._f.declare())
            self._set(node, slot, value)
            return slot
        return value  # a structure's declaration or a function


_WORDS: dict[Any, Any] = {
    len: _Compiler._length,
    int: lambda c, node: c._arguments(node, 1)[0],
    words.at: lambda c, node: c._at(node, META_BASE),
    words.new_at: lambda c, node: c._at(node, NEW_BASE),
    words.load: lambda c, node: c._load(node, META_BASE),
    words.load_new: lambda c, node: c._load(node, NEW_BASE),
    words.context_at: lambda c, node: c._at(node, CONTEXT_BASE),
    words.load_context: lambda c, node: c._load(node, CONTEXT_BASE),
    words.offset_of: _Compiler._offset_of,
}
