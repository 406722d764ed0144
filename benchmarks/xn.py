"""XN: what a crossing and a modification cost, data against the raw device, and what the checks add to a file system.

* calls: `programs/xnload.py` times them inside an environment: a crossing that does nothing; a modification of a
  directory sector with three names and inodes (three UDFs, verified), one in a crossing, 64 transactions in a crossing,
  64 operations in one transaction.  What two C programs need to wake one another (`c/pingpong.c`) is measured between
  them: machines differ in that by a factor of three, and no crossing can cost less.
* data: the same program writes and reads 128 MB through XN; fio does the same requests to a raw device, O_DIRECT,
  through io_uring, as many at a time: few, and as many as keep the device busy; writing ends with a flush.  Both sides
  take turns within each pattern.  On two kinds of device: "disk", loop devices with direct I/O over images on the
  machine's disk that were written in full before; and "memory", loop devices over images in a tmpfs: a device that
  takes no time, so that what is left is what each side does itself.
* checks: the files workload on xokd as it is, and on a copy of this checkout in which `CHECKED` is compiled to False.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.files import COUNT, PASSES, PER_DIRECTORY, SIZE, loop_device
from benchmarks.programs.xnload import COMMAND
from benchmarks.system import System
from benchmarks.tools import (
    HERE,
    PLACEMENTS,
    BenchmarkFailure,
    compile_c,
    end,
    place,
    ratio,
    run,
    scratch,
    table,
    threads_seconds,
)

CALLS = {
    "pingpong": "two C programs, an eventfd each way",
    "crossing": "NULL, a crossing",
    "single": "modification, one a crossing",
    "batch": "modification, 64 transactions a crossing",
    "transaction": "modification, 64 operations a transaction",
}
TRIPS = 20000
"""Round trips in one measurement of `pingpong`."""
PATTERNS = {"sequential": (128, (16, 64)), "random": (16, (64, 256))}
"""Order: KB of a request, requests at a time.  With the fewer a device waits for who gives it the next one; with the
more it need not, and what it can do at most is what both sides are measured by."""
WAYS = ("write", "read")
FILE_MEGABYTES = 128
IMAGE_MEGABYTES = 256
DEVICES = ("disk", "memory")
PARTS = ("libfs", "mounts", "netstack", "xok_host", "pyproject.toml")


def measure(rounds: int, placements: list[str]) -> dict[str, Any]:
    """{placement: {"calls": …, "data": …, "checks": …}}."""
    result: dict[str, Any] = {}
    for placement in placements:
        with ExitStack() as stack:
            where = scratch(stack)
            cpus = PLACEMENTS[placement]
            place([os.getpid()], cpus)
            stack.callback(place, [os.getpid()], PLACEMENTS["unpinned"])
            result[placement] = _loads(stack, where, rounds)
            result[placement]["checks"] = _checks(where / "checks", rounds, cpus)
    return result


def _loads(stack: ExitStack, where: Path, rounds: int) -> dict[str, Any]:
    calls: dict[str, list[float]] = {name: [] for name in CALLS}
    data: dict[str, Any] = {}
    pingpong = compile_c("pingpong", where)
    for number, kind in enumerate(DEVICES):
        with ExitStack() as inner:
            directory = where / kind
            directory.mkdir(mode=0o755)
            try:
                ours, raw = (_device(inner, directory, kind, name) for name in ("ours", "raw"))
            except Unavailable as error:
                data[kind] = str(error)
                continue
            load = _Load(inner, directory, ours, 250 + number)
            cells = data[kind] = {
                f"{way} {order} {kilobytes} {depth}": {name: [] for name in ("xn", "raw", "xn cpu", "raw cpu")}
                for order, (kilobytes, depths) in PATTERNS.items()
                for depth in depths
                for way in WAYS
            }
            for turn in range(rounds + 1):
                said = {}
                if kind == "memory":
                    said = {"pingpong": float(run(pingpong, str(TRIPS))), **load.calls()}
                for name, cell in cells.items():
                    sides = {"raw": _fio(raw, *name.split()), "xn": load.data(*name.split())}
                    for side, (rate, cpu) in sides.items():
                        if turn:  # the first round only warms up
                            cell[side].append(rate)
                            cell[f"{side} cpu"].append(cpu)
                for name in said if turn else ():
                    calls[name].append(said[name])
    return {"calls": calls, "data": data}


class Unavailable(Exception):
    """What keeps this machine from having such a device."""


def _device(stack: ExitStack, directory: Path, kind: str, name: str) -> Path:
    """A loop device over an image that has no holes.  Raises Unavailable."""
    if kind == "memory":
        directory = directory / name
        directory.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={IMAGE_MEGABYTES + 16}m", "xok-bench", directory)
        stack.callback(run, "umount", "--lazy", directory)  # the loop device lets go a moment after it is told
    elif run("stat", "--file-system", "--format=%T", directory).strip() in ("tmpfs", "ramfs"):
        raise Unavailable(f"{directory} is in memory: nothing there has a disk's times")
    image = directory / f"{name}.img"
    with image.open("wb") as file:
        for _ in range(IMAGE_MEGABYTES):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    wanted = "on" if kind == "disk" else "off"
    try:
        device = Path(run("losetup", "--find", "--show", f"--direct-io={wanted}", image).strip())
    except BenchmarkFailure as error:
        raise Unavailable(f"no loop device with direct I/O over {directory}: {error}") from None
    stack.callback(run, "losetup", "--detach", device)
    direct = Path("/sys/block") / device.name / "loop" / "dio"
    if kind == "disk" and direct.read_text().strip() != "1":
        raise Unavailable(f"the file system of {directory} does not let a loop device use direct I/O")
    return device


class _Load:
    """`programs/xnload.py` in an xokd of its own, told what to do through its private /tmp."""

    def __init__(self, stack: ExitStack, where: Path, disk: Path, network: int) -> None:
        system = System(stack, where, disk, network)
        self._program = system.start("run", str(HERE / "programs" / "xnload.py"))
        stack.callback(end, self._program)
        self._answer("its start")
        status = system.status()
        self._xokd = int(status["xokd"]["pid"])
        self._libos = int(status["environments"][0]["pid"])

    def calls(self) -> dict[str, float]:
        return self._ask("calls")

    def data(self, way: str, order: str, kilobytes: str, depth: str) -> tuple[float, float]:
        """Bytes a second, and µs of CPU time for a request: the libOS's and xokd's."""
        if way == "read":
            self._ask("forget")
        before = threads_seconds(self._xokd)
        said = self._ask(f"{way} {order} {kilobytes} {depth}")
        cpu = said["cpu"] + threads_seconds(self._xokd) - before
        return said["bytes"] / said["seconds"], cpu / (said["bytes"] / (int(kilobytes) << 10)) * 1e6

    def _ask(self, what: str) -> dict[str, float]:
        Path(f"/proc/{self._libos}/root{COMMAND}").write_text(what)
        os.kill(self._libos, signal.SIGUSR1)
        return self._answer(repr(what))

    def _answer(self, what: str) -> dict[str, float]:
        """The next line that the program prints; a program that fails prints why."""
        assert self._program.stdout is not None
        line = self._program.stdout.readline()
        try:
            said: dict[str, float] = json.loads(line)
        except ValueError:
            rest = (line + self._program.stdout.read()).decode(errors="replace")
            raise BenchmarkFailure(f"xnload ended at {what}: {rest}".strip()) from None
        return said


def _fio(device: Path, way: str, order: str, kilobytes: str, depth: str) -> tuple[float, float]:
    """The same of these requests without XN, by fio."""
    words = ["fio", "--name=raw", f"--filename={device}", "--direct=1", "--ioengine=io_uring", "--output-format=json"]
    words += [f"--rw={'rand' if order == 'random' else ''}{way}", f"--bs={kilobytes}k", f"--iodepth={depth}"]
    words += [f"--size={FILE_MEGABYTES}m", "--end_fsync=1" if way == "write" else "--norandommap=0"]
    job = json.loads(run(*words))["jobs"][0]
    seconds = float(job["job_runtime"]) / 1000
    cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds
    return float(job[way]["io_bytes"]) / seconds, cpu / float(job[way]["total_ios"]) * 1e6


def _unchecked(where: Path) -> Path:
    """A copy of this checkout without XN's checks, compiled."""
    copy = where / "unchecked"
    copy.mkdir(parents=True)
    os.chmod(where, 0o755)
    root = HERE.parent
    for part in PARTS:
        if (root / part).is_dir():
            shutil.copytree(root / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / part, copy / part)
    shutil.copytree(root / "build" / "accel", copy / "build" / "accel")
    source = copy / "xok_host" / "kernel" / "xn" / "shadow.py"
    text = source.read_text()
    if text.count("\nCHECKED = True\n") != 1:
        raise BenchmarkFailure(f"{source} does not say CHECKED = True")
    source.write_text(text.replace("\nCHECKED = True\n", "\nCHECKED = False\n"))
    built = subprocess.run(
        [sys.executable, "-P", "-m", "xok_host.build"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    if built.returncode:
        raise BenchmarkFailure(f"the copy without checks does not build: {built.stdout}{built.stderr}")
    return copy


def _checks(where: Path, rounds: int, cpus: Any) -> dict[str, dict[str, list[float]]]:
    """{"checked" | "unchecked": {pass: [µs a file, …]}}, and under "xokd" its CPU time for a file in all passes."""
    unchecked = _unchecked(where)
    times: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        fileops = compile_c("fileops", where)
        systems = {}
        for number, (name, code) in enumerate((("checked", None), ("unchecked", unchecked))):
            (where / name / "state").mkdir(parents=True, mode=0o755, exist_ok=True)
            device = loop_device(stack, where / f"{name}.img")
            system = System(stack, where / name / "state", device, network=248 + number, code=code)
            system.mount(stack, where / name / "mnt")
            systems[name] = system
            times[name] = {key: [] for key in (*PASSES, "xokd")}
        for number in range(rounds + 1):
            for name, system in systems.items():
                xokd, *others = system.pids()
                place([xokd, *others, os.getpid()], cpus)
                began = threads_seconds(xokd)
                said = json.loads(run(fileops, where / name / "mnt", str(COUNT), str(PER_DIRECTORY), str(SIZE)))
                if number:
                    times[name]["xokd"].append((threads_seconds(xokd) - began) / COUNT * 1e6)
                    for key in PASSES:
                        times[name][key].append(said[key] / 1000)
    return times


def report(result: dict[str, Any]) -> str:
    parts = []
    for placement, said in result.items():
        rows = [
            [CALLS[name], f"{statistics.median(values):.1f}", f"{ratio(values, said['calls']['pingpong']):.1f}×"]
            for name, values in said["calls"].items()
        ]
        parts.append(
            table(f"XN's calls, {placement}: µs each, and how many such round trips", ["", "µs", "trips"], rows)
        )
        parts += [_data_table(kind, placement, cells) for kind, cells in said["data"].items()]
        checks = said["checks"]
        rows = [[name, *(f"{statistics.median(values[key]):.1f}" for key in PASSES)] for name, values in checks.items()]
        cost = (ratio(checks["checked"][key], checks["unchecked"][key]) - 1 for key in PASSES)
        rows.append(["the checks cost", *(f"{value:+.1%}" for value in cost)])
        whole = [_whole(values) for values in checks.values()]
        title = f"files with and without XN's checks, {placement}: µs a file; all together {ratio(*whole) - 1:+.1%}"
        parts.append(table(title, ["", *PASSES], rows))
        parts.append(_in_xokd(checks))
    return "\n".join(parts)


def _whole(times: dict[str, list[float]]) -> list[float]:
    """µs a file, all passes together, of each round."""
    return [sum(each) for each in zip(*(times[key] for key in PASSES), strict=True)]


def _in_xokd(checks: dict[str, dict[str, list[float]]]) -> str:
    """What the checks cost where they are made: this hardly moves with what else the machine does."""
    own = {name: statistics.median(times["xokd"]) for name, times in checks.items()}
    share = (own["checked"] - own["unchecked"]) / statistics.median(_whole(checks["checked"]))
    return (
        f"of that, CPU time of xokd: {own['checked']:.1f} µs a file with the checks, {own['unchecked']:.1f} without; "
        f"so they are {share:.1%} of the whole\n"
    )


def _data_table(kind: str, placement: str, cells: dict[str, dict[str, list[float]]] | str) -> str:
    """`cells`: what was measured, or why it could not be."""
    title = f"data, {kind}, {placement}"
    if isinstance(cells, str):
        return f"{title}: not measured: {cells}\n"
    rows = []
    for name, cell in cells.items():
        way, order, kilobytes, depth = name.split()
        middle = {who: statistics.median(values) for who, values in cell.items()}
        rows.append(
            [
                f"{way} {order}, {kilobytes} KB, {depth} at a time",
                *(f"{middle[who] / 1e6:,.0f}" for who in ("xn", "raw")),
                f"{ratio(cell['xn'], cell['raw']):.2f}×",
                *(f"{middle[who]:.1f}" for who in ("xn cpu", "raw cpu")),
            ]
        )
    heads = ["", "XN", "raw", "XN / raw", "XN: CPU µs", "raw: CPU µs"]
    return table(f"{title}: MB/s (above 1 we are faster), CPU time a request", heads, rows)
