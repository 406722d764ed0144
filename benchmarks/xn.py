"""XN: what a crossing and a modification cost, data against the raw device, and what the checks add to a file system.

* calls: `programs/xnload.py` times them inside an environment: a crossing that does nothing; a modification of a
  directory sector with three names and inodes (three UDFs, verified), one in a crossing, 64 transactions in a crossing,
  64 operations in one transaction.
* data: the same program writes and reads a 64 MB file through XN; fio does the same requests to a raw loop device over
  an image in the same directory, O_DIRECT, through io_uring.
* checks: the files workload on xokd as it is, and on a copy of this checkout in which `CHECKED` is compiled to False.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.files import COUNT, PASSES, PER_DIRECTORY, SIZE, loop_device
from benchmarks.system import System
from benchmarks.tools import HERE, PLACEMENTS, BenchmarkFailure, compile_c, place, ratio, run, scratch, table

CALLS = {
    "crossing": "NULL, a crossing",
    "single": "modification, one a crossing",
    "batch": "modification, 64 transactions a crossing",
    "transaction": "modification, 64 operations a transaction",
}
PATTERNS = {"sequential": (128, 16, "rw"), "random": (16, 64, "randrw")}
"""Order: KB of a request, requests at once."""
FILE_MEGABYTES = 64
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
    ours, raw = loop_device(stack, where / "ours.img"), loop_device(stack, where / "raw.img")
    run("dd", "if=/dev/zero", f"of={raw}", "bs=1M", f"count={FILE_MEGABYTES}", "oflag=direct")
    calls: dict[str, list[float]] = {name: [] for name in CALLS}
    data: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):
        with ExitStack() as inner:
            (where / str(number)).mkdir(mode=0o755)
            system = System(inner, where / str(number), ours, network=250)
            said = json.loads(system.xok("run", str(HERE / "programs" / "xnload.py"), "1"))
        for order in PATTERNS:
            for way in ("write", "read"):
                cell = data.setdefault(f"{way} {order}", {"xn": [], "raw": []})
                theirs = _fio(raw, way, order)
                if number:  # the first round only warms up
                    cell["raw"].append(theirs)
                    cell["xn"] += said[f"{way} {order}"]
        if number:
            for name in CALLS:
                calls[name] += said[name]
    return {"calls": calls, "data": data}


def _fio(device: Path, way: str, order: str) -> float:
    """Bytes a second of the same requests without XN, the flush at the end of writing included."""
    kilobytes, depth, _ = PATTERNS[order]
    words = ["fio", "--name=raw", f"--filename={device}", "--direct=1", "--ioengine=io_uring", "--output-format=json"]
    words += [f"--rw={'rand' if order == 'random' else ''}{way}", f"--bs={kilobytes}k", f"--iodepth={depth}"]
    words += [f"--size={FILE_MEGABYTES}m", "--end_fsync=1" if way == "write" else "--norandommap=0"]
    job = json.loads(run(*words))["jobs"][0]
    return float(job[way]["io_bytes"]) / (float(job["job_runtime"]) / 1000)


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
    """{"checked" | "unchecked": {pass: [µs a file, …]}}."""
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
            times[name] = {key: [] for key in PASSES}
        for number in range(rounds + 1):
            for name, system in systems.items():
                place([*system.pids(), os.getpid()], cpus)
                said = json.loads(run(fileops, where / name / "mnt", str(COUNT), str(PER_DIRECTORY), str(SIZE)))
                if number:
                    for key in PASSES:
                        times[name][key].append(said[key] / 1000)
    return times


def report(result: dict[str, Any]) -> str:
    parts = []
    for placement, said in result.items():
        rows = [[CALLS[name], f"{statistics.median(values):.1f}"] for name, values in said["calls"].items()]
        parts.append(table(f"XN's calls, {placement}: µs each", ["", "µs"], rows))
        rows = []
        for name, cell in said["data"].items():
            kilobytes = PATTERNS[name.split()[1]][0]
            rows.append(
                [
                    f"{name}, {kilobytes} KB",
                    *(f"{statistics.median(cell[who]) / 1e6:,.0f}" for who in ("xn", "raw")),
                    f"{ratio(cell['xn'], cell['raw']):.2f}×",
                ]
            )
        parts.append(table(f"data, {placement}: MB/s (above 1 we are faster)", ["", "XN", "raw", "XN / raw"], rows))
        checks = said["checks"]
        rows = [[name, *(f"{statistics.median(values[key]):.1f}" for key in PASSES)] for name, values in checks.items()]
        cost = (ratio(checks["checked"][key], checks["unchecked"][key]) - 1 for key in PASSES)
        rows.append(["the checks cost", *(f"{value:+.1%}" for value in cost)])
        whole = [[sum(times) for times in zip(*values.values(), strict=True)] for values in checks.values()]
        title = f"files with and without XN's checks, {placement}: µs a file; all together {ratio(*whole) - 1:+.1%}"
        parts.append(table(title, ["", *PASSES], rows))
    return "\n".join(parts)
