"""The syncer: a libOS that owns nothing and writes back what others leave dirty (thesis 4.4).

XN lets anyone write any dirty block: it changes no contents, and the order is XN's.  So the policy of when to write is
nobody's privilege: this one writes what has been dirty for a whole interval, so that what lives shorter never reaches
the disk, and then flushes once.  It needs no capability:

    xok run libfs/syncer.py --interval 5         until it is stopped
    xok run libfs/syncer.py --once               everything that is dirty now, and what becomes free to go by that

A file system that synchronises itself, as C-FFS does under a mount, is not disturbed: a block that it has written
already is not listed.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from xok_host.abi.calls import MAX_EXTENTS, pack_extents
from xok_host.abi.errors import BogusUpdate, LimitReached, NotInCore, Tainted, UdfFailed, XokError

INTERVAL = 5.0
"""Seconds."""
LIST_BYTES = 1 << 20
"""Room for the numbers of as many blocks as the registry can hold."""


class Syncer:
    """What was seen dirty on each disk when it was last looked at."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._seen: dict[int, set[int]] = {dev: set() for dev in env.devices}

    def sweep(self, dev: int, *, all_of_it: bool = False) -> int:
        """Write what was dirty already at the last sweep (or `all_of_it`), and flush; how many blocks were written."""
        dirty = self.dirty(dev)
        due = dirty if all_of_it else [db for db in dirty if db in self._seen[dev]]
        self._seen[dev] = set(dirty).difference(due)
        written = sum(self._write(dev, due[at : at + MAX_EXTENTS]) for at in range(0, len(due), MAX_EXTENTS))
        if written:
            self._env.call("flush", dev)
        return written

    def settle(self, dev: int) -> int:
        """Sweep until a sweep finds nothing to write; how many blocks were written."""
        total = 0
        while written := self.sweep(dev, all_of_it=True):
            total += written
        return total

    def dirty(self, dev: int) -> list[int]:
        """The dirty blocks that may be written now, in the order of the disk."""
        found = self._env.call("list_writeable", dev, out_bytes=LIST_BYTES)
        return sorted(memoryview(found.data[: 8 * found.r0]).cast("Q"))

    def _write(self, dev: int, blocks: list[int]) -> int:
        """In one request; block by block if one of them has left the registry since it was listed."""
        try:
            return int(self._env.call("writebackv", dev, data=pack_extents((db, 1, 0) for db in blocks)).r1)
        except (Tainted, BogusUpdate, UdfFailed, LimitReached):
            return len(blocks)  # some sectors wait for others, or a log must not say that; what could go has gone
        except NotInCore:
            if len(blocks) == 1:
                return 0
            return sum(self._write(dev, [db]) for db in blocks)


def main(env: Any, argv: list[str]) -> int:
    """The libOS."""
    parser = argparse.ArgumentParser(prog="syncer", description="Write back what others leave dirty.")
    parser.add_argument("--interval", type=float, default=INTERVAL, help="seconds between sweeps (default 5)")
    parser.add_argument("--once", action="store_true", help="write everything that may be written, and end")
    options = parser.parse_args(argv)
    if options.interval <= 0:
        parser.error("the interval must be positive")
    syncer = Syncer(env)
    try:
        if options.once:
            for dev in env.devices:
                print(f"disk {dev}: {syncer.settle(dev)} blocks written")
            return 0
        while not env.stop_requested:
            for dev in env.devices:
                syncer.sweep(dev)
            end = time.monotonic() + options.interval
            while not env.stop_requested and (left := end - time.monotonic()) > 0:
                env.wait_event(left)
    except XokError as error:
        print(error)
        return 1
    return 0
