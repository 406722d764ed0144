"""The kernel with a disk, memory and a network under it: what the call loop serves and environments are made of.

The kernel does no I/O: its requests are started here at the end of each turn, and their ends come back from the disks
in the next.  Disks are devices 1, 2, … in the order in which they were named; what one of them fails is not the others'
business.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from ipaddress import IPv4Interface
from typing import Any

import trio

from xok_host.abi.calls import CallNumber, CatalogueEntry, pack_extents
from xok_host.abi.channel import Completion, Entry
from xok_host.abi.errors import (
    BadCall,
    BogusUpdate,
    LimitReached,
    MediaError,
    NotAllowed,
    NotClean,
    NotFound,
    Tainted,
    UdfFailed,
    XokError,
    by_code,
)
from xok_host.abi.types import CHUNK_PAGES, ENVIRONMENT_LIMIT, ENVIRONMENT_UID_BASE, Right
from xok_host.abi.views import CountersView
from xok_host.host.blockdev import BlockDevice, open_disk
from xok_host.host.callloop import CallLoop
from xok_host.host.carrier import Carrier
from xok_host.host.config import Config
from xok_host.host.environments import NetworkGrant
from xok_host.host.network import Network
from xok_host.host.reconstruct import BlockReader, Examination, examine, repair, take_as_it_is
from xok_host.host.sharedmem import SharedChunks, SharedTables
from xok_host.host.signature import naming
from xok_host.host.turns import Turns
from xok_host.kernel.capability import ADDRESS, Capability
from xok_host.kernel.env import Environment
from xok_host.kernel.kernel import Kernel
from xok_host.kernel.xn.catalogue import FLAG_TAINTED
from xok_host.kernel.xn.patching import PatchCalls
from xok_host.kernel.xn.recover import Report, read_catalogue
from xok_host.kernel.xn.startup import Then

log = logging.getLogger("xok.system")

OWN_SLOT = ENVIRONMENT_LIMIT
"""xokd's own environment, which has no process: for writing back at shutdown."""
WAITS = (0, Tainted.code, BogusUpdate.code, UdfFailed.code, LimitReached.code)
"""What WRITEBACKV answers although all blocks are written that may be."""
SYNC_ROUNDS = 1000
"""Rounds of writing back and flushing that a disk may take to come to rest."""
PROGRESS_SECONDS = 5.0
"""Between two lines about a reconstruction."""
SYNC_BATCH = 512
"""Blocks in one request of the syncer."""


