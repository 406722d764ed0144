"""Two ways to have the host do vectored I/O in the background: io_uring, and threads where that is not allowed."""

from __future__ import annotations

import os
import queue
import threading
from typing import Any, Protocol

from xok_host.host.disk import Buffer

MAX_VECTORS = 1024
"""Buffers in one request (IOV_MAX)."""
RWF_DSYNC = 2


class Engine(Protocol):
    """Results are bytes transferred, or −errno."""

    def queue_rw(
        self, write: bool, fd: int, offset: int, buffers: list[Buffer], token: Any, flags: int = 0
    ) -> None: ...

    def queue_sync(self, fd: int, token: Any) -> None: ...

    def submit(self) -> None: ...

    def reap(self, most: int, most_bytes: int) -> list[tuple[Any, int]]:
        """What has ended.  When it is more than `most`, or more bytes, some of it, and `fileno` stays readable for the
        others."""
        ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class ThreadEngine:
    """Blocking calls in a few threads, announced through an eventfd: for hosts without io_uring."""

    THREADS = 4

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._work: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Any, int]] = queue.SimpleQueue()
        self._queued: list[tuple[Any, ...]] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self.THREADS)]
        for thread in self._threads:
            thread.start()

    def queue_rw(self, write: bool, fd: int, offset: int, buffers: list[Buffer], token: Any, flags: int = 0) -> None:
        self._queued.append((os.pwritev if write else os.preadv, fd, buffers, offset, flags, token))

    def queue_sync(self, fd: int, token: Any) -> None:
        self._queued.append((None, fd, [], 0, 0, token))

    def submit(self) -> None:
        for work in self._queued:
            self._work.put(work)
        self._queued.clear()

    def reap(self, most: int, most_bytes: int) -> list[tuple[Any, int]]:
        if self._done.qsize() > most:
            return [self._done.get() for _ in range(most)]
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        out = []
        while not self._done.empty():
            out.append(self._done.get())
        return out

    def fileno(self) -> int:
        return self._event

    def close(self) -> None:
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        os.close(self._event)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            call, fd, buffers, offset, flags, token = work
            try:
                if call is None:
                    os.fdatasync(fd)
                    result = 0
                else:
                    result = call(fd, buffers, offset, flags)
            except OSError as error:
                result = -(error.errno or 5)
            self._done.put((token, result))
            os.eventfd_write(self._event, 1)


def best(without: frozenset[str]) -> Engine:
    """io_uring unless `without` has "uring" or the kernel refuses it."""
    if "uring" not in without:
        from xok_host.host.uring import Ring

        try:
            ring: Engine = Ring(256)
            return ring
        except OSError:
            pass  # disabled by sysctl or a container's filter
    return ThreadEngine()
