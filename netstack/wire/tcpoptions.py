"""TCP options: MSS, window scale, SACK, timestamps (RFC 9293 section 3.1, RFC 7323, RFC 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from netstack.wire.header import Malformed, Octets, check
from netstack.wire.octets import get16, get32

OPTION_END: Final = 0
OPTION_NOP: Final = 1
OPTION_MSS: Final = 2
OPTION_WINDOW_SCALE: Final = 3
OPTION_SACK_PERMITTED: Final = 4
OPTION_SACK: Final = 5
OPTION_TIMESTAMPS: Final = 8

LENGTH_MSS: Final = 4
LENGTH_WINDOW_SCALE: Final = 3
LENGTH_SACK_PERMITTED: Final = 2
LENGTH_TIMESTAMPS: Final = 10
SACK_BLOCK: Final = 8

MAX_OPTIONS: Final = 40
MAX_SHIFT: Final = 14
MAX_SACK_BLOCKS: Final = 4


def walk_options(octets: Octets) -> Iterator[tuple[int, memoryview]]:
    """Each option but end and no-operation, as (kind, data). Raises Malformed at one that does not fit (MUST-7)."""
    view = memoryview(octets)
    at = 0
    while at < len(view) and view[at] != OPTION_END:
        if view[at] == OPTION_NOP:
            at += 1
            continue
        length = view[at + 1] if at + 1 < len(view) else 0
        if length < 2 or at + length > len(view):
            raise Malformed("tcp.options", f"kind {view[at]} has length {length}", "RFC 9293 section 3.1")
        yield view[at], view[at + 2 : at + length]
        at += length


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one segment. Unknown ones are passed over (RFC 9293 MUST-6); of a repeated one the last counts.

    mss: octets; window_scale: shift 0..14; sack: up to four (left edge, right edge); timestamps: (value, echo reply).
    """

    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    sack: tuple[tuple[int, int], ...] = ()
    timestamps: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.mss is not None:
            check("tcp.mss", self.mss, 1, 0xFFFF, "RFC 9293 section 3.7.1")
        if self.window_scale is not None:
            check("tcp.window_scale", self.window_scale, 0, MAX_SHIFT, "RFC 7323 section 2.3")
        check("tcp.sack blocks", len(self.sack), 0, MAX_SACK_BLOCKS, "RFC 2018 section 3")
        for block in self.sack:
            check("tcp.sack edges", len(block), 2, 2, "RFC 2018 section 3")
            for edge in block:
                check("tcp.sack edge", edge, 0, 0xFFFFFFFF, "RFC 2018 section 3")
        if self.timestamps is not None:
            check("tcp.timestamps length", len(self.timestamps), 2, 2, "RFC 7323 section 3.2")
            for stamp in self.timestamps:
                check("tcp.timestamps", stamp, 0, 0xFFFFFFFF, "RFC 7323 section 3.2")
        check("tcp.options length", len(self.pack()), 0, MAX_OPTIONS, "RFC 9293 section 3.1")

    @classmethod
    def parse(cls, octets: Octets, *, syn: bool) -> Options:
        """Read received options. Those that belong into a SYN are ignored elsewhere (RFC 7323 section 2.2)."""
        mss: int | None = None
        window_scale: int | None = None
        sack_permitted = False
        sack: tuple[tuple[int, int], ...] = ()
        timestamps: tuple[int, int] | None = None
        for kind, data in walk_options(octets):
            if kind == OPTION_MSS:
                _check_length("tcp.mss", data, LENGTH_MSS, "RFC 9293 section 3.1")
                mss = get16(data, 0)
            elif kind == OPTION_WINDOW_SCALE:
                _check_length("tcp.window_scale", data, LENGTH_WINDOW_SCALE, "RFC 7323 section 2.2")
                window_scale = min(data[0], MAX_SHIFT)  # RFC 7323 section 2.3: a larger one counts as 14
            elif kind == OPTION_SACK_PERMITTED:
                _check_length("tcp.sack_permitted", data, LENGTH_SACK_PERMITTED, "RFC 2018 section 2")
                sack_permitted = True
            elif kind == OPTION_SACK:
                if len(data) % SACK_BLOCK or not data:
                    raise Malformed("tcp.sack", f"has length {len(data) + 2}", "RFC 2018 section 3")
                sack = tuple((get32(data, at), get32(data, at + 4)) for at in range(0, len(data), SACK_BLOCK))
            elif kind == OPTION_TIMESTAMPS:
                _check_length("tcp.timestamps", data, LENGTH_TIMESTAMPS, "RFC 7323 section 3.2")
                timestamps = (get32(data, 0), get32(data, 4))
        if not syn:
            return cls(sack=sack, timestamps=timestamps)
        return cls(mss, window_scale, sack_permitted, sack, timestamps)

    def pack(self) -> bytes:
        """The options as whole words, each padded in front so that its numbers lie on word boundaries."""
        out = bytearray()
        if self.mss is not None:
            out += bytes((OPTION_MSS, LENGTH_MSS)) + self.mss.to_bytes(2, "big")
        if self.window_scale is not None:
            out += bytes((OPTION_NOP, OPTION_WINDOW_SCALE, LENGTH_WINDOW_SCALE, self.window_scale))
        if self.sack_permitted:
            out += bytes((OPTION_NOP, OPTION_NOP, OPTION_SACK_PERMITTED, LENGTH_SACK_PERMITTED))
        if self.timestamps is not None:
            out += bytes((OPTION_NOP, OPTION_NOP, OPTION_TIMESTAMPS, LENGTH_TIMESTAMPS))
            out += b"".join(stamp.to_bytes(4, "big") for stamp in self.timestamps)
        if self.sack:
            out += bytes((OPTION_NOP, OPTION_NOP, OPTION_SACK, 2 + SACK_BLOCK * len(self.sack)))
            out += b"".join(edge.to_bytes(4, "big") for block in self.sack for edge in block)
        return bytes(out)


def _check_length(field: str, data: memoryview, length: int, source: str) -> None:
    check(f"{field} length", len(data) + 2, length, length, source)


NO_OPTIONS: Final = Options()
