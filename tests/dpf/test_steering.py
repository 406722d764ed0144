"""Steering on a real TAP: each packet to the queue of its owner and to no other, whatever changes meanwhile."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IPOption_NOP

from tests.dpf.frames import (
    ARP,
    HOST,
    HOST6,
    IP,
    OTHER,
    OWN,
    OWN6,
    TCP,
    UDP,
    Injector,
    IPv6,
    read_all,
    to_env,
)
from xok_host.abi.dpf import listener, where, wildcard
from xok_host.host.net import NetEdge
from xok_host.kernel.dpf.table import FilterTable


class Net:
    """An edge with a table, an injector, and environments by number."""

    def __init__(self, edge: NetEdge) -> None:
        self.edge = edge
        self.table = FilterTable()
        self.injector = Injector(edge.tap.name)
        self.fds: dict[int, int] = {}

    def environment(self, env: int) -> int:
        granted = self.edge.grant_queue(env)
        self.fds[env] = granted.fd
        return granted.queue

    def insert(self, env: int, grant: int, wire: bytes) -> int:
        number = self.table.insert(env, grant, wire, self.edge.port(env))
        self.edge.sync(self.table)
        return number

    def arrivals(self, frame: bytes) -> list[int]:
        """The environments that get a frame.  One that was not dropped on the way may take a moment."""
        if self.injector.send(frame):
            select.select(list(self.fds.values()), [], [], 1)
        return [env for env, fd in self.fds.items() if frame in read_all(fd)]

    def close(self) -> None:
        self.injector.close()
        for fd in self.fds.values():
            os.close(fd)
        self.edge.close()


@pytest.fixture(params=["tcx", "clsact"])
def net(tap_name: str, request: pytest.FixtureRequest) -> Iterator[Net]:
    without = {"tcx"} if request.param == "clsact" else set()
    edge = NetEdge.open(tap_name, [f"{HOST}/24"], without)
    assert edge.engine == "ebpf", edge.why_portable
    if without:
        assert edge.steering is not None
        assert edge.steering.attachment == "clsact"
    made = Net(edge)
    yield made
    made.close()


def test_three_queues_each_gets_its_own(net: Net) -> None:
    queues = [net.environment(env) for env in (11, 12, 13)]
    assert queues == [1, 2, 3]
    for env, address in ((11, OWN), (12, OTHER), (13, OWN6)):
        grant = net.table.own_address(address)
        for claim in wildcard(address):
            net.insert(env, grant, claim.pack())
    assert net.arrivals(to_env(IP(src=HOST, dst=OWN) / TCP(dport=80))) == [11]
    assert net.arrivals(to_env(IP(src=HOST, dst=OTHER) / UDP(dport=53) / b"x")) == [12]
    assert net.arrivals(to_env(IPv6(src=HOST6, dst=OWN6) / TCP(dport=80))) == [13]
    assert net.arrivals(to_env(ARP(pdst=OTHER))) == [12]
    assert net.arrivals(to_env(IP(src=HOST, dst="10.9.0.77") / TCP(dport=80))) == []


def test_override_delegation_and_fallback(net: Net) -> None:
    """The owner of an address has what is left; a delegated port goes to the delegate while it lives."""
    net.environment(1)
    net.environment(2)
    owner = net.table.own_address(OWN)
    for claim in wildcard(OWN):
        net.insert(1, owner, claim.pack())
    part = net.table.delegate(owner, [listener(OWN, 80).pack()])
    net.insert(2, part, listener(OWN, 80).pack())
    web = to_env(IP(src=HOST, dst=OWN) / TCP(dport=80, sport=5000))
    options = to_env(IP(src=HOST, dst=OWN, options=[IPOption_NOP()] * 8) / TCP(dport=80, sport=5001))
    assert net.arrivals(web) == [2]
    assert net.arrivals(options) == [2]
    assert net.arrivals(to_env(IP(src=HOST, dst=OWN) / TCP(dport=81))) == [1]
    for fragment in ({"flags": "MF"}, {"frag": 9}):
        assert net.arrivals(to_env(IP(src=HOST, dst=OWN, **fragment) / TCP(dport=80) / (b"x" * 64))) == [1]
    net.edge.revoke(2)
    assert net.arrivals(web) == []
    net.table.remove_holder(2)
    net.edge.sync(net.table)
    assert net.arrivals(web) == [1]


def test_unclaimed_is_dropped_and_counted(net: Net) -> None:
    net.environment(1)
    before = net.edge.statistics()["unclaimed"]
    for _ in range(5):
        assert net.arrivals(to_env(IP(src=HOST, dst=OWN) / TCP(dport=80))) == []
    assert net.edge.statistics()["unclaimed"] == before + 5
    assert read_all(net.edge.fileno()) == []


def test_packets_and_bytes_are_counted_by_owner(net: Net) -> None:
    net.environment(1)
    net.insert(1, net.table.own_address(OWN), wildcard(OWN)[0].pack())
    frame = to_env(IP(src=HOST, dst=OWN) / UDP(dport=9) / bytes(100))
    for _ in range(3):
        assert net.arrivals(frame) == [1]
    counters = net.edge.statistics()["environments"][1]
    assert (counters["packets"], counters["bytes"]) == (3, 3 * len(frame))


def test_only_a_new_shape_makes_a_new_program(net: Net) -> None:
    net.environment(1)
    grant = net.table.own_address(OWN)
    net.insert(1, grant, listener(OWN, 1000).pack())
    steering = net.edge.steering
    assert steering is not None
    program = steering._classifier
    numbers = [net.insert(1, grant, listener(OWN, port).pack()) for port in range(1001, 1101)]
    for number in numbers[:50]:
        net.table.remove(1, number)
    net.edge.sync(net.table)
    assert steering._classifier is program
    assert net.arrivals(to_env(IP(src=HOST, dst=OWN) / TCP(dport=1075))) == [1]
    assert net.arrivals(to_env(IP(src=HOST, dst=OWN) / TCP(dport=1025))) == []
    net.insert(1, grant, where({"ip.dst": OWN, "icmp.type": 8}).pack())
    assert steering._classifier is not program
    assert net.arrivals(to_env(IP(src=HOST, dst=OWN) / TCP(dport=1075))) == [1]


def test_a_queue_keeps_its_number_and_is_reused_drained(net: Net) -> None:
    for env in (1, 2, 3):
        net.environment(env)
    grant = net.table.own_address(OWN)
    net.insert(2, grant, wildcard(OWN)[0].pack())
    waiting = to_env(IP(src=HOST, dst=OWN) / UDP(dport=1))
    net.injector.send(waiting)
    net.table.remove_holder(2)
    net.edge.sync(net.table)
    os.close(net.fds.pop(2))
    net.edge.release(2)
    assert net.environment(4) == 2
    assert read_all(net.fds[4]) == []
    net.insert(3, grant, wildcard(OWN)[0].pack())
    assert net.arrivals(to_env(IP(src=HOST, dst=OWN) / UDP(dport=2))) == [3]


def test_a_packet_that_evades_the_classifier_is_not_delivered(net: Net) -> None:
    """A packet socket may go round traffic control, with any mark it likes: the TAP's own program stops it."""
    net.environment(1)
    net.insert(1, net.table.own_address(OWN), wildcard(OWN)[0].pack())
    net.injector.bypass_traffic_control()
    for mark in (0, 1, 2, 3):
        net.injector.set_mark(mark)
        net.injector.send(to_env(IP(src=HOST, dst=OTHER) / UDP(dport=1)))
    arrived = [len(read_all(fd)) for fd in (net.edge.fileno(), *net.fds.values())]
    # Mark 1 and 2 name queues that there are; the host's own root may say so.
    assert arrived == [1, 1]


def test_without_xokd_nothing_is_delivered(net: Net) -> None:
    """ST-2: the descriptors of maps and programs gone, a holder that lives on gets nothing."""
    net.environment(1)
    net.insert(1, net.table.own_address(OWN), wildcard(OWN)[0].pack())
    frame = to_env(IP(src=HOST, dst=OWN) / UDP(dport=1))
    assert net.arrivals(frame) == [1]
    assert net.edge.steering is not None
    net.edge.steering.close()
    deadline = time.monotonic() + 5  # the host's kernel empties the map in a worker of its own
    while net.arrivals(frame) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert net.arrivals(frame) == []
