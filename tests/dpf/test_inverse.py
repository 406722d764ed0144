"""What a queue's holder may send, on a real TAP: the eBPF inverse filter against scapy's forgeries, and both forms of
the filter against each other."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1AD, Dot1Q
from scapy.packet import Packet

from tests.dpf.frames import ARP, HOST, HOST6, ICMP, IP, OTHER, OWN, OWN6, TCP, UDP, Ether, IPv6, mac_text
from xok_host.host.net import NetEdge
from xok_host.kernel.dpf.inverse import VNET, Reason, Sender, check

MAC = bytes.fromhex("020000000002")
MAC_TEXT = mac_text(MAC)
HOST_PORT = 7777
PLAIN = bytes(10)
NEEDS_CSUM = 1
GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4 = 1, 3, 4, 5
P, S = Reason.PASSED, Reason


class Attacker:
    """An environment with queue 1 and the addresses OWN and OWN6, and a socket of the host that listens."""

    def __init__(self, edge: NetEdge) -> None:
        self.edge = edge
        granted = edge.grant_queue(1)
        self.fd, self.queue = granted.fd, granted.queue
        edge.set_inverse(1, MAC, [OWN, OWN6])
        self.host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.host.bind((HOST, HOST_PORT))
        self.host_mac = mac_text(edge.tap.mac())

    def write(self, frame: bytes, header: bytes = PLAIN) -> Reason | None:
        """What became of a packet by the host kernel's counters; None if the host refused the write itself."""
        before = self.counters()
        try:
            os.write(self.fd, header + frame)
        except OSError:
            return None
        changed = [reason for reason, count in self.counters().items() if count != before[reason]]
        assert len(changed) == 1, changed
        return changed[0]

    def counters(self) -> dict[Reason, int]:
        assert self.edge.steering is not None
        return self.edge.steering.sent(self.queue)

    def heard(self, wait: float = 0.0) -> list[tuple[bytes, str]]:
        """Datagrams that the host's socket got, with their sources."""
        out = []
        deadline = time.monotonic() + wait
        while True:
            try:
                data, source = self.host.recvfrom(2048)
                out.append((data, source[0]))
            except BlockingIOError:
                if out or time.monotonic() >= deadline:
                    return out
                time.sleep(0.001)

    def ether(self, packet: Packet, src: str = MAC_TEXT) -> bytes:
        return bytes(Ether(src=src, dst=self.host_mac) / packet)

    def datagram(self, source: str = OWN, data: bytes = b"data", **fields: object) -> bytes:
        return self.ether(IP(src=source, dst=HOST, **fields) / UDP(sport=5, dport=HOST_PORT) / data)

    def close(self) -> None:
        self.host.close()
        os.close(self.fd)
        self.edge.close()


@pytest.fixture(params=["tcx", "clsact"])
def attacker(tap_name: str, request: pytest.FixtureRequest) -> Iterator[Attacker]:
    edge = NetEdge.open(tap_name, [f"{HOST}/24"], {"tcx"} if request.param == "clsact" else set())
    made = Attacker(edge)
    yield made
    made.close()


def test_own_packets_arrive_at_the_host(attacker: Attacker) -> None:
    assert attacker.write(attacker.datagram()) == P
    assert attacker.heard(1) == [(b"data", OWN)]


def test_spoofed_source_is_dropped_and_counted(attacker: Attacker) -> None:
    assert attacker.write(attacker.datagram(OTHER)) == S.SOURCE_ADDRESS
    assert attacker.write(attacker.datagram("0.0.0.0")) == S.SOURCE_ADDRESS
    assert attacker.write(attacker.ether(IP(src=OWN, dst=HOST) / UDP(), src="02:00:00:00:00:03")) == S.SOURCE_MAC
    assert attacker.write(attacker.datagram()) == P
    assert attacker.heard(1) == [(b"data", OWN)]


