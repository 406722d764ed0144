"""A hostile libOS on the TAP: what it may not send, filters that are not its own, and the TAP itself."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from tests.hostile.attack import Battlefield, battlefield
from xok_host.kernel.dpf.inverse import VNET, Reason

TAP = f"xq{os.getpid()}"
NET = f"10.47.{os.getpid() % 250}"
HOST, MINE, NEIGHBOUR, SERVED = (f"{NET}.{number}" for number in (1, 2, 3, 4))
MAC = ":".join(f"{byte:02x}" for byte in b"\x02\x58" + socket.inet_aton(MINE))
PORT = 9099

SENDER = """
def main(env, argv):
    for frame in argv:
        try:
            os.write(env.tap.fd, bytes.fromhex(frame))
        except OSError as failure:
            print("refused", errno.errorcode[failure.errno])
    print("sent", flush=True)
    while not env.stop_requested:
        env.wait_event()
"""


@pytest.fixture(scope="module")
def field() -> Iterator[Battlefield]:
    with battlefield("--tap", TAP, "--host-address", f"{HOST}/24") as field:
        yield field


def network_of(field: Battlefield, name: str) -> dict[str, Any]:
    """What `xok status` says of the network of the environment with this name."""
    status = field.xok.status()
    number = next(env["id"] for env in status["environments"] if env["name"] == name)
    found: dict[str, Any] = status["network"]["environments"][str(number)]
    return found


def frame(packet: Packet, source: str = MAC, offload: tuple[int, ...] = (0, 0, 0, 0, 0, 0)) -> bytes:
    """A virtio header and an Ethernet frame to everybody."""
    return VNET.pack(*offload) + bytes(Ether(src=source, dst="ff:ff:ff:ff:ff:ff") / packet)


def datagram(source: str, words: bytes, target: str = HOST) -> Packet:
    return IP(src=source, dst=target) / UDP(sport=9, dport=PORT) / words


ALL = "ff:ff:ff:ff:ff:ff"
FORGED = {
    "another's address": (frame(datagram(NEIGHBOUR, b"forged")), Reason.SOURCE_ADDRESS),
    "the host's address": (frame(datagram(HOST, b"forged")), Reason.SOURCE_ADDRESS),
    "no address": (frame(datagram("0.0.0.0", b"forged")), Reason.SOURCE_ADDRESS),
    "a stray address": (frame(datagram("8.8.8.8", b"forged")), Reason.SOURCE_ADDRESS),
    "another's MAC": (frame(datagram(MINE, b"forged"), "02:58:0a:01:01:01"), Reason.SOURCE_MAC),
    "a VLAN": (frame(Dot1Q(vlan=5) / datagram(MINE, b"forged")), Reason.VLAN),
    "ARP for another": (frame(ARP(op=2, hwsrc=MAC, psrc=NEIGHBOUR, hwdst=ALL, pdst=HOST)), Reason.ARP),
    "ARP for the host": (frame(ARP(op=2, hwsrc=MAC, psrc=HOST, hwdst=ALL, pdst=HOST)), Reason.ARP),
    "ARP with a foreign MAC": (frame(ARP(op=2, hwsrc="02:58:00:00:00:09", psrc=MINE, pdst=HOST)), Reason.ARP),
    "LLDP": (VNET.pack(0, 0, 0, 0, 0, 0) + bytes(Ether(src=MAC, dst=ALL, type=0x88CC) / (b"x" * 60)), Reason.PROTOCOL),
    "an ICMP redirect": (frame(IP(src=MINE, dst=HOST) / ICMP(type=5, code=1, gw=MINE) / (b"x" * 28)), Reason.NEIGHBOUR),
    "a router": (frame(IPv6(src="fe80::1", dst="ff02::1") / ICMPv6ND_RA()), None),
    "a checksum over the source": (frame(datagram(MINE, b"forged"), offload=(1, 0, 0, 0, 14, 12)), Reason.CHECKSUM),
    "a checksum of no header": (frame(datagram(MINE, b"forged"), offload=(1, 0, 0, 0, 34, 8)), Reason.CHECKSUM),
    "tiny segments": (
        frame(IP(src=MINE, dst=HOST) / TCP(sport=9, dport=9) / (b"x" * 1000), offload=(1, 1, 54, 1, 34, 16)),
        Reason.SEGMENTATION,
    ),
    "UDP in segments": (frame(datagram(MINE, b"x" * 1200), offload=(1, 3, 42, 600, 34, 6)), Reason.SEGMENTATION),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_it_may_not_send_is_dropped_and_counted(field: Battlefield, name: str) -> None:
    """Between two honest datagrams goes a forged frame.  Those arrive, it does not, and why is counted."""
    forged, reason = FORGED[name]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((HOST, PORT))
        receiver.settimeout(5)
        frames = [frame(datagram(MINE, b"first")), forged, frame(datagram(MINE, b"last"))]
        attacker = field.start(
            SENDER, *(raw.hex() for raw in frames), options=("--address", f"{MINE}/24"), name="forger.py"
        )
        try:
            assert receiver.recvfrom(9999) == (b"first", (MINE, 9))
            assert receiver.recvfrom(9999) == (b"last", (MINE, 9))
            sent = network_of(field, "forger.py")["sent"]
        finally:
            field.end(attacker)
    if field.said.startswith("refused EINVAL"):
        assert sent == {"passed": 2}, "newer kernels refuse some headers themselves"
    else:
        assert sent.pop("passed") == 2 and list(sent.values()) == [1], sent
        assert reason is None or list(sent) == [reason.name.lower()]
    neighbours = subprocess.run(["ip", "neigh", "show", "dev", TAP], capture_output=True, text=True, check=True).stdout
    assert NEIGHBOUR not in neighbours and "02:58:00:00:00:09" not in neighbours


def test_the_tap_and_its_queue_are_not_the_callers_to_change(field: Battlefield) -> None:
    """Every ioctl that could detach a queue or reprogram the TAP is refused; the queue works as before."""
    results = field.attack(
        """
