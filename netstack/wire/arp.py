"""ARP for IPv4 over Ethernet (RFC 826). Other hardware, other protocols and other operations are Malformed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from netstack.wire.header import MAC_BYTES, Malformed, Number, Octets, View, check, check_mac
from netstack.wire.ipv4 import check_source
from netstack.wire.octets import put16, put32

HARDWARE: Final = 0
PROTOCOL: Final = 2
HARDWARE_LENGTH: Final = 4
PROTOCOL_LENGTH: Final = 5
OPERATION: Final = 6
SENDER_MAC: Final = 8
SENDER_ADDRESS: Final = 14
TARGET_MAC: Final = 18
TARGET_ADDRESS: Final = 24
HEADER: Final = 28

REQUEST: Final = 1
REPLY: Final = 2

HARDWARE_ETHERNET: Final = 1
PROTOCOL_IPV4: Final = 0x0800


class ArpView(View):
    """A received packet; what follows the HEADER octets is padding."""

    __slots__ = ()

    operation = Number(OPERATION, 2)
    sender_address = Number(SENDER_ADDRESS, 4)
    target_address = Number(TARGET_ADDRESS, 4)
    _hardware = Number(HARDWARE, 2)
    _protocol = Number(PROTOCOL, 2)
    _hardware_length = Number(HARDWARE_LENGTH, 1)
    _protocol_length = Number(PROTOCOL_LENGTH, 1)

    def __init__(self, octets: Octets) -> None:
        super().__init__(octets, "arp", HEADER, "RFC 826")
        check("arp.hardware", self._hardware, HARDWARE_ETHERNET, HARDWARE_ETHERNET, "RFC 826")
        check("arp.protocol", self._protocol, PROTOCOL_IPV4, PROTOCOL_IPV4, "RFC 826")
        check("arp.hardware_length", self._hardware_length, MAC_BYTES, MAC_BYTES, "RFC 826")
        check("arp.protocol_length", self._protocol_length, 4, 4, "RFC 826")
        self.value()

    @property
    def sender_mac(self) -> bytes:
        return bytes(self.octets[SENDER_MAC : SENDER_MAC + MAC_BYTES])

    @property
    def target_mac(self) -> bytes:
        return bytes(self.octets[TARGET_MAC : TARGET_MAC + MAC_BYTES])

    def value(self) -> Arp:
        """The packet as a value."""
        return Arp(self.operation, self.sender_mac, self.sender_address, self.target_mac, self.target_address)


@dataclass(frozen=True, slots=True)
class Arp:
    """Who asks or tells, and whom. A request with a sender address of 0 is a probe (RFC 5227 section 1.1)."""

    operation: int
    sender_mac: bytes
    sender_address: int
    target_mac: bytes
    target_address: int

    def __post_init__(self) -> None:
        check("arp.operation", self.operation, REQUEST, REPLY, "RFC 826")
        # RFC 1812 section 3.3.2: never believe that a host's link address is a broadcast or multicast one.
        check_mac("arp.sender_mac", self.sender_mac, "RFC 1812 section 3.3.2", group=False)
        check_source("arp.sender_address", self.sender_address)
        if self.sender_address == 0 and self.operation == REPLY:
            raise Malformed("arp.sender_address", "is 0 in a reply", "RFC 5227 section 1.1")
        check_mac("arp.target_mac", self.target_mac, "RFC 826")
        check("arp.target_address", self.target_address, 0, 0xFFFFFFFF, "RFC 826")

    def pack(self) -> bytes:
        """The packet, HEADER octets."""
        out = bytearray(HEADER)
        put16(out, HARDWARE, HARDWARE_ETHERNET)
        put16(out, PROTOCOL, PROTOCOL_IPV4)
        out[HARDWARE_LENGTH] = MAC_BYTES
        out[PROTOCOL_LENGTH] = 4
        put16(out, OPERATION, self.operation)
        out[SENDER_MAC : SENDER_MAC + MAC_BYTES] = self.sender_mac
        put32(out, SENDER_ADDRESS, self.sender_address)
        out[TARGET_MAC : TARGET_MAC + MAC_BYTES] = self.target_mac
        put32(out, TARGET_ADDRESS, self.target_address)
        return bytes(out)
