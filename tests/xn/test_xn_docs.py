"""docs/xn.md gives the disk format as the code declares it."""

from __future__ import annotations

from pathlib import Path

import pytest

from xok_host.abi.declare import Structure
from xok_host.kernel.xn.format import CATALOGUE_SECTOR, FREEMAP_SECTOR, SUPERBLOCK

PAGE = Path(__file__).resolve().parents[2] / "docs" / "xn.md"


@pytest.mark.parametrize("structure", [SUPERBLOCK, CATALOGUE_SECTOR, FREEMAP_SECTOR], ids=lambda s: s.name)
def test_the_format_page_is_the_declaration(structure: Structure) -> None:
    assert structure.format_page() in PAGE.read_text()
