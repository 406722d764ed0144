"""The proof of crash safety (docs/xn.md): what these tests share, and how many states they have looked at."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

HERE = os.path.dirname(__file__)
for part in ("", "../xn", "../cffs"):
    sys.path.insert(0, os.path.normpath(os.path.join(HERE, part)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Some of these take a quarter of a minute by themselves; on-demand depth takes as long as it takes."""
    limit = 0 if config.getoption("--crash-states") else 400
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.timeout(limit))


@pytest.fixture(autouse=True)
def fast_parsing() -> Iterator[None]:
    from crash_check import remembered

    with remembered():
        yield


@pytest.fixture
def wanted_states(request: pytest.FixtureRequest) -> int:
    """Distinct states asked for on the command line; 0: what the default run looks at."""
    return int(request.config.getoption("--crash-states"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tallies = sys.modules.get("crash_states")
    if tallies is None or not tallies.TALLIES:
        return
    terminalreporter.section("crash states")
    for name, tally in tallies.TALLIES.items():
        terminalreporter.line(f"{name:34} {tally}")
    total = sum(tally.states for tally in tallies.TALLIES.values())
    mounted = sum(tally.mounted for tally in tallies.TALLIES.values())
    terminalreporter.line(f"{'all':34} {total} distinct crash states checked, {mounted} of them mounted")