def test_nothing_is_sent_before_a_sender_is_set_nor_after_it_is_revoked(attacker: Attacker) -> None:
    fresh = attacker.edge.grant_queue(2)
    os.write(fresh.fd, PLAIN + attacker.datagram())
    assert attacker.edge.statistics()["environments"][2]["sent"] == {"no_sender": 1}
    os.close(fresh.fd)
    attacker.edge.revoke(1)
    assert attacker.write(attacker.datagram()) == S.NO_SENDER
    assert attacker.heard() == []


def test_changing_the_addresses_forgets_the_old(attacker: Attacker) -> None:
    attacker.edge.set_inverse(1, MAC, [OTHER])
    assert attacker.write(attacker.datagram()) == S.SOURCE_ADDRESS
    assert attacker.write(attacker.datagram(OTHER)) == P


def test_arp_spoofing(attacker: Attacker) -> None:
    def arp(**fields: object) -> Reason | None:
        return attacker.write(attacker.ether(ARP(pdst=HOST, **fields)))

    assert arp(op=1, hwsrc=MAC_TEXT, psrc=OWN) == P
    assert arp(op=2, hwsrc=MAC_TEXT, psrc=OWN) == P
    assert arp(op=1, hwsrc=MAC_TEXT, psrc="0.0.0.0") == P
    assert arp(op=2, hwsrc=MAC_TEXT, psrc="0.0.0.0") == S.ARP
    assert arp(op=2, hwsrc=MAC_TEXT, psrc=OTHER) == S.ARP
    assert arp(op=2, hwsrc="02:00:00:00:00:03", psrc=OWN) == S.ARP
    assert arp(op=3, hwsrc=MAC_TEXT, psrc=OWN) == S.ARP
    assert arp(op=1, hwsrc=MAC_TEXT, psrc=OWN, hwtype=6) == S.ARP
    assert attacker.write(attacker.ether(ARP(op=2, hwsrc=MAC_TEXT, psrc=OWN))[:30]) == S.MALFORMED
    with open("/proc/net/arp") as table:
        assert OTHER not in table.read()


def _nd(source: str, message: Packet) -> Packet:
    return IPv6(src=source, dst="ff02::1", hlim=255) / message


