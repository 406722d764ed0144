"""Pages with generated parts are as the declarations say (docs/generate.py)."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xok_host.abi.calltable import CALLS

DOCS = Path(__file__).resolve().parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
assert _spec is not None and _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.mark.parametrize("page", generate.PAGES)
def test_pages_are_current(page: str) -> None:
    text = (DOCS / page).read_text()
    assert text == generate.current(page, text), f"run: {generate.COMMAND}"


def test_a_stale_page_would_be_noticed() -> None:
    text = (DOCS / "xn.md").read_text()
    stale = text.replace("Release one pin.", "Release two pins.")
    assert stale != text and generate.current("xn.md", stale) == text
    with pytest.raises(ValueError, match="calls"):
        generate.current("xn.md", text.replace("<!-- generated: calls -->", ""))


def test_every_call_and_failure_is_in_the_reference() -> None:
    text = generate.call_reference()
    assert re.findall(r"^\*\*`(\w+)`\*\*", text, re.M) == [call.name for call in sorted(CALLS, key=lambda c: c.number)]
    assert text.count("* fails with ") == sum(len(call.fails) for call in CALLS)


def test_every_operation_has_its_sentence() -> None:
    assert "|  |" not in generate.operations()


def test_the_command_runs(tmp_path: Path) -> None:
    """It changes nothing here, because the pages are current."""
    before = {page: (DOCS / page).read_bytes() for page in generate.PAGES}
    subprocess.run([sys.executable, "-P", DOCS / "generate.py"], check=True, cwd=tmp_path)
    assert before == {page: (DOCS / page).read_bytes() for page in generate.PAGES}
