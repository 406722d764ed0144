"""The mount program for a file system of anybody's: the code is a file of the user's (`libfs.api.Program`).

xokd passes the file's contents as a descriptor.  They are imported here, in an environment of the user's, after it was
confined: nothing outside of it ever reads them.  What goes wrong is printed for the user, and ends this server alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from types import ModuleType

import trio

from mounts import program
from xok_host.abi.client import Environment

FILE_SYSTEM = "fd:filesystem"
MAX_SOURCE = 16 << 20


def load(env: Environment) -> ModuleType:
    """The user's module.  Raises what it raises, and SystemExit for one that is no file system."""
    descriptor = env.extra_fds.pop(FILE_SYSTEM)
    source = os.pread(descriptor, MAX_SOURCE, 0)  # at 0: a successor reads the same open file
    os.close(descriptor)
    module = ModuleType("__filesystem__")
    module.__file__ = "file system"
    sys.modules[module.__name__] = module
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    for name in ("make(env, dev, name, uid, gid)", "mount(env, dev, name, cap)"):
        if not callable(getattr(module, name.partition("(")[0], None)):
            raise SystemExit(f"the file system's code defines no {name}; libfs/api.py, Program, says what it has to")
    return module


def main(env: Environment, argv: list[str]) -> int:
    module = load(env)
    if "--make" in argv:
        parser = argparse.ArgumentParser(prog="make")
        parser.add_argument("name")
        parser.add_argument("--make", action="store_true")
        parser.add_argument("--dev", type=int, default=1)
        parser.add_argument("--uid", type=int, required=True)
        parser.add_argument("--gid", type=int, required=True)
        wanted = parser.parse_args(argv)
        module.make(env, wanted.dev, wanted.name, wanted.uid, wanted.gid)
        return 0
    options = program.parser().parse_args(argv)
    fs = module.mount(env, options.dev, options.volume, program.tree(env))
    return trio.run(program.serve, env, options, fs)
