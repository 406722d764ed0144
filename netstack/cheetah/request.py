"""Reading one HTTP/1 request from the bytes of a stream (RFC 9112): no I/O, no state.

`parse` is the authority on what a request means.  The compiled scanner of the packet loop answers
only for requests that are plain beyond doubt and hands everything else here; the tests hold the two
against one another, and this one against h11.

REQ-1  The answer does not depend on how the stream was cut: what `parse` says of some bytes is never
       contradicted by what it says of more of them (only None, "not all there yet", may change).
REQ-2  A message whose end could be argued about closes its connection: it is refused, or answered
       once, and not one byte after its head is ever read as a request.  That is what makes request
       smuggling impossible here, since content is never needed.
REQ-3  Every bound of limits.py holds before anything is built from what it bounds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from netstack.cheetah.limits import MAX_BODY, MAX_FIELDS, MAX_HEAD, MAX_LEADING_BLANKS, MAX_REQUEST_LINE

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VERSION: Final = re.compile(rb"HTTP/([0-9])\.([0-9])")
_TARGET: Final = re.compile(rb"[!-~\x80-\xff]+")  # visible; stray high bytes are somebody's UTF-8
_VALUE: Final = re.compile(rb"[\t -~\x80-\xff]*")
_HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%\-]*)(?::[0-9]*)?")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")

_IMPLEMENTED: Final = frozenset((b"GET", b"HEAD"))
_KNOWN: Final = frozenset((b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT"))


class Refused(Exception):
    """The request cannot be honoured: `status` says why to the client, `reason` to a person."""

    def __init__(self, status: int, reason: str, *, head: bool = False) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason
        self.head = head  # it was a HEAD request, so the answer has no content


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may be answered: GET or HEAD, well formed, its end not in doubt."""

    method: bytes
    target: bytes
    minor: int  # of HTTP/1.x: 0 or 1
    fields: dict[bytes, bytes]  # by lower-case name; repeated ones joined by ", "
    keep_alive: bool  # another request may follow on this connection

    @property
    def head(self) -> bool:
        """True if the answer is to have no content."""
        return self.method == b"HEAD"


def parse(data: bytes) -> tuple[Request, int] | None:
    """The first request in `data` and the number of bytes that it takes; None if more must come.

    Raises Refused; the connection can carry nothing after that (REQ-2).
    """
    start = _skip_blank_lines(data)
    if start == len(data):
        return None
    if _TOKEN.match(data, start) is None:  # a TLS hello, say: no need to wait for its end
        if data[start:] == b"\r":
            return None
        raise Refused(400, "This is not an HTTP request.")
    line_end = data.find(b"\n", start)
    if (line_end if line_end >= 0 else len(data)) - start > MAX_REQUEST_LINE:
        raise Refused(414, f"A request line may have {MAX_REQUEST_LINE} bytes.")
    end = _end_of_head(data, line_end) if line_end >= 0 else -1
    if (end if end >= 0 else len(data)) - start > MAX_HEAD:
        raise Refused(431, f"A request may have {MAX_HEAD} bytes of fields.")
    if end < 0:
        return None
    method, target, minor = _request_line(_without_cr(data[start:line_end]))
    try:
        fields = _fields(data[line_end + 1 : end])
        content = _declared_content(fields, minor)
        _check_host(fields, minor)
        _check_method(method)
        if content > MAX_BODY:
            raise Refused(413, f"A request may carry {MAX_BODY} bytes, and none are needed.")
        if (expect := fields.get(b"expect")) is not None and expect.lower() != b"100-continue":
            raise Refused(417, "This expectation is unknown here.")
    except Refused as refused:
        refused.head = method == b"HEAD"
        raise
    return Request(method, target, minor, fields, not content and _keep_alive(fields, minor)), end


def _skip_blank_lines(data: bytes) -> int:
    """Where the request line begins: clients of old sent a CRLF too many after a POST."""
    at = 0
    for _ in range(MAX_LEADING_BLANKS):
        if data.startswith(b"\r\n", at):
            at += 2
        elif data.startswith(b"\n", at):
            at += 1
        else:
            break
    return at


def _end_of_head(data: bytes, line_end: int) -> int:
    """Just past the empty line, or -1.  A bare LF ends a line too (RFC 9112 section 2.2)."""
    long, short = data.find(b"\n\r\n", line_end), data.find(b"\n\n", line_end)
    if long < 0 or 0 <= short < long:
        return short + 2 if short >= 0 else -1
    return long + 3


def _without_cr(line: bytes) -> bytes:
    return line[:-1] if line.endswith(b"\r") else line


def _request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """Method, target and minor version; single spaces only, no HTTP/0.9."""
    parts = line.split(b" ")
    if len(parts) != 3:
        raise Refused(400, "The request line is not METHOD TARGET HTTP/1.1.")
    method, target, version = parts
    if _TOKEN.fullmatch(method) is None or _TARGET.fullmatch(target) is None:
        raise Refused(400, "The request line holds a character that it may not.")
    if (found := _VERSION.fullmatch(version)) is None:
        raise Refused(400, "The request line does not end in an HTTP version.")
    if found[1] != b"1":
        raise Refused(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    return method, target, min(int(found[2]), 1)


def _fields(block: bytes) -> dict[bytes, bytes]:
    """The field lines up to the empty one, repeated names joined (RFC 9110 section 5.3)."""
    lines = block.split(b"\n")[:-2]  # the empty line, and what follows its LF: nothing
    if len(lines) > MAX_FIELDS:
        raise Refused(431, f"A request may have {MAX_FIELDS} fields.")
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = _without_cr(line).partition(b":")
        # This refuses folded lines, and the space before a colon that some proxies read otherwise.
        if not colon or _TOKEN.fullmatch(name) is None:
            raise Refused(400, "A field line is not NAME: VALUE.")
        if _VALUE.fullmatch(value) is None:
            raise Refused(400, "A field value holds a control character.")
        key, value = name.lower(), value.strip(b" \t")
        if key in fields:
            if key in (b"host", b"content-length", b"transfer-encoding"):
                raise Refused(400, f"There is more than one {key.decode()} field.")
            value = fields[key] + b", " + value
        fields[key] = value
    return fields


def _declared_content(fields: dict[bytes, bytes], minor: int) -> int:
    """How much content follows the head; MAX_BODY stands for "some, in chunks"."""
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or minor == 0:
            raise Refused(400, "The length of the content is given twice, or in a way that HTTP/1.0 has not.")
        if coding.lower() != b"chunked":
            raise Refused(501, "The only transfer coding known here is chunked.")
        return MAX_BODY
    if length is None:
        return 0
    if _DIGITS.fullmatch(length) is None:
        raise Refused(400, "Content-Length is not a number.")
    return int(length)


def _check_host(fields: dict[bytes, bytes], minor: int) -> None:
    host = fields.get(b"host")
    if host is None:
        if minor:
            raise Refused(400, "HTTP/1.1 requires a Host field.")
    elif _HOST.fullmatch(host) is None:
        raise Refused(400, "The Host field names no host.")


def _check_method(method: bytes) -> None:
    if method in _IMPLEMENTED:
        return
    if method in _KNOWN:
        raise Refused(405, "This server only gives: GET and HEAD.")
    raise Refused(501, "This method is unknown here.")


def _keep_alive(fields: dict[bytes, bytes], minor: int) -> bool:
    options = {option.strip(b" \t").lower() for option in fields.get(b"connection", b"").split(b",")}
    return b"close" not in options and (minor == 1 or b"keep-alive" in options)
