"""The kernel, its disks' carrier and its own clock, turn by turn: what the call loop serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import cython

from xok_host.abi.calls import Event
from xok_host.abi.channel import Completion, Entry
from xok_host.host.callloop import CallLoop
from xok_host.host.callloop import Kernel as Served
from xok_host.host.carrier import Carrier
from xok_host.kernel.kernel import Kernel

if cython.compiled:
    from cython.cimports.xok_host.host.epoll import time_ns
else:
    from xok_host.host.epoll import time_ns

if TYPE_CHECKING:
    from xok_host.host.sharedmem import SharedChunks


class Turns(Served):
    """`own_slot` is the environment of xokd itself, which has no ring: its answers go to `on_own`.  All others' go to
    `loop`, which is set when there is one."""

    __slots__ = ("_carrier", "_chunks", "_kernel", "_on_own", "_own_slot", "loop")

    def __init__(
        self,
        kernel: Kernel,
        carrier: Carrier,
        chunks: SharedChunks,
        own_slot: int,
        on_own: Callable[[Completion], None],
    ) -> None:
        self._kernel = kernel
        self._carrier = carrier
        self._chunks = chunks
        self._own_slot = own_slot
        self._on_own = on_own
        self.loop: CallLoop | None = None

    def before_turn(self) -> None:
        self._kernel.tick(time_ns())

    def execute(self, env: cython.long, entry: Entry) -> Completion | None:
        kernel: Kernel = self._kernel
        return kernel.execute(kernel.environments[env], entry)

    def chunk_descriptor(self, chunk: int, writable: bool) -> int:
        return self._chunks.descriptor(chunk, writable)

    def after_turn(self) -> None:
        """Start requests, hand out completions."""
        self._carrier.start()
        completions = self._kernel.completions
        loop = self.loop
        assert loop is not None
        while completions:
            env, cookie, code, r0, r1, data = completions.popleft()
            if not cookie:
                loop.post(env, Event(code), r0, r1)
            elif env == self._own_slot:
                self._on_own(Completion(cookie, code, r0, r1, data))
            else:
                loop.complete(Completion(cookie, code, r0, r1, data))

    def wait_seconds(self) -> cython.double:
        """How long the loop may sleep: until the next lock's deadline (−1: for ever)."""
        deadline = self._kernel.locks.next_deadline()
        return -1 if deadline is None else max(0.001, (deadline - time_ns()) / 1e9)