import fcntl
def main(env, argv):
    tap = env.tap.fd
    request = struct.pack("16sH22x", argv[0].encode(), 0x0400)  # IFF_DETACH_QUEUE
    for name, number in {"TUNSETQUEUE": 0x400454d9, "TUNSETIFF": 0x400454ca, "TUNSETOWNER": 0x400454cc,
                         "TUNSETPERSIST": 0x400454cb, "TUNSETOFFLOAD": 0x400454d0, "TUNSETVNETHDRSZ": 0x400454d8,
                         "TUNSETSTEERINGEBPF": 0x800454e0, "TUNSETFILTEREBPF": 0x800454e1, "TUNSETSNDBUF": 0x400454d4,
                         "TUNSETCARRIER": 0x400454e2, "SIOCSIFHWADDR": 0x8924, "SIOCSIFFLAGS": 0x8914,
                         "FIONBIO": 0x5421, "FIOASYNC": 0x5452}.items():
        attempt(name, fcntl.ioctl, tap, number, request)
    attempt("F_SETFL", fcntl.fcntl, tap, fcntl.F_SETFL, 0)
    attempt("F_SETOWN", fcntl.fcntl, tap, fcntl.F_SETOWN, 1)
    attempt("another queue", os.open, "/dev/net/tun", os.O_RDWR)
    attempt("send", os.write, tap, bytes.fromhex(argv[1]))
    return report()
""",
        TAP,
        frame(datagram(MINE, b"still")).hex(),
        options=("--address", f"{MINE}/24"),
    )
    assert results.pop("another queue") == "ENOENT"
    assert results.pop("send") == len(frame(datagram(MINE, b"still")))
    assert len(results) == 16 and set(results.values()) == {"EPERM"}, results


def test_a_neighbours_packets_do_not_come_through_the_callers_queue(field: Battlefield) -> None:
    """Without a filter of its own it sees nothing at all, not even broadcasts; the neighbour gets what is its own."""
    listen = """
