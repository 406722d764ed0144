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
def refusals(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """(call, code) of each call that was refused; and TABLE-1, over everything that these tests do."""
    from xok_host.abi.calltable import BY_NUMBER, COMMON
    from xok_host.kernel import local
    from xok_host.kernel.kernel import Kernel

    seen: list[tuple[int, int]] = []
    unexpected: set[tuple[str, str]] = set()

    class Checked(Kernel):
        def _refusal(self, entry, error):  # type: ignore[no-untyped-def]
            seen.append((entry.number, error.code))
            row = BY_NUMBER.get(entry.number)
            if row is not None and entry.number in self._handlers:
                known = {fails.code for fails in (*row.fails, *COMMON) if fails.code != 2 or fails in row.fails}
                if error.code not in known:
                    unexpected.add((row.name, type(error).__name__))
            return super()._refusal(entry, error)

    monkeypatch.setattr(local, "Kernel", Checked)
    yield seen
    assert not unexpected, "the call table does not say so"
