"""Links besides the compiled one of a TAP queue, and which one an environment gets.

    link = open_link(env)
    while not env.stop_requested:
        stack.advance(clock_us())
        if not link.pump(stack, 256):
            link.wait(env.fileno(), stack.next_deadline(), 0)

Every link here has `pump` and `wait` as `taplink.TapLink` has them:

LINKS-1  `pump` gives the stack at most `most` frames and says how many there were; it never waits.
LINKS-2  `wait` returns when there is a frame, when `other_fd` is readable (then True), or at `until` (µs; 0: whenever).
         What was sent before is on its way then.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
from typing import TYPE_CHECKING, Any

from netstack.xio.link import PythonLink
from netstack.xio.taplink import TapLink, clock_us
from xok_host.abi.pktring import MAX_PACKET, ClientPacketRing

if TYPE_CHECKING:
    from netstack.xio.stack import Stack


class PolledLink(PythonLink):
    """Frames as Python objects from something with a descriptor; subclasses say how to receive and `transmit`."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self._buffer = memoryview(bytearray(MAX_PACKET))
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._other = -1

    def receive(self, buffer: memoryview) -> int:
        """The next frame into `buffer`; its length, or 0 when there is none."""
        raise NotImplementedError

    def flush(self) -> None:
        """What was sent must be on its way now."""

    def quiet(self) -> bool:
        """Whether nothing is here, so that it is right to sleep."""
        return True

    def pump(self, stack: Stack, most: int) -> int:
        """LINKS-1."""
        count = 0
        while count < most:
            size = self.receive(self._buffer)
            if not size:
                break
            count += 1
            stack.feed(bytes(self._buffer[:size]))
        self.flush()
        return count

    def wait(self, other_fd: int, until: int, spin_us: int) -> bool:
        """LINKS-2; it does not spin."""
        self.flush()
        if other_fd != self._other:
            if self._other >= 0:
                self._poll.unregister(self._other)
            if other_fd >= 0:
                self._poll.register(other_fd, select.POLLIN)
            self._other = other_fd
        timeout = None if not until else max(0.0, (until - clock_us()) / 1000)
        ready = self._poll.poll(timeout if self.quiet() else 0)
        return any(fd == other_fd for fd, _ in ready)


class QueueLink(PolledLink):
    """A TAP queue frame by frame, for programs that need no stack and for fault injectors."""

    def receive(self, buffer: memoryview) -> int:
        try:
            return os.readv(self.fd, [buffer])
        except BlockingIOError:
            return 0

    def transmit(self, frame: bytes) -> None:
        """LINK-1: what the TAP does not take, being down or full, is lost."""
        try:
            os.write(self.fd, frame)
        except OSError:
            self.refused += 1


class RingLink(PolledLink):
    """A packet ring, for environments without a TAP queue of their own; `doorbell` is a socket to xokd."""

    def __init__(self, packets: int, doorbell: int) -> None:
        super().__init__(doorbell)
        self.ring = ClientPacketRing(memoryview(mmap.mmap(packets, os.fstat(packets).st_size)))
        self._bell = socket.socket(fileno=doorbell)
        self._unrung = False

    def receive(self, buffer: memoryview) -> int:
        return self.ring.recv_into(buffer)

    def transmit(self, frame: bytes) -> None:
        """Queue a frame; one ring of the bell does for all of a turn.  A full area refuses (LINK-1)."""
        if self.ring.send([frame]):
            self._unrung = True
        else:
            self.refused += 1
            self.flush()

    def flush(self) -> None:
        """Tell xokd of what was queued."""
        if self._unrung:
            self._unrung = False
            try:
                self._bell.send(b"\1", socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass  # the rings before it are still to be heard: that will do

    def quiet(self) -> bool:
        """Hang up old rings, and ask for one with the next packet."""
        try:
            while self._bell.recv(64, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            pass
        return self.ring.sleep()


def open_link(env: Any) -> TapLink | RingLink:
    """The link of an environment (`Environment` of xok_host.abi.client) that has the network."""
    packets = env.extra_fds.get("fd:packets")
    return TapLink(env.tap.fd) if packets is None else RingLink(packets, env.tap.fd)


def open_polled_link(env: Any) -> QueueLink | RingLink:
    """The same for who handles frames without a stack."""
    packets = env.extra_fds.get("fd:packets")
    return QueueLink(env.tap.fd) if packets is None else RingLink(packets, env.tap.fd)
