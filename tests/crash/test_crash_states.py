"""Power fails at every write of every workload: what can be on the disk then is sound, and has what was promised.

`--crash-states N` goes on with random subsets of sectors, and with other runs of random operations, to N distinct
states in all (docs/build.md).
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest
from crash_check import Checker
from crash_states import Explorer
from crash_workloads import (
    EVERY,
    LAST,
    NBLOCKS,
    ONE_VOLUME,
    Plan,
    Stage,
    Steps,
    beside_the_toy,
    mixed,
    moving_about,
    perform,
    plans,
    two_volumes,
)

MIXED_RUNS = 16
MOVING_RUNS = 16
SHARES = len(ONE_VOLUME) + 3
"""What is asked for on the command line is shared out evenly: the workloads, two with several libFSes, random runs."""
BARREN = 50
"""Where a pass over all runs of a workload gives fewer new states than this, there are not many left."""

Workload = Callable[[Stage], Steps]


def explore_all(name: str, workload: Workload, make_stage: Callable[[int], Stage], wanted: int) -> Explorer:
    """Every plan of one workload, then random states until `wanted` have been seen or hardly any new ones come."""
    points = perform(workload, Plan(LAST), make_stage(0))
    explorer: Explorer | None = None
    runs = []
    for number, plan in enumerate(plans(points)):
        stage = make_stage(number)
        perform(workload, plan, stage)
        if explorer is None:
            explorer = Explorer(name, Checker(NBLOCKS, stage.worlds, stage.toys))
        runs.append((stage.image, stage.disk.log))
        explorer.explore(*runs[-1])
    assert explorer is not None
    explorer.limit = wanted
    while explorer.tally.states < wanted and sum(explorer.explore(*run, again=True) for run in runs) > BARREN:
        pass
    return explorer


@pytest.mark.parametrize("name", list(ONE_VOLUME))
def test_one_libfs(name: str, wanted_states: int) -> None:
    explorer = explore_all(name, ONE_VOLUME[name], lambda number: Stage(), wanted_states // SHARES)
    assert explorer.tally.states > 100
    assert explorer.tally.mounted > 20


def test_two_volumes_interleaved(wanted_states: int) -> None:
    def stage(number: int) -> Stage:
        return Stage(("vol-a", "vol-b"), seed=number)

    explorer = explore_all("two C-FFS interleaved", two_volumes, stage, wanted_states // SHARES)
    assert explorer.tally.states > 2000


def test_a_cffs_beside_another_file_system(wanted_states: int) -> None:
    def stage(number: int) -> Stage:
        return Stage(toy=True, seed=number)

    explorer = explore_all("C-FFS beside the toy", beside_the_toy, stage, wanted_states // SHARES)
    assert explorer.tally.states > 2000


def mixed_plan(dice: random.Random) -> Plan:
    at = dice.choice((EVERY, LAST, dice.randrange(10), dice.randrange(10)))
    return Plan(at, cross=dice.random() < 0.5)


def test_random_operations(wanted_states: int) -> None:
    """With more states asked for, as many more runs as it takes to make up for what the workloads do not have."""
    explorer: Explorer | None = None
    seed = 0
    while seed < MIXED_RUNS or explorer is None or _all_states() < wanted_states:
        stage = Stage(seed=seed)
        try:
            perform(mixed(seed), mixed_plan(random.Random(seed)), stage)
        except OSError as error:
            if error.errno != errno.ENOSPC:  # of a disk that was full to begin with: the run ends there
                raise
        if explorer is None:
            explorer = Explorer("random operations", Checker(NBLOCKS, stage.worlds, mount_every=64), samples=16)
        explorer.explore(stage.image, stage.disk.log)
        seed += 1
    assert explorer.tally.states > 2000


def test_directories_move_about() -> None:
    """No cut has a circle, or a directory that is nowhere."""
    explorer: Explorer | None = None
    for seed in range(MOVING_RUNS):
        stage = Stage(seed=seed)
        perform(moving_about(seed), mixed_plan(random.Random(seed)), stage)
        if explorer is None:
            explorer = Explorer("directories move about", Checker(NBLOCKS, stage.worlds, mount_every=64))
        explorer.explore(stage.image, stage.disk.log)
    assert explorer is not None and explorer.tally.states > 100


def _all_states() -> int:
    from crash_states import TALLIES

    return sum(tally.states for tally in TALLIES.values())
