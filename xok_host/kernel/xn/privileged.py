"""XN's privileged calls (thesis 8, part A): for whoever starts, stops, makes and reconstructs disks, never for a libOS.

    init(kernel, dev, nblocks, then)           bring a disk into use
    shutdown(kernel, dev, then)                take it out of use in order
    format(nblocks, identity)                  what to write, and flush, one step after another
    db_alloc(superblock, bits, db, count)      force an extent off the free list while reconstructing
    mod_refcnt(xtype, meta, da, delta, …)      change an element's reference count while reconstructing

PRIV-1  Nothing that these take from a disk or a patch program is trusted: what would break an invariant is refused.
PRIV-2  A patch of a count changes that count, and nothing else that XN knows of.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xok_host.abi import errors as e
from xok_host.abi.types import BLOCK, SECTORS, TYPE_FIRST_LIBFS, da_offset
from xok_host.kernel.xn import startup, udf
from xok_host.kernel.xn.format import Superblock, fresh_sectors, layout
from xok_host.kernel.xn.freemap import mark_used
from xok_host.kernel.xn.startup import Then
from xok_host.kernel.xn.types import XnType

if TYPE_CHECKING:
    from xok_host.kernel.kernel import Kernel

MAX_DEVICE = 255
"""Device numbers have eight bits in a disk address; 0 names none."""

PRIVILEGED: dict[str, tuple[str, dict[type[e.XokError], str]]] = {
    "init": (
        "Read XN's structures and make the disk active.",
        {
            e.BadCall: "the device number is not 1 to 255",
            e.Exists: "a disk is active, or being started, under that number",
            e.BadDisk: "it is no XN disk, is damaged, was formatted with another size, or is a copy of an active one",
            e.NotClean: "it was not shut down in order: reconstruct it first",
            e.MediaError: "the device failed to read or write",
        },
    ),
    "shutdown": (
        "Flush, mark the disk clean, and let go of it.",
        {
            e.NotFound: "there is no such device",
            e.InUse: "blocks are dirty or on their way: write them back and try again",
            e.MediaError: "the device failed to write or flush",
        },
    ),
    "format": ("What to write so that a disk is a fresh XN disk.", {e.BadDisk: "the disk is too small or too large"}),
    "db_alloc": (
        "Mark an extent as in use in the map that reconstruction builds.  Gives the blocks of it that were so already.",
        {e.BadCall: "the extent is empty, outside the disk, or in XN's own structures"},
    ),
    "mod_refcnt": (
        "Change an element's reference count, by bytes that a patch program supplies: it knows where they go.",
        {
            e.NotFound: "no element with a count is at that address, or reconstruction found nothing wrong with it",
            e.BogusPartition: "the bytes are not in the element's partition",
            e.RefcountWrong: "the count does not change by exactly that",
            e.BogusUpdate: "what the partition owns or refers to, or another count, changes as well",
            e.UdfFailed: "a UDF faults on the block, before or after",
            e.MediaError: "the block cannot be read",
        },
    ),
}
"""What each is for, and how it fails; docs/xn.md and the tests come from this."""


def init(kernel: Kernel, dev: int, nblocks: int, then: Then) -> None:
    try:
        if not 1 <= dev <= MAX_DEVICE:
            raise e.BadCall(f"devices have numbers from 1 to {MAX_DEVICE}, not {dev}")
        if dev in kernel.devices or dev in kernel.starting:
            raise e.Exists(f"device {dev} is active")
        start = startup.Start(kernel, dev, nblocks, then)
    except e.XokError as error:
        then(error)
        return
    kernel.starting[dev] = start.device
    start.begin()


def shutdown(kernel: Kernel, dev: int, then: Then) -> None:
    device = kernel.devices.get(dev)
    if device is None:
        then(e.NotFound(f"no device {dev}"))
    else:
        startup.stop(kernel, device, then)


def format(nblocks: int, identity: bytes) -> list[dict[int, bytes]]:
    """Sectors by number.  Each step must be durable before the next: a disk half formatted is no XN disk."""
    superblock = layout(nblocks, identity, TYPE_FIRST_LIBFS)
    last = (nblocks - 1) * SECTORS
    raw = superblock.pack()
    return [{0: bytes(len(raw)), last: bytes(len(raw)), **fresh_sectors(superblock)}, {0: raw, last: raw}]


def db_alloc(superblock: Superblock, bits: bytearray, db: int, count: int) -> list[int]:
    if not count or db < superblock.first or db + count > superblock.nblocks - 1:
        raise e.BadCall(f"{count} blocks at {db} lie outside the disk or in XN's own structures")
    return mark_used(bits, db, count)


def mod_refcnt(xtype: XnType, meta: bytes, da: int, delta: int, writes: Sequence[tuple[int, bytes]]) -> bytes:
    """The block after `writes` (offset, bytes), by which the count of the element at `da` changes by `delta`."""
    template = xtype.template
    base = da - da_offset(da)
    part = -1 if template is None else template.counting(meta, da_offset(da), base)
    if part < 0:
        raise e.NotFound(f"{da:#x} is no element's address")
    after = bytearray(meta)
    for offset, data in writes:
        if not data or offset + len(data) > BLOCK or not template.is_inside(meta, part, offset, len(data), base):
            raise e.BogusPartition(f"bytes {offset} to {offset + len(data)} are not in partition {part}")
        after[offset : offset + len(data)] = data
    da = udf.element(da)
    base = da - da_offset(da)  # as elements are called
    owned, references, counts = _said(xtype, meta, part, base)
    owned_after, references_after, counts_after = _said(xtype, after, part, base)
    if da not in counts:
        raise e.NotFound(f"{da:#x} is no element with a count")
    if counts_after.get(da, 0) != counts[da] + delta:
        raise e.RefcountWrong(f"the count of {da:#x} becomes {counts_after.get(da, 0)}, not {counts[da] + delta}")
    del counts[da]
    counts_after.pop(da, None)
    if owned != owned_after or references != references_after or counts != counts_after:
        raise e.BogusUpdate(f"more than the count of {da:#x} changes")
    template.survey(after, xtype.sector_of[part], base)
    return bytes(after)


def _said(xtype: XnType, meta: bytes | bytearray, part: int, base: int) -> tuple[array[int], list[int], dict[int, int]]:
    template = xtype.template
    return (
        template.owns(meta, part),
        sorted(template.refs(meta, part, base)[0::3]),
        udf.counts(template.refcnt(meta, part, base)),
    )
