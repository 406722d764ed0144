"""The request parser: what it takes, what it refuses, and that cutting the stream changes nothing."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.cheetah.limits import MAX_BODY, MAX_FIELDS, MAX_HEAD, MAX_LEADING_BLANKS, MAX_REQUEST_LINE
from netstack.cheetah.request import Refused, Request, parse

GET = b"GET /a/b?c HTTP/1.1\r\nHost: h\r\n\r\n"


def answer(data: bytes) -> object:
    """The result of `parse`, a refusal being its status."""
    try:
        return parse(data)
    except Refused as refused:
        return refused.status


def taken(data: bytes) -> Request:
    found = parse(data)
    assert found is not None
    assert found[1] == len(data)
    return found[0]


def test_plain_request() -> None:
    request = taken(GET)
    assert (request.method, request.target, request.minor) == (b"GET", b"/a/b?c", 1)
    assert request.fields == {b"host": b"h"}
    assert request.keep_alive
    assert not request.head


def test_pipelined_requests_are_taken_one_by_one() -> None:
    found = parse(GET + GET)
    assert found is not None
    assert found[1] == len(GET)


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x, close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET / HTTP/1.9\r\nHost: h\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        (b"\r\n\nGET / HTTP/1.1\nHost: h\n\n", True),
    ],
)
def test_keep_alive(head: bytes, keep_alive: bool) -> None:
    assert taken(head).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400),
        (b"GET / http/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"G@T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"\r\n" * MAX_LEADING_BLANKS + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nName : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1), 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417),
        (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    ],
)
def test_refused(data: bytes, status: int) -> None:
    assert answer(data) == status


def test_bounds_are_exact() -> None:
    frame = b"GET / HTTP/1.0\r\n"
    line = b"GET /%s HTTP/1.0\r\n"
    longest = line % (b"a" * (MAX_REQUEST_LINE - len(line % b"") + 1))  # the line feed is not counted
    assert taken(longest + b"\r\n").method == b"GET"
    assert answer(longest.replace(b"/a", b"/aa", 1) + b"\r\n") == 414
    assert answer(b"G" * (MAX_REQUEST_LINE + 1)) == 414
    filler = b"X: " + b"a" * (MAX_HEAD - len(frame) - len(b"X: \r\n\r\n")) + b"\r\n\r\n"
    assert taken(frame + filler).fields[b"x"]
    assert answer(frame + b"a" + filler) == 431
    many = [b"X-%d: y\r\n" % number for number in range(MAX_FIELDS)]
    assert len(taken(frame + b"".join(many) + b"\r\n").fields) == MAX_FIELDS
    assert answer(frame + b"".join(many) + b"Z: z\r\n\r\n") == 431


def test_a_refused_head_request_is_known_as_one() -> None:
    with pytest.raises(Refused) as caught:
        parse(b"HEAD / HTTP/1.1\r\n\r\n")
    assert caught.value.head


PIECES = st.sampled_from(
    [
        b"GET ", b"HEAD ", b"POST ", b"/", b"/x?y", b"http://h/z", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r",
        b"Host: h", b"Host:", b"X-Y: z", b"Connection: close", b"Connection: keep-alive", b"Content-Length: 0",
        b"Content-Length: 7", b"Transfer-Encoding: chunked", b" ", b"\t", b":", b"\0", b"\xff", b"a" * 5000,
        b"\r\n\r\n",
    ]
)  # fmt: skip
NOISE = st.lists(PIECES | st.binary(max_size=6), max_size=14).map(b"".join)
ALMOST = st.builds(
    lambda method, target, version, fields, tail: method + target + version + b"\r\n" + fields + b"\r\n" + tail,
    st.sampled_from([b"GET ", b"HEAD ", b"POST "]),
    st.sampled_from([b"/", b"/a%20b", b"*", b"http://h/"]),
    st.sampled_from([b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b""]),
    st.lists(PIECES, max_size=5).map(lambda lines: b"".join(line + b"\r\n" for line in lines)),
    st.sampled_from([b"", b"GET / HTTP/1.1\r\n"]),
)


@given(NOISE | ALMOST)
def test_cutting_the_stream_changes_nothing(data: bytes) -> None:
    whole = answer(data)
    for cut in {*range(0, min(len(data), 40)), len(data) // 2, len(data) - 1}:
        part = answer(data[: max(cut, 0)])
        assert part is None or part == whole


@given(NOISE | ALMOST)
def test_whatever_we_take_h11_reads_alike(data: bytes) -> None:
    """h11 is the oracle for well-formed requests: same method, target, fields, and same wish to go on."""
    try:
        found = parse(data)
    except Refused:
        return
    if found is None:
        return
    request, length = found
    oracle = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    oracle.receive_data(data[:length].lstrip(b"\r\n"))
    event = oracle.next_event()
    assert isinstance(event, h11.Request), event
    assert (event.method, event.target) == (request.method, request.target)
    assert {name for name, _ in event.headers} == set(request.fields)
    if request.keep_alive and request.minor:
        assert isinstance(oracle.next_event(), h11.EndOfMessage)
        assert oracle.their_state is h11.DONE
    elif request.minor and b"close" not in request.fields.get(b"connection", b"").lower():
        assert not isinstance(oracle.next_event(), h11.EndOfMessage)  # content follows


@given(st.binary(max_size=80))
def test_bytes_at_random_do_no_harm(data: bytes) -> None:
    assert answer(data) in (None, 400, 405, 501, 505) or isinstance(answer(data), tuple)
