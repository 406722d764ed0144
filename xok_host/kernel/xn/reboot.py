"""Reboot UDFs (thesis 4.6): a file system may let the disk point to what was never written, if it provably says so.

A *log* is a root block, or a block that a root block owns, whose type has a `reboot` program.  Run on a partition, it
emits reports (address in the holder's sector, block, session): "the pointer to that block, in that sector of that
holder, may lead to what was never written".  XN asks it when a sector of the log is put in flight, and so knows at any
moment what the disk, as a crash could leave it, would report.  Reconstruction asks it of the disk, and fills the blocks
reported, where the sector named does own them, with zeros: plain data of nobody's, or an empty instance (TMPL-3).

REBOOT-1  *Certain* is a report that every version of a log's sector which a crash could leave has, while durable
          pointers lead to the log; *standing* one that some version has.  A sector that waits for nothing but
          incomplete children goes to the disk if the report about each is certain (the exception to ORDER-2).
REBOOT-2  The children let through so are *needed* reports until they are complete, or freed and no durable pointer
          leads there: until then no version of the log without the report goes to the disk.  A disk with a needed
          report is not shut down as clean.
REBOOT-3  A report goes to the disk only if it concerns a child whose pointer never did, in its log's tree, whose root
          type has a `reboot` program, and in a holder that just those may write who may write the log.  What a report
          could cost others, they could do without it: free the block.
REBOOT-4  A metadata block that a standing report names was empty when the disk first pointed to it; it gains nothing to
          own, and no reference leads into it from elsewhere: to find it empty after a crash breaks no invariant.  A log
          of standing reports is neither freed nor moved, its type is not uninstalled, and it is never reported itself.
REBOOT-5  A report has the number of the session in which it was made, which is random: none is made ahead of its time.
          A session lasts from the start of a disk until it is clean; reports of others are not heard.
REBOOT-6  Of standing reports there are at most MAX_REPORTS on a device and MAX_ENV_REPORTS of an environment; of a
          log's sector, at most MAX_VERSIONS that a crash could leave; and UDFs run for at most WRITE_BUDGET
          instructions in a call that writes.

A device without reports pays one look at an empty dictionary for each write.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from xok_host.abi.errors import BogusUpdate, LimitReached, Tainted, UdfFailed, WouldCycle, XokError
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, Flag
from xok_host.kernel.xn import order, udf, verify
from xok_host.kernel.xn.registry import Cached
from xok_host.kernel.xn.template import MAX_PART_REPORTS

if TYPE_CHECKING:
    from xok_host.kernel.xn.device import Device
    from xok_host.kernel.xn.io import Flight
    from xok_host.kernel.xn.pending import Pending
    from xok_host.kernel.xn.shadow import Transaction
    from xok_host.kernel.xn.types import XnType

MAX_REPORTS = 4096
"""Standing reports of one device."""
MAX_ENV_REPORTS = 1024
"""Of these, in logs that one environment changed."""
MAX_VERSIONS = 8
"""Versions of a log's sector on their way, each of which a crash could leave on the disk."""
WRITE_BUDGET = 1 << 20
"""Instructions that the UDFs of one WRITEBACK may execute."""

Edge = tuple[int, int, int]
"""Holder, its sector, and the block that the sector points to."""

NOTHING: frozenset[Edge] = frozenset()
_META = int(Flag.META)
_ROOT = int(Flag.ROOT)
_TEMPORARY = int(Flag.TEMPORARY)


