"""The network edge: what xokd uses of the TAP, steering and packet rings.

    net = NetEdge.open("xok0", ["10.42.0.1/24"], without=frozenset({"tcx"}))
    got = net.grant_queue(env)                  a TAP queue for an environment that xokd's launcher confined
    got = net.grant_ring(env)                   a packet ring for any other, or where eBPF is unavailable
    net.set_inverse(env, mac, addresses)        what it may send; nothing before this
    number = net.insert_filter(table, env, grant, wire)
    table.remove(env, number);  net.sync(table)
    net.revoke(env)                             at once nothing goes to it or comes from it
    net.release(env)                            once it is dead: its queue is drained and may be given away again

Two ways to run, decided when it is opened (`net.engine`):

* "ebpf": the host's kernel classifies.  xokd touches only queue 0, where packets for rings arrive.
* "portable": one queue, xokd's own; `pump` classifies each packet and puts it into the owner's ring.

NET-1  Ports, not environments, are what verdicts name.  A port is used again only after `release`.
NET-2  A queue is given away again only after its holder is dead and it is drained (TAP-1, TAP-2).
NET-3  `pump` is bounded: at most PUMP packets in, at most a turn of each ring out.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from xok_host.abi.errors import Exists, LimitReached, NotAllowed, NotFound
from xok_host.abi.pktring import RING_BYTES
from xok_host.host.steer import Steering, Unavailable
from xok_host.host.tap import FRAME_BYTES, MAX_QUEUES, VNET_BYTES, Tap
from xok_host.kernel.dpf.inverse import Sender
from xok_host.kernel.dpf.maps import MAX_PORTS
from xok_host.kernel.dpf.pktring import KernelPacketRing
from xok_host.kernel.dpf.table import FilterTable

PUMP: Final = 256
"""Packets read from queue 0 in one turn."""
_SEALS: Final = 0x1 | 0x2 | 0x4
"""F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW"""
_F_ADD_SEALS: Final = 1033


@dataclass(frozen=True, slots=True)
class GrantedQueue:
    """A TAP queue.  `fd` is a duplicate for the environment; the caller passes it on and closes its own copy."""

    fd: int
    queue: int
    port: int


@dataclass(frozen=True, slots=True)
class GrantedRing:
    """A packet ring.  `fd` is its memory, `doorbell` the environment's end of a socket: one byte wakes the other side.

    The caller passes both on and closes its own copies."""

    fd: int
    doorbell: int
    port: int


@dataclass(slots=True)
class _Receiver:
    port: int
    queue: int
    """0 for a ring: its packets come through xokd's own queue."""
    ring: KernelPacketRing | None = None
    doorbell: socket.socket | None = None
    memory: mmap.mmap | None = None
    revoked: bool = False


