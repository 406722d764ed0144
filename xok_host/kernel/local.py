"""A whole exokernel in one process, on disks of memory: for tests, and for trying a library file system.

    local = LocalXok(nblocks=4096)
    env = local.environment()                       # calls as xok_host.abi.client.Environment has them
    done = env.call("install_mount", 1, 0, 1, TYPE_XN_DB, data=b"name")
    local.crash()                                   # everything not durable may be lost; the kernel is new
    report = local.recover()                        # reconstruct, as `xok up` does after an unclean stop

Nothing waits: `pump` carries requests between kernel and disk until nothing is left to do.  With `local.hold_io` set
they stay queued, so that a test can act while a write is on its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from xok_host.abi import errors
from xok_host.abi.calls import EntryFlag, Event, pack_extents
from xok_host.abi.calltable import BY_NAME
from xok_host.abi.channel import Completion, Entry
from xok_host.abi.client import CapabilityInfo, refusal
from xok_host.abi.types import BLOCK, CHUNK_PAGES, SECTOR, SECTORS, Right, page_chunk, page_slot
from xok_host.abi.views import CountersView, FreeMapView, RegistryView
from xok_host.kernel.capability import TREE, Capability
from xok_host.kernel.env import Environment
from xok_host.kernel.kernel import Kernel
from xok_host.kernel.pages import PlainMemory
from xok_host.kernel.request import IoOp, IoRequest
from xok_host.kernel.tables import PlainTables
from xok_host.kernel.xn import privileged
from xok_host.kernel.xn.patching import MAX_ROUNDS, PatchCalls, Patching
from xok_host.kernel.xn.recover import Report, as_it_is, reconstruct, reconstruction, repair
from xok_host.kernel.xn.walk import Answers, answered

WAITS = (errors.Tainted, errors.BogusUpdate, errors.UdfFailed, errors.LimitReached)
"""How the write of several blocks fails because of some of them, when all others are written."""

DEV = 1
"""Number of the first device, which is the only one unless `more` disks are given."""


class Numbers:
    """Reproducible 64-bit numbers (splitmix64): hosts give the kernel unguessable ones, tests the same ones."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def __call__(self) -> int:
        mask = (1 << 64) - 1
        self._state = self._state + 0x9E37_79B9_7F4A_7C15 & mask
        z = self._state
        z = (z ^ z >> 30) * 0xBF58_476D_1CE4_E5B9 & mask
        z = (z ^ z >> 27) * 0x94D0_49BB_1331_11EB & mask
        return z ^ z >> 31


