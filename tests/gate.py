"""What `./xok test` runs: format, lint, types, import contracts; then all tests, the pure ones beside them uncompiled.

With arguments, only pytest runs, with these arguments. A machine that lacks what the tests are about (FUSE, TUN,
eBPF) is an error here, never a reason to skip. Exit status: 0 when everything passed, 1 otherwise.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]

# Tests of what is compiled but needs no kernel facility: run once more with XOK_PURE=1.
PURE = ("udf", "xn", "model", "cffs", "dpf", "wire", "xio", "cheetah")

# Seconds after which a hung test run is stopped; each test has its own, shorter limit (pyproject.toml).
LIMIT = 1500

_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}


def missing_facilities() -> list[str]:
    """What this machine lacks of what the tests are about, as sentences."""
    missing = []
    for device, module in (("/dev/fuse", "fuse"), ("/dev/net/tun", "tun")):
        if not os.path.exists(device):
            subprocess.run(["modprobe", module], capture_output=True)
        try:
            os.close(os.open(device, os.O_RDWR))
        except OSError as error:
            missing.append(f"{device} cannot be opened: {error.strerror}")
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        missing.append(f"no bpf(2) number known for {platform.machine()}")
    else:
        libc = ctypes.CDLL(None, use_errno=True)
        attributes = (ctypes.c_uint32 * 18)(1, 4, 8, 1)  # BPF_MAP_CREATE: hash, key 4, value 8, one entry
        descriptor = libc.syscall(number, 0, ctypes.byref(attributes), ctypes.sizeof(attributes))
        if descriptor < 0:
            missing.append(f"bpf(2) refused to make a map: {os.strerror(ctypes.get_errno())}")
        else:
            os.close(descriptor)
    return missing


@dataclass(frozen=True)
class Step:
    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = LIMIT

    def run(self, output: TextIO | None = None) -> bool:
        """Whether it passed.  What it prints goes to `output`, or where ours goes."""
        print(f"== {self.name}", file=output, flush=True)
        began = time.monotonic()
        environment = {**os.environ, **self.environment}
        try:
            status = subprocess.run(
                self.command, cwd=ROOT, env=environment, timeout=self.limit, stdout=output, stderr=output
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
            print(f"stopped after {self.limit} s", file=output)
        if status:
            print(f"== {self.name}: FAILED ({time.monotonic() - began:.0f} s)", file=output, flush=True)
        return status == 0


class Beside:
    """A step that runs while others do, after them in priority; what it prints comes when it is waited for."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self._output = tempfile.TemporaryFile("w+")
        self._passed = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._passed = self.step.run(self._output)

    def wait(self) -> bool:
        self._thread.join()
        self._output.seek(0)
        print(self._output.read(), end="", flush=True)
        return self._passed


def main(arguments: Sequence[str]) -> int:
    tool = [sys.executable, "-P", "-m"]
    os.environ.pop("XOK_PURE", None)
    # What a test runs with plain `python` finds this checkout and not the directory it happens to be in.
    os.environ["PYTHONSAFEPATH"] = "1"
    missing = missing_facilities()
    if missing:
        print("the tests need what this machine lacks:", *missing, sep="\n  ")
        return 1
    if arguments:
        on_demand = any(argument.startswith(("--crash-states", "--fuzz-seconds")) for argument in arguments)
        return 0 if Step("pytest", [*tool, "pytest", *arguments], limit=None if on_demand else LIMIT).run() else 1
    (ROOT / "build").mkdir(exist_ok=True)
    pure = [f"tests/{part}" for part in PURE if any((ROOT / "tests" / part).glob("test_*.py"))]
    linter = Path(sys.executable).with_name("lint-imports")
    first = [
        Step("ruff format", [*tool, "ruff", "format", "--check", "--quiet", "."]),
        Step("ruff check", [*tool, "ruff", "check", "--quiet", "."]),
        Step("mypy", [*tool, "mypy"]),
        Step("import contracts", [str(linter), "--cache-dir", "build/import-linter"], {"PYTHONPATH": str(ROOT)}),
    ]
    failed = [step.name for step in first if not step.run()]
    uncompiled = ["nice", *tool, "pytest", "-q", "-m", "not slow", "-o", "cache_dir=build/pytest-uncompiled", *pure]
    beside = Beside(Step("tests, uncompiled", uncompiled, {"XOK_PURE": "1"}))
    everything = Step("tests", [*tool, "pytest", "-q"])
    if not everything.run():
        failed.append(everything.name)
    if not beside.wait():
        failed.append(beside.step.name)
    if failed:
        print("failed:", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
