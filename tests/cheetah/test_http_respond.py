"""From a request and a store to a reply: paths, conditions, ranges, heads, errors."""

from __future__ import annotations

import ctypes
from email.utils import formatdate

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.cheetah import media
from netstack.cheetah.dates import DATE_LENGTH, http_date, parse_http_date
from netstack.cheetah.request import Refused, parse
from netstack.cheetah.respond import Reply, refuse, respond
from netstack.cheetah.response import REASONS
from netstack.cheetah.store import MemoryStore
from netstack.cheetah.target import quote, split_target

MODIFIED = 1_700_000_000
NOW = MODIFIED + 1000
TEXT = bytes(range(256)) * 40


@pytest.fixture
def store() -> MemoryStore:
    files = {
        b"index.html": b"<p>home",
        b"a/index.html": b"<p>a",
        b"a/text.txt": TEXT,
        b"b/one file.bin": b"1",
        b"empty": b"",
        b"secret": b"x",
    }
    store = MemoryStore()
    for path, data in files.items():
        store.put(path, data, MODIFIED * 10**9 + 5)
    store.forbid(b"secret")
    return store


def ask(store: MemoryStore, target: bytes, *fields: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> Reply:
    lines = [method + b" " + target + b" HTTP/" + version, b"Host: h", *fields]
    found = parse(b"\r\n".join(lines) + b"\r\n\r\n")
    assert found is not None
    return respond(found[0], store, NOW * 10**9)


def content(reply: Reply) -> bytes:
    pages = reply.document.pages(reply.first, reply.length) if reply.document is not None else []
    return reply.body + b"".join(ctypes.string_at(address, length) for address, length in pages)


def read_back(reply: Reply, method: bytes = b"GET") -> h11.Response:
    """The reply as h11 reads it, its content checked against the declared length."""
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    peer.send(h11.EndOfMessage())
    peer.receive_data(reply.head.data + content(reply))
    response = peer.next_event()
    assert isinstance(response, h11.Response)
    received = b""
    while isinstance(event := peer.next_event(), h11.Data):
        received += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert received == content(reply)
    assert peer.trailing_data == (b"", False)
    assert reply.head.data[reply.head.date_at :][:DATE_LENGTH] == http_date(NOW)
    return response


def field(reply: Reply, name: bytes) -> bytes | None:
    for line in reply.head.data.split(b"\r\n"):
        key, _, value = line.partition(b": ")
        if key.lower() == name.lower():
            return value
    return None


def test_a_document(store: MemoryStore) -> None:
    reply = ask(store, b"/a/text.txt?query")
    assert (reply.status, reply.close, reply.cacheable) == (200, False, True)
    assert content(reply) == TEXT
    headers = dict(read_back(reply).headers)
    assert headers[b"content-type"] == b"text/plain; charset=utf-8"
    assert headers[b"last-modified"] == http_date(MODIFIED)
    assert headers[b"content-length"] == b"%d" % len(TEXT)
    assert b"connection" not in headers


def test_pages_are_the_store_s_own(store: MemoryStore) -> None:
    reply = ask(store, b"/a/text.txt")
    assert reply.document is not None
    assert len(reply.document.pages(0, len(TEXT))) == -(-len(TEXT) // 4096)


@pytest.mark.parametrize(
    ("target", "status", "text"),
    [
        (b"/", 200, b"<p>home"),
        (b"/a/", 200, b"<p>a"),
        (b"//a//", 200, b"<p>a"),
        (b"http://elsewhere/a/", 200, b"<p>a"),
        (b"http://elsewhere?x", 200, b"<p>home"),
        (b"/b/one%20file.bin", 200, b"1"),
        (b"/empty", 200, b""),
    ],
)
def test_found(store: MemoryStore, target: bytes, status: int, text: bytes) -> None:
    reply = ask(store, target)
    assert (reply.status, content(reply)) == (status, text)
    read_back(reply)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/none", 404),
        (b"/empty/", 404),
        (b"/empty/x", 404),
        (b"/a%2ftext.txt", 404),
        (b"/secret", 403),
        (b"/b/", 403),
        (b"/../x", 400),
        (b"/a/../../x", 400),
        (b"/%2e%2e/x", 400),
        (b"/a/./text.txt", 400),
        (b"/%zz", 400),
        (b"/%0", 400),
        (b"/%00", 400),
        (b"a", 400),
        (b"*", 400),
        (b"/#x", 400),
        (b"/" + b"a" * 5000, 414),
    ],
)
def test_not_found(store: MemoryStore, target: bytes, status: int) -> None:
    reply = ask(store, target)
    assert (reply.status, reply.close, reply.cacheable) == (status, False, False)
    assert b"<h1>%d</h1>" % status in content(reply)
    read_back(reply)


