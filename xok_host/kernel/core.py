"""What the parts of the exokernel find one another by: devices, registry, pages and counters.

`Kernel` is a `Core`, with environments and calls on top.  The parts are given this much of it, with types in C, so that
what each call reaches for is found without looking names up; it imports nothing that would import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cython

from xok_host.abi.errors import NotFound
from xok_host.kernel.pages import Memory, Pages
from xok_host.kernel.tables import Counters, Tables
from xok_host.kernel.xn.registry import Registry

if TYPE_CHECKING:
    from xok_host.kernel.xn.device import Device


class Core:
    """The devices, and what they share."""

    def __init__(self, memory: Memory, tables: Tables, nentries: int, nbuckets: int) -> None:
        self.tables = tables
        self.counters = Counters(tables.counters)
        self.registry = Registry(tables.registry, nentries, nbuckets)
        self.pages = Pages(memory)
        self.share = min(nentries, self.pages.limit) * 3 // 4
        """Blocks that one environment may keep in core by changing them (`apply.check_share`)."""
        self.devices: dict[int, Device] = {}
        self.starting: dict[int, Device] = {}
        self.failed: dict[int, int] = {}
        """Devices that were given up, and the error."""
        self.now = 0
        """ns since 1970, as of the last turn."""

    def device(self, dev: cython.ulonglong) -> Device:
        """An active device that works.  Raises NotFound."""
        found = self.devices.get(dev)
        if found is None:
            raise NotFound(f"no device {dev}")
        if self.failed and dev in self.failed:
            raise NotFound(f"device {dev} has failed with error {self.failed[dev]} and is out of use until a restart")
        return found
