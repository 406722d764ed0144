"""XN's tests share a toy library file system (toy.py), and see to it that calls fail only as the call table says."""

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


@pytest.fixture(autouse=True)
def the_table_is_complete(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """TABLE-1, over everything that these tests do."""
    from xok_host.abi.calltable import BY_NUMBER, COMMON
    from xok_host.kernel.kernel import Kernel

    refusal = Kernel._refusal
    unexpected: set[tuple[str, str]] = set()

    def checked(self, entry, error):  # type: ignore[no-untyped-def]
        row = BY_NUMBER.get(entry.number)
        if row is not None and entry.number in self._handlers:
            known = {fails.code for fails in (*row.fails, *COMMON) if fails.code != 2 or fails in row.fails}
            if error.code not in known:
                unexpected.add((row.name, type(error).__name__))
        return refusal(self, entry, error)

    monkeypatch.setattr(Kernel, "_refusal", checked)
    yield
    assert not unexpected, "the call table does not say so"
