"""The program that keeps an address: xokd runs one for each address that servers share (DESIGN section 5).

It holds the address's wildcard filters and answers what no server has a filter for (`owner`).  Servers come and go with
more specific filters under grants delegated from this one's.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from netstack.xio.links import open_polled_link
from netstack.xio.owner import Owner
from netstack.xio.taplink import clock_us
from xok_host.abi.dpf import wildcard
from xok_host.abi.pktring import MAX_PACKET

TURN = 64
"""Packets answered before xokd's channel is looked at again."""


def main(env: Any, argv: list[str]) -> int:
    """Answer until xokd asks to stop."""
    held = next(cap for cap in env.caps if cap.kind == "address")
    for region in wildcard(held.name):
        env.call("filter_insert", cap=held.index, data=region.pack())
    owner = Owner(env.tap.mac, [int(ipaddress.IPv4Address(address)) for address in env.tap.addresses])
    link = open_polled_link(env)
    buffer = memoryview(bytearray(MAX_PACKET))
    while True:
        env.drain()
        env.dispatch()
        if env.stop_requested:  # before waiting: the word to stop has just been taken, and nothing else need come
            return 0
        until = 0
        for _ in range(TURN):
            size = link.receive(buffer)
            if not size:
                break
            answer = owner.respond(buffer[:size], clock_us())
            if answer is not None:
                link.transmit(answer)
        else:
            until = 1  # there may be more: only look
        link.wait(env.fileno(), until, 0)
