"""A libOS's connection to xokd: the environment it runs in.

The launcher's child builds one `Environment` from the single socket it was given, before it imports the libOS.  The
first message on that socket describes the environment and carries the descriptors of the call ring, of the doorbell and
of xokd's tables.  The libOS rings by adding to the doorbell (an eventfd); xokd's answer wakes the thread that waits in
the ring, or rings by a one-byte message on the socket, which carries descriptors of arena chunks as well.

Typical use:

    result = env.call("findfree", dev, hint, 16)            # one crossing, waits for the answer
    with env.batch() as batch:                              # one crossing for all
        batch.add("transact", cap=cap, data=ops)
        batch.add("writebackv", dev, data=extents)
    for completion in batch.results: ...

`call` waits in the caller's thread.  An event loop uses `submit`, `fileno` and `dispatch`: it never waits then.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cython

from xok_host.abi import channel as ch
from xok_host.abi import errors
from xok_host.abi.calls import CallNumber, EntryFlag, Event
from xok_host.abi.calltable import BY_NAME
from xok_host.abi.channel import ClientRing, Completion
from xok_host.abi.types import BLOCK, CHUNK_BYTES, page_chunk, page_slot
from xok_host.abi.views import CountersView, FreeMapView, RegistryView

if cython.compiled:
    from cython.cimports.xok_host.abi import futex
else:
    from xok_host.abi import futex

DOORBELL = b"\1"
"""A message of xokd's: answers or events are there."""
PATIENCE_NS = 1_000_000_000
"""Asleep in the ring, it looks so often whether xokd is alive."""
CHUNK_MESSAGE = struct.Struct("<BBHI")
"""2, writable, 0, chunk number; one descriptor comes with it."""
START_BYTES = 65536
MAX_DESCRIPTORS = 16
LEAST_ROOM = 256
"""Bytes for results that every call has."""
_LEAST_ROOM = cython.declare(cython.long, LEAST_ROOM)
_COMPLETIONS = cython.declare(cython.long, ch.COMPLETIONS)
_NUMBERS: dict[str, int] = {name: int(call.number) for name, call in BY_NAME.items()}
_CHUNK_MAP = cython.declare(cython.int, int(CallNumber.CHUNK_MAP))
_ONE_DESCRIPTOR = socket.CMSG_SPACE(4)


@dataclass(slots=True, frozen=True)
class CapabilityInfo:
    """A capability as its holder sees it: `index` is what calls take."""

    index: int
    kind: str
    id: int
    rights: int
    name: str = ""


@dataclass(slots=True)
class TapInfo:
    """The environment's own TAP queue: O_NONBLOCK, a virtio header before each frame."""

    fd: int
    queue: int
    mac: bytes
    addresses: tuple[str, ...]
    prefix: int
    mtu: int


@dataclass(slots=True)
class Batch:
    """Entries for one crossing.  With `chain`, an entry starts only if the one before succeeded."""

    env: Environment
    chain: bool = False
    results: list[Completion] = field(default_factory=list)
    _cookies: list[int] = field(default_factory=list)

    def add(self, name: str, *scalars: int, cap: int = 0, data: bytes = b"", out_bytes: int = 0) -> None:
        flags = EntryFlag.CHAIN if self.chain and self._cookies else 0
        self._cookies.append(self.env.submit(name, *scalars, cap=cap, data=data, out_bytes=out_bytes, flags=flags))

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        if kind is None:
            self.results = [self.env.wait(cookie) for cookie in self._cookies]

    def raise_first(self) -> None:
        """Raise the first refusal of the batch, if there is one."""
        for completion in self.results:
            if completion.code:
                raise refusal(completion)


def refusal(completion: Completion) -> errors.XokError:
    error = errors.by_code(completion.code, completion.data.decode(errors="replace"))
    error.fields = {"r0": completion.r0, "r1": completion.r1}
    return error


