"""kill -9 of each process in the middle of a copy: a restart finds the disk clean and everything fsync'ed there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from e2e_kit import Xok, wait_until

# Writes file after file, fsyncs each, and only then prints its number.
WRITER = """
import os, sys
directory = sys.argv[1]
for number in range(100000):
    data = (f"file {number} " * (1 + number % 900)).encode()
    descriptor = os.open(f"{directory}/f{number}", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(descriptor, data)
    os.fsync(descriptor)
    os.close(descriptor)
    print(number, flush=True)
"""


def _content(number: int) -> bytes:
    return (f"file {number} " * (1 + number % 900)).encode()


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _finish(process: subprocess.Popen[bytes]) -> bytes:
    """What the process printed; whatever a dying mount left it waiting for ends with it."""
    try:
        return process.communicate(timeout=20)[0] or b""
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate(timeout=20)[0] or b""


def _durable(printed: bytes) -> list[int]:
    """Numbers whose fsync had returned. A last line cut short by the kill is none."""
    return [int(line) for line in printed.split(b"\n")[:-1]]


def _busy(xok: Xok, tree: Path) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """A copy and a writer that fsyncs, both well under way."""
    (xok.mount_point / "synced").mkdir()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(xok.mount_point / "synced")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    copy = subprocess.Popen(["cp", "-r", str(tree), str(xok.mount_point / "copy")], stderr=subprocess.DEVNULL)
    wait_until(lambda: (xok.mount_point / "synced" / "f20").exists(), "the twentieth synced file")
    wait_until(lambda: sum(len(names) for _, _, names in os.walk(xok.mount_point / "copy")) > 50, "fifty copied files")
    return copy, writer


def _assert_kept(xok: Xok, numbers: list[int]) -> None:
    assert len(numbers) > 20
    for number in numbers:
        assert (xok.mount_point / "synced" / f"f{number}").read_bytes() == _content(number)


def _assert_usable(xok: Xok, tree: Path) -> None:
    again = xok.mount_point / "again"
    subprocess.run(["cp", "-r", str(tree), str(again)], check=True, timeout=60)
    command = ["diff", "-r", "--no-dereference", str(tree), str(again)]
    assert subprocess.run(command, capture_output=True).stdout == b""


def test_mount_process_is_replaced_on_the_same_mount(fresh: Xok, tree: Path) -> None:
    copy, writer = _busy(fresh, tree)
    xokd = fresh.status()["xokd"]["pid"]
    first = fresh.environment_pid("mount:")
    _kill(first)
    wait_until(
        lambda: [m["state"] for m in fresh.status()["mounts"]] == ["serving"] and not _lives(first), "a successor"
    )
    writer.terminate()
    numbers = _durable(_finish(writer))
    _finish(copy)
    assert fresh.status()["xokd"]["pid"] == xokd and fresh.environment_pid("mount:") != first
    _assert_kept(fresh, numbers)
    _assert_usable(fresh, tree)
    fresh.run("down")
    fresh.run("check", fresh.disk)


def test_cheetah(fresh: Xok, tree: Path) -> None:
    (fresh.mount_point / "index.html").write_text("still here")
    fresh.serve()
    get = ["curl", "-s", "--noproxy", "*", "--max-time", "10", f"{fresh.url}/"]
    assert subprocess.run(get, capture_output=True).stdout == b"still here"
    copy, writer = _busy(fresh, tree)
    _kill(fresh.environment_pid("serve:"))
    assert copy.wait(60) == 0  # a dead web server is no business of the mount's
    writer.terminate()
    _assert_kept(fresh, _durable(_finish(writer)))
    wait_until(
        lambda: not any("serve" in item["name"] for item in fresh.status()["environments"]), "its environment's end"
    )
    fresh.serve()
    assert subprocess.run(get, capture_output=True).stdout == b"still here"
    fresh.run("down")
    fresh.run("check", fresh.disk)


def test_xokd(fresh: Xok, tree: Path) -> None:
    copy, writer = _busy(fresh, tree)
    before = fresh.status()
    _kill(before["xokd"]["pid"])
    _finish(copy)
    numbers = _durable(_finish(writer))
    wait_until(lambda: not any(_lives(item["pid"]) for item in before["environments"]), "their end")
    wait_until(lambda: not os.path.ismount(fresh.mount_point), "the end of the mount")
    fresh.run("check", fresh.disk)
    fresh.up()
    fresh.mount()
    _assert_kept(fresh, numbers)
    _assert_usable(fresh, tree)
    fresh.run("down")
    fresh.run("check", fresh.disk)
