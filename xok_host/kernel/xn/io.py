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

import cython

from xok_host.abi.errors import LimitReached, Tainted
from xok_host.abi.types import ALL_SECTORS, CHUNK_PAGES, SECTOR, SECTORS, Flag
from xok_host.kernel.pages import Arena, Pages
from xok_host.kernel.request import MAX_REQUEST_SECTORS, IoOp, IoRequest, Piece, mask_runs, requests
from xok_host.kernel.tables import Counters
from xok_host.kernel.xn import order
from xok_host.kernel.xn.pending import Pending
from xok_host.kernel.xn.registry import NO_PAGE, Cached, Registry
from xok_host.kernel.xn.types import XnType

if TYPE_CHECKING:
    from xok_host.kernel.xn.device import Device

if cython.compiled:
    from cython.cimports.xok_host.kernel.xn.order import attached, durable, link, recount
else:
    from xok_host.kernel.xn.order import attached, durable, link, recount

MAX_RUN = MAX_REQUEST_SECTORS // SECTORS
"""Blocks of plain data that go to or from the disk as one piece; they lie in one chunk."""

_ALL = cython.declare(cython.int, ALL_SECTORS)
_CHUNK = cython.declare(cython.ulonglong, CHUNK_PAGES)
_META = cython.declare(cython.uint, int(Flag.META))
_READING = cython.declare(cython.uint, int(Flag.READING))
_RUN = cython.declare(cython.long, MAX_RUN)
_VALID = cython.declare(cython.uint, int(Flag.VALID))
_SECTORS = cython.declare(cython.int, SECTORS)
_NO_PAGE = cython.declare(cython.ulonglong, NO_PAGE)


if not cython.compiled:

    def just(all: tuple[Any, ...], one: object) -> bool:
        """Whether the tuple has that one element."""
        return len(all) == 1 and all[0] is one


FAILED_NS = 10_000_000_000
"""How long every write of a device may fail."""
FAILED_BLOCKS = 16
"""Blocks that fail meanwhile: fewer may be bad on a good device."""
_GONE = frozenset((6, 19))
"""ENXIO, ENODEV: the device will not come back under this descriptor."""


class Flight(Piece):
    """Sectors `mask` of a block on their way to the disk, or written and not yet durable.  As a piece it is the first
    run of them; there is a `Part` for each of the others.

    Plain data that is dirty as a whole goes by runs: `blocks` are several then, neighbours on the disk and in memory.
    `sequence` is for metadata, on whose sectors others wait."""

    __slots__ = ("blocks", "error", "io", "mask", "parts", "pending", "sequence", "written")

    def begin(self, io: DeviceIo, blocks: Any, mask: cython.int, pending: Pending | None) -> None:
        entry: Cached = blocks[0]
        self.io = io
        self.blocks = blocks
        self.mask = mask
        self.sector = entry.db * _SECTORS
        self.page = entry.page
        self.sequence = entry.sequence
        self.pending = pending
        self.written = False
        self.error = 0
        self.parts = 1
        self.first = 0
        self.count = _SECTORS * len(blocks)

    def arrived(self, errno: cython.int) -> None:
        """One run of sectors has ended."""
        self.error = self.error or errno
        self.parts -= 1
        if not self.parts:
            self.io.landed(self)


class Part(Piece):
    """A further run of sectors of a flight."""

    __slots__ = ("flight",)

    def __init__(self, flight: Flight, db: int, first: int, count: int) -> None:
        self.flight = flight
        self.sector = db * SECTORS + first
        self.page = flight.page
        self.first = first
        self.count = count

    def arrived(self, errno: cython.int) -> None:
        self.flight.arrived(errno)


class ReadIn(Piece):
    """Neighbouring blocks on their way from the disk to their `landing` pages, which are neighbours too; `pending`
    waits for them, as others in `Cached.readers` may."""

    __slots__ = ("blocks", "io", "pending")

    def begin(self, io: DeviceIo, blocks: Any, pending: Pending | None) -> None:
        entry: Cached = blocks[0]
        self.sector = entry.db * _SECTORS
        self.page = entry.landing
        self.first = 0
        self.count = _SECTORS * len(blocks)
        self.io = io
        self.blocks = blocks
        self.pending = pending

    def arrived(self, errno: cython.int) -> None:
        self.io.read_in(self, errno)


