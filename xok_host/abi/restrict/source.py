"""A function as source: its syntax tree, the names that it sees, and errors that point at its lines."""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Iterator
from types import FunctionType
from typing import Any, NoReturn


class Restricted(ValueError):
    """What a UDF in restricted Python may not contain: `file:line: what it is; what to write instead`."""


class Source:
    """One function of a file.  `node` has the file's own line numbers."""

    def __init__(self, function: FunctionType) -> None:
        self.name = function.__name__
        self.file = function.__code__.co_filename
        try:
            lines, first = inspect.getsourcelines(function)
            tree = ast.parse(textwrap.dedent("".join(lines)))
        except (OSError, SyntaxError):
            raise Restricted(f"{self.file}: the source of {self.name} cannot be read; define it in a file") from None
        ast.increment_lineno(tree, first - 1)
        node = tree.body[0]
        if not isinstance(node, ast.FunctionDef):
            self.refuse(node, "not a function", "define it with `def`")
        self.node = node
        self._names = {**vars(builtins), **function.__globals__}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._names[name] = cell.cell_contents
            except ValueError:
                continue  # not defined yet, such as the function itself

    def refuse(self, node: ast.AST, what: str, instead: str = "") -> NoReturn:
        line = getattr(node, "lineno", None) or getattr(getattr(self, "node", None), "lineno", 0)
        raise Restricted(f"{self.file}:{line}: {what}" + (f"; {instead}" if instead else ""))

    def look_up(self, node: ast.Name) -> Any:
        """What a name that is no local variable means."""
        try:
            return self._names[node.id]
        except KeyError:
            self.refuse(node, f"{node.id} is not defined", "words such as emit come from xok_host.abi.restrict")


def parameters(source: Source, node: ast.FunctionDef) -> list[str]:
    """The names of a function's parameters: plain ones only."""
    given = node.args
    if given.vararg or given.kwarg or given.kwonlyargs or given.defaults:
        source.refuse(node, f"{node.name} has a default, * or ** parameter", "plain parameters only")
    return [argument.arg for argument in given.posonlyargs + given.args]


def stored(nodes: list[ast.stmt]) -> set[str]:
    """Names that these statements assign or define, not looking into nested functions."""
    return {name for name, _ in _stored(nodes)}


def _stored(nodes: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    for node in walk(nodes):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node
        elif isinstance(node, ast.FunctionDef):
            yield node.name, node


def walk(nodes: list[ast.stmt] | list[ast.expr] | list[ast.AST]) -> Iterator[ast.AST]:
    """Every node below, without the insides of nested functions."""
    todo: list[ast.AST] = list(nodes)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, ast.FunctionDef):
            todo += ast.iter_child_nodes(node)


def free_names(node: ast.FunctionDef) -> set[str]:
    """Names that a nested function uses and does not itself bind."""
    bound = {argument.arg for argument in node.args.posonlyargs + node.args.args} | stored(node.body)
    used: set[str] = set()
    for inner in walk(list(node.body)):
        if isinstance(inner, ast.Name):
            used.add(inner.id)
        elif isinstance(inner, ast.FunctionDef):
            used |= free_names(inner)
    return used - bound


def without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return body[1:]
    return body
