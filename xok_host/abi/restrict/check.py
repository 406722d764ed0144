"""What must hold of a function before code is made of it: only known statements, and no variable read before it is set.

Python would raise UnboundLocalError while running; a UDF has nobody to raise it to, so it is an error here, on the
safe side: a variable counts as set after a branch if both arms set it, after a loop only if it was set before.
"""

from __future__ import annotations

import ast

from xok_host.abi.restrict.source import Source, free_names, parameters, stored, walk

_STATEMENTS: dict[type[ast.stmt], tuple[str, str]] = {
    ast.With: ("a with block", "UDFs hold nothing open"),
    ast.Try: ("try", "a fault ends a UDF: test before you read"),
    ast.Raise: ("raise", "return, with nothing emitted"),
    ast.Assert: ("assert", "write an if with a return"),
    ast.Import: ("import", "import at the top of the file"),
    ast.ImportFrom: ("import", "import at the top of the file"),
    ast.ClassDef: ("a class", "declare a Structure at the top of the file"),
    ast.Global: ("global", "UDFs keep no state: pass values and return them"),
    ast.Nonlocal: ("nonlocal", "return the new value and assign it"),
    ast.Delete: ("del", "leave it out"),
    ast.Match: ("match", "write if and elif"),
    ast.AsyncFunctionDef: ("async", "UDFs wait for nothing"),
    ast.AsyncFor: ("async", "UDFs wait for nothing"),
    ast.AsyncWith: ("async", "UDFs wait for nothing"),
}

_COMPREHENSION = ("a comprehension", "loop over range(…)")
_EXPRESSIONS: dict[type[ast.AST], tuple[str, str]] = {
    ast.ListComp: _COMPREHENSION,
    ast.SetComp: _COMPREHENSION,
    ast.DictComp: _COMPREHENSION,
    ast.GeneratorExp: _COMPREHENSION,
    ast.Lambda: ("lambda", "define it with def"),
    ast.NamedExpr: ("an assignment inside an expression", "put it on a line of its own"),
    ast.Yield: ("yield", "emit what you have"),
    ast.YieldFrom: ("yield", "emit what you have"),
    ast.Await: ("await", "UDFs wait for nothing"),
}

State = frozenset[str] | None
"""Variables that are certainly set; None where control does not come."""


def _both(a: State, b: State) -> State:
    return b if a is None else a if b is None else a & b


class Check:
    """Checks one function.  `ends` says whether control can run off its end."""

    def __init__(self, source: Source, node: ast.FunctionDef) -> None:
        self._source = source
        given = set(parameters(source, node))
        self.locals = given | stored(node.body)
        self._nested = {n.name: free_names(n) for n in walk(list(node.body)) if isinstance(n, ast.FunctionDef)}
        self._breaks: list[list[State]] = []
        self.ends = self._body(node.body, frozenset(given)) is not None

    def _body(self, body: list[ast.stmt], state: State) -> State:
        for statement in body:
            state = self._statement(statement, state)
        return state

    def _reads(self, node: ast.AST, state: State) -> None:
        """Every local variable in an expression is set (what is not reached may read anything)."""
        for name in walk([node]):
            if type(name) in _EXPRESSIONS:
                self._source.refuse(name, *_EXPRESSIONS[type(name)])
            if state is None or not isinstance(name, ast.Name) or not isinstance(name.ctx, ast.Load):
                continue
            wanted = {name.id} | self._nested.get(name.id, set())
            for missing in sorted(wanted & self.locals - state):
                self._source.refuse(
                    name, f"{missing} may not be set yet", f"set {missing} before the branch or loop that sets it"
                )

    def _statement(self, node: ast.stmt, state: State) -> State:
        if type(node) in _STATEMENTS:
            self._source.refuse(node, *_STATEMENTS[type(node)])
        if isinstance(node, ast.If):
            self._reads(node.test, state)
            return _both(self._body(node.body, state), self._body(node.orelse, state))
        if isinstance(node, (ast.While, ast.For)):
            return self._loop(node, state)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr) and not isinstance(node, ast.FunctionDef):
                self._reads(child, state)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            self._reads(ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target), state)
        if isinstance(node, ast.Break):
            self._breaks[-1].append(state)
        if isinstance(node, (ast.Return, ast.Break, ast.Continue)):
            return None
        return None if state is None else state | stored([node])

    def _loop(self, node: ast.While | ast.For, state: State) -> State:
        if node.orelse:
            self._source.refuse(node.orelse[0], "else of a loop", "keep a variable that says how the loop ended")
        self._reads(node.test if isinstance(node, ast.While) else node.iter, state)
        inside = state
        if isinstance(node, ast.For) and state is not None:
            inside = state | stored([ast.copy_location(ast.Expr(node.target), node)])
        self._breaks.append([])
        self._body(node.body, inside)
        broken = self._breaks.pop()
        endless = isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and bool(node.test.value)
        after = None if endless else state
        for found in broken:
            after = _both(after, found)
        return after


def placements(body: list[ast.stmt], names: set[str]) -> dict[int, list[str]]:
    """Before which statement (by id) each variable begins: in the innermost block that holds every mention of it."""
    out: dict[int, list[str]] = {}
    captured = {n for f in walk(list(body)) if isinstance(f, ast.FunctionDef) for n in free_names(f)}
    for name in sorted(names):
        _place(body, name, name in captured, out)
    return out


def _mentions(node: ast.AST, name: str) -> bool:
    return any(
        (isinstance(n, ast.Name) and n.id == name) or (isinstance(n, ast.FunctionDef) and name in free_names(n))
        for n in walk([node])
    )


def _place(body: list[ast.stmt], name: str, outermost: bool, out: dict[int, list[str]]) -> None:
    found = [statement for statement in body if _mentions(statement, name)]
    if not found:
        return
    only = found[0]
    if len(found) == 1 and not outermost and isinstance(only, (ast.If, ast.While, ast.For)):
        head: list[ast.AST] = [only.iter, only.target] if isinstance(only, ast.For) else [only.test]
        blocks = [block for block in (only.body, only.orelse) if any(_mentions(s, name) for s in block)]
        if len(blocks) == 1 and not any(_mentions(part, name) for part in head):
            _place(blocks[0], name, False, out)
            return
    out.setdefault(id(only), []).append(name)


def counters(body: list[ast.stmt]) -> set[str]:
    """Loop variables that only their own loop sets, and that nothing outside of it mentions."""
    loops: dict[str, list[ast.For]] = {}
    for node in walk(list(body)):
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            loops.setdefault(node.target.id, []).append(node)
    captured = {n for f in walk(list(body)) if isinstance(f, ast.FunctionDef) for n in free_names(f)}
    out = set()
    for name, found in loops.items():
        inside = sum(_count(statement, name) for loop in found for statement in loop.body)
        everywhere = sum(_count(statement, name) for statement in body)
        alone = not any(name in stored(loop.body) for loop in found)
        if alone and name not in captured and everywhere == inside + len(found):
            out.add(name)
    return out


def _count(node: ast.AST, name: str) -> int:
    return sum(isinstance(n, ast.Name) and n.id == name for n in walk([node]))
