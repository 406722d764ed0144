# cython: language_level=3, annotation_typing=False, infer_types=True, cdivision=True
"""How much may be in flight (RFC 5681, RFC 6582), as an object that can be replaced.

`Congestion` is NewReno with the initial window of RFC 6928.  Another controller overrides its methods; the stack asks
for `cwnd` only.  All amounts are octets.

CC-1  cwnd >= one segment.
CC-2  Growth is counted in octets acknowledged (RFC 3465), not in acknowledgements: many small ones earn nothing extra,
      and one for a 64 KB frame earns what its segments would have earned.
"""

from __future__ import annotations

INITIAL_SEGMENTS = 10
NO_THRESHOLD = 1 << 40
MAX_WINDOW = 1 << 30


class Congestion:
    """NewReno."""

    def __init__(self) -> None:
        self.begin(536)

    def begin(self, mss: int) -> int:
        """A new connection with segments of `mss` octets (RFC 6928 section 2)."""
        self.mss = mss
        self.cwnd = INITIAL_SEGMENTS * mss
        self.ssthresh = NO_THRESHOLD
        self.credit = 0
        return 0

    def acked(self, octets: int) -> int:
        """New data was acknowledged, outside recovery (RFC 5681 section 3.1)."""
        if self.cwnd < self.ssthresh:
            self.cwnd += octets
        else:
            self.credit += octets
            if self.credit >= self.cwnd:
                self.credit -= self.cwnd
                self.cwnd += self.mss
        if self.cwnd > MAX_WINDOW:
            self.cwnd = MAX_WINDOW
        return 0

    def lost(self, flight: int) -> int:
        """The third duplicate: half, plus the three segments that have left the network (section 3.2)."""
        self.halve(flight)
        self.cwnd = self.ssthresh + 3 * self.mss
        return 0

    def inflate(self) -> int:
        """One more duplicate during recovery: one more segment has left."""
        self.cwnd += self.mss
        return 0

    def partial(self, octets: int) -> int:
        """A partial acknowledgement in recovery (RFC 6582 section 3.2, step 3)."""
        self.cwnd -= octets
        if octets >= self.mss:
            self.cwnd += self.mss
        if self.cwnd < self.mss:
            self.cwnd = self.mss
        return 0

    def recovered(self, flight: int) -> int:
        """All that was outstanding when loss was seen is acknowledged."""
        limit = flight + self.mss
        if limit < 2 * self.mss:
            limit = 2 * self.mss
        self.cwnd = self.ssthresh if self.ssthresh < limit else limit
        return 0

    def timed_out(self, flight: int, again: bool) -> int:
        """The retransmission timer fired (RFC 5681 equation 4); for the same segment, it changes ssthresh once only."""
        if not again:
            self.halve(flight)
        self.cwnd = self.mss
        return 0

    def idle(self) -> int:
        """Nothing was sent for an RTO: start over from the initial window (section 4.1)."""
        restart = INITIAL_SEGMENTS * self.mss
        if self.cwnd > restart:
            self.cwnd = restart
        return 0

    def halve(self, flight: int) -> int:
        """ssthresh becomes half of what is in flight (equation 4)."""
        self.ssthresh = flight // 2
        if self.ssthresh < 2 * self.mss:
            self.ssthresh = 2 * self.mss
        self.credit = 0
        return 0
