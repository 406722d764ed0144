"""An environment's view of the file system: a small tmpfs with read-only windows into the host's.

V-1  Everything readable here is code: interpreter, libraries, this project's packages.  No user's files, no sockets, no
     devices but null, zero, full, random and urandom, no image file that happens to lie in the checkout.
V-2  Each window has the path it has outside, so that imports work unchanged; the directories that lead there are made
     new, mode 0755, so it does not matter that the checkout lies in somebody's 0700 home.
V-3  Everything is read-only, nosuid and nodev, recursively, but /tmp, which is the environment's own and bounded.
V-4  FUSE mounts below a window are not carried along: an environment must not keep another's mount busy.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from xok_host.abi import accel
from xok_host.host import linux
from xok_host.host.mountinfo import mounts_now

TMP_BYTES = 64 << 20
"""Room in an environment's private /tmp."""
TMP_FILES = 4096
ROOT_BYTES = 8 << 20

PACKAGES = ("xok_host", "libfs", "netstack", "mounts", "build/accel", "pyproject.toml")
"""What environments see of the checkout."""

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
_COPIED = ("/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_STAGE = "/tmp"
"""Where the new root is built before it becomes the root; every window is held by descriptor by then."""


@dataclass(slots=True)
class View:
    """What environments see.  Computed once by the launcher, applied by each child."""

    windows: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)


def standard(root: str = accel.ROOT, extra: Iterable[str] = ()) -> View:
    """System directories, the interpreter with its virtual environment, the checkout's packages, and `extra`."""
    view = View()
    wanted = []
    for path in _SYSTEM:
        if os.path.islink(path):
            view.links[path] = os.readlink(path)
        elif os.path.isdir(path):
            wanted.append(path)
    wanted += [sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix]
    wanted += [path for path in sys.path if os.path.isabs(path) and "site-packages" in path]
    wanted += [os.path.join(root, name) for name in PACKAGES]
    wanted += list(extra)
    for path in list(wanted):
        wanted.append(os.path.realpath(path))
    for path in sorted({os.path.normpath(p) for p in wanted if os.path.exists(p)}, key=len):
        if path != "/" and not any(path == have or path.startswith(have + "/") for have in view.windows):
            view.windows.append(path)
    return view


def unreadable(view: View) -> list[str]:
    """Windows, or files right below them, that an environment's uid could not read."""
    out = []
    for path in view.windows:
        if not _readable(path):
            out.append(path)
        elif os.path.isdir(path):
            with os.scandir(path) as entries:
                out += [entry.path for entry in entries if entry.name.endswith(".py") and not _readable(entry.path)]
    return out


def _readable(path: str) -> bool:
    mode = os.stat(path).st_mode
    wanted = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return mode & wanted == wanted


def enter(view: View, uid: int, gid: int) -> None:
    """Replace the calling process's root by the view.  Needs a mount namespace and a PID namespace of its own."""
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    trees = [(path, linux.clone_tree(path)) for path in view.windows]
    devices = [(name, linux.clone_tree(f"/dev/{name}")) for name in _DEVICES if os.path.exists(f"/dev/{name}")]
    files = [(path, _contents(path)) for path in _COPIED if os.path.exists(path)]
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("xok", _STAGE, "tmpfs", flags, f"mode=755,size={ROOT_BYTES},nr_inodes=8192")
    os.chdir(_STAGE)

    _directory("/tmp")
    own = f"mode=700,uid={uid},gid={gid},size={TMP_BYTES},nr_inodes={TMP_FILES}"
    linux.mount("tmp", _STAGE + "/tmp", "tmpfs", flags | linux.MS_NOEXEC, own)
    for path, target in view.links.items():
        os.symlink(target, _STAGE + path)
    for path, tree in trees:
        _attach(tree, path, linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV)
    for name, tree in devices:
        _attach(tree, f"/dev/{name}", linux.MOUNT_ATTR_NOSUID)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{_STAGE}/dev/{name}")
    for path, data in files:
        _file(path, data)
    _file("/etc/passwd", f"root:x:0:0::/:/bin/false\nlibos:x:{uid}:{gid}::/tmp:/bin/false\n".encode())
    _file("/etc/group", f"root:x:0:\nlibos:x:{gid}:\n".encode())
    _directory("/proc")
    _mount_proc(_STAGE + "/proc")
    _drop_fuse_mounts()
    linux.pivot_to_cwd()
    tree = os.open("/", os.O_PATH | os.O_DIRECTORY)
    linux.restrict_tree(tree, linux.MOUNT_ATTR_RDONLY, recursive=False)
    os.close(tree)


def _attach(tree: int, path: str, attributes: int) -> None:
    """Attach a window at its own path under the stage."""
    linux.restrict_tree(tree, attributes)
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        _directory(path)
    else:
        _file(path, b"")
    linux.attach_tree(tree, _STAGE + path)
    os.close(tree)


def _directory(path: str) -> None:
    """Make a directory and those that lead to it, 0755, root's (the launcher's umask is 022)."""
    os.makedirs(_STAGE + path, mode=0o755, exist_ok=True)


def _file(path: str, data: bytes) -> None:
    _directory(os.path.dirname(path))
    with open(_STAGE + path, "wb") as file:
        file.write(data)
    os.chmod(_STAGE + path, 0o644)


def _contents(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(4 << 20)


def _mount_proc(target: str) -> None:
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC | linux.MS_RDONLY
    try:
        linux.mount("proc", target, "proc", flags, "subset=pid")
    except OSError:
        linux.mount("proc", target, "proc", flags)  # before Linux 5.8


def _drop_fuse_mounts() -> None:
    """Unmount what came along below windows and is served by a user-space process (V-4)."""
    for point, kind in reversed(list(mounts_now())):
        if kind.startswith("fuse") and point.startswith(_STAGE + "/"):
            try:
                linux.umount(point, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL):  # the host's, hidden under the stage
                    raise
