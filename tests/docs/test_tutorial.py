"""The tutorial shows the example as it is, in its order, and the example has the size that the tutorial says."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
README = (ROOT / "README.md").read_text()
SOURCE = (ROOT / "examples" / "pocketfs.py").read_text()
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def test_every_excerpt_is_in_the_example_and_in_its_order() -> None:
    excerpts = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
    assert len(excerpts) >= 8
    places = []
    for excerpt in excerpts:
        assert excerpt in SOURCE, f"not in the example:\n{excerpt}"
        places.append(SOURCE.index(excerpt))
    assert places == sorted(places)


def test_it_has_no_more_lines_than_it_says() -> None:
    """All but blank lines, comments, and the docstrings of the module, its classes and its functions."""
    said = {int(number) for text in (TUTORIAL, SOURCE, README) for number in re.findall(r"in (\d+) lines", text)}
    assert said == {150}
    assert len(lines_of_code(SOURCE)) <= 150, len(lines_of_code(SOURCE))


def test_lines_of_code_are_counted() -> None:
    source = '''"""Doc
string."""

import os  # why
# comment

def f(a,
      b):
    """Doc."""
    return """x
y"""
'''
    assert lines_of_code(source) == {4, 7, 8, 10, 11}


def lines_of_code(source: str) -> set[int]:
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            text = node.body[0]
            docstrings.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    return code - docstrings


def test_it_imports_only_what_a_libfs_may() -> None:
    names = {node.module for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in names if name and name.split(".")[0] in ("xok_host", "libfs", "netstack", "mounts")}
    assert all(name.startswith(("libfs.", "xok_host.abi.")) and not name.startswith("libfs.cffs") for name in ours)
