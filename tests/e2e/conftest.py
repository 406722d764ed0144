"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_kit import Xok, running

FILES = 1000


@pytest.fixture(scope="module")
def system() -> Iterator[Xok]:
    """Mounted, shared by the tests of one file: each works in a directory of its own."""
    with running() as xok:
        yield xok


@pytest.fixture
def fresh() -> Iterator[Xok]:
    """Mounted, for one test that will break it."""
    with running() as xok:
        yield xok


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand files in some sixty directories: many small, a few large, odd names, links; the same every time."""
    root = tmp_path_factory.mktemp("tree")
    chance = random.Random(1998)
    directories = [root]
    for number in range(60):
        directory = chance.choice(directories) / f"directory {number}"
        directory.mkdir()
        directories.append(directory)
    for number in range(FILES - 10):
        size = chance.choice([0, 1, 511, 512, 4095, 4096, 4097, chance.randrange(2000), chance.randrange(60_000)])
        (chance.choice(directories) / f"file{number}.txt").write_bytes(chance.randbytes(size))
    for number in range(6):
        (chance.choice(directories) / f"large{number}.bin").write_bytes(
            chance.randbytes(chance.randrange(1 << 20, 3 << 20))
        )
    (root / ("n" * 255)).write_bytes(b"the longest name")
    (root / "größe – 大きさ.html").write_text("<p>not ASCII</p>")
    (root / "script.sh").write_text("#!/bin/sh\necho run\n")
    (root / "script.sh").chmod(0o755)
    (root / "a%20b&c?d#e").write_text("a name that must be quoted in a URL")
    (root / "link").symlink_to("script.sh")
    (root / "dangling").symlink_to("nowhere/at/all")
    return root
