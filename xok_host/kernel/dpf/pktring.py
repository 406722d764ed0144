"""xokd's end of a packet ring (layout and rules PR-1 … PR-3: abi/pktring.py), with the portable inverse filter.

`deliver` puts in a packet that the portable engine found to be the environment's.  `take` gives the packets it wants
to send, each copied first and then judged, so that what goes out is what was checked.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from xok_host.abi.pktring import (
    AREA_BYTES,
    HEADER,
    LENGTH,
    MAGIC,
    MAX_PACKET,
    MIN_PACKET,
    RX_AREA,
    RX_HEAD,
    RX_SLEEPS,
    RX_TAIL,
    TX_AREA,
    TX_HEAD,
    TX_TAIL,
    VERSION,
    VNET_BYTES,
    WRAP,
    RingMemory,
    record_bytes,
)
from xok_host.kernel.dpf.inverse import Reason, Sender, check

TURN: Final = 64
"""Packets that are taken from one ring before it is another's turn."""
_MASK32: Final = 0xFFFF_FFFF


class KernelPacketRing(RingMemory):
    """Trusts nothing in the memory but what it wrote and remembers itself."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        HEADER.pack_into(memory, 0, MAGIC, VERSION, AREA_BYTES)
        self.sender: Sender | None = None
        """What the environment may send; None: nothing."""
        self.broken = False
        """The environment wrote nonsense: nothing is taken from or delivered to it any more."""
        self.delivered = 0
        self.overrun = 0
        """Packets dropped because the receive area was full."""
        self.sent: Counter[Reason] = Counter()
        self._rx_tail = 0
        self._tx_head = 0

    def deliver(self, packet: bytes | bytearray | memoryview) -> bool:
        """Put one packet, virtio header first, into the receive area.  False if it was dropped."""
        if self.broken or len(packet) > MAX_PACKET:
            return False
        tail = self.put(RX_AREA, self._rx_tail, self.load(RX_HEAD), (packet,))
        if tail < 0:
            self.overrun += 1
            return False
        self._rx_tail = tail
        self.store(RX_TAIL, tail)
        self.delivered += 1
        return True

    def wants_doorbell(self) -> bool:
        """Whether the environment sleeps; asking clears it."""
        if self.load(RX_SLEEPS) != 1:
            return False
        self.store(RX_SLEEPS, 0)
        return True

    def take(self, limit: int = TURN) -> list[bytes]:
        """Up to `limit` packets that the environment may send, virtio header first; the others are counted."""
        passed: list[bytes] = []
        for _ in range(limit):
            packet = self._next()
            if packet is None:
                break
            view = memoryview(packet)
            reason = check(self.sender, view[:VNET_BYTES], view[VNET_BYTES:])
            self.sent[reason] += 1
            if reason is Reason.PASSED:
                passed.append(packet)
        self.store(TX_HEAD, self._tx_head)
        return passed

    def pending(self) -> bool:
        """Whether there is something to take."""
        return not self.broken and self.load(TX_TAIL) != self._tx_head

    def _next(self) -> bytes | None:
        """A private copy of the next record (PR-1), or None.  A record that cannot be breaks the ring (PR-2)."""
        if not self.pending():
            return None
        used = self.load(TX_TAIL) - self._tx_head & _MASK32
        at = self._tx_head % AREA_BYTES
        skip = 0
        length = self.load(TX_AREA + at)
        if length == WRAP and at:
            skip = AREA_BYTES - at
            at = 0
            length = self.load(TX_AREA)
        need = record_bytes(length)
        if (
            used > AREA_BYTES
            or used % 8
            or not MIN_PACKET <= length <= MAX_PACKET
            or skip + need > used
            or at + need > AREA_BYTES
        ):
            self.broken = True
            return None
        start = TX_AREA + at + LENGTH.size
        packet = bytes(self.memory[start : start + length])
        self._tx_head = self._tx_head + skip + need & _MASK32
        return packet

    def statistics(self) -> dict[str, Any]:
        return {
            "delivered": self.delivered,
            "overrun": self.overrun,
            "broken": self.broken,
            "sent": {reason.name.lower(): count for reason, count in self.sent.items()},
        }