_FOREIGN = "02:00:00:00:00:03"
DISCOVERY = {
    "solicitation": (_nd(OWN6, ICMPv6ND_NS(tgt=HOST6)), P),
    "solicitation with own MAC": (_nd(OWN6, ICMPv6ND_NS(tgt=HOST6) / ICMPv6NDOptSrcLLAddr(lladdr=MAC_TEXT)), P),
    "solicitation with another's MAC": (
        _nd(OWN6, ICMPv6ND_NS(tgt=HOST6) / ICMPv6NDOptSrcLLAddr(lladdr=_FOREIGN)),
        S.NEIGHBOUR,
    ),
    "two options, the second forged": (
        _nd(
            OWN6,
            ICMPv6ND_NS(tgt=HOST6) / ICMPv6NDOptSrcLLAddr(lladdr=MAC_TEXT) / ICMPv6NDOptSrcLLAddr(lladdr=_FOREIGN),
        ),
        S.NEIGHBOUR,
    ),
    "probe for an own address": (_nd("::", ICMPv6ND_NS(tgt=OWN6)), P),
    "probe for another's address": (_nd("::", ICMPv6ND_NS(tgt="fd09::3")), S.NEIGHBOUR),
    "advertisement of an own address": (
        _nd(OWN6, ICMPv6ND_NA(tgt=OWN6) / ICMPv6NDOptDstLLAddr(lladdr=MAC_TEXT)),
        P,
    ),
    "advertisement of another's address": (
        _nd(OWN6, ICMPv6ND_NA(tgt="fd09::3") / ICMPv6NDOptDstLLAddr(lladdr=MAC_TEXT)),
        S.NEIGHBOUR,
    ),
    "advertisement of another's MAC": (
        _nd(OWN6, ICMPv6ND_NA(tgt=OWN6) / ICMPv6NDOptDstLLAddr(lladdr=_FOREIGN)),
        S.NEIGHBOUR,
    ),
    "advertisement from ::": (_nd("::", ICMPv6ND_NA(tgt=OWN6)), S.NEIGHBOUR),
    "router solicitation": (_nd(OWN6, ICMPv6ND_RS()), P),
    "router advertisement": (_nd(OWN6, ICMPv6ND_RA()), S.NEIGHBOUR),
    "redirect": (_nd(OWN6, ICMPv6ND_Redirect()), S.NEIGHBOUR),
    "echo": (_nd(OWN6, ICMPv6EchoRequest()), P),
    "echo from ::": (_nd("::", ICMPv6EchoRequest()), S.SOURCE_ADDRESS),
    "UDP from ::": (_nd("::", UDP()), S.SOURCE_ADDRESS),
    "another's IPv6 source": (_nd("fd09::3", UDP()), S.SOURCE_ADDRESS),
    "hop-by-hop options": (_nd(OWN6, IPv6ExtHdrHopByHop() / ICMPv6ND_NA(tgt="fd09::3")), S.PROTOCOL),
    "routing header": (_nd(OWN6, IPv6ExtHdrRouting() / UDP()), S.PROTOCOL),
    "fragment": (_nd(OWN6, IPv6ExtHdrFragment(m=1) / UDP() / bytes(64)), P),
    "ICMP redirect": (IP(src=OWN, dst=HOST) / ICMP(type=5), S.NEIGHBOUR),
    "ICMP router advertisement": (IP(src=OWN, dst=HOST) / ICMP(type=9), S.NEIGHBOUR),
    "ICMP echo": (IP(src=OWN, dst=HOST) / ICMP(), P),
    "ICMP in fragments": (IP(src=OWN, dst=HOST, flags="MF") / ICMP(type=5) / bytes(64), S.NEIGHBOUR),
    "VLAN": (Dot1Q(vlan=5) / IP(src=OWN, dst=HOST) / UDP(), S.VLAN),
    "two VLAN tags": (Dot1AD(vlan=5) / Dot1Q(vlan=6) / IP(src=OWN, dst=HOST) / UDP(), S.VLAN),
}


def test_discovery_and_control(attacker: Attacker) -> None:
    sender = Sender.of(MAC, [OWN, OWN6])
    for name, (packet, expected) in DISCOVERY.items():
        frame = attacker.ether(packet)
        assert (name, attacker.write(frame)) == (name, expected)
        assert (name, check(sender, PLAIN, frame)) == (name, expected)


