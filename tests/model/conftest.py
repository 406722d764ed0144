"""The proof of protection (docs/xn.md): what these tests share, and what the runs have seen."""

from __future__ import annotations

import os
import sys

import pytest

HERE = os.path.dirname(__file__)
for part in ("", "../xn"):
    sys.path.insert(0, os.path.normpath(os.path.join(HERE, part)))

TOLD: list[str] = []
"""What the tests want to have said at the end of the run."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fuzz-seconds"):
        for item in items:
            if str(item.path).startswith(HERE):
                item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def tell() -> list[str]:
    return TOLD


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TOLD:
        terminalreporter.section("protection")
        for line in TOLD:
            terminalreporter.line(line)
