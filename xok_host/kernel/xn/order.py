"""Ordered writes (thesis 4.4), per sector, with counters instead of walks.

Two of Ganger and Patt's rules keep the disk's integrity: nothing durable may point to what is not initialised, and
nothing is reused while something durable points to it.  Here they become:

ORDER-1  `P.taint[s]` counts what sector s of P must not be durable before: children that it owns and that are not
         complete, and sectors named by its `waits`.
ORDER-2  A sector of an *attached* block (one that a durable pointer may lead to) is put in flight only with taint 0.
         A block that is not attached goes out in any order.  Exception: children whose absence the disk itself would
         report after a crash (`reboot`, REBOOT-1).
ORDER-3  A child is *complete* when all its sectors have been durable.  Metadata that is not attached must besides be
         clean and untainted: then what the disk holds of it is what is in core, and points to complete children only.
ORDER-4  When a sector is put in flight, the children it owns become linked; linked below attached is attached.  When it
         is durable they are *anchored*.
ORDER-5  A reference's sector waits for the sector whose count rose for it; a sector whose count fell waits for the
         sectors that lost the reference.  Whatever gains an owned block or a reference that another loses waits for it.
         A reference also waits until the element's block is anchored, and all above it; a pointer to a block goes only
         after the references into it.
ORDER-6  A freed block is reused when no durable pointer to it can exist: at once if its pointer was never put in
         flight, otherwise when the sector that lost the pointer is durable.
ORDER-7  No sector waits for itself, however indirectly: a transaction that would close a cycle is refused.
ORDER-8  What belongs to a temporary tree waits for nothing, and nothing outside such trees refers into one or moves in
         or out.

Only *durable* clears anything: written is not enough.
"""

from __future__ import annotations

from typing import Any

import cython

from xok_host.abi.errors import WouldCycle
from xok_host.abi.types import ALL_SECTORS, SECTORS, Flag
from xok_host.kernel.xn.registry import Cached

MAX_WALK = 64
"""Blocks that the search for a cycle looks at; beyond, the operation is refused as if it had found one."""

MAX_ABOVE = 1024
"""Blocks above those of new waits that the disk does not lead to: they wait as well."""
MAX_LINKS = 256
"""Pointers above an element that need not be durable when a reference to it is made."""

_ATTACHED = cython.declare(cython.uint, int(Flag.ATTACHED))
_ALL = cython.declare(cython.int, ALL_SECTORS)
_META = cython.declare(cython.uint, int(Flag.META))
_TEMPORARY = cython.declare(cython.uint, int(Flag.TEMPORARY))


class Wait:
    """Sector `sector` of `entry` waits until `on_sector` of `on` is durable as of its modification `sequence`."""

    __slots__ = ("entry", "on", "on_sector", "sector", "sequence")

    def __init__(self, entry: Cached, sector: int, on: Cached, on_sector: int) -> None:
        self.entry = entry
        self.sector = sector
        self.on = on
        self.on_sector = on_sector
        self.sequence = on.changed[on_sector]

    def waits_for(self, on: Cached, on_sector: cython.int) -> cython.bint:
        """Wait for that sector from now on; False if there is nothing to wait for."""
        if on is self.entry and on_sector == self.sector:
            return False
        if not (on.dirty | on.in_flight | on.written) >> on_sector & 1:
            return False
        self.on = on
        self.on_sector = on_sector
        self.sequence = on.changed[on_sector]
        return True

    def resolve(self) -> None:
        entry = self.entry
        entry.waits.remove(self)
        entry.taint[self.sector] -= 1
        entry.total_taint -= 1
        recount(entry)
        entry.device.registry.publish(entry)


class WillFree:
    """Blocks on the will-free list: reused when `conditions` have come true."""

    __slots__ = ("conditions", "count", "db", "device")

    def __init__(self, device: Any, db: int, count: int) -> None:
        self.device = device
        self.db = db
        self.count = count
        self.conditions = 0

    def resolve(self) -> None:
        self.conditions -= 1
        if not self.conditions:
            self.device.will_free_done(self)


