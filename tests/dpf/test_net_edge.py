"""The network edge as xokd uses it: both engines, rings, revocation, and what happens without a feature."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import struct
import time

import pytest

from tests.dpf.frames import HOST, IP, OTHER, OWN, UDP, Ether, Injector, mac_text, read_all, to_env
from xok_host.abi.dpf import listener, wildcard
from xok_host.abi.errors import Exists, LimitReached, NotAllowed, NotFound
from xok_host.abi.pktring import RING_BYTES, ClientPacketRing
from xok_host.host.bpf import Program, VerifierError
from xok_host.host.net import NetEdge
from xok_host.host.steer import Steering, Unavailable
from xok_host.host.tap import Tap
from xok_host.kernel.dpf.table import FilterTable

MAC = bytes.fromhex("020000000002")
VNET = bytes(10)


class RingEnvironment:
    """An environment's side of a ring."""

    def __init__(self, edge: NetEdge, env: int) -> None:
        granted = edge.grant_ring(env)
        self.port = granted.port
        self.memory = mmap.mmap(granted.fd, RING_BYTES)
        with pytest.raises(OSError):
            os.ftruncate(granted.fd, 4096)
        os.close(granted.fd)
        self.bell = socket.socket(fileno=granted.doorbell)
        self.ring = ClientPacketRing(memoryview(self.memory))
        self.buffer = bytearray(70000)

    def receive(self) -> bytes:
        return bytes(self.buffer[10 : max(10, self.ring.recv_into(self.buffer))])

    def close(self) -> None:
        self.bell.close()
        self.ring.release()
        self.memory.close()


def pump(edge: NetEdge, wait: float = 1.0) -> int:
    """Pump once something is there."""
    select.select([edge.fileno()], [], [], wait)
    return edge.pump()


@pytest.mark.parametrize("without", ["", "ebpf", "btf", "tcx"])
def test_a_ring_gets_its_packets_with_either_engine(tap_name: str, without: str) -> None:
    edge = NetEdge.open(tap_name, [f"{HOST}/24"], {without} - {""})
    assert edge.engine == ("portable" if without in ("ebpf", "btf") else "ebpf")
    assert bool(edge.why_portable) == (edge.engine == "portable")
    table = FilterTable()
    one, two = RingEnvironment(edge, 1), RingEnvironment(edge, 2)
    edge.set_inverse(1, MAC, [OWN])
    grant = table.own_address(OWN)
    table.insert(1, grant, wildcard(OWN)[0].pack(), one.port)
    table.insert(2, table.own_address(OTHER), wildcard(OTHER)[0].pack(), two.port)
    edge.sync(table)
    injector = Injector(tap_name)
    frame = to_env(IP(src=HOST, dst=OWN) / UDP(dport=9) / b"in")
    assert one.ring.sleep()
    injector.send(frame)
    assert pump(edge) == 1
    assert one.bell.recv(8) == b"\1"
    assert one.receive() == frame and one.receive() == b"" and two.receive() == b""
    injector.send(to_env(IP(src=HOST, dst="10.9.0.9") / UDP()))
    pump(edge, 0.05)
    assert edge.statistics()["unclaimed"] == 1

    host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    host.bind((HOST, 7777))
    host.settimeout(2)
    out = Ether(src=mac_text(MAC), dst=mac_text(edge.tap.mac()))
    for source in (OTHER, OWN):
        assert one.ring.send((VNET, bytes(out / IP(src=source, dst=HOST) / UDP(dport=7777) / b"out")))
    one.bell.send(b"\1")
    assert edge.doorbells()[next(iter(edge.doorbells()))] == 1
    assert edge.pump_ring(1) is False
    assert host.recvfrom(99) == (b"out", (OWN, 53))
    entry = edge.statistics()["environments"][1]
    assert entry["ring"]["sent"] == {"source_address": 1, "passed": 1}
    assert entry["packets"] == 1

    edge.revoke(1)
    injector.send(frame)
    pump(edge, 0.05)
    assert one.receive() == b""
    one.ring.send((VNET, bytes(out / IP(src=OWN, dst=HOST) / UDP(dport=7777))))
    edge.pump_ring(1)
    with pytest.raises(NotAllowed):
        edge.set_inverse(1, MAC, [OWN])
    edge.release(1)
    with pytest.raises(NotFound):
        edge.pump_ring(1)
    host.settimeout(0.05)
    with pytest.raises(TimeoutError):
        host.recv(99)
    for closing in (one, two, host, injector, edge):
        closing.close()  # type: ignore[attr-defined]


def test_queues_need_ebpf(tap_name: str) -> None:
    edge = NetEdge.open(tap_name, without={"ebpf"})
    with pytest.raises(NotAllowed, match="XOK_WITHOUT"):
        edge.grant_queue(1)
    edge.grant_ring(1)
    with pytest.raises(Exists):
        edge.grant_ring(1)
    with pytest.raises(NotFound):
        edge.port(2)
    edge.close()


