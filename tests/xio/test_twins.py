"""Compiled and uncompiled are the same stack: same traffic in, same octets out; same constants in `.py` and `.pxd`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from netstack.xio import constants

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
XIO = ROOT / "netstack" / "xio"


def run(seed: int, pure: bool) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "XOK_PURE": "1" if pure else "0"}
    command = [sys.executable, str(HERE / "twin.py"), str(seed)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    return found.stdout.split(maxsplit=1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_traffic_gives_the_same_frames(seed: int) -> None:
    compiled, pure = run(seed, False), run(seed, True)
    assert (compiled[0], pure[0]) == ("so", "py")
    assert compiled[1] == pure[1]
    assert int(compiled[1].split()[0]) > 300


def test_the_constants_are_the_same() -> None:
    declared = dict(re.findall(r"^ +(\w+) = (\w+)$", (XIO / "constants.pxd").read_text(), re.MULTILINE))
    ours = {name: value for name, value in vars(constants).items() if name.isupper()}
    assert {name: int(value, 0) for name, value in declared.items()} == ours


@pytest.mark.parametrize("name", ["timers", "gather", "output", "taplink"])
def test_numbers_in_declarations_are_those_of_the_modules(name: str) -> None:
    declared = dict(re.findall(r"^    ([A-Z_]+) = (\d+)$", (XIO / f"{name}.pxd").read_text(), re.MULTILINE))
    written = dict(re.findall(r"^ +([A-Z_]+) = (\d+)(?: |$)", (XIO / f"{name}.py").read_text(), re.MULTILINE))
    assert declared and declared == written
