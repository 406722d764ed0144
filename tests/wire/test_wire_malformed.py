"""Received octets raise Malformed or nothing (WIRE-1); an illegal header cannot be made (WIRE-2)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.wire import arp, ethernet, icmp, ipv4, tcp, tcpoptions, udp, vnet
from netstack.wire import checksum as sums
from netstack.wire.header import Malformed
from tests.wire.wire_values import arps, echoes, errors, ethernets, ipv4s, tcps, udps, vnets

STATION = bytes.fromhex("020000000001")


def with_sum(octets: bytes, start: int, end: int, at: int) -> bytes:
    """The octets with the checksum over start:end made right, so that a mutation gets past it."""
    out = bytearray(octets)
    if len(out) >= at + 2:
        out[at : at + 2] = b"\0\0"
        out[at : at + 2] = sums.finish(sums.total(out[start:end])).to_bytes(2, "big")
    return bytes(out)


def read_ethernet(octets: bytes) -> object:
    return ethernet.EthernetView(octets).value()


def read_arp(octets: bytes) -> object:
    return arp.ArpView(octets).value()


def read_ipv4(octets: bytes) -> object:
    view = ipv4.Ipv4View(octets)
    return view.value(), view.payload, view.is_fragment


def read_ipv4_summed(octets: bytes) -> object:
    return read_ipv4(with_sum(octets, 0, (octets[0] & 15) * 4 if octets else 0, ipv4.CHECKSUM))


def read_quoted(octets: bytes) -> object:
    return ipv4.Ipv4View(octets, quoted=True).value()


def read_icmp(octets: bytes) -> object:
    view = icmp.IcmpView(with_sum(octets, 0, len(octets), icmp.CHECKSUM))
    if view.is_echo:
        return view.echo()
    return view.error() if view.type in (icmp.UNREACHABLE, icmp.TIME_EXCEEDED) else None


def read_tcp(octets: bytes) -> object:
    view = tcp.TcpView(octets, None)
    return view.value(), view.payload, view.segment_length


def read_tcp_summed(octets: bytes) -> object:
    return tcp.TcpView(octets, 0x1234).value()


def read_udp(octets: bytes) -> object:
    view = udp.UdpView(octets, None)
    return view.value(), view.payload


def read_udp_summed(octets: bytes) -> object:
    return udp.UdpView(octets, 0x1234).value()


def read_vnet(octets: bytes) -> object:
    view = vnet.VnetView(octets)
    return view.value().complete(view.frame)


READERS: dict[str, tuple[Callable[[bytes], object], st.SearchStrategy[bytes]]] = {
    "ethernet": (read_ethernet, ethernets.map(lambda header: header.pack())),
    "arp": (read_arp, arps.map(lambda packet: packet.pack())),
    "ipv4": (read_ipv4, ipv4s().map(lambda header: header.pack() + bytes(header.length))),
    "ipv4 summed": (read_ipv4_summed, ipv4s().map(lambda header: header.pack() + bytes(header.length))),
    "quoted": (read_quoted, ipv4s().map(lambda header: header.pack())),
    "icmp echo": (read_icmp, echoes.map(lambda message: message.pack())),
    "icmp error": (read_icmp, errors().map(lambda message: message.pack())),
    "tcp": (read_tcp, tcps().map(lambda header: header.pack(b"data") + b"data")),
    "tcp summed": (read_tcp_summed, tcps().map(lambda header: header.pack(b"data", 0x1234) + b"data")),
    "udp": (read_udp, udps.map(lambda header: header.pack(b"data", 0) + b"data")),
    "udp summed": (read_udp_summed, udps.map(lambda header: header.pack(b"data", 0x1234) + b"data")),
    "vnet": (read_vnet, vnets().map(lambda header: header.pack() + bytes(200))),
}
LEAST = {
    "ethernet": ethernet.HEADER,
    "arp": arp.HEADER,
    "ipv4": ipv4.HEADER,
    "ipv4 summed": ipv4.HEADER,
    "quoted": ipv4.HEADER,
    "icmp echo": icmp.HEADER,
    "icmp error": icmp.HEADER + ipv4.HEADER,
    "tcp": tcp.HEADER,
    "tcp summed": tcp.HEADER,
    "udp": udp.HEADER,
    "udp summed": udp.HEADER,
    "vnet": vnet.HEADER,
}


def outcome(reader: Callable[[bytes], object], octets: bytes) -> Malformed | None:
    """The refusal, if any. Another exception passes and fails the test."""
    try:
        reader(octets)
    except Malformed as refused:
        assert refused.field and refused.problem and refused.source
        assert refused.field in str(refused) and refused.source in str(refused)
        return refused
    return None


@pytest.mark.parametrize("name", READERS)
@given(octets=st.binary(max_size=120))
def test_any_octets(name: str, octets: bytes) -> None:
    outcome(READERS[name][0], octets)


@pytest.mark.parametrize("name", READERS)
@given(pick=st.data())
def test_damaged_packets(name: str, pick: st.DataObject) -> None:
    """A legal packet with some octets changed, then cut: what is shorter than a header is refused."""
    reader, packets = READERS[name]
    octets = bytearray(pick.draw(packets))
    assert outcome(reader, bytes(octets)) is None
    for _ in range(pick.draw(st.integers(0, 3))):
        octets[pick.draw(st.integers(0, len(octets) - 1))] = pick.draw(st.integers(0, 255))
    outcome(reader, bytes(octets))
    cut = bytes(octets[: pick.draw(st.integers(0, len(octets)))])
    refused = outcome(reader, cut)
    if len(cut) < LEAST[name] and (name != "icmp error" or cut[:1] in (b"\3", b"\x0b")):
        assert refused is not None


@given(ipv4s(), st.data())
def test_one_wrong_bit_of_an_ip_header_is_found(header: ipv4.Ipv4, pick: st.DataObject) -> None:
    octets = bytearray(header.pack() + bytes(header.length))
    bit = pick.draw(st.integers(0, (len(octets) - header.length) * 8 - 1))
    octets[bit // 8] ^= 1 << bit % 8
    assert outcome(read_ipv4, bytes(octets)) is not None


@given(tcps(), st.data())
def test_one_wrong_bit_of_a_segment_is_found(header: tcp.Tcp, pick: st.DataObject) -> None:
    octets = bytearray(header.pack(b"payload", 0x1234) + b"payload")
    bit = pick.draw(st.integers(0, len(octets) * 8 - 1))
    octets[bit // 8] ^= 1 << bit % 8
    assert outcome(read_tcp_summed, bytes(octets)) is not None


def ip(**changes: object) -> bytes:
    """A plain datagram with octets replaced by position and its checksum made right."""
    octets = bytearray(ipv4.Ipv4(0x0A000001, 0x0A000002, 6, 40).pack() + bytes(40))
    for name, value in changes.items():
        at = getattr(ipv4, name)
        raw = value if isinstance(value, bytes) else bytes([value])  # type: ignore[list-item]
        octets[at : at + len(raw)] = raw
    return with_sum(bytes(octets), 0, (octets[0] & 15) * 4, ipv4.CHECKSUM)


def segment(options: bytes, flags: int = tcp.SYN) -> bytes:
    octets = options + b"\0" * (-len(options) % 4)
    return bytes(12) + bytes([(20 + len(octets)) // 4 << 4, flags]) + bytes(6) + octets


REFUSED: list[tuple[str, Callable[[bytes], object], bytes]] = [
    ("ethernet.type", read_ethernet, STATION * 2 + b"\5\xff"),
    ("ethernet.source", read_ethernet, STATION + ethernet.BROADCAST + b"\x08\0"),
    ("arp.hardware", read_arp, bytes.fromhex("0006080006040001") + bytes(20)),
    ("arp.protocol", read_arp, bytes.fromhex("000186dd06040001") + bytes(20)),
    ("arp.hardware_length", read_arp, bytes.fromhex("0001080005040001") + bytes(20)),
    ("arp.protocol_length", read_arp, bytes.fromhex("0001080006100001") + bytes(20)),
    ("arp.operation", read_arp, bytes.fromhex("0001080006040003") + bytes(20)),
    ("arp.sender_mac", read_arp, bytes.fromhex("0001080006040001ffffffffffff") + bytes(14)),
    ("arp.sender_address", read_arp, bytes.fromhex("0001080006040001020000000001e0000001") + bytes(10)),
    ("arp.sender_address", read_arp, bytes.fromhex("000108000604000202000000000100000000") + bytes(10)),
    ("ipv4.version", read_ipv4, ip(VERSION_IHL=0x65)),
    ("ipv4.header_length", read_ipv4, ip(VERSION_IHL=0x44)),
    ("ipv4.header_length", read_ipv4, ip(VERSION_IHL=0x4F)[:56]),
    ("ipv4.total_length", read_ipv4, ip(TOTAL_LENGTH=b"\0\x13")),
    ("ipv4.total_length", read_ipv4, ip(TOTAL_LENGTH=b"\0\x3d")),
    ("ipv4.checksum", read_ipv4, ip()[:10] + b"\0\0" + ip()[12:]),
    ("ipv4.flags", read_ipv4, ip(FRAGMENT=0x80)),
    ("ipv4.fragment", read_ipv4, ip(FRAGMENT=0x20, TOTAL_LENGTH=b"\0\x3b")),
    ("ipv4.length", read_ipv4, ip(FRAGMENT=b"\x1f\xff")),
    ("ipv4.source", read_ipv4, ip(SOURCE=b"\xe0\0\0\1")),
    ("ipv4.source", read_ipv4, ip(SOURCE=b"\xff\xff\xff\xff")),
    ("ipv4.destination", read_ipv4, ip(DESTINATION=bytes(4))),
    ("ipv4.options", read_ipv4_summed, ip(VERSION_IHL=0x46)[:20] + b"\x94\0\0\0" + bytes(36)),
    ("ipv4.options", read_ipv4_summed, ip(VERSION_IHL=0x46)[:20] + b"\1\1\1\x94" + bytes(36)),
    ("icmp.checksum", lambda octets: icmp.IcmpView(octets), b"\x08\0\0\0" + bytes(4)),
    ("icmp.code", read_icmp, b"\x08\1\0\0" + bytes(4)),
    ("icmp.code", read_icmp, b"\x03\x10\0\0" + bytes(4) + ip()),
    ("icmp.quoted", read_icmp, b"\x03\3\0\0" + bytes(4) + ip()[:27]),
    ("ipv4.header", read_icmp, b"\x03\3\0\0" + bytes(4) + ip()[:19]),
    ("tcp.data_offset", read_tcp, bytes(12) + b"\x40" + bytes(7)),
    ("tcp.data_offset", read_tcp, bytes(12) + b"\x60" + bytes(7)),
    ("tcp.checksum", read_tcp_summed, segment(b"")),
    ("tcp.options", read_tcp, segment(b"\1\1\1\2")),
    ("tcp.options", read_tcp, segment(b"\xfd\0")),
    ("tcp.options", read_tcp, segment(b"\xfd\5")),
    ("tcp.mss length", read_tcp, segment(b"\2\3\1")),
    ("tcp.mss", read_tcp, segment(b"\2\4\0\0")),
    ("tcp.window_scale length", read_tcp, segment(b"\3\4\1\0")),
    ("tcp.sack_permitted length", read_tcp, segment(b"\4\3\0")),
    ("tcp.sack", read_tcp, segment(b"\5\2")),
    ("tcp.sack", read_tcp, segment(b"\5\x09" + bytes(7))),
    ("tcp.timestamps length", read_tcp, segment(b"\x08\6\0\0\0\0")),
    ("udp.length", read_udp, b"\0\1\0\1\0\7\0\0"),
    ("udp.length", read_udp, b"\0\1\0\1\0\x09\0\0"),
    ("udp.destination", read_udp, b"\0\1\0\0\0\x08\0\0"),
    ("udp.checksum", read_udp_summed, b"\0\1\0\1\0\x08\0\1"),
    ("vnet.flags", read_vnet, b"\4" + bytes(9)),
    ("vnet.flags", read_vnet, bytes.fromhex("00014200b40522001000") + bytes(60)),
    ("vnet.gso_type", read_vnet, b"\1\2" + bytes(8)),
    ("vnet.gso_type", read_vnet, b"\1\x80" + bytes(8)),
    ("vnet.gso_size", read_vnet, bytes.fromhex("01014200000022001000") + bytes(60)),
    ("vnet.csum_start", read_vnet, bytes.fromhex("01000000000022001000") + bytes(51)),
]


@pytest.mark.parametrize(("field", "reader", "octets"), REFUSED, ids=[f"{n}-{r[0]}" for n, r in enumerate(REFUSED)])
def test_each_rule_names_its_field(field: str, reader: Callable[[bytes], object], octets: bytes) -> None:
    refused = outcome(reader, octets)
    assert refused is not None
    assert refused.field == field


ILLEGAL: list[tuple[str, Callable[[], object]]] = [
    ("ethernet.destination", lambda: ethernet.Ethernet(b"\2\0\0\0\0", STATION, 0x800)),
    ("ethernet.type", lambda: ethernet.Ethernet(STATION, STATION, 0x10000)),
    ("arp.target_mac", lambda: arp.Arp(arp.REQUEST, STATION, 1, b"\0" * 5, 2)),
    ("arp.target_address", lambda: arp.Arp(arp.REQUEST, STATION, 1, STATION, 1 << 32)),
    ("ipv4.source", lambda: ipv4.Ipv4(1 << 32, 2, 6, 0)),
    ("ipv4.protocol", lambda: ipv4.Ipv4(1, 2, 256, 0)),
    ("ipv4.tos", lambda: ipv4.Ipv4(1, 2, 6, 0, tos=-1)),
    ("ipv4.identification", lambda: ipv4.Ipv4(1, 2, 6, 0, identification=65536)),
    ("ipv4.fragment_offset", lambda: ipv4.Ipv4(1, 2, 6, 0, fragment_offset=65536)),
    ("ipv4.ttl", lambda: ipv4.Ipv4(1, 2, 6, 0, ttl=0).pack()),
    ("ipv4.ttl", lambda: ipv4.Ipv4(1, 2, 6, 0, ttl=256)),
    ("ipv4.length", lambda: ipv4.Ipv4(1, 2, 6, 0xFFFF)),
    ("ipv4.length", lambda: ipv4.Ipv4(1, 2, 6, -1)),
    ("ipv4.fragment", lambda: ipv4.Ipv4(1, 2, 6, 8, fragment_offset=4)),
    ("ipv4.options", lambda: ipv4.Ipv4(1, 2, 6, 8, options=b"\1")),
    ("ipv4.options length", lambda: ipv4.Ipv4(1, 2, 6, 8, options=b"\1" * 44)),
    ("icmp.type", lambda: icmp.Echo(3, 0, 0, b"")),
    ("icmp.identifier", lambda: icmp.Echo(8, 65536, 0, b"")),
    ("icmp.sequence", lambda: icmp.Echo(8, 0, -1, b"")),
    ("icmp.data length", lambda: icmp.Echo(8, 0, 0, bytes(65508))),
    ("icmp.type", lambda: icmp.Error(8, 0, ip())),
    ("icmp.code", lambda: icmp.Error(3, 16, ip())),
    ("icmp.quoted length", lambda: icmp.Error(3, 3, ip() + bytes(65500))),
    ("icmp.mtu", lambda: icmp.Error(3, 3, ip(), mtu=1500)),
    ("tcp.sequence", lambda: tcp.Tcp(1, 2, 1 << 32, 0, 0, 0)),
    ("tcp.window", lambda: tcp.Tcp(1, 2, 0, 0, 0, 65536)),
    ("tcp.options", lambda: tcp.Tcp(1, 2, 0, 0, tcp.ACK, 0, options=tcpoptions.Options(mss=1460))),
    ("tcp.window_scale", lambda: tcpoptions.Options(window_scale=15)),
    ("tcp.sack blocks", lambda: tcpoptions.Options(sack=((1, 2),) * 5)),
    ("tcp.options length", lambda: tcpoptions.Options(sack=((1, 2),) * 4, timestamps=(1, 2))),
    ("tcp.sack edges", lambda: tcpoptions.Options(sack=((1, 2, 3),))),  # type: ignore[arg-type]
    ("tcp.sack edge", lambda: tcpoptions.Options(sack=((1, 1 << 32),))),
    ("tcp.timestamps length", lambda: tcpoptions.Options(timestamps=(1,))),  # type: ignore[arg-type]
    ("tcp.timestamps", lambda: tcpoptions.Options(timestamps=(-1, 2))),
    ("udp.source", lambda: udp.Udp(65536, 1)),
    ("udp.payload length", lambda: udp.Udp(1, 1).pack(bytes(65528), 0)),
    ("vnet.hdr_len", lambda: vnet.Vnet(hdr_len=65536)),
    ("vnet.csum_offset", lambda: vnet.Vnet(flags=vnet.NEEDS_CSUM, csum_offset=-1)),
    ("vnet.gso_size", lambda: vnet.Vnet(flags=vnet.NEEDS_CSUM, gso_type=vnet.GSO_TCPV4)),
]


@pytest.mark.parametrize(("field", "make"), ILLEGAL, ids=[f"{n}-{i[0]}" for n, i in enumerate(ILLEGAL)])
def test_no_value_is_illegal(field: str, make: Callable[[], object]) -> None:
    with pytest.raises(Malformed) as refused:
        make()
    assert refused.value.field == field
