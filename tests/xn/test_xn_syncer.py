"""The syncer: blocks that a dead libOS left dirty become durable by the hand of one that owns nothing."""

from __future__ import annotations

import pytest
from toy import Toy

from libfs.syncer import Syncer
from xok_host.kernel.local import DEV, LocalXok


@pytest.fixture
def toy() -> Toy:
    toy = Toy(LocalXok())
    toy.durable(toy.root)
    return toy


def test_what_a_dead_libos_left_is_written_children_first(toy: Toy) -> None:
    node = toy.add_node(toy.root, 0)
    block = toy.add_data(node, 0, b"left behind")
    toy.env.close()
    syncer = Syncer(toy.local.environment(name="syncer"))
    assert syncer.settle(DEV) >= 3
    assert syncer.dirty(DEV) == []
    toy.local.crash(lambda sector: False)  # nothing that was not flushed
    assert bytes(toy.local.disk.read_block(block)).startswith(b"left behind")
    report = toy.local.recover()
    assert report.sound and not report.leaked and report.trees["toy"] == 3


def test_only_what_stayed_dirty_for_an_interval_goes(toy: Toy) -> None:
    syncer = Syncer(toy.local.environment(name="syncer"))
    old = toy.add_data(toy.root, 0, b"old")
    assert syncer.sweep(DEV) == 0
    young = toy.add_data(toy.root, 1, b"young")
    assert syncer.sweep(DEV) > 0
    dirty = syncer.dirty(DEV)
    assert old not in dirty and young in dirty
    assert syncer.sweep(DEV) > 0
    assert young not in syncer.dirty(DEV)


def test_a_block_that_left_since_it_was_listed_does_not_stop_the_others(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncer = Syncer(toy.local.environment(name="syncer"))
    block = toy.add_data(toy.root, 0, b"here")
    gone = toy.free_block(1, block + 1)
    monkeypatch.setattr(syncer, "dirty", lambda dev: [gone, block])
    assert syncer.sweep(DEV, all_of_it=True) == 1
    monkeypatch.undo()
    assert block not in syncer.dirty(DEV)


def test_it_needs_no_capability(toy: Toy) -> None:
    env = toy.local.environment(name="syncer")
    toy.add_data(toy.root, 0, b"x")
    assert list(env.caps) == []
    assert Syncer(env).settle(DEV) > 0
