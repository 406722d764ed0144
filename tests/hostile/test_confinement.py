"""A hostile libOS in a real environment tries each forbidden thing; every one fails, with its proper error.

One program makes all attempts and prints what each gave; each test looks at one of them.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.host.launchkit import run_program
from xok_host.abi.types import ENVIRONMENT_UID_BASE
from xok_host.host import seccomp, view

PROGRAM = r"""
import ctypes, errno, json, mmap, os, platform, resource, signal, socket, struct, threading

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
RESULTS = {}

def attempt(name, function, *arguments):
    try:
        value = function(*arguments)
        RESULTS[name] = 0 if value is None else value
    except OSError as error:
        RESULTS[name] = errno.errorcode[error.errno]
    except Exception as error:
        RESULTS[name] = repr(error)

def raw(number, *arguments):
    def call():
        ctypes.set_errno(0)
        values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
        result = libc.syscall(ctypes.c_long(number), *values)
        if result < 0:
            raise OSError(ctypes.get_errno(), "")
        return result
    return call

def library(name, *arguments):
    def call():
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), "")
    return call

def main(env, argv):
    tap = env.tap.fd
    outside = int(argv[0])          # a process of the host
    import fcntl
    attempt("tap number", lambda: tap)
    for name, request in {"TUNSETQUEUE": 0x400454d9, "TUNSETSTEERINGEBPF": 0x800454e0, "TUNSETFILTEREBPF": 0x800454e1,
                          "TUNSETOFFLOAD": 0x400454d0, "TUNSETPERSIST": 0x400454cb, "TUNGETIFF": 0x800454d2,
                          "SIOCSIFHWADDR": 0x8924, "SIOCGIFHWADDR": 0x8927, "FIONBIO": 0x5421}.items():
        attempt("ioctl " + name, fcntl.ioctl, tap, request, b"\0" * 64)
    attempt("ioctl with high bits", raw({"x86_64": 16}.get(platform.machine(), 29), tap, 0x1_0000_0000 | 0x400454d9, 0))
    attempt("F_SETFL on a grant", fcntl.fcntl, tap, fcntl.F_SETFL, 0)
    attempt("dup of a grant", os.dup, tap)
    attempt("dup2 of a grant", os.dup2, tap, 50)
    attempt("F_DUPFD of a grant", fcntl.fcntl, tap, fcntl.F_DUPFD, 50)
    left, right = socket.socketpair()
    attempt("descriptor passing", lambda: len(socket.send_fds(left, [b"x"], [tap]) * b""))
    attempt("own F_SETFL", lambda: left.setblocking(False))
    attempt("reopen through proc", os.open, f"/proc/self/fd/{tap}", os.O_RDWR)

    attempt("ptrace", library("ptrace", 16, 1, 0, 0))
    attempt("mount", library("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None))
    attempt("umount", library("umount2", b"/tmp", 2))
    attempt("chroot", os.chroot, "/tmp")
    attempt("unshare user", library("unshare", 0x10000000))
    attempt("unshare mount", library("unshare", 0x00020000))
    attempt("setns", library("setns", 0, 0))
    attempt("bpf", raw({"x86_64": 321}.get(platform.machine(), 280), 0, 0, 0))
    attempt("keyctl", raw({"x86_64": 250}.get(platform.machine(), 219), 0, 0, 0, 0, 0))
    attempt("perf_event_open", raw({"x86_64": 298}.get(platform.machine(), 241), 0, 0, 0, 0, 0))
    attempt("userfaultfd", raw({"x86_64": 323}.get(platform.machine(), 282), 0))
    attempt("io_uring_setup", raw(425, 1, 0))
    attempt("clone3", raw(435, 0, 0))
    attempt("pidfd_getfd", raw(438, 0, 0, 0))
    attempt("open_tree", raw(428, 0, 0, 0))
    attempt("process_vm_readv", raw({"x86_64": 310}.get(platform.machine(), 270), 1, 0, 0, 0, 0, 0))
    attempt("seccomp", raw({"x86_64": 317}.get(platform.machine(), 277), 0, 0, 0))
    attempt("fork", os.fork)
    attempt("exec", os.execv, "/usr/bin/true", ["true"])
    attempt("thread", lambda: (lambda t: (t.start(), t.join()))(threading.Thread(target=int)) and None)
    for name, family in {"inet": socket.AF_INET, "unix": socket.AF_UNIX, "netlink": 16, "packet": 17}.items():
        attempt("socket " + name, lambda family=family: socket.socket(family, socket.SOCK_STREAM).close())
    attempt("memfd_create", os.memfd_create, "x")
    attempt("fallocate", os.posix_fallocate, 1, 0, 4096)
    area = mmap.mmap(-1, 4096)
    attempt("MADV_REMOVE", area.madvise, 9)
    attempt("MADV_DONTNEED", area.madvise, 4)
    attempt("prctl dumpable", library("prctl", 4, 1, 0, 0, 0))
    attempt("prctl pdeathsig", library("prctl", 1, 0, 0, 0, 0))
    attempt("setuid", os.setuid, 0)
    attempt("setgroups", os.setgroups, [0])
    attempt("raise a limit", resource.setrlimit, resource.RLIMIT_NPROC, (10000, 10000))
    attempt("limits of pid 2", raw({"x86_64": 302}.get(platform.machine(), 261), 2, 7, 0, 0))

    attempt("kill outside", os.kill, outside, 0)
    attempt("kill everybody", os.kill, -1, 0)
    attempt("read outside", lambda: open(f"/proc/{outside}/mem", "rb").close())
    attempt("own memory file", lambda: open("/proc/self/mem", "rb").close())
    attempt("write usr", lambda: open("/usr/x", "w").close())
    attempt("write code", lambda: open(argv[1] + "/xok_host/x.py", "w").close())
    attempt("write root", lambda: open("/x", "w").close())
    attempt("remount by bind path", os.mkdir, "/etc/x")
    attempt("checkout files", lambda: open(argv[1] + "/README.md").close())
    attempt("shadow", lambda: open("/etc/shadow").close())
    attempt("kernel log", lambda: open("/dev/kmsg").close())
    attempt("sys", os.listdir, "/sys")
    attempt("fuse device", lambda: os.close(os.open("/dev/fuse", os.O_RDWR)))
    attempt("make a device", os.mknod, "/tmp/null", 0o666 | 0o020000, os.makedev(1, 3))
    attempt("private tmp", lambda: open("/tmp/x", "w").write("x") * 0)
    attempt("setuid file", lambda: os.chmod("/tmp/x", 0o4755))
    attempt("fill tmp", fill)
    attempt("descriptors", links)
    attempt("processes", lambda: sorted(p for p in os.listdir("/proc") if p.isdigit()))
    attempt("interfaces", lambda: [name for _, name in socket.if_nameindex()])
    attempt("ids", lambda: [os.getpid(), *os.getresuid(), *os.getresgid(), *os.getgroups()])
    attempt("capabilities", lambda: [l.split()[1] for l in open("/proc/self/status") if l.startswith("Cap")])
    attempt("no new privs", lambda: [l.split()[1] for l in open("/proc/self/status") if l.startswith("NoNewPrivs")])
    attempt("environ", lambda: sorted(os.environ))
    attempt("hostname", lambda: os.uname().nodename)
    attempt("resize the ring", lambda: [os.ftruncate(env.extra_fds["fd:sealed"], n) for n in (0, 1 << 30)] and None)
    attempt("table writable", lambda: mmap.mmap(env.extra_fds["fd:table"], 4096))
    attempt("table write", lambda: os.write(env.extra_fds["fd:table"], b"x"))
    attempt("table reopen", lambda: os.open(f"/proc/self/fd/{env.extra_fds['fd:table']}", os.O_RDWR))
    print(json.dumps(RESULTS))
    return 0

def links():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # the listing's own
    return found

def fill():
    with open("/tmp/big", "wb") as file:
        for _ in range(1024):
            file.write(bytes(1 << 20))
            file.flush()
"""


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    from xok_host.host.memory import allocate

    tap, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    table = allocate("table", 4096, private=True)
    ring = allocate("ring", 4096, private=False)
    root = str(Path(view.__file__).parents[2])
    extra = {"tap": tap.fileno(), "fd:table": table.reader, "fd:sealed": ring.writer}
    status, output = run_program(PROGRAM, str(os.getpid()), root, **extra)
    for thing in (tap, other):
        thing.close()
    table.close()
    ring.close()
    assert status == 0, output
    found: dict[str, Any] = json.loads(output)
    return found


REFUSED = {
    "ioctl TUNSETQUEUE": "EPERM",
    "ioctl TUNSETSTEERINGEBPF": "EPERM",
    "ioctl TUNSETFILTEREBPF": "EPERM",
    "ioctl TUNSETOFFLOAD": "EPERM",
    "ioctl TUNSETPERSIST": "EPERM",
    "ioctl TUNGETIFF": "EPERM",
    "ioctl SIOCSIFHWADDR": "EPERM",
    "ioctl SIOCGIFHWADDR": "EPERM",
    "ioctl FIONBIO": "EPERM",
    "ioctl with high bits": "EPERM",
    "F_SETFL on a grant": "EPERM",
    "dup of a grant": "EPERM",
    "dup2 of a grant": "EPERM",
    "F_DUPFD of a grant": "EPERM",
    "descriptor passing": "EPERM",
    "reopen through proc": "ENXIO",
    "ptrace": "EPERM",
    "mount": "EPERM",
    "umount": "EPERM",
    "chroot": "EPERM",
    "unshare user": "EPERM",
    "unshare mount": "EPERM",
    "setns": "EPERM",
    "bpf": "EPERM",
    "keyctl": "EPERM",
    "perf_event_open": "EPERM",
    "userfaultfd": "EPERM",
    "io_uring_setup": "ENOSYS",
    "clone3": "ENOSYS",
    "pidfd_getfd": "EPERM",
    "open_tree": "EPERM",
    "process_vm_readv": "EPERM",
    "seccomp": "EPERM",
    "fork": "EPERM",
    "exec": "EPERM",
    "socket inet": "EPERM",
    "socket unix": "EPERM",
    "socket netlink": "EPERM",
    "socket packet": "EPERM",
    "memfd_create": "EPERM",
    "fallocate": "EPERM",
    "MADV_REMOVE": "EPERM",
    "prctl dumpable": "EPERM",
    "prctl pdeathsig": "EPERM",
    "setuid": "EPERM",
    "setgroups": "EPERM",
    "limits of pid 2": "EPERM",
    "kill outside": "ESRCH",
    "kill everybody": "ESRCH",
    "read outside": "ENOENT",
    "own memory file": "EACCES",
    "write usr": "EROFS",
    "write code": "EROFS",
    "write root": "EROFS",
    "remount by bind path": "EROFS",
    "checkout files": "ENOENT",
    "shadow": "ENOENT",
    "kernel log": "ENOENT",
    "sys": "ENOENT",
    "fuse device": "ENOENT",
    "make a device": "EPERM",
    "fill tmp": "ENOSPC",
    "resize the ring": "EPERM",
    "table writable": "EACCES",
    "table write": "EBADF",
    "table reopen": "EACCES",
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(results: dict[str, Any], name: str) -> None:
    assert results[name] == REFUSED[name]


def test_a_limit_cannot_be_raised(results: dict[str, Any]) -> None:
    assert "not allowed to raise" in str(results["raise a limit"]) or results["raise a limit"] == "EPERM"


@pytest.mark.parametrize("name", ["own F_SETFL", "thread", "MADV_DONTNEED", "private tmp"])
def test_is_allowed(results: dict[str, Any], name: str) -> None:
    assert results[name] == 0


def test_it_is_somebody_who_is_nobody_else(results: dict[str, Any]) -> None:
    uid = ENVIRONMENT_UID_BASE + 5
    assert results["ids"] == [1, uid, uid, uid, uid, uid, uid]
    assert results["hostname"] == "xok-5"
    assert results["processes"] == ["1"]
    assert results["interfaces"] == "EPERM" or results["interfaces"] == ["lo"]


def test_it_has_no_capability_and_gets_none(results: dict[str, Any]) -> None:
    assert results["capabilities"] == ["0" * 16] * 5
    assert results["no new privs"] == ["1"]


def test_it_holds_its_own_descriptors_and_no_others(results: dict[str, Any]) -> None:
    """Null, output, sockets (its channel and the pair it made itself), its doorbell, shared memory, the grant at its
    number."""
    kinds: dict[str, set[str]] = {}
    for fd, link in results["descriptors"].items():
        kinds.setdefault(link.split(":")[0].split("-")[0], set()).add(fd)
    assert set(kinds) == {"/dev/null", "pipe", "socket", "anon_inode", "/memfd"}
    assert kinds["/dev/null"] == {"0"} and kinds["pipe"] == {"1", "2"}
    assert len(kinds["anon_inode"]) == 1
    assert results["tap number"] == seccomp.GRANTED
    assert {fd for fd in results["descriptors"] if int(fd) >= seccomp.GRANTED} == {str(seccomp.GRANTED)}
    assert len(kinds["socket"]) == 1 + 2 + 1


def test_it_inherits_no_variables(results: dict[str, Any]) -> None:
    assert results["environ"] == ["HOME", "LANG", "PATH"]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 exists on x86-64 alone")
def test_x32_calls_kill_it() -> None:
    program = """
import ctypes
def main(env, argv):
    ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 | 39))
