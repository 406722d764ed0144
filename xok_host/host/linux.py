"""The system calls that Python does not offer, through ctypes.

Each function raises `OSError` with the call's errno and the object it was about.  Nothing here decides anything: the
callers (`confine`, `view`, `seccomp`, `fusemount`, `launcher`) do.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000
CLONE_NEWTIME: Final = 0x0000_0080
CLONE_THREAD: Final = 0x0001_0000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# The same numbers on every architecture.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_CLOSE_RANGE = 436
_SYS_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE = 1
_AT_RECURSIVE = 0x8000
_AT_EMPTY_PATH = 0x1000
_AT_FDCWD = -100
_MOVE_MOUNT_F_EMPTY_PATH = 4
_CAPABILITY_VERSION_3 = 0x2008_0522
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}

MACHINE: Final = os.uname().machine


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def _path(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), f"setns({kind:#x})")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = None if data is None else data.encode()
    result = _libc.mount(_path(source), _path(target), _path(kind), ctypes.c_ulong(flags), encoded)
    _check(result, target)


def umount(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(_path(target), ctypes.c_int(flags)), target)


def clone_tree(path: str) -> int:
    """A detached copy of the mount tree at `path`, as a descriptor."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    return _check(
        _libc.syscall(ctypes.c_long(_SYS_OPEN_TREE), ctypes.c_int(_AT_FDCWD), _path(path), ctypes.c_uint(flags)), path
    )


def attach_tree(tree: int, target: str) -> None:
    """Attach what `clone_tree` gave at `target`."""
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOVE_MOUNT),
        ctypes.c_int(tree),
        b"",
        ctypes.c_int(_AT_FDCWD),
        _path(target),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )
    _check(result, target)


def restrict_tree(tree: int, attributes: int, recursive: bool = True) -> None:
    """Set MOUNT_ATTR_* on the mounts of an open tree (Linux 5.12)."""
    record = struct.pack("<QQQQ", attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(tree),
        b"",
        ctypes.c_uint(flags),
        record,
        ctypes.c_size_t(len(record)),
    )
    _check(result, "mount_setattr")


def pivot_to_cwd() -> None:
    """Make the working directory the root and let go of the old root."""
    number = ctypes.c_long(_SYS_PIVOT_ROOT[MACHINE])
    _check(_libc.syscall(number, b".", b"."), "pivot_root")
    umount(".", MNT_DETACH)
    os.chdir("/")


def prctl(option: int, *arguments: int) -> int:
    values = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    return _check(_libc.prctl(ctypes.c_int(option), *values), f"prctl({option})")


def drop_bounding_set() -> None:
    """Nothing that this process or its children ever execute gains a capability."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            present = prctl(PR_CAPBSET_READ, capability)
        except OSError:
            return  # beyond the kernel's last capability
        if present:
            prctl(PR_CAPBSET_DROP, capability)


def clear_capability_sets() -> None:
    """Empty the effective, permitted and inheritable sets."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def close_from(first: int, last: int = 0xFFFF_FFFF) -> None:
    """Close the descriptors `first` to `last`, both included."""
    if first <= last:
        number = ctypes.c_long(_SYS_CLOSE_RANGE)
        _check(_libc.syscall(number, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0)), "close_range")


def set_process_name(name: str) -> None:
    """The name that ps and top show, cut to 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def set_seccomp_filter(program: bytes) -> None:
    """Install classic BPF (8 bytes an instruction) as the calling thread's system-call filter."""
    code = ctypes.create_string_buffer(program, len(program))
    record = struct.pack("@HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    number = ctypes.c_long(_SYS_SECCOMP[MACHINE])
    _check(_libc.syscall(number, ctypes.c_uint(1), ctypes.c_uint(0), record), "seccomp")


def sethostname(name: str) -> None:
    encoded = name.encode()
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), name)
