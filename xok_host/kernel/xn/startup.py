"""A disk's way into and out of use: chains of I/O that `privileged` begins, and that end in `then(error or None)`.

START-1  A disk that was not shut down in order does not start before `recover` has made it clean.
START-2  Before anything else is written to a started disk, both superblocks say that it is in use.
START-3  Stopping flushes, and refuses while blocks are dirty or reports needed (REBOOT-2); only then the superblocks
         say clean.
START-4  No two active disks have one identity: the capabilities in their catalogues would be the same numbers.
START-5  Whoever stops a disk first has allocated data blocks that nobody initialised filled with zeros
         (`fill_uninitialised`) and written back: without that, nothing above them could ever be written.
START-6  When no report is needed any more, and logs are kept from the disk by what they say, it ends the session
         (`end_session`): then it matters to nobody what they say, and they are written like anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xok_host.abi.errors import BadDisk, InUse, MediaError, NotClean, XokError
from xok_host.abi.types import SECTOR, SECTORS, TYPE_FIRST_LIBFS
from xok_host.kernel.xn.catalogue import Catalogue
from xok_host.kernel.xn.device import Device
from xok_host.kernel.xn.format import Superblock, layout, newest
from xok_host.kernel.xn.pending import Pending

if TYPE_CHECKING:
    from xok_host.kernel.kernel import Kernel

Then = Callable[[XokError | None], None]

READ_BATCH = 256
"""Blocks of XN's own structures that are read at once."""


class Start:
    """Reads XN's structures and makes the device active."""

    def __init__(self, kernel: Kernel, number: int, nblocks: int, then: Then) -> None:
        self._kernel = kernel
        self._then = then
        self._left = 0
        self._error: XokError | None = None
        self._pages: dict[int, int] = {}
        provisional = layout(nblocks, bytes(16), TYPE_FIRST_LIBFS)
        self.device = Device(kernel, number, provisional, kernel.tables.freemap(number, nblocks))
        self._blocks: list[int] = []

    def begin(self) -> None:
        self._read([0, self.device.nblocks - 1], self._superblocks)

    def _read(self, blocks: list[int], then: Callable[[], None]) -> None:
        device = self.device
        self._left = len(blocks)

        def arrived(db: int, errno: int) -> None:
            if errno:
                self._error = MediaError(f"block {db}: the device reports error {errno}")
            self._left -= 1
            if not self._left:
                if self._error:
                    self._end(self._error)
                    return
                try:
                    then()
                except XokError as error:
                    self._end(error)

        for db in blocks:
            self._pages[db] = device.io.own_page()
            device.io.read_own(db, self._pages[db], arrived)

    def _take(self, db: int) -> memoryview:
        page = self._pages.pop(db)
        view = self.device.pages.view(page)
        self.device.pages.drop(page)
        return view

    def _superblocks(self) -> None:
        device = self.device
        last = device.nblocks - 1
        superblock = newest(self._take(0), self._take(last))
        if superblock.nblocks != device.nblocks or superblock.first != device.superblock.first:
            raise BadDisk(f"it was formatted with {superblock.nblocks} blocks and has {device.nblocks}")
        if any(other.superblock.identity == superblock.identity for other in self._kernel.devices.values()):
            raise BadDisk("it is a copy of a disk that is in use, whose capabilities would open it as well (START-4)")
        if not superblock.clean:
            raise NotClean("it was in use when the system stopped")
        device.superblock = superblock
        device.catalogue = Catalogue(superblock)
        self._blocks = list(range(superblock.catalogue, superblock.first))
        self._next_batch()

    def _next_batch(self) -> None:
        if not self._blocks:
            self._loaded()
            return
        batch, self._blocks = self._blocks[:READ_BATCH], self._blocks[READ_BATCH:]
        self._read(batch, lambda: self._batch(batch))

    def _batch(self, batch: list[int]) -> None:
        device = self.device
        for db in batch:
            view = self._take(db)
            for sector in range(SECTORS):
                raw = view[sector * SECTOR : sector * SECTOR + SECTOR]
                if db >= device.superblock.freemap:
                    device.freemap.load_sector((db - device.superblock.freemap) * SECTORS + sector, raw)
                else:
                    device.catalogue.load_sector((db - device.superblock.catalogue) * SECTORS + sector, raw)
        self._next_batch()

    def _loaded(self) -> None:
        device = self.device
        device.freemap.loaded(device.superblock)
        write_superblocks(
            device, device.superblock.renewed(clean=False, session=self._kernel.new_capability_id()), self._active
        )

    def _active(self, error: XokError | None) -> None:
        if error is None:
            self._kernel.devices[self.device.number] = self.device
        self._end(error)

    def _end(self, error: XokError | None) -> None:
        for page in self._pages.values():
            self.device.pages.drop(page)
        self._pages.clear()
        if error is not None:
            self._kernel.starting.pop(self.device.number, None)
        self._then(error)


def write_superblocks(device: Device, superblock: Superblock, then: Then) -> None:
    """The copy, a flush, the first one, a flush: one of them is whole at any moment."""
    steps = [(device.nblocks - 1) * SECTORS, 0]

    def write(errno: int = 0) -> None:
        if errno:
            then(MediaError(f"the device reports error {errno}"))
        elif not steps:
            device.superblock = superblock
            then(None)
        else:
            sector = steps.pop(0)
            device.io.write_own([(sector, superblock.pack())], written)

    def written(sector: int, errno: int) -> None:
        if errno:
            write(errno)
        else:
            device.io.barrier(write)

    write()


def end_session(device: Device) -> None:
    """START-6.  From now on nothing more is let through on account of reports; if the writing fails, that is all."""
    reports = device.reports
    if reports.ending:
        return

    def ended(error: XokError | None) -> None:
        if error is None:
            reports.forget()
        else:
            reports.failed = True

    reports.ending = True
    write_superblocks(device, device.superblock.renewed(clean=False, session=0), ended)


def stop(kernel: Kernel, device: Device, then: Then) -> None:
    """Clean shutdown.  InUse names the first dirty block (thesis 8, A.1: the invoker flushes first)."""
    dirty = device.dirty_blocks
    if dirty:
        then(InUse(f"{len(dirty)} blocks are dirty, first block {dirty[0].db}"))
        return
    if any(entry.in_flight for entry in device.entries()):
        then(InUse("writes are on their way"))
        return

    def flushed(pending: Pending) -> None:
        if pending.error is not None:
            then(pending.error)
        elif device.freemap.dirty or device.catalogue.dirty or any(entry.written for entry in device.entries()):
            # Frees became due with this flush, or writes ended meanwhile: one more.
            flush()
        else:
            if device.reports.needed:
                block = next(iter(device.reports.needed))
                then(InUse(f"block {block} was never written, and the disk points to it: write or free it"))
                return
            write_superblocks(device, device.superblock.renewed(clean=True), stopped)

    def flush() -> None:
        pending = Pending(flushed)
        device.io.flush(pending)
        pending.release()

    def stopped(error: XokError | None) -> None:
        if error is None:
            del kernel.devices[device.number]
            for entry in device.entries():
                device.forget(entry)
        then(error)

    flush()