def said(xtype: XnType, meta: Any, part: int, session: int) -> set[Edge]:
    """What a partition of a log reports for this session.  Raises UdfFailed.

    Reconstruction asks here as well."""
    xtype.show(meta, part)
    flat = xtype.ask(xtype.reboot_program, part, 0, udf.EMPTY)
    if len(flat) > 3 * MAX_PART_REPORTS:
        raise UdfFailed(f"reboot reports more than {MAX_PART_REPORTS} pointers of partition {part}")
    return {
        ((where & (1 << 56) - 1) // BLOCK, where % BLOCK // SECTOR, child)
        for where, child, made in zip(flat[0::3], flat[1::3], flat[2::3], strict=True)
        if made == session
    }


class Version:
    """What a sector of a log says as it was put in flight, be it several times."""

    __slots__ = ("edges", "flights")

    def __init__(self, flight: Flight, edges: frozenset[Edge]) -> None:
        self.flights = [flight]
        self.edges = edges


class LogSector:
    """A sector of a log, as a crash could leave it."""

    __slots__ = ("base", "db", "env", "later", "sector", "type")

    def __init__(self, db: int, sector: int, type_id: int) -> None:
        self.db = db
        self.type = type_id
        self.sector = sector
        self.env: Any = None
        """In whose share its reports count."""
        self.base = NOTHING
        """What the version says that is durable for certain."""
        self.later: list[Version] = []
        """Put in flight since; each, or a part of them, may have reached the disk, also if the write failed."""

    def standing(self) -> frozenset[Edge]:
        return self.base.union(*(version.edges for version in self.later))

    def certain(self, edge: Edge) -> bool:
        return edge in self.base and all(edge in version.edges for version in self.later)

    def put(self, flight: Flight, edges: frozenset[Edge]) -> None:
        if self.later and self.later[-1].edges == edges:
            self.later[-1].flights = [self.later[-1].flights[0], flight]
        elif self.later or self.base != edges:
            self.later.append(Version(flight, edges))

    def durable(self, flight: Flight) -> None:
        for index in range(len(self.later) - 1, -1, -1):
            if flight in self.later[index].flights:
                self.base = self.later[index].edges
                del self.later[: index + 1]
                return


class Reports:
    """What the logs of one device report."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.logs: dict[tuple[int, int], LogSector] = {}
        """(block, sector) of all with standing reports."""
        self.standing: dict[Edge, list[LogSector]] = {}
        self.children: dict[int, int] = {}
        """Block → how many standing reports name it."""
        self.needed: dict[int, Edge] = {}
        """Block → the report that must stay (REBOOT-2)."""
        self.refused: dict[int, int] = {}
        """Block → its modification that was not written because of what some log says; to try again is of no use until
        it changes, or reports are fewer."""
        self.ending = False
        """The session is being ended, or that was tried."""
        self.failed = False
        """It was tried in vain."""

    # ---- questions

    def writeable(self, entry: Cached) -> bool:
        """Whether nothing is known that keeps the dirty block from the disk: neither taint nor a log."""
        if self.refused.get(entry.db) == entry.sequence:
            return False
        if not entry.total_taint or not order.attached(entry):
            return True
        return any(entry.dirty >> s & 1 and (not entry.taint[s] or self.covers(entry, s)) for s in range(SECTORS))

    def in_the_way(self) -> bool:
        """Whether it is time to end the session (START-6)."""
        return bool(self.refused) and not self.needed and not self.failed

    def forget(self) -> None:
        """The session has ended: no log will be heard."""
        for known in (self.logs, self.standing, self.children, self.needed, self.refused):
            known.clear()

    def covers(self, entry: Cached, sector: int) -> bool:
        """REBOOT-1: whether all that the sector waits for are children whose reports are certain."""
        if not self.standing or self.ending or any(wait.sector == sector for wait in entry.waits):
            return False
        kids = [kid for kid in entry.kids if kid.parent_sector == sector]
        return len(kids) == entry.taint[sector] and all(self._certain((entry.db, sector, kid.db)) for kid in kids)

    def _certain(self, edge: Edge, without: LogSector | None = None) -> bool:
        return any(
            log is not without and log.certain(edge) and self._led_to(log.db) for log in self.standing.get(edge, ())
        )

    def _led_to(self, db: int) -> bool:
        """Whether durable pointers lead to the log, which is where reconstruction looks for one."""
        log = self._device.get(db)
        if log is None or log.dead or _root_of(log) is None:
            return False
        return log.anchored and (log.parent is None or log.parent.anchored)

    def reported(self, db: int) -> int:
        """A log with a standing report about the block; 0 if there is none."""
        if db not in self.children:
            return 0
        return next(logs[0].db for (_, _, child), logs in self.standing.items() if child == db)

    def log_of_type(self, type_id: int) -> int:
        """A log of that type with standing reports, in core or not; 0 if there is none."""
        return next((log.db for log in self.logs.values() if log.type == type_id), 0)

    def is_log(self, db: int) -> bool:
        """Whether the block has standing reports."""
        return any((db, sector) in self.logs for sector in range(SECTORS))

    def check_refers(self, entry: Cached) -> None:
        """REBOOT-4: nobody refers into a block that is reported.  Raises WouldCycle."""
        if log := self.reported(entry.db):
            _outdated(log, f"block {entry.db}, to which a reference would lead")

    def check(self, t: Transaction) -> None:
        """REBOOT-4, and that a report is about the child that it was made for.  Raises WouldCycle."""
        gains = [(move.touched, move.db, move.count) for move in t.allocs]
        for loser, gainer, db, count in t.moved:
            if loser.shadow is not gainer.shadow or loser.sector != gainer.sector:
                gains.append((gainer, db, count))
        for touched, db, count in gains:
            holder = touched.shadow.entry.db
            if log := self.reported(holder):
                _outdated(log, f"block {holder}, which would own blocks,")
            for (at, sector, block), logs in self.standing.items():
                if at == holder and sector == touched.sector and db <= block < db + count:
                    _outdated(logs[0].db, f"block {block}, which sector {sector} of block {holder} would own anew,")
        gone = [(move.db, move.count) for move in t.frees] + [(db, count) for _, _, db, count in t.moved]
        for known in self.logs.values():
            if any(db <= known.db < db + count for db, count in gone):
                _outdated(known.db, "other blocks, and would be somewhere else")

    # ---- on the way to the disk

    def admit(self, entry: Cached, wanted: int, pending: Pending | None) -> tuple[int, dict[int, frozenset[Edge]]]:
        """Those of the sectors that may be put in flight as far as reports go, and what each of a log would report.

        For the others `pending` fails."""
        reports: dict[int, frozenset[Edge]] = {}
        if entry.flags & _TEMPORARY or not entry.flags & _META or not self._device.superblock.session:
            return wanted, reports
        self.refused.pop(entry.db, None)
        for sector in range(SECTORS):
            if wanted >> sector & 1:
                try:
                    self._check_pointers(entry, sector, pending)
                    if entry.xtype.reboot_program is not None:
                        reports[sector] = self._check_log(entry, sector, pending)
                except XokError as error:
                    wanted &= ~(1 << sector)
                    self.refused[entry.db] = entry.sequence
                    if pending is not None:
                        pending.fail(error)
        return wanted, reports

    def _check_pointers(self, entry: Cached, sector: int, pending: Pending | None) -> None:
        """REBOOT-4: who is reported is empty when the disk first points there."""
        if not self.standing:
            return
        for child in entry.fresh:
            if child.dead or child.parent is not entry or child.parent_sector != sector or not child.flags & _META:
                continue
            edge = (entry.db, sector, child.db)
            logs = self.standing.get(edge)
            if logs and self.needed.get(child.db) != edge and not self._empty(child, pending):
                log = logs[0].db
                raise Tainted(f"block {child.db} is not empty, and block {log} reports it", r0=log, r1=entry.db)

    def _empty(self, entry: Cached, pending: Pending | None) -> bool:
        """Whether the block owns nothing and counts nothing."""
        meta = self._device.pages.view(entry.page)
        for part in range(entry.xtype.nparts):
            spent = entry.xtype.spent, entry.xtype.runs
            owned, _, counts = verify.ask(entry.xtype, meta, part, entry.db)
            self._charge(entry.xtype, *spent, pending)
            if owned or counts:
                return False
        return True

    def _check_log(self, log: Cached, sector: int, pending: Pending | None) -> frozenset[Edge]:
        """What the sector would report; REBOOT-2, REBOOT-3, REBOOT-5, REBOOT-6."""
        session = self._device.superblock.session
        meta = self._device.pages.view(log.page)
        edges: set[Edge] = set()
        for part, where in enumerate(log.xtype.sector_of):
            if where != sector:
                continue
            spent = log.xtype.spent, log.xtype.runs
            edges |= said(log.xtype, meta, part, session)
            self._charge(log.xtype, *spent, pending)
        known = self.logs.get((log.db, sector))
        before = NOTHING if known is None else known.standing()
        for edge in edges:
            if not any(other.db == log.db for other in self.standing.get(edge, ())):
                self._check_edge(log, edge)
        for edge in before - edges:
            if self.needed.get(edge[2]) == edge and not self._certain(edge, known):
                raise Tainted(
                    f"sector {sector} of block {log.db} reports block {edge[2]} no longer, which is not written yet",
                    r0=edge[2],
                    r1=log.db,
                )
        self._check_bounds(log, known, edges - before)
        return frozenset(edges)

    def _check_edge(self, log: Cached, edge: Edge) -> None:
        """REBOOT-3, and that logs are not reported (REBOOT-4)."""
        db, sector, block = edge
        root, holder, child = _root_of(log), self._device.get(db), self._device.get(block)
        reason = ""
        if root is None:
            reason = "and is neither a root block nor owned by one"
        elif root.xtype.reboot_program is None:
            reason = "and the type of its root has no reboot program"
        elif holder is None or child is None or child.parent is not holder or child.parent_sector != sector:
            reason = "which that sector does not own in core"
        elif holder.tree != log.tree or holder.access is not log.access:
            reason = "and the holder's writers are not the log's"
        elif child.linked:
            reason = "to which the disk may point already"
        elif holder.flags & _ROOT and child.flags & _META and child.xtype.reboot_program is not None:
            reason = "which is a log itself"
        if reason:
            what = f"block {log.db} reports block {block} in sector {sector} of block {db}"
            raise BogusUpdate(f"{what}, {reason}", r0=block, r1=log.db)

    def _check_bounds(self, log: Cached, known: LogSector | None, new: set[Edge]) -> None:
        if known is not None and len(known.later) >= MAX_VERSIONS:
            raise LimitReached(
                f"{MAX_VERSIONS} versions of a sector of log {log.db} are on their way: flush", r0=log.db
            )
        if not new:
            return
        if len(self.standing) + len(new) > MAX_REPORTS:
            raise LimitReached(f"more than {MAX_REPORTS} reports on the device: take some out", r0=log.db)
        env = log.charged
        mine = sum(len(other.standing()) for other in self.logs.values() if other.env is env)
        if mine + len(new) > MAX_ENV_REPORTS:
            raise LimitReached(f"more than {MAX_ENV_REPORTS} reports of one environment: take some out", r0=log.db)

    def _charge(self, xtype: XnType, spent: int, runs: int, pending: Pending | None) -> None:
        """REBOOT-6, for what the type's programs have done since they had spent that."""
        spent, runs = xtype.spent - spent, xtype.runs - runs
        xtype.spent -= spent
        xtype.runs -= runs
        self._device.counters.add("udf_instructions", spent)
        self._device.counters.add("udf_runs", runs)
        if pending is not None:
            pending.spent += spent
            if pending.spent > WRITE_BUDGET:
                raise UdfFailed(f"what is written takes more than {WRITE_BUDGET} instructions: write less at a time")

    def sent(self, entry: Cached, flight: Flight, reports: dict[int, frozenset[Edge]]) -> None:
        """The flight has begun."""
        for sector, edges in reports.items():
            if flight.mask >> sector & 1:
                log = self.logs.get((entry.db, sector))
                if log is None:
                    if not edges:
                        continue
                    log = self.logs[entry.db, sector] = LogSector(entry.db, sector, entry.type)
                before = log.standing()
                log.env = entry.charged
                log.put(flight, edges)
                self._restate(log, before)
        if entry.total_taint and not entry.flags & _TEMPORARY and order.attached(entry):
            for kid in entry.kids:
                if flight.mask >> kid.parent_sector & 1:
                    self.needed[kid.db] = (entry.db, kid.parent_sector, kid.db)
                    self._device.counters.add("reported_children")

    # ---- what has become of it

    def durable(self, entry: Cached, flight: Flight) -> None:
        """What the flight carried of the block is durable, and so may the block be as a whole."""
        for sector in range(SECTORS):
            log = self.logs.get((entry.db, sector)) if flight.mask >> sector & 1 else None
            if log is not None:
                before = log.standing()
                log.durable(flight)
                self._restate(log, before)
        if entry.db in self.needed and not entry.dead and order.complete(entry):
            del self.needed[entry.db]
            self.refused.clear()

    def freed(self, db: int, count: int) -> None:
        """No durable pointer leads to these blocks."""
        self.refused.clear()
        for block in [block for block in self.needed if db <= block < db + count]:
            del self.needed[block]

    def _restate(self, log: LogSector, before: Iterable[Edge]) -> None:
        """The log's standing reports were others before."""
        old, now = frozenset(before), log.standing()
        for edge in now - old:
            logs = self.standing.setdefault(edge, [])
            if not logs:
                self.children[edge[2]] = self.children.get(edge[2], 0) + 1
            logs.append(log)
        if old - now:
            self.refused.clear()
        for edge in old - now:
            self.standing[edge].remove(log)
            if not self.standing[edge]:
                del self.standing[edge]
                self.children[edge[2]] -= 1
                if not self.children[edge[2]]:
                    del self.children[edge[2]]
        if not now and not log.later:
            del self.logs[log.db, log.sector]


def _root_of(log: Cached) -> Cached | None:
    """The root block that is the log or owns it; None if there is no such."""
    root = log if log.parent is None else log.parent
    return root if root.flags & _ROOT and root.parent is None else None


def _outdated(log: int, what: str) -> NoReturn:
    raise WouldCycle(f"on the disk block {log} may report {what}: take that out, write block {log} and flush", r0=log)