class FreeCondition:
    """Sector `on_sector`, which lost the pointer, must become durable."""

    __slots__ = ("on_sector", "record", "sequence")

    def __init__(self, record: WillFree, on: Cached, on_sector: int) -> None:
        self.record = record
        self.on_sector = on_sector
        self.sequence = on.changed[on_sector]
        record.conditions += 1
        on.waiters.append(self)

    def waits_for(self, on: Cached, on_sector: cython.int) -> cython.bint:
        """As of `Wait`."""
        if not (on.dirty | on.in_flight | on.written) >> on_sector & 1:
            return False
        self.on_sector = on_sector
        self.sequence = on.changed[on_sector]
        return True

    def resolve(self) -> None:
        self.record.resolve()


def attached(entry: Cached) -> cython.bint:
    """Whether a durable pointer may lead to the block (ORDER-4)."""
    return entry.flags & _ATTACHED != 0 or entry.attached()


def complete(entry: Cached) -> cython.bint:
    """ORDER-3."""
    if entry.durable != _ALL:
        return False
    if not entry.flags & _META or attached(entry):
        return True
    return not (entry.dirty | entry.in_flight | entry.written or entry.total_taint)


def recount(entry: Cached) -> None:
    """After any change of the block's state: let the chain of parents know whether it is complete."""
    while True:
        parent = entry.parent
        if parent is None or entry.dead:
            return
        wanted = not complete(entry)
        if wanted == entry.counted:
            return
        count(entry, parent, wanted)
        parent.device.registry.publish(parent)
        if parent.flags & _ATTACHED:
            return
        entry = parent


def count(entry: Cached, parent: Cached, wanted: cython.bint) -> None:
    entry.counted = wanted
    sector = entry.parent_sector
    if wanted:
        parent.kids.add(entry)
        parent.taint[sector] += 1
        parent.total_taint += 1
    else:
        parent.kids.discard(entry)
        parent.taint[sector] -= 1
        parent.total_taint -= 1


def add_wait(entry: Cached, sector: int, on: Cached, on_sector: int) -> None:
    """ORDER-5.  `check_cycle` comes first; nothing is added when `on_sector` is durable already."""
    if entry is on and sector == on_sector:
        return
    if not (on.dirty | on.in_flight | on.written) >> on_sector & 1:
        return
    wait = Wait(entry, sector, on, on_sector)
    entry.waits.append(wait)
    entry.taint[sector] += 1
    entry.total_taint += 1
    on.waiters.append(wait)


def hang(entry: Cached, parent: Cached) -> None:
    """A pointer to the block was put into the parent's sector by its last modification."""
    entry.anchored = False
    entry.link_sequence = parent.sequence
    parent.fresh.append(entry)


def link(entry: Cached, mask: cython.int) -> None:
    """Sectors `mask` of the block are put in flight: children owned there become linked (ORDER-4)."""
    if entry.flags & _TEMPORARY:
        return  # after a restart nothing leads there
    for child in entry.fresh:
        if child.parent is entry and mask >> child.parent_sector & 1:
            child.linked = True


def _anchor(entry: Cached, mask: int, sequence: int) -> None:
    """Those sectors are durable as of that modification, and with them the pointers that they held then."""
    keep = []
    for child in entry.fresh:
        if child.dead or child.parent is not entry:
            continue
        if mask >> child.parent_sector & 1 and child.link_sequence <= sequence:
            child.anchored = True
        else:
            keep.append(child)
    entry.fresh = keep


def durable(entry: Cached, mask: cython.int, sequence: cython.ulonglong) -> None:
    """Sectors `mask`, as of modification `sequence`, are durable: tell whoever waits for that."""
    entry.durable |= mask
    if entry.fresh:
        _anchor(entry, mask, sequence)
    if entry.waiters:
        done = [w for w in entry.waiters if mask >> w.on_sector & 1 and w.sequence <= sequence]
        if done:
            entry.waiters = [w for w in entry.waiters if not (mask >> w.on_sector & 1 and w.sequence <= sequence)]
            for waiter in done:
                waiter.resolve()
    recount(entry)


def release_waiters(entry: Cached) -> None:
    """Nothing on the disk ever led to the block, and nothing will: whoever waits for it waits no longer."""
    waiters, entry.waiters = entry.waiters, []
    for waiter in waiters:
        waiter.resolve()


def abandon(entry: Cached) -> None:
    """The block's device has failed: it waits for nothing, nothing waits for it, and it is dirty no more.

    For all blocks of the device at once, as none waits for another device's."""
    entry.dirty = 0
    entry.counted = False
    entry.total_taint = 0
    if entry.flags & _META:
        entry.taint = [0] * SECTORS
        entry.waits, entry.waiters, entry.fresh, entry.kids = [], [], [], set()


