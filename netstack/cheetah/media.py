"""Content types by the end of a document's name.

The table is our own and short, so that the answer does not depend on what the host has in
/etc/mime.types.  Text is declared to be UTF-8.
"""

from __future__ import annotations

from typing import Final

DEFAULT: Final = b"application/octet-stream"

_TYPES: Final[dict[bytes, bytes]] = {
    b"html": b"text/html; charset=utf-8",
    b"htm": b"text/html; charset=utf-8",
    b"css": b"text/css; charset=utf-8",
    b"js": b"text/javascript; charset=utf-8",
    b"mjs": b"text/javascript; charset=utf-8",
    b"json": b"application/json",
    b"map": b"application/json",
    b"webmanifest": b"application/manifest+json",
    b"xml": b"application/xml",
    b"atom": b"application/atom+xml",
    b"rss": b"application/rss+xml",
    b"xhtml": b"application/xhtml+xml",
    b"wasm": b"application/wasm",
    b"pdf": b"application/pdf",
    b"txt": b"text/plain; charset=utf-8",
    b"text": b"text/plain; charset=utf-8",
    b"md": b"text/plain; charset=utf-8",
    b"rst": b"text/plain; charset=utf-8",
    b"log": b"text/plain; charset=utf-8",
    b"py": b"text/plain; charset=utf-8",
    b"c": b"text/plain; charset=utf-8",
    b"h": b"text/plain; charset=utf-8",
    b"csv": b"text/csv; charset=utf-8",
    b"ics": b"text/calendar; charset=utf-8",
    b"svg": b"image/svg+xml",
    b"png": b"image/png",
    b"jpg": b"image/jpeg",
    b"jpeg": b"image/jpeg",
    b"gif": b"image/gif",
    b"webp": b"image/webp",
    b"avif": b"image/avif",
    b"ico": b"image/vnd.microsoft.icon",
    b"bmp": b"image/bmp",
    b"tif": b"image/tiff",
    b"tiff": b"image/tiff",
    b"woff": b"font/woff",
    b"woff2": b"font/woff2",
    b"ttf": b"font/ttf",
    b"otf": b"font/otf",
    b"mp3": b"audio/mpeg",
    b"ogg": b"audio/ogg",
    b"opus": b"audio/ogg",
    b"wav": b"audio/wav",
    b"flac": b"audio/flac",
    b"m4a": b"audio/mp4",
    b"mp4": b"video/mp4",
    b"webm": b"video/webm",
    b"ogv": b"video/ogg",
    b"zip": b"application/zip",
    b"gz": b"application/gzip",
    b"tgz": b"application/gzip",
    b"xz": b"application/x-xz",
    b"zst": b"application/zstd",
    b"tar": b"application/x-tar",
}


def content_type(name: bytes) -> bytes:
    """The media type for a file of this name (a path is fine), DEFAULT when the ending is unknown."""
    base = name.rpartition(b"/")[2]
    stem, dot, ending = base.rpartition(b".")
    return _TYPES.get(ending.lower(), DEFAULT) if dot and stem else DEFAULT
