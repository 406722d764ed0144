"""Hypothesis drives the whole call table against the model: what it finds, it shrinks to the shortest way there."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from model_world import STEPS, World

from xok_host.abi.calltable import BY_NAME
from xok_host.abi.types import TYPE_XN_DB
from xok_host.kernel.env import Environment
from xok_host.kernel.xn import locks, template, verify
from xok_host.kernel.xn.registry import Cached

DICE = st.integers(0, 1 << 32)
OFTEN = ("transact", "alloc", "add_edge", "page_alloc", "free", "move", "lock", "writebackv", "flush")
REFUSED = {"filter_insert", "filter_remove", "patch_read", "patch_write"}
"""Calls of a kernel with a network, or of one that patches a disk: this one does neither."""


class Machine(RuleBasedStateMachine):
    """Each rule is one call of one row by one of three environments; `World` compares it with the model."""

    world: World

    @initialize(seed=st.integers(0, 7))
    def begin(self, seed: int) -> None:
        self.world = World(seed)

    @rule(name=st.sampled_from([*STEPS, *OFTEN, *OFTEN]), dice=DICE)
    def call(self, name: str, dice: int) -> None:
        self.world.step(name, dice)

    @rule(name=st.sampled_from(OFTEN), dice=DICE)
    def call_often(self, name: str, dice: int) -> None:
        self.world.step(name, dice)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.crash(sum(self.world.seen.values()))


def machine(examples: int, steps: int, *phases: Phase) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            phases=phases or (Phase.generate, Phase.shrink),
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_every_call_against_the_model() -> None:
    machine(20, 60)


def test_every_row_is_driven_and_accepted(tell: list[str]) -> None:
    """The same with a generator that goes through the whole table again and again."""
    seen: Counter[tuple[str, str]] = Counter()
    for seed in range(12):
        chance, world = random.Random(seed), World(seed)
        steps = [*STEPS, *STEPS, *OFTEN * 6]
        chance.shuffle(steps)
        for name in steps:
            world.step(name, chance.getrandbits(32))
        world.crash(seed)
        seen += world.seen
    calls, accepted = {name for name, _ in seen}, {name for name, outcome in seen if outcome == "ok"}
    assert calls >= set(BY_NAME), f"never made: {set(BY_NAME) - calls}"
    assert accepted >= set(BY_NAME) - REFUSED, f"never succeeded: {set(BY_NAME) - REFUSED - accepted}"
    assert len(seen) > 2 * len(BY_NAME), "hardly a call failed in two ways"
    tell.append(f"model: {sum(seen.values())} calls, {len(seen)} different outcomes of {len(BY_NAME)} rows")


def owner_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What partitions own is not compared with what the call says."""
    monkeypatch.setattr(verify, "compare", lambda t: None)


def binding_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where binding asks for the first time, a partition owns the whole disk."""
    everything = array("Q", [1, (1 << 44) - 2, TYPE_XN_DB])
    honest = template.Template.owns

    def owns(self: template.Template, meta: Any, part: int) -> array[int]:
        return everything if isinstance(meta, memoryview) else honest(self, meta, part)  # of a type at its import

    monkeypatch.setattr(template.Template, "owns", owns)


def the_dead_keep_their_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kept(locks.Locks):
        def release_all(self, env: Environment) -> None:
            pass

    monkeypatch.setattr(locks, "Locks", Kept)


def everybody_may_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Open(locks.Locks):
        def _compatible(self, entry: Cached, env: Environment, mode: int) -> bool:
            return True

    monkeypatch.setattr(locks, "Locks", Open)


def counts_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "balance", lambda *arguments: None)


PLANTED: list[Callable[[pytest.MonkeyPatch], Any]] = [
    owner_is_not_asked,
    binding_is_not_checked,
    the_dead_keep_their_locks,
    everybody_may_lock,
    counts_are_not_compared,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_noticed(plant: Callable[[pytest.MonkeyPatch], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        machine(40, 60, Phase.generate)
