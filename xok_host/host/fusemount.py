"""FUSE mounts that outlive their servers.

The launcher opens /dev/fuse, mounts it and keeps a duplicate of the descriptor for as long as the mount shall live: a
server that dies leaves requests waiting instead of errors, and a fresh one takes the same descriptor.

F-1  Always nosuid, nodev, default_permissions: the server is not trusted, the host's kernel checks its users.
F-2  mount(2) and umount(2) can hang in a path that another dead server serves, and umount(2) waits for the server.
     They run in a child, and nobody waits for that but those who asked.
F-3  The connection is aborted by closing its last descriptor, so no mount hangs after xokd and launcher are gone.
F-4  A mount of an unprivileged user is for that user alone: nobody else's process can be made to wait for his server.
     It is made on the directory that he opened, and unmounted from that directory's parent, by name: while something
     is mounted there the name cannot be given to anything else, whatever becomes of the path that led to it.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from xok_host.host import linux

INIT_BYTES = 65536
"""Room for the kernel's first request; it refuses reads with less than 8192."""
_LOST = 255

DEADLINE = 120.0
"""Seconds a mount or umount may take: umount waits until the server has taken what was still to be written."""


def open_connection() -> int:
    """A new FUSE connection, O_NONBLOCK.  Raises OSError."""
    return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


@dataclass(frozen=True, slots=True)
class Owner:
    """The user whose mount it is, with descriptors (O_PATH) of the directory and of its parent (F-4)."""

    uid: int
    gid: int
    place: int
    parent: int

    @classmethod
    def of(cls, uid: int, gid: int, place: int) -> Owner:
        """Keeps `place`, which `close` closes."""
        return cls(uid, gid, place, os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place))

    def name(self) -> str:
        """The directory's name in its parent."""
        return os.path.basename(os.readlink(f"/proc/self/fd/{self.place}"))

    def become(self) -> None:
        """Go to the parent, and have the user's rights from here on.  For a child that ends soon."""
        os.fchdir(self.parent)
        os.setgroups([])
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)

    def close(self) -> None:
        os.close(self.place)
        os.close(self.parent)


def mount(fd: int, directory: str, name: str, owner: Owner | None = None) -> None:
    """Mount a connection on `directory`, or on the owner's.  May take long (F-2)."""
    users = "user_id=0,group_id=0,allow_other"
    if owner is not None:
        directory = f"/proc/self/fd/{owner.place}"
        users = f"user_id={owner.uid},group_id={owner.gid}"
    options = f"fd={fd},rootmode=40000,{users},default_permissions"
    linux.mount(f"xok:{name}", directory, "fuse.xok", linux.MS_NOSUID | linux.MS_NODEV, options)


def read_init(fd: int) -> bytes:
    """The kernel's INIT request, which comes once, at the mount, and which every server of it needs to see."""
    return os.read(fd, INIT_BYTES)


def answers(directory: str, owner: Owner) -> None:
    """Return when the server answers its user; raises OSError when it never will.  For a child (`apart`)."""
    name = owner.name()
    owner.become()
    os.statvfs(name)


def umount(directory: str, *, detach: bool = False, owner: Owner | None = None) -> None:
    """Unmount.  `detach` takes it out of sight at once, whoever still uses it.  May take long (F-2).

    With an owner this changes the working directory: call it in a child, or at the end."""
    if owner is not None:
        directory = owner.name()
        os.fchdir(owner.parent)
    linux.umount(directory, linux.UMOUNT_NOFOLLOW | (linux.MNT_DETACH if detach else 0))


def apart(action: Callable[[], None]) -> int:
    """Start `action` in a child and return its pid; `outcome` of its status is 0 or the errno of its OSError."""
    child = os.fork()
    if child == 0:
        code = _LOST
        try:
            action()
            code = 0
        except OSError as error:
            code = error.errno or errno.EIO
        finally:
            os._exit(code)
    return child


def outcome(status: int) -> int:
    """0 or an errno, from the wait status of a child that `apart` made."""
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return errno.ETIMEDOUT
    return errno.EIO if code < 0 or code == _LOST else code
