"""A small server on a real TAP, in a child process, for the host's own TCP to talk to.

`TapServer` makes the TAP (with eBPF and a queue for the child, or without and a packet ring) and forks.  The child runs
a Stack, with an `Owner` for all that is not TCP, over the link that an environment would get, or a `FaultyLink`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from netstack.wire import checksum
from netstack.xio.links import QueueLink, open_link
from netstack.xio.owner import Owner
from netstack.xio.stack import Stack
from netstack.xio.taplink import clock_us
from netstack.xio.tcb import PythonApplication
from xok_host.abi.dpf import wildcard
from xok_host.host.net import NetEdge
from xok_host.kernel.dpf.table import FilterTable

HOST = "10.42.0.1"
ADDRESS = "10.42.0.2"
NUMBER = 0x0A2A0002
MAC = bytes.fromhex("02580a2a0002")
ECHO, SINK, SOURCE, STATISTICS, ABORT, SLOW, GREET = 7, 9, 19, 15, 13, 21, 23
SEND_FIN = 2
MOST_UNSENT = 500_000


def octets(size: int) -> bytes:
    return random.Random(size).randbytes(size)


class Echo(PythonApplication):
    """Sends back what it gets.  What was not sent yet is counted as held, so that the window shrinks."""

    def opened(self, tcb: Any) -> None:
        tcb.context = 0

    def data_received(self, tcb: Any, data: bytes) -> None:
        tcb.send_bytes(data)
        if tcb.unsent() > MOST_UNSENT:
            tcb.hold(len(data))
            tcb.context += len(data)

    def sent(self, tcb: Any) -> None:
        if tcb.context:
            held, tcb.context = tcb.context, 0
            tcb.release(held)


class Sink(PythonApplication):
    """Answers the end of what it got with its length and digest."""

    def opened(self, tcb: Any) -> None:
        tcb.context = [0, hashlib.sha256()]

    def data_received(self, tcb: Any, data: bytes) -> None:
        tcb.context[0] += len(data)
        tcb.context[1].update(data)

    def ended(self, tcb: Any) -> None:
        tcb.send_bytes(f"{tcb.context[0]} {tcb.context[1].hexdigest()}".encode(), SEND_FIN)


class Source(PythonApplication):
    """Asked for a number, in a line, sends as many octets and closes."""

    def data_received(self, tcb: Any, data: bytes) -> None:
        tcb.send_bytes(octets(int(data)), SEND_FIN)


class Statistics(PythonApplication):
    def __init__(self, events: list[Any]) -> None:
        super().__init__()
        self.stack: Any = None
        self.events = events

    def opened(self, tcb: Any) -> None:
        told = {**self.stack.statistics(), "events": self.events}
        tcb.send_bytes(json.dumps(told).encode(), SEND_FIN)


class Abort(PythonApplication):
    def data_received(self, tcb: Any, data: bytes) -> None:
        tcb.abort()


class Slow(Sink):
    """Holds all that it gets and lets go of it 20 ms later: its window closes again and again."""

    def data_received(self, tcb: Any, data: bytes) -> None:
        super().data_received(tcb, data)
        tcb.hold(len(data))
        if len(tcb.context) == 2:
            tcb.context.append(0)
            tcb.set_alarm(tcb.endpoint.now + 20_000)
        tcb.context[2] += len(data)

    def alarm(self, tcb: Any) -> None:
        tcb.release(tcb.context.pop())


class Greet(PythonApplication):
    """Speaks first, and notes how connections end."""

    def __init__(self, events: list[Any]) -> None:
        super().__init__()
        self.events = events

    def opened(self, tcb: Any) -> None:
        self.events.append("open")
        tcb.send_bytes(b"hello")

    def ended(self, tcb: Any) -> None:
        self.events.append("end")
        tcb.close()

    def closed(self, tcb: Any, reason: int) -> None:
        self.events.append(f"close {reason}")


class FaultyLink(QueueLink):
    """A TAP queue that loses frames both ways, by a seed."""

    def __init__(self, fd: int, loss: float, seed: int) -> None:
        super().__init__(fd)
        self.loss = loss
        self.dice = random.Random(seed)

    def receive(self, buffer: memoryview) -> int:
        while size := super().receive(buffer):
            if self.dice.random() >= self.loss:
                return size
        return 0

    def transmit(self, frame: bytes) -> None:
        if self.dice.random() >= self.loss:
            super().transmit(frame)


def serve(link: Any, stopped: int) -> None:
    """The child: until `stopped` is readable."""
    stack = Stack(link, NUMBER, MAC, clock_us(), os.urandom(16))
    owner = Owner(MAC, [NUMBER])

    def other(frame: bytes) -> None:
        answer = owner.respond(frame, stack.now)
        if answer is not None:
            stack.transmit_bytes(answer)

    stack.set_other(other)
    events: list[str] = []
    statistics = Statistics(events)
    statistics.stack = stack
    applications = {
        ECHO: Echo(),
        SINK: Sink(),
        SOURCE: Source(),
        STATISTICS: statistics,
        ABORT: Abort(),
        SLOW: Slow(),
        GREET: Greet(events),
    }
    for port, application in applications.items():
        stack.listen(port, application)
    while True:
        stack.advance(clock_us())
        if not link.pump(stack, 256) and link.wait(stopped, stack.next_deadline(), 0):
            break
    stack.shut_down()


class TapServer:
    """The TAP, and the child that serves on it; a context manager."""

    def __init__(
        self,
        tap_name: str,
        ring: bool = False,
        mtu: int = 1500,
        run: Callable[[Any, int], None] = lambda env, stopped: serve(open_link(env), stopped),
    ) -> None:
        """`run` is what the child does, with an environment and the descriptor that says when to stop."""
        self.edge = NetEdge.open(tap_name, [f"{HOST}/24"], {"ebpf"} if ring else (), mtu)
        self._ours, self._theirs = socket.socketpair()
        self._pumping: threading.Thread | None = None
        if ring:
            granted = self.edge.grant_ring(1)
            env = SimpleNamespace(tap=SimpleNamespace(fd=granted.doorbell), extra_fds={"fd:packets": granted.fd})
            port = granted.port
        else:
            queue = self.edge.grant_queue(1)
            env = SimpleNamespace(tap=SimpleNamespace(fd=queue.fd), extra_fds={})
            port = queue.port
        self.edge.set_inverse(1, MAC, [ADDRESS])
        table = FilterTable()
        grant = table.own_address(ADDRESS)
        for wanted in wildcard(ADDRESS):
            table.insert(1, grant, wanted.pack(), port)
        self.edge.sync(table)
        self.child = os.fork()
        if not self.child:
            status = 1
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(100)
                run(env, self._theirs.fileno())
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        for fd in (env.tap.fd, *env.extra_fds.values()):
            os.close(fd)
        self._theirs.close()
        if ring:
            self._pumping = threading.Thread(target=self._pump)
            self._pumping.start()

    def _pump(self) -> None:
        """What xokd does for rings."""
        doorbell = next(iter(self.edge.doorbells()))
        while True:
            ready, _, _ = select.select([self._ours, self.edge.fileno(), doorbell], [], [])
            if self._ours in ready:
                return
            self.edge.pump()
            while self.edge.pump_ring(1):
                pass

    def close(self) -> None:
        """End the child, which must end well."""
        self._ours.shutdown(socket.SHUT_WR)
        _, status = os.waitpid(self.child, 0)
        if self._pumping is not None:
            self._pumping.join()
        self._ours.close()
        self.edge.close()
        assert status == 0

    def __enter__(self) -> TapServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self, port: int, timeout: float = 60.0) -> socket.socket:
        return socket.create_connection((ADDRESS, port), timeout)

    def statistics(self) -> dict[str, Any]:
        with self.connect(STATISTICS) as asking:
            return json.loads(read_all(asking))  # type: ignore[no-any-return]


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def ping(size: int) -> None:
    """One echo request with `size` octets must come back as it is."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as pinging:
        pinging.settimeout(5)
        message = struct.pack(">BBHHH", 8, 0, 0, 77, size) + octets(size)
        pinging.sendto(
            message[:2] + struct.pack(">H", checksum.finish(checksum.total(message))) + message[4:], (ADDRESS, 0)
        )
        reply = pinging.recv(2000)[20:]
        assert reply[0] == 0 and reply[4:] == message[4:]