def vnet(flags: int = 0, gso: int = 0, header: int = 0, size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    return VNET.pack(flags, gso, header, size, start, offset)


def _refusals(start: int, least: int) -> tuple[Reason | None, ...]:
    """Recent kernels themselves refuse a checksum that starts before the transport header can (6.1 does not)."""
    return (None, S.CHECKSUM) if start < least else (S.CHECKSUM,)


def test_a_checksum_offset_cannot_reach_what_was_checked(attacker: Attacker) -> None:
    """FACTS: with an offset inside the IP header the host kernel rewrote a source address that had been checked."""
    udp = attacker.datagram()
    for start, offset in ((14, 12), (14, 14), (14, 10), (0, 6), (34, 0), (34, 2), (34, 8), (38, 2), (26, 0), (36, 4)):
        assert attacker.write(udp, vnet(NEEDS_CSUM, start=start, offset=offset)) in _refusals(start, 34)
    assert attacker.heard() == []
    assert attacker.write(udp, vnet(NEEDS_CSUM, start=34, offset=6)) == P
    assert attacker.heard(1) == [(b"data", OWN)]


def test_checksum_offload_counts_from_the_real_end_of_the_header(attacker: Attacker) -> None:
    from scapy.layers.inet import IPOption_NOP

    options = attacker.datagram(options=[IPOption_NOP()] * 8)
    assert attacker.write(options, vnet(NEEDS_CSUM, start=42, offset=6)) == P
    assert attacker.write(options, vnet(NEEDS_CSUM, start=34, offset=6)) == S.CHECKSUM
    six = attacker.ether(IPv6(src=OWN6, dst=HOST6) / UDP(dport=1) / b"x")
    assert attacker.write(six, vnet(NEEDS_CSUM, start=54, offset=6)) == P
    assert attacker.write(six, vnet(NEEDS_CSUM, start=22, offset=2)) in _refusals(22, 54)
    assert attacker.write(six, vnet(NEEDS_CSUM, start=54, offset=0)) == S.CHECKSUM


def test_no_checksum_offload_but_for_tcp_and_udp(attacker: Attacker) -> None:
    frames = {
        "arp": attacker.ether(ARP(op=1, hwsrc=MAC_TEXT, psrc=OWN, pdst=HOST)),
        "icmp": attacker.ether(IP(src=OWN, dst=HOST) / ICMP()),
        "fragment": attacker.datagram(flags="MF", data=bytes(64)),
        "igmp": attacker.ether(IP(src=OWN, dst=HOST, proto=2) / bytes(64)),
        "icmp6": attacker.ether(IPv6(src=OWN6, dst=HOST6) / ICMPv6EchoRequest()),
    }
    for kind, frame in frames.items():
        assert attacker.write(frame) == P
        for start, offset in ((34, 6), (34, 16), (14, 12), (34, 2), (54, 2), (54, 6)):
            if start + offset + 2 <= len(frame):
                outcome = attacker.write(frame, vnet(NEEDS_CSUM, start=start, offset=offset))
                assert outcome in _refusals(start, 54 if kind == "icmp6" else 34), (kind, start, offset)


def tcp(attacker: Attacker, length: int, version: int = 4) -> bytes:
    network = IP(src=OWN, dst=HOST) if version == 4 else IPv6(src=OWN6, dst=HOST6)
    return attacker.ether(network / TCP(sport=9, dport=9, flags="A") / bytes(length))


def test_segmentation_is_tcp_with_its_checksum_and_segments_of_a_sensible_size(attacker: Attacker) -> None:
    big = tcp(attacker, 60000)
    good = {"flags": NEEDS_CSUM, "gso": GSO_TCPV4, "header": 54, "size": 1460, "start": 34, "offset": 16}
    assert attacker.write(big, vnet(**good)) == P
    assert attacker.write(big, vnet(**good | {"gso": GSO_TCPV4 | 0x80})) == P
    assert attacker.write(big, vnet(**good | {"size": 536})) == P
    for size in (1, 2, 100, 535):
        assert attacker.write(big, vnet(**good | {"size": size})) == S.SEGMENTATION
    six = tcp(attacker, 60000, 6)
    assert attacker.write(six, vnet(**good | {"gso": GSO_TCPV6, "start": 54, "header": 74})) == P
    assert (
        attacker.write(six, vnet(**good | {"gso": GSO_TCPV6, "size": 1, "start": 54, "header": 74})) == S.SEGMENTATION
    )
    # The host may refuse these itself; it must not pass them.
    refused = (None, S.SEGMENTATION, S.CHECKSUM)
    assert attacker.write(big, vnet(**good | {"gso": GSO_TCPV6})) in refused
    assert attacker.write(big, vnet(**good | {"gso": GSO_UDP})) in refused
    assert attacker.write(big, vnet(**good | {"gso": GSO_UDP_L4})) in refused
    assert attacker.write(big, vnet(**good | {"flags": 0})) in refused
    udp = attacker.datagram(data=bytes(60000))
    for gso in (GSO_TCPV4, GSO_UDP, GSO_UDP_L4):
        assert attacker.write(udp, vnet(**good | {"gso": gso, "offset": 6})) in refused
        assert attacker.write(udp, vnet(**good | {"gso": gso, "offset": 16})) in refused


def test_one_write_cannot_become_tens_of_thousands_of_packets(attacker: Attacker) -> None:
    began = time.process_time()
    for _ in range(20):
        attacker.write(tcp(attacker, 65000), vnet(NEEDS_CSUM, GSO_TCPV4, header=54, size=1, start=34, offset=16))
    assert attacker.counters()[P] == 0
    assert time.process_time() - began < 2.0


def test_garbage_never_passes_with_a_source_that_is_not_its_own(attacker: Attacker) -> None:
    """Malformed frames, headers cut at every length."""
    whole = attacker.datagram(OTHER)
    for length in range(14, len(whole)):
        assert attacker.write(whole[:length]) != P
    assert attacker.write(attacker.ether(IP(src=OWN, dst=HOST, version=6) / UDP())) == S.MALFORMED
    assert attacker.write(attacker.ether(IP(src=OWN, dst=HOST, ihl=4) / UDP())) == S.MALFORMED
    assert attacker.write(attacker.ether(IP(src=OWN, dst=HOST, ihl=15) / UDP())) == S.MALFORMED
    assert attacker.write(attacker.ether(IPv6(src=OWN6, dst=HOST6, version=4) / UDP())) == S.MALFORMED


_ADDRESSES = st.sampled_from([OWN, OTHER, HOST, "0.0.0.0", "255.255.255.255"])
_ADDRESSES6 = st.sampled_from([OWN6, "fd09::3", "::", HOST6])
_PAYLOADS = st.sampled_from(
    [UDP(dport=1), TCP(), ICMP(), ICMP(type=5), ICMPv6EchoRequest(), ICMPv6ND_NA(tgt=OWN6), ICMPv6ND_NS(tgt=HOST6)]
)


@st.composite
def _frames(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["ip", "ip6", "arp"]))
    network: Packet
    if kind == "ip":
        network = IP(src=draw(_ADDRESSES), dst=HOST, flags=draw(st.sampled_from([0, "MF"]))) / draw(_PAYLOADS)
    elif kind == "ip6":
        network = IPv6(src=draw(_ADDRESSES6), dst=HOST6) / draw(_PAYLOADS)
    else:
        network = ARP(
            op=draw(st.integers(0, 3)), psrc=draw(_ADDRESSES), hwsrc=draw(st.sampled_from([MAC_TEXT, _FOREIGN]))
        )
    frame = bytearray(bytes(Ether(src=MAC_TEXT, dst="02:00:00:00:00:01") / network / draw(st.binary(max_size=40))))
    for _ in range(draw(st.integers(0, 3))):
        frame[draw(st.integers(12, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.integers(14, len(frame)))])