"""
    status, _ = run_program(program)
    assert status == -31  # SIGSYS


def test_the_filter_of_the_other_architecture_assembles() -> None:
    for machine in ("x86_64", "aarch64"):
        program = seccomp.build(machine)
        assert 0 < len(program) // 8 <= 4096
    with pytest.raises(OSError) as refusal:
        seccomp.build("vax")
    assert refusal.value.errno == errno.ENOSYS


def test_a_setuid_program_in_the_view_gives_nothing() -> None:
    """Every window is nosuid, whatever the host's own mounts allow."""
    program = """
def main(env, argv):
    for line in open("/proc/self/mountinfo"):
        fields = line.split()
        if fields[4] != "/tmp" and not fields[4].startswith("/dev/"):
            assert "ro" in fields[5].split(","), line
        assert "nosuid" in fields[5], line
        assert fields[4].startswith("/dev/") or "nodev" in fields[5], line
    return 0
"""
    status, output = run_program(program)
    assert status == 0, output


def test_it_works_from_a_checkout_in_a_private_home(tmp_path: Path) -> None:
    """The packages' directories are what is bound; those that lead there may be anybody's, mode 0700."""
    home = tmp_path / "home"
    checkout = home / "work" / "xok"
    checkout.mkdir(parents=True)
    root = Path(view.__file__).parents[2]
    for name in ("xok_host", "tests", "pyproject.toml"):
        subprocess.run(["cp", "-r", str(root / name), str(checkout / name)], check=True)
    if (root / "build" / "accel").exists():
        (checkout / "build").mkdir()
        subprocess.run(["cp", "-r", str(root / "build" / "accel"), str(checkout / "build")], check=True)
    home.chmod(0o700)
    script = (
        "from tests.host.launchkit import run_program\n"
        "print(*run_program('def main(env, argv):\\n import xok_host.abi.views as v\\n print(v.__file__)'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=checkout, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    assert done.stdout.split() == ["0", str(checkout / "xok_host/abi/views.py")], done.stderr