class System:
    """Everything under the environments."""

    def __init__(self, config: Config) -> None:
        """Take the disks and the TAP.  Raises BadDisk, InUse, MediaError, OSError; nothing is held then."""
        self._config = config
        self.on_flood: Callable[[int], None] = lambda env: None
        self._held = contextlib.ExitStack()
        self.disks: dict[int, BlockDevice] = {}
        self.network: Network | None = None
        self._own_cookie = 0
        self._own_waits: dict[int, trio.Event] = {}
        self._own_answers: dict[int, Completion] = {}
        try:
            for dev, path in enumerate(config.disks, 1):
                self.disks[dev] = open_disk(path, without=config.without)
                self._held.callback(self.disks[dev].close)
            reports = {dev: _recover(disk, config.walk_seconds) for dev, disk in self.disks.items()}
            self._chunks = SharedChunks(config.memory_chunks)
            self._tables = SharedTables()
            self.kernel = Kernel(
                self._chunks,
                self._tables,
                lambda: secrets.randbits(64),
                self._tables.entries,
                self._tables.buckets,
            )
            carrier = Carrier(self.kernel, self.disks)
            self.turns = Turns(self.kernel, carrier, self._chunks, OWN_SLOT, self._own_complete)
            self.loop = self.turns.loop = CallLoop(self.turns, lambda env: self.on_flood(env))
            self._held.callback(self.loop.close)
            self.patching = PatchCalls(self.kernel)
            self.patching.reports = {dev: report for dev, report in reports.items() if report is not None}
            self.kernel.add_handler(CallNumber.FILTER_INSERT, self._filter_insert)
            self.kernel.add_handler(CallNumber.FILTER_REMOVE, self._filter_remove)
            if config.tap is not None:
                self.network = Network(config.tap, config.host_address, config.without, self.loop)
                self._held.callback(self.network.close)
            for disk in self.disks.values():
                self._watch(disk)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of everything; the kernel's devices were detached, or are left to be reconstructed."""
        self._held.close()

    def _watch(self, disk: BlockDevice) -> None:
        def ready() -> None:
            disk.poll()

        self.loop.watch(disk.fileno(), ready)

    def _own_complete(self, completion: Completion) -> None:
        self._own_answers[completion.cookie] = completion
        self._token.run_sync_soon(self._own_waits.pop(completion.cookie).set)

    # ---- the devices

    async def attach(self) -> None:
        """Bring the disks into use, all or none.  Raises BadDisk, NotClean, MediaError, naming the disk."""
        self._token = trio.lowlevel.current_trio_token()
        for dev, disk in self.disks.items():
            try:
                await self._wait(partial(self.kernel.start_device, dev, disk.nblocks))
            except XokError as error:
                for started in list(self.kernel.devices):
                    with contextlib.suppress(XokError):
                        await self._wait(partial(self.kernel.stop_device, started))
                raise by_code(error.code, f"{disk.path}: {error.detail}") from None
        uid = ENVIRONMENT_UID_BASE + OWN_SLOT
        self._own = self.kernel.create_environment(uid, "xokd", [])

    async def detach(self) -> None:
        """Write everything back and mark each disk clean.  Raises what keeps the first of them from being so, when all
        the others have been seen to."""
        trouble: XokError | None = None
        for dev, disk in self.disks.items():
            try:
                await self.stop_disk(dev)
            except XokError as error:
                log.error("%s is not clean: %s", disk.path, error)
                trouble = trouble or by_code(error.code, f"{disk.path}: {error.detail}")
        if trouble is not None:
            raise trouble

    async def stop_disk(self, dev: int) -> None:
        """Write everything back and mark the disk clean: nobody can use it then.  Raises MediaError if it failed."""
        if dev in self.kernel.failed:
            reason = os.strerror(self.kernel.failed[dev])
            raise MediaError(f"nothing could be written any more ({reason}), and what waited to be written is lost")
        await self.sync(dev)
        await self._wait(partial(self.kernel.stop_device, dev))

    async def start_disk(self, dev: int) -> None:
        """Bring a disk into use again that was stopped."""
        await self._wait(partial(self.kernel.start_device, dev, self.disks[dev].nblocks))

    async def walk(self, dev: int, watch: str, patches: Mapping[int, bytes] | None = None) -> Report:
        """Reconstruct a disk that is stopped, changing nothing, with other things being done between the steps."""
        examination = Examination(self.disks[dev], watch=watch, patches=patches)
        while examination.step():
            await trio.lowlevel.checkpoint()
        return examination.result

    async def sync(self, dev: int) -> None:
        """What dead libOSes left dirty is written like anybody's: anyone may, it changes no contents."""
        for _ in range(SYNC_ROUNDS):
            self.kernel.fill_uninitialised(dev)
            blocks = [entry.db for entry in self.kernel.device(dev).dirty_blocks]
            for at in range(0, len(blocks), SYNC_BATCH):
                extents = pack_extents((db, 1, 0) for db in blocks[at : at + SYNC_BATCH])
                answer = await self._call(CallNumber.WRITEBACKV, dev, data=extents)
                if answer.code not in WAITS:  # some sectors wait for others, or for the session to end
                    raise by_code(answer.code, answer.data.decode())
            answer = await self._call(CallNumber.FLUSH, dev)
            if answer.code:
                raise by_code(answer.code, answer.data.decode())
            if not blocks:
                return
        raise NotClean(f"{len(blocks)} blocks stay dirty")

    async def _call(self, number: CallNumber, a0: int, data: bytes = b"") -> Completion:
        """A call of xokd's own, as any environment could make it."""
        self._own_cookie += 1
        cookie = self._own_cookie
        answer = self.kernel.execute(self._own, Entry(number, 0, 0, cookie, a0, 0, 0, 0, data, 0, 256))
        if answer is not None:
            return answer
        arrived = self._own_waits[cookie] = trio.Event()
        await arrived.wait()
        return self._own_answers.pop(cookie)

    async def _wait(self, begin: Callable[[Then], None]) -> None:
        """Wait for one of the kernel's chains of I/O."""
        outcome: list[XokError | None] = []
        ended = trio.Event()

        def then(error: XokError | None) -> None:
            outcome.append(error)
            self._token.run_sync_soon(ended.set)

        begin(then)
        await ended.wait()
        if outcome[0] is not None:
            raise outcome[0]

    # ---- what environments are made of (`environments.Backend`)

    def create_environment(self, slot: int, uid: int, owner: int, name: str, held: Sequence[Capability]) -> list[int]:
        env = self.kernel.create_environment(uid, name, list(held))
        assert env.id == slot, "the uid decides the slot"
        env.uid = owner  # what it makes belongs to the person who started it
        return [env.capabilities.add(capability) for capability in held]

    def destroy_environment(self, slot: int) -> None:
        env = self.kernel.environments.get(slot)
        if env is not None:
            self.kernel.destroy_environment(env)

    def tables(self) -> dict[str, int]:
        return self._tables.readers()

    def devices(self) -> dict[int, int]:
        return {dev: disk.nblocks for dev, disk in self.disks.items()}

    def grant_network(
        self, slot: int, interface: IPv4Interface, listening: int | None
    ) -> tuple[NetworkGrant, list[Capability]]:
        if self.network is None:
            raise NotAllowed("xokd was started without a network")
        return self.network.grant(slot, interface, listening)

    def revoke_network(self, slot: int) -> None:
        if self.network is not None:
            self.network.revoke(slot)

    def release_network(self, slot: int) -> None:
        if self.network is not None:
            self.network.release(slot)

    # ---- calls that are not the kernel's

    def _filter_insert(self, env: Environment, call: Entry) -> tuple[int, int, bytes]:
        if self.network is None:
            raise NotAllowed("xokd was started without a network")
        grant = env.capabilities.get(call.cap, ADDRESS, Right.WRITE).id
        try:
            return self.network.insert(env.id, grant, call.data), 0, b""
        except ValueError as malformed:
            raise BadCall(str(malformed)) from None

    def _filter_remove(self, env: Environment, call: Entry) -> tuple[int, int, bytes]:
        if self.network is None:
            raise NotAllowed("xokd was started without a network")
        self.network.remove(env.id, call.a0)
        return 0, 0, b""

    # ---- looking

    def catalogue(self) -> list[tuple[int, CatalogueEntry]]:
        """(device, entry) of all that is in the disks' catalogues."""
        return [(dev, entry) for dev, device in self.kernel.devices.items() for entry in device.catalogue.entries()]

    def reason(self, dev: int, entry: CatalogueEntry) -> str:
        """Why a root is tainted, in a line; empty if it is not."""
        report = self.patching.reports.get(dev)
        if entry.kind != CatalogueEntry.ROOT or not entry.flags & FLAG_TAINTED or report is None:
            return ""
        return report.reason(entry.name)

    def has_method(self, dev: int, entry: CatalogueEntry) -> bool:
        """Whether a protected method of a root's type, which is in use, keeps those who write the tree from one
        another."""
        found = self.kernel.devices[dev].types.get(entry.type)
        return found is not None and found.method_program is not None

    def device_named(self, disk: str) -> int:
        """The number of a disk, given by that number or by its path.  Raises NotFound."""
        for dev, found in self.disks.items():
            if disk == str(dev) or os.path.realpath(disk) == found.path:
                return dev
        known = ", ".join(f"{dev} ({found.path})" for dev, found in self.disks.items())
        raise NotFound(f"no disk {disk}; there is {known}")

    def _disk_status(self, dev: int) -> dict[str, Any]:
        disk, device = self.disks[dev], self.kernel.devices.get(dev)
        return {
            "device": dev,
            "path": disk.path,
            "blocks": disk.nblocks,
            "free": device.freemap.free if device is not None else 0,
            "dirty": len(device.dirty_blocks) if device is not None else 0,
            "in_use": device is not None and dev not in self.kernel.failed,
            "surplus": device is not None and device.superblock.surplus,
            "direct": disk.direct,
            "engine": type(disk.engine).__name__,
            **asdict(disk.statistics()),
        }

    def status(self) -> dict[str, Any]:
        disks = [self._disk_status(dev) for dev in self.disks]
        counters = CountersView(self._tables.counters).as_dict()
        counts = self.loop.counts
        return {
            "disk": disks[0],
            "disks": disks,
            "cache": {
                "pages_in_use": self.kernel.pages.in_use,
                "pages_limit": self._config.memory_chunks * CHUNK_PAGES,
                "blocks": self.kernel.registry.in_core(),
                "dirty": sum(disk["dirty"] for disk in disks),
            },
            "counters": {**counters, "crossings": counts.crossings, "turns": counts.turns, "faults": counts.faults},
            "network": None if self.network is None else {"tap": self._config.tap, **self.network.statistics()},
            "filters": [] if self.network is None else self.network.filters(),
        }


