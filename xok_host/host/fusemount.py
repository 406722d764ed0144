"""FUSE mounts that outlive their servers.

The launcher opens /dev/fuse, mounts it and keeps a duplicate of the descriptor for as long as the mount shall live: a
server that dies leaves requests waiting instead of errors, and a fresh one takes the same descriptor.

F-1  Always nosuid, nodev, default_permissions: the server is not trusted, the host's kernel checks its users.
F-2  mount(2) and umount(2) can hang in a path that another dead server serves, and umount(2) waits for the server.
     They run in a child, and nobody waits for that but those who asked.
F-3  The connection is aborted by closing its last descriptor, so no mount hangs after xokd and launcher are gone.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

from xok_host.host import linux

INIT_BYTES = 65536
"""Room for the kernel's first request; it refuses reads with less than 8192."""
_LOST = 255

DEADLINE = 120.0
"""Seconds a mount or umount may take: umount waits until the server has taken what was still to be written."""


def open_connection() -> int:
    """A new FUSE connection, O_NONBLOCK.  Raises OSError."""
    return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def mount(fd: int, directory: str, name: str) -> None:
    """Mount a connection on `directory`.  May take long (F-2)."""
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    linux.mount(f"xok:{name}", directory, "fuse.xok", linux.MS_NOSUID | linux.MS_NODEV, options)


def read_init(fd: int) -> bytes:
    """The kernel's INIT request, which comes once, at the mount, and which every server of it needs to see."""
    return os.read(fd, INIT_BYTES)


def umount(directory: str, *, detach: bool = False) -> None:
    """Unmount.  `detach` takes it out of sight at once, whoever still uses it.  May take long (F-2)."""
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