class Environment:
    """One environment: its ring, its view of xokd's tables, its pages, its TAP queue."""

    def __init__(self, sock: socket.socket, start: dict[str, Any], descriptors: Sequence[int]) -> None:
        self._socket = sock
        self.id: int = start["env"]
        self.name: str = start["name"]
        self.args: list[str] = start["args"]
        self.caps = [CapabilityInfo(**cap) for cap in start["caps"]]
        self.devices: dict[int, int] = {int(dev): nblocks for dev, nblocks in start["devices"].items()}
        tables = dict(zip(start["tables"], descriptors, strict=False))
        self.ring = ClientRing(memoryview(mmap.mmap(tables.pop("ring"), ch.RING_BYTES)))
        self._bell = tables.pop("bell")
        self.registry = RegistryView(_map_read_only(tables["registry"]))
        self.counters = CountersView(_map_read_only(tables["counters"]))
        self.freemaps = {
            dev: FreeMapView(_map_read_only(tables[f"freemap{dev}"]), nblocks) for dev, nblocks in self.devices.items()
        }
        self.extra_fds = {name: tables[name] for name in start["tables"] if name.startswith("fd:")}
        tap = start.get("tap")
        self.tap: TapInfo | None = None
        if tap:
            tap["mac"] = bytes.fromhex(tap["mac"])
            tap["addresses"] = tuple(tap["addresses"])
            self.tap = TapInfo(fd=tables["tap"], **tap)
        self.on_event: Callable[[Event, int, int], None] = lambda event, r0, r1: None
        self.stop_requested = False
        self._heard = False
        """An event has come."""
        self._last: Completion | None = None
        """The last that was taken from the ring for somebody who will `wait` for it."""
        self._done: dict[int, Completion] = {}
        """Those before it, by cookie."""
        self._handlers: dict[int, Callable[[Completion], None]] = {}
        self._chunks: dict[int, memoryview] = {}
        self._chunk_fds: dict[int, tuple[int, bool]] = {}
        self._maps: set[int] = set()
        """Cookies of the CHUNK_MAPs that have not been answered."""
        self._descriptors_due = 0
        """How many messages with a descriptor may come."""

    @classmethod
    def from_socket(cls, descriptor: int) -> Environment:
        """Receive the start message on the environment's socket and map what came with it."""
        sock = socket.socket(fileno=descriptor)
        data, ancillary, _, _ = sock.recvmsg(START_BYTES, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4))
        if not data:
            raise errors.Gone("xokd closed the channel before the environment started")
        return cls(sock, json.loads(data), _descriptors(ancillary))

    # ---- crossings

    def submit(
        self,
        name: str,
        *scalars: int,
        cap: int = 0,
        data: bytes = b"",
        out_bytes: int = 0,
        flags: int = 0,
        then: Callable[[Completion], None] | None = None,
    ) -> int:
        """Queue a call; it crosses at the next `ring_doorbell` (or `wait`).  `then` gets the completion in `dispatch`.

        `out_bytes` is the room for result bytes; refusals put their sentence there, so it is at least LEAST_ROOM.
        """
        return self._submit(name, scalars, cap, data, out_bytes, flags, then)

    def _submit(
        self,
        name: str,
        scalars: tuple,  # type: ignore[type-arg]
        cap: cython.uint,
        data: Any,
        out_bytes: cython.long,
        flags: cython.int,
        then: Any,
    ) -> cython.ulonglong:
        number: cython.int = _NUMBERS[name]
        if out_bytes < _LEAST_ROOM:
            out_bytes = _LEAST_ROOM
        operand: bytes = data if type(data) is bytes else bytes(data)
        cookie: cython.ulonglong
        while True:
            try:
                cookie = self.ring.push(number, scalars, cap, operand, out_bytes, flags)
                break
            except ch.RingFull:
                self._wait_in_ring(0)
        if then is not None:
            self._handlers[cookie] = then
        if number == _CHUNK_MAP:
            self._maps.add(cookie)
            self._descriptors_due += 1
        return cookie

    def ring_doorbell(self) -> None:
        """Make queued entries visible and wake xokd."""
        self.ring.publish()
        futex.ring(self._bell)

    def wait(self, cookie: cython.ulonglong) -> Completion:
        """The completion of `cookie`, waiting for it in this thread.  Raises Gone when xokd is."""
        self.dispatch()
        if not self._is_done(cookie):
            self._wait_in_ring(cookie)
        return self._take_done(cookie)

    def _take_done(self, cookie: cython.ulonglong) -> Completion:
        done = self._last
        if done is not None and done.cookie == cookie:
            self._last = None
            return done
        return self._done.pop(cookie)

    def _is_done(self, cookie: cython.ulonglong) -> cython.bint:
        """Whether its completion was taken from the ring."""
        if self._last is not None and self._last.cookie == cookie:
            return True
        return bool(self._done) and cookie in self._done

    def call(self, name: str, *scalars: int, cap: int = 0, data: bytes = b"", out_bytes: int = 0) -> Completion:
        """One call, one crossing.  Raises the `XokError` that xokd answers with."""
        cookie: cython.ulonglong = self._submit(name, scalars, cap, data, out_bytes, 0, None)
        self._wait_in_ring(cookie)  # xokd has not seen it yet: there is nothing to look for before
        completion = self._take_done(cookie)
        if completion.code:
            raise refusal(completion)
        return completion

    def batch(self, *, chain: bool = False) -> Batch:
        return Batch(self, chain)

    def dispatch(self) -> cython.int:
        """Take all completions and events that are there, without waiting; how many there were."""
        count: cython.int = 0
        unanswered: cython.long = self.ring.unanswered
        completion: Completion | None
        while (completion := self.ring.pop()) is not None:
            count += 1
            cookie = completion.cookie
            if self._maps and cookie in self._maps:
                self._maps.discard(cookie)
                self._descriptors_due -= completion.code != 0  # else it is on its way
            if not cookie:
                self._heard = True
                self._event(completion)
            elif self._handlers and (handler := self._handlers.pop(cookie, None)) is not None:
                handler(completion)
            else:
                if self._last is not None:
                    self._done[self._last.cookie] = self._last
                self._last = completion
        if count + unanswered >= _COMPLETIONS:
            self.ring_doorbell()  # the ring was full: xokd may keep events that had no room
        return count

    def fileno(self) -> int:
        """Readable when completions, events or descriptors may have come: then `drain` and `dispatch`."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Read the socket empty without waiting."""
        while self._receive(socket.MSG_DONTWAIT):
            pass

    def wait_event(self, seconds: float | None = None) -> None:
        """Wait until something comes on the socket, or the time passes, and dispatch it."""
        ready, _, _ = select.select([self._socket], [], [], seconds)
        if ready:
            self.drain()
        self.dispatch()

    def wait_any(self, least: cython.long = 1) -> None:
        """Let what is queued cross, and wait in this thread until `least` completions, but no more than are to come, or
        an event have come and were dispatched: for who has several calls on their way, each with its `then`."""
        self._heard = False
        some = self.dispatch()
        if some < least and not self._heard and (self.ring.unanswered or not some):
            self._wait_in_ring(0, least - some)
        elif self.ring.queued():
            self.ring_doorbell()

    def _wait_in_ring(self, cookie: cython.ulonglong, least: cython.long = 1) -> None:
        """Ring, and wait until the completion of `cookie` was taken from the ring, or (0) `least` of any."""
        self._heard = False
        self.ring.wait_here(True)
        try:
            self.ring_doorbell()
            while True:
                some = self.dispatch()
                if cookie:
                    if self._is_done(cookie):
                        break
                else:
                    least -= some
                    if least <= 0 or self._heard or (some and not self.ring.unanswered):
                        break
                    least = min(least, self.ring.unanswered or 1)
                if not some and not self.ring.sleep(PATIENCE_NS, least):
                    self.drain()
        finally:
            late = self.ring.wait_here(False)
        if late:
            self.dispatch()

    def _receive(self, flags: int) -> bool:
        ancillary: Sequence[tuple[int, int, bytes]] = ()
        try:
            if self._descriptors_due:
                data, ancillary, _, _ = self._socket.recvmsg(64, _ONE_DESCRIPTOR, flags)
            else:
                data = self._socket.recv(64, flags)  # which would drop a descriptor, and costs half as much
        except BlockingIOError:
            return False
        except ConnectionResetError as error:
            raise errors.Gone("xokd is gone") from error
        if not data:
            raise errors.Gone("xokd is gone")
        if data[0] == 2:
            self._descriptors_due -= 1
            _, writable, _, chunk = CHUNK_MESSAGE.unpack(data)
            for descriptor in _descriptors(ancillary):
                self._chunk_fds[chunk] = (descriptor, bool(writable))
        return True

    def _event(self, completion: Completion) -> None:
        event = Event(completion.code)
        if event is Event.STOP:
            self.stop_requested = True
        self.on_event(event, completion.r0, completion.r1)

    # ---- pages

    def page(self, page: int) -> memoryview:
        """The bytes of one page, `BLOCK` long; writable if it is of the environment's own write arena."""
        return self.pages(page, 1)

    def pages(self, page: int, count: int) -> memoryview:
        """`count` pages of one chunk, from `page` on, as one run of bytes."""
        chunk = self._chunks.get(page_chunk(page))
        if chunk is None:
            chunk = self._map_chunk(page_chunk(page))
        start = page_slot(page) * BLOCK
        return chunk[start : start + count * BLOCK]

    def _map_chunk(self, chunk: int) -> memoryview:
        self.drain()  # a socket full of doorbells would have no room for the descriptor
        self.call("chunk_map", chunk)
        while chunk not in self._chunk_fds:
            self._receive(0)
        descriptor, writable = self._chunk_fds.pop(chunk)
        access = mmap.ACCESS_DEFAULT if writable else mmap.ACCESS_READ
        view = memoryview(mmap.mmap(descriptor, CHUNK_BYTES, access=access))
        os.close(descriptor)
        self._chunks[chunk] = view
        return view


def _map_read_only(descriptor: int) -> memoryview:
    return memoryview(mmap.mmap(descriptor, os.fstat(descriptor).st_size, access=mmap.ACCESS_READ))


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


__all__ = ["Batch", "CallNumber", "CapabilityInfo", "Environment", "TapInfo", "refusal"]
