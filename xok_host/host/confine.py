"""From a fork of the launcher to a confined libOS.  The order is the argument:

 1. namespaces (the PID namespace was made by the launcher before the fork, so this is pid 1 in it);
 2. the file-system view (`view`), while still root;
 3. descriptors: standard output and error, the environment's socket, nothing else;
 4. limits, then the uid, which nothing else alive has; capabilities gone for good, no-new-privs, not dumpable;
 5. die with the launcher (the setting does not survive a change of uid, hence here, and the check after it);
 6. the start message is read from the socket by trusted code; shared descriptors move to `seccomp.GRANTED`;
 7. the system-call filter;
 8. only now is the libOS's code imported.

C-1  No byte of the libOS is read before 7.
C-2  A step that fails ends the process: there is no half-confined libOS.
"""

from __future__ import annotations

import importlib
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

from xok_host.abi.types import ENVIRONMENT_UID_BASE
from xok_host.host import linux, seccomp, view

if TYPE_CHECKING:
    from xok_host.abi.client import Environment

LIMITS: dict[str, int] = {
    "NOFILE": 1024,
    "NPROC": 64,
    "CORE": 0,
    "DATA": 4 << 30,
    "STACK": 8 << 20,
    "MEMLOCK": 8 << 20,
    "FSIZE": 1 << 40,
    "MSGQUEUE": 0,
    "SIGPENDING": 256,
    "NICE": 0,
    "RTPRIO": 0,
}
"""Limits of an environment, hard and soft, by the names of RLIMIT_*.  A caller's own lower ones apply on top."""

SOURCE = "fd:program"
"""Descriptor in the start message that holds a program's source, when it is not an installed module."""
PACKETS = "fd:packets"
"""Memory of a packet ring; with one, what stands for the queue is a doorbell, whose other end xokd has to itself."""
MAX_SOURCE = 16 << 20

_SECUREBITS = 0xE3
"""Uid 0 is nobody special, capabilities are not kept over a change of uid, ambient ones not raised; all locked."""

EXIT_CONFINEMENT = 120
EXIT_IMPORT = 121
EXIT_CRASH = 122


@dataclass(slots=True)
class Job:
    """What the launcher is asked to start."""

    slot: int
    name: str
    module: str
    limits: Mapping[str, int] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def uid(self) -> int:
        return ENVIRONMENT_UID_BASE + self.slot


def run(job: Job, sock: int, output: int, report: int, parent: int, seen: view.View) -> int:
    """Confine the calling process, then run the libOS in it.  Returns its exit status.

    `sock`, `output`: descriptors for the environment's socket and for standard output and error; `report`: pipe to the
    launcher, which learns from its end of file that confinement is complete, or reads why it failed; `parent`: pidfd
    of the launcher.
    """
    try:
        _namespaces(job)
        view.enter(seen, job.uid, job.uid)
        sock, report, parent = _descriptors(output, sock, report, parent)
        _limits(job.limits)
        _credentials(job.uid)
        _die_with(parent)
        _process_state(job)
        env = _environment(sock)
        seccomp.install()
    except BaseException as error:
        os.write(report, f"{type(error).__name__}: {error}".encode()[:4000])
        return EXIT_CONFINEMENT
    os.close(report)
    return _libos(job, env)


def _namespaces(job: Job) -> None:
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWNET | linux.CLONE_NEWUTS)
    linux.sethostname(f"xok-{job.slot}")
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # short of memory, the host ends a libOS before it ends xokd


def _descriptors(output: int, *kept: int) -> list[int]:
    """Give `kept` the numbers 3, 4, …, `output` 1 and 2, /dev/null 0, and close everything else."""
    null = os.open("/dev/null", os.O_RDONLY)
    high = [os.dup(fd) for fd in (null, output, output, *kept)]
    base = max(high) + 1
    high = [os.dup2(fd, base + index) for index, fd in enumerate(high)]  # all above every target
    for target, fd in enumerate(high):
        os.dup2(fd, target, inheritable=target < 3)
    linux.close_from(len(high))
    return list(range(3, 3 + len(kept)))


def _limits(lower: Mapping[str, int]) -> None:
    for name, value in LIMITS.items():
        wanted = min(value, lower.get(name, value))
        if name == "NOFILE":
            wanted = value  # the range of granted descriptors needs it, and it bounds nobody else
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        resource.setrlimit(kind, (wanted, wanted))
    for name in ("CPU", "AS", "RSS"):
        if name in lower:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (lower[name], lower[name]))


def _credentials(uid: int) -> None:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_SECUREBITS, _SECUREBITS)
    linux.drop_bounding_set()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    linux.clear_capability_sets()
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


def _die_with(launcher: int) -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([launcher], [], [], 0)[0]:
        raise ProcessLookupError("the launcher is gone")
    os.close(launcher)


def _process_state(job: Job) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update({"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", **job.variables})
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.path[:] = [path for path in sys.path if os.path.isabs(path)]
    sys.dont_write_bytecode = True
    linux.set_process_name(f"xok:{job.name}")
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _environment(sock: int) -> Environment:
    """Read the start message and put what xokd shares out of reach (SC-4)."""
    from xok_host.abi.client import Environment

    env = Environment.from_socket(sock)
    if env.tap is not None and PACKETS not in env.extra_fds:
        env.tap.fd = _granted(env.tap.fd, 0)
    return env


def _granted(fd: int, index: int) -> int:
    os.dup2(fd, seccomp.GRANTED + index, inheritable=False)
    os.close(fd)
    return seccomp.GRANTED + index


def _libos(job: Job, env: Environment) -> int:
    """Import the libOS and run its `main(env, argv)`."""
    try:
        program = _load(job.module, env)
        main = program.main
    except BaseException:
        traceback.print_exc()
        return EXIT_IMPORT
    try:
        status = main(env, list(env.args))
        return 0 if status is None else int(status) & 0xFF
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return (leaving.code or 0) & 0xFF
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return EXIT_CRASH
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _load(module: str, env: Environment) -> ModuleType:
    """An installed module by name, or a program from the descriptor its caller opened."""
    if SOURCE not in env.extra_fds:
        return importlib.import_module(module)
    with open(env.extra_fds.pop(SOURCE), "rb") as file:
        source = file.read(MAX_SOURCE)
    program = ModuleType("__libos__")
    program.__file__ = module
    sys.modules[program.__name__] = program
    exec(compile(source, module, "exec"), program.__dict__)
    return program
