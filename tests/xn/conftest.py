"""XN's tests share a toy library file system (toy.py)."""

from __future__ import annotations

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))


@pytest.fixture
def local():  # type: ignore[no-untyped-def]
    from xok_host.kernel.local import LocalXok

    return LocalXok(512, max_chunks=16, entries=1 << 10)


@pytest.fixture
def toy(local):  # type: ignore[no-untyped-def]
    from toy import Toy

    return Toy(local)
