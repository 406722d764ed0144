"""Registry locks and their visible revocation (LOCK-1 to LOCK-4)."""

from __future__ import annotations

import pytest
from toy import DEV, Sector, Toy, da

from xok_host.abi.calls import Event, pack_extents
from xok_host.abi.errors import BadCall, BadCapability, InUse, Locked, NotFound, NotInCore
from xok_host.abi.types import LockMode, Right
from xok_host.abi.views import LOCK_EXCLUSIVE
from xok_host.kernel.local import LocalEnvironment

SHARED, EXCLUSIVE = LockMode.SHARED, LockMode.EXCLUSIVE


@pytest.fixture
def other(toy: Toy) -> LocalEnvironment:
    return toy.local.environment(roots=["toy"], name="other")


def lock(env: LocalEnvironment, db: int, mode: int) -> int:
    return env.submit("lock", da(db), mode, cap=next(c.index for c in env.caps if c.name == "toy"))


def word(toy: Toy) -> int:
    return toy.entry(toy.root).lock


def test_many_share_one_excludes(toy: Toy, other: LocalEnvironment) -> None:
    for env in (toy.env, other):
        assert env.wait(lock(env, toy.root, SHARED)).code == 0
    assert word(toy) == 2
    with pytest.raises(RuntimeError):
        toy.env.wait(lock(toy.env, toy.root, EXCLUSIVE))
    other.dispatch()
    assert other.events == [(Event.LOCK_WANTED, da(toy.root), EXCLUSIVE)]
    other.call("unlock", da(toy.root))
    assert word(toy) == LOCK_EXCLUSIVE


def test_a_locked_block_is_not_modified_by_others(toy: Toy, other: LocalEnvironment) -> None:
    other.wait(lock(other, toy.root, EXCLUSIVE))
    with pytest.raises(Locked):
        toy.transact(toy.modify(toy.root, 1, Sector(generation=1)))
    other.call("unlock", da(toy.root), SHARED)  # keeps a shared one
    assert word(toy) == 1
    toy.transact(toy.modify(toy.root, 1, Sector(generation=3)))
    other.call("unlock", da(toy.root))
    toy.transact(toy.modify(toy.root, 1, Sector(generation=1)))
    toy.env.wait(lock(toy.env, toy.root, EXCLUSIVE))
    toy.transact(toy.modify(toy.root, 1, Sector(generation=2)))


def test_the_deadline_takes_the_lock(toy: Toy, other: LocalEnvironment) -> None:
    other.wait(lock(other, toy.root, EXCLUSIVE))
    cookie = lock(toy.env, toy.root, EXCLUSIVE)
    toy.local.tick(1.0)
    assert word(toy) == LOCK_EXCLUSIVE and toy.local.kernel.locks.next_deadline() is not None
    toy.local.tick(1.5)
    assert toy.env.wait(cookie).code == 0
    other.dispatch()
    assert [event for event, _, _ in other.events] == [Event.LOCK_WANTED, Event.LOCK_LOST]
    with pytest.raises(NotFound):
        other.call("unlock", da(toy.root))
    assert toy.local.kernel.locks.next_deadline() is None


def test_a_holder_is_told_once_of_each_waiter(toy: Toy, other: LocalEnvironment) -> None:
    """LOCK-2: sharers that come and go do not make the one who stays hear of the same waiter again."""
    sharers = [toy.local.environment(roots=["toy"], name=f"sharer{i}") for i in range(5)]
    for env in (toy.env, *sharers):
        env.wait(lock(env, toy.root, SHARED))
    waiting = lock(other, toy.root, EXCLUSIVE)
    for env in sharers:
        env.call("unlock", da(toy.root))
    toy.env.dispatch()
    assert toy.env.events == [(Event.LOCK_WANTED, da(toy.root), EXCLUSIVE)]
    toy.env.call("unlock", da(toy.root))
    assert other.wait(waiting).code == 0


