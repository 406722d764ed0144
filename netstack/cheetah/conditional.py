"""Preconditions and ranges (RFC 9110 sections 13 and 14) for a document: no I/O.

The validators are one strong entity tag and a modification date of whole seconds.  Since a date is
that coarse, and a file can change twice in a second, a date counts for If-Range only when the
document is at least a second older than the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from netstack.cheetah.dates import parse_http_date

_ENTITY_TAG: Final = re.compile(rb'(W/)?("[!#-~\x80-\xff]*")')
_RANGE: Final = re.compile(rb"([0-9]{0,18})-([0-9]{0,18})")

Fields = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Validators:
    """What identifies a version of a document; `modified` is in seconds, never later than now."""

    etag: bytes
    modified: int


def evaluate(fields: Fields, validators: Validators) -> Literal[200, 304, 412]:
    """The preconditions of a GET or HEAD in the order of RFC 9110 section 13.2.2; 200 is "go on"."""
    if (tags := fields.get(b"if-match")) is not None:
        if not _any_match(tags, validators.etag, weak=False):
            return 412
    elif (date := _date(fields, b"if-unmodified-since")) is not None and validators.modified > date:
        return 412
    if (tags := fields.get(b"if-none-match")) is not None:
        return 304 if _any_match(tags, validators.etag, weak=True) else 200
    if (date := _date(fields, b"if-modified-since")) is not None and validators.modified <= date:
        return 304
    return 200


def _date(fields: Fields, name: bytes) -> int | None:
    text = fields.get(name)
    return parse_http_date(text) if text is not None else None


def _any_match(listed: bytes, etag: bytes, *, weak: bool) -> bool:
    """Whether a list of entity tags, or `*`, names ours; a weak tag matches only weakly."""
    if listed.strip() == b"*":
        return True
    return any(found[2] == etag and (weak or not found[1]) for found in _ENTITY_TAG.finditer(listed))


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` to `first + length`, length at least 1."""

    first: int
    length: int


def select_range(fields: Fields, size: int, validators: Validators, now: int) -> Span | None | Literal[416]:
    """The part that a GET asks for: a Span, None for the whole, 416 if it lies outside.

    One range is honoured; several, another unit, or nonsense are ignored, as RFC 9110 section 14.2
    allows.
    """
    unit, equals, spec = fields.get(b"range", b"").partition(b"=")
    if not equals or unit.strip().lower() != b"bytes":
        return None
    if (found := _RANGE.fullmatch(spec.strip(b" \t"))) is None or found[0] == b"-":
        return None
    if (condition := fields.get(b"if-range")) is not None and not _unchanged(condition, validators, now):
        return None
    first_text, last_text = found.groups()
    if not first_text:  # a suffix
        length = min(int(last_text), size)
        return Span(size - length, length) if length else 416
    first = int(first_text)
    if last_text and int(last_text) < first:
        return None
    if first >= size:
        return 416
    last = min(int(last_text), size - 1) if last_text else size - 1
    return Span(first, last - first + 1)


def _unchanged(condition: bytes, validators: Validators, now: int) -> bool:
    """If-Range: the very tag, or the very date if that date is a strong validator (section 13.1.5)."""
    if (found := _ENTITY_TAG.fullmatch(condition)) is not None:
        return not found[1] and found[2] == validators.etag
    return parse_http_date(condition) == validators.modified and now > validators.modified
