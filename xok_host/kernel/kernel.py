"""The exokernel: environments, pages, XN disks, and the calls that reach them.  No I/O, no clock, no waiting.

The host gives memory, tables and randomness, and drives it in turns:

    kernel.tick(now_ns)                              the time, once a turn; lock deadlines
    completion = kernel.execute(env, entry)          for each entry taken from a call ring; None: it completes later
    for request in kernel.take_io(): …               start these; they are sorted and merged
    kernel.io_done(token, errno)                     for each that ended
    while kernel.completions: …                      (env id, cookie, code, r0, r1, data); cookie 0: an event

Disks: `privileged.format` says what is written to a fresh disk; `start_device(dev, nblocks, then)` and
`stop_device(dev, then)` run through the same requests and call `then(error or None)` at their end.

KERNEL-1  Everything that an environment holds is in its record and is released by `destroy_environment`, at any moment.
KERNEL-2  A call that is refused has changed nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import cython

from xok_host.abi.calls import CallNumber, EntryFlag, Event
from xok_host.abi.channel import Completion, Entry
from xok_host.abi.errors import BadCall, Cancelled, LimitReached, NotFound, XokError
from xok_host.abi.types import CHUNK_PAGES, ENVIRONMENT_LIMIT, ENVIRONMENT_UID_BASE
from xok_host.kernel.capability import TREE, Capability
from xok_host.kernel.core import Core
from xok_host.kernel.dispatch import Dispatch, Handler
from xok_host.kernel.env import MAX_PENDING, Environment
from xok_host.kernel.pages import ROOTS, Access, Arena, Chunk, Memory
from xok_host.kernel.request import IoRequest
from xok_host.kernel.tables import INDEX, Tables
from xok_host.kernel.xn import locks, order, privileged, startup
from xok_host.kernel.xn.device import MAX_EVICTION_SCAN, Device
from xok_host.kernel.xn.io import DeviceIo
from xok_host.kernel.xn.pending import Pending
from xok_host.kernel.xn.registry import NO_PAGE, Cached, Registry
from xok_host.kernel.xn.startup import Then

_CHAIN = cython.declare(cython.int, int(EntryFlag.CHAIN))
_TRANSACT = cython.declare(cython.int, int(CallNumber.TRANSACT))
_ENTRIES = cython.declare(cython.int, INDEX["entries"])
_ROOTS = cython.declare(cython.longlong, ROOTS)
_PAGES_IN_USE = cython.declare(cython.int, INDEX["pages_in_use"])
_PAGES_TOTAL = cython.declare(cython.int, INDEX["pages_total"])


class _Group:
    """Entries of one environment that are chained to one another."""

    __slots__ = ("failed", "queue", "waiting")

    def __init__(self) -> None:
        self.queue: deque[Entry] | None = None
        """Those behind one that is not through, if there ever were any."""
        self.waiting = False
        self.failed = False


class _Waiting:
    """What a call that waits is told by."""

    __slots__ = ("entry", "env", "group", "kernel")

    def __init__(self, kernel: Kernel, env: Environment, entry: Entry, group: _Group) -> None:
        self.kernel = kernel
        self.env = env
        self.entry = entry
        self.group = group

    def __call__(self, pending: Pending) -> None:
        self.kernel._finish(self.env, self.entry, self.group, pending)


class Kernel(Core):
    """One exokernel.  `random_id()` gives unguessable 64-bit numbers."""

    def __init__(
        self, memory: Memory, tables: Tables, random_id: Callable[[], int], nentries: int, nbuckets: int
    ) -> None:
        super().__init__(memory, tables, nentries, nbuckets)
        self.pages.reclaim = self._reclaim_page
        self.pages.reclaim_chunk = self._reclaim_chunk
        self.locks = locks.Locks(self)
        self.environments: dict[int, Environment] = {}
        self.completions: deque[tuple[int, int, int, int, int, bytes]] = deque()
        self.running: Environment | None = None
        """Whose call is being carried out."""
        self._random_id = random_id
        self._dispatch = Dispatch(self)
        self._handlers: dict[int, Handler] = self._dispatch.handlers
        self._ids: set[int] = set()

    # ---- environments

    def create_environment(self, uid: int, name: str, capabilities: list[Capability] | None = None) -> Environment:
        """A new environment in the lowest free slot.  Raises LimitReached."""
        slot = uid - ENVIRONMENT_UID_BASE if uid >= ENVIRONMENT_UID_BASE else 0
        if slot < 1 or slot in self.environments:
            slot = next((slot for slot in range(1, ENVIRONMENT_LIMIT) if slot not in self.environments), 0)
            if not slot:
                raise LimitReached(f"{ENVIRONMENT_LIMIT} environments are alive")
        env = self.environments[slot] = Environment(slot, uid, name, capabilities or [])
        self.counters.add("environments_created")
        return env

    def destroy_environment(self, env: Environment) -> None:
        """Release everything it holds (KERNEL-1).  Calling it again does nothing."""
        if not env.alive:
            return
        env.alive = False
        self.environments.pop(env.id, None)
        self.locks.release_all(env)
        for page, (count, entry) in list(env.pinned.items()):
            for _ in range(count):
                self._unpin(page, entry)
        env.pinned.clear()
        for page in env.pages:
            self.pages.drop(page)
        env.pages.clear()
        for entry in env.unsettled:
            entry.charged = None
        env.unsettled.clear()
        self.pages.environment_died(env.id)
        for entry in self.registry.cached.values():
            if entry.writer == env.id:
                entry.writer = 0
                self.registry.publish(entry)
        self.counters.add("environments_destroyed")

    def new_capability_id(self) -> int:
        """A number that no guard has emitted by chance: random, not zero, new."""
        while True:
            number = self._random_id() & (1 << 64) - 1
            if number and number not in self._ids:
                self._ids.add(number)
                return number

    def tree_capability(self, dev: int, name: str, rights: int) -> Capability:
        """The capability of a root or type, for the host to hand out.  Raises NotFound."""
        entry = self.device(dev).catalogue.find(name).entry
        return Capability(TREE, entry.capability, rights, name)

    def access_by_capability(self, capability: int) -> Access:
        only = frozenset((capability,))
        return self.pages.access(only, only)

    # ---- devices

    def give_up(self, device: Device, errno: int) -> None:
        """The device has failed for good: nothing in core of it will ever be durable, and all of it goes.

        Pages that are pinned or on their way stay as long as they are.  The host goes on answering what is out."""
        if device.number in self.failed:
            return
        self.failed[device.number] = errno
        for entry in device.entries():
            order.abandon(entry)
        for entry in device.entries():
            device.forget(entry)
        device.moves.clear()
        device.roots.clear()

    def start_device(self, dev: int, nblocks: int, then: Then) -> None:
        """Read XN's structures and make the disk active; `then` gets None or how `privileged.init` failed."""
        privileged.init(self, dev, nblocks, then)

    def fill_uninitialised(self, dev: int) -> int:
        """Before an orderly stop, until it gives 0: zeros for some blocks whose contents nobody gave (START-5).  They
        are dirty then, for the caller to write back.  Raises LimitReached when there is no page left.

        At the end the session ends, if logs cannot be written otherwise (START-6)."""
        device = self.device(dev)
        filled = device.fill_uninitialised()
        if not filled and device.reports.in_the_way():
            startup.end_session(device)
            return 1
        return filled

    def stop_device(self, dev: int, then: Then) -> None:
        """Orderly shutdown of a disk; `then` gets None or how `privileged.shutdown` failed."""
        privileged.shutdown(self, dev, then)

    def add_handler(self, number: int, handler: Handler) -> None:
        """Calls that another part serves (filters)."""
        self._handlers[number] = handler

    # ---- turns

    def tick(self, now_ns: cython.longlong) -> None:
        self.now = now_ns
        if self.locks.next_deadline() is not None:
            self.locks.tick(now_ns)
        self.counters.put(_PAGES_IN_USE, self.pages.in_use)
        self.counters.put(_PAGES_TOTAL, self.pages.total)

    def take_io(self) -> list[IoRequest]:
        io: DeviceIo
        device: Device
        out: list[IoRequest] = []
        for device in self.devices.values():
            io = device.io
            if taken := io.take():
                out += taken
        if self.starting:
            for device in self.starting.values():
                io = device.io
                out += io.take()
        return out

    def io_done(self, token: cython.ulonglong, errno: cython.int) -> None:
        number = token & 0xFF
        device: Device | None = self.devices.get(number)
        if device is None:
            device = self.starting[number]
        device.io.done(token, errno)
        if self.starting and number in self.devices:
            self.starting.pop(number, None)

    def post_event(self, env: Environment, event: Event, r0: int, r1: int) -> None:
        if env.alive:
            self.completions.append((env.id, 0, int(event), r0, r1, b""))

    # ---- calls

    def execute(self, env: Environment, entry: Entry) -> Completion | None:
        """Carry out one entry.  None when it completes later, through `completions`."""
        self.counters.count(_ENTRIES, 1)
        group: _Group | None = env.group
        if group is None:
            group = env.group = _Group()
        elif entry.flags & _CHAIN:
            if group.waiting or group.queue:
                if env.pending >= MAX_PENDING:
                    return self._refusal(entry, LimitReached(f"{MAX_PENDING} entries wait"))
                if group.queue is None:
                    group.queue = deque()
                env.pending += 1
                group.queue.append(entry)
                return None
        elif group.waiting or group.queue:
            group = env.group = _Group()
        else:
            group.failed = False
        return self._run(env, entry, group)

    def _run(self, env: Environment, entry: Entry, group: _Group) -> Completion | None:
        completion: Completion
        number: cython.long = entry.number
        nops: cython.long = 0
        result: Any = None
        try:
            if group.failed and entry.flags & _CHAIN:
                raise Cancelled
            handler = self._handlers.get(number)
            if handler is None:
                raise BadCall(f"no call {number}")
            if env.pending >= MAX_PENDING:
                raise LimitReached(f"{MAX_PENDING} entries wait")
            self.running = env
            self.pages.payer = env.uid if env.uid else _ROOTS + env.id
            if number == _TRANSACT:  # as its handler does: the most frequent call of all takes no detour
                nops = self._dispatch.transaction(env, entry.cap, entry.data, 0)
            else:
                result = handler(env, entry)
        except XokError as error:
            group.failed = True
            return self._refusal(entry, error)
        finally:
            self.running = None
            self.pages.payer = 0
        if result is not None and type(result) is not tuple:
            return self._wait(env, entry, group, result)
        group.failed = False
        completion = Completion.__new__(Completion)
        completion.cookie, completion.code = entry.cookie, 0
        if result is None:
            completion.r0, completion.r1, completion.data = nops, 0, b""
        else:
            completion.r0, completion.r1, completion.data = result
        return completion

    def _wait(self, env: Environment, entry: Entry, group: _Group, pending: Pending) -> Completion | None:
        """The handler is through; answer now if nothing is left to wait for."""
        pending.release()
        if not pending.held:
            completion = self._answer(entry, pending)
            group.failed = bool(completion.code)
            return completion
        group.waiting = True
        env.pending += 1

        pending.finish = _Waiting(self, env, entry, group)
        return None

    def _finish(self, env: Environment, entry: Entry, group: _Group, pending: Pending) -> None:
        """A call that had to wait is through, and those that were chained to it go on."""
        completion: Completion = self._answer(entry, pending)
        env.pending -= 1
        group.waiting = False
        group.failed = bool(completion.code)
        self._complete(env, completion)
        while group.queue and not group.waiting:
            following = group.queue.popleft()
            env.pending -= 1
            if env.alive:
                answer = self._run(env, following, group)
                if answer is not None:
                    self._complete(env, answer)

    def _complete(self, env: Environment, completion: Completion) -> None:
        if env.alive:
            self.completions.append(
                (env.id, completion.cookie, completion.code, completion.r0, completion.r1, completion.data)
            )

    def _answer(self, entry: Entry, pending: Pending) -> Completion:
        if pending.error is not None:
            return self._refusal(entry, pending.error)
        completion: Completion = Completion.__new__(Completion)
        completion.cookie, completion.code = entry.cookie, 0
        completion.r0, completion.r1, completion.data = pending.r0, pending.r1, pending.data
        return completion

    def _refusal(self, entry: Entry, error: XokError) -> Completion:
        self.counters.add("refusals")
        fields = error.fields
        return Completion(entry.cookie, error.code, fields.get("r0", 0), fields.get("r1", 0), error.detail.encode())

    # ---- pins

    def pin(self, env: Environment, entry: Cached) -> None:
        held = env.pinned.get(entry.page)
        if held is None:
            env.pinned[entry.page] = [1, entry]
        else:
            held[0] += 1
        env.npins += 1
        self.pages.hold(entry.page)
        entry.pins += 1
        self.registry.touch(entry)
        self.registry.publish(entry)

    def unpin(self, env: Environment, page: int) -> None:
        """Raises NotFound when the environment has no pin on the page."""
        held = env.pinned.get(page)
        if held is None:
            raise NotFound(f"no pin on page {page}")
        held[0] -= 1
        if not held[0]:
            del env.pinned[page]
        env.npins -= 1
        self._unpin(page, held[1])

    def _unpin(self, page: int, entry: Cached) -> None:
        if not entry.dead and entry.page == page:
            entry.pins -= 1
            self.registry.publish(entry)
        self.pages.drop(page)

    # ---- room

    def make_room(self, count: cython.long) -> cython.bint:
        """Places in the registry for `count` entries, evicting if need be."""
        while self.registry.room() < count:
            if not self.evict_one():
                return False
        return True

    def evict_one(self) -> bool:
        """Drop the least recently used entry that can go."""
        return self._evict(lambda entry: True)

    def _reclaim_page(self, arena: Arena) -> bool:
        """Free a page of this arena."""
        return self._evict(lambda entry: entry.page != NO_PAGE and self.pages.arena_of(entry.page) is arena)

    def _reclaim_chunk(self, chunks: list[Chunk]) -> bool:
        """Empty one of these chunks, if all that is in it can be evicted."""
        inside: dict[int, list[Cached]] = {chunk.number: [] for chunk in chunks}
        for entry in self.registry.cached.values():
            if entry.page != NO_PAGE and entry.page // CHUNK_PAGES in inside and entry.evictable():
                inside[entry.page // CHUNK_PAGES].append(entry)
        for chunk in chunks:
            entries = inside[chunk.number]
            if len(entries) == chunk.held:
                for entry in entries:
                    entry.device.forget(entry)
                self.counters.add("registry_evictions", len(entries))
                return True
        return False

    def _evict(self, wanted: Callable[[Cached], bool]) -> bool:
        registry: Registry = self.registry
        entry: Cached | None = registry.oldest()
        for _ in range(min(MAX_EVICTION_SCAN, registry.in_core())):
            assert entry is not None
            following = registry.newer(entry)
            if entry.evictable() and wanted(entry):
                entry.device.forget(entry)
                self.counters.add("registry_evictions")
                return True
            registry.touch(entry)  # the next search need not look at it again at once
            entry = following
        return False
