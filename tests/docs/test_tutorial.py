"""The tutorial shows the example as it is, in its order, and the example has the size that the tutorial says."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
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


def test_it_has_the_lines_that_it_says() -> None:
    """Without imports, docstrings, comments and blank lines."""
    other: set[int] = set()
    for node in ast.walk(ast.parse(SOURCE)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text or isinstance(node, ast.Import | ast.ImportFrom):
            other.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline):
        if token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    said = re.search(r"in (\d+) lines", TUTORIAL)
    assert said is not None and abs(len(code - other) - int(said[1])) <= 10, len(code - other)


def test_it_imports_only_what_a_libfs_may() -> None:
    names = {node.module for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in names if name and name.split(".")[0] in ("xok_host", "libfs", "netstack", "mounts")}
    assert all(name == "libfs.api" or name.startswith("xok_host.abi.") for name in ours)
