"""Hypothesis drives XN against the model of test_xn_crash: what it finds, it shrinks to the shortest way there."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from test_xn_crash import Anarchist

DICE = st.integers(0, 1 << 32)


class Machine(RuleBasedStateMachine):
    """Rules are operations of a libFS, writes in any order, and looks at what a crash would leave."""

    world: Anarchist

    @initialize()
    def begin(self) -> None:
        self.world = Anarchist(0)

    def perform(self, operation: str, dice: int) -> None:
        self.world.random = random.Random(dice)
        getattr(self.world, f"op_{operation}")()

    @rule(dice=DICE, kind=st.sampled_from(["data", "node"]))
    def allocate(self, dice: int, kind: str) -> None:
        self.perform(f"alloc_{kind}", dice)

    @precondition(lambda self: self.world.data or len(self.world.nodes) > 1)
    @rule(dice=DICE, what=st.sampled_from(["free", "move", "publish"]))
    def change(self, dice: int, what: str) -> None:
        self.perform(what, dice)

    @rule(dice=DICE, what=st.sampled_from(["reference", "dereference", "move_reference"]))
    def refer(self, dice: int, what: str) -> None:
        self.perform(what, dice)

    @rule(dice=DICE, what=st.sampled_from(["write", "write_many", "flush"]))
    def write(self, dice: int, what: str) -> None:
        self.perform(what, dice)

    @rule(dice=DICE, what=st.sampled_from(["hold", "release"]))
    def delay(self, dice: int, what: str) -> None:
        self.perform(what, dice)

    @rule(dice=DICE)
    def crash(self, dice: int) -> None:
        self.world.random = random.Random(dice)
        self.world.look()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.come_to_rest()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=25,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    database=None,
    suppress_health_check=list(HealthCheck),
)
