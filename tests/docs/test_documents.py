"""Documents name files and link to one another: what they name must be there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
SOURCE = re.compile(r"`((?:xok_host|libfs|netstack|mounts|tests|benchmarks|systemd|docs)/[\w./@-]*)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    absent = [name for name in LINK.findall(text) if not (document.parent / name).exists()]
    absent += [name for name in SOURCE.findall(text) if not (ROOT / name).exists()]
    assert absent == []
