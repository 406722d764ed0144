"""The call loop: carries entries from the environments' rings to the kernel and answers back, in one thread.

CL-1  One turn takes at most `TURN_ENTRIES` entries from a ring, and no further one after `TURN_SECONDS`, and gives
      every ring that has some its turn before any gets a second one: a flood costs its own environment only.
CL-2  An entry is copied out of shared memory before it is looked at (CH-1); nothing is read twice.
CL-3  It never waits for a libOS.  Answers go into memory that is known to have room; a libOS that waits in its ring is
      woken there, for any other the doorbell is sent on xokd's own end of the socket without waiting, and a doorbell
      that does not fit is not needed.
CL-4  Cookies are the libOS's and mean nothing here: the kernel sees the loop's own numbers in their place.
CL-5  A libOS rings by adding to its eventfd, which is watched for edges and never read: what the libOS does to it is
      its own affair.  A message on the socket rings as well.

Order of calls: `add` an environment before its process starts; `turn` for ever; `remove` when the process is dead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable

import cython

from xok_host.abi.calls import CallNumber, Event
from xok_host.abi.channel import Completion, Entry, KernelRing
from xok_host.abi.client import CHUNK_MESSAGE, DOORBELL
from xok_host.abi.errors import LimitReached, XokError
from xok_host.host.epoll import Epoll
from xok_host.host.memory import Shared
from xok_host.kernel.env import MAX_LOCKS

if cython.compiled:
    from cython.cimports.xok_host.host.epoll import monotonic_ns
else:
    from xok_host.host.epoll import monotonic_ns

log = logging.getLogger("xok.callloop")

TURN_ENTRIES = 64
"""Entries of one environment in one turn."""
TURN_SECONDS = 0.005
"""After which a turn ends early: 64 of the most expensive entries would keep the others waiting."""
_TURN_ENTRIES = cython.declare(cython.int, TURN_ENTRIES)
_TURN_NS = cython.declare(cython.longlong, int(TURN_SECONDS * 1e9))
_CHUNK_MAP = cython.declare(cython.int, int(CallNumber.CHUNK_MAP))
MAX_EVENTS = 2 * MAX_LOCKS + 64
"""Events that may wait for room in one completion ring; more end the environment.  What others do to it cannot be that
much: one event of each kind waits for each lock, and it can hold no further locks while it takes no answers."""


class Kernel:
    """What the loop asks of the kernel: a base for `Turns`, and for a kernel of a few lines."""

    def execute(self, env: cython.long, entry: Entry) -> Completion | None:
        """Carry out one entry; None when it completes later, through the loop's `complete`."""
        raise NotImplementedError

    def chunk_descriptor(self, chunk: int, writable: bool) -> int:
        """The memory file behind a CHUNK_MAP that was allowed; the kernel's side keeps owning it."""
        raise NotImplementedError

    def before_turn(self) -> None:
        """Something is ready: take the time."""

    def after_turn(self) -> None:
        """Everything that was ready has been carried out: start the disk's requests, hand out completions."""


class _Client:
    __slots__ = ("bell", "env", "events", "gone", "memory", "ready", "ring", "sock", "to_wake")

    def __init__(self, env: int, sock: socket.socket, bell: int, memory: Shared) -> None:
        self.env = env
        self.sock = sock
        self.bell = bell
        self.memory = memory
        self.ring = KernelRing(memory.memory)
        self.ready = False
        self.to_wake = False
        self.events: dict[tuple[Event, int], int] = {}
        """(event, r0) to r1, in order, of those that wait for room; of equal ones the last."""
        self.gone = False


class _Pending:
    """An entry that the kernel has, and the cookie that its libOS knows it by."""

    __slots__ = ("client", "cookie", "entry")

    def __init__(self, client: _Client, entry: Entry, cookie: cython.ulonglong) -> None:
        self.client = client
        self.entry = entry
        self.cookie = cookie


