"""Patch programs (thesis 4.5 and 4.6): untrusted, they mend what reconstruction found wrong in one tree.

    session = Patching(report, root, read)       report: of a reconstruction that watched the tree
    patching = PatchCalls(kernel); patching.session = session
    …the program runs, in an environment that holds the tree's capability…
    session.take_round()                         whether it has proposed anything new
    session.objection(report)                    what a reconstruction with `session.patches` finds wrong; "" if nothing

XN knows nothing of a libFS's format, so a program may propose any bytes for the metadata of its own tree.  They are
written after a walk over everything, with the proposal in place of the disk's blocks, has found that

PATCH-1  no violation is left in the tree, so that no count is below its references and nothing dangles;
PATCH-2  the tree owns no block that was not its own before: it can neither get at another's nor at old contents;
PATCH-3  no other tree has a violation that it did not have before;
PATCH-4  no partition has a new reference out of the tree, so that a crash half-way through the writing harms no other;
PATCH-5  each type's `acl` approves of what changed.

Otherwise nothing is written.  The disk is in no other use meanwhile, and is not clean while patches are being written.
Protected methods are not asked: what a crash left need not be a state that they can approve a change of.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from xok_host.abi.calls import FOUND_ERROR, CallNumber, CatalogueEntry, FoundError
from xok_host.abi.channel import Entry
from xok_host.abi.errors import BadCall, BadCapability, LimitReached, NotAllowed, NotFound, NotOwned, UdfFailed
from xok_host.abi.types import BLOCK, Right, da_block, disk_address
from xok_host.kernel.capability import TREE
from xok_host.kernel.env import Environment
from xok_host.kernel.xn.catalogue import check_name
from xok_host.kernel.xn.recover import ReadBlock, Report
from xok_host.kernel.xn.shadow import NO_PARTITION
from xok_host.kernel.xn.types import XnType
from xok_host.kernel.xn.walk import DEV

if TYPE_CHECKING:
    from xok_host.kernel.kernel import Kernel

MAX_PATCHED = 4096
"""Blocks that one program may write to."""
MAX_ROUNDS = 8
"""Times that a program is run: each time it finds the errors that are left in the log."""

Result = tuple[int, int, bytes]


class Patching:
    """One tree being patched.  Raises NotFound for a root that is none."""

    def __init__(self, report: Report, root: str, read: ReadBlock, *, dev: int = DEV, now: int = 0) -> None:
        entry = report.catalogue.find(root).entry
        if entry.kind != CatalogueEntry.ROOT:
            raise NotFound(f"{root!r} is no root")
        self.root = root
        self.dev = dev
        self.capability = entry.capability
        self.before = report
        self.found = report
        """Of the last round: where the program reads the errors."""
        self.patches: dict[int, bytes] = {}
        self._read = read
        self._now = now
        self._changed = False

    def block(self, db: int) -> tuple[XnType, bytes]:
        """A metadata block of the tree, as patched so far."""
        place = self.before.metadata.get(db)
        if place is None or place.root != self.root:
            raise NotOwned(f"block {db} is no metadata that reconstruction found in {self.root!r}")
        patched = self.patches.get(db)
        return place.xtype, self._read(db) if patched is None else patched

    def write(self, db: int, offset: int, data: bytes) -> None:
        if not 0 < len(data) <= BLOCK - offset:
            raise BadCall(f"{len(data)} bytes at {offset} are not in the block")
        _, meta = self.block(db)
        if db not in self.patches and len(self.patches) == MAX_PATCHED:
            raise LimitReached(f"{MAX_PATCHED} blocks have been written to; run the program again for others")
        after = meta[:offset] + data + meta[offset + len(data) :]
        if after != meta:
            self.patches[db] = after
            self._changed = True

    def take_round(self) -> bool:
        """Whether the program has changed anything since the last round."""
        changed, self._changed = self._changed, False
        return changed

    def objection(self, after: Report) -> str:
        """PATCH-1 to PATCH-5 for a reconstruction with the patches; the first thing wrong, or nothing."""
        left = after.totals.get(self.root, [0, 0])[0]
        if left:
            return f"{left} errors are left: {next(str(v) for v in after.violations if v.root == self.root)}"
        theirs = int.from_bytes(after.watched, "little") & ~int.from_bytes(self.before.watched, "little")
        if theirs:
            return f"the tree would own block {theirs.bit_length() - 1}, which is not its own"
        for root, (violations, _) in after.totals.items():
            known = {(v.kind, v.db, v.da) for v in self.before.violations if v.root == root}
            new = next((v for v in after.violations if v.root == root and (v.kind, v.db, v.da) not in known), None)
            if new is not None or violations > self.before.totals.get(root, [0, 0])[0]:
                return f"another tree is damaged: {new or root}"
        for db, patched in self.patches.items():
            if reason := self._objection_to(db, patched, after):
                return f"block {db}: {reason}"
        return ""

    def _objection_to(self, db: int, patched: bytes, after: Report) -> str:
        """PATCH-4 and PATCH-5."""
        place, now = self.before.metadata[db], after.metadata.get(db)
        before = self._read(db)
        xtype = place.xtype
        if xtype.has_acl:
            for part in (*range(xtype.nparts), NO_PARTITION):
                try:
                    if _changed(xtype, part, before, patched) and not xtype.template.approves(
                        before, patched, part, self.capability, self._now
                    ):
                        return f"acl of {xtype.name} refuses"
                except UdfFailed as error:
                    return str(error)
        if now is None:
            return ""
        new = _references(now.xtype, patched, db)
        new.subtract(_references(xtype, before, db))
        for target, more in new.items():
            there = after.metadata.get(da_block(target))
            if more > 0 and (there is None or there.root != self.root):
                return f"a new reference leads out of the tree, to {target:#x}"
        return ""


def _changed(xtype: XnType, part: int, before: bytes, after: bytes) -> bool:
    """Whether bytes of the partition, or (NO_PARTITION) of none, differ."""
    inside = bytearray(BLOCK)
    for regions in xtype.template.reserved if part == NO_PARTITION else (xtype.template.regions[part],):
        for start, length in regions:
            inside[start : start + length] = b"\1" * length
    wanted = part != NO_PARTITION
    return any(bool(inside[at]) is wanted and before[at] != after[at] for at in range(BLOCK))


def _references(xtype: XnType, meta: bytes, db: int) -> Counter[int]:
    """Those of the whole block; a partition of which nothing valid is said has none."""
    found: Counter[int] = Counter()
    for part in range(xtype.nparts):
        try:
            found.update(xtype.template.refs(meta, part, disk_address(DEV, db))[0::3])
        except UdfFailed:
            continue
    return found


class PatchCalls:
    """READ_ERRORS, PATCH_READ and PATCH_WRITE."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.session: Patching | None = None
        self.reports: dict[int, Report] = {}
        """Of each device, the last reconstruction, for READ_ERRORS."""
        kernel.add_handler(CallNumber.READ_ERRORS, self.read_errors)
        kernel.add_handler(CallNumber.PATCH_READ, self.patch_read)
        kernel.add_handler(CallNumber.PATCH_WRITE, self.patch_write)

    def read_errors(self, env: Environment, call: Entry) -> Result:
        session = self.session
        if session is not None and call.a0 == session.dev:
            report: Report | None = session.found
            catalogue = session.before.catalogue
        else:
            catalogue = self._kernel.device(call.a0).catalogue
            report = self.reports.get(call.a0)
        entry = catalogue.find(check_name(call.data)).entry
        if env.capabilities.get(call.cap, TREE, Right.READ).id != entry.capability:
            raise BadCapability(f"the capability is not for {entry.name!r}")
        if report is None:
            return 0, 0, b""
        log = report.log(entry.name)
        shown = log[call.a1 : call.a1 + call.out_bytes // FOUND_ERROR.size]
        data = b"".join(_on_device(error, call.a0).pack() for error in shown)
        return sum(report.totals.get(entry.name, (0, 0))), len(log), data

    def patch_read(self, env: Environment, call: Entry) -> Result:
        session = self._session(env, call)
        if call.out_bytes < BLOCK:
            raise BadCall(f"a block has {BLOCK} bytes, and there is room for {call.out_bytes}", r0=BLOCK)
        xtype, meta = session.block(da_block(call.a0))
        return xtype.id, 0, bytes(meta)

    def patch_write(self, env: Environment, call: Entry) -> Result:
        self._session(env, call).write(da_block(call.a0), call.a0 % BLOCK, call.data)
        return 0, 0, b""

    def _session(self, env: Environment, call: Entry) -> Patching:
        session = self.session
        if session is None or call.a0 >> 56 != session.dev:
            raise NotAllowed("no tree is being patched")
        if env.capabilities.get(call.cap, TREE, Right.READ | Right.WRITE).id != session.capability:
            raise BadCapability(f"{session.root!r} is being patched, and the capability is not for it")
        return session


def _on_device(error: FoundError, dev: int) -> FoundError:
    return replace(error, da=error.da & (1 << 56) - 1 | dev << 56) if error.da else error