from xok_host.abi.dpf import wildcard
def main(env, argv):
    if argv[0] == "claim":
        for region in wildcard(env.tap.addresses[0]):
            env.call("filter_insert", cap=env.caps[0].index, data=region.pack())
    print("listening", flush=True)
    end, found = time.monotonic() + 1.0, 0
    while time.monotonic() < end:
        try:
            found += b"for the neighbour" in os.read(env.tap.fd, 70000)
        except BlockingIOError:
            time.sleep(0.01)
    print(found)
"""
    neighbour = field.start(listen, "claim", options=("--address", f"{NEIGHBOUR}/24"), name="neighbour.py")
    attacker = field.start(listen, "spy", options=("--address", f"{MINE}/24"), name="spy.py")
    mac = "02:58:" + ":".join(f"{byte:02x}" for byte in socket.inet_aton(NEIGHBOUR))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.bind((TAP, 0))
        for target in (mac, ALL, MAC):
            wire.send(bytes(Ether(dst=target) / datagram(HOST, b"for the neighbour", NEIGHBOUR)))
    assert neighbour.communicate(timeout=20)[0].strip() == "3"
    assert attacker.communicate(timeout=20)[0].strip() == "0"


def test_filters_outside_the_address_or_over_anothers_are_refused(field: Battlefield) -> None:
    """A server has port 80 of an address and its keeper the rest.  Nobody gets the address, nor packets for it."""
    field.xok("mkfs", "site")
    mount = field.xok.directory / "site"
    mount.mkdir()
    field.xok("mount", "site", mount)
    (mount / "page.txt").write_text("the server's")
    field.xok("serve", "site", "--address", f"{SERVED}/24")
    filters_before = field.xok.status()["filters"]
    taken = field.run("def main(env, argv): return 0", options=("--address", f"{SERVED}/24"))
    assert taken.status != 0 and f"The name is taken: address {SERVED} is held by environment" in taken.out
    results = field.attack(
        """
from xok_host.abi.dpf import Filter, Match, connection, listener, where, wildcard
def main(env, argv):
    served, mine, host = argv
    filters = {
        "the port": listener(served, 80), "one connection": connection(served, 80, host, 1234),
        "another port": listener(served, 81), "the address": wildcard(served)[0], "its ARP": wildcard(served)[1],
        "all ARP": where({"eth.type": 0x806}), "all IP": where({"eth.type": 0x800}),
        "from the host": where({"ip.src": host}), "everything": Filter((Match(0, 1, 1, 0),)),
    }
    for cap in [held.index for held in env.caps] + [0, 9, 0xFFFFFFFF]:
        for name, wanted in filters.items():
            attempt(f"{name} with {cap}", lambda: env.call("filter_insert", cap=cap, data=wanted.pack()).r0)
    cap = env.caps[0].index
    attempt("garbage", lambda: env.call("filter_insert", cap=cap, data=b"garbage").r0)
    attempt("own", lambda: env.call("filter_insert", cap=cap, data=listener(mine, 80).pack()).r0)
    attempt("own again", lambda: env.call("filter_insert", cap=cap, data=listener(mine, 80).pack()).r0)
    for number in set(range(1, 99)) - {RESULTS["own"]}:
        attempt(f"remove {number}", env.call, "filter_remove", number)
    return report()
""",
        SERVED,
        MINE,
        HOST,
        options=("--address", f"{MINE}/24"),
    )
    command = ["curl", "-sS", "--max-time", "10", f"http://{SERVED}/page.txt"]
    fetched = subprocess.run(command, capture_output=True, text=True)
    filters_after = field.xok.status()["filters"]
    field.xok("umount", mount)
    attempts = {name: value for name, value in results.items() if " with " in name}
    assert len(attempts) == 4 * 9 and set(attempts.values()) == {"BadCapability"}, attempts
    assert results["garbage"] == "BadCall"
    assert isinstance(results["own"], int) and results["own again"] == "Overlap"
    assert {value for name, value in results.items() if name.startswith("remove ")} == {"NotFound"}
    assert fetched.stdout == "the server's", fetched
    assert filters_after == filters_before, "the attacker's own went with it"
