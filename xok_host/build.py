"""`./xok build`: compile the modules listed in pyproject.toml with Cython and the C compiler.

Incremental: what is fresh by its hash (xok_host/abi/accel.py) is left alone, so a second run costs a few
milliseconds. Each module is translated and compiled in a directory of its own and renamed into place when it
is whole, so that neither an interrupted build nor two at once leave a broken object. Objects of former
sources are removed. Everything is left readable by every user (ACCEL-3).
"""

from __future__ import annotations

import argparse
import fcntl
import glob
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from xok_host.abi import accel

PARALLEL = 2

# A change of either list must also change accel.RECIPE.
CYTHON = ["-3", "-X", "binding=False"]
COMPILER = ["-O2", "-fPIC", "-shared", "-fwrapv", "-fno-strict-aliasing", "-DNDEBUG", "-pthread"]


class BuildFailure(Exception):
    """A module could not be compiled; the message is the tool's own output."""


def stale_modules(modules: Sequence[str]) -> list[str]:
    """Those of `modules` whose object is missing or was made from other sources."""
    return [name for name in modules if not os.path.exists(accel.object_path(name))]


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, cwd=accel.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BuildFailure(f"{what} failed:\n{done.stdout}{done.stderr}")


def compile_module(name: str) -> str:
    """Compile one module and return the path of its object. Raises BuildFailure."""
    try:
        wanted = accel.object_path(name)
        source = os.path.relpath(accel.source_path(name), accel.ROOT)
    except accel.StaleModule as missing:
        raise BuildFailure(str(missing)) from None
    scratch = tempfile.mkdtemp(prefix=".work-", dir=accel.OBJECTS)
    try:
        translated = os.path.join(scratch, name + ".c")
        built = os.path.join(scratch, name + ".so")
        cython = [sys.executable, "-P", "-m", "cython", *CYTHON, "-I", accel.ROOT]
        _run([*cython, "--module-name", name, "-o", translated, source], f"cython {source}")
        compiler = os.environ.get("CC", "cc").split()
        include = ["-I", sysconfig.get_path("include")]
        _run([*compiler, *COMPILER, *include, "-o", built, translated], f"C compiler on {source}")
        os.chmod(built, 0o755)
        os.replace(built, wanted)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for former in glob.glob(os.path.join(glob.escape(accel.OBJECTS), f"{name}-*.so")):
        if former != wanted:
            os.unlink(former)
    return wanted


def build(*, force: bool = False, quiet: bool = False) -> dict[str, str]:
    """Bring every listed module up to date. Returns {module: why it failed}, empty when all is well."""
    modules = accel.compiled_modules()
    waiting = [name for name in modules if force or _is_stale(name)]
    if not waiting:
        return {}
    if not quiet:
        print(
            f"xok: compiling {len(waiting)} modules, which is done once and takes minutes", file=sys.stderr, flush=True
        )
    os.makedirs(accel.OBJECTS, mode=0o755, exist_ok=True)
    failed: dict[str, str] = {}

    def one(name: str) -> None:
        began = time.monotonic()
        try:
            if force or _is_stale(name):  # another build may have made it while this one waited for the lock
                compile_module(name)
        except BuildFailure as failure:
            failed[name] = str(failure)
        if not quiet:
            verdict = "FAILED" if name in failed else "compiled"
            print(f"  {verdict} {name} ({time.monotonic() - began:.1f} s)", file=sys.stderr, flush=True)

    with open(os.path.join(accel.OBJECTS, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(one, waiting))
    return failed


def _is_stale(name: str) -> bool:
    try:
        return bool(stale_modules([name]))
    except accel.StaleModule:  # no source at all: compile_module says so
        return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xok build", description="Compile the modules that are not up to date.")
    parser.add_argument("--force", action="store_true", help="compile all, fresh or not")
    parser.add_argument("--quiet", action="store_true", help="print failures only")
    options = parser.parse_args(arguments)
    os.umask(0o022)
    try:
        failed = build(force=options.force, quiet=options.quiet)
    except PermissionError as refusal:
        print(f"xok: compiled modules are stale and cannot be rebuilt by this user ({refusal})", file=sys.stderr)
        print("xok: run `sudo ./xok build` once", file=sys.stderr)
        return 1
    for name, why in failed.items():
        print(f"xok: cannot compile {name}: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