def _recover(disk: BlockDevice, seconds: float) -> Report | None:
    """Reconstruct a disk that was in use when its last xokd ended (START-1), or since when that took too long, and find
    out again what is wrong with trees that are tainted; None if nothing had to be done, or it takes longer than
    `seconds` and need not be done (RECOVER-6)."""
    read = BlockReader(disk)
    with naming(disk.path):
        superblock, catalogue = read_catalogue(read, disk.nblocks)
        if superblock.clean and not superblock.surplus:
            tainted = any(entry.flags & FLAG_TAINTED for entry in catalogue.entries() if entry.kind == entry.ROOT)
            return examine(disk) if tainted else None
        why = "was started without a walk before" if superblock.clean else "was not shut down in order"
        log.warning("%s %s: reconstructing", disk.path, why)
        report = examine(disk, LogProgress(disk.path), seconds)
        if not report.whole:
            if not superblock.clean:
                take_as_it_is(disk, report)
            log.warning(
                "%s: %g seconds did not do to walk all trees, after %d of about %d blocks; it starts with the free "
                "map that it holds, which shows all that is in use and perhaps more",
                disk.path,
                seconds,
                report.blocks,
                report.expected,
            )
            return None
        for violation in report.violations:
            log.error("violation: %s", violation)
        repair(disk, report)
    log.warning("%s reconstructed: %d blocks in use, %d leaked", disk.path, report.blocks, report.leaked)
    return report


class LogProgress:
    """How far a reconstruction is, in the log every few seconds."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, report: Report) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            log.info("%s: %s, %d of about %d blocks", self._path, report.walking, report.blocks, report.expected)
