"""The fast scanner against the parser: whatever it takes, the parser takes alike (SCAN-1)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netstack.cheetah.limits import MAX_FIELDS, MAX_HEAD, MAX_REQUEST_LINE
from netstack.cheetah.request import parse
from netstack.cheetah.response import connection_option
from netstack.cheetah.scan import Scan

FORMS = {0: None, 1: b"close", 2: b"keep-alive"}
CONDITIONS = {b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range", b"range"}

NAMES = st.sampled_from(
    b"Host host Connection CONNECTION User-Agent Accept Accept-Encoding Cookie Content-Length Content-Type "
    b"Transfer-Encoding Expect Range Referer If-None-Match if-x If Upgrade Te Connectiom Hos Rangf X-Y".split()
)
VALUES = st.sampled_from(
    [
        *(b"h", b"example.org:80", b"[::1]", b"a/b", b"", b"close", b"keep-alive", b"Keep-Alive", b"close "),
        *(b"close, x", b"keep-alivex", b"0", b"5", b"chunked", b"*/*", b"\t x", b"\xff", b"\x7f", b"a\rb", b"\0"),
        *(b"a:b:c", b"h:80x", b"bytes=0-1", b"-" * 300),
    ]
)
FIELDS = st.tuples(NAMES, st.sampled_from([b": ", b":", b" : ", b":\t"]), VALUES).map(b"".join)
NORMAL = st.sampled_from([b"Host: h", b"Accept: */*", b"Connection: close", b"User-Agent: x (y; z)", b"Host:h:8080"])
REQUESTS = st.builds(
    lambda method, target, version, fields, ending, tail: (
        method + target + version + ending + b"".join(line + ending for line in fields) + ending + tail
    ),
    st.sampled_from([b"GET ", b"HEAD ", b"GET ", b"get ", b"GEt ", b"POST "]),
    st.sampled_from([b"/", b"/a/b.html", b"/a?b?c", b"/?", b"/%41", b"*", b"http://h/", b"/\xff", b"/a#b", b""]),
    st.sampled_from([b" HTTP/1.1", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/1.2", b" http/1.1", b" HTTP/2.0", b""]),
    st.lists(NORMAL | FIELDS, max_size=5),
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"]),
    st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"\r\n"]),
)


def check(data: bytes) -> bool:
    """True if the scanner took `data`, having held it against the parser."""
    scan = Scan()
    if not scan.plain(data):
        return False
    found = parse(data)
    assert found is not None
    request, end = found
    assert scan.end == end
    assert data[scan.path : scan.path + scan.path_length] == request.target.partition(b"?")[0]
    assert bool(scan.form & 4) == request.head
    assert FORMS[scan.form & 3] == connection_option(request.minor, request.keep_alive)
    assert not CONDITIONS & set(request.fields)
    return True


@settings(max_examples=800, deadline=None)
@given(REQUESTS, st.integers(0, 400))
def test_scanner_and_parser_agree(data: bytes, cut: int) -> None:
    check(data)
    check(data[:-cut] if cut else data)


@settings(max_examples=400, deadline=None)
@given(REQUESTS, st.integers(0, 300), st.integers(0, 255))
def test_they_agree_on_damaged_requests(data: bytes, where: int, octet: int) -> None:
    at = where % len(data)
    check(data[:at] + bytes((octet,)) + data[at + 1 :])


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET / HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n",
        b"GET /index.html?x=y HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\nHost: h\r\nUser-Agent: ApacheBench/2.3\r\nAccept: */*\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nhost:h\r\nCONNECTION: CLOSE\r\n\r\n",
        b"GET /style.css HTTP/1.1\r\nHost: 10.42.0.2\r\nConnection: keep-alive\r\nUser-Agent: Mozilla/5.0 (X11; Linux "
        b'x86_64) AppleWebKit/537.36\r\nsec-ch-ua: "Chromium";v="1"\r\nAccept: text/css,*/*;q=0.1\r\nReferer: '
        b"http://10.42.0.2/\r\nAccept-Encoding: gzip, deflate\r\nAccept-Language: en\r\n\r\n",
    ],
)
def test_what_clients_send_is_plain(request_text: bytes) -> None:
    assert check(request_text)
    assert check(request_text + request_text)
    assert not any(check(request_text[:cut]) for cut in range(len(request_text)))


def test_bounds_are_the_parser_s() -> None:
    line = b"GET /%s HTTP/1.0\r\n"
    longest = line % (b"a" * (MAX_REQUEST_LINE - len(line % b"") + 1))
    assert check(longest + b"\r\n")
    assert not Scan().plain(longest.replace(b"/a", b"/aa", 1) + b"\r\n")
    frame = b"GET / HTTP/1.0\r\n"
    filler = b"X: " + b"a" * (MAX_HEAD - len(frame) - len(b"X: \r\n\r\n")) + b"\r\n\r\n"
    assert check(frame + filler)
    assert not Scan().plain(frame + b"a" + filler)
    many = b"".join(b"X-%d: y\r\n" % number for number in range(MAX_FIELDS))
    assert check(frame + many + b"\r\n")
    assert not Scan().plain(frame + many + b"Z: z\r\n\r\n")
