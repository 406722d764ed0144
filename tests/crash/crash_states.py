"""Every state that a power failure may leave, from the log of a run.

Before each cut lies what completed barriers cover: all of it is there.  Of the writes since then, the *window*, a disk
has any: at each cut (behind every write) these states are made of it:

STATES-1  the writes in order, the last one torn at every sector boundary;
STATES-2  every subset of the window's writes, when it has at most `exhaustive` of them; in a longer one each single
          write missing, each single one present, each pair with the last, and random subsets;
STATES-3  each write of the window torn at every sector boundary, with all others there and with none;
STATES-4  random subsets of the window's *sectors*, as a disk that tears and reorders at will may leave.

A state is counted once, however many cuts lead to it; it is looked at again when more had been promised at a later cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from crash_record import Barrier, Mark, Record, Write, digest_of

from xok_host.abi.types import SECTOR

EXHAUSTIVE = 8
"""Writes in a window up to which every subset is taken by default."""
SAMPLES = 24
"""Random subsets of sectors at each cut by default."""
TEARS = 24
"""Tears of earlier writes at each cut at most; the last write is torn everywhere."""

Parts = list[tuple[Write, Iterable[int]]]
Look = Callable[[bytearray, Any], bool]
"""Looks at an image with what was promised; raises AssertionError, or tells whether it mounted it."""


@dataclass
class Tally:
    """What has been looked at under one name."""

    states: int = 0
    looks: int = 0
    mounted: int = 0
    writes: int = 0
    runs: int = 0

    def __str__(self) -> str:
        return f"{self.states:8} states at {self.writes} cuts of {self.runs} runs, {self.mounted} mounted"


TALLIES: dict[str, Tally] = {}
"""By workload, for the summary at the end of the run."""


class Explorer:
    """Goes through the logs of one workload's runs.  `seen` spans them: a state of two runs is one state."""

    def __init__(
        self, name: str, look: Look, *, exhaustive: int = EXHAUSTIVE, samples: int = SAMPLES, count: bool = True
    ) -> None:
        self.tally = TALLIES.setdefault(name, Tally()) if count else Tally()
        self.look = look
        self.exhaustive = exhaustive
        self.samples = samples
        self.random = random.Random(name)
        self.limit = 1 << 62
        """States to stop at."""
        self._images: set[int] = set()
        self._looked: set[int] = set()
        """Digests of images, each with the number of the expectation that they met."""

    def explore(self, image: bytes, log: list[Record], *, again: bool = False) -> int:
        """All states of one run; how many were new.  `again`: the run was explored, take more random ones only."""
        before = self.tally.states
        self.image = bytearray(image)
        self._base: dict[int, int] = {}
        self.digest = 0
        for sector in range(len(image) // SECTOR):
            self.digest ^= self._digest_of_base(sector)
        self.window: list[Write] = []
        self.expect: Any = None
        self.tally.runs += not again
        self._epoch = 0
        self._since_promise: set[int] = set()
        for record in log:
            if self.tally.states >= self.limit:
                break
            if isinstance(record, Mark):
                self.expect = record.expect
                if record.promise:
                    self._epoch += 1
                    self._since_promise.clear()
                    if not again:
                        self._promised()
            elif isinstance(record, Barrier):
                self._commit()
            elif record.data:
                self.window.append(record)
                self.tally.writes += not again
                if not again:
                    self._cut()
                self._random_sectors()
        return self.tally.states - before

    # ---- which states

    def _cut(self) -> None:
        """The states of a cut behind the window's last write that show something of it."""
        *before, last = self.window
        whole = [(write, range(len(write.data))) for write in before]
        for sectors in range(1, len(last.data) + 1):
            self._visit([*whole, (last, range(sectors))])
            self._visit([(last, range(sectors))])
        if len(before) < self.exhaustive:
            for chosen in range(1 << len(before)):
                self._visit([*(part for i, part in enumerate(whole) if chosen >> i & 1), (last, range(len(last.data)))])
        else:
            self._some_subsets(whole, (last, range(len(last.data))))
        tears = [(i, sectors) for i, write in enumerate(before) for sectors in range(1, len(write.data))]
        if len(tears) > TEARS:
            tears = self.random.sample(tears, TEARS)
        for i, sectors in tears:
            torn = (before[i], range(sectors))
            self._visit([*whole[:i], torn, *whole[i + 1 :], (last, range(len(last.data)))])
            self._visit([torn, (last, range(len(last.data)))])

    def _some_subsets(self, whole: Parts, last: tuple[Write, Iterable[int]]) -> None:
        for i, part in enumerate(whole):
            self._visit([*whole[:i], *whole[i + 1 :], last])
            self._visit([part, last])
        for _ in range(1 << min(self.exhaustive, 5)):
            chosen = self.random.getrandbits(len(whole))
            self._visit([*(part for i, part in enumerate(whole) if chosen >> i & 1), last])

    def _random_sectors(self) -> None:
        sectors = [(write, i) for write in self.window for i in range(len(write.data))]
        for _ in range(min(self.samples, 1 << min(len(sectors), 20))):
            chance = self.random.choice((0.1, 0.3, 0.5, 0.7, 0.9))
            self._visit([(write, (i,)) for write, i in sectors if self.random.random() < chance])

    def _promised(self) -> None:
        """More is certain from here on: whatever the window may show must have it."""
        self._visit([])
        if not self.window:
            return
        window, self.window = self.window, []
        for write in window:
            self.window.append(write)
            self._cut()

    # ---- images

    def _digest_of_base(self, sector: int) -> int:
        found = self._base.get(sector)
        if found is None:
            at = sector * SECTOR
            found = self._base[sector] = digest_of(sector, self.image[at : at + SECTOR])
        return found

    def _commit(self) -> None:
        """A barrier: the whole window is on the disk."""
        for write in self.window:
            for i, raw in enumerate(write.data):
                sector = write.sector + i
                self.digest ^= self._digest_of_base(sector) ^ write.digests[i]
                self._base[sector] = write.digests[i]
                self.image[sector * SECTOR : (sector + 1) * SECTOR] = raw
        self.window = []

    def _visit(self, parts: Parts) -> None:
        overlay = {write.sector + i: (write, i) for write, sectors in parts for i in sectors}
        digest = self.digest
        for sector, (write, i) in overlay.items():
            digest ^= self._digest_of_base(sector) ^ write.digests[i]
        # What may be found only grows between promises: an image that passed once since the last one passes now.
        key, this_run = digest << 32 | self.expect.number, digest << 32 | self._epoch
        if key in self._looked or this_run in self._since_promise:
            return
        self._looked.add(key)
        self._since_promise.add(this_run)
        if digest not in self._images:
            self._images.add(digest)
            self.tally.states += 1
        image = self.image
        saved = [(sector * SECTOR, bytes(image[sector * SECTOR : (sector + 1) * SECTOR])) for sector in overlay]
        for sector, (write, i) in overlay.items():
            image[sector * SECTOR : (sector + 1) * SECTOR] = write.data[i]
        try:
            self.tally.mounted += self.look(image, self.expect)
            self.tally.looks += 1
        finally:
            for at, raw in saved:
                image[at : at + SECTOR] = raw
