"""The default owner of an address, with scapy as the peer that asks and checks."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from netstack.wire import vnet
from netstack.xio import owner as owners
from netstack.xio.owner import Owner

MAC = bytes.fromhex("020000000002")
PEER = "02:00:00:00:00:01"
ADDRESS = 0x0A2A0002


@pytest.fixture
def owner() -> Owner:
    return Owner(MAC, [ADDRESS])


def ask(owner: Owner, packet: Packet, now: int = 0, flags: int = 0) -> Packet | None:
    answer = owner.respond(bytes([flags]) + bytes(9) + bytes(packet), now)
    if answer is None:
        return None
    assert answer[: vnet.HEADER] == bytes(vnet.HEADER)
    found = Ether(answer[vnet.HEADER :])
    # Whatever scapy would compute must be what is there.
    assert bytes(found) == bytes(recomputed(found))
    return found


def recomputed(packet: Packet) -> Packet:
    copy = packet.copy()
    for layer in (IP, TCP, ICMP):
        if layer in copy:
            del copy[layer].chksum
    return copy


def to_us(payload: Packet, **ip: object) -> Packet:
    return Ether(src=PEER, dst=MAC.hex(":")) / IP(src="10.42.0.1", dst="10.42.0.2", **ip) / payload


def test_arp_request_is_answered_and_the_asker_learnt(owner: Owner) -> None:
    asked = Ether(src=PEER, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=PEER, psrc="10.42.0.1", pdst="10.42.0.2")
    answer = ask(owner, asked)
    assert answer is not None and answer.dst == PEER and answer.src == MAC.hex(":")
    assert (answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (2, MAC.hex(":"), "10.42.0.2")
    assert (answer[ARP].hwdst, answer[ARP].pdst) == (PEER, "10.42.0.1")
    assert owner.neighbours == {0x0A2A0001: bytes.fromhex(PEER.replace(":", ""))}


def test_arp_for_another_is_neither_answered_nor_believed(owner: Owner) -> None:
    asked = Ether(src=PEER, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=PEER, psrc="10.42.0.1", pdst="10.42.0.3")
    assert ask(owner, asked) is None
    assert owner.neighbours == {}


def test_arp_from_our_own_address_is_not_learnt(owner: Owner) -> None:
    forged = Ether(src=PEER, dst=MAC.hex(":")) / ARP(op=2, hwsrc=PEER, psrc="10.42.0.2", pdst="10.42.0.2")
    assert ask(owner, forged) is None
    assert owner.neighbours == {}


def test_neighbours_are_bounded_and_the_oldest_gives_way(owner: Owner) -> None:
    for i in range(owners.MAX_NEIGHBOURS + 3):
        source = f"10.43.{i >> 8}.{i & 255}"
        ask(owner, Ether(src=PEER, dst=MAC.hex(":")) / ARP(hwsrc=PEER, psrc=source, pdst="10.42.0.2"))
    assert len(owner.neighbours) == owners.MAX_NEIGHBOURS
    assert 0x0A2B0002 not in owner.neighbours and 0x0A2B0003 in owner.neighbours


def test_request_and_announcement(owner: Owner) -> None:
    asked = Ether(owner.request(0x0A2A0001, ADDRESS)[vnet.HEADER :])
    assert asked.dst == "ff:ff:ff:ff:ff:ff" and asked[ARP].pdst == "10.42.0.1" and asked[ARP].op == 1
    told = Ether(owner.announce(ADDRESS)[vnet.HEADER :])
    assert told[ARP].psrc == told[ARP].pdst == "10.42.0.2"


@pytest.mark.parametrize("size", [0, 1, 56, 1472])
def test_echo_returns_the_same_octets(owner: Owner, size: int) -> None:
    body = random.Random(size).randbytes(size)
    answer = ask(owner, to_us(ICMP(id=7, seq=9) / Raw(body)))
    assert answer is not None and (answer[IP].src, answer[IP].dst) == ("10.42.0.2", "10.42.0.1")
    assert (answer[ICMP].type, answer[ICMP].id, answer[ICMP].seq) == (0, 7, 9)
    assert (bytes(answer[Raw].load) if size else b"") == body


def test_syn_to_an_unclaimed_port_is_reset(owner: Owner) -> None:
    answer = ask(owner, to_us(TCP(sport=4000, dport=81, flags="S", seq=1000, options=[("MSS", 1460)])))
    assert answer is not None and answer[TCP].flags == "RA"
    assert (answer[TCP].seq, answer[TCP].ack, answer[TCP].sport, answer[TCP].dport) == (0, 1001, 81, 4000)


def test_sequence_numbers_wrap_in_a_reset(owner: Owner) -> None:
    answer = ask(owner, to_us(TCP(sport=4000, dport=81, flags="F", seq=0xFFFFFFFF) / Raw(b"ab")))
    assert answer is not None and answer[TCP].ack == 2


def test_a_segment_with_ack_is_reset_at_its_acknowledgement(owner: Owner) -> None:
    answer = ask(owner, to_us(TCP(sport=4000, dport=81, flags="A", seq=5, ack=77) / Raw(b"x")))
    assert answer is not None and answer[TCP].flags == "R" and answer[TCP].seq == 77


def test_a_partial_checksum_is_accepted_and_a_wrong_one_is_not(owner: Owner) -> None:
    wrong = to_us(TCP(sport=4000, dport=81, flags="S", chksum=0x1234))
    assert ask(owner, wrong) is None
    assert owner.statistics()["malformed"] == 1
    assert owner.respond(vnet.Vnet(vnet.NEEDS_CSUM, 0, 54, 0, 34, 16).pack() + bytes(wrong), 0) is not None


def test_udp_gets_port_unreachable_with_the_datagram_quoted(owner: Owner) -> None:
    answer = ask(owner, to_us(UDP(sport=5000, dport=53) / Raw(b"q" * 900)))
    assert answer is not None and (answer[ICMP].type, answer[ICMP].code) == (3, 3)
    assert (answer[IPerror].dst, answer[UDPerror].dport) == ("10.42.0.2", 53)
    assert answer[IP].len <= 576


def test_another_protocol_gets_protocol_unreachable(owner: Owner) -> None:
    answer = ask(owner, to_us(Raw(b"x" * 20), proto=132))
    assert answer is not None and (answer[ICMP].type, answer[ICMP].code) == (3, 2)


def test_icmp_errors_are_limited_and_the_allowance_returns(owner: Owner) -> None:
    datagram = to_us(UDP(sport=5000, dport=53) / Raw(b"q"))
    answers = [ask(owner, datagram, now=1_000_000) for _ in range(owners.ERROR_BURST + 5)]
    assert sum(a is not None for a in answers) == owners.ERROR_BURST
    assert owner.statistics()["limited"] == 5
    assert ask(owner, datagram, now=1_000_000 + owners.ERROR_INTERVAL) is not None
    assert ask(owner, datagram, now=1_000_000 + owners.ERROR_INTERVAL) is None


@pytest.mark.parametrize(
    "packet",
    [
        to_us(TCP(flags="R")),
        to_us(TCP(flags="RA")),
        to_us(ICMP(type=0)),
        to_us(ICMP(type=3, code=3) / IP(src="10.42.0.2", dst="10.42.0.1") / UDP()),
        to_us(UDP() / Raw(b"x" * 8), frag=3),
        to_us(UDP() / Raw(b"x" * 8), flags="MF"),
        Ether(src=PEER, dst="ff:ff:ff:ff:ff:ff") / IP(src="10.42.0.1", dst="10.42.0.2") / UDP(),
        Ether(src=PEER, dst=MAC.hex(":")) / IP(src="10.42.0.1", dst="10.42.0.9") / UDP(),
        Ether(src=PEER, dst=MAC.hex(":")) / IP(src="10.42.0.1", dst="224.0.0.1") / UDP(),
        Ether(src=PEER, dst=MAC.hex(":")) / IP(src="224.0.0.1", dst="10.42.0.2") / UDP(),
        Ether(src=PEER, dst=MAC.hex(":")) / IP(src="10.42.0.2", dst="10.42.0.2") / TCP(flags="S"),
        Ether(src=PEER, dst=MAC.hex(":")) / IP(src="127.0.0.1", dst="10.42.0.2") / TCP(flags="S"),
        Ether(src=PEER, dst="02:00:00:00:00:09") / IP(src="10.42.0.1", dst="10.42.0.2") / ICMP(),
    ],
    ids=lambda packet: packet.summary()[:60],
)
def test_what_must_not_be_answered(owner: Owner, packet: Packet) -> None:
    assert ask(owner, packet) is None


def test_no_octets_make_it_raise(owner: Owner) -> None:
    chance = random.Random(11)
    seeds = [bytes(10) + bytes(to_us(TCP(flags="S"))), bytes(10) + bytes(to_us(ICMP() / Raw(b"ab")))]
    for _ in range(3000):
        packet = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 5)):
            packet[chance.randrange(len(packet))] = chance.randrange(256)
        owner.respond(bytes(packet[: chance.randrange(len(packet) + 1)]), 0)
    assert owner.statistics()["malformed"] > 100
