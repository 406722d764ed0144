"""End-to-end: a disk image, xokd and a TAP of the test's own, driven by the commands of `xok` as a person would."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAME = "vol"
ROOT = Path(__file__).resolve().parents[2]


def _free_network() -> int:
    """N of a 10.45.N.0/24 that nothing here uses, chosen by chance so that runs side by side do not meet."""
    used = subprocess.run(["ip", "-4", "-oneline", "address"], capture_output=True, text=True, check=True).stdout
    return random.choice([number for number in range(1, 250) if f" 10.45.{number}." not in used])


class Xok:
    """One running system and what a test asks of it."""

    def __init__(self, scratch: Path, network: int) -> None:
        self.scratch = scratch
        self.disk = scratch / "disk.img"
        self.mount_point = scratch / "mnt"
        self.tap = f"xk{os.getpid()}n{network}"
        self.host_address, self.address = f"10.45.{network}.1", f"10.45.{network}.2"
        self.url = f"http://{self.address}"
        self.environment = {**os.environ, "XOK_RUNTIME_DIR": str(scratch / "run"), "PYTHONPATH": str(ROOT)}
        (scratch / "run").mkdir(mode=0o755)
        self.mount_point.mkdir()

    def run(self, *arguments: str | Path, status: int | None = 0, timeout: float = 60) -> str:
        """Output of one command; fails the test unless it ends with `status` (None: with any)."""
        command = [sys.executable, "-P", "-m", "xok_host.cli", *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)
        if status is not None and done.returncode != status:
            pytest.fail(f"xok {' '.join(command[4:])}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def up(self) -> None:
        self.run("up", "--disk", self.disk, "--tap", self.tap, "--host-address", f"{self.host_address}/24")

    def start(self) -> None:
        """From nothing to a mounted file system."""
        self.run("format", self.disk, "--size", "1G")
        self.up()
        self.run("mkfs", NAME)
        self.mount()

    def mount(self) -> None:
        self.run("mount", NAME, self.mount_point)

    def serve(self) -> None:
        self.run("serve", NAME, "--address", f"{self.address}/24")

    def status(self) -> dict[str, Any]:
        command = [sys.executable, "-P", "-m", "xok_host.cli", "status", "--json"]
        said = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=True)
        return dict(json.loads(said.stdout))

    def environment_pid(self, part: str) -> int:
        """Process of the one environment whose name contains `part`."""
        found = [item["pid"] for item in self.status()["environments"] if part in item["name"]]
        assert len(found) == 1, self.status()["environments"]
        return int(found[0])

    def close(self) -> None:
        self.run("down", status=None)
        if os.path.ismount(self.mount_point):
            subprocess.run(["umount", "--lazy", self.mount_point])


@contextlib.contextmanager
def running(without: str = "") -> Iterator[Xok]:
    """A system from nothing to a mounted file system, gone afterwards. `without`: as in XOK_WITHOUT."""
    scratch = Path(tempfile.mkdtemp(prefix="xok-e2e-", dir="/var/tmp"))
    scratch.chmod(0o755)
    xok = Xok(scratch, _free_network())
    xok.environment["XOK_WITHOUT"] = without
    try:
        xok.start()
        yield xok
    finally:
        xok.close()
        shutil.rmtree(scratch, ignore_errors=True)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.01)


def regular_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
