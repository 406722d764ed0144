"""What `./xok test` runs, in order: format, lint, types, import contracts, tests uncompiled, all tests.

With arguments, only pytest runs, with these arguments. A machine that lacks what the tests are about (FUSE, TUN,
eBPF) is an error here, never a reason to skip. Exit status: 0 when everything passed, 1 otherwise.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

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


def _step(
    name: str, command: Sequence[str], environment: dict[str, str] | None = None, limit: int | None = LIMIT
) -> bool:
    print(f"== {name}", flush=True)
    began = time.monotonic()
    try:
        status = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        status = -1
        print(f"stopped after {limit} s")
    if status:
        print(f"== {name}: FAILED ({time.monotonic() - began:.0f} s)", flush=True)
    return status == 0


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
        return 0 if _step("pytest", [*tool, "pytest", *arguments], limit=None if on_demand else LIMIT) else 1
    (ROOT / "build").mkdir(exist_ok=True)
    pure = [f"tests/{part}" for part in PURE if any((ROOT / "tests" / part).glob("test_*.py"))]
    linter = Path(sys.executable).with_name("lint-imports")
    steps: list[tuple[str, list[str], dict[str, str] | None]] = [
        ("ruff format", [*tool, "ruff", "format", "--check", "--quiet", "."], None),
        ("ruff check", [*tool, "ruff", "check", "--quiet", "."], None),
        ("mypy", [*tool, "mypy"], None),
        ("import contracts", [str(linter), "--cache-dir", "build/import-linter"], {"PYTHONPATH": str(ROOT)}),
        ("tests, uncompiled", [*tool, "pytest", "-q", "-m", "not slow", *pure], {"XOK_PURE": "1"}),
        ("tests", [*tool, "pytest", "-q"], None),
    ]
    failed = [name for name, command, environment in steps if not _step(name, command, environment)]
    if failed:
        print("failed:", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
