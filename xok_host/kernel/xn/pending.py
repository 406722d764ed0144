"""Calls that complete later than the crossing that submitted them."""

from __future__ import annotations

from collections.abc import Callable

import cython

from xok_host.abi.errors import MediaError, XokError


class Pending:
    """One waiting call.  It completes when everything it holds is done; the first error counts.

    `finish(pending)` is called then, once.  The maker holds it while it sets things up: `release` ends that.
    """

    __slots__ = ("data", "error", "finish", "held", "r0", "r1", "spent")

    def __init__(self, finish: Callable[[Pending], None]) -> None:
        self.begin(finish)

    def begin(self, finish: Callable[[Pending], None]) -> None:
        self.finish = finish
        self.held = 1
        self.error: XokError | None = None
        self.r0 = 0
        self.r1 = 0
        self.data = b""
        self.spent = 0
        """Instructions of the UDFs that the call ran (`reboot`)."""

    def hold(self) -> None:
        self.held += 1

    def fail(self, error: XokError) -> None:
        if self.error is None:
            self.error = error

    def release(self, code: cython.int = 0) -> None:
        """One thing less to wait for; `code` is the device's verdict on it, an errno."""
        if code:
            self.fail(MediaError(f"the device reports error {code}"))
        self.held -= 1
        if not self.held:
            self.finish(self)


def new_pending() -> Pending:
    """Of a call; what completes within it is answered by the call, and nobody need be told."""
    pending: Pending = Pending.__new__(Pending)
    pending.begin(_ignore)
    return pending


def _ignore(pending: Pending) -> None:
    pass
