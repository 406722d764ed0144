"""The import hook and the build, run on a small checkout of their own in fresh processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HOT = """
from __future__ import annotations
import cython

def answer() -> int:
    return 42

def compiled() -> bool:
    return cython.compiled
"""

GEAR_PXD = """
cdef class Gear:
    cdef public long teeth
    cpdef long ratio(self, long other)
"""

GEAR_PY = """
import cython
class Gear:
    def __init__(self, teeth):
        self.teeth = teeth
    def ratio(self, other):
        return self.teeth // other
def compiled():
    return cython.compiled
"""

TRAIN_PYX = """
from lib.gear cimport Gear
def turn(long teeth):
    cdef Gear gear = Gear(teeth)
    return gear.ratio(3)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which nothing has been built."""
    return _lay(tmp_path)


@pytest.fixture(scope="module")
def _built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = _lay(tmp_path_factory.mktemp("built"))
    assert _build(built).returncode == 0
    return built


@pytest.fixture
def built(_built_once: Path, tmp_path: Path) -> Path:
    """A copy of a checkout in which everything is built and fresh: hashes do not depend on where it lies."""
    return Path(shutil.copytree(_built_once, tmp_path / "copy"))


def _lay(tmp_path: Path) -> Path:
    (tmp_path / "xok_host" / "abi").mkdir(parents=True)
    (tmp_path / "lib").mkdir()
    (tmp_path / "xok_host" / "__init__.py").write_text("from xok_host.abi import accel\naccel.install()\n")
    (tmp_path / "xok_host" / "abi" / "__init__.py").write_text("")
    (tmp_path / "lib" / "__init__.py").write_text("import xok_host\n")
    shutil.copy(ROOT / "xok_host/abi/accel.py", tmp_path / "xok_host/abi/accel.py")
    shutil.copy(ROOT / "xok_host/build.py", tmp_path / "xok_host/build.py")
    (tmp_path / "lib" / "hot.py").write_text(HOT)
    (tmp_path / "lib" / "gear.py").write_text(GEAR_PY)
    (tmp_path / "lib" / "gear.pxd").write_text(GEAR_PXD)
    (tmp_path / "lib" / "train.pyx").write_text(TRAIN_PYX)
    _list(tmp_path, ["lib.hot", "lib.gear", "lib.train"])
    return tmp_path


def _list(checkout: Path, names: list[str]) -> None:
    (checkout / "pyproject.toml").write_text(f"[tool.xok]\ncompiled = {names!r}\n".replace("'", '"'))


def _python(checkout: Path, *arguments: str, pure: bool = False, **more: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("XOK_PURE", None)
    if pure:
        environment["XOK_PURE"] = "1"
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        **more,
    )  # type: ignore[call-overload]


def _evaluate(checkout: Path, setup: str, expression: str, **more: object) -> str:
    done = _python(checkout, "-c", f"{setup}; print({expression})", **more)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def _build(checkout: Path) -> subprocess.CompletedProcess[str]:
    return _python(checkout, "-m", "xok_host.build")


def test_refused_until_built_then_compiled(checkout: Path) -> None:
    refusal = _evaluate(checkout, "import lib.hot", "lib.hot.answer()")
    assert refusal.startswith("xok_host.abi.accel.StaleModule: lib.hot") and "./xok build" in refusal
    assert _build(checkout).returncode == 0
    assert _evaluate(checkout, "import lib.hot", "lib.hot.answer(), lib.hot.compiled()") == "42 True"


def test_second_build_does_nothing(built: Path) -> None:
    again = _build(built)
    assert (again.returncode, again.stderr) == (0, "")


def test_edited_source_is_refused_and_its_former_object_goes(built: Path) -> None:
    (built / "lib" / "hot.py").write_text(HOT.replace("42", "43"))
    assert "StaleModule" in _evaluate(built, "import lib.hot", "lib.hot.answer()")
    assert "compiled lib.hot" in (rebuilt := _build(built).stderr) and "lib.gear" not in rebuilt
    assert _evaluate(built, "import lib.hot", "lib.hot.answer()") == "43"
    assert len(list((built / "build" / "accel").glob("lib.hot-*.so"))) == 1


def test_cimport_between_modules_and_its_declaration_is_a_dependency(built: Path) -> None:
    assert _evaluate(built, "import lib.train", "lib.train.turn(12)") == "4"
    (built / "lib" / "gear.pxd").write_text(GEAR_PXD.replace("public long teeth", "public long teeth, spare"))
    assert "StaleModule" in _evaluate(built, "import lib.train", "lib.train.turn(12)")


def test_pure_runs_python_uncompiled_without_a_build(checkout: Path) -> None:
    _list(checkout, ["lib.hot", "lib.gear"])
    assert _evaluate(checkout, "import lib.hot", "lib.hot.compiled()", pure=True) == "False"
    assert _evaluate(checkout, "import lib.gear", "lib.gear.compiled()", pure=True) == "False"


def test_pure_keeps_extension_sources_and_what_they_cimport_compiled(built: Path) -> None:
    modules = "import lib.hot, lib.gear, lib.train"
    state = "lib.hot.compiled(), lib.gear.compiled(), lib.train.turn(9)"
    assert _evaluate(built, modules, state, pure=True) == "False True 3"


def test_failure_to_compile_is_an_error_that_names_the_module(checkout: Path) -> None:
    (checkout / "lib" / "hot.py").write_text("def broken(:\n")
    done = _build(checkout)
    assert done.returncode == 1 and "cannot compile lib.hot" in done.stderr and "lib/hot.py" in done.stderr
    assert _evaluate(checkout, "import lib.train", "lib.train.turn(12)") == "4"  # the others were built


def test_listed_without_source_is_an_error(checkout: Path) -> None:
    _list(checkout, ["lib.absent"])
    done = _build(checkout)
    assert done.returncode == 1 and "lib.absent is listed" in done.stderr


def test_objects_are_readable_by_every_user(checkout: Path) -> None:
    previous = os.umask(0o077)
    try:
        assert _build(checkout).returncode == 0
    finally:
        os.umask(previous)
    objects = checkout / "build" / "accel"
    assert objects.stat().st_mode & 0o005 == 0o005
    shared = list(objects.glob("*.so"))
    assert len(shared) == 3 and all(path.stat().st_mode & 0o005 == 0o005 for path in shared)


def test_declarations_say_how_numbers_fail() -> None:
    """`except` or `noexcept` for each C function that gives a number: for one without, Cython asks the interpreter
    after every call whether there was an exception, which costs more than many of these calls do."""
    number = r"(?:inline )?(?:unsigned |signed )?(?:bint|char|short|int|long|long long|double|u?int\d+_t|Py_ssize_t)"
    silent = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for part in ("libfs", "mounts", "netstack", "xok_host")
        for path in sorted((ROOT / part).rglob("*.pxd"))
        for line in path.read_text().splitlines()
        if re.match(rf"\s*cp?def {number} \w+\(.*\)$", line)
    ]
    assert silent == []