_HEADERS = st.one_of(
    st.just(PLAIN),
    st.builds(
        vnet,
        flags=st.sampled_from([0, NEEDS_CSUM]),
        gso=st.sampled_from([0, 0, GSO_TCPV4, GSO_TCPV6, GSO_UDP]),
        size=st.sampled_from([0, 1, 536, 1460]),
        start=st.sampled_from([14, 34, 54, 38]),
        offset=st.sampled_from([6, 16, 2, 12]),
    ),
)


def test_both_forms_of_the_filter_agree(tap_name: str) -> None:
    """INV-1 … INV-7 twice: what the host kernel counts, and what the portable filter says of the same packet."""
    edge = NetEdge.open(tap_name, [f"{HOST}/24"])
    attacker = Attacker(edge)
    sender = Sender.of(MAC, [OWN, OWN6])

    @settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(frame=_frames(), header=_HEADERS)
    def compare(frame: bytes, header: bytes) -> None:
        outcome = attacker.write(frame, header)
        portable = check(sender, header, frame)
        if outcome is None:
            return  # the host refused the header before any program saw it
        if outcome != portable:
            # Segmentation asked for a packet that is one segment: the host forgets it, the portable form does not.
            assert portable is S.SEGMENTATION and outcome is P, (outcome, portable)
            # (It counts what follows an IPv4 header and one of the transport that was named, whatever the packet is.)
            transport = 20 if header[1] & 0x7F in (1, 4) else 8
            assert struct.unpack_from("<H", header, 4)[0] + 34 + transport >= len(frame) or not header[1]

    compare()
    attacker.close()
