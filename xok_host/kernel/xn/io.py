"""Reads, writes and flushes of one device: what is on its way, and what happens when it arrives.

IO-1  XN starts no disk I/O of its own accord; what it adds to a libOS's request is its own free map and catalogue.
IO-2  A write takes a hold on its page: the page is a snapshot until the write ends (modification copies, see `txn`).
IO-3  A sector is never on its way to the disk twice at a time; a second write of it starts when the first has ended.
IO-4  A flush covers the writes that had ended when it began.  First it writes XN's own dirty sectors; only then comes
      the barrier: so what becomes durable with a flush was marked in use on the disk with or before it (FORMAT-2).
IO-5  A write that fails leaves its sectors dirty; a read that fails leaves no entry.
IO-6  A device that says that it is gone, or has written nothing for FAILED_NS in which flushes failed or FAILED_BLOCKS
      blocks, is given up (`Kernel.give_up`): what waits for it must not take the memory of the others for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xok_host.abi.errors import LimitReached, Tainted
from xok_host.abi.types import SECTOR, SECTORS, Flag
from xok_host.kernel.pages import Arena
from xok_host.kernel.request import IoOp, IoRequest, Piece, mask_runs, merge
from xok_host.kernel.xn import order
from xok_host.kernel.xn.pending import Pending
from xok_host.kernel.xn.registry import NO_PAGE, Cached

if TYPE_CHECKING:
    from xok_host.kernel.xn.device import Device

_READING = int(Flag.READING)
_VALID = int(Flag.VALID)


FAILED_NS = 10_000_000_000
"""How long every write of a device may fail."""
FAILED_BLOCKS = 16
"""Blocks that fail meanwhile: fewer may be bad on a good device."""
_GONE = frozenset((6, 19))
"""ENXIO, ENODEV: the device will not come back under this descriptor."""


class Flight:
    """Sectors `mask` of a block on their way to the disk, or written and not yet durable."""

    __slots__ = ("entry", "error", "mask", "page", "parts", "pending", "sequence", "written")

    def __init__(self, entry: Cached, mask: int, pending: Pending | None) -> None:
        self.entry = entry
        self.mask = mask
        self.page = entry.page
        self.sequence = entry.sequence
        self.pending = pending
        self.written = False
        self.parts = 0
        self.error = 0

    def arrived(self, errno: int) -> None:
        """One run of sectors has ended."""
        self.error = self.error or errno
        self.parts -= 1
        if not self.parts:
            self.entry.device.io.landed(self)


class ReadIn:
    """A block on its way from the disk to `entry.landing`."""

    __slots__ = ("entry",)

    def __init__(self, entry: Cached) -> None:
        self.entry = entry

    def arrived(self, errno: int) -> None:
        self.entry.device.io.read_in(self.entry, errno)


class OwnSector:
    """One of XN's own sectors on its way."""

    __slots__ = ("io", "page", "sector", "then")

    def __init__(self, io: DeviceIo, page: int, sector: int, then: Callable[[int, int], None]) -> None:
        self.io = io
        self.page = page
        self.sector = sector
        self.then = then

    def arrived(self, errno: int) -> None:
        self.io.device.pages.drop(self.page)
        self.then(self.sector, errno)


class Barrier:
    """A flush of the device."""

    __slots__ = ("then",)

    def __init__(self, then: Callable[[int], None]) -> None:
        self.then = then

    def arrived(self, errno: int) -> None:
        self.then(errno)


