# cython: language_level=3, annotation_typing=False, infer_types=True, cdivision=True
"""The retransmission timer's value (RFC 6298), in µs.

RTO-1  Only segments that were sent once are sampled (Karn; the caller sees to it).
RTO-2  MIN <= current() <= MAX.  MIN is 200 ms, below the RFC's one second, as every host of today has it: with exact
       clocks a spurious retransmission is rarer than the wait is long.
"""

from __future__ import annotations

INITIAL = 1_000_000
MIN = 200_000
MAX = 60_000_000
GRANULARITY = 1_000


class Rto:
    """SRTT, RTTVAR and the back-off of one connection."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> int:
        """As for a new connection."""
        self.srtt = 0
        self.rttvar = 0
        self.rto = INITIAL
        self.shift = 0
        return 0

    def sample(self, rtt: int) -> int:
        """Take a measured round trip (section 2)."""
        if rtt < 1:
            rtt = 1
        if self.srtt == 0:
            self.srtt = rtt
            self.rttvar = rtt // 2
        else:
            delta = self.srtt - rtt
            if delta < 0:
                delta = -delta
            self.rttvar += (delta - self.rttvar) // 4
            self.srtt += (rtt - self.srtt) // 8
        spread = 4 * self.rttvar
        if spread < GRANULARITY:
            spread = GRANULARITY
        self.rto = self.srtt + spread
        return 0

    def back_off(self) -> int:
        """The timer fired: twice as long (5.5)."""
        if self.shift < 12:
            self.shift += 1
        return 0

    def progress(self) -> int:
        """Something new was acknowledged: no back-off any more (5.7's spirit, as 3.10.8 of RFC 9293 allows)."""
        self.shift = 0
        return 0

    def current(self) -> int:
        """From now to the time-out."""
        value = self.rto
        if value < MIN:
            value = MIN
        value <<= self.shift
        return value if value < MAX else MAX
