"""The loop of a server in its environment: link, filters, stack, time.

    station = Station(env)
    station.listen(80, application)
    station.run(application.tick)            # until xokd asks us to stop

STATION-1  An environment that holds a whole address answers for all of it: what is not TCP goes to `xio.owner`, which
           answers ARP and echo. One that was lent a port gets that port's packets, and the owner does the rest.
STATION-2  A turn hears xokd before packets: `tick` runs first (a store gives up locks there), then at most TURN frames.
STATION-3  It sleeps only when a turn found nothing, after looking for SPIN µs; whoever rings (a frame, xokd, the next
           timer) wakes it.
"""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import time
from collections.abc import Callable
from typing import Final

from netstack.xio.links import open_link
from netstack.xio.owner import Owner
from netstack.xio.stack import Stack
from netstack.xio.taplink import clock_us
from netstack.xio.tcb import Application
from xok_host.abi.client import Environment
from xok_host.abi.dpf import listener, wildcard
from xok_host.abi.errors import BadCall, BadCapability

log = logging.getLogger("xok.station")

TURN: Final = 256
SPIN: Final = 30
"""µs.  A wake-up of an idle CPU costs 25 to 50; looking longer than that would only heat the room."""
LONGEST_SLEEP: Final = 1_000_000
"""µs: the date changes every second."""


class Station:
    """The network of one environment: a stack on its first address, and the loop."""

    def __init__(self, env: Environment, *, spin: int = SPIN) -> None:
        if env.tap is None:
            raise BadCall("this program needs an address: start it with --address")
        self._env = env
        self._spin = spin
        tap = self._tap = env.tap
        self.address = tap.addresses[0]
        number = int(ipaddress.IPv4Address(self.address))
        self.link = open_link(env)
        self.stack = Stack(self.link, number, tap.mac, clock_us(), os.urandom(16), tap.mtu)
        self._owner: Owner | None = None
        self._cap = self._whole()

    def _whole(self) -> int:
        """Index of the address capability; STATION-1 if it is for the whole address, not only for a port."""
        held = next((cap for cap in self._env.caps if cap.kind == "address"), None)
        if held is None:
            raise BadCapability(f"no capability for {self.address}")
        if held.name == self.address:
            self._owner = Owner(self._tap.mac, [self.stack.address])
            self.stack.set_other(self._other)
            for wanted in wildcard(self.address):
                self._env.call("filter_insert", cap=held.index, data=wanted.pack())
            self.stack.transmit_bytes(self._owner.announce(self.stack.address))
        return held.index

    def _other(self, frame: bytes) -> None:
        answer = self._owner.respond(frame, self.stack.now) if self._owner is not None else None
        if answer is not None:
            self.stack.transmit_bytes(answer)

    def listen(self, port: int, application: Application) -> None:
        """Open a port; its own filter is more specific than that of the address's owner."""
        self.stack.listen(port, application)
        self._env.call("filter_insert", cap=self._cap, data=listener(self.address, port).pack())
        log.info("listening on %s port %d", self.address, port)

    def run(self, tick: Callable[[int], object]) -> None:
        """Serve until xokd asks us to stop.  `tick` gets the time of day in ns at the beginning of each turn."""
        env, stack, link = self._env, self.stack, self.link
        other = env.fileno()
        # What is here by now stays; connections come and go without cycles, so look for those rarely.
        gc.freeze()
        gc.set_threshold(100_000, 20, 20)
        while not env.stop_requested:
            tick(time.time_ns())
            stack.advance(clock_us())
            if link.pump(stack, TURN):
                continue
            now = clock_us()
            due = stack.next_deadline()
            until = min(due, now + LONGEST_SLEEP) if due else now + LONGEST_SLEEP
            if link.wait(other, until, self._spin):
                env.drain()
                env.dispatch()
        stack.shut_down()
