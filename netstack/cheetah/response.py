"""Heads of responses and the pages of errors (RFC 9112 section 4, RFC 9110 section 15): no I/O.

Every head has its Date right after the status line, DATE_LENGTH bytes at an offset that is told, so
that a response can be kept and its date renewed in place.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Final

from netstack.cheetah.dates import DATE_LENGTH

REASONS: Final = {
    200: "OK",
    206: "Partial Content",
    301: "Moved Permanently",
    304: "Not Modified",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    412: "Precondition Failed",
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}

HTML: Final = b"text/html; charset=utf-8"

Field = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Head:
    """The bytes before the content; `date_at` is where its DATE_LENGTH bytes of Date begin."""

    data: bytes
    date_at: int


def build_head(status: int, date: bytes, fields: list[Field], connection: bytes | None = None) -> Head:
    """A status line, Date, Server, `fields` in order, and Connection if it has to be said."""
    if len(date) != DATE_LENGTH:
        raise ValueError(f"a date has {DATE_LENGTH} bytes: {date!r}")
    start = b"HTTP/1.1 %d %s\r\nDate: " % (status, REASONS[status].encode())
    lines = [start + date, b"Server: Cheetah"]
    lines += [name + b": " + value for name, value in fields]
    if connection is not None:
        lines.append(b"Connection: " + connection)
    return Head(b"\r\n".join(lines) + b"\r\n\r\n", len(start))


def connection_option(minor: int, keep_alive: bool) -> bytes | None:
    """What the Connection field has to say: HTTP/1.0 closes unless told, HTTP/1.1 the other way."""
    if keep_alive:
        return None if minor else b"keep-alive"
    return b"close"


_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{status} {reason}</title>
<style>
:root{{color-scheme:light dark}}
body{{margin:0;min-height:100vh;display:grid;place-items:center;font:1.05rem/1.5 system-ui,sans-serif;
background:light-dark(#faf7f0,#16150f);color:light-dark(#2b2418,#e9e2d2)}}
main{{max-width:30rem;padding:2rem}}
h1{{margin:0;font-size:4.5rem;line-height:1;font-weight:800;letter-spacing:-.04em;color:#d0762b}}
h2{{margin:.2rem 0 1rem;font-weight:600}}
footer{{margin-top:2.5rem;font-size:.85rem;opacity:.6}}
</style>
<main><h1>{status}</h1><h2>{reason}</h2><p>{text}</p><footer>Cheetah, on an exokernel</footer></main>
"""

_TEXTS: Final = {
    403: "There is something here, but it is not for everybody.",
    404: "There is no document of this name. Perhaps it moved, or the address has a slip of the pen.",
    408: "The request did not arrive in time.",
    412: "The document is no longer what the request expected.",
    416: "The document does not reach that far.",
    500: "The storage could not be read. This is our fault.",
    503: "The server is at its limit. Please try again in a moment.",
}


def error_page(status: int, text: str = "") -> bytes:
    """A small page for people; `text` is plain and is escaped."""
    said = html.escape(text or _TEXTS.get(status, ""))
    return _PAGE.format(status=status, reason=html.escape(REASONS[status]), text=said).encode()


def moved_page(location: bytes) -> bytes:
    """The content of a redirect, for clients that do not follow."""
    where = html.escape(location.decode("ascii", "replace"))
    return f'<!doctype html><title>Moved</title><p>This is at <a href="{where}">{where}</a>.\n'.encode()
