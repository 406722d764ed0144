"""`xok demo --once` is what the README tells a newcomer to type."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from e2e_kit import ROOT, wait_until

DEMO = [sys.executable, "-P", "-m", "xok_host.cli", "demo"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def _leftovers() -> set[str]:
    """What a demonstration makes outside its process."""
    scratch = {name for name in os.listdir("/var/tmp") if name.startswith("xok-demo-")}
    return scratch | {name for name in os.listdir("/sys/class/net") if name.startswith("xokdemo")}


def test_once_fetches_everything_and_leaves_nothing(tree: Path) -> None:
    before = _leftovers()
    done = subprocess.run([*DEMO, str(tree), "--once"], capture_output=True, text=True, timeout=100, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1000 of 1000 files" in done.stdout
    assert _leftovers() <= before


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupt_stops_and_cleans(tmp_path: Path) -> None:
    before = _leftovers()
    output = tmp_path / "output"
    with output.open("wb") as log:
        # Whoever runs the tests in the background ignores interrupts, which would be inherited.
        demo = subprocess.Popen(
            DEMO, stdout=log, stderr=log, start_new_session=True, env=ENVIRONMENT, preexec_fn=_heed_interrupts
        )
        wait_until(lambda: b"Ctrl-C" in output.read_bytes() or demo.poll() is not None, "the start", seconds=60)
        assert demo.poll() is None, output.read_text()
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
        assert demo.wait(60) == 0, output.read_text()
    assert _leftovers() <= before
