"""The whole server against parser and responder alone: any requests, cut anywhere, hit or miss, give the same bytes."""

from __future__ import annotations

import ctypes

from http_wire import WALL, Wire
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netstack.cheetah.request import Refused, parse
from netstack.cheetah.respond import Reply, refuse, respond
from netstack.cheetah.store import MemoryStore

REQUESTS = st.sampled_from(
    [
        *(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /a?x HTTP/1.1\r\nHost: h\r\n\r\n") * 3,
        *(b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n") * 2,
        b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET //a HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /dir HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /%61 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /empty HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /../a HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: h\r\nRange: bytes=3-8\r\n\r\n",
        b"GET /a HTTP/1.1\nHost: h\n\n",
        b"\r\nGET /a HTTP/1.1\r\nHost: h\r\nIf-None-Match: *\r\n\r\n",
    ]
)
LAST = st.sampled_from(
    [
        b"",
        b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /a HTTP/1.0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01",
    ]
)
FILES = {b"a": b"0123456789" * 1000, b"b": b"b", b"empty": b"", b"index.html": b"home", b"dir/index.html": b"dir"}


def expected(data: bytes, store: MemoryStore) -> bytes:
    """What must come back, by the slow way alone."""
    sent = b""
    while True:
        try:
            found = parse(data)
        except Refused as refused:
            return sent + text(refuse(refused, WALL))
        if found is None:
            return sent
        reply = respond(found[0], store, WALL)
        sent += text(reply)
        data = data[found[1] :]
        if reply.close:
            return sent


def text(reply: Reply) -> bytes:
    pages = reply.document.pages(reply.first, reply.length) if reply.document is not None else []
    content = b"".join(ctypes.string_at(address, length) for address, length in pages)
    return reply.head.data + reply.body + content


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(REQUESTS, max_size=40), LAST, st.lists(st.integers(0, 4000), max_size=6))
def test_the_server_answers_as_its_parts_would(requests: list[bytes], last: bytes, cuts: list[int]) -> None:
    store = MemoryStore(FILES)
    wire = Wire(store)
    tcb = wire.connect()
    data = b"".join(requests) + last
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for begin, end in zip(places, places[1:], strict=False):
        if begin < end:
            tcb.send_bytes(data[begin:end])
            wire.run()
    wire.advance(0.5)
    assert wire.take(tcb) == expected(data, store)
