"""Compiled modules: which there are, whether each is fresh, and the import hook that loads them.

`pyproject.toml` lists them under `[tool.xok] compiled`; `xok_host/build.py` compiles each into
`build/accel/<full name>-<hash>.so`, where the hash covers everything that decides what the shared object
means. The hook therefore needs no time stamps, and cannot load yesterday's code for today's source:

ACCEL-1  A listed module is loaded from the object whose hash fits its sources, or the import fails with
         `StaleModule` and the command that mends it. There is no silent slow path.
ACCEL-2  With `XOK_PURE=1` a listed `.py` runs uncompiled. A `.pyx` cannot, so it stays compiled, and so does
         a listed `.py` whose C-level names (its `.pxd`) a compiled `.pyx` reaches for.
ACCEL-3  Objects are readable by every user: an environment that imports one runs under a uid of its own.

`install()` is called first of all by `__init__` of each top-level package; calling it again does nothing.
This is one of the two modules of the ABI that touch files (the other is the client stub).
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from types import ModuleType

__all__ = ["ROOT", "StaleModule", "compiled_modules", "install", "object_path", "source_path", "source_hash"]

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OBJECTS = os.path.join(ROOT, "build", "accel")

# Changes when the way of compiling changes (flags, directives), so that objects made the old way are stale.
RECIPE = "1"

# Every way to reach another module's C-level names; group 1 is the module, group 2 the names it gives.
_CIMPORT = re.compile(
    rb"^[ \t]*(?:from[ \t]+(?P<dotted>[\w.]+)[ \t]+cimport[ \t]+(?P<names>[^#\n]+)"
    rb"|cimport[ \t]+(?P<plain>[\w.]+)"
    rb"|from[ \t]+cython\.cimports\.(?P<pure>[\w.]+)[ \t]+import[ \t]+(?P<pure_names>[^#\n]+)"
    rb"|import[ \t]+cython\.cimports\.(?P<pure_plain>[\w.]+))",
    re.MULTILINE,
)
_INCLUDE = re.compile(rb"^[ \t]*include[ \t]+[\"'](?P<file>[^\"']+)[\"']", re.MULTILINE)


class StaleModule(ImportError):
    """A compiled module is missing or was built from other sources: run `./xok build`."""


def compiled_modules() -> tuple[str, ...]:
    """Full names of the modules that are compiled, in the order of pyproject.toml."""
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        return tuple(tomllib.load(file)["tool"]["xok"]["compiled"])


def source_path(name: str) -> str:
    """Path of the `.pyx` or `.py` of the module `name`. Raises StaleModule if there is neither."""
    stem = os.path.join(ROOT, *name.split("."))
    for path in (stem + ".pyx", stem + ".py"):
        if os.path.exists(path):
            return path
    raise StaleModule(
        f"{name} is listed in pyproject.toml as compiled but has no source ({stem}.py or .pyx)", name=name
    )


def _declarations(text: bytes, package: Sequence[str]) -> Iterator[str]:
    """Paths of this project's `.pxd` that `text`, a source in `package`, may cimport from."""
    for match in _CIMPORT.finditer(text):
        found = next(m for m in (match["dotted"], match["plain"], match["pure"], match["pure_plain"]) if m)
        dotted = found.decode()
        stripped = dotted.lstrip(".")
        dots = len(dotted) - len(stripped)
        parts = list(package[: len(package) - dots + 1]) if dots else []
        parts += [part for part in stripped.split(".") if part]
        # The right-hand side names modules after a package and mere names after a module: try both.
        names = (match["names"] or match["pure_names"] or b"").decode().replace("(", " ").replace(")", " ")
        candidates = [parts] + [[*parts, word.split()[0]] for word in names.split(",") if word.split()]
        for candidate in candidates:
            stem = os.path.join(ROOT, *candidate)
            for path in (stem + ".pxd", os.path.join(stem, "__init__.pxd")):
                if os.path.exists(path):
                    yield path


def dependencies(name: str) -> list[str]:
    """Paths of all files that decide the object of module `name`: its source first, the others sorted."""
    source = source_path(name)
    own = os.path.splitext(source)[0] + ".pxd"
    found: set[str] = set()
    waiting = [source] + ([own] if os.path.exists(own) else [])
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        with open(path, "rb") as file:
            text = file.read()
        package = os.path.relpath(os.path.dirname(path), ROOT).split(os.sep)
        waiting.extend(_declarations(text, package))
        for match in _INCLUDE.finditer(text):
            included = os.path.join(os.path.dirname(path), match["file"].decode())
            if os.path.exists(included):
                waiting.append(included)
    return [source, *sorted(found - {source})]


def source_hash(name: str) -> str:
    """Sixteen hexadecimal digits over sources, recipe and interpreter ABI of the module `name`."""
    digest = hashlib.sha256(f"{RECIPE} {importlib.machinery.EXTENSION_SUFFIXES[0]} {name}\n".encode())
    for path in dependencies(name):
        digest.update(os.path.relpath(path, ROOT).encode() + b"\0")
        with open(path, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()[:16]


def object_path(name: str) -> str:
    """Where the shared object of module `name`, as its sources are now, is or will be."""
    return os.path.join(OBJECTS, f"{name}-{source_hash(name)}.so")


def runs_pure(modules: Sequence[str]) -> frozenset[str]:
    """Those of `modules` that XOK_PURE=1 leaves uncompiled (ACCEL-2)."""
    extension = [name for name in modules if source_path(name).endswith(".pyx")]
    needed = {path for name in extension for path in dependencies(name)}
    return frozenset(
        name
        for name in modules
        if name not in extension and os.path.splitext(source_path(name))[0] + ".pxd" not in needed
    )


class _Finder(importlib.abc.MetaPathFinder):
    """Answers for the listed modules only; everything else is left to the finders behind it."""

    def __init__(self, modules: Sequence[str], pure: bool) -> None:
        self.modules = frozenset(modules)
        self.pure = runs_pure(modules) if pure else frozenset()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.modules or fullname in self.pure:
            return None
        wanted = object_path(fullname)
        if not os.path.exists(wanted):
            source = os.path.relpath(source_path(fullname), ROOT)
            raise StaleModule(
                f"{fullname} has not been compiled from {source} as it is now: run `./xok build`"
                " (XOK_PURE=1 runs Python modules uncompiled, much slower)",
                name=fullname,
                path=wanted,
            )
        loader = importlib.machinery.ExtensionFileLoader(fullname, wanted)
        return importlib.util.spec_from_file_location(fullname, wanted, loader=loader)


def install() -> None:
    """Put the hook in front of the import machinery, once."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder(compiled_modules(), os.environ.get("XOK_PURE") == "1"))