def test_a_folder_without_its_slash_is_redirected(store: MemoryStore) -> None:
    reply = ask(store, b"/a?x=y")
    assert (reply.status, field(reply, b"Location")) == (301, b"/a/?x=y")
    assert field(ask(store, b"//a"), b"Location") == b"/a/"  # never //host: that would lead away
    read_back(reply)


def test_connection_field(store: MemoryStore) -> None:
    assert field(ask(store, b"/", b"Connection: close"), b"Connection") == b"close"
    assert field(ask(store, b"/", version=b"1.0"), b"Connection") == b"close"
    assert field(ask(store, b"/", b"Connection: keep-alive", version=b"1.0"), b"Connection") == b"keep-alive"


@pytest.mark.parametrize("target", [b"/a/text.txt", b"/none", b"/a", b"/empty"])
def test_head_is_get_without_content(store: MemoryStore, target: bytes) -> None:
    get, head = ask(store, target), ask(store, target, method=b"HEAD")
    assert content(head) == b""
    assert head.head == get.head
    read_back(head, b"HEAD")


def test_conditions(store: MemoryStore) -> None:
    tag = field(ask(store, b"/a/text.txt"), b"ETag")
    assert tag is not None
    cases = [
        ([b"If-None-Match: " + tag], 304),
        ([b"If-None-Match: W/" + tag], 304),
        ([b'If-None-Match: "x", ' + tag], 304),
        ([b"If-None-Match: *"], 304),
        ([b'If-None-Match: "x"'], 200),
        ([b"If-Modified-Since: " + http_date(MODIFIED)], 304),
        ([b"If-Modified-Since: " + http_date(MODIFIED - 1)], 200),
        ([b"If-Modified-Since: yesterday"], 200),
        ([b'If-None-Match: "x"', b"If-Modified-Since: " + http_date(MODIFIED)], 200),
        ([b"If-Match: " + tag], 200),
        ([b"If-Match: W/" + tag], 412),
        ([b'If-Match: "x"'], 412),
        ([b"If-Unmodified-Since: " + http_date(MODIFIED - 1)], 412),
        ([b"If-Unmodified-Since: " + http_date(MODIFIED)], 200),
        ([b"If-Match: " + tag, b"If-None-Match: " + tag], 304),
    ]
    for fields, status in cases:
        for method in (b"GET", b"HEAD"):
            reply = ask(store, b"/a/text.txt", *fields, method=method)
            assert reply.status == status, fields
            assert status != 304 or content(reply) == b""
            read_back(reply, method)


def test_a_changed_document_has_another_tag(store: MemoryStore) -> None:
    before = field(ask(store, b"/empty"), b"ETag")
    store.put(b"empty", b"no longer", MODIFIED * 10**9 + 5)
    assert field(ask(store, b"/empty"), b"ETag") != before


@pytest.mark.parametrize(
    ("asked", "status", "where"),
    [
        (b"bytes=0-0", 206, slice(0, 1)),
        (b"bytes=10-19", 206, slice(10, 20)),
        (b"Bytes=4000-9000", 206, slice(4000, 9001)),
        (b"bytes=10-", 206, slice(10, None)),
        (b"bytes=-7", 206, slice(-7, None)),
        (b"bytes=-999999", 206, slice(0, None)),
        (b"bytes=10239-99999", 206, slice(10239, None)),
        (b"bytes=10240-", 416, slice(0)),
        (b"bytes=-0", 416, slice(0)),
        (b"bytes=5-4", 200, slice(None)),
        (b"bytes=-", 200, slice(None)),
        (b"bytes=0-1,3-4", 200, slice(None)),
        (b"lines=0-1", 200, slice(None)),
        (b"bytes=a-b", 200, slice(None)),
    ],
)
def test_ranges(store: MemoryStore, asked: bytes, status: int, where: slice) -> None:
    reply = ask(store, b"/a/text.txt", b"Range: " + asked)
    assert reply.status == status
    read_back(reply)
    if status == 416:
        assert field(reply, b"Content-Range") == b"bytes */10240"
        return
    assert content(reply) == TEXT[where]
    if status == 206:
        first, last, _ = where.indices(len(TEXT))
        assert field(reply, b"Content-Range") == b"bytes %d-%d/10240" % (first, last - 1)