class LoopStatistics:
    __slots__ = ("crossings", "entries", "faults", "refusals", "turns")

    def __init__(self) -> None:
        self.crossings = self.entries = self.refusals = self.turns = self.faults = 0


class CallLoop:
    """See the module.  `on_flood(env)` is called for an environment that does not take its events."""

    def __init__(self, kernel: Kernel, on_flood: Callable[[int], None]) -> None:
        self._kernel = kernel
        self._on_flood = on_flood
        self._epoll = Epoll()
        self._clients: dict[int, _Client] = {}
        self._by_fd: dict[int, _Client] = {}
        self._handlers: dict[int, Callable[[], None]] = {}
        self._ready: list[_Client] = []
        self._to_wake: list[_Client] = []
        self._pending: dict[int, _Pending] = {}
        self._next_token = 1
        self.counts = LoopStatistics()

    # ---- who is served

    def add(self, env: int, sock: socket.socket, bell: int, memory: Shared) -> None:
        """Serve `env`: xokd's end of its socket, its doorbell (an eventfd), and the memory of its ring."""
        sock.setblocking(False)
        client = _Client(env, sock, bell, memory)
        self._clients[env] = client
        self._by_fd[sock.fileno()] = self._by_fd[bell] = client
        self._epoll.register(sock.fileno())
        self._epoll.register(bell, True)

    def remove(self, env: int) -> None:
        """The environment is dead: completions that still come for it go nowhere."""
        client = self._clients.pop(env, None)
        if client is None:
            return
        if not client.gone:
            self._hang_up(client)
        client.sock.close()
        os.close(client.bell)
        for token in [token for token, pending in self._pending.items() if pending.client is client]:
            del self._pending[token]
        client.ring.release()
        client.memory.close()

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` in a turn whenever `fd` is readable (the disk, trio's wake-up, signals)."""
        self._handlers[fd] = handler
        self._epoll.register(fd)

    def unwatch(self, fd: int) -> None:
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def post(self, env: int, event: Event, r0: int = 0, r1: int = 0) -> None:
        """Tell an environment that something happened."""
        client = self._clients.get(env)
        if client is None or client.gone:
            return
        if client.events or not client.ring.event(event, r0, r1):
            client.events.pop((event, r0), None)
            client.events[event, r0] = r1
            if len(client.events) > MAX_EVENTS:
                client.events.clear()
                self._on_flood(env)
                return
        self._wake(client)

    def close(self) -> None:
        for env in list(self._clients):
            self.remove(env)
        self._epoll.close()

    # ---- turns

    def turn(self, seconds: cython.double = -1) -> None:
        """Serve what is ready, waiting at most `seconds` for something (less than 0: for ever)."""
        client: _Client | None
        fd: cython.int
        count: cython.int = self._epoll.wait(0 if self._ready else seconds)
        self.counts.turns += 1
        self._kernel.before_turn()
        for number in range(count):
            fd = self._epoll.ready(number)
            client = self._by_fd.get(fd)
            if client is not None:
                if fd == client.bell:
                    self.counts.crossings += 1
                    self._make_ready(client)
                else:
                    self._message(client)
            elif fd in self._handlers:
                self._handlers[fd]()
        if self._ready:
            self._serve_all()
        self._kernel.after_turn()
        if self._to_wake:
            self._wake_all()

    def _message(self, client: _Client) -> None:
        try:
            # One is the rule; what is left of a burst keeps the socket readable for the next turn.
            if not client.sock.recv(16):
                self._hang_up(client)
                return
        except OSError:
            self._hang_up(client)
            return
        self.counts.crossings += 1
        self._make_ready(client)

    def _hang_up(self, client: _Client) -> None:
        """The libOS closed its socket; its process, if it lives, gets nothing more."""
        client.gone = True
        for fd in (client.sock.fileno(), client.bell):
            self._epoll.unregister(fd)
            del self._by_fd[fd]

    def _make_ready(self, client: _Client) -> None:
        if not client.ready:
            client.ready = True
            self._ready.append(client)

    def _serve_all(self) -> None:
        """Everybody who is ready, once."""
        client: _Client
        clients, self._ready = self._ready, []
        for client in clients:
            client.ready = False
            if not client.gone:
                self._serve(client)

    def _serve(self, client: _Client) -> None:
        """One client's share of a turn (CL-1)."""
        if client.events:
            self._post_events(client)
        entry: Entry | None
        began: cython.longlong = monotonic_ns()
        for _ in range(_TURN_ENTRIES):
            entry = client.ring.take()
            if entry is None:
                return
            self._carry_out(client, entry)
            if client.gone or not client.ring.pending():
                return
            if monotonic_ns() - began > _TURN_NS:
                break
        self._make_ready(client)

    def _post_events(self, client: _Client) -> None:
        """Those that waited for room."""
        while client.events:
            event, r0 = key = next(iter(client.events))
            if not client.ring.event(event, r0, client.events[key]):
                break
            del client.events[key]
            self._wake(client)

    def _carry_out(self, client: _Client, entry: Entry) -> None:
        answer: Completion | None
        self.counts.entries += 1
        cookie: cython.ulonglong = entry.cookie
        entry.cookie = self._next_token
        self._next_token += 1
        try:
            answer = self._kernel.execute(client.env, entry)
        except Exception:
            # A fault of xokd's own.  Transactions are applied all or nothing, so the others can go on.
            log.exception("call %d of environment %d failed inside xokd", entry.number, client.env)
            self.counts.faults += 1
            answer = Completion(entry.cookie, XokError.code, 0, 0, b"xokd failed; its log says how")
        if answer is None:
            self._pending[entry.cookie] = _Pending(client, entry, cookie)
        else:
            self._answer(client, entry, cookie, answer)

    def complete(self, answer: Completion) -> None:
        """Answer an entry that `execute` did not answer, some time after it returned."""
        pending: _Pending | None = self._pending.pop(answer.cookie, None)
        if pending is not None:
            self._answer(pending.client, pending.entry, pending.cookie, answer)

    def _answer(self, client: _Client, entry: Entry, cookie: cython.ulonglong, answer: Completion) -> None:
        entry.cookie = cookie
        code: cython.int = answer.code
        data = answer.data
        if entry.number == _CHUNK_MAP and not code and not client.gone:
            if not self._send_chunk(client, entry.a0, answer.r0 != 0):
                code, data = LimitReached.code, b"the environment does not read its socket"
        if code:
            self.counts.refusals += 1
        if not client.gone:
            client.ring.complete(entry, code, answer.r0, answer.r1, data)
            self._wake(client)

    def _send_chunk(self, client: _Client, chunk: int, writable: bool) -> bool:
        """Hand the chunk's descriptor over, ahead of the completion; False if the socket has no room."""
        descriptor = self._kernel.chunk_descriptor(chunk, writable)
        message = CHUNK_MESSAGE.pack(2, writable, 0, chunk)
        try:
            socket.send_fds(client.sock, [message], [descriptor], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            pass  # it hung up, which the loop notices by itself
        return True

    def _wake(self, client: _Client) -> None:
        if not client.to_wake:
            client.to_wake = True
            self._to_wake.append(client)

    def _wake_all(self) -> None:
        """Those who have answers or events."""
        client: _Client
        clients, self._to_wake = self._to_wake, []
        for client in clients:
            client.to_wake = False
            if not client.gone and not client.ring.wake():
                with contextlib.suppress(OSError):
                    client.sock.send(DOORBELL, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Mailbox:
    """Lets other threads have functions run in the loop's turn: what trio's guest mode asks for."""

    def __init__(self, loop: CallLoop) -> None:
        self._queue: deque[Callable[[], object]] = deque()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.watch(self._event, self._deliver)

    def post(self, function: Callable[[], object]) -> None:
        self._queue.append(function)
        os.eventfd_write(self._event, 1)

    def _deliver(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        for _ in range(len(self._queue)):
            self._queue.popleft()()

    def close(self) -> None:
        os.close(self._event)
