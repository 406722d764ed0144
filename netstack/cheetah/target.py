"""From a request target to the path of a document, and back to a target.

A path here is bytes without a leading slash, its parts non-empty, none of them `.` or `..`, no NUL in
it: what a FileStore takes.  A target that decodes to anything else is refused, not repaired: a
browser has resolved its dot segments before it asks, so one that arrives is an attempt to climb.
"""

from __future__ import annotations

import re
from typing import Final

from netstack.cheetah.limits import MAX_PATH
from netstack.cheetah.request import Refused

_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})?")
_ABSOLUTE: Final = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/")


def split_target(target: bytes) -> tuple[bytes, bool, bytes]:
    """(path, it ended in a slash, query with its `?` or nothing).

    Takes the origin form and the absolute form (RFC 9112 section 3.2).  Raises Refused 400, or 414 if
    the path is longer than MAX_PATH.
    """
    if (found := _ABSOLUTE.match(target)) is not None:
        target = target[found.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    if not target.startswith(b"/"):
        raise Refused(400, "The target is neither a path nor an http URL.")
    if b"#" in target:
        raise Refused(400, "A fragment is not part of a request.")
    raw, mark, query = target.partition(b"?")
    if b"%" in raw:
        if b"%2f" in raw.lower():  # would be a slash inside one name, which no file system has
            raise Refused(404, "No file has a slash in its name.")
        raw = _ESCAPE.sub(_unescape, raw)
    if b"\0" in raw:
        raise Refused(400, "There is a zero byte in the path.")
    parts = [part for part in raw.split(b"/") if part]
    if b".." in parts or b"." in parts:
        raise Refused(400, "The path does not stay where it is.")
    path = b"/".join(parts)
    if len(path) > MAX_PATH:
        raise Refused(414, f"A path may have {MAX_PATH} bytes.")
    return path, raw.endswith(b"/"), mark + query


def _unescape(found: re.Match[bytes]) -> bytes:
    if found[1] is None:
        raise Refused(400, "A percent sign is not followed by two hexadecimal digits.")
    return bytes((int(found[1], 16),))


def quote(path: bytes) -> bytes:
    """`path` as it may stand in a target or a Location field."""
    return b"".join(bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte for byte in path)
