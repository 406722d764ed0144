"""What both benchmarks need: compiled C helpers, cleaning up, placement on CPUs, ratios, tables."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PLACEMENTS = {"one CPU": frozenset({0}), "unpinned": frozenset(os.sched_getaffinity(0))}


class BenchmarkFailure(Exception):
    """Something that is measured did not start, or answered wrongly; the message says what."""


LONGEST = 120
"""Seconds that one command may take before the benchmark gives up and says which it was."""


def run(*command: str | Path, check: bool = True, env: Mapping[str, str] | None = None) -> str:
    """Output of a command. Raises BenchmarkFailure with what it printed."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise BenchmarkFailure(f"{' '.join(words)} did not end within {LONGEST} s") from None
    if check and done.returncode:
        raise BenchmarkFailure(f"{' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}".strip())
    return done.stdout


def compile_c(name: str, into: Path) -> Path:
    """Path of the program compiled from `benchmarks/c/<name>.c`."""
    program = into / name
    run("cc", "-O2", "-o", program, HERE / "c" / f"{name}.c")
    return program


def scratch(stack: ExitStack) -> Path:
    """A directory that every user may enter, on a disk and not in memory, removed with `stack`."""
    path = stack.enter_context(tempfile.TemporaryDirectory(prefix="xok-bench-", dir="/var/tmp"))
    os.chmod(path, 0o755)
    return Path(path)


def place(pids: Iterable[int], cpus: Iterable[int]) -> None:
    """Put every thread of the processes on `cpus`. One that has ended meanwhile is left out."""
    wanted = set(cpus)
    for pid in pids:
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), wanted)
        except (FileNotFoundError, ProcessLookupError):
            continue


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that the processes have used so far."""
    total = 0.0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def threads_seconds(pid: int) -> float:
    """CPU time of the process's living threads, to the nanosecond; 0.0 if it has ended."""
    total = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return total / 1e9


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Return when `condition` holds. Raises BenchmarkFailure when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkFailure(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that this run started."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds of ours / theirs: what both met in one round, such as a busy neighbour, cancels."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of a table with right-aligned columns, the first one left-aligned."""
    cells = [list(heads), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    return "\n".join([title, *("  " + line for line in lines), ""])
