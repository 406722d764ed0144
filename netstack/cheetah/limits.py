"""The bounds of the HTTP server, each with a name, in one place.

Nothing that a client sends makes the server hold more than these allow.  Sizes are bytes, times
seconds.  The tests of each bound import it from here.
"""

from __future__ import annotations

from typing import Final

MAX_REQUEST_LINE: Final = 8192
"""Longest request line with its line end; more is 414."""

MAX_HEAD: Final = 16384
"""Longest request line and fields together; more is 431."""

MAX_FIELDS: Final = 100
"""Most fields in one request; more is 431."""

MAX_BODY: Final = 1 << 20
"""Largest declared content that is ignored in silence; more is 413."""

MAX_PATH: Final = 4096
"""Longest decoded path; more is 414."""

MAX_LEADING_BLANKS: Final = 4
"""Empty lines that may precede a request line (RFC 9112 section 2.2); more is 400."""

HEAD_TIMEOUT: Final = 10.0
"""From the first byte of a request to its last; then 408."""

IDLE_TIMEOUT: Final = 60.0
"""A connection with no request and nothing left to send is closed after this."""

MAX_CACHED: Final = 4096
"""Prebuilt responses held at once."""

MAX_CACHED_BYTES: Final = 128 << 20
"""Document bytes that the prebuilt responses may keep pinned."""

MAX_PIPELINE: Final = 16
"""Responses queued on one connection before further requests on it must wait."""
