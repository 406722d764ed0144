"""The packet ring: how an environment without a TAP queue gets and sends packets.

One memory file, created and sealed by xokd, mapped writable by both.  Each direction is a ring of records in a byte
area; indices are free-running u32 counts of bytes, each written by one side only:

    0        header: magic, version, bytes of one area
    64       rx_tail   (xokd writes)        128  rx_head  (environment writes)
    192      tx_tail   (environment writes) 256  tx_head  (xokd writes)
    320      rx_sleeps (environment writes): 1 asks for a doorbell with the next packet
    4096     receive area, AREA_BYTES
    …        send area, AREA_BYTES

A record is a u32 length, then a virtio header of 10 bytes and the frame, just as a TAP queue would give it, then zeros
up to 8 bytes.  Records do not wrap: a length of WRAP means that the next one is at the start of the area.

PR-1  xokd copies a record before it looks at it, and checks the copy (kernel/dpf/pktring.py).
PR-2  No index or length reaches outside: xokd masks what it reads, and closes a ring whose contents make no sense.
PR-3  Nobody waits for the other: a full receive area drops and counts, a full send area refuses.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

MAGIC: Final = 0x52504F58
VERSION: Final = 1
HEADER: Final = struct.Struct("<III")
RX_TAIL, RX_HEAD, TX_TAIL, TX_HEAD, RX_SLEEPS = 64, 128, 192, 256, 320
RX_AREA: Final = 4096
AREA_BYTES: Final = 1 << 20
TX_AREA: Final = RX_AREA + AREA_BYTES
RING_BYTES: Final = TX_AREA + AREA_BYTES

LENGTH: Final = struct.Struct("<I")
WRAP: Final = 0xFFFF_FFFF
VNET_BYTES: Final = 10
MIN_PACKET: Final = VNET_BYTES + 14
MAX_PACKET: Final = VNET_BYTES + 65536 + 256
_MASK32: Final = 0xFFFF_FFFF


def record_bytes(length: int) -> int:
    """What a packet of `length` takes in the area."""
    return (LENGTH.size + length + 7) & ~7


class RingMemory:
    """Loads and stores both ends use."""

    def __init__(self, memory: memoryview) -> None:
        if len(memory) < RING_BYTES:
            raise ValueError(f"a packet ring has {RING_BYTES} bytes, not {len(memory)}")
        self.memory = memory
        # One load or store of the processor each; `struct` would write zeros first, which the other side sees.
        self._words = memory[:RING_BYTES].cast("I")

    def load(self, at: int) -> int:
        return self._words[at >> 2]

    def store(self, at: int, value: int) -> None:
        self._words[at >> 2] = value & _MASK32

    def release(self) -> None:
        """Let go of the memory, so that it can be unmapped."""
        self._words.release()
        self.memory.release()

    def put(self, area: int, tail: int, head: int, parts: Sequence[bytes | bytearray | memoryview]) -> int:
        """Append one record and return the new tail, or -1 if there is no room.  The caller publishes the tail."""
        length = sum(len(part) for part in parts)
        need = record_bytes(length)
        used = min(tail - head & _MASK32, AREA_BYTES)
        at = tail % AREA_BYTES
        skip = AREA_BYTES - at if at + need > AREA_BYTES else 0
        if used + skip + need > AREA_BYTES:
            return -1
        if skip:
            LENGTH.pack_into(self.memory, area + at, WRAP)
            at = 0
        LENGTH.pack_into(self.memory, area + at, length)
        at += area + LENGTH.size
        for part in parts:
            self.memory[at : at + len(part)] = part
            at += len(part)
        return tail + skip + need & _MASK32


class ClientPacketRing(RingMemory):
    """The environment's end.  The methods are those of a TAP queue, except that they never raise BlockingIOError."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        magic, version, area = HEADER.unpack_from(memory, 0)
        if (magic, version, area) != (MAGIC, VERSION, AREA_BYTES):
            raise ValueError("not a packet ring of this version")
        self._rx_head = self.load(RX_HEAD)
        self._tx_tail = self.load(TX_TAIL)
        self.refused = 0
        """Packets that found the send area full."""

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """The next packet, virtio header first; its length, or 0 if there is none.  A longer packet is cut."""
        while self._rx_head != self.load(RX_TAIL):
            at = self._rx_head % AREA_BYTES
            length = self.load(RX_AREA + at)
            if length == WRAP:
                self._rx_head = self._rx_head + AREA_BYTES - at & _MASK32
                continue
            taken = min(length, len(buffer))
            start = RX_AREA + at + LENGTH.size
            buffer[:taken] = self.memory[start : start + taken]
            self._rx_head = self._rx_head + record_bytes(length) & _MASK32
            self.store(RX_HEAD, self._rx_head)
            return taken
        self.store(RX_HEAD, self._rx_head)
        return 0

    def send(self, parts: Sequence[bytes | bytearray | memoryview]) -> bool:
        """Queue one packet given in pieces, virtio header first.  False if there is no room.

        xokd sees it once its doorbell has been rung; one ring serves for any number of packets.
        """
        tail = self.put(TX_AREA, self._tx_tail, self.load(TX_HEAD), parts)
        if tail < 0:
            self.refused += 1
            return False
        self._tx_tail = tail
        self.store(TX_TAIL, tail)
        return True

    def sleep(self) -> bool:
        """Ask for a doorbell with the next packet.  False if there is one already: do not wait then."""
        self.store(RX_SLEEPS, 1)
        if self._rx_head != self.load(RX_TAIL):
            self.store(RX_SLEEPS, 0)
            return False
        return True
