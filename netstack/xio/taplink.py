# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, initializedcheck=False
"""The link of an environment's own TAP queue: one read for a frame in, one writev for a frame out.

`pump` is the inner loop of a server: it gives the stack every frame that is there, up to a bound; compiled, it makes no
Python object for any of them.  `wait` sleeps until the queue or another descriptor has something, after a short spin.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

import cython

from netstack.xio.link import Link

if TYPE_CHECKING:
    from netstack.xio.gather import Iov
    from netstack.xio.stack import Stack

if not cython.compiled:
    ROOM = 70000  # for the longest frame

    def clock_us() -> int:
        """The monotonic clock in µs."""
        return time.monotonic_ns() // 1000

    def receive(fd: int, buffer: bytearray) -> int:
        """The next frame into `buffer`; its size, 0 when there is none.  OSError: the queue is gone."""
        try:
            return os.readv(fd, [buffer])
        except BlockingIOError:
            return 0

    def transmit(fd: int, iov: Iov) -> bool:
        """Whether the queue took the frame."""
        try:
            return os.writev(fd, iov.pieces) >= 0
        except OSError:
            return False

    def wait_for(fd: int, other_fd: int, until: int, spin_us: int) -> bool:
        """See TapLink.wait."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if other_fd >= 0:
            poll.register(other_fd, select.POLLIN)
        wait = max(0, until - clock_us()) / 1000 if until else None
        return any(ready == other_fd for ready, _ in poll.poll(wait))


class TapLink(Link):
    """Frames of the TAP queue `fd`, which is O_NONBLOCK and has the ten-octet virtio header."""

    def __init__(self, fd: int) -> None:
        Link.__init__(self)
        self.fd = fd
        if not cython.compiled:
            self.buffer = bytearray(ROOM)

    def send(self, iov: Iov) -> int:
        """LINK-1, LINK-2."""
        if transmit(self.fd, iov):
            self.sent += 1
        else:
            self.refused += 1
        return 0

    def pump(self, stack: Stack, most: int) -> int:
        """Give the stack up to `most` frames that are there; how many there were."""
        count = 0
        while count < most:
            size = receive(self.fd, self.buffer)
            if size == 0:
                break
            count += 1
            stack.input(self.buffer, size)
        return count

    def wait(self, other_fd: int, until: int, spin_us: int) -> bool:
        """Wait for a frame, for `other_fd` (-1: none) or until the time `until` (µs; 0: for ever).

        Whether `other_fd` has something.  Looks for `spin_us` before it sleeps: waking an idle CPU costs more.
        """
        if not cython.compiled:
            return wait_for(self.fd, other_fd, until, spin_us)
        with cython.nogil:
            ready = wait_for(self.fd, other_fd, until, spin_us)
        return ready
