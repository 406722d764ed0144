# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, initializedcheck=False
"""The merged file cache and retransmission pool (thesis section 5.4.2): whole answers, ready to be sent.

A `Response` is a Gather: the prebuilt head, then the document's own pages where the file system has them. It is queued
as it is on any number of connections, and TCP sends and retransmits from it; nothing is copied. `Cache` finds one by
the bytes of the path and the form of the answer (scan.SCAN-1).

CACHE-1  A document is pinned exactly as long as its Response is in the cache or under unacknowledged data.
CACHE-2  A head never changes while it may be retransmitted: a new date goes in place into a Response that nobody is
         using, otherwise into a copy of it that shares the pages.
CACHE-3  Whoever takes a Response from the cache checks `valid()` first; a Response that is not is removed.
CACHE-4  At most `most` responses and `most_bytes` bytes of documents are kept; of SAMPLE looked at, the one unused for
         the longest time goes.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import cython

from netstack.cheetah.dates import DATE_LENGTH
from netstack.xio.gather import Gather

if TYPE_CHECKING:
    from netstack.cheetah.respond import Reply
    from netstack.cheetah.store import Document
    from netstack.wire.octets import Octets

SAMPLE = 8
WINDOW = 4 << 20
"""Most bytes of a document in one Response: what one connection can make a store pin at a time."""

if not cython.compiled:
    WORDS = 16  # most words of validity (store.STORE-2) that a cached document may have
    MIX = 0x9E3779B97F4A7C15

    def load_word(address: int) -> int:
        """The u64 at an address."""
        return ctypes.c_uint64.from_address(address).value

    def wrap(value: int) -> int:
        """Modulo 2**64, as C has it."""
        return value & 0xFFFFFFFFFFFFFFFF

    def same(data: Octets, at: int, length: int, key: bytes) -> bool:
        """Whether `key` is the `length` octets of `data` from `at`."""
        return len(key) == length and bytes(memoryview(data)[at : at + length]) == key  # type: ignore[arg-type]


class Response(Gather):
    """An answer ready to be sent: head, generated body, pages of a document; `close` if the connection ends with it."""

    if not cython.compiled:

        def __init__(self) -> None:
            Gather.__init__(self)
            self.document: Document | None = None
            self.first = 0
            self.span = 0
            self.head = bytearray()
            self.date_at = 0
            self.second = 0
            self.status = 0
            self.close = False
            self.held = False
            self.cached = False
            self.asks = False
            self.asked = 0
            self.used = 0
            self.hash = 0
            self.form = 0
            self.key = b""
            self.place = 0
            self.chain: Response | None = None
            self.words = 0
            self.word_at = [0] * WORDS
            self.word_is = [0] * WORDS

    def released(self) -> int:
        """The last of it was acknowledged; if it is not cached either, the document may go (CACHE-1)."""
        if not self.cached:
            self.drop()
        return 0

    def drop(self) -> int:
        """Unpin the document; done once."""
        if self.held:
            self.held = False
            self.document.unpin(self.first, self.span)  # type: ignore[union-attr]
        return 0

    def put_date(self, date: bytes, second: int) -> int:
        """Renew the Date field in place; only while nobody sends from this Response (CACHE-2)."""
        self.head[self.date_at : self.date_at + DATE_LENGTH] = date
        self.second = second
        return 0

    def valid(self) -> bool:
        """Whether every word of the document has its value (store.STORE-2)."""
        i = 0
        while i < self.words:
            if load_word(self.word_at[i]) != self.word_is[i]:
                return False
            i += 1
        return True


def build(reply: Reply, second: int) -> Response:
    """The Response for a Reply made at `second`, with at most WINDOW bytes of its document (the server sends the rest).

    OSError if the document's pages cannot be had.
    """
    made = Response()
    made.status = reply.status
    made.close = reply.close
    made.date_at = reply.head.date_at
    made.second = second
    made.head = bytearray(reply.head.data)
    made.add(made.head)
    made.add(reply.body)
    made.document = reply.document
    if reply.length:
        append(made, reply.first, min(reply.length, WINDOW))
    return made


def window(document: Document, first: int, length: int) -> Response:
    """A further piece of a document as a Response without a head."""
    made = Response()
    made.document = document
    append(made, first, length)
    return made


def append(made: Response, first: int, length: int) -> int:
    """Pin a range of the Response's document and add its pages (CACHE-1)."""
    document = made.document
    if document is None:
        raise ValueError("a response without a document has no pages")
    document.pin(first, length)
    made.held = True
    made.first = first
    made.span = length
    try:
        for address, size in document.pages(first, length):
            made.add_address(address, size)
    except BaseException:
        made.drop()
        raise
    return 0