def test_a_turn_does_not_look_at_all_who_wait(toy: Toy, other: LocalEnvironment) -> None:
    """Before the first deadline a tick touches nothing; the first deadline is found again after each."""
    locks = toy.local.kernel.locks
    blocks = [toy.add_data(toy.root, 1, b"x") for _ in range(3)]
    cookies = []
    for block in blocks:
        other.wait(lock(other, block, EXCLUSIVE))
        cookies.append(lock(toy.env, block, EXCLUSIVE))
        toy.local.tick(0.5)

    class Untouched(set):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            raise AssertionError("looked at")

    waiting = locks._waiting
    locks._waiting = Untouched(waiting)
    toy.local.tick(0.4)
    locks._waiting = waiting
    for cookie in cookies:
        first = locks.next_deadline()
        assert first is not None
        toy.local.tick((first - toy.local.now) / 1e9)
        assert toy.env.wait(cookie).code == 0
    assert locks.next_deadline() is None


def test_waiters_are_served_in_order_and_each_has_its_time(toy: Toy, other: LocalEnvironment) -> None:
    third = toy.local.environment(roots=["toy"], name="third")
    toy.env.wait(lock(toy.env, toy.root, EXCLUSIVE))
    first, second = lock(other, toy.root, EXCLUSIVE), lock(third, toy.root, SHARED)
    toy.local.tick(1.9)
    toy.env.call("unlock", da(toy.root))
    assert other.wait(first).code == 0
    toy.local.tick(1.9)
    with pytest.raises(RuntimeError):
        third.wait(second)
    toy.local.tick(0.2)
    assert third.wait(second).code == 0 and word(toy) == 1


def test_locks_die_with_their_holder(toy: Toy, other: LocalEnvironment) -> None:
    other.wait(lock(other, toy.root, EXCLUSIVE))
    cookie = lock(toy.env, toy.root, SHARED)
    other.close()
    assert toy.env.wait(cookie).code == 0 and word(toy) == 1
    toy.env.close()
    assert toy.local.environment().registry.lookup(da(toy.root) >> 12).lock == 0


def test_a_waiter_that_dies_is_forgotten(toy: Toy, other: LocalEnvironment) -> None:
    toy.env.wait(lock(toy.env, toy.root, EXCLUSIVE))
    lock(other, toy.root, EXCLUSIVE)
    other.close()
    toy.env.call("unlock", da(toy.root))
    assert word(toy) == 0


def test_an_upgrade(toy: Toy, other: LocalEnvironment) -> None:
    for env in (toy.env, other):
        env.wait(lock(env, toy.root, SHARED))
    cookie = lock(toy.env, toy.root, EXCLUSIVE)
    other.close()
    assert toy.env.wait(cookie).code == 0 and word(toy) == LOCK_EXCLUSIVE


def test_refusals(toy: Toy, other: LocalEnvironment) -> None:
    assert toy.code("lock", da(400), SHARED) is NotInCore
    assert toy.code("lock", da(toy.root), 7) is BadCall
    assert toy.code("lock", da(toy.root), SHARED, cap=0) is BadCapability
    reader = toy.local.environment([toy.local.kernel.tree_capability(DEV, "toy", Right.READ)])
    with pytest.raises(BadCapability):
        reader.call("lock", da(toy.root), EXCLUSIVE, cap=reader.caps[0].index)
    reader.call("lock", da(toy.root), SHARED, cap=reader.caps[0].index)
    assert toy.code("unlock", da(toy.root)) is NotFound
    assert toy.code("unlock", da(400)) is NotFound


def test_a_locked_block_stays_in_core(toy: Toy) -> None:
    node = toy.add_node(toy.root, 0)
    toy.local.sync()
    toy.env.wait(lock(toy.env, node, SHARED))
    assert toy.code("delete_attr", DEV, data=pack_extents([(node, 1, 0)])) is InUse
    toy.env.call("unlock", da(node))
    assert toy.code("delete_attr", DEV, data=pack_extents([(node, 1, 0)])) is None


def test_a_freed_block_takes_its_locks_with_it(toy: Toy, other: LocalEnvironment) -> None:
    node = toy.add_node(toy.root, 0)
    other.wait(lock(other, node, SHARED))
    toy.remove(toy.root, 0, node)
    other.dispatch()
    assert other.events == [(Event.LOCK_LOST, da(node), 0)]


def test_freeing_a_block_ends_the_wait_for_it(toy: Toy, other: LocalEnvironment) -> None:
    node = toy.add_node(toy.root, 0)
    toy.env.wait(lock(toy.env, node, EXCLUSIVE))
    cookie = lock(other, node, SHARED)
    toy.remove(toy.root, 0, node)
    assert other.wait(cookie).code == NotInCore.code
