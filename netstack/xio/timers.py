# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True
"""A timer wheel of connections. It knows when to look at one again, and nothing of what its timers mean.

Times are microseconds on a monotonic clock that the caller reads; there is no clock here.

WHEEL-1  An entry is in at most one slot. `due` is when the wheel will hand it out, 0 when it is not in the wheel.
WHEEL-2  `schedule(entry, when)` guarantees that the entry is handed out no later than one tick after `when` if `expire`
         is called often enough. It may come early (beyond the horizon, or because its deadline was put off): the holder
         looks at its own deadlines and schedules again. So an acknowledgement that moves a deadline costs one store.
WHEEL-3  `expire` hands out at most what was due at its `now`; what is scheduled meanwhile waits for the next call.
"""

from __future__ import annotations

import cython

if not cython.compiled:
    TICK = 4096  # µs in a slot
    SLOTS = 4096  # so the horizon is 16.8 s


class Timed:
    """What the wheel holds: a link in the list of its slot."""

    if not cython.compiled:

        def __init__(self) -> None:
            self.due = 0
            self.slot = 0
            self.earlier: Timed | None = None
            self.later: Timed | None = None


class Wheel:
    """SLOTS lists of entries, one per tick, and the position up to which they were handed out."""

    def __init__(self, now: int) -> None:
        self.slots: list[Timed | None] = [None] * SLOTS
        self.position = now // TICK
        self.nothing: list[Timed] = []
        self.earliest = 0  # a tick before which every slot is empty
        self.count = 0

    def schedule(self, entry: Timed, when: int) -> int:
        """Hand `entry` out at `when` or before. An entry that is already due earlier stays where it is."""
        if entry.due:
            if entry.due <= when:
                return 0
            self.cancel(entry)
        tick = when // TICK + 1
        if tick <= self.position:
            tick = self.position + 1
        if tick > self.position + SLOTS - 1:
            tick = self.position + SLOTS - 1
        if tick < self.earliest:
            self.earliest = tick
        slot = tick % SLOTS
        entry.due = tick * TICK
        entry.slot = slot
        head = self.slots[slot]
        entry.earlier = None
        entry.later = head
        if head is not None:
            head.earlier = entry
        self.slots[slot] = entry
        self.count += 1
        return 0

    def cancel(self, entry: Timed) -> int:
        """Take `entry` out if it is in."""
        if not entry.due:
            return 0
        entry.due = 0
        if entry.earlier is None:
            self.slots[entry.slot] = entry.later
        else:
            entry.earlier.later = entry.later
        if entry.later is not None:
            entry.later.earlier = entry.earlier
        entry.earlier = None
        entry.later = None
        self.count -= 1
        return 0

    def expire(self, now: int) -> list[Timed]:
        """Every entry that is due at `now`, taken out of the wheel."""
        tick = now // TICK
        if tick <= self.position:
            return self.nothing
        due: list[Timed] = []
        first = self.position + 1
        if tick - first >= SLOTS:
            first = tick - SLOTS + 1
        self.position = tick
        if self.count == 0:
            return due
        while first <= tick:
            entry = self.slots[first % SLOTS]
            while entry is not None:
                later = entry.later
                entry.due = 0
                entry.earlier = None
                entry.later = None
                self.count -= 1
                due.append(entry)
                entry = later
            self.slots[first % SLOTS] = None
            first += 1
        return due

    def next_due(self) -> int:
        """When `expire` next has something to hand out, or 0 when the wheel is empty.  Passes an empty slot once."""
        if self.count == 0:
            return 0
        tick = self.position + 1
        if tick < self.earliest:
            tick = self.earliest
        while self.slots[tick % SLOTS] is None:
            tick += 1
        self.earliest = tick
        return tick * TICK
