"""The cache of prebuilt answers: pins, validity, dates, bounds."""

from __future__ import annotations

import ctypes
import random

import pytest

from netstack.cheetah.cache import Cache, Response, build, watch
from netstack.cheetah.dates import http_date
from netstack.cheetah.request import parse
from netstack.cheetah.respond import respond
from netstack.cheetah.store import BufferDocument, MemoryStore

SECOND = 1_700_001_000


def made(store: MemoryStore, path: bytes, method: bytes = b"GET") -> Response:
    found = parse(method + b" /" + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    assert found is not None
    response = build(respond(found[0], store, SECOND * 10**9), SECOND)
    assert watch(response)
    return response


def document(store: MemoryStore, path: bytes) -> BufferDocument:
    found = store.open(path)
    assert isinstance(found, BufferDocument)
    return found


def test_a_response_is_head_and_pages() -> None:
    data = bytes(range(256)) * 50
    store = MemoryStore({b"a": data})
    response = made(store, b"a")
    assert response.length > len(data)
    assert document(store, b"a").pins == 1
    response.drop()
    response.drop()
    assert document(store, b"a").pins == 0


def test_found_by_path_and_form() -> None:
    store = MemoryStore({b"a": b"x", b"b": b"y"})
    cache = Cache(random.Random(1).getrandbits(64), 100, 1 << 20)
    entries = {(path, form): made(store, path) for path in (b"a", b"b") for form in range(3)}
    for (path, form), entry in entries.items():
        cache.insert(entry, b"/" + path, form, 0)
    for (path, form), entry in entries.items():
        assert cache.lookup(b"/" + path, form) is entry
    assert cache.lookup(b"/c", 0) is None
    assert cache.lookup(b"/a", 4) is None
    assert cache.lookup(b"/", 0) is None
    cache.remove(entries[b"a", 1])
    assert cache.lookup(b"/a", 1) is None
    assert len(cache) == 5
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
    assert document(store, b"a").pins == 0


def test_changed_documents_are_not_valid() -> None:
    store = MemoryStore({b"a": b"x"})
    response = made(store, b"a")
    assert response.valid()
    store.put(b"a", b"y")
    assert not response.valid()


def test_more_words_than_can_be_watched() -> None:
    store = MemoryStore({b"a": b"x"})
    response = made(store, b"a")
    found = document(store, b"a")
    word = ctypes.c_uint64(1)
    found.validity = ((ctypes.addressof(word), 1),) * 17
    assert not watch(response)


@pytest.mark.parametrize("by_count", [True, False])
def test_bounds_on_count_and_bytes(by_count: bool) -> None:
    store = MemoryStore({b"%d" % number: b"x" * 1000 for number in range(50)})
    entries = [made(store, b"%d" % number) for number in range(50)]
    size = max(entry.length for entry in entries)
    cache = Cache(7, 10, 1 << 30) if by_count else Cache(7, 1000, 10 * size)
    for number, entry in enumerate(entries):
        cache.insert(entry, b"/%d" % number, 0, number)
        assert len(cache) <= 10
        assert cache.bytes <= 10 * size
    assert cache.evicted == 40
    kept = [number for number in range(50) if cache.lookup(b"/%d" % number, 0) is not None]
    assert len(kept) == 10
    assert 49 in kept
    assert sum(document(store, b"%d" % number).pins for number in range(50)) == 10


def test_the_one_unused_longest_goes() -> None:
    store = MemoryStore({b"%d" % number: b"x" for number in range(9)})
    cache = Cache(7, 8, 1 << 30)  # as many as are looked at: exact
    for number in range(8):
        cache.insert(made(store, b"%d" % number), b"/%d" % number, 0, 100 - number)
    cache.insert(made(store, b"8"), b"/8", 0, 200)
    assert cache.lookup(b"/7", 0) is None
    assert len(cache) == 8


def test_dates_in_place_only_when_nobody_sends() -> None:
    store = MemoryStore({b"a": b"x" * 5000})
    cache = Cache(7, 8, 1 << 30)
    entry = made(store, b"a")
    cache.insert(entry, b"/a", 0, 0)
    assert cache.renew(entry, http_date(SECOND + 1), SECOND + 1) is entry
    assert entry.second == SECOND + 1
    entry.pin()
    before = bytes(entry.head)
    fresh = cache.renew(entry, http_date(SECOND + 2), SECOND + 2)
    assert fresh is not entry
    assert entry.head == before
    assert http_date(SECOND + 2) in fresh.head
    assert (fresh.length, fresh.status, fresh.close) == (entry.length, entry.status, entry.close)
    assert cache.lookup(b"/a", 0) is fresh
    assert document(store, b"a").pins == 2
    entry.unpin()
    assert document(store, b"a").pins == 1
    store.put(b"b", b"")
    assert fresh.valid()
    store.remove(b"a")
    assert not fresh.valid()


def test_a_head_request_pins_nothing_but_watches() -> None:
    store = MemoryStore({b"a": b"x"})
    response = made(store, b"a", b"HEAD")
    assert document(store, b"a").pins == 0
    assert response.valid()
    store.remove(b"a")
    assert not response.valid()
