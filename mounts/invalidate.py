"""Telling the kernel that it must not use what it has cached of an inode, without ever waiting for it.

The kernel keeps pages of a file locked while a READ or WRITE of them is on its way, and an invalidation waits for those
pages.  A server that invalidated in its own loop would wait for an answer that only it can give.  So a thread does it:

INV-1  `add` never waits.  The thread may; whatever it waits for, the loop goes on answering.
INV-2  What waits is bounded by the inodes that the kernel knows: each is queued once.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable

log = logging.getLogger("xok.mount")

_GONE = (errno.ENOENT, errno.ENOTCONN, errno.ENODEV, errno.EBADF)
"""The kernel does not know the inode any more, or the mount is gone: nothing is cached."""


class Invalidator:
    """`notify(inode)` is called in the thread, once for each `add`, or once for several of one inode."""

    def __init__(self, notify: Callable[[int], None]) -> None:
        self._notify = notify
        self._waiting: dict[int, None] = {}
        self._some = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, inode: int) -> None:
        with self._some:
            self._waiting[inode] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="invalidator", daemon=True)
                self._thread.start()
            self._some.notify()

    def _run(self) -> None:
        while True:
            with self._some:
                while not self._waiting:
                    self._some.wait()
                inode = next(iter(self._waiting))
                del self._waiting[inode]
            try:
                self._notify(inode)
            except OSError as error:
                if error.errno not in _GONE:
                    log.error("inode %d stays in the kernel's cache: %s", inode, error)
