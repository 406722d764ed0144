# cython: language_level=3, annotation_typing=False, infer_types=True
"""Segments that arrived before those they follow (RFC 9293 section 3.10.7.4).

REASM-1  Pieces are in sequence order and do not overlap.
REASM-2  `held` octets in at most PIECES pieces; what does not fit is dropped, and will be sent again.
"""

from __future__ import annotations

import cython

if not cython.compiled:
    from netstack.xio.seq import seq_add, seq_diff, seq_le, seq_lt

PIECES = 256


class Reassembly:
    """What one connection received out of order."""

    def __init__(self) -> None:
        self.held = 0
        self.pieces: list[tuple[int, bytes]] = []

    def insert(self, seq: int, data: bytes, edge: int) -> int:
        """Keep `data` at `seq`, without what is held already and without what lies beyond `edge`."""
        room = seq_diff(edge, seq)
        if room <= 0:
            return 0
        data = data[:room]
        place = 0
        while data and place < len(self.pieces):
            start, piece = self.pieces[place]
            end = seq_add(start, len(piece))
            if seq_le(end, seq):
                place += 1
                continue
            before = seq_diff(start, seq)
            if before > 0:
                self.add(place, seq, data[:before])
                place += 1
            known = seq_diff(end, seq)
            data = data[known:] if known < len(data) else b""
            seq = end
            place += 1
        if data:
            self.add(place, seq, data)
        return 0

    def add(self, place: int, seq: int, data: bytes) -> None:
        if data and len(self.pieces) < PIECES:
            self.pieces.insert(place, (seq, data))
            self.held += len(data)

    def take(self, seq: int) -> bytes:
        """What follows `seq` immediately, taken out; empty when it is still missing."""
        while self.pieces:
            start, piece = self.pieces[0]
            if seq_lt(seq, start):
                return b""
            del self.pieces[0]
            self.held -= len(piece)
            skip = seq_diff(seq, start)
            if skip < len(piece):
                return piece[skip:]
        return b""

    def clear(self) -> int:
        """Forget everything."""
        self.pieces.clear()
        self.held = 0
        return 0