class RamDisk:
    """A disk with a volatile write cache, sector by sector.

    A write changes the cache; a flush makes all completed writes durable.  `crash` keeps, of each sector that was
    written since the last flush, any one of the versions since then, as `choose` says.
    """

    def __init__(self, nblocks: int) -> None:
        self.nblocks = nblocks
        self.data = bytearray(nblocks * BLOCK)
        self.durable = bytearray(nblocks * BLOCK)
        self.unflushed: list[tuple[int, bytes]] = []
        """(sector, contents) of completed writes since the last flush, in order."""
        self.writes = 0
        self.fail: Callable[[IoRequest], int] = lambda request: 0
        """An errno for requests that shall fail."""
        self.on_write: Callable[[], None] = lambda: None

    def read_sectors(self, sector: int, count: int) -> bytes:
        return bytes(self.data[sector * SECTOR : (sector + count) * SECTOR])

    def write_sectors(self, sector: int, data: bytes | memoryview) -> None:
        for at in range(0, len(data), SECTOR):
            self.on_write()
            self.writes += 1
            raw = bytes(data[at : at + SECTOR])
            place = sector * SECTOR + at
            self.unflushed.append((sector + at // SECTOR, raw))
            self.data[place : place + SECTOR] = raw

    def flush(self) -> None:
        self.unflushed.clear()
        self.durable[:] = self.data

    def read_block(self, db: int) -> bytes:
        return self.read_sectors(db * SECTORS, SECTORS)

    def crash(self, choose: Callable[[int], bool], in_flight: Sequence[tuple[int, bytes]] = ()) -> None:
        """Lose the cache: of the sectors written or in flight since the last flush, `choose(sector)` says for each
        version, in order, whether it has reached the disk."""
        for sector, raw in (*self.unflushed, *in_flight):
            if choose(sector):
                self.durable[sector * SECTOR : sector * SECTOR + SECTOR] = raw
        self.unflushed.clear()
        self.data[:] = self.durable


@dataclass
class LocalBatch:
    """Entries for one crossing, as `xok_host.abi.client.Batch`."""

    env: LocalEnvironment
    chain: bool = False
    results: list[Completion] = field(default_factory=list)
    _cookies: list[int] = field(default_factory=list)

    def add(self, name: str, *scalars: int, cap: int = 0, data: bytes = b"", out_bytes: int = 0) -> None:
        flags = EntryFlag.CHAIN if self.chain and self._cookies else 0
        self._cookies.append(self.env.submit(name, *scalars, cap=cap, data=data, out_bytes=out_bytes, flags=flags))

    def __enter__(self) -> LocalBatch:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        if kind is None:
            self.results = [self.env.wait(cookie) for cookie in self._cookies]

    def raise_first(self) -> None:
        for completion in self.results:
            if completion.code:
                raise refusal(completion)


class LocalEnvironment:
    """An environment in the same process: the interface of `xok_host.abi.client.Environment` without a channel."""

    def __init__(self, local: LocalXok, env: Environment) -> None:
        self.local = local
        self.kernel_env = env
        self.id = env.id
        self.name = env.name
        self.args: list[str] = []
        self.tap = None
        self.stop_requested = False
        self.devices = {dev: disk.nblocks for dev, disk in local.disks.items()}
        self.registry = RegistryView(local.tables.registry)
        self.counters = CountersView(local.tables.counters)
        self.freemaps = {dev: FreeMapView(local.tables.freemaps[dev], nblocks) for dev, nblocks in self.devices.items()}
        self.extra_fds: dict[str, int] = {}
        self.on_event: Callable[[Event, int, int], None] = lambda event, r0, r1: None
        self.events: list[tuple[Event, int, int]] = []
        self._next_cookie = 1
        self._done: dict[int, Completion] = {}
        self._handlers: dict[int, Callable[[Completion], None]] = {}
        self._ready: deque[Completion] = deque()

    @property
    def caps(self) -> list[CapabilityInfo]:
        return [
            CapabilityInfo(index, held.kind, held.id, held.rights, held.name)
            for index, held in self.kernel_env.capabilities
        ]

    def submit(
        self,
        name: str,
        *scalars: int,
        cap: int = 0,
        data: bytes = b"",
        out_bytes: int = 0,
        flags: int = 0,
        then: Callable[[Completion], None] | None = None,
    ) -> int:
        cookie = self._next_cookie
        self._next_cookie += 1
        if then is not None:
            self._handlers[cookie] = then
        a0, a1, a2, a3 = (*scalars, 0, 0, 0, 0)[:4]
        room = max(out_bytes, 256)
        entry = Entry(BY_NAME[name].number, int(flags), cap, cookie, a0, a1, a2, a3, bytes(data), 0, room)
        self.local.calls += 1
        completion = self.local.kernel.execute(self.kernel_env, entry)
        if completion is not None:
            self._ready.append(completion)
        return cookie

    def ring_doorbell(self) -> None:
        self.local.pump()

    def deliver(self, completion: Completion) -> None:
        self._ready.append(completion)

    def dispatch(self) -> int:
        """Hand out what has completed; how much that was."""
        self.local.pump()
        count = 0
        while self._ready:
            completion = self._ready.popleft()
            count += 1
            if completion.cookie == 0:
                event = Event(completion.code)
                if event is Event.STOP:
                    self.stop_requested = True
                self.events.append((event, completion.r0, completion.r1))
                self.on_event(event, completion.r0, completion.r1)
            elif (handler := self._handlers.pop(completion.cookie, None)) is not None:
                handler(completion)
            else:
                self._done[completion.cookie] = completion
        return count

    def wait(self, cookie: int) -> Completion:
        """Raises RuntimeError when nothing that is left to do can complete the call."""
        self.dispatch()
        if cookie not in self._done:
            raise RuntimeError("the call waits for something that will not happen by itself (a lock, or held I/O)")
        return self._done.pop(cookie)

    def call(self, name: str, *scalars: int, cap: int = 0, data: bytes = b"", out_bytes: int = 0) -> Completion:
        completion = self.wait(self.submit(name, *scalars, cap=cap, data=data, out_bytes=out_bytes))
        if completion.code:
            raise refusal(completion)
        return completion

    def call_many(self, entries: Sequence[tuple[Any, ...]]) -> list[Completion]:
        """Several (name, scalars, cap, data) in one crossing."""
        cookies = [self.submit(name, *scalars, cap=cap, data=data) for name, scalars, cap, data in entries]
        return [self.wait(cookie) for cookie in cookies]

    def batch(self, *, chain: bool = False) -> LocalBatch:
        return LocalBatch(self, chain)

    def page(self, page: int) -> memoryview:
        return self.pages(page, 1)

    def pages(self, page: int, count: int) -> memoryview:
        """As the real one: read-only unless the page is in the environment's own write arena."""
        if page_slot(page) + count > CHUNK_PAGES:
            raise ValueError("pages of several chunks")
        writable = self.call("chunk_map", page_chunk(page)).r0
        chunk = self.local.memory.chunks[page_chunk(page)]
        view = chunk[page_slot(page) * BLOCK : (page_slot(page) + count) * BLOCK]
        return view if writable else view.toreadonly()

    def drain(self) -> None:
        self.dispatch()

    def wait_event(self, seconds: float | None = None) -> None:
        self.dispatch()

    def close(self) -> None:
        """The environment dies."""
        self.local.kernel.destroy_environment(self.kernel_env)


class LocalXok:
    """Kernel and RAM disks: `disk` is device 1, `more` are 2 and so on.  `format` False starts from what they hold."""

    def __init__(
        self,
        nblocks: int = 4096,
        *,
        disk: RamDisk | None = None,
        more: Sequence[RamDisk] = (),
        format: bool = True,
        seed: int = 1,
        max_chunks: int = 64,
        entries: int = 1 << 14,
    ) -> None:
        self.disk = disk or RamDisk(nblocks)
        self.disks = dict(enumerate([self.disk, *more], DEV))
        self.numbers = Numbers(seed)
        self.hold_io = False
        self.held: list[IoRequest] = []
        self.calls = 0
        self.now = 1_000_000_000
        self._max_chunks = max_chunks
        self._entries = entries
        if format:
            for fresh in self.disks.values():
                identity = self.numbers().to_bytes(8, "little") * 2
                for step in privileged.format(fresh.nblocks, identity):
                    for sector, raw in step.items():
                        fresh.write_sectors(sector, raw)
                    fresh.flush()
        self._boot()

    def _boot(self) -> None:
        self.memory = PlainMemory(self._max_chunks)
        self.tables = PlainTables(self._entries, 1 << 14)
        self.kernel = Kernel(self.memory, self.tables, self.numbers, self._entries, 1 << 14)
        self.patching = PatchCalls(self.kernel)
        self.environments: dict[int, LocalEnvironment] = {}
        self.kernel.tick(self.now)
        self.start()

    def start(self) -> None:
        """Bring the disks into use.  After a crash they are not (`started`): `recover` first."""
        self.started = True
        for dev, disk in self.disks.items():
            outcome: list[errors.XokError | None] = []
            self.kernel.start_device(dev, disk.nblocks, outcome.append)
            self.pump()
            if outcome and outcome[0] is not None and not isinstance(outcome[0], errors.NotClean):
                raise outcome[0]
            if outcome != [None]:
                self.started = False
                self.tables.freemaps.setdefault(dev, self.tables.freemap(dev, disk.nblocks))

    def stop(self) -> None:
        """Orderly shutdown: write everything back as long as that makes progress, then stop the devices."""
        for dev in self.disks:
            self.sync(dev)
            while self.kernel.fill_uninitialised(dev):
                self.sync(dev)
            outcome: list[errors.XokError | None] = []
            self.kernel.stop_device(dev, outcome.append)
            self.pump()
            if outcome[0] is not None:
                raise outcome[0]

    def sync(self, dev: int = DEV) -> int:
        """What a syncer daemon does: write what may be written, flush, until nothing is dirty; rounds it took."""
        syncer = self.environment(name="syncer")
        rounds = 0
        try:
            while True:
                found = syncer.call("list_writeable", dev, out_bytes=1 << 20)
                blocks = memoryview(found.data).cast("Q").tolist()
                for at in range(0, len(blocks), 512):
                    data = pack_extents((db, 1, 0) for db in blocks[at : at + 512])
                    try:
                        syncer.call("writebackv", dev, data=data)
                    except WAITS:
                        pass  # some sectors wait, or a log must not say that; what could go has gone
                syncer.call("flush", dev)
                rounds += 1
                if not blocks and not syncer.call("list_writeable", dev).r0:  # the flush may have freed some to go
                    return rounds
                if rounds > 1000:
                    raise RuntimeError("the disk does not come to rest")
        finally:
            syncer.close()

    def environment(
        self, caps: Sequence[Capability] = (), *, roots: Sequence[str] = (), name: str = "test", uid: int = 0
    ) -> LocalEnvironment:
        """A new environment with these capabilities, and all rights on the trees (or type extents) named in `roots`."""
        held = list(caps)
        held += [self.kernel.tree_capability(DEV, root, Right.READ | Right.WRITE | Right.GRANT) for root in roots]
        env = LocalEnvironment(self, self.kernel.create_environment(uid, name, held))
        self.environments[env.id] = env
        return env

    # ---- the disk

    def pump(self) -> None:
        """Carry requests out and completions back until there is nothing left to do."""
        while True:
            requests = self.kernel.take_io()
            if self.hold_io:
                self.held += requests
                requests = []
            for request in requests:
                self._carry_out(request)
            delivered = self._deliver()
            if not requests and not delivered:
                return

    def release_io(self, which: Callable[[IoRequest], bool] = lambda request: True) -> None:
        """Carry out held requests that `which` picks."""
        picked = [request for request in self.held if which(request)]
        self.held = [request for request in self.held if request not in picked]
        for request in picked:
            self._carry_out(request)
        self._deliver()

    def _carry_out(self, request: IoRequest) -> None:
        disk = self.disks[request.dev]
        errno = disk.fail(request)
        if not errno:
            sector = request.sector
            for page, first, count in request.iov:
                view = self.kernel.pages.span(page, first, count)
                if request.op == IoOp.READ:
                    view[:] = disk.read_sectors(sector, count)
                else:
                    disk.write_sectors(sector, view)
                sector += count
            if request.op == IoOp.FLUSH:
                disk.flush()
        self.kernel.io_done(request.token, errno)

    def _deliver(self) -> int:
        count = 0
        while self.kernel.completions:
            env_id, cookie, code, r0, r1, data = self.kernel.completions.popleft()
            count += 1
            env = self.environments.get(env_id)
            if env is not None:
                env.deliver(Completion(cookie, code, r0, r1, data))
        return count

    def page_bytes(self, page: int) -> memoryview:
        """The page as xokd sees it."""
        return self.kernel.pages.view(page)

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self.now += int(seconds * 1e9)
        self.kernel.tick(self.now)
        self.pump()

    # ---- crashes

    def crash(self, choose: Callable[[int], bool] | None = None) -> None:
        """Lose everything that is not durable, and all of the kernel; then start again.

        `choose(sector)` decides for each sector written (or on its way) since the last flush whether that version had
        reached the disk; None: none had.  The disk is not clean then: `recover` it.
        """
        in_flight: dict[int, list[tuple[int, bytes]]] = {dev: [] for dev in self.disks}
        for request in (*self.held, *self.kernel.take_io()):
            if request.op == IoOp.WRITE:
                sector = request.sector
                for page, first, count in request.iov:
                    raw = bytes(self.kernel.pages.span(page, first, count))
                    for at in range(0, len(raw), SECTOR):
                        in_flight[request.dev].append((sector, raw[at : at + SECTOR]))
                        sector += 1
        self.held = []
        for dev, disk in self.disks.items():
            disk.crash(choose or (lambda sector: False), in_flight[dev])
        self._boot()

    def recover(self) -> Report:
        """Reconstruct the disks after a crash, make them clean, and start; gives the first's report."""
        reports = {dev: reconstruct(disk.read_block, disk.nblocks) for dev, disk in self.disks.items()}
        for dev, report in reports.items():
            self._repair(self.disks[dev], report)
        self._boot()
        self.patching.reports.update(reports)
        return reports[DEV]

    def resume(self) -> Report:
        """After a crash, use the disks as they are, walked no further than must be; gives the first's report."""
        reports = {}
        for dev, disk in self.disks.items():
            began: list[Report] = []
            steps = reconstruction(disk.nblocks, began=began.append)
            wanted = next(steps)
            while not (began and began[0].may_start):
                try:
                    wanted = steps.send([disk.read_block(db) for db in wanted])
                except StopIteration:
                    break
            reports[dev] = began[0]
            if began[0].whole:
                self._repair(disk, began[0])
            else:
                self._put(disk, as_it_is(began[0]))
        self._boot()
        self.patching.reports.update({dev: report for dev, report in reports.items() if report.whole})
        return reports[DEV]

    def patch(self, root: str, program: Callable[[LocalEnvironment], bool]) -> str:
        """Run a patch program on a tree of the first disk, as `xok repair` does: stop it, patch it, start it again.

        `program` tells whether it ended well.  Gives what speaks against the patches, which are not written then."""
        if self.started:
            self.stop()
        before = self._reconstruct(root, {})
        session = Patching(before, root, self.disk.read_block, now=self.now)
        after, failure = before, ""
        for _ in range(MAX_ROUNDS):
            self.patching.session = session
            held = Capability(TREE, session.capability, Right.READ | Right.WRITE, root)
            env = self.environment([held], name="patch")
            try:
                failure = "" if program(env) else "the program failed"
            finally:
                env.close()
                self.patching.session = None
            if failure or not session.take_round():
                break
            session.found = after = self._reconstruct(root, session.patches)
            if not session.objection(after) and not after.log(root):
                break
        reason = failure or session.objection(after)
        if reason:
            after = before
        self._repair(self.disk, after)
        self._boot()
        self.patching.reports[DEV] = after
        return reason

    def _reconstruct(self, watch: str, patches: dict[int, bytes]) -> Report:
        def read(wanted: list[int]) -> Answers:
            return [self.disk.read_block(db) for db in wanted]

        steps = reconstruction(self.disk.nblocks, watch=watch, patches=patches)
        report: Report = answered(steps, read, lambda: None)
        return report

    @staticmethod
    def _repair(disk: RamDisk, report: Report) -> None:
        for step in repair(report):
            LocalXok._put(disk, step)

    @staticmethod
    def _put(disk: RamDisk, sectors: dict[int, bytes]) -> None:
        for sector, raw in sectors.items():
            disk.write_sectors(sector, raw)
        disk.flush()
