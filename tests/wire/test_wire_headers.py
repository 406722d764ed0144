"""Every legal header goes to octets and back unchanged (WIRE-3), and scapy reads and writes the same octets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from netstack.wire.arp import Arp, ArpView
from netstack.wire.ethernet import BROADCAST, Ethernet, EthernetView, is_group
from netstack.wire.icmp import FRAGMENTATION_NEEDED, UNREACHABLE, Echo, Error, IcmpView
from netstack.wire.ipv4 import PROTOCOL_TCP, PROTOCOL_UDP, Ipv4, Ipv4View
from netstack.wire.tcp import SYN, Tcp, TcpView
from netstack.wire.tcpoptions import Options
from netstack.wire.udp import Udp, UdpView
from netstack.wire.vnet import HEADER as VNET_HEADER
from netstack.wire.vnet import Vnet, VnetView
from tests.wire.wire_values import arps, data, echoes, errors, ethernets, ipv4s, options, sources, tcps, udps, vnets


def mac(octets: bytes) -> str:
    return octets.hex(":")


def dotted(address: int) -> str:
    return ".".join(str(octet) for octet in address.to_bytes(4, "big"))


def rebuilt(packet: Packet, layer: type[Packet], *computed: str) -> bytes:
    """The octets scapy makes of the fields it read, those of `layer` that are named in `computed` computed anew."""
    packet = packet.copy()
    for name in computed:
        packet[layer].delfieldval(name)
    return bytes(packet)


@given(ethernets, data)
def test_ethernet(header: Ethernet, payload: bytes) -> None:
    frame = header.pack(payload)
    view = EthernetView(frame)
    assert view.value() == header
    assert bytes(view.payload) == payload
    seen = Ether(frame)
    assert (seen.dst, seen.src, seen.type) == (mac(header.destination), mac(header.source), header.type)


def test_group_addresses() -> None:
    assert is_group(BROADCAST)
    assert is_group(bytes.fromhex("01005e000001"))
    assert not is_group(bytes.fromhex("02005e000001"))


@given(arps, data)
def test_arp(packet: Arp, padding: bytes) -> None:
    octets = packet.pack()
    assert ArpView(octets + padding).value() == packet
    oracle = ARP(
        op=packet.operation,
        hwsrc=mac(packet.sender_mac),
        psrc=dotted(packet.sender_address),
        hwdst=mac(packet.target_mac),
        pdst=dotted(packet.target_address),
    )
    assert bytes(oracle) == octets


@given(ipv4s(), data)
def test_ipv4(header: Ipv4, padding: bytes) -> None:
    octets = header.pack()
    payload = bytes(n & 0xFF for n in range(header.length))
    view = Ipv4View(octets + payload + padding)
    assert view.value() == header
    assert bytes(view.payload) == payload
    assert view.pseudo() == header.pseudo()
    assert view.is_fragment == (header.more_fragments or header.fragment_offset > 0)
    seen = IP(octets)
    assert (seen.src, seen.dst, seen.ttl, seen.proto) == (
        dotted(header.source),
        dotted(header.destination),
        header.ttl,
        header.protocol,
    )
    assert (seen.frag * 8, seen.flags.DF, seen.flags.MF) == (
        header.fragment_offset,
        header.dont_fragment,
        header.more_fragments,
    )
    assert rebuilt(seen, IP, "chksum", "ihl") == octets


@given(echoes)
def test_icmp_echo(message: Echo) -> None:
    octets = message.pack()
    assert IcmpView(octets).echo() == message
    oracle = ICMP(type=message.type, id=message.identifier, seq=message.sequence) / Raw(message.data)
    assert bytes(oracle) == octets


@given(errors())
def test_icmp_error(message: Error) -> None:
    octets = message.pack()
    view = IcmpView(octets)
    assert view.error() == message
    assert view.error().inner().source == Ipv4View(message.quoted, quoted=True).source
    frag = (message.type, message.code) == (UNREACHABLE, FRAGMENTATION_NEEDED)
    fields = {"nexthopmtu": message.mtu} if frag else {}
    oracle = ICMP(type=message.type, code=message.code, **fields) / Raw(message.quoted)
    assert bytes(oracle) == octets


@given(udps, data, data, sources, sources)
def test_udp(header: Udp, payload: bytes, padding: bytes, source: int, destination: int) -> None:
    ip = Ipv4(source, destination, PROTOCOL_UDP, 8 + len(payload))
    octets = header.pack(payload, ip.pseudo()) + payload
    view = UdpView(octets, ip.pseudo())
    assert view.value() == header
    assert bytes(view.payload) == payload
    made = IP(src=dotted(source), dst=dotted(destination)) / UDP(sport=header.source, dport=header.destination)
    assert bytes(made / Raw(payload))[20:] == octets
    # IP's payload may be longer than UDP's; the pseudo header of UDP does not count the rest.
    longer = Ipv4(source, destination, PROTOCOL_UDP, 8 + len(payload) + len(padding))
    assert bytes(UdpView(octets + padding, longer.pseudo()).payload) == payload


@given(tcps(), data, sources, sources)
def test_tcp(header: Tcp, payload: bytes, source: int, destination: int) -> None:
    ip = Ipv4(source, destination, PROTOCOL_TCP, len(header.pack()) + len(payload))
    octets = header.pack(payload, ip.pseudo()) + payload
    view = TcpView(octets, ip.pseudo())
    assert view.value() == header
    assert bytes(view.payload) == payload
    flags = header.flags
    assert view.segment_length == len(payload) + (flags & 1) + (flags >> 1 & 1)
    seen = IP(ip.pack() + octets)[TCP]
    assert (seen.sport, seen.dport, seen.seq, seen.ack) == (
        header.source,
        header.destination,
        header.sequence,
        header.acknowledgment,
    )
    assert (int(seen.flags) & 0xFF, seen.window, seen.urgptr) == (flags, header.window, header.urgent)
    assert rebuilt(IP(ip.pack() + octets), TCP, "chksum", "dataofs")[20:] == octets


@given(st.booleans().flatmap(lambda syn: options(syn=syn)))
def test_tcp_options_as_scapy_reads_them(chosen: Options) -> None:
    octets = chosen.pack()
    assert len(octets) % 4 == 0
    assert Options.parse(octets, syn=True) == chosen
    header = bytes(12) + bytes([(20 + len(octets)) // 4 << 4, SYN]) + bytes(6) + octets
    seen = dict(TCP(header).options)
    assert seen.get("MSS") == chosen.mss
    assert seen.get("WScale") == chosen.window_scale
    assert ("SAckOK" in seen) == chosen.sack_permitted
    assert seen.get("Timestamp") == chosen.timestamps
    assert seen.get("SAck", ()) == tuple(edge for block in chosen.sack for edge in block)


def test_options_of_a_linux_syn() -> None:
    """What Linux sends: MSS 1460, SACK permitted, timestamps, NOP, window scale 7."""
    octets = bytes.fromhex("020405b40402080a0000a1b2000000000103" + "0307")
    assert Options.parse(octets, syn=True) == Options(1460, 7, True, (), (0xA1B2, 0))
    assert Options.parse(octets, syn=False) == Options(timestamps=(0xA1B2, 0))


def test_a_shift_beyond_14_counts_as_14() -> None:
    """RFC 7323 section 2.3."""
    assert Options.parse(b"\3\3\x0f\0", syn=True).window_scale == 14


def test_unknown_options_are_passed_over_and_the_end_ends() -> None:
    """RFC 9293 MUST-6; after the end option nothing is read, not even nonsense."""
    assert Options.parse(b"\xfd\6abcd\2\4\1\0\0\2\0\0", syn=True) == Options(mss=256)


@given(vnets())
def test_vnet(header: Vnet) -> None:
    packet = header.pack() + bytes(200)
    assert len(header.pack()) == VNET_HEADER
    view = VnetView(packet)
    assert view.value() == header
    assert bytes(view.frame) == bytes(200)


def test_vnet_as_the_kernel_lays_it_out() -> None:
    """struct virtio_net_hdr of a 64 KB TCP segment."""
    packet = bytes.fromhex("0101420088052200 1000".replace(" ", "")) + bytes(200)
    assert VnetView(packet).value() == Vnet(1, 1, 66, 1416, 34, 16)
