"""Cheetah on XIO at one end of a wire in memory, a client on XIO at the other; the clock is the test's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from netstack.cheetah.server import Cheetah
from netstack.cheetah.store import FileStore
from netstack.xio.link import PythonLink
from netstack.xio.stack import Stack
from netstack.xio.tcb import PythonApplication, Tcb

SERVER, CLIENT = 0x0A2A0002, 0x0A2A0001
SERVER_MAC, CLIENT_MAC = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")
WALL = 1_700_001_000 * 10**9


class End(PythonLink):
    """What is sent here waits in `frames`; `lose` says which frames never arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: deque[bytes] = deque()
        self.lose: Callable[[int], bool] = lambda number: False
        self.number = 0

    def transmit(self, frame: bytes) -> None:
        self.number += 1
        if not self.lose(self.number):
            self.frames.append(frame)


class Client(PythonApplication):
    """Collects what each connection receives."""

    def __init__(self) -> None:
        super().__init__()
        self.received: dict[Tcb, bytearray] = {}
        self.open: set[Tcb] = set()
        self.ends: set[Tcb] = set()
        self.reasons: dict[Tcb, int] = {}

    def opened(self, tcb: Tcb) -> None:
        self.open.add(tcb)

    def data_received(self, tcb: Tcb, data: bytes) -> None:
        self.received[tcb] += data

    def ended(self, tcb: Tcb) -> None:
        self.ends.add(tcb)

    def closed(self, tcb: Tcb, reason: int) -> None:
        self.reasons[tcb] = reason


class Wire:
    """Both stacks, and what carries frames between them."""

    def __init__(self, store: FileStore) -> None:
        self.now = 1_000_000
        self.to_client, self.to_server = End(), End()
        self.cheetah = Cheetah(store, 0x1234567890ABCDEF, WALL)
        self.server = Stack(self.to_client, SERVER, SERVER_MAC, self.now, b"s" * 16)
        self.server.listen(80, self.cheetah)
        self.client = Client()
        self.stack = Stack(self.to_server, CLIENT, CLIENT_MAC, self.now, b"c" * 16)
        self.stack.learn(SERVER, SERVER_MAC)

    def run(self) -> None:
        """Carry frames until both ends are quiet."""
        while self.to_server.frames or self.to_client.frames:
            self.cheetah.tick(WALL + (self.now - 1_000_000) * 1000)
            while self.to_server.frames:
                self.server.feed(self.to_server.frames.popleft())
            while self.to_client.frames:
                self.stack.feed(self.to_client.frames.popleft())

    def advance(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass; timers run."""
        end = self.now + int(seconds * 1_000_000)
        while self.now < end:
            self.now = min(end, self.now + int(step * 1_000_000))
            self.server.advance(self.now)
            self.stack.advance(self.now)
            self.run()

    def connect(self) -> Tcb:
        """An established connection."""
        tcb = self.stack.connect(self.client, SERVER, 80)
        self.client.received[tcb] = bytearray()
        self.client.open.discard(tcb)  # it may be one that was used before
        self.client.ends.discard(tcb)
        self.client.reasons.pop(tcb, None)
        self.run()
        for _ in range(100):
            if tcb in self.client.open:
                return tcb
            self.advance(0.5)
        raise AssertionError("no connection")

    def ask(self, tcb: Tcb, data: bytes) -> bytes:
        """Send `data`, and what came back since the last time."""
        tcb.send_bytes(data)
        self.run()
        self.advance(0.2)  # delayed acknowledgements
        return self.take(tcb)

    def take(self, tcb: Tcb) -> bytes:
        """What has come since the last time."""
        received = bytes(self.client.received[tcb])
        self.client.received[tcb].clear()
        return received
