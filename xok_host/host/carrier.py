"""Carries the kernel's requests to the disks, and their ends back.

At the end of a turn all that was asked for in it is started at once: each disk is given what is queued for it in one
system call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from xok_host.kernel.pages import Pages
from xok_host.kernel.request import IoOp, IoRequest

if TYPE_CHECKING:
    from xok_host.host.blockdev import BlockDevice
    from xok_host.kernel.kernel import Kernel

_READ = IoOp.READ
_WRITE = IoOp.WRITE


class Carrier:
    """Between one kernel and its disks, by device number."""

    __slots__ = ("_disks", "_kernel")

    def __init__(self, kernel: Kernel, disks: dict[int, BlockDevice]) -> None:
        self._kernel = kernel
        self._disks = disks

    def start(self) -> None:
        """Start everything that the kernel has asked for."""
        pages: Pages = self._kernel.pages
        request: IoRequest
        for request in self._kernel.take_io():
            disk = self._disks[request.dev]
            done = partial(self._kernel.io_done, request.token)
            if request.op is _READ:
                disk.read(request.sector, [pages.span(page, first, count) for page, first, count in request.iov], done)
            elif request.op is _WRITE:
                disk.write(request.sector, [pages.span(page, first, count) for page, first, count in request.iov], done)
            else:
                disk.flush(done)
        for disk in self._disks.values():
            disk.submit()