def watch(made: Response) -> bool:
    """Take over the document's words of validity; False if there is none, or it has more than can be watched."""
    document = made.document
    if document is None:
        return False
    words = document.validity
    if len(words) > WORDS:
        return False
    for i, (address, value) in enumerate(words):
        made.word_at[i] = address
        made.word_is[i] = value
    made.words = len(words)
    made.asks = document.recheck
    return True


class Cache:
    """Responses by (path as asked for, form). `secret` is 64 random bits, so that nobody can choose collisions."""

    def __init__(self, secret: int, most: int, most_bytes: int) -> None:
        buckets = 16
        while buckets < most:
            buckets *= 2
        self.secret = secret | 1
        self.mask = buckets - 1
        self.buckets: list[Response | None] = [None] * buckets
        self.all: list[Response] = []
        self.hand = 0
        self.most = most
        self.most_bytes = most_bytes
        self.bytes = 0
        self.evicted = 0
        self.stale = 0
        self.renewed = 0

    def __len__(self) -> int:
        return len(self.all)

    def hash_of(self, data: Octets, at: int, length: int, form: int) -> int:
        """A keyed hash of the octets and the form."""
        h = self.secret ^ form
        i = at
        while i < at + length:
            h = wrap((h ^ data[i]) * MIX)
            h ^= h >> 29
            i += 1
        return wrap(h * self.secret) >> 17

    def find(self, data: Octets, at: int, length: int, form: int) -> Response | None:
        """The response for the path that is the `length` octets from `at`, valid or not (CACHE-3), or None."""
        h = self.hash_of(data, at, length, form)
        entry = self.buckets[h & self.mask]
        while entry is not None:
            if entry.hash == h and entry.form == form and same(data, at, length, entry.key):
                return entry
            entry = entry.chain
        return None

    def lookup(self, key: bytes, form: int) -> Response | None:
        """`find` for Python callers."""
        return self.find(key, 0, len(key), form)

    def insert(self, entry: Response, key: bytes, form: int, now: int) -> int:
        """Keep a Response just built under a key that is not in use; evicts others to stay within CACHE-4."""
        while self.all and (len(self.all) >= self.most or self.bytes + entry.length > self.most_bytes):
            self.evict()
        entry.hash = self.hash_of(key, 0, len(key), form)
        entry.key = key
        entry.form = form
        entry.used = now
        entry.asked = now
        entry.cached = True
        entry.place = len(self.all)
        self.all.append(entry)
        self.bytes += entry.length
        i = entry.hash & self.mask
        entry.chain = self.buckets[i]
        self.buckets[i] = entry
        return 0

    def remove(self, entry: Response) -> int:
        """Forget a Response; its document is unpinned now, or when the last of it is acknowledged."""
        if not entry.cached:
            return 0
        i = entry.hash & self.mask
        at = self.buckets[i]
        if at is entry:
            self.buckets[i] = entry.chain
        else:
            while at.chain is not entry:  # type: ignore[union-attr]
                at = at.chain  # type: ignore[union-attr]
            at.chain = entry.chain  # type: ignore[union-attr]
        entry.chain = None
        entry.cached = False
        moved = self.all[len(self.all) - 1]
        self.all[entry.place] = moved
        moved.place = entry.place
        self.all.pop()
        self.bytes -= entry.length
        if entry.pins == 0:
            entry.drop()
        return 0

    def evict(self) -> int:
        """Remove the response that was not asked for the longest, of SAMPLE looked at."""
        oldest = None
        for _ in range(min(SAMPLE, len(self.all))):
            self.hand = (self.hand + 1) % len(self.all)
            entry = self.all[self.hand]
            if oldest is None or entry.used < oldest.used:
                oldest = entry
        if oldest is not None:
            self.remove(oldest)
            self.evicted += 1
        return 0

    def clear(self) -> None:
        """Forget everything."""
        while self.all:
            self.remove(self.all[len(self.all) - 1])

    def renew(self, entry: Response, date: bytes, second: int) -> Response:
        """The cached `entry` with a new date: itself if nobody is sending it, else its successor (CACHE-2)."""
        if entry.pins == 0:
            entry.put_date(date, second)
            return entry
        self.renewed += 1
        fresh = succeed(entry)
        fresh.put_date(date, second)
        used = entry.used
        key = entry.key
        self.remove(entry)
        self.insert(fresh, key, entry.form, used)
        fresh.asked = entry.asked
        return fresh


def succeed(entry: Response) -> Response:
    """A copy of a Response with a head of its own and the same pages, holding its own pin."""
    fresh = Response()
    fresh.status = entry.status
    fresh.close = entry.close
    fresh.date_at = entry.date_at
    fresh.head = bytearray(entry.head)
    fresh.add(fresh.head)
    fresh.document = entry.document
    if entry.held:
        append(fresh, entry.first, entry.span)
    watch(fresh)
    return fresh
