# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, initializedcheck=False
"""The fast reading of a request: in place, in C, and only when it is plain beyond doubt.

SCAN-1  What `Scan.run` takes, `request.parse` takes with the same end, the same method, the same target and the
        same wish to keep the connection; and nothing in it can change the answer except method, path, HTTP
        version and Connection. So the answer may come from a cache under (path, form).
SCAN-2  It says no to everything else: errors, conditions, ranges, content, incomplete or merely unusual
        requests. Then `request.parse` decides.

The tests compare the two on generated requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cython

if TYPE_CHECKING:
    from netstack.wire.octets import Octets

if not cython.compiled:
    from netstack.cheetah.limits import MAX_FIELDS as MOST_FIELDS
    from netstack.cheetah.limits import MAX_HEAD as LONGEST_HEAD
    from netstack.cheetah.limits import MAX_REQUEST_LINE as LONGEST_LINE

    # The token characters of RFC 9110 section 5.6.2 as two words of bits.
    TOKEN_LOW = 0x03FF6CFA00000000
    TOKEN_HIGH = 0x57FFFFFFC7FFFFFE

    # The forms of an answer: which Connection field it carries (response.connection_option) and, as a bit of its
    # own, that it has no content.
    FORM_NEXT = 0  # HTTP/1.1, more may follow
    FORM_CLOSE = 1
    FORM_KEEP = 2  # HTTP/1.0 with keep-alive
    FORM_HEAD = 4

    def is_token(c: int) -> bool:
        """Whether an octet may stand in a token."""
        return c < 128 and bool((TOKEN_LOW if c < 64 else TOKEN_HIGH) >> (c & 63) & 1)


class Scan:
    """The result of the last `run`: where the path is, the form of the answer, where the request ends."""

    def __init__(self) -> None:
        self.path = 0
        self.path_length = 0
        self.form = 0
        self.end = 0

    def plain(self, data: bytes) -> bool:
        """`run` for Python callers."""
        return self.run(data, len(data))

    def run(self, data: Octets, length: int) -> bool:
        """True if `data` begins with a plain request, which the fields then describe."""
        if length > LONGEST_HEAD:
            length = LONGEST_HEAD
        if length < 18:
            return False
        head = 0
        if is_word(data, 0, b"get ", 4):
            at = 4
        elif is_word(data, 0, b"head ", 5):
            at = 5
            head = FORM_HEAD
        else:
            return False
        # The method is compared without regard to case like the rest, but only upper case is GET.
        if data[0] & 0x20 or data[1] & 0x20 or data[2] & 0x20 or (head and data[3] & 0x20) or data[at] != 0x2F:
            return False
        self.path = at
        size = 0
        while at < length:
            c = data[at]
            if c == 0x20:
                break
            if c == 0x3F and size == 0:  # the first question mark ends the path
                size = at - self.path
            if c < 0x21 or c > 0x7E or c == 0x23:
                return False
            at += 1
        self.path_length = size if size else at - self.path
        if at + 11 > length or at + 10 > LONGEST_LINE or not is_word(data, at, b" http/1.", 8):
            return False
        if data[at + 1] != 0x48 or data[at + 2] != 0x54 or data[at + 3] != 0x54 or data[at + 4] != 0x50:
            return False
        minor = data[at + 8] - 0x30
        if minor < 0 or minor > 1 or data[at + 9] != 0x0D or data[at + 10] != 0x0A:
            return False
        at += 11
        hosts = 0
        fields = 0
        option = 0  # 1 close, 2 keep-alive
        while at + 1 < length and data[at] != 0x0D:
            name = at
            while at < length and is_token(data[at]):
                at += 1
            size = at - name
            fields += 1
            if at >= length or size == 0 or data[at] != 0x3A or fields > MOST_FIELDS:
                return False
            at += 1
            while at < length and (data[at] == 0x20 or data[at] == 0x09):
                at += 1
            c = data[name] | 0x20
            if c == 0x68 and size == 4 and is_word(data, name, b"host", 4):
                hosts += 1
                at = skip_host(data, at, length)
            elif c == 0x63 and size == 10 and is_word(data, name, b"connection", 10):
                if option:
                    return False
                if at + 11 < length and is_word(data, at, b"keep-alive", 10):
                    option = 2
                    at += 10
                elif at + 6 < length and is_word(data, at, b"close", 5):
                    option = 1
                    at += 5
                else:
                    return False
            elif (
                (c == 0x69 and size > 3 and is_word(data, name, b"if-", 3))
                or (c == 0x72 and size == 5 and is_word(data, name, b"range", 5))
                or (c == 0x63 and size == 14 and is_word(data, name, b"content-length", 14))
                or (c == 0x74 and size == 17 and is_word(data, name, b"transfer-encoding", 17))
                or (c == 0x65 and size == 6 and is_word(data, name, b"expect", 6))
            ):
                return False
            else:
                while at < length:
                    c = data[at]
                    if c < 0x20 and c != 0x09 or c == 0x7F:
                        break
                    at += 1
            if at + 1 >= length or data[at] != 0x0D or data[at + 1] != 0x0A:
                return False
            at += 2
        if at + 1 >= length or data[at + 1] != 0x0A or hosts > 1 or (minor == 1 and hosts == 0):
            return False
        if option == 1 or (minor == 0 and option != 2):
            self.form = FORM_CLOSE | head
        else:
            self.form = (FORM_NEXT if minor else FORM_KEEP) | head
        self.end = at + 2
        return True


def is_word(data: Octets, at: int, word: bytes, size: int) -> bool:
    """Whether the `size` octets at `at`, all there, are `word` in any case; `word` is given in lower case."""
    i = 0
    while i < size:
        # Setting bit 5 lowers letters, but also turns CR into '-' and such: those are compared as they are.
        if data[at + i] != word[i] and not (0x41 <= data[at + i] <= 0x5A and data[at + i] + 0x20 == word[i]):
            return False
        i += 1
    return True


def skip_host(data: Octets, at: int, length: int) -> int:
    """Past a simple host and port; anything else leaves `at` where the caller's check for CR LF fails."""
    digits = 0
    while at < length:
        c = data[at]
        if 0x30 <= c <= 0x39 or (not digits and (0x41 <= c <= 0x5A or 0x61 <= c <= 0x7A or c == 0x2E or c == 0x2D)):
            at += 1
        elif c == 0x3A and not digits:
            digits = 1
            at += 1
        else:
            break
    return at
