"""Hostile towards processes: neighbours, the host's, and users of a mount."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.attack import NOBODY, Battlefield, battlefield


@pytest.fixture(scope="module")
def field() -> Iterator[Battlefield]:
    with battlefield() as field:
        yield field


def test_a_neighbour_can_neither_be_signalled_nor_read(field: Battlefield) -> None:
    """By its number on the host, by its uid, by everything at once; and in its own /proc it is alone."""
    neighbour = field.start(
        """
def main(env, argv):
    with open("/tmp/secret", "w") as file:
        file.write("words")
    print("living", flush=True)
    while not env.stop_requested:
        env.wait_event()
    print("unharmed", flush=True)
""",
        name="neighbour.py",
    )
    pid = field.xok.pid("neighbour.py")
    xokd = int(field.xok.status()["xokd"]["pid"])
    uid = next(env["uid"] for env in field.xok.status()["environments"] if env["name"] == "neighbour.py")
    results = field.attack(
        """
import platform
def main(env, argv):
    neighbour, xokd, uid = (int(word) for word in argv)
    x86 = platform.machine() == "x86_64"
    libc.syscall.restype = ctypes.c_long
    def raw(number, *arguments):
        libcall("syscall", ctypes.c_long(number), *(ctypes.c_long(word) for word in arguments))
    for name, pid in {"neighbour": neighbour, "xokd": xokd, "init": 2, "everybody": -1}.items():
        for number in (0, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
            attempt(f"signal {number} to {name}", os.kill, pid, number)
        attempt(f"ptrace {name}", libcall, "ptrace", 16, pid, 0, 0)
        attempt(f"seize {name}", libcall, "ptrace", 0x4206, pid, 0, 0)
        attempt(f"memory of {name}", raw, 310 if x86 else 270, pid, 0, 0, 0, 0, 0)
        attempt(f"write memory of {name}", raw, 311 if x86 else 271, pid, 0, 0, 0, 0, 0)
        attempt(f"pidfd of {name}", raw, 434, pid, 0)
        attempt(f"limits of {name}", raw, 302 if x86 else 261, pid, 7, 0, 0)
        attempt(f"compare {name}", raw, 312 if x86 else 272, pid, 1, 0, 0, 0)
        for what in ("mem", "maps", "environ", "fd", "root", "status"):
            attempt(f"{what} of {name}", os.stat, f"/proc/{pid}/{what}")
    attempt("priority of its user", os.setpriority, os.PRIO_USER, uid, 19)
    attempt("become it", os.setuid, uid)
    attempt("its /tmp", os.stat, "/tmp/secret")
    attempt("processes", lambda: [name for name in os.listdir("/proc") if name.isdigit()])
    return report()
""",
        pid,
        xokd,
        uid,
    )
    assert results.pop("processes") == ["1"]
    assert results.pop("its /tmp") == "ENOENT"
    assert len(results) > 60
    for name, value in results.items():
        assert value in ("EPERM", "ESRCH", "ENOENT", "EACCES", "ENOSYS"), (name, value)
    assert neighbour.poll() is None
    neighbour.send_signal(signal.SIGINT)
    assert neighbour.communicate(timeout=20)[0].strip() == "unharmed"
    assert neighbour.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no FUSE on this host")
def test_a_setuid_file_on_a_mount_gives_nothing(field: Battlefield) -> None:
    """A file system is what its server says, root's setuid files and devices included: the mount makes them nothing."""
    field.xok("mkfs", "setuid")
    mount = field.xok.directory / "mnt"
    mount.mkdir()
    field.xok("mount", "setuid", mount)
    try:
        with open("/proc/self/mountinfo") as mounts:
            line = next(line.split() for line in mounts if line.split()[4] == str(mount))
        assert {"nosuid", "nodev"} <= set(line[5].split(","))
        assert "default_permissions" in line[-1].split(",")
        identify = shutil.which("id")
        assert identify is not None
        presented = Path(shutil.copy(identify, mount / "id"))
        os.chown(presented, 0, 0)
        presented.chmod(0o4755)
        assert presented.stat().st_mode & 0o7777 == 0o4755, "the file system presents it"
        assert "euid" not in as_nobody(presented) and f"uid={NOBODY}" in as_nobody(presented)
        control = Path(shutil.copy(identify, field.xok.directory / "id"))
        control.chmod(0o4755)
        if not os.statvfs(control).f_flag & os.ST_NOSUID:
            assert "euid=0" in as_nobody(control), "elsewhere the same file would give root"
    finally:
        field.xok("umount", mount)


def as_nobody(program: Path) -> str:
    """What a program says that a user without privileges starts."""
    done = subprocess.run([program], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout
