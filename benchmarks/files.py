"""Small files: create, stat, read, overwrite, delete on our mount, ntfs-3g, fuse2fs and ext4, each on a loop device.

The peers' images lie in one directory, all mounts are fresh, and the rounds take them in turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.system import System
from benchmarks.tools import (
    PLACEMENTS,
    BenchmarkFailure,
    compile_c,
    end,
    place,
    ratio,
    run,
    scratch,
    table,
    wait_until,
)

COUNT, PER_DIRECTORY, SIZE = 1000, 100, 1024
IMAGE_BYTES = 1 << 30
PASSES = ("create", "stat", "read", "overwrite", "delete")
OURS = "xok"


@dataclass
class Mounted:
    """A mounted file system: where, and which processes serve it (none for one in the kernel)."""

    directory: Path
    pids: Callable[[], list[int]] = field(default=lambda: [])


def loop_device(stack: ExitStack, image: Path) -> Path:
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    device = run("losetup", "--find", "--show", image).strip()
    stack.callback(run, "losetup", "--detach", device)
    return Path(device)


def _ext4(stack: ExitStack, device: Path, directory: Path) -> Mounted:
    run("mkfs.ext4", "-q", device)
    directory.mkdir()
    run("mount", "-o", "noatime", device, directory)
    stack.callback(run, "umount", directory)
    return Mounted(directory)


def _served(stack: ExitStack, directory: Path, *command: str | Path) -> Mounted:
    """A FUSE server in the foreground, so that its process is known."""
    directory.mkdir()
    log = directory.with_suffix(".log").open("wb")
    stack.callback(log.close)
    server = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
    stack.callback(end, server)
    stack.callback(run, "umount", directory)
    wait_until(lambda: os.path.ismount(directory) or server.poll() is not None, f"the mount of {command[0]}")
    if server.poll() is not None:
        raise BenchmarkFailure(f"{command[0]} ended: {Path(log.name).read_text()}")
    return Mounted(directory, lambda: [server.pid])


def _ntfs3g(stack: ExitStack, device: Path, directory: Path) -> Mounted:
    run("mkntfs", "-F", "-Q", "-q", device)
    return _served(stack, directory, "ntfs-3g", device, directory, "-o", "no_detach,noatime")


def _fuse2fs(stack: ExitStack, device: Path, directory: Path) -> Mounted:
    run("mkfs.ext4", "-q", "-O", "^has_journal", device)
    return _served(stack, directory, "fuse2fs", "-f", device, directory)


def _xok(stack: ExitStack, device: Path, directory: Path) -> Mounted:
    system = System(stack, _subdirectory(directory), device, network=251)
    system.mount(stack, directory)
    return Mounted(directory, system.pids)


def _subdirectory(directory: Path) -> Path:
    beside = directory.with_suffix(".state")
    beside.mkdir(mode=0o755)
    return beside


SYSTEMS: dict[str, Callable[[ExitStack, Path, Path], Mounted]] = {
    OURS: _xok,
    "ntfs-3g": _ntfs3g,
    "fuse2fs": _fuse2fs,
    "ext4": _ext4,
}


def measure(rounds: int, placements: list[str]) -> dict[str, Any]:
    """{placement: {system: {pass: [microseconds per file, one per round]}}}."""
    result: dict[str, Any] = {}
    with ExitStack() as stack:
        where = scratch(stack)
        fileops = compile_c("fileops", where)
        mounted = {}
        for name, mount in SYSTEMS.items():
            device = loop_device(stack, where / f"{name}.img")
            mounted[name] = mount(stack, device, where / name)
        for placement in placements:
            cpus = PLACEMENTS[placement]
            times: dict[str, dict[str, list[float]]] = {name: {p: [] for p in PASSES} for name in mounted}
            for number in range(rounds + 1):
                for name, system in mounted.items():
                    place([*system.pids(), os.getpid()], cpus)  # the program inherits this process's CPUs
                    arguments = (str(COUNT), str(PER_DIRECTORY), str(SIZE))
                    said = json.loads(run(fileops, system.directory, *arguments))
                    if number:  # the first round only warms up: tables grow, memory is touched
                        for key in PASSES:
                            times[name][key].append(said[key] / 1000)
            result[placement] = times
            place([os.getpid()], PLACEMENTS["unpinned"])
    return result


def report(result: dict[str, Any]) -> str:
    parts = []
    for placement, times in result.items():
        rows = []
        for name, passes in times.items():
            rows.append([name, *(f"{statistics.median(passes[key]):.1f}" for key in PASSES)])
        for name in times:
            if name != OURS:
                ratios = (ratio(times[OURS][key], times[name][key]) for key in PASSES)
                rows.append([f"{OURS} / {name}", *(f"{value:.2f}×" for value in ratios)])
        title = f"{COUNT} files of {SIZE} bytes, {placement}: µs a file, and ratios (below 1 we are faster)"
        parts.append(table(title, ["", *PASSES], rows))
    return "\n".join(parts)