def hand_over_waiters(entry: Cached, to: Cached, sector: int) -> None:
    """The block is freed.  What waited for its contents waits for the sector that leads to it no more."""
    waiters, entry.waiters = entry.waiters, []
    for waiter in waiters:
        if waiter.waits_for(to, sector):
            to.waiters.append(waiter)
        else:
            waiter.resolve()


def blocker(entry: Cached, sector: int) -> int:
    """A block to write and flush before this sector may be written; 0 if there is none."""
    for child in entry.kids:
        if child.parent_sector == sector:
            return child.db
    for wait in entry.waits:
        if wait.sector == sector:
            return wait.on.db
    return 0


def hangs_below(entry: Cached, on: Cached, on_sector: int) -> bool:
    """Whether the disk can lead to the block only through that sector as it will be written next: then whatever
    else that sector says becomes durable in the same moment."""
    while not attached(entry):
        parent = entry.parent
        if parent is None:
            return False
        if parent is on and entry.parent_sector == on_sector:
            return True
        entry = parent
    return False


def uncertain_links(entry: Cached, seen_from: Cached) -> list[tuple[Cached, int]]:
    """The sectors with those pointers, from the root down to this block, that are not durable for certain.

    Raises WouldCycle when the block is below another root than `seen_from`, which is not durable in the catalogue yet.
    """
    links = []
    reports = entry.device.reports
    while entry.parent is not None:
        if reports.children:
            reports.check_refers(entry)
        if not entry.anchored:
            links.append((entry.parent, entry.parent_sector))
            if len(links) > MAX_LINKS:
                raise WouldCycle(
                    f"more than {MAX_LINKS} pointers above are not durable: flush block {entry.db} first", r0=entry.db
                )
        entry = entry.parent
    if not entry.anchored:
        while seen_from.parent is not None:
            seen_from = seen_from.parent
        if seen_from is not entry:
            raise WouldCycle(f"root block {entry.db} is not durable yet: flush it first", r0=entry.db)
    return links


Edge = tuple[Cached, int, Cached, int]
"""Block and sector that wait, block and sector waited for."""


def check_cycle(edges: list[Edge]) -> None:
    """ORDER-7: refuse if the new waits close a cycle with one another and with what waits already.

    A sector waits for its `waits`, for all sectors of its incomplete children, and for the new edges.  A block that is
    not attached becomes incomplete by a new wait, so all that leads to it will wait for it as well.
    """
    new: dict[tuple[int, int], list[tuple[Cached, int]]] = {}
    above: set[int] = set()
    for entry, sector, on, on_sector in edges:
        new.setdefault((entry.key, sector), []).append((on, on_sector))
        while entry.parent is not None and entry.key not in above and not attached(entry):
            above.add(entry.key)
            if len(above) > MAX_ABOVE:
                raise WouldCycle(
                    f"{MAX_ABOVE} blocks above wait to be led to: write and flush block {entry.db} first", r0=entry.db
                )
            new.setdefault((entry.parent.key, entry.parent_sector), []).extend((entry, s) for s in range(8))
            entry = entry.parent
    for edge in edges:
        _walk(edge, new)


def _walk(edge: Edge, new: dict[tuple[int, int], list[tuple[Cached, int]]]) -> None:
    goal, goal_sector, start, start_sector = edge
    seen = {(start.key, start_sector)}
    queue = [(start, start_sector)]
    while queue:
        entry, sector = queue.pop()
        if entry is goal and sector == goal_sector:
            raise WouldCycle(f"block {start.db} and block {goal.db} would wait for one another", r0=start.db)
        following: list[tuple[Cached, int]] = list(new.get((entry.key, sector), ()))
        for wait in entry.waits:
            if wait.sector == sector:
                following.append((wait.on, wait.on_sector))
        for child in entry.kids:
            if child.parent_sector == sector and child.total_taint:
                following.extend((child, s) for s in range(8))
        for on, on_sector in following:
            if (on.key, on_sector) not in seen:
                seen.add((on.key, on_sector))
                queue.append((on, on_sector))
        if len(seen) > MAX_WALK * 8:
            raise WouldCycle(f"block {start.db} waits for too many others: flush it first", r0=start.db)
