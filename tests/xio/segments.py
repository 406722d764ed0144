"""A peer whose segments are made by hand, for tests of the state machine: what goes in, what comes out, when."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from pair import CLIENT, CLIENT_MAC, SERVER, SERVER_MAC, Recorder

from netstack.wire import checksum
from netstack.xio.constants import ACK, FIN, SYN
from netstack.xio.link import PythonLink
from netstack.xio.stack import Stack

PORT, PEER_PORT = 80, 40000
FULL = b"\x02\x04\x05\xb4\x01\x03\x03\x07\x01\x01\x08\x0a"  # MSS 1460, scale 7, timestamps
SECOND = 1_000_000


@dataclass(frozen=True)
class Segment:
    """What the stack sent."""

    flags: int
    seq: int
    ack: int
    wnd: int
    data: bytes
    options: bytes
    port: int

    @property
    def stamps(self) -> tuple[int, int] | None:
        """TSval and TSecr."""
        at = self.options.find(b"\x08\x0a")
        return None if at < 0 else struct.unpack_from(">II", self.options, at + 2)


def frame(
    flags: int,
    seq: int,
    ack: int = 0,
    data: bytes = b"",
    wnd: int = 65535,
    options: bytes = b"",
    source: int = CLIENT,
    ports: tuple[int, int] = (PEER_PORT, PORT),
    mac: bytes = SERVER_MAC,
) -> bytes:
    """One frame with every checksum right and no virtio flags."""
    options += bytes(-len(options) % 4)
    tcp = bytearray(
        struct.pack(
            ">HHIIBBHHH", *ports, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, (5 + len(options) // 4) << 4, flags, wnd, 0, 0
        )
    )
    tcp += options + data
    total = checksum.total(bytes(tcp), checksum.pseudo(source, SERVER, 6, len(tcp)))
    struct.pack_into(">H", tcp, 16, checksum.finish(total))
    ip = bytearray(struct.pack(">BBHHHBBHII", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0, source, SERVER))
    struct.pack_into(">H", ip, 10, checksum.finish(checksum.total(bytes(ip))))
    return bytes(10) + mac + CLIENT_MAC + b"\x08\0" + bytes(ip) + bytes(tcp)


class Capture(PythonLink):
    def __init__(self) -> None:
        super().__init__()
        self.frames: list[bytes] = []

    def transmit(self, frame: bytes) -> None:
        self.frames.append(frame)


class Peer:
    """The other side.  `seq` and `ack` are what its next segment carries unless told otherwise."""

    def __init__(self, application: Any = None, backlog: int = 1024, listening: bool = True) -> None:
        self.now = 10 * SECOND
        self.link = Capture()
        self.stack = Stack(self.link, SERVER, SERVER_MAC, self.now, bytes(range(16)))
        self.application = application or Recorder()
        if listening:
            self.stack.listen(PORT, self.application, backlog)
        self.seq, self.ack = 5000, 0
        self.stamps: tuple[int, int] | None = None
        self.ports = (PEER_PORT, PORT)

    def send(
        self,
        flags: int,
        data: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        wnd: int = 65535,
        options: bytes = b"",
    ) -> list[Segment]:
        """Feed one segment; what is sent in answer.  `seq` and `ack` are absolute."""
        if self.stamps is not None and not options:
            options = b"\x01\x01\x08\x0a" + struct.pack(">II", *self.stamps)
        self.stack.feed(
            frame(
                flags,
                self.seq if seq is None else seq,
                self.ack if ack is None else ack,
                data,
                wnd,
                options,
                ports=self.ports,
            )
        )
        return self.take()

    def say(self, flags: int, data: bytes = b"", wnd: int = 65535) -> list[Segment]:
        """As `send`, and its place in the sequence is used up."""
        found = self.send(flags, data, wnd=wnd)
        self.seq = (self.seq + len(data) + (flags & FIN) + (flags & SYN) // SYN) & 0xFFFFFFFF
        return found

    def take(self) -> list[Segment]:
        """What was sent since the last look; every checksum is as a device that offloads expects it."""
        found = []
        for octets in self.link.frames:
            ip, tcp = octets[24:44], octets[44:]
            assert checksum.right(ip) and len(ip + tcp) == struct.unpack_from(">H", ip, 2)[0]
            assert octets[0] == 1 and struct.unpack_from("<HH", octets, 6) == (34, 16)
            assert struct.unpack_from(">H", tcp, 16)[0] == checksum.pseudo(SERVER, CLIENT, 6, len(tcp))
            source, port, seq, ack, offset, flags, wnd = struct.unpack_from(">HHIIBBH", tcp)
            assert source == self.ports[1] and octets[10:16] == CLIENT_MAC
            head = (offset >> 4) * 4
            found.append(Segment(flags, seq, ack, wnd, tcp[head:], tcp[20:head], port))
        self.link.frames.clear()
        return found

    def open(self, options: bytes = b"\x02\x04\x05\xb4", wnd: int = 65535) -> Segment:
        """The handshake; the SYN-ACK."""
        if b"\x08\x0a" in options:
            self.stamps = self.stamps or (100, 0)
            options += struct.pack(">II", *self.stamps)
        (answer,) = self.send(SYN, options=options, wnd=wnd)
        assert answer.flags == SYN | ACK and answer.ack == self.seq + 1
        self.seq += 1
        self.ack = (answer.seq + 1) & 0xFFFFFFFF
        if self.stamps is not None:
            assert answer.stamps is not None
            self.stamps = (self.stamps[0], answer.stamps[0])
        self.after = self.send(ACK, wnd=wnd)
        return answer

    def wait(self, seconds: float) -> list[tuple[float, Segment]]:
        """Let time go by; what was sent, and how many seconds after now."""
        began = self.now
        end = began + int(seconds * SECOND)
        found: list[tuple[float, Segment]] = []
        while True:
            due = self.stack.next_deadline()
            self.now = min(max(due, self.now + 1), end) if due else end
            self.stack.advance(self.now)
            found += [((self.now - began) / SECOND, segment) for segment in self.take()]
            if self.now == end:
                return found

    @property
    def connections(self) -> int:
        return int(self.stack.statistics()["connections"])
