"""The benchmarks' own programs answer right, or what they measure means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import xn
from benchmarks.files import PASSES
from benchmarks.responder import canned
from benchmarks.tools import BenchmarkFailure, compile_c, cpu_seconds, ratio, run, table, threads_seconds

SIZES = (0, 1, 1447, 1448, 10240, 102400, 1 << 20)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("programs")
    for name in ("fileops", "canned"):
        compile_c(name, into)
    return into


def test_ratio_takes_the_median_of_rounds_not_the_ratio_of_medians() -> None:
    assert ratio([1, 20, 3], [2, 10, 6]) == 0.5


def test_table_aligns_columns() -> None:
    lines = table("title", ["", "rate"], [["short", "1"], ["a longer name", "12,345"]]).splitlines()
    assert lines[0] == "title" and len({len(line) for line in lines[1:]}) == 1


def test_failure_says_what_the_command_printed() -> None:
    with pytest.raises(BenchmarkFailure, match="the reason"):
        run("sh", "-c", "echo the reason >&2; exit 3")


def test_cpu_time_of_a_process_that_has_ended_is_none() -> None:
    assert cpu_seconds([2**22 - 3]) == 0.0


def test_file_operations_time_every_pass_and_leave_nothing(programs: Path, tmp_path: Path) -> None:
    said = json.loads(run(programs / "fileops", tmp_path, "30", "10", "1024"))
    assert tuple(said) == PASSES and all(value > 0 for value in said.values())
    assert list(tmp_path.iterdir()) == []


def test_file_operations_refuse_what_is_in_the_way(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "d0").mkdir()
    with pytest.raises(BenchmarkFailure, match="mkdir .*d0: File exists"):
        run(programs / "fileops", tmp_path, "30", "10", "1024")


def test_a_disk_in_memory_is_no_disk() -> None:
    """`bench xn` says what is missing in place of numbers."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, ExitStack() as stack:
        with pytest.raises(xn.Unavailable, match=f"{directory} is in memory"):
            xn._device(stack, Path(directory), "disk", "ours")
        assert not os.listdir(directory)
    assert xn._data_table("disk", "one CPU", "no disk").startswith("data, disk, one CPU: not measured: no disk")


def test_data_is_told_as_rates_and_cpu_time() -> None:
    cell = {"xn": [90e6, 80e6], "raw": [100e6, 100e6], "xn cpu": [50.0, 60.0], "raw cpu": [10.0, 20.0]}
    line = xn._data_table("memory", "one CPU", {"read random 16 64": cell}).splitlines()[2]
    assert "read random, 16 KB, 64 at a time" in line
    assert line.split()[-5:] == ["85", "100", "0.85×", "55.0", "15.0"]


def test_cpu_time_of_threads_is_counted_while_they_live() -> None:
    before = threads_seconds(os.getpid())
    sum(range(1_000_000))
    assert 0 < threads_seconds(os.getpid()) - before < 20 and threads_seconds(2**22 - 3) == 0.0


@pytest.fixture(scope="module")
def responder(programs: Path) -> Iterator[str]:
    with ExitStack() as stack:
        yield canned(stack, programs / "canned", network=254)[0]


@pytest.mark.parametrize("size", SIZES)
def test_canned_responder_answers_with_as_many_bytes(responder: str, size: int) -> None:
    for how in ("close", "keep-alive"):
        options = ["--noproxy", "*", "--max-time", "10", "--header", f"Connection: {how}"]
        got = subprocess.run(["curl", "-sSf", *options, f"{responder}{size}"], capture_output=True)
        assert (got.returncode, got.stdout) == (0, b"x" * size), got.stderr


def test_canned_responder_keeps_connections(responder: str) -> None:
    urls = [f"{responder}{size}" for size in (10, 20, 30)]
    command = ["curl", "-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{num_connects} ", *urls]
    said = subprocess.run([*command, "-o", "/dev/null", "-o", "/dev/null"], capture_output=True, text=True).stdout
    assert said.split() == ["1", "0", "0"]


def test_canned_responder_leaves_no_interface(programs: Path) -> None:
    before = set(os.listdir("/sys/class/net"))
    for _ in range(2):
        with ExitStack() as stack:
            canned(stack, programs / "canned", network=255)
        assert set(os.listdir("/sys/class/net")) <= before
