"""Hostile libOSes on a whole running xok: how they are started, and how their victim is looked after.

An attack is the body of a program.  Before it stand the toy file system of the tests of XN (tests/xn/toy.py) and
`attempt`, so that it has a volume of its own to attack from; it prints what each attempt gave.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.host.xokkit import Done, Xok, instance, public_directory
from tests.xn import toy
from xok_host.cli.__main__ import main as xok_main

NOBODY = 65534
SECRET = "the victim's own words"

PRELUDE = r'''

import ctypes, errno, json, mmap, os, signal, socket, sys, threading, time
from xok_host.abi import channel
from xok_host.abi.errors import XokError
from xok_host.abi.types import CHUNK_BYTES, CHUNK_PAGES

RESULTS = {}
libc = ctypes.CDLL(None, use_errno=True)

def attempt(name, function, *arguments, **more):
    """Note what came of it: a refusal's name, or what it gave."""
    try:
        value = function(*arguments, **more)
        RESULTS[name] = value if isinstance(value, (int, str, list, dict)) else "done"
    except XokError as refused:
        RESULTS[name] = type(refused).__name__
    except OSError as failure:
        RESULTS[name] = errno.errorcode[failure.errno]
    return RESULTS[name]

def report():
    print(json.dumps(RESULTS), flush=True)
    return 0

def memory_files():
    """Name of memory file → descriptors of it."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink("/proc/self/fd/" + fd)
        except OSError:
            continue
        if link.startswith("/memfd:"):
            found.setdefault(link.split(":")[1].split(" ")[0], []).append(int(fd))
    return found

def libcall(name, *arguments):
    ctypes.set_errno(0)
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

def take_chunk(env, chunk):
    """The descriptor of a chunk, if xokd gives it."""
    env.call("chunk_map", chunk)
    while chunk not in env._chunk_fds:
        env._receive(0)
    return env._chunk_fds.pop(chunk)
'''

OWN_VOLUME = """
class Own(Toy):
    def __init__(self, name, env):
        \"\"\"A volume of the attacker's: a root of the type that the victim made, as types are everybody's.\"\"\"
        self.local, self.env, self.type = None, env, VICTIM["type"]
        installed = env.call("install_mount", DEV, 0, 1, self.type, data=name.encode())
        self.root, self.cap = installed.r0, installed.r1
"""

VICTIM = """
def main(env, argv):
    toy = Toy(None, "victim", env)
    data, node = toy.add_data(toy.root, 0, argv[0].encode()), toy.add_node(toy.root, 1)
    raw = env.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"victim-raw").r0
    env.call("reserve_type", DEV, data=b"victim-reserved")
    toy.durable(data, node, toy.root, raw)
    print(json.dumps({"root": toy.root, "data": data, "node": node, "raw": raw, "type": toy.type}))
"""

VICTIM_READS = """
def main(env, argv):
    cap, root = env.caps[0].index, env.call("mount", DEV, cap=env.caps[0].index, data=b"victim").r0
    entry = Sector.unpack(env.call("readb", root, SECTOR, cap=cap, out_bytes=SECTOR).data)
    block = entry.pointers[0][0]
    env.call("insert_and_read", root, cap=cap, data=pack_extents([(block, 1, 0)]))
    print(bytes(env.page(env.registry.lookup(da(block) >> 12).page)).rstrip(b"\\0").decode())
"""


def program(xok: Xok, body: str, name: str = "attack.py") -> Path:
    """The file of a program with this `main`."""
    return xok.program(Path(toy.__file__).read_text() + PRELUDE + body, name)


def run_as_nobody(xok: Xok, *words: str | Path) -> Done:
    """`xok run` by a user without privileges."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.close(reading)
            os.environ["XOK_RUNTIME_DIR"] = str(xok.runtime)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            status = xok_main(["run", *map(str, words)])
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as output:
        said = output.read().decode(errors="replace")
    return Done(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said, "")


@dataclass
class Battlefield:
    """A running xok with a victim's volume on it."""

    xok: Xok
    victim: dict[str, int]
    said: str = ""

    def program(self, body: str, name: str = "attack.py") -> Path:
        """The file of a program that knows the victim's blocks."""
        return program(self.xok, f"\nVICTIM = {self.victim}\n{OWN_VOLUME}\n{body}", name)

    def run(self, body: str, *arguments: Any, options: tuple[str, ...] = ()) -> Done:
        """Run an attack as nobody; the victim must not have noticed, nor xokd have failed."""
        done = run_as_nobody(self.xok, *options, self.program(body), *map(str, arguments))
        self.check()
        return done

    def attack(self, body: str, *arguments: Any, options: tuple[str, ...] = ()) -> dict[str, Any]:
        """What each attempt gave."""
        done = self.run(body, *arguments, options=options)
        assert done.status == 0, f"{done.status} {done.out}\n{self.xok.log()[-3000:]}"
        found: dict[str, Any] = json.loads(done.out.splitlines()[-1])
        print(found)  # shown when the test fails
        return found

    def start(self, body: str, *arguments: Any, options: tuple[str, ...] = (), name: str) -> subprocess.Popen[str]:
        """Start a program (as root, who may stop it) and return when it has said its first line, kept in `said`."""
        command = self.xok.start("run", *options, self.program(body, name), *map(str, arguments))
        assert command.stdout is not None
        self.said = command.stdout.readline()
        assert self.said, command.communicate()
        return command

    def end(self, command: subprocess.Popen[str]) -> None:
        """End what `start` started; returns when xokd has released its environment."""
        assert isinstance(command.args, list)
        names = {os.path.basename(word) for word in command.args}
        command.kill()
        command.communicate()
        for _ in range(200):
            if not any(environment["name"] in names for environment in self.xok.status()["environments"]):
                return
            time.sleep(0.02)
        raise AssertionError(f"{names} live on")

    def check(self) -> None:
        """The victim's data are what they were, and nothing went wrong inside xokd."""
        assert self.xok("run", "--tree", "victim", program(self.xok, VICTIM_READS, "reads.py")).strip() == SECRET
        status = self.xok.status()
        assert status["counters"]["faults"] == 0, self.xok.log()[-3000:]


@contextmanager
def battlefield(*up: str, size: str = "64M") -> Iterator[Battlefield]:
    """A fresh xok with the victim's volume, which belongs to root."""
    with public_directory() as directory, instance(directory, size) as xok:
        xok.up("--memory", "256M", *(up or ("--no-network",)))
        yield Battlefield(xok, json.loads(xok("run", program(xok, VICTIM, "victim.py"), SECRET)))
