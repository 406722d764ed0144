"""A whole xok in a directory of its own, driven by the commands a person types."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xok_host.abi import accel

PATIENCE = 60


@dataclass
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str


@dataclass
class Xok:
    """One instance in `directory`."""

    directory: Path

    @property
    def runtime(self) -> Path:
        return self.directory / "run"

    @property
    def image(self) -> Path:
        return self.directory / "disk.img"

    def environment(self) -> dict[str, str]:
        return {**os.environ, "XOK_RUNTIME_DIR": str(self.runtime), "PYTHONPATH": accel.ROOT}

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-P", "-m", "xok_host.cli", *map(str, arguments)]

    def try_(self, *arguments: str | Path, **more: Any) -> Done:
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            **more,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def __call__(self, *arguments: str | Path, **more: Any) -> str:
        """Run a command that must succeed; what it printed."""
        done = self.try_(*arguments, **more)
        assert done.status == 0, f"xok {' '.join(map(str, arguments))}: {done}\n{self.log()}"
        return done.out

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Run a command and do not wait for it."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment(),
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("status", "--json"))
        return found

    def pid(self, name: str) -> int:
        """Process of the environment called `name`."""
        return next(int(env["pid"]) for env in self.status()["environments"] if env["name"] == name)

    def up(self, *arguments: str | Path) -> None:
        self("up", "--disk", self.image, "--memory", "128M", *(arguments or ("--no-network",)))

    def log(self) -> str:
        with suppress(OSError):
            return (self.runtime / "log" / "xokd.log").read_text()
        return ""

    def kill_xokd(self) -> None:
        """kill -9, and wait until it and its launcher are gone."""
        pid = int(self.status()["xokd"]["pid"])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pidfds = [os.pidfd_open(int(number)) for number in [pid, *children]]
        os.kill(pid, signal.SIGKILL)
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], 10)[0]
            os.close(pidfd)

    def program(self, text: str, name: str = "program.py") -> Path:
        """A libOS of a few lines, as a file."""
        path = self.directory / name
        path.write_text(text)
        return path


@contextmanager
def public_directory() -> Iterator[Path]:
    """A directory that every user can reach, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix=f"xok-test-{os.getpid()}-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def instance(directory: Path, size: str = "64M") -> Iterator[Xok]:
    """A formatted disk, and everything stopped at the end."""
    xok = Xok(directory)
    xok("format", xok.image, "--size", size)
    try:
        yield xok
    finally:
        if (xok.runtime / "xokd.sock").exists():
            done = xok.try_("down", "--force")
            assert done.status in (0, 7), (done, xok.log())
