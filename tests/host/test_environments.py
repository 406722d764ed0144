"""Environments leave nothing behind: not a descriptor, not a mapping, not a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.xokkit import Xok, instance


@pytest.fixture
def xok(tmp_path: Path) -> Iterator[Xok]:
    with instance(tmp_path) as xok:
        xok.up()
        yield xok


def held(pid: int) -> tuple[int, int]:
    """Descriptors of a process, and mappings of memory that it shares."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return len(os.listdir(f"/proc/{pid}/fd")), sum("memfd:xok" in line for line in maps)


def test_nothing_leaks_in_xokd_or_the_launcher(xok: Xok) -> None:
    program = xok.program("def main(env, argv): env.call('null')")
    pid = int(xok.status()["xokd"]["pid"])
    (launcher,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    xok("run", program)
    before = held(pid), held(int(launcher))
    for _ in range(12):
        xok("run", program)
    assert (held(pid), held(int(launcher))) == before


def test_what_an_environment_prints_is_kept_to_a_bound(xok: Xok) -> None:
    """Three megabytes into a log of one: the newest stays, and one part before it."""
    import subprocess
    import sys

    code = (
        "import os, sys, pathlib, trio\n"
        "from xok_host.host import environments\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "async def main():\n"
        "    reading, writing = os.pipe()\n"
        "    async with trio.open_nursery() as nursery:\n"
        "        nursery.start_soon(environments._keep_log, reading, path, trio.Event())\n"
        "        for number in range(3 * 16):\n"
        "            await trio.to_thread.run_sync(os.write, writing, b'%02d' % number * 32768)\n"
        "        os.close(writing)\n"
        "trio.run(main)\n"
    )
    path = xok.directory / "bounded.log"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=xok.environment(), timeout=30)
    kept = [path, path.with_suffix(".old")]
    assert all(part.stat().st_size <= 1 << 20 for part in kept)
    assert path.read_bytes()[-2:] == b"47"


def test_a_log_is_kept_of_what_programs_of_xokd_print(xok: Xok) -> None:
    talkative = xok.program("print('said while it was made', flush=True)\n", "talkative.py")
    assert xok.try_("mkfs", "vol", "--type", talkative).status != 0  # it has no entry point
    assert "said while it was made" in (xok.runtime / "log" / "mkfs_vol.log").read_text()


def test_a_checkout_that_others_cannot_read_is_said_at_the_start(tmp_path: Path) -> None:
    from xok_host.host import view

    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert view.unreadable(view.View(windows=[str(closed)])) == [str(closed)]
    closed.chmod(0o755)
    (closed / "__init__.py").touch(mode=0o600)
    assert view.unreadable(view.View(windows=[str(closed)])) == [str(closed / "__init__.py")]
    (closed / "__init__.py").chmod(0o644)
    assert view.unreadable(view.View(windows=[str(closed)])) == []