class DeviceIo:
    """The I/O of one device."""

    def __init__(self, device: Device, own: Arena) -> None:
        self.device = device
        self._own = own
        self._reads: list[Piece] = []
        self._writes: list[Piece] = []
        self._barriers: list[Barrier] = []
        self._tokens: dict[int, list[Any]] = {}
        self._next_token = 1
        self._written: list[Flight] = []
        """Written, and not covered by a flush yet."""
        self._covered: list[Flight] = []
        self._flushing: list[Pending] = []
        self._flush_next: list[Pending] = []
        self._own_left = 0
        self._own_error = 0
        self._own_freed: list[order.WillFree] = []
        self._own_roots: list[str] = []
        self._own_sectors: list[int] = []
        self._failing_since = 0
        self._failing_blocks: set[int] = set()

    # ---- requests to and from the host

    def take(self) -> list[IoRequest]:
        """Queued I/O as sorted, merged requests."""
        out: list[IoRequest] = []
        counters = self.device.counters
        for op, queue in ((IoOp.READ, self._reads), (IoOp.WRITE, self._writes)):
            if not queue:
                continue
            for run in merge(queue):
                iov = [(piece.page, piece.first, piece.count) for piece in run]
                out.append(self._request(IoRequest(op, self.device.number, run[0].sector, iov), [p.owner for p in run]))
                blocks = len(run)
                counters.add("disk_reads" if op == IoOp.READ else "disk_writes")
                counters.add("disk_blocks_read" if op == IoOp.READ else "disk_blocks_written", blocks)
            queue.clear()
        for barrier in self._barriers:
            out.append(self._request(IoRequest(IoOp.FLUSH, self.device.number), [barrier]))
            counters.add("disk_flushes")
        self._barriers.clear()
        return out

    def _request(self, request: IoRequest, owners: list[Any]) -> IoRequest:
        request.token = self._next_token << 8 | self.device.number
        self._tokens[request.token] = owners
        self._next_token += 1
        return request

    def done(self, token: int, errno: int) -> None:
        for owner in self._tokens.pop(token):
            owner.arrived(errno)

    def idle(self) -> bool:
        return not (self._tokens or self._reads or self._writes or self._barriers)

    def own_page(self) -> int:
        """A page of XN's own, which no environment can map."""
        return self.device.pages.alloc(self._own)

    # ---- reads

    def read(self, entry: Cached, pending: Pending | None) -> None:
        """Queue a read of the block to `entry.landing`; `pending` waits for it."""
        entry.flags |= _READING
        if pending is not None:
            self.await_read(entry, pending)
        self._reads.append(Piece(entry.db, entry.landing, 0, SECTORS, ReadIn(entry)))

    def await_read(self, entry: Cached, pending: Pending) -> None:
        """`pending` waits for the read of the block that is on its way."""
        pending.hold()
        if entry.readers:
            entry.readers.append(pending)
        else:
            entry.readers = [pending]

    def read_own(self, db: int, page: int, then: Callable[[int, int], None]) -> None:
        """Read one block of XN's own structures; `then(db, errno)`.  The page stays the caller's."""
        self.device.pages.hold(page)
        self._reads.append(Piece(db, page, 0, SECTORS, OwnSector(self, page, db, then)))

    def read_in(self, entry: Cached, errno: int) -> None:
        pages = self.device.pages
        readers, entry.readers = entry.readers, ()
        landing, entry.landing = entry.landing, NO_PAGE
        entry.flags &= ~_READING
        if errno or entry.dead:
            if landing not in (entry.page, NO_PAGE):
                pages.drop(landing)
            if not entry.dead:
                self.device.forget(entry)
            elif entry.page != NO_PAGE:
                pages.drop(entry.page)
                entry.page = NO_PAGE
        else:
            if landing != entry.page:
                if not entry.flags & _VALID:  # otherwise new contents were published meanwhile
                    pages.view(entry.page)[:] = pages.view(landing)
                pages.drop(landing)
            entry.flags |= _VALID
            self.device.registry.renew(entry)
            self.device.registry.publish(entry)
        for pending in readers:
            pending.release(errno)

    # ---- writes

    def write(self, entry: Cached, mask: int, pending: Pending | None) -> int:
        """Start writing the dirty sectors of `mask`; how many runs that are.

        Sectors that may not be written yet (ORDER-2) make `pending` fail with Tainted; those that are on their way
        already are written after that (IO-3).
        """
        wanted = entry.dirty & mask
        if not wanted:
            return 0
        tainted = 0
        reports = self.device.reports
        if entry.total_taint and order.attached(entry):
            for sector in range(SECTORS):
                if wanted >> sector & 1 and entry.taint[sector] and not reports.covers(entry, sector):
                    tainted |= 1 << sector
                    if pending is not None:
                        first = order.blocker(entry, sector)
                        pending.fail(
                            Tainted(
                                f"sector {sector} of block {entry.db} waits for block {first}", r0=first, r1=entry.db
                            )
                        )
            if tainted:
                self.device.counters.add("tainted_refusals")
        wanted &= ~tainted
        busy = wanted & entry.in_flight
        if busy and pending is not None:
            pending.hold()
            entry.deferred = [*entry.deferred, (pending, busy)]
        wanted &= ~busy
        heard = bool(reports.standing) or entry.xtype is not None and entry.xtype.reboot_program is not None
        if heard:
            wanted, said = reports.admit(entry, wanted, pending)
        if not wanted:
            return 0
        flight = Flight(entry, wanted, pending)
        if heard:
            reports.sent(entry, flight, said)
        if entry.flights:
            entry.flights.append(flight)
        else:
            entry.flights = [flight]
        entry.dirty &= ~wanted
        entry.in_flight |= wanted
        order.link(entry, wanted)
        self.device.pages.hold(entry.page)
        runs = mask_runs(wanted)
        flight.parts = len(runs)
        for first, count in runs:
            self._writes.append(Piece(entry.db, entry.page, first, count, flight))
        if pending is not None:
            pending.hold()
        self.device.registry.publish(entry)
        return len(runs)

    def landed(self, flight: Flight) -> None:
        """All of a flight has ended."""
        entry = flight.entry
        entry.in_flight &= ~flight.mask
        self.device.pages.drop(flight.page)
        if flight.error:
            entry.flights.remove(flight)
            entry.dirty |= flight.mask
            self._failing(flight.error, entry.db)
        elif entry.dead:
            entry.flights.remove(flight)
        else:
            self._failing_since = 0
            flight.written = True
            entry.written |= flight.mask
            self._written.append(flight)
        if entry.dead and entry.will_free is not None and not entry.flights:
            record, entry.will_free = entry.will_free, None
            record.resolve()
        if not entry.dead:
            order.recount(entry)
            self.device.registry.publish(entry)
        pending, flight.pending = flight.pending, None
        deferred, entry.deferred = entry.deferred, ()
        for waiting, mask in deferred:
            if not entry.dead:
                self.write(entry, mask, waiting)
            waiting.release()
        if pending is not None:
            pending.release(flight.error)

    # ---- flushes

    def barrier(self, then: Callable[[int], None]) -> None:
        """A flush of the device alone, for XN's own sectors; `then(errno)`."""
        self._barriers.append(Barrier(then))

    def flush(self, pending: Pending) -> None:
        """Make what is written durable; joins a flush that has not begun."""
        pending.hold()
        self._flush_next.append(pending)
        if not self._flushing:
            self._begin_flush()

    def _begin_flush(self) -> None:
        self._flushing, self._flush_next = self._flush_next, []
        self._pass()

    def _pass(self) -> None:
        """XN's own sectors first (IO-4)."""
        device = self.device
        self._covered, self._written = self._written, []
        self._own_freed, device.catalogue_frees = device.catalogue_frees, []
        self._own_error = 0
        sectors = device.freemap.take_dirty()
        catalogue, names = device.catalogue.take_dirty()
        sectors += catalogue
        for name in names:
            device.root_written(name)
        self._own_roots = names
        if device.catalogue.next_type != device.superblock.next_type:
            device.superblock = device.superblock.renewed(clean=False, next_type=device.catalogue.next_type)
            sectors.append((0, device.superblock.pack()))
        self._own_left = len(sectors) + 1
        self._own_sectors = [sector for sector, _ in sectors]
        self.write_own(sectors, self._own_written)
        self._own_written(-1, 0)

    def write_own(self, sectors: list[tuple[int, bytes]], then: Callable[[int, int], None]) -> None:
        """Write sectors of XN's own; `then(sector, errno)` for each."""
        pages = self.device.pages
        for sector, raw in sectors:
            try:
                page = self.own_page()
            except LimitReached:
                then(sector, 12)
                continue
            first = sector % SECTORS
            pages.view(page)[first * SECTOR : first * SECTOR + SECTOR] = raw
            self._writes.append(Piece(sector // SECTORS, page, first, 1, OwnSector(self, page, sector, then)))

    def _own_written(self, sector: int, errno: int) -> None:
        if errno:
            self._own_error = errno
            self._mark_own(sector)
        self._own_left -= 1
        if self._own_left:
            return
        if self._own_error:
            self._flushed(self._own_error)
        else:
            self._barriers.append(Barrier(self._flushed))

    def _failing(self, errno: int, db: int = 0) -> None:
        """IO-6: a write of block `db` has failed, or (0) a flush."""
        kernel, blocks = self.device.kernel, self._failing_blocks
        if not self._failing_since:
            self._failing_since = kernel.now
            blocks.clear()
        if len(blocks) < FAILED_BLOCKS:
            blocks.add(db)
        for_long = kernel.now - self._failing_since >= FAILED_NS
        if errno in _GONE or (for_long and (not db or len(blocks) == FAILED_BLOCKS)):
            kernel.give_up(self.device, errno)

    def _flush_failed(self, covered: list[Flight], freed: list[order.WillFree]) -> None:
        """What the disk did with its cache is unknown: all that the flush should have covered is written again."""
        device = self.device
        for flight in covered:
            entry = flight.entry
            entry.flights.remove(flight)
            if not entry.dead:
                entry.dirty |= flight.mask
                self._show_written(entry)
            elif entry.will_free is not None and not entry.flights:
                record, entry.will_free = entry.will_free, None
                record.resolve()
        for sector in self._own_sectors:
            self._mark_own(sector)
        device.catalogue_frees += freed

    def _show_written(self, entry: Cached) -> None:
        """The `written` mask is what flights say."""
        entry.written = 0
        for flight in entry.flights:
            if flight.written:
                entry.written |= flight.mask
        self.device.registry.publish(entry)

    def _mark_own(self, sector: int) -> None:
        """One of XN's own sectors must be written again."""
        device = self.device
        if sector >= device.superblock.freemap * SECTORS:
            device.freemap.mark_dirty(sector)
        elif sector >= device.superblock.catalogue * SECTORS:
            device.catalogue.mark_dirty(sector)

    def _flushed(self, errno: int) -> None:
        device = self.device
        covered, self._covered = self._covered, []
        freed, self._own_freed = self._own_freed, []
        if errno:
            self._flush_failed(covered, freed)
            self._failing(errno)
        else:
            for flight in covered:
                entry = flight.entry
                entry.flights.remove(flight)
                self._show_written(entry)
                order.durable(entry, flight.mask, flight.sequence)
                if device.reports.logs or device.reports.needed:
                    device.reports.durable(flight)
                if entry.dead and entry.will_free is not None and not entry.flights:
                    record, entry.will_free = entry.will_free, None
                    record.resolve()
                device.registry.publish(entry)
            for record in freed:
                record.resolve()
            for name in self._own_roots:
                device.root_durable(name)
            if device.settle_roots():
                self._pass()
                return
        flushing, self._flushing = self._flushing, []
        for pending in flushing:
            pending.release(errno)
        if self._flush_next and not self._flushing:
            self._begin_flush()
