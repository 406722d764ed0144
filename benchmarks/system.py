"""Our side of both benchmarks: an xokd of its own, on a loop device and a TAP, driven by the commands of `xok`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.tools import run

NAME = "bench"


class System:
    """xokd with one C-FFS. Everything it starts ends with `stack`."""

    def __init__(self, stack: ExitStack, scratch: Path, disk: Path, network: int, *, code: Path | None = None) -> None:
        """`code`: another checkout to run than this one."""
        self.runtime = scratch / "run"
        self.runtime.mkdir(mode=0o755)
        self.tap = f"xk{network}b{os.getpid()}"[:15]
        self.address = f"10.43.{network}.2"
        self._environment = {**os.environ, "XOK_RUNTIME_DIR": str(self.runtime)}
        if code is not None:
            self._environment["PYTHONPATH"] = str(code)
        self.xok("format", str(disk), "--force")
        stack.callback(self._down)
        self.xok("up", "--disk", str(disk), "--tap", self.tap, "--host-address", f"10.43.{network}.1/24")
        self.xok("mkfs", NAME)

    def xok(self, *arguments: str) -> str:
        return run(sys.executable, "-P", "-m", "xok_host.cli", *arguments, env=self._environment)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A command of `xok` that goes on; what it prints is in its `stdout`."""
        words = [sys.executable, "-P", "-m", "xok_host.cli", *arguments]
        return subprocess.Popen(words, env=self._environment, stdout=subprocess.PIPE)

    def mount(self, stack: ExitStack, directory: Path) -> None:
        directory.mkdir()
        self.xok("mount", NAME, str(directory))
        stack.callback(self.xok, "umount", str(directory))

    def serve(self) -> None:
        self.xok("serve", NAME, "--address", f"{self.address}/24")

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.xok("status", "--json"))
        return status

    def pids(self) -> list[int]:
        """xokd and every environment."""
        status = self.status()
        return [int(status["xokd"]["pid"]), *(int(item["pid"]) for item in status["environments"])]

    def _down(self) -> None:
        run(sys.executable, "-P", "-m", "xok_host.cli", "down", check=False, env=self._environment)
