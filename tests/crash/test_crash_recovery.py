"""Power fails again: while a crashed disk is reconstructed, repaired, started and mounted."""

from __future__ import annotations

from typing import Any

import pytest
from crash_check import Checker, mount
from crash_record import RecordingDisk, RecordingXok
from crash_states import Explorer
from crash_workloads import LAST, NBLOCKS, ONE_VOLUME, Plan, Stage, perform

IMAGES = 12
"""Crashed disks of each workload that are recovered, and crash in that."""


@pytest.mark.parametrize("name", ["unlink of an open file", "mkdir and rmdir", "rename between sectors"])
def test_a_crash_during_recovery(name: str) -> None:
    stage = Stage()
    perform(ONE_VOLUME[name], Plan(LAST, everything=True), stage)
    crashed: list[tuple[bytes, Any]] = []

    def collect(image: bytearray, expect: Any) -> bool:
        crashed.append((bytes(image), expect))
        return False

    Explorer(name, collect, samples=8, count=False).explore(stage.image, stage.disk.log)
    assert len(crashed) >= IMAGES
    explorer = Explorer("crash during recovery", Checker(NBLOCKS, stage.worlds, mount_every=32), samples=8)
    for image, expect in crashed[:: max(1, len(crashed) // IMAGES)]:
        disk = RecordingDisk(NBLOCKS, image)
        disk.record()
        disk.mark(expect, True)
        xok = RecordingXok(disk, format=False)
        if not xok.started:
            xok.recover()
        fs = mount(xok, "vol")
        fs.sync_all()
        fs.close()
        xok.stop()
        explorer.explore(image, disk.log)
    assert explorer.tally.states > 40