class NetEdge:
    """One TAP with all that hangs on it.  `open` makes it."""

    def __init__(self, tap: Tap, steering: Steering | None, why_portable: str) -> None:
        self.tap = tap
        self.steering = steering
        self.why_portable = why_portable
        """Why eBPF is not used; empty if it is."""
        self.table: FilterTable | None = None
        self._receivers: dict[int, _Receiver] = {}
        self._by_port: dict[int, _Receiver] = {}
        self._free_queues: list[int] = []
        self._free_ports: list[int] = []
        self._next_port = 0
        self._buffer = bytearray(VNET_BYTES + FRAME_BYTES)
        self.received = 0
        self.unclaimed = 0
        self.unsent = 0
        """Packets from rings that the TAP did not take."""

    @classmethod
    def open(
        cls,
        tap_name: str,
        host_addresses: Iterable[str] = (),
        without: Iterable[str] = (),
        mtu: int = 1500,
    ) -> NetEdge:
        """Create or adopt the TAP and put the programs on it.  `without` are the features to do without.

        Raises OSError if the TAP cannot be had; that eBPF cannot be had is no error.
        """
        without = frozenset(without)
        tap = Tap(tap_name)
        try:
            try:
                steering, why = Steering(tap, without), ""
                steering.set_sender(0, None, trusted=True)
            except Unavailable as missing:
                steering, why = None, str(missing)
            tap.start(host_addresses, mtu)
        except BaseException:
            tap.close()
            raise
        return cls(tap, steering, why)

    @property
    def engine(self) -> str:
        return "portable" if self.steering is None else "ebpf"

    # ---- receivers

    def grant_queue(self, env: int) -> GrantedQueue:
        """Raises NotAllowed without eBPF (use a ring then), Exists, LimitReached."""
        if self.steering is None:
            raise NotAllowed(f"queues need eBPF: {self.why_portable}")
        self._absent(env)
        if self._free_queues:
            queue = self._free_queues.pop()
        elif len(self.tap.queues) < MAX_QUEUES:
            queue = self.tap.add_queue()
        else:
            raise LimitReached(f"{MAX_QUEUES} queues")
        try:
            port = self._take_port()
            fd = self.tap.duplicate(queue)
        except BaseException:
            self._free_queues.append(queue)
            raise
        self.steering.reset_sent(queue)
        self.steering.set_port(port, queue)
        self._add(env, _Receiver(port, queue))
        return GrantedQueue(fd, queue, port)

    def grant_ring(self, env: int) -> GrantedRing:
        """Raises Exists, LimitReached."""
        self._absent(env)
        port = self._take_port()
        fd = os.memfd_create(f"xok-packets-{env}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.posix_fallocate(fd, 0, RING_BYTES)
        memory = mmap.mmap(fd, RING_BYTES)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        mine.setblocking(False)
        ring = KernelPacketRing(memoryview(memory))
        if self.steering is not None:
            self.steering.set_port(port, 0)
        self._add(env, _Receiver(port, 0, ring, mine, memory))
        return GrantedRing(fd, theirs.detach(), port)

    def port(self, env: int) -> int:
        """Raises NotFound if the environment has no network."""
        return self._receiver(env).port

    def set_inverse(self, env: int, mac: bytes, addresses: Iterable[str]) -> None:
        """Let an environment send from a MAC and IP addresses, in place of what it might before."""
        receiver = self._receiver(env)
        if receiver.revoked:
            raise NotAllowed("the environment's network was revoked")
        sender = Sender.of(mac, addresses)
        if receiver.ring is not None:
            receiver.ring.sender = sender
        elif self.steering is not None:
            self.steering.set_sender(receiver.queue, sender)

    def revoke(self, env: int) -> None:
        """Cut an environment off at once.  It may still live, and what it holds is not used for anybody else."""
        receiver = self._receiver(env)
        receiver.revoked = True
        if self.steering is not None:
            self.steering.set_port(receiver.port, None)
            if receiver.queue:
                self.steering.set_sender(receiver.queue, None)
        if receiver.ring is not None:
            receiver.ring.sender = None
            receiver.ring.broken = True

    def release(self, env: int) -> None:
        """Take back what a dead environment held.  The caller knows that no process of it lives any more."""
        receiver = self._receiver(env)
        if not receiver.revoked:
            self.revoke(env)
        del self._receivers[env]
        del self._by_port[receiver.port]
        if receiver.queue:
            self.tap.drain(receiver.queue)
            self._free_queues.append(receiver.queue)
        if receiver.ring is not None and receiver.memory is not None and receiver.doorbell is not None:
            receiver.doorbell.close()
            receiver.ring.release()
            receiver.memory.close()
        self._free_ports.append(receiver.port)

    # ---- filters and packets

    def sync(self, table: FilterTable) -> None:
        """Make the filters of a table hold.  Call after every insertion, removal and revocation."""
        self.table = table
        if self.steering is not None:
            self.steering.sync(table.trie)
        else:
            table.trie.drain()

    def insert_filter(self, table: FilterTable, env: int, grant: int, wire: bytes) -> int:
        """Bind the packets of a packed filter to an environment and make it hold.  Returns the filter's id.

        Raises what `FilterTable.insert` raises, and LimitReached if the host's kernel cannot take one more; the filter
        is not there then.
        """
        number = table.insert(env, grant, wire, self.port(env))
        try:
            self.sync(table)
        except OSError as refusal:
            table.remove(env, number)
            table.trie.forget_unused()
            self.sync(table)
            raise LimitReached(f"the host's kernel does not take the filter: {refusal}") from None
        return number

    def fileno(self) -> int:
        """Readable: call `pump`."""
        return self.tap.queues[0]

    def doorbells(self) -> dict[int, int]:
        """descriptor → environment: readable: call `pump_ring`."""
        return {
            receiver.doorbell.fileno(): env
            for env, receiver in self._receivers.items()
            if receiver.doorbell is not None
        }

    def pump(self) -> int:
        """Read what waits in xokd's own queue and put it into the owners' rings.  Returns how many packets."""
        woken: dict[int, _Receiver] = {}
        view = memoryview(self._buffer)
        count = 0
        while count < PUMP:
            try:
                length = os.readv(self.tap.queues[0], [self._buffer])
            except BlockingIOError:
                break
            count += 1
            if length < VNET_BYTES:
                continue
            port = -1 if self.table is None else self.table.port(view[VNET_BYTES:length])
            receiver = self._by_port.get(port)
            if receiver is None or receiver.ring is None:
                self.unclaimed += 1
                continue
            if receiver.ring.deliver(view[:length]):
                woken[port] = receiver
        for receiver in woken.values():
            assert receiver.ring is not None
            if receiver.ring.wants_doorbell():
                _ring_bell(receiver.doorbell)
        self.received += count
        return count

    def pump_ring(self, env: int) -> bool:
        """Send a turn of what an environment put into its ring.  True if more waits: call again after the others.

        The doorbell stays readable for as long as more waits."""
        receiver = self._receiver(env)
        ring = receiver.ring
        if ring is None:
            raise NotFound(f"environment {env} has no packet ring")
        self._send(ring)
        if ring.pending():
            return True
        if receiver.doorbell is not None:
            _silence(receiver.doorbell)
        # What came, doorbell and all, between the two lines above.
        self._send(ring)
        return ring.pending()

    def _send(self, ring: KernelPacketRing) -> None:
        for packet in ring.take():
            try:
                os.write(self.tap.queues[0], packet)
            except OSError:  # it is malformed in a way that only the host minds, or the TAP is down or full
                self.unsent += 1

    def statistics(self) -> dict[str, Any]:
        """Counters of the edge and of each environment that has the network."""
        out: dict[str, Any] = {
            "tap": self.tap.name,
            "engine": self.engine,
            "attachment": self.steering.attachment if self.steering else "",
            "why_portable": self.why_portable,
            "queues": len(self.tap.queues),
            "unclaimed": self.unclaimed,
            "unsent": self.unsent,
            "environments": {},
        }
        if self.steering is not None:
            out["unclaimed"] += self.steering.unclaimed()[0]
        for env, receiver in self._receivers.items():
            entry: dict[str, Any] = {"port": receiver.port, "queue": receiver.queue, "revoked": receiver.revoked}
            if self.steering is not None:
                counters = self.steering.port_counters(receiver.port)
                entry |= {"packets": counters.packets, "bytes": counters.bytes, "dropped": counters.dropped}
            if receiver.ring is not None:
                entry["ring"] = receiver.ring.statistics()
                entry.setdefault("packets", receiver.ring.delivered)
            elif self.steering is not None:
                sent = self.steering.sent(receiver.queue)
                entry["sent"] = {reason.name.lower(): count for reason, count in sent.items() if count}
            out["environments"][env] = entry
        return out

    def close(self) -> None:
        for env in list(self._receivers):
            receiver = self._receivers.pop(env)
            if receiver.ring is not None and receiver.memory is not None and receiver.doorbell is not None:
                receiver.doorbell.close()
                receiver.ring.release()
                receiver.memory.close()
        self._by_port.clear()
        if self.steering is not None:
            self.steering.close()
        self.tap.close()

    # ---- inside

    def _absent(self, env: int) -> None:
        if env in self._receivers:
            raise Exists(f"environment {env} has the network already")

    def _receiver(self, env: int) -> _Receiver:
        found = self._receivers.get(env)
        if found is None:
            raise NotFound(f"environment {env} has no network")
        return found

    def _take_port(self) -> int:
        if self._free_ports:
            return self._free_ports.pop()
        if self._next_port >= MAX_PORTS:
            raise LimitReached(f"{MAX_PORTS} environments with the network")
        self._next_port += 1
        return self._next_port - 1

    def _add(self, env: int, receiver: _Receiver) -> None:
        self._receivers[env] = receiver
        self._by_port[receiver.port] = receiver


def _ring_bell(doorbell: socket.socket | None) -> None:
    """Wake an environment.  A full socket has woken it already."""
    if doorbell is None:
        return
    try:
        doorbell.send(b"\1", socket.MSG_DONTWAIT)
    except OSError as failure:
        if failure.errno not in (errno.EAGAIN, errno.ECONNREFUSED, errno.EPIPE, errno.ENOTCONN, errno.ECONNRESET):
            raise


def _silence(doorbell: socket.socket) -> None:
    """Take the rings of a doorbell off; bounded, whoever rings meanwhile."""
    for _ in range(PUMP):
        try:
            if not doorbell.recv(64, socket.MSG_DONTWAIT):
                return
        except OSError:
            return
