"""Addresses, filters and queues of environments: `NetEdge` and the filter table, as xokd uses them.

NW-1  An address has one owner at a time, with a capability for the whole of it; others hold parts delegated from that.
      Each has the address's MAC, a queue, and an inverse filter that lets nothing else out.
NW-2  What a dead environment held is taken back only after its process is gone (NET-2).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from typing import Any

from pyroute2 import IPRoute  # type: ignore[attr-defined, unused-ignore]

from xok_host.abi.dpf import listener
from xok_host.abi.errors import BadCall, Exists, InUse, NotAllowed, NotFound
from xok_host.abi.types import Right
from xok_host.host.callloop import CallLoop
from xok_host.host.environments import NetworkGrant
from xok_host.host.net import NetEdge
from xok_host.kernel.capability import ADDRESS, Capability
from xok_host.kernel.dpf.table import FilterTable

MTU = 1500


@dataclass(slots=True, eq=False)
class _Address:
    """An address in use.  `owner` holds all of it; `sharers` hold parts that were delegated."""

    interface: IPv4Interface
    grant: int
    owner: int
    sharers: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Holding:
    grant: int
    port: int
    address: _Address


class Network:
    """The TAP of one instance."""

    def __init__(self, tap: str, host_address: str, without: frozenset[str], loop: CallLoop) -> None:
        self._host = IPv4Interface(host_address)
        self.host_address = host_address
        _require_unused(self._host, tap)
        self.edge = NetEdge.open(tap, [host_address], without)
        self.table = FilterTable()
        self._loop = loop
        self._addresses: dict[str, _Address] = {}
        self._holdings: dict[int, _Holding] = {}
        self._rings: dict[int, int] = {}
        if self.edge.engine == "portable":
            loop.watch(self.edge.fileno(), self._pump)

    def owner(self, interface: IPv4Interface) -> int | None:
        """The environment that holds the whole of an address."""
        found = self._addresses.get(str(interface.ip))
        return None if found is None else found.owner

    def shared(self, interface: IPv4Interface) -> bool:
        """Whether somebody holds a part of an address."""
        found = self._addresses.get(str(interface.ip))
        return found is not None and bool(found.sharers)

    def grant(
        self, slot: int, interface: IPv4Interface, listening: int | None
    ) -> tuple[NetworkGrant, list[Capability]]:
        """Queue (or packet ring), MAC and capability: for a whole address that nobody has, or (`listening`) for one TCP
        port of an address that has an owner.  Raises BadCall, Exists, NotFound, LimitReached."""
        self._check(interface)
        text = str(interface.ip)
        if listening is None:
            address = self._addresses.get(text) or _Address(interface, self.table.own_address(text), 0)
            if address.owner:
                raise Exists(f"address {text} is held by environment {address.owner}")
            grant = address.grant
            address.owner = slot
        else:
            if text not in self._addresses:
                raise NotFound(f"nobody keeps address {text}")
            address = self._addresses[text]
            grant = self.table.delegate(address.grant, [listener(text, listening).pack()])
        try:
            mac = _mac(interface)
            descriptors, queue, port = self._receiver(slot)
            self.edge.set_inverse(slot, mac, [text])
        except BaseException:
            if address.owner == slot:
                address.owner = 0
            if grant != address.grant or not address.sharers:
                self.table.revoke(grant)
            with contextlib.suppress(NotFound):
                self.edge.release(slot)
            raise
        self._addresses[text] = address
        if listening is not None:
            address.sharers.add(slot)
        self._holdings[slot] = _Holding(grant, port, address)
        start = {
            "queue": queue,
            "mac": mac.hex(),
            "addresses": [text],
            "prefix": interface.network.prefixlen,
            "mtu": MTU,
        }
        name = text if listening is None else f"{text} tcp {listening}"
        capability = Capability(ADDRESS, grant, Right.READ | Right.WRITE | Right.GRANT, name)
        return NetworkGrant(start, descriptors, str(interface)), [capability]

    def _receiver(self, slot: int) -> tuple[dict[str, int], int, int]:
        """Descriptors by table name, queue number, port."""
        if self.edge.engine == "ebpf":
            queue = self.edge.grant_queue(slot)
            return {"tap": queue.fd}, queue.queue, queue.port
        before = set(self.edge.doorbells())
        ring = self.edge.grant_ring(slot)
        (doorbell,) = set(self.edge.doorbells()) - before
        self._rings[slot] = doorbell
        self._loop.watch(doorbell, lambda: self._pump_ring(slot))
        return {"tap": ring.doorbell, "fd:packets": ring.fd}, 0, ring.port

    def _check(self, interface: IPv4Interface) -> None:
        network = self._host.network
        if interface.ip not in network:
            raise BadCall(f"{interface.ip} is not in the TAP's network {network}")
        if interface.network.prefixlen != network.prefixlen:
            raise BadCall(f"the TAP's network is {network}: write {interface.ip}/{network.prefixlen}")
        if interface.ip in (self._host.ip, network.network_address, network.broadcast_address):
            raise BadCall(f"{interface.ip} is the host's own, or the network's")

    def insert(self, slot: int, grant: int, wire: bytes) -> int:
        """FILTER_INSERT; the caller holds the capability for `grant`."""
        if slot not in self._holdings:
            raise NotAllowed("the environment has no network")
        return self.edge.insert_filter(self.table, slot, grant, wire)

    def remove(self, slot: int, number: int) -> None:
        """FILTER_REMOVE."""
        self.table.remove(slot, number)
        self.edge.sync(self.table)

    def revoke(self, slot: int) -> None:
        """Nothing goes to it or comes from it any more; it may still live."""
        if slot in self._holdings:
            self.edge.revoke(slot)

    def release(self, slot: int) -> None:
        """It is dead: its filters, its address (or its part of it) and its queue are free."""
        holding = self._holdings.pop(slot, None)
        if holding is None:
            return
        if slot in self._rings:
            self._loop.unwatch(self._rings.pop(slot))
        address = holding.address
        address.sharers.discard(slot)
        self.table.remove_holder(slot)
        if address.owner == slot:
            # Who has a part of it keeps the address alive, until another owner takes over or the last part goes.
            address.owner = 0
        elif holding.grant in self.table.grants:
            self.table.revoke(holding.grant)
        if not address.owner and not address.sharers:
            self.table.revoke(address.grant)
            del self._addresses[str(address.interface.ip)]
        self.edge.sync(self.table)
        self.edge.release(slot)

    def has_filter(self, slot: int) -> bool:
        return any(bound.holder == slot for bound in self.table.filters.values())

    def filters(self) -> list[dict[str, Any]]:
        return [
            {"id": bound.id, "env": bound.holder, "port": bound.port, "filter": str(bound.source)}
            for bound in self.table.filters.values()
        ]

    def statistics(self) -> dict[str, Any]:
        return {**self.edge.statistics(), **self.table.statistics(), "host_address": self.host_address}

    def close(self) -> None:
        self.edge.close()

    def _pump(self) -> None:
        self.edge.pump()

    def _pump_ring(self, slot: int) -> None:
        self.edge.pump_ring(slot)


def _require_unused(host: IPv4Interface, tap: str) -> None:
    """The machine's packets for one network go out through one interface: two would take them from each other."""
    with IPRoute() as netlink:
        names = {link["index"]: link.get("ifname") for link in netlink.get_links()}
        taken = [(names.get(found["index"]), found.get("local"), found["prefixlen"]) for found in netlink.get_addr(2)]
    for name, address, prefix in taken:
        if name != tap and address and IPv4Interface(f"{address}/{prefix}").network.subnet_of(host.network):
            raise InUse(f"{host.network} is in use by {name} ({address}/{prefix}); give another with --host-address")


def _mac(interface: IPv4Interface) -> bytes:
    """Locally administered, one for each address: neighbours' caches stay right when a server is replaced."""
    return b"\x02\x58" + interface.ip.packed
