"""The default owner of an address: what must be answered when no server wants it (DESIGN section 5).

Whoever holds an IP address holds its wildcard filter: ARP, echo, fragments, and every port that was not delegated to a
more specific filter. This is the smallest honest holder. It answers ARP requests (RFC 826), echo requests (RFC 792,
RFC 1122 section 3.2.2.6), TCP to unclaimed ports with RST (RFC 9293 section 3.10.7.1), so that `connect` fails at once,
and UDP with port unreachable (RFC 1122 section 4.1.3.1). When a server dies its traffic falls back here, and its
clients are told.

OWNER-1  `respond` reads no clock and sends nothing: one packet in, at most one packet out, and no state but the
         neighbours and the allowance for ICMP errors.
OWNER-2  Nothing is answered that was not sent to us alone: not to another MAC or address, not to a group, not from a
         source that is no host's. No RST answers an RST, no ICMP error an ICMP error or a later fragment (RFC 1122
         section 3.2.2).
OWNER-3  Neighbours are learnt only from ARP that names us as its target, or from a known neighbour's (RFC 826's merge);
         there are at most MAX_NEIGHBOURS, the oldest giving way.

A packet here is what a queue of the TAP gives: virtio header, then the frame. Fragments are not reassembled: dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from netstack.wire import arp, ethernet, icmp, ipv4, tcp, udp, vnet
from netstack.wire.header import Malformed, Octets
from netstack.xio.seq import seq_add

MAX_NEIGHBOURS: Final = 1024
ERROR_BURST: Final = 50  # ICMP errors at once (RFC 1812 section 4.3.2.8)
ERROR_INTERVAL: Final = 1_000  # µs until one more may be sent


class Owner:
    """The owner of `addresses` (32-bit numbers) at the station `mac`."""

    def __init__(self, mac: bytes, addresses: Iterable[int]) -> None:
        self.mac = mac
        self.addresses = frozenset(addresses)
        self.neighbours: dict[int, bytes] = {}
        self._allowance_at = -ERROR_BURST * ERROR_INTERVAL
        self._counts = dict.fromkeys(("arp", "echo", "reset", "unreachable", "limited", "malformed", "ignored"), 0)

    def statistics(self) -> dict[str, int]:
        """How many of what were answered, limited, malformed or ignored; how many neighbours are known."""
        return {**self._counts, "neighbours": len(self.neighbours)}

    def respond(self, packet: Octets, now: int) -> bytes | None:
        """The packet that answers `packet`, or None. `now` is in µs. Never raises, whatever the octets are."""
        try:
            header = vnet.VnetView(packet).value()
            frame = ethernet.EthernetView(memoryview(packet)[vnet.HEADER :])
            if frame.type == ethernet.TYPE_ARP and frame.destination in (self.mac, ethernet.BROADCAST):
                return self._arp(arp.ArpView(frame.payload).value())
            if frame.type == ethernet.TYPE_IPV4 and frame.destination == self.mac:
                return self._ipv4(frame, header.vouched, now)
        except Malformed:
            return self._count("malformed")
        return self._count("ignored")

    def request(self, address: int, own: int) -> bytes:
        """The packet that asks who has `address`, from our address `own`."""
        asked = arp.Arp(arp.REQUEST, self.mac, own, bytes(6), address)
        return self._frame(ethernet.BROADCAST, ethernet.TYPE_ARP, asked.pack())

    def announce(self, own: int) -> bytes:
        """The packet that tells everybody our MAC (RFC 5227 section 2.3), so that nobody keeps an older one."""
        return self.request(own, own)

    def _arp(self, packet: arp.Arp) -> bytes | None:
        sender = packet.sender_address
        ours = packet.target_address in self.addresses
        if sender in self.addresses:
            return self._count("ignored")
        if sender and (ours or sender in self.neighbours):
            self._learn(sender, packet.sender_mac)
        if not ours or packet.operation != arp.REQUEST:
            return self._count("ignored")
        self._count("arp")
        reply = arp.Arp(arp.REPLY, self.mac, packet.target_address, packet.sender_mac, sender)
        return self._frame(packet.sender_mac, ethernet.TYPE_ARP, reply.pack())

    def _learn(self, address: int, mac: bytes) -> None:
        self.neighbours.pop(address, None)
        if len(self.neighbours) >= MAX_NEIGHBOURS:
            del self.neighbours[next(iter(self.neighbours))]
        self.neighbours[address] = mac

    def _ipv4(self, frame: ethernet.EthernetView, vouched: bool, now: int) -> bytes | None:
        datagram = ipv4.Ipv4View(frame.payload)
        nobody = not datagram.source or datagram.source in self.addresses or datagram.source >> 24 == 127
        if datagram.destination not in self.addresses or datagram.is_fragment or nobody:
            return self._count("ignored")
        if datagram.protocol == ipv4.PROTOCOL_ICMP:
            return self._icmp(frame, datagram)
        if datagram.protocol == ipv4.PROTOCOL_TCP:
            return self._tcp(frame, datagram, None if vouched else datagram.pseudo())
        if datagram.protocol == ipv4.PROTOCOL_UDP:
            udp.UdpView(datagram.payload, None if vouched else datagram.pseudo())
            return self._unreachable(frame, datagram, icmp.PORT_UNREACHABLE, now)
        return self._unreachable(frame, datagram, icmp.PROTOCOL_UNREACHABLE, now)

    def _icmp(self, frame: ethernet.EthernetView, datagram: ipv4.Ipv4View) -> bytes | None:
        message = icmp.IcmpView(datagram.payload)
        if message.type != icmp.ECHO_REQUEST:
            return self._count("ignored")
        self._count("echo")
        asked = message.echo()
        reply = icmp.Echo(icmp.ECHO_REPLY, asked.identifier, asked.sequence, asked.data)
        return self._datagram(frame, datagram, ipv4.PROTOCOL_ICMP, reply.pack())

    def _tcp(self, frame: ethernet.EthernetView, datagram: ipv4.Ipv4View, pseudo: int | None) -> bytes | None:
        segment = tcp.TcpView(datagram.payload, pseudo)
        if segment.flags & tcp.RST:
            return self._count("ignored")
        self._count("reset")
        acked = bool(segment.flags & tcp.ACK)
        reset = tcp.Tcp(
            source=segment.destination,
            destination=segment.source,
            sequence=segment.acknowledgment if acked else 0,
            acknowledgment=0 if acked else seq_add(segment.sequence, segment.segment_length),
            flags=tcp.RST if acked else tcp.RST | tcp.ACK,
            window=0,
        )
        head = self._header(datagram, ipv4.PROTOCOL_TCP, tcp.HEADER)
        return self._frame(frame.source, ethernet.TYPE_IPV4, head.pack() + reset.pack(b"", head.pseudo()))

    def _unreachable(self, frame: ethernet.EthernetView, datagram: ipv4.Ipv4View, code: int, now: int) -> bytes | None:
        full = now - ERROR_BURST * ERROR_INTERVAL
        self._allowance_at = max(self._allowance_at, full)
        if self._allowance_at + ERROR_INTERVAL > now:
            return self._count("limited")
        self._allowance_at += ERROR_INTERVAL
        self._count("unreachable")
        quoted = bytes(datagram.octets[: min(datagram.total_length, icmp.MAX_QUOTED)])
        error = icmp.Error(icmp.UNREACHABLE, code, quoted)
        return self._datagram(frame, datagram, ipv4.PROTOCOL_ICMP, error.pack())

    def _header(self, asked: ipv4.Ipv4View, protocol: int, length: int) -> ipv4.Ipv4:
        return ipv4.Ipv4(asked.destination, asked.source, protocol, length, dont_fragment=True)

    def _datagram(self, frame: ethernet.EthernetView, asked: ipv4.Ipv4View, protocol: int, payload: bytes) -> bytes:
        head = self._header(asked, protocol, len(payload)).pack()
        return self._frame(frame.source, ethernet.TYPE_IPV4, head + payload)

    def _frame(self, destination: bytes, kind: int, payload: bytes) -> bytes:
        return vnet.NOTHING.pack() + ethernet.Ethernet(destination, self.mac, kind).pack(payload)

    def _count(self, name: str) -> bytes | None:
        """Count one of `name`; None, which is what `respond` returns when it does not answer."""
        self._counts[name] += 1
        return None
