"""One request and a FileStore into one Reply: where HTTP meets documents.

Nothing here sends anything: a Reply says which bytes come first, which pages of which document
follow, and whether the connection ends after them.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from netstack.cheetah import media
from netstack.cheetah.conditional import Validators, evaluate, select_range
from netstack.cheetah.dates import http_date
from netstack.cheetah.request import Refused, Request
from netstack.cheetah.response import (
    HTML,
    Field,
    Head,
    build_head,
    connection_option,
    error_page,
    moved_page,
)
from netstack.cheetah.store import Document, FileStore, Forbidden, IsDirectory, Missing
from netstack.cheetah.target import quote, split_target

INDEX: Final = (b"index.html", b"index.htm")
ALLOW: Final = b"GET, HEAD"
RETRY_AFTER: Final = b"1"
_BUSY: Final = frozenset((errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.EBUSY))


@dataclass(frozen=True, slots=True)
class Reply:
    """What to send: `head`, then `body`, then `length` bytes of `document` from `first` on."""

    status: int
    head: Head
    close: bool
    body: bytes = b""
    document: Document | None = None
    first: int = 0
    length: int = 0
    cacheable: bool = False  # the same request may be given the same reply while the document is current


def respond(request: Request, store: FileStore, now_ns: int) -> Reply:
    """The answer to a request at a time in ns since 1970; never raises for what a client or disk did."""
    try:
        return _document(request, store, now_ns // 10**9)
    except Refused as refused:
        refused.head = request.head
        return refuse(refused, now_ns, request.minor, request.keep_alive)
    except OSError as error:
        return failed(request, error, now_ns)


def failed(request: Request, error: OSError, now_ns: int) -> Reply:
    """The storage could not: 503 if it only lacks room at the moment (pins, memory), else 500."""
    status = 503 if error.errno in _BUSY else 500
    return refuse(Refused(status, "", head=request.head), now_ns, request.minor, request.keep_alive)


def refuse(refused: Refused, now_ns: int, minor: int = 1, keep_alive: bool = False) -> Reply:
    """An error page; without `keep_alive` the connection ends with it (REQ-2)."""
    page = error_page(refused.status, refused.reason)
    fields: list[Field] = [(b"Content-Type", HTML), (b"Content-Length", b"%d" % len(page))]
    if refused.status == 405:
        fields.append((b"Allow", ALLOW))
    if refused.status == 503:
        fields.append((b"Retry-After", RETRY_AFTER))
    option = connection_option(minor, keep_alive)
    head = build_head(refused.status, http_date(now_ns // 10**9), fields, option)
    return Reply(refused.status, head, not keep_alive, b"" if refused.head else page)


def _document(request: Request, store: FileStore, now: int) -> Reply:
    path, slash, query = split_target(request.target)
    found = store.open(path)
    if isinstance(found, IsDirectory):
        if path and not slash:
            return _moved(request, b"/" + quote(path) + b"/" + query, now)
        for name in INDEX:
            index = b"/".join((path, name)) if path else name
            found = store.open(index)
            if not isinstance(found, (Missing, IsDirectory)):
                path = index
                break
        else:
            raise Refused(403, "This folder has no index page, and its list is not shown.")
    elif slash and not isinstance(found, Forbidden):
        found = Missing()  # a file is not a folder
    if isinstance(found, (Missing, IsDirectory)):
        raise Refused(404, "")
    if isinstance(found, Forbidden):
        raise Refused(403, "")
    return _found(request, path, found, now)


def _moved(request: Request, location: bytes, now: int) -> Reply:
    page = moved_page(location)
    fields = [(b"Location", location), (b"Content-Type", HTML), (b"Content-Length", b"%d" % len(page))]
    option = connection_option(request.minor, request.keep_alive)
    head = build_head(301, http_date(now), fields, option)
    return Reply(301, head, not request.keep_alive, b"" if request.head else page)


def _found(request: Request, path: bytes, document: Document, now: int) -> Reply:
    size = document.size
    validators = Validators(b'"' + document.tag + b'"', min(document.mtime_ns // 10**9, now))
    fields: list[Field] = [
        (b"Last-Modified", http_date(validators.modified)),
        (b"ETag", validators.etag),
        (b"Cache-Control", b"no-cache"),  # ask again each time: a 304 is cheap, an old page is a lie
    ]
    option = connection_option(request.minor, request.keep_alive)
    date = http_date(now)
    outcome = evaluate(request.fields, validators)
    if outcome == 412:
        raise Refused(412, "")
    if outcome == 304:
        return Reply(304, build_head(304, date, fields, option), not request.keep_alive)
    fields += [(b"Accept-Ranges", b"bytes"), (b"Content-Type", media.content_type(path))]
    fields.append((b"X-Content-Type-Options", b"nosniff"))
    span = None if request.head else select_range(request.fields, size, validators, now)
    if isinstance(span, int):
        return _unsatisfiable(request, size, now)
    if span is None:
        fields.append((b"Content-Length", b"%d" % size))
        head = build_head(200, date, fields, option)
        length = 0 if request.head else size
        keep = validators.modified == document.mtime_ns // 10**9  # not while its date is "now" by clamping
        return Reply(200, head, not request.keep_alive, b"", document, 0, length, keep)
    last = span.first + span.length - 1
    fields.append((b"Content-Range", b"bytes %d-%d/%d" % (span.first, last, size)))
    fields.append((b"Content-Length", b"%d" % span.length))
    head = build_head(206, date, fields, option)
    return Reply(206, head, not request.keep_alive, b"", document, span.first, span.length)


def _unsatisfiable(request: Request, size: int, now: int) -> Reply:
    page = error_page(416)
    fields: list[Field] = [
        (b"Content-Range", b"bytes */%d" % size),
        (b"Content-Type", HTML),
        (b"Content-Length", b"%d" % len(page)),
    ]
    head = build_head(416, http_date(now), fields, connection_option(request.minor, request.keep_alive))
    return Reply(416, head, not request.keep_alive, page)
