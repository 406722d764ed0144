"""Shared by all tests: compiled modules are brought up to date before the first import of one."""

from __future__ import annotations

import os
import sys

import hypothesis
import pytest

from xok_host import build

# How long an example takes says nothing on a machine that does other things as well.
hypothesis.settings.register_profile("xok", deadline=None)
hypothesis.settings.load_profile("xok")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--crash-states",
        type=int,
        default=0,
        metavar="N",
        help="tests/crash: go on until N distinct states of a disk after a power failure have been checked",
    )
    parser.addoption(
        "--fuzz-seconds",
        type=float,
        default=0,
        metavar="N",
        help="tests/model: fuzz the call channel, the import of types and a running xokd for N seconds each",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Build, so `python -m pytest tests/x` works after an edit; what fails to compile fails on import."""
    if os.environ.get("XOK_PURE") == "1":
        return
    for name, why in build.build(quiet=True).items():
        print(f"cannot compile {name}: {why}", file=sys.stderr)
