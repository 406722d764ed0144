"""Carries the kernel's requests to the disks, and their ends back.

At the end of a turn all that was asked for in it is started at once: each disk is given what is queued for it in one
system call.
"""

from __future__ import annotations

import cython

from xok_host.host.blockdev import BlockDevice
from xok_host.kernel.kernel import Kernel
from xok_host.kernel.pages import Pages
from xok_host.kernel.request import IoOp, IoRequest

_WRITE = IoOp.WRITE
_FLUSH = IoOp.FLUSH


@cython.freelist(64)
@cython.cclass
class Ended:
    """What a disk calls when a request has ended."""

    __slots__ = ("kernel", "token")

    def __init__(self, kernel: Kernel, token: cython.ulonglong) -> None:
        self.kernel = kernel
        self.token = token

    def __call__(self, errno: cython.int) -> None:
        self.kernel.io_done(self.token, errno)


class Carrier:
    """Between one kernel and its disks, by device number."""

    __slots__ = ("_disks", "_kernel")

    def __init__(self, kernel: Kernel, disks: dict[int, BlockDevice]) -> None:
        self._kernel = kernel
        self._disks = disks

    def start(self) -> None:
        """Start everything that the kernel has asked for."""
        requests = self._kernel.take_io()
        if not requests:
            return
        pages: Pages = self._kernel.pages
        request: IoRequest
        disk: BlockDevice
        for request in requests:
            disk = self._disks[request.dev]
            ended = Ended(self._kernel, request.token)
            if request.op is _FLUSH:
                disk.flush(ended)
            else:
                buffers = [pages.span(page, first, count) for page, first, count in request.iov]
                disk.transfer(request.op is _WRITE, request.sector, buffers, ended)
        for disk in self._disks.values():
            disk.submit()
