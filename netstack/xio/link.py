# cython: language_level=3, annotation_typing=False
"""Where frames go.  A frame on a link begins with the ten octets of the virtio header, then Ethernet.

LINK-1  `send` never waits.  A frame that the network does not take is lost, and TCP will send it again.
LINK-2  `send` is done with the memory an Iov refers to when it returns.

The TAP queue's link is `taplink.TapLink`; `PythonLink` is for tests, tracers and fault injectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netstack.xio.gather import Iov


class Link:
    """A way out for frames."""

    def __init__(self) -> None:
        self.sent = 0
        self.refused = 0

    def send(self, iov: Iov) -> int:
        """Send one frame."""
        raise NotImplementedError


class PythonLink(Link):
    """A link whose frames are bytes objects: subclass it and override `transmit`."""

    def send(self, iov: Iov) -> int:
        """Join the pieces and hand them on."""
        self.sent += 1
        self.transmit(iov.join())
        return 0

    def transmit(self, frame: bytes) -> object:
        """One frame, virtio header first."""
        raise NotImplementedError