class OwnSector(Piece):
    """One of XN's own sectors on its way; `then(what, errno)`."""

    __slots__ = ("io", "then", "what")

    def __init__(
        self, io: DeviceIo, page: int, sector: int, count: int, what: int, then: Callable[[int, int], None]
    ) -> None:
        self.sector = sector
        self.page = page
        self.first = sector % SECTORS
        self.count = count
        self.io = io
        self.what = what
        self.then = then

    def arrived(self, errno: cython.int) -> None:
        self.io.device.pages.drop(self.page)
        self.then(self.what, errno)


class Barrier(Piece):
    """A flush of the device."""

    __slots__ = ("then",)

    def __init__(self, then: Callable[[int], None]) -> None:
        self.then = then

    def arrived(self, errno: cython.int) -> None:
        self.then(errno)


class DeviceIo:
    """The I/O of one device."""

    def __init__(self, device: Device, own: Arena) -> None:
        self.device = device
        self._number = device.number
        self._pages: Pages = device.pages
        self._registry: Registry = device.registry
        self._counters: Counters = device.counters
        self._own = own
        self._reads: list[Piece] = []
        self._writes: list[Piece] = []
        self._barriers: list[Piece] = []
        self._tokens: dict[int, list[Piece]] = {}
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
        if not (self._reads or self._writes or self._barriers):
            return out
        counters = self._counters
        if self._reads:
            out = requests(IoOp.READ, self._number, self._reads)
            counters.add("disk_reads", len(out))
            counters.add("disk_blocks_read", _blocks(self._reads))
            self._reads = []
        if self._writes:
            writes = requests(IoOp.WRITE, self._number, self._writes)
            counters.add("disk_writes", len(writes))
            counters.add("disk_blocks_written", _blocks(self._writes))
            self._writes = []
            out += writes
        if self._barriers:
            out += [IoRequest(IoOp.FLUSH, self._number, 0, [], [barrier]) for barrier in self._barriers]
            counters.add("disk_flushes", len(self._barriers))
            self._barriers = []
        request: IoRequest
        for request in out:
            request.token = self._next_token << 8 | self._number
            self._tokens[request.token] = request.owners
            self._next_token += 1
        return out

    def done(self, token: cython.ulonglong, errno: cython.int) -> None:
        owner: Piece
        for owner in self._tokens.pop(token):
            owner.arrived(errno)

    def idle(self) -> bool:
        return not (self._tokens or self._reads or self._writes or self._barriers)

    def own_page(self) -> int:
        """A page of XN's own, which no environment can map."""
        return self.device.pages.alloc(self._own)

    # ---- reads

    def read(self, blocks: Any, pending: Pending | None) -> None:
        """Queue a read of neighbouring blocks, which are marked as being read, to their `landing` pages, at most
        MAX_RUN in one chunk; `pending` waits for it."""
        if pending is not None:
            pending.held += 1
        read: ReadIn = ReadIn.__new__(ReadIn)
        read.begin(self, blocks, pending)
        self._reads.append(read)

    def await_read(self, entry: Cached, pending: Pending) -> None:
        """`pending` waits for the read of the block that is on its way."""
        pending.hold()
        if entry.readers:
            entry.readers.append(pending)
        else:
            entry.readers = [pending]

    def read_own(self, db: int, page: int, then: Callable[[int, int], None]) -> None:
        """Read one block of XN's own structures; `then(db, errno)`.  The page stays the caller's."""
        self._pages.hold(page)
        self._reads.append(OwnSector(self, page, db * SECTORS, SECTORS, db, then))

    def read_in(self, read: ReadIn, errno: cython.int) -> None:
        pages = self._pages
        registry = self._registry
        entry: Cached
        pending: Pending
        landing: cython.ulonglong
        waiting: list[Pending] = []
        for entry in read.blocks:
            if entry.readers:
                waiting += entry.readers
                entry.readers = ()
            landing = entry.landing
            entry.landing = _NO_PAGE
            entry.flags &= ~_READING
            if errno or entry.dead:
                if landing != entry.page and landing != _NO_PAGE:
                    pages.drop(landing)
                if not entry.dead:
                    self.device.forget(entry)
                elif entry.page != _NO_PAGE:
                    pages.drop(entry.page)
                    entry.page = _NO_PAGE
            else:
                if landing != entry.page:
                    if not entry.flags & _VALID:  # otherwise new contents were published meanwhile
                        pages.view(entry.page)[:] = pages.view(landing)
                    pages.drop(landing)
                entry.flags |= _VALID
                registry.renew(entry)
                registry.publish(entry)
        if read.pending is not None:
            read.pending.release(errno)
        for pending in waiting:
            pending.release(errno)

    # ---- writes

    def write_blocks(self, found: Any, mask: cython.int, pending: Pending) -> None:
        """`write` of blocks that are neighbours on the disk; `pending` counts runs of sectors, and blocks."""
        page: cython.ulonglong = 0
        runs: cython.long
        entry: Cached
        run: list[Cached] = []
        for entry in found:
            if mask == _ALL and entry.dirty == _ALL and not (entry.in_flight | entry.flags & _META):
                if run and (entry.page != page or page % _CHUNK == 0 or len(run) == _RUN):
                    self._send(run, pending)
                    run = []
                run.append(entry)
                page = entry.page + 1
                runs = 1
            else:
                if run:
                    self._send(run, pending)
                    run = []
                runs = self.write(entry, mask, pending)
            pending.r0 += runs
            pending.r1 += runs > 0
        if run:
            self._send(run, pending)

    def _send(self, run: Any, pending: Pending) -> None:
        """Start writing plain data, whole blocks that are neighbours on the disk and in memory."""
        entry: Cached
        flight: Flight = Flight.__new__(Flight)
        flight.begin(self, run, _ALL, pending)
        alone = (flight,)
        registry = self._registry
        for entry in run:
            entry.flights = (*entry.flights, flight) if entry.flights else alone
            entry.dirty = 0
            entry.in_flight = _ALL
            registry.show_state(entry)
        self._pages.hold_run(flight.page, len(run))
        self._writes.append(flight)
        pending.held += 1

    def write(self, entry: Cached, mask: cython.int, pending: Pending | None) -> cython.long:
        """Start writing the dirty sectors of `mask`; how many runs that are.

        Sectors that may not be written yet (ORDER-2) make `pending` fail with Tainted; those that are on their way
        already are written after that (IO-3).
        """
        wanted: cython.int = entry.dirty & mask
        if not wanted:
            return 0
        if entry.total_taint and attached(entry):
            wanted &= ~self._tainted(entry, wanted, pending)
        busy: cython.int = wanted & entry.in_flight
        if busy and pending is not None:
            pending.hold()
            entry.deferred = [*entry.deferred, (pending, busy)]
        wanted &= ~busy
        reports = self.device.reports
        xtype: XnType | None = entry.xtype
        heard: cython.bint = bool(reports.standing) or xtype is not None and xtype.reboot_program is not None
        if heard:
            wanted, said = reports.admit(entry, wanted, pending)
        if not wanted:
            return 0
        flight: Flight = Flight.__new__(Flight)
        flight.begin(self, [entry], wanted, pending)
        if heard:
            reports.sent(entry, flight, said)
        entry.flights = (*entry.flights, flight)
        entry.dirty &= ~wanted
        entry.in_flight |= wanted
        if entry.fresh:
            link(entry, wanted)
        self._pages.hold(entry.page)
        self._writes.append(flight)
        if wanted != 255:
            runs = mask_runs(wanted)
            flight.first, flight.count = runs[0]
            flight.parts = len(runs)
            flight.sector += flight.first
            for first, count in runs[1:]:
                self._writes.append(Part(flight, entry.db, first, count))
        if pending is not None:
            pending.held += 1
        self._registry.publish(entry)
        return flight.parts

    def _tainted(self, entry: Cached, wanted: cython.int, pending: Pending | None) -> cython.int:
        """The sectors of `wanted` that wait for others; `pending` fails."""
        tainted: cython.int = 0
        for sector in range(SECTORS):
            if wanted >> sector & 1 and entry.taint[sector] and not self.device.reports.covers(entry, sector):
                tainted |= 1 << sector
                if pending is not None:
                    first = order.blocker(entry, sector)
                    pending.fail(
                        Tainted(f"sector {sector} of block {entry.db} waits for block {first}", r0=first, r1=entry.db)
                    )
        if tainted:
            self._counters.add("tainted_refusals")
        return tainted

    def landed(self, flight: Flight) -> None:
        """All of a flight has ended."""
        entry: Cached
        mask: cython.int = flight.mask
        deferred: list[Cached] = []
        self._pages.drop_run(flight.page, len(flight.blocks))
        if not flight.error:
            self._failing_since = 0
            flight.written = True
        alive: cython.bint = False
        for entry in flight.blocks:
            entry.in_flight &= ~mask
            if flight.error:
                _ended(entry, flight)
                entry.dirty |= mask
                self._failing(flight.error, entry.db)
            elif entry.dead:
                _ended(entry, flight)
            else:
                entry.written |= mask
                alive = True
            if entry.dead:
                self._settle(entry)
            else:
                self._changed(entry)
            if entry.deferred:
                deferred.append(entry)
        if alive:
            self._written.append(flight)
        pending: Pending | None = flight.pending
        flight.pending = None
        for entry in deferred:
            queued, entry.deferred = entry.deferred, ()
            for waiting, sectors in queued:
                if not entry.dead:
                    self.write(entry, sectors, waiting)
                waiting.release()
        if pending is not None:
            pending.release(flight.error)

    def _changed(self, entry: Cached) -> None:
        """The sector masks of a block that is in core have changed: tell its parents and the readers."""
        if entry.flags & _META:
            recount(entry)
            self._registry.publish(entry)
        else:
            if entry.counted != (entry.durable != _ALL):  # plain data is complete when it was durable once
                recount(entry)
            self._registry.show_state(entry)

    def _settle(self, entry: Cached) -> None:
        """A block that was freed meanwhile may be reused, as far as its writes are concerned, when all have ended."""
        if entry.will_free is not None and not entry.flights:
            record, entry.will_free = entry.will_free, None
            record.resolve()

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
            self._writes.append(OwnSector(self, page, sector, 1, sector, then))

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
            for entry in flight.blocks:
                _ended(entry, flight)
                if not entry.dead:
                    entry.dirty |= flight.mask
                    self._show_written(entry)
                    self._registry.publish(entry)
                else:
                    self._settle(entry)
        for sector in self._own_sectors:
            self._mark_own(sector)
        device.catalogue_frees += freed

    def _show_written(self, entry: Cached) -> None:
        """The `written` mask is what flights say."""
        flight: Flight
        entry.written = 0
        if not entry.flights:
            return
        for flight in entry.flights:
            if flight.written:
                entry.written |= flight.mask

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
            flight: Flight
            entry: Cached
            registry: Registry = self._registry
            reported: cython.bint = bool(device.reports.logs or device.reports.needed)
            for flight in covered:
                for entry in flight.blocks:
                    if just(entry.flights, flight):
                        entry.flights = ()
                        entry.written = 0
                        if entry.durable == _ALL and not (reported | entry.dead | entry.counted | entry.flags & _META):
                            registry.show_state(entry)  # nobody waits for it: so is most plain data
                            continue
                    else:
                        _ended(entry, flight)
                        self._show_written(entry)
                    if entry.flags & _META:
                        durable(entry, flight.mask, flight.sequence)
                    else:
                        entry.durable |= flight.mask
                    if reported:
                        device.reports.durable(entry, flight)
                    if entry.dead:
                        self._settle(entry)
                    else:
                        self._changed(entry)
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


def _ended(entry: Cached, flight: Flight) -> None:
    """The flight is over for the block: durable, failed, or the block was freed."""
    entry.flights = (
        () if just(entry.flights, flight) else tuple([other for other in entry.flights if other is not flight])
    )


def _blocks(pieces: list[Piece]) -> cython.long:
    """How many blocks they are of; several pieces of a block count each."""
    found: cython.long = 0
    piece: Piece
    for piece in pieces:
        found += piece.count // _SECTORS or 1
    return found
