"""Registry locks (thesis 4.4), with visible revocation.

LOCK-1  Many hold a lock SHARED, or one holds it EXCLUSIVE.  Waiters are served in order.
LOCK-2  Holders who stand in a waiter's way are told (LOCK_WANTED), each once for each waiter, and have REVOKE_NS to
        flush and let go; then the lock is taken from them (LOCK_LOST).
LOCK-3  A lock dies with its holder.  A locked block stays in core.
LOCK-4  A transaction on a block that somebody else has locked EXCLUSIVE is refused.  A block that is freed takes its
        locks with it (LOCK_LOST).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xok_host.abi.calls import Event
from xok_host.abi.errors import BadCall, LimitReached, NotFound, NotInCore
from xok_host.abi.types import LockMode
from xok_host.abi.views import LOCK_EXCLUSIVE
from xok_host.kernel.env import MAX_LOCKS, Environment
from xok_host.kernel.xn.pending import Pending
from xok_host.kernel.xn.registry import Cached

if TYPE_CHECKING:
    from xok_host.kernel.kernel import Kernel

REVOKE_NS = 2_000_000_000
"""From LOCK_WANTED to LOCK_LOST."""


class Waiter:
    __slots__ = ("asked", "deadline", "env", "mode", "pending")

    def __init__(self, env: Environment, mode: int, pending: Pending, deadline: int) -> None:
        self.env = env
        self.mode = mode
        self.pending = pending
        self.deadline = deadline
        self.asked: set[Environment] = set()
        """Holders who know that it waits."""


class Locks:
    """All registry locks.  State is in the entries; here are the rules, and who waits."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._waiting: set[Cached] = set()
        self._earliest = 0
        """No waiter's deadline is before this: most turns need not look at them."""

    def lock(self, env: Environment, entry: Cached, mode: int, pending: Pending) -> None:
        """Grant, or let `pending` wait."""
        if mode not in (LockMode.SHARED, LockMode.EXCLUSIVE):
            raise BadCall(f"no lock mode {mode}")
        if len(env.locks) >= MAX_LOCKS and entry not in env.locks:
            raise LimitReached(f"{MAX_LOCKS} locks in one environment")
        if any(waiter.env is env for waiter in entry.lock_queue):
            raise BadCall("the caller waits for this lock already")
        if not entry.lock_holders:
            entry.lock_holders, entry.lock_queue = {}, []
        held = entry.lock_holders.get(env)
        if held is not None and held >= mode:
            return
        env.locks.add(entry)
        if (not entry.lock_queue or held is not None) and self._compatible(entry, env, mode):
            self._grant(entry, env, mode)
            return
        self._kernel.counters.add("lock_waits")
        pending.hold()
        waiter = Waiter(env, mode, pending, self._kernel.now + REVOKE_NS)
        if held is not None:
            entry.lock_queue.insert(0, waiter)  # an upgrade cannot wait behind those that wait for the upgrader
        else:
            entry.lock_queue.append(waiter)
        self._earliest = min(self._earliest, waiter.deadline) if self._waiting else waiter.deadline
        self._waiting.add(entry)
        self._ask(entry, entry.lock_queue[0])

    def unlock(self, env: Environment, entry: Cached, mode: int) -> None:
        """Let go, or keep SHARED.  Raises NotFound when the caller holds no such lock."""
        held = entry.lock_holders.get(env) if entry.lock_holders else None
        if held is None:
            raise NotFound(f"no lock on block {entry.db}")
        if mode == LockMode.SHARED and held == LockMode.EXCLUSIVE:
            entry.lock_holders[env] = LockMode.SHARED
        else:
            self._drop(entry, env)
        self._settle(entry)

    def release_all(self, env: Environment) -> None:
        """LOCK-3."""
        for entry in list(env.locks):
            entry.lock_queue = [waiter for waiter in entry.lock_queue if waiter.env is not env]
            entry.lock_holders.pop(env, None)
            self._settle(entry)
        env.locks.clear()

    def entry_gone(self, entry: Cached) -> None:
        """The block was freed: its lock means nothing any more."""
        if not entry.lock_holders and not entry.lock_queue:
            return
        for env in entry.lock_holders:
            env.locks.discard(entry)
            if env is not self._kernel.running:
                self._kernel.post_event(env, Event.LOCK_LOST, entry.key << 12, 0)
        entry.lock_holders.clear()
        queue, entry.lock_queue = entry.lock_queue, []
        self._waiting.discard(entry)
        entry.lock = 0
        for waiter in queue:
            waiter.env.locks.discard(entry)
            waiter.pending.fail(NotInCore(f"block {entry.db} was freed"))
            waiter.pending.release()

    def tick(self, now: int) -> None:
        """Take locks whose holders let the deadline pass (LOCK-2)."""
        if now < self._earliest or not self._waiting:
            return
        for entry in list(self._waiting):
            while entry.lock_queue and entry.lock_queue[0].deadline <= now:
                first = entry.lock_queue[0]
                for env in self._in_the_way(entry, first):
                    self._drop(entry, env)
                    self._kernel.counters.add("lock_revocations")
                    self._kernel.post_event(env, Event.LOCK_LOST, entry.key << 12, 0)
                self._settle(entry)
        self._earliest = min((entry.lock_queue[0].deadline for entry in self._waiting if entry.lock_queue), default=now)

    def next_deadline(self) -> Any:
        """When `tick` may have something to do, ns; None if nobody waits."""
        return self._earliest if self._waiting else None

    def _compatible(self, entry: Cached, env: Environment, mode: int) -> bool:
        others = [held for holder, held in entry.lock_holders.items() if holder is not env]
        return not others or (mode == LockMode.SHARED and LockMode.EXCLUSIVE not in others)

    def _in_the_way(self, entry: Cached, waiter: Waiter) -> list[Environment]:
        return [
            env
            for env, held in entry.lock_holders.items()
            if env is not waiter.env and (waiter.mode == LockMode.EXCLUSIVE or held == LockMode.EXCLUSIVE)
        ]

    def _ask(self, entry: Cached, waiter: Waiter) -> None:
        for env in self._in_the_way(entry, waiter):
            if env not in waiter.asked:
                waiter.asked.add(env)
                self._kernel.post_event(env, Event.LOCK_WANTED, entry.key << 12, waiter.mode)

    def _grant(self, entry: Cached, env: Environment, mode: int) -> None:
        entry.lock_holders[env] = mode
        self._kernel.counters.add("locks_taken")
        self._show(entry)

    def _drop(self, entry: Cached, env: Environment) -> None:
        entry.lock_holders.pop(env, None)
        if not any(waiter.env is env for waiter in entry.lock_queue):
            env.locks.discard(entry)
        self._show(entry)

    def _settle(self, entry: Cached) -> None:
        """Serve those who can be served now, in order; ask again for the next."""
        granted = False
        while entry.lock_queue and self._compatible(entry, entry.lock_queue[0].env, entry.lock_queue[0].mode):
            waiter = entry.lock_queue.pop(0)
            self._grant(entry, waiter.env, waiter.mode)
            waiter.pending.release()
            granted = True
        if entry.lock_queue:
            if granted:  # the new holder has its time as well
                entry.lock_queue[0].deadline = self._kernel.now + REVOKE_NS
            self._earliest = min(self._earliest, entry.lock_queue[0].deadline)
            self._ask(entry, entry.lock_queue[0])
        else:
            self._waiting.discard(entry)
        self._show(entry)

    def _show(self, entry: Cached) -> None:
        """The lock word that libOSes see."""
        modes = entry.lock_holders.values()
        entry.lock = LOCK_EXCLUSIVE if LockMode.EXCLUSIVE in modes else len(modes)
        entry.device.registry.publish(entry)