def test_queue_and_ring_environments_side_by_side(tap_name: str) -> None:
    """An address's owner in a ring, its port delegated to a queue: each gets its own, through one TAP."""
    edge = NetEdge.open(tap_name, [f"{HOST}/24"])
    table = FilterTable()
    ring = RingEnvironment(edge, 1)
    queue = edge.grant_queue(2)
    grant = table.own_address(OWN)
    part = table.delegate(grant, [listener(OWN, 80, "udp").pack()])
    table.insert(1, grant, wildcard(OWN)[0].pack(), ring.port)
    table.insert(2, part, listener(OWN, 80, "udp").pack(), queue.port)
    edge.sync(table)
    injector = Injector(tap_name)
    first, second = (to_env(IP(src=HOST, dst=OWN) / UDP(dport=port)) for port in (80, 81))
    injector.send(first)
    injector.send(second)
    assert read_all(queue.fd, 1.0) == [first]
    assert pump(edge) == 1 and ring.receive() == second
    # The server dies: the owner has its packets, and the queue is drained for the next.
    injector.send(first)
    os.close(queue.fd)
    table.remove_holder(2)
    edge.sync(table)
    edge.release(2)
    injector.send(first)
    assert pump(edge) == 1 and ring.receive() == first
    again = edge.grant_queue(3)
    assert again.queue == queue.queue
    with pytest.raises(BlockingIOError):
        os.read(again.fd, 70000)
    os.close(again.fd)
    for closing in (ring, injector, edge):
        closing.close()  # type: ignore[attr-defined]


def test_at_most_256_queues_and_none_lost(tap_name: str) -> None:
    edge = NetEdge.open(tap_name)
    fds = [edge.grant_queue(env).fd for env in range(1, 256)]
    with pytest.raises(LimitReached):
        edge.grant_queue(256)
    edge.release(100)
    assert edge.grant_queue(256).queue == 100
    for fd in fds:
        os.close(fd)
    edge.close()


def test_a_tap_in_use_or_of_another_form_is_refused_by_name(tap_name: str) -> None:
    edge = NetEdge.open(tap_name)
    other = os.open("/dev/net/tun", os.O_RDWR)
    plain = f"{tap_name}p"
    fcntl.ioctl(other, 0x400454CA, struct.pack("16sH22x", plain.encode(), 0x1002))
    with pytest.raises(OSError, match=plain):
        Tap(plain)
    os.close(other)
    edge.close()
    with pytest.raises(ValueError):
        Tap("no/name")


def test_the_host_blocking_flag_is_not_trusted(tap_name: str) -> None:
    """A holder makes the shared description blocking; draining must not wait."""
    edge = NetEdge.open(tap_name)
    granted = edge.grant_queue(1)
    os.set_blocking(granted.fd, True)
    os.close(granted.fd)
    began = time.monotonic()
    edge.release(1)
    assert time.monotonic() - began < 5
    edge.close()


def test_a_tap_that_other_programs_hold_queues_of_is_refused() -> None:
    """TAP-1 holds only if all queues are ours.  In the test's own namespace, since sysfs shows that one."""
    if os.geteuid():
        pytest.skip("needs root")
    name = f"xk{os.getpid()}a"
    other = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(other, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5102))
        if not os.path.isdir(f"/sys/class/net/{name}"):
            pytest.skip("sysfs shows another namespace")
        with pytest.raises(OSError, match="another program holds"):
            Tap(name)
    finally:
        os.close(other)


def test_steering_says_what_is_missing(tap_name: str) -> None:
    tap = Tap(tap_name)
    for feature in ("ebpf", "btf"):
        with pytest.raises(Unavailable, match=feature):
            Steering(tap, frozenset({feature}))
    tap.close()


def test_a_filter_that_the_host_refuses_is_not_left_behind(tap_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = NetEdge.open(tap_name, [f"{HOST}/24"])
    table = FilterTable()
    queue = edge.grant_queue(1)
    grant = table.own_address(OWN)
    number = edge.insert_filter(table, 1, grant, listener(OWN, 80, "udp").pack())
    real, refuse = Steering._load, iter([True, False])

    def load(self: Steering, name: str, kind: int, code: bytes) -> Program:
        if next(refuse):
            raise VerifierError(7, "too complex")
        return real(self, name, kind, code)

    monkeypatch.setattr(Steering, "_load", load)
    with pytest.raises(LimitReached, match="too complex"):
        edge.insert_filter(table, 1, grant, listener(OWN, 80).pack())
    assert list(table.filters) == [number]
    injector = Injector(tap_name)
    frame = to_env(IP(src=HOST, dst=OWN) / UDP(dport=80))
    injector.send(frame)
    assert read_all(queue.fd, 1.0) == [frame]
    os.close(queue.fd)
    injector.close()
    edge.close()


def test_a_turn_of_a_ring_is_bounded_and_nothing_is_left_lying(tap_name: str) -> None:
    """One doorbell for many packets: it stays readable until all are sent."""
    edge = NetEdge.open(tap_name, [f"{HOST}/24"], {"ebpf"})
    one = RingEnvironment(edge, 1)
    edge.set_inverse(1, MAC, [OWN])
    (bell,) = edge.doorbells()
    out = bytes(Ether(src=mac_text(MAC), dst=mac_text(edge.tap.mac())) / IP(src=OWN, dst=HOST) / UDP(dport=7777))
    for _ in range(1000):
        assert one.ring.send((VNET, out))
    one.bell.send(b"\1")
    turns = 0
    while select.select([bell], [], [], 0)[0]:
        edge.pump_ring(1)
        turns += 1
    assert 1000 / 128 <= turns <= 1000 / 64 + 1
    assert edge.statistics()["environments"][1]["ring"]["sent"] == {"passed": 1000}
    one.close()
    edge.close()
