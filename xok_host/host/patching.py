"""Running patch programs (`kernel.xn.patching`): the disk is stopped, patched, and started again.

PATCHER-1  While a tree is being patched, its disk is in no other use, and no environment is started.
PATCHER-2  A program has `seconds` for each round.  One that fails, or takes longer, has proposed nothing.
PATCHER-3  Whatever happens, the disk is started again, as it was or sound.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

import trio

from xok_host.abi.calls import CatalogueEntry
from xok_host.abi.errors import InUse
from xok_host.abi.types import Right
from xok_host.host.confine import SOURCE
from xok_host.host.environments import Environments, Program, describe_status
from xok_host.host.reconstruct import BlockReader, repair
from xok_host.host.system import System
from xok_host.kernel.capability import TREE, Capability
from xok_host.kernel.xn.patching import MAX_ROUNDS, Patching
from xok_host.kernel.xn.recover import Report

log = logging.getLogger("xok.patching")

PROGRAMS = {"cffs-dir-1": "libfs.cffs.patch", "cffs-shared-dir-1": "libfs.cffs.patch"}
"""The patch program for roots of a type."""
PATCH_SECONDS = 120.0
"""That a program may take for a round, unless somebody says otherwise."""

MAX_PATCH_SECONDS = 86400.0


class Patcher:
    """One for each xokd."""

    def __init__(self, system: System, environments: Environments, now: Callable[[], int]) -> None:
        self._system = system
        self._environments = environments
        self._now = now
        self.busy = ""
        """The tree that is being patched."""

    def check_idle(self) -> None:
        """PATCHER-1.  Raises InUse."""
        if self.busy:
            raise InUse(f"{self.busy} is being repaired; try again when that has ended")

    def module_for(self, dev: int, entry: CatalogueEntry) -> str:
        """The patch program that we have for a root; empty if none."""
        for other, known in self._system.catalogue():
            if (other, known.kind, known.type) == (dev, CatalogueEntry.TYPE, entry.type):
                return PROGRAMS.get(known.name, "")
        return ""

    async def at_start(self) -> None:
        """Mend what the reconstruction of a disk has found, as far as we have programs for it."""
        for dev, report in list(self._system.patching.reports.items()):
            for other, entry in self._system.catalogue():
                module = self.module_for(dev, entry) if other == dev and entry.kind == CatalogueEntry.ROOT else ""
                if module and report.log(entry.name):
                    try:
                        done = await self.run(dev, entry, Program(module, [entry.name, "--dev", str(dev)]))
                        log.warning("%s: %s", entry.name, done["reason"] or "repaired")
                    except Exception as error:
                        log.error("%s was not repaired: %s", entry.name, error)

    async def run(
        self,
        dev: int,
        entry: CatalogueEntry,
        program: Program,
        *,
        caller: int = 0,
        output: int | None = None,
        seconds: float = PATCH_SECONDS,
    ) -> dict[str, Any]:
        """Patch one tree.  `reason` in the answer: what speaks against what the program did; nothing was changed then.

        Raises InUse while environments live."""
        self.check_idle()
        living = [record.name for record in self._environments.records.values() if record.kind != "keeper"]
        if living:
            raise InUse(f"{living[0]} uses the disks; unmount everything, and stop what else runs, first")
        self.busy = entry.name
        try:
            await self._system.stop_disk(dev)
            try:
                return await self._patch(dev, entry, program, caller, output, seconds)
            finally:
                self._system.patching.session = None
                with trio.CancelScope(shield=True):
                    await self._end_all()
                    await self._system.start_disk(dev)
        finally:
            self.busy = ""

    async def _end_all(self) -> None:
        """Whoever is left of a repair that was broken off."""
        for record in list(self._environments.records.values()):
            if record.kind == "repair":
                await self._environments.kill(record)

    async def _patch(
        self, dev: int, entry: CatalogueEntry, program: Program, caller: int, output: int | None, seconds: float
    ) -> dict[str, Any]:
        system = self._system
        before = after = await system.walk(dev, entry.name)
        session = Patching(before, entry.name, BlockReader(system.disks[dev]), dev=dev, now=self._now())
        system.patching.session = session
        failure, rounds = "", 0
        while rounds < MAX_ROUNDS:
            rounds += 1
            failure = await self._round(entry, program, caller, output, seconds)
            if failure or not session.take_round():
                break
            session.found = after = await system.walk(dev, entry.name, session.patches)
            if not session.objection(after) and not after.log(entry.name):
                break
        reason = failure or session.objection(after)
        if reason:
            after = before
        repair(system.disks[dev], after)
        system.patching.reports[dev] = after
        return {"root": entry.name, "reason": reason, "rounds": rounds, **_counts(before, after, entry.name)}

    async def _round(
        self, entry: CatalogueEntry, program: Program, caller: int, output: int | None, seconds: float
    ) -> str:
        """Run the program once; why that does not count, or nothing."""
        if SOURCE in program.descriptors:
            with contextlib.suppress(OSError):
                os.lseek(program.descriptors[SOURCE], 0, os.SEEK_SET)
        held = Capability(TREE, entry.capability, Right.READ | Right.WRITE, entry.name)
        record = await self._environments.start(
            f"repair:{entry.name}", "repair", program, caller=caller, capabilities=[held], output=output
        )
        with trio.move_on_after(seconds):
            await record.exited.wait()
        if not record.exited.is_set():
            await self._environments.kill(record)
            return f"the program did not end within {seconds:g} s"
        return f"the program ended with {describe_status(record.status)}" if record.status else ""


def _counts(before: Report, after: Report, root: str) -> dict[str, int]:
    out = {}
    for when, report in (("before", before), ("after", after)):
        violations, over_counts = report.totals.get(root, (0, 0))
        out[f"violations_{when}"] = violations
        out[f"over_counts_{when}"] = over_counts
    return out