def test_if_range(store: MemoryStore) -> None:
    tag = field(ask(store, b"/a/text.txt"), b"ETag")
    assert tag is not None
    conditions = [
        (tag, 206),
        (b"W/" + tag, 200),
        (b'"x"', 200),
        (http_date(MODIFIED), 206),
        (http_date(NOW), 200),
    ]
    for condition, status in conditions:
        assert ask(store, b"/a/text.txt", b"Range: bytes=0-3", b"If-Range: " + condition).status == status


def test_a_document_from_the_future_is_not_dated_so() -> None:
    store = MemoryStore()
    store.put(b"x", b"x", (NOW + 500) * 10**9)
    reply = ask(store, b"/x")
    assert field(reply, b"Last-Modified") == http_date(NOW)
    assert not reply.cacheable


def test_failing_storage_is_our_fault() -> None:
    class Broken(MemoryStore):
        def open(self, path: bytes):  # type: ignore[no-untyped-def]
            raise OSError(5, "disk")

    assert ask(Broken(), b"/").status == 500


def test_crowded_storage_is_a_matter_of_time() -> None:
    class Crowded(MemoryStore):
        def open(self, path: bytes):  # type: ignore[no-untyped-def]
            raise OSError(11, "no more pins")

    reply = ask(Crowded(), b"/")
    assert (reply.status, field(reply, b"Retry-After")) == (503, b"1")
    read_back(reply)


@pytest.mark.parametrize("status", sorted(set(REASONS) - {200, 206, 301, 304}))
def test_error_pages(status: int) -> None:
    reply = refuse(Refused(status, "<script>"), NOW * 10**9)
    assert reply.close
    assert b"<script>" not in content(reply)
    assert field(reply, b"Connection") == b"close"
    assert (field(reply, b"Allow") == b"GET, HEAD") is (status == 405)
    read_back(reply)


@given(st.integers(0, 253402300799))
def test_dates_there_and_back(seconds: int) -> None:
    text = http_date(seconds)
    assert text.decode() == formatdate(seconds, usegmt=True)
    assert len(text) == DATE_LENGTH
    assert parse_http_date(text) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        (b"Sun Nov  6 08:49:37 1994", 784111777),
        (b"Sun, 31 Feb 2021 08:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 25:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 08:49:37", None),
        (b"", None),
    ],
)
def test_dates_of_all_three_forms(text: bytes, seconds: int | None) -> None:
    assert parse_http_date(text) == seconds


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=4))
def test_paths_there_and_back(parts: list[bytes]) -> None:
    if any(part in (b".", b"..") or b"\0" in part or b"/" in part for part in parts):
        return
    path = b"/".join(parts)
    assert split_target(b"/" + quote(path))[0] == path


@given(st.lists(st.sampled_from([b"/", b".", b"..", b"%2e", b"%2F", b"%5c", b"a", b"%", b"?", b"%00"]), max_size=9))
def test_no_path_climbs(pieces: list[bytes]) -> None:
    try:
        path, _, _ = split_target(b"/" + b"".join(pieces))
    except Refused as refused:
        assert refused.status in (400, 404)
        return
    assert not path.startswith(b"/")
    assert not {b"", b".", b".."} & set(path.split(b"/") if path else [])
    assert b"\0" not in path


def test_media_types() -> None:
    assert media.content_type(b"a/b.HTML") == b"text/html; charset=utf-8"
    assert media.content_type(b"a.html/b") == media.DEFAULT
    assert media.content_type(b".css") == media.DEFAULT
