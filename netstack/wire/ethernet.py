"""Ethernet II frames (RFC 894; IEEE 802.3 clause 3). No VLAN tags, no 802.3 length fields, no frame check sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from netstack.wire.header import MAC_BYTES, Malformed, Number, Octets, View, check_mac

DESTINATION: Final = 0
SOURCE: Final = 6
TYPE: Final = 12
HEADER: Final = 14

TYPE_IPV4: Final = 0x0800
TYPE_ARP: Final = 0x0806
TYPE_IPV6: Final = 0x86DD

LEAST_TYPE: Final = 0x0600  # below it the field is a length
BROADCAST: Final = b"\xff" * MAC_BYTES


class EthernetView(View):
    """A received frame."""

    __slots__ = ()

    type = Number(TYPE, 2)

    def __init__(self, frame: Octets) -> None:
        super().__init__(frame, "ethernet", HEADER, "IEEE 802.3 clause 3.1.1")
        self.value()

    @property
    def destination(self) -> bytes:
        return bytes(self.octets[DESTINATION : DESTINATION + MAC_BYTES])

    @property
    def source(self) -> bytes:
        return bytes(self.octets[SOURCE : SOURCE + MAC_BYTES])

    @property
    def payload(self) -> memoryview:
        """What follows the header; padding of short frames is still in it."""
        return self.octets[HEADER:]

    def value(self) -> Ethernet:
        """The header as a value."""
        return Ethernet(self.destination, self.source, self.type)


@dataclass(frozen=True, slots=True)
class Ethernet:
    """Destination and source MAC, and what the payload is."""

    destination: bytes
    source: bytes
    type: int

    def __post_init__(self) -> None:
        check_mac("ethernet.destination", self.destination, "IEEE 802.3 clause 3.2.3")
        check_mac("ethernet.source", self.source, "IEEE 802.3 clause 3.2.3", group=False)
        if not LEAST_TYPE <= self.type <= 0xFFFF:
            raise Malformed("ethernet.type", f"is {self.type:#x}: a length, or too large", "RFC 894")

    def pack(self, payload: Octets = b"") -> bytes:
        """The frame."""
        return b"".join((self.destination, self.source, self.type.to_bytes(2, "big"), payload))


def is_group(mac: bytes) -> bool:
    """Whether a MAC names more than one station: multicast or broadcast (IEEE 802.3 clause 3.2.3.1)."""
    return bool(mac[0] & 1)
