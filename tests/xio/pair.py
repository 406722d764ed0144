"""Two stacks on one wire in one process: time, loss and order are the test's, so every run is the same.

`Wire` delivers frames after a delay; `Weather` decides by a seeded generator what is lost, doubled or delayed longer.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from typing import Any

from netstack.xio.link import PythonLink
from netstack.xio.stack import Stack
from netstack.xio.tcb import PythonApplication

SERVER = 0x0A2A0002
CLIENT = 0x0A2A0001
SERVER_MAC = b"\x02\0\0\0\0\x02"
CLIENT_MAC = b"\x02\0\0\0\0\x01"


@dataclass
class Weather:
    """What happens to frames: probabilities of loss, duplication and extra delay."""

    seed: int = 0
    loss: float = 0.0
    double: float = 0.0
    late: float = 0.0
    dice: random.Random = field(init=False)
    lost: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def delays(self) -> list[int]:
        """Extra µs of each copy that arrives."""
        if self.dice.random() < self.loss:
            self.lost += 1
            return []
        copies = [0] if self.dice.random() >= self.double else [0, 50]
        return [extra + (self.dice.randrange(3000) if self.dice.random() < self.late else 0) for extra in copies]


class End(PythonLink):
    """One end of the wire."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self.wire = wire
        self.peer: Stack | None = None

    def transmit(self, frame: bytes) -> None:
        self.wire.carry(self, frame)


class Wire:
    """Carries frames between two stacks; `run` moves the time."""

    def __init__(self, weather: Weather | None = None, delay: int = 100) -> None:
        self.now = 1_000_000
        self.weather = weather or Weather()
        self.delay = delay
        self.frames: list[bytes] = []
        self._queue: list[tuple[int, int, End, bytes]] = []
        self._count = 0
        left, right = End(self), End(self)
        self.client = Stack(left, CLIENT, CLIENT_MAC, self.now, bytes(range(16)))
        self.server = Stack(right, SERVER, SERVER_MAC, self.now, bytes(range(16, 32)))
        left.peer, right.peer = self.server, self.client
        self.client.learn(SERVER, SERVER_MAC)

    def carry(self, end: End, frame: bytes) -> None:
        self.frames.append(frame)
        for extra in self.weather.delays():
            self._count += 1
            heapq.heappush(self._queue, (self.now + self.delay + extra, self._count, end, frame))

    def run(self, seconds: float, until: Any = lambda: False) -> None:
        """Until the time is over, nothing is to come, or `until()`."""
        end = self.now + int(seconds * 1_000_000)
        while self.now < end and not until():
            times = [self._queue[0][0]] if self._queue else []
            times += [due for due in (self.client.next_deadline(), self.server.next_deadline()) if due]
            if not times:
                return
            self.now = min(max(self.now, min(times)), end)
            self.client.advance(self.now)
            self.server.advance(self.now)
            while self._queue and self._queue[0][0] <= self.now:
                _, _, link, frame = heapq.heappop(self._queue)
                assert link.peer is not None
                link.peer.feed(frame)


class Recorder(PythonApplication):
    """An application that remembers what happened to it, and sends `reply` to whoever connects."""

    def __init__(self, reply: bytes = b"", close: bool = False) -> None:
        super().__init__()
        self.reply = reply
        self.close_after = close
        self.tcb: Any = None
        self.received = bytearray()
        self.events: list[str] = []
        self.reason: int | None = None

    def opened(self, tcb: Any) -> None:
        self.tcb = tcb
        self.events.append("open")
        if self.reply:
            tcb.send_bytes(self.reply, 2 if self.close_after else 0)
        elif self.close_after:
            tcb.close()

    def data_received(self, tcb: Any, data: bytes) -> None:
        self.received += data

    def ended(self, tcb: Any) -> None:
        self.events.append("end")
        tcb.close()

    def closed(self, tcb: Any, reason: int) -> None:
        self.events.append("close")
        self.reason = reason
