# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, initializedcheck=False
"""Cheetah: the application on XIO (thesis section 5.4.2).

A request that was answered before takes this way and no other: scan in place, find the Response, check its words,
queue it. No Python object is made, nothing is copied; the answer carries the acknowledgement of the request, and the
FIN rides on its last segment (knowledge-based packet merging). All else goes through `request.parse` and `respond`.

SERVER-1  At most MAX_PIPELINE answers are queued on a connection that have not been handed to the network; further
          requests wait, and what waits shrinks the receive window, so a client cannot make the server hold more than
          one window of it.
SERVER-2  After an answer that ends the connection nothing more is read from it.
SERVER-3  A connection is given HEAD_TIMEOUT for a request that has begun, IDLE_TIMEOUT between requests, and
          IDLE_TIMEOUT for the next acknowledgement of an answer on its way.

The owner calls `tick` once a turn of its loop, before it gives packets to the stack.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import cython

from netstack.cheetah.cache import WINDOW, Cache, Response, build, watch, window
from netstack.cheetah.dates import http_date
from netstack.cheetah.limits import (
    HEAD_TIMEOUT,
    IDLE_TIMEOUT,
    MAX_CACHED,
    MAX_CACHED_BYTES,
    MAX_HEAD,
    MAX_LEADING_BLANKS,
    MAX_PIPELINE,
)
from netstack.cheetah.request import Refused, parse
from netstack.cheetah.respond import failed, refuse, respond
from netstack.cheetah.scan import Scan
from netstack.xio.tcb import Application, Tcb

if TYPE_CHECKING:
    from netstack.cheetah.store import Document, FileStore
    from netstack.wire.octets import Octets

if not cython.compiled:
    from netstack.wire.octets import at, to_bytes
    from netstack.xio.constants import SEND_FIN

_HEAD_TIME = int(HEAD_TIMEOUT * 1_000_000)  # µs, the stack's unit
_IDLE_TIME = int(IDLE_TIMEOUT * 1_000_000)
_RECHECK = 20_000  # µs for which the answer of a document that has to be asked stays good (store.STORE-2)
_ENOUGH = MAX_HEAD + 2 * MAX_LEADING_BLANKS + 1  # bytes from which `parse` always reaches a verdict
_PIPELINE = MAX_PIPELINE
_TRIES = 8


class Connection(Tcb):
    """A connection and how far its requests have come."""

    if not cython.compiled:

        def __init__(self) -> None:
            Tcb.__init__(self)
            self.partial = bytearray()  # what arrived and was not used; counted with `hold`
            self.queued = 0  # answers not yet handed to the network
            self.paused = False  # `partial` may hold whole requests that wait for SERVER-1
            self.done = False  # SERVER-2
            self.ended = False  # the client sends no more
            self.deadline = 0
            self.progress = 0
            self.rest: Rest | None = None  # what is still to be queued of a large document


class Rest:
    """The part of a large answer that has not been queued: bytes `at` to `end` of a document."""

    __slots__ = ("at", "close", "document", "end")

    def __init__(self, document: Document, at: int, end: int, close: bool) -> None:
        self.document = document
        self.at = at
        self.end = end
        self.close = close


class Cheetah(Application):
    """An HTTP server over a FileStore; `listen` on it with a stack. `secret` is 64 random bits (cache.Cache)."""

    def __init__(self, store: FileStore, secret: int, wall_ns: int) -> None:
        self.store = store
        self.cache = Cache(secret, MAX_CACHED, MAX_CACHED_BYTES)
        self.scan = Scan()
        self.second = -1
        self.opened = 0
        self.closed = 0
        self.requests = 0
        self.hits = 0
        self.refused = 0
        self.timed_out = 0
        self.content = 0
        if not cython.compiled:
            self.classes = [0] * 6
        self.tick(wall_ns)

    def tick(self, wall_ns: int) -> int:
        """Tell the time, in ns since 1970; the store gets its turn to notice changes."""
        self.wall_ns = wall_ns
        if wall_ns // 1_000_000_000 != self.second:
            self.second = wall_ns // 1_000_000_000
            self.date = http_date(self.second)
        self.store.poll()
        return 0

    def statistics(self) -> dict[str, Any]:
        """Counters since the start; `content` in bytes queued, heads included."""
        return {
            "connections": self.opened - self.closed,
            "connections_total": self.opened,
            "requests": self.requests,
            "hits": self.hits,
            "refused": self.refused,
            "timed_out": self.timed_out,
            "bytes_queued": self.content,
            "responses": {f"{i}xx": self.classes[i] for i in range(2, 6)},
            "cached": len(self.cache),
            "cached_bytes": self.cache.bytes,
            "cache_evicted": self.cache.evicted,
            "cache_stale": self.cache.stale,
            "dates_renewed_by_copy": self.cache.renewed,
        }

    def new_tcb(self) -> Tcb:
        """A Connection."""
        return Connection()

    def on_open(self, tcb: Tcb) -> int:
        """A client: nothing read, nothing owed."""
        connection = cython.cast(Connection, tcb)
        connection.partial = bytearray()
        connection.queued = 0
        connection.paused = False
        connection.done = False
        connection.ended = False
        connection.rest = None
        connection.progress = tcb.snd_una
        connection.deadline = tcb.endpoint.now + _IDLE_TIME
        self.opened += 1
        return tcb.set_alarm(connection.deadline)

    def on_data(self, tcb: Tcb, data: Octets, length: int) -> int:
        """Answer what is complete, keep the rest."""
        connection = cython.cast(Connection, tcb)
        if connection.done:
            return 0
        if connection.partial:
            connection.partial += to_bytes(data, 0, length)
            tcb.hold(length)
            if not connection.paused:
                self.resume(connection)
            return 0
        used = self.read(connection, data, length)
        if used < length and not connection.done:
            connection.partial += to_bytes(data, used, length - used)
            tcb.hold(length - used)
            if not connection.paused:
                connection.deadline = tcb.endpoint.now + _HEAD_TIME
                tcb.set_alarm(connection.deadline)
        return 0

    def on_sent(self, tcb: Tcb) -> int:
        """There is room again: requests that waited may be answered."""
        connection = cython.cast(Connection, tcb)
        connection.queued = 0
        if connection.rest is not None:
            return self.go_on(connection)
        if connection.paused:
            connection.paused = False
            self.resume(connection)
            if connection.ended and connection.rest is None and not connection.paused and not connection.done:
                self.give_up(connection)
        return 0

    def on_end(self, tcb: Tcb) -> int:
        """The client sends no more, but may well be waiting for what it asked."""
        connection = cython.cast(Connection, tcb)
        connection.ended = True
        if connection.rest is None and not connection.paused and not connection.done:
            self.give_up(connection)
        return 0

    def on_close(self, tcb: Tcb, reason: int) -> int:
        """The connection is gone."""
        connection = cython.cast(Connection, tcb)
        connection.partial = bytearray()
        connection.rest = None
        self.closed += 1
        return 0

    def on_alarm(self, tcb: Tcb) -> int:
        """SERVER-3. Deadlines move with every request, the alarm only when it rings."""
        connection = cython.cast(Connection, tcb)
        now = tcb.endpoint.now
        if tcb.unacked() and tcb.snd_una != connection.progress:
            connection.progress = tcb.snd_una
            connection.deadline = now + _IDLE_TIME
        if connection.deadline > now:
            return tcb.set_alarm(connection.deadline)
        self.timed_out += 1
        if tcb.unacked() or connection.done:
            return tcb.abort()
        connection.deadline = now + _IDLE_TIME
        tcb.set_alarm(connection.deadline)
        if connection.partial:
            self.answer(connection, build(refuse(Refused(408, ""), self.wall_ns), self.second))
            return 0
        return self.give_up(connection)

    def resume(self, connection: Connection) -> int:
        """Read on in what was kept."""
        waiting = bytes(connection.partial)
        used = self.read(connection, waiting, len(waiting))
        if connection.done:
            used = len(waiting)
        del connection.partial[:used]
        if used:
            connection.deadline = connection.endpoint.now + (_HEAD_TIME if connection.partial else _IDLE_TIME)
            connection.release(used)
        return 0

    def read(self, connection: Connection, data: Octets, length: int) -> int:
        """Answer the requests at the beginning of `data`; the number of octets used."""
        start = 0
        while start < length and not connection.done:
            if connection.queued >= _PIPELINE or connection.rest is not None:
                connection.paused = True
                break
            plain = self.scan.run(at(data, start), length - start)
            if plain:
                entry = self.cache.find(data, start + self.scan.path, self.scan.path_length, self.scan.form)
                if entry is not None:
                    entry = self.usable(entry, connection.endpoint.now)
                if entry is not None:
                    self.hits += 1
                    start += self.scan.end
                    self.answer(connection, entry)
                    continue
            used = length - start
            used = self.consider(connection, to_bytes(data, start, used if used < _ENOUGH else _ENOUGH), plain)
            if used == 0:
                break
            start += used
        return start

    def usable(self, entry: Response, now: int) -> Response | None:
        """A cached Response as it may be sent now, or None if its document has changed (CACHE-3)."""
        fresh = entry.valid()
        if fresh and entry.asks and now - entry.asked > _RECHECK:
            entry.asked = now
            fresh = entry.document.current()  # type: ignore[union-attr]
        if not fresh:
            self.cache.stale += 1
            self.cache.remove(entry)
            return None
        entry.used = now
        if entry.second != self.second:
            return self.cache.renew(entry, self.date, self.second)
        return entry

    def consider(self, connection: Connection, data: bytes, plain: bool) -> int:
        """Answer the request at the beginning of `data` with all of HTTP's rules; 0 if it is not complete."""
        try:
            found = parse(data)
        except Refused as refused:
            self.refused += 1
            self.answer(connection, build(refuse(refused, self.wall_ns), self.second))
            return len(data)
        if found is None:
            return 0
        request = found[0]
        reply = respond(request, self.store, self.wall_ns)
        tries = 0
        while True:
            try:
                made = build(reply, self.second)
                break
            except OSError as error:
                tries += 1
                if error.errno == errno.ESTALE and tries < _TRIES:
                    reply = respond(request, self.store, self.wall_ns)  # it changed between open and pin
                elif error.errno == errno.EAGAIN and len(self.cache.all):
                    self.cache.clear()  # no pins left: ours can be had again
                else:
                    reply = failed(request, error, self.wall_ns)
        if reply.length > WINDOW and reply.document is not None:
            connection.rest = Rest(reply.document, reply.first + WINDOW, reply.first + reply.length, reply.close)
            made.close = False
        elif plain and reply.cacheable and watch(made):
            key = data[self.scan.path : self.scan.path + self.scan.path_length]
            self.cache.insert(made, key, self.scan.form, connection.endpoint.now)
        self.answer(connection, made)
        return found[1]

    def answer(self, connection: Connection, entry: Response) -> int:
        """Queue a Response."""
        self.requests += 1
        self.classes[entry.status // 100] += 1
        self.content += entry.length
        connection.queued += 1
        connection.deadline = connection.endpoint.now + _IDLE_TIME
        if entry.close:
            connection.done = True
            return connection.send(entry, 0, entry.length, SEND_FIN)
        return connection.send(entry, 0, entry.length, 0)

    def go_on(self, connection: Connection) -> int:
        """Queue the next window of a large document; if it changed meanwhile, all that can be done is to break off."""
        rest = connection.rest
        try:
            if not rest.document.current():  # type: ignore[union-attr]
                return connection.abort()
            made = window(rest.document, rest.at, min(WINDOW, rest.end - rest.at))  # type: ignore[union-attr]
        except OSError:
            return connection.abort()
        rest.at += made.length  # type: ignore[union-attr]
        self.content += made.length
        connection.queued += 1
        if rest.at == rest.end:  # type: ignore[union-attr]
            connection.rest = None
            connection.done = rest.close or (connection.ended and not connection.paused)  # type: ignore[union-attr]
        return connection.send(made, 0, made.length, SEND_FIN if connection.done else 0)

    def give_up(self, connection: Connection) -> int:
        """Close our side after what is queued, and read no more."""
        connection.done = True
        return connection.close()
