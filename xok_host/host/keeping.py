"""Keepers: for each address that servers share, one environment that answers what no server claims (DESIGN 5).

KP-1  A server that dies leaves its address answered: its traffic falls back to the keeper, which says RST.
KP-2  A keeper that dies is replaced; the servers' own filters hold meanwhile.
KP-3  A keeper without servers gives its address up to anybody who asks for it.
"""

from __future__ import annotations

import logging
import time
from ipaddress import IPv4Interface

import trio

from xok_host.abi.errors import XokError
from xok_host.host.environments import Environments, Program, Record
from xok_host.host.network import Network

log = logging.getLogger("xok.keepers")

MODULE = "netstack.xio.keeper"
MAX_RESTARTS = 5
RESTART_SECONDS = 60.0
READY_SECONDS = 10.0


class Keepers:
    """All keepers, by address."""

    def __init__(self, environments: Environments, network: Network, nursery: trio.Nursery) -> None:
        self._environments = environments
        self._network = network
        self._nursery = nursery
        self._kept: dict[str, Record] = {}
        self._one_at_a_time = trio.Lock()

    async def keep(self, interface: IPv4Interface) -> None:
        """See that the address has a keeper.  Raises Exists if somebody else has it."""
        async with self._one_at_a_time:
            if str(interface.ip) not in self._kept:
                await self._start(interface)
                self._nursery.start_soon(self._supervise, interface)

    async def give_up(self, interface: IPv4Interface) -> None:
        """Make the address free, if nothing but a keeper has it (KP-3)."""
        async with self._one_at_a_time:
            record = self._kept.get(str(interface.ip))
            if record is not None and not self._network.shared(interface):
                del self._kept[str(interface.ip)]
                await self._environments.stop(record)

    async def _start(self, interface: IPv4Interface) -> None:
        record = await self._environments.start(
            f"address:{interface.ip}", "keeper", Program(MODULE), interface=interface
        )
        self._kept[str(interface.ip)] = record
        with trio.move_on_after(READY_SECONDS):
            while not record.exited.is_set() and not self._network.has_filter(record.slot):
                await trio.sleep(0.005)

    async def _supervise(self, interface: IPv4Interface) -> None:
        deaths: list[float] = []
        address = str(interface.ip)
        while (record := self._kept.get(address)) is not None:
            await record.exited.wait()
            if record.stopping or self._kept.get(address) is not record:
                break
            now = time.monotonic()
            deaths = [when for when in deaths if when > now - RESTART_SECONDS] + [now]
            if len(deaths) > MAX_RESTARTS:
                log.error("the keeper of %s died %d times and is not started again", address, len(deaths))
                break
            log.warning("the keeper of %s died; starting another", address)
            try:
                await self._start(interface)
            except (XokError, OSError) as error:
                log.error("no new keeper for %s: %s", address, error)
                break
        if self._kept.get(address) is record:
            del self._kept[address]
