"""C-FFS as a library: mount a volume in an environment and use it (docs/cffs.md; interface: libfs/api.py).

    fs = CFFS.mount(env, dev, "home", cap)
    attr = fs.create(fs.root_ino, b"hello", 0o644, 0, 0)      # NotInCore: fs.fetch(error.requests), again
    fs.write(attr.ino, 0, b"hello, world")
    fs.fsync(attr.ino)

`complete` wraps an operation with that loop.  A mount program under an event loop uses `afetch`, `afsync`, `async_all`
and `aevents` instead of `fetch`, `fsync`, `sync_all` and `events`; it runs `env.dispatch` when the environment's
descriptor is readable.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from libfs.api import NotInCore
from libfs.cffs.grouping import Grouping
from libfs.cffs.growth import Growing
from libfs.cffs.requests import Request, Synchronise
from libfs.cffs.rules import KINDS, OneWriter
from libfs.cffs.settle import Steps
from libfs.cffs.volume import POOL_PAGES
from xok_host.abi import errors as e
from xok_host.abi.calls import CatalogueEntry, Event
from xok_host.abi.types import Right, da_block

T = TypeVar("T")

RESULT_BYTES = 4096
PAGE_TRIES = 64
LOCK_SECONDS = 0.004
"""How long a mount uses the lock on a shared volume at least, so that it gets something done for each turn."""
WRITE_BEHIND = 2048
"""Blocks (8 MiB) that have crossed and are not written yet, from which on writing starts by itself."""


class CFFS(Growing):
    """One mounted C-FFS."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._wanted: list[tuple[int, int]] = []
        self._busy = False
        self._turns: list[Any] = []
        self._behind = 0
        """Write-backs under way that nobody waits for."""
        self._closed = False
        self._next_event = self.env.on_event
        self.env.on_event = self._event

    @classmethod
    def mount(
        cls,
        env: Any,
        dev: int,
        name: str,
        cap: int,
        *,
        writable: bool | None = None,
        grouping: type[Grouping] = Grouping,
        clock: Callable[[], int] = time.time_ns,
    ) -> CFFS:
        """Mount root `name` of device `dev` with the tree capability at index `cap`.  Raises XokError or OSError.

        Without `writable` the capability decides.
        """
        kinds = cls._mount_types(env, dev)
        mounted = env.call("mount", dev, cap=cap, data=name.encode(), out_bytes=RESULT_BYTES)
        rules = kinds.get(CatalogueEntry.unpack(mounted.data).type)
        if rules is None:
            raise e.WrongType(f"{name!r} is not a C-FFS")
        if writable is None:
            rights = next((info.rights for info in env.caps if info.index == cap), 0)
            writable = bool(rights & Right.WRITE)
        fs = cls(env, dev, name, cap, da_block(mounted.r0), rules, writable=writable, grouping=grouping, clock=clock)
        if rules.is_alone(fs):
            fs._drive(fs.recover_steps())
        return fs

    @staticmethod
    def _mount_types(env: Any, dev: int) -> dict[int, OneWriter]:
        """The kinds of volumes whose types the device has, by the type of their roots."""
        found: dict[int, OneWriter] = {}
        for kind in KINDS:
            try:
                ids = [env.call("type_mount", dev, data=n.encode(), out_bytes=RESULT_BYTES).r0 for n in kind.names]
            except e.NotFound:
                continue
            found[ids[0]] = kind(*ids)
        return found

    # ---- driving steps

    def _drive(self, steps: Steps) -> None:
        """Carry a generator out, waiting in this thread."""
        env = self.env
        try:
            calls = next(steps)
            while True:
                cookies = [
                    env.submit(name, *scalars, cap=self.cap, data=data, out_bytes=RESULT_BYTES)
                    for name, scalars, data in calls
                ]
                calls = steps.send([env.wait(cookie) for cookie in cookies])
        except StopIteration:
            return

    async def _adrive(self, steps: Steps, *, first: bool = False) -> None:
        """Carry a generator out without blocking the event loop, after those that wait already, or before them."""
        import trio

        while self._busy:
            turn = trio.Event()
            self._turns.insert(0 if first else len(self._turns), turn)
            await turn.wait()
        self._busy = True
        try:
            calls = next(steps)
            while True:
                results: list[Any] = [None] * len(calls)
                left = len(calls)
                done = trio.Event()

                def finished(completion: Any, index: int, results: list[Any] = results, done: Any = done) -> None:
                    nonlocal left
                    results[index] = completion
                    left -= 1
                    if not left:
                        done.set()

                for index, (name, scalars, data) in enumerate(calls):
                    self.env.submit(
                        name,
                        *scalars,
                        cap=self.cap,
                        data=data,
                        out_bytes=RESULT_BYTES,
                        then=lambda completion, index=index, finished=finished: finished(completion, index),
                    )
                if calls:
                    self.env.ring_doorbell()
                    self.env.dispatch()
                    if left:
                        await done.wait()
                calls = steps.send(results)
        except StopIteration:
            return
        finally:
            self._busy = False
            if self._turns:
                self._turns.pop(0).set()

    def fetch(self, requests: Sequence[Request]) -> None:
        """Carry out the requests of a NotInCore, waiting."""
        self._drive(self.steps_of_all(requests))

    async def afetch(self, requests: Sequence[Request]) -> None:
        """Carry out the requests of a NotInCore under trio."""
        await self._adrive(self.steps_of_all(requests))

    def complete(self, operation: Callable[..., T], *args: Any, **named: Any) -> T:
        """Call an operation until it has what it needs."""
        for _ in range(256):
            try:
                return operation(*args, **named)
            except NotInCore as missing:
                self.fetch(missing.requests)
        raise OSError(errno.EIO, "blocks do not stay in core")

    # ---- durability

    def flush(self) -> None:
        """Everything answered so far crosses to XN; much that has crossed starts being written."""
        if self.writing:
            return  # what is being made durable must not grow meanwhile
        self.cross()
        if len(self.unwritten) > WRITE_BEHIND and not self._behind:
            self._write_behind()
        self._trim()

    def _write_behind(self) -> None:
        """Start writing without waiting; the next synchronisation sees what became of it."""
        from libfs.cffs.settle import BATCH_EXTENTS, extents_of
        from xok_host.abi.calls import pack_extents

        def landed(completion: Any) -> None:
            self._behind -= 1

        extents = extents_of(self.unwritten)
        for at in range(0, len(extents), BATCH_EXTENTS):
            self._behind += 1
            self.env.submit(
                "writebackv",
                self.dev,
                data=pack_extents(extents[at : at + BATCH_EXTENTS]),
                cap=self.cap,
                then=landed,
            )
        self.env.ring_doorbell()

    def _trim(self) -> None:
        """Drop clean in-core inodes beyond the bound."""
        from libfs.cffs.volume import MAX_NODES

        if len(self.nodes) <= MAX_NODES:
            return
        for ino, node in list(self.nodes.items()):
            if ino in self.dirty or ino in self.opens or node.ghosts or node.pages or node.gained or node.lost:
                continue
            if ino not in (self.root_ino, self.orphans_ino) and node.directory is None:
                del self.nodes[ino]

    def sync_all(self) -> None:
        """Everything durable, waiting for it here."""
        self._drive(self.synchronise_steps())

    async def async_all(self) -> None:
        """Everything durable."""
        await self._adrive(self.synchronise_steps())

    def fsync(self, ino: int | None, datasync: bool = False) -> None:
        """CFFS-4.  Raises the first error of the inode (None: of any) since the last fsync."""
        self._drive(self.fsync_steps(ino))
        self._raise_error(ino)

    async def afsync(self, ino: int | None, datasync: bool = False) -> None:
        await self._adrive(self.fsync_steps(ino))
        self._raise_error(ino)

    def _raise_error(self, ino: int | None) -> None:
        if ino is None:
            if self.errors:
                error = next(iter(self.errors.values()))
                self.errors.clear()
                raise error
        elif (found := self.errors.pop(ino, None)) is not None:
            raise found

    def write_all_now(self) -> None:
        self._drive(self.write_steps())

    def close(self) -> None:
        """Everything durable; locks and pages go back."""
        if self._closed:
            return
        self._closed = True
        if self.writable:
            self.sync_all()
            self.return_unused_pages()
        self._drive(self.let_go(list(self.locks)))
        self.env.on_event = self._next_event

    # ---- pages

    def _refill(self, count: int) -> None:
        want = max(count, POOL_PAGES)
        tries = 0
        while count > 0:
            try:
                data = self.env.call("page_alloc", min(max(want, 1), 1024), cap=self.cap, out_bytes=1024 * 8).data
            except e.LimitReached as error:
                if self.unwritten or self.overlay or self.dirty:
                    raise NotInCore([Synchronise()]) from error
                # xokd looks for pages to evict a bounded while at a time, each time further on.
                tries += 1
                if want > 1 or tries < PAGE_TRIES:
                    want = max(1, min(count, want // 2))
                    continue
                raise OSError(errno.ENOMEM, "xokd has no pages left") from error
            pages = [number for (number,) in struct.iter_unpack("<Q", data)]
            runs: list[list[int]] = []
            for page in pages:
                if runs and runs[-1][0] + runs[-1][1] == page and page % 1024:
                    runs[-1][1] += 1
                else:
                    runs.append([page, 1])
            self._pool[:0] = reversed(runs)
            count -= len(pages)
            want = max(count, 1)

    def return_unused_pages(self) -> None:
        """Give the pool back to xokd."""
        numbers = [page + i for page, count in self._pool for i in range(count)]
        self._pool.clear()
        for at in range(0, len(numbers), 4096):
            part = numbers[at : at + 4096]
            self.env.call("page_free", data=struct.pack(f"<{len(part)}Q", *part))

    # ---- events

    def _event(self, event: Event, r0: int, r1: int) -> None:
        if event is Event.LOCK_WANTED and r0 >> 56 == self.dev:
            if self.writable:
                self._wanted.append((da_block(r0), r1))
            else:
                self._let_go_now(da_block(r0))
        elif event is Event.LOCK_LOST and r0 >> 56 == self.dev:
            self._lost(da_block(r0))
        elif event is Event.PAGES_WANTED:
            self._wanted.append((-1, r0))
        self._next_event(event, r0, r1)

    def _lost(self, block: int) -> None:
        if block == self.orphans_lock:
            self.orphans_lock = 0
            return
        inos = self.protected_by(block)
        self.locks.pop(block, None)
        self.contended.add(block)
        self.forget_block(block)
        for ino in inos:
            self.on_invalidate(ino)

    def _let_go_now(self, block: int) -> None:
        """A reader has nothing to write back: it lets go in the event itself, even while it waits for another lock.

        So a writer never waits for a reader that waits for the writer.
        """
        if self.locks.pop(block, None):
            inos = self.protected_by(block)
            self.forget_block(block)
            for ino in inos:
                self.on_invalidate(ino)
            self.env.submit("unlock", self.dev << 56 | block << 12, 0, then=lambda completion: None)
            self.env.ring_doorbell()

    def _event_steps(self) -> Steps:
        wanted, self._wanted = self._wanted, []
        for block, mode in wanted:
            if block < 0:
                yield from self.synchronise_steps()
                self.return_unused_pages()
            else:
                inos = self.protected_by(block)
                yield from self.let_go([block], mode)
                for ino in inos:
                    self.on_invalidate(ino)

    def events(self) -> None:
        """Do what other environments and xokd have asked for (after `env.dispatch`), waiting."""
        while self._wanted:
            self._drive(self._event_steps())

    async def aevents(self) -> None:
        """Do what other environments and xokd have asked for, before everything else that takes steps.

        On a shared volume, where one lock stands for all, the lock is used for a moment before it goes on."""
        import trio

        while self._wanted:
            if self.shared:
                await trio.sleep(max(0.0, self.lock_taken + LOCK_SECONDS - time.monotonic()))
            await self._adrive(self._event_steps(), first=True)

    def idle(self) -> None:
        """Nothing to do for a moment: let what was answered cross."""
        if self.dirty or self.overlay:
            self.flush()

    def forget(self, ino: int) -> None:
        """The kernel has no reference to the inode any more."""
        node = self.nodes.get(ino)
        if node is not None and ino not in self.dirty and ino not in self.opens and not node.ghosts:
            if node.directory is None and not node.pages and ino not in (self.root_ino, self.orphans_ino):
                del self.nodes[ino]

    def statistics(self) -> dict[str, int]:
        """Counts for status displays."""
        return {
            "inodes": len(self.nodes),
            "changed_inodes": len(self.dirty),
            "changed_sectors": len(self.overlay),
            "unwritten_blocks": len(self.unwritten),
            "locks": len(self.locks),
            "ghosts": len(self.ghosts),
            "promised_blocks": self.promised,
        }


__all__ = ["CFFS", "NotInCore"]
