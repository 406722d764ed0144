"""Capabilities: what an environment holds and names in its calls.

A capability is an unguessable number with rights.  Holding one means that it lies in the environment's own table in
xokd; a call names it by index, so that every access is explicit.  Index 0 names none.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import cython

from xok_host.abi.errors import BadCapability, LimitReached
from xok_host.abi.types import Right

TREE = "tree"
"""Guards a file system: its number is what guard UDFs emit."""
ADDRESS = "address"
"""An address on the network, for filters and queues."""

MAX_CAPABILITIES = 256
"""In one environment."""
_MOST = cython.declare(cython.longlong, MAX_CAPABILITIES)


@dataclass(slots=True, frozen=True)
class Capability:
    """`kind` TREE or ADDRESS, `id` a random 64-bit number, `rights` of `types.Right`."""

    kind: str
    id: int
    rights: int
    name: str = ""

    def weakened(self, rights: int) -> Capability:
        """A copy to delegate.  Raises BadCapability without GRANT, or when it would gain rights."""
        if not self.rights & Right.GRANT or rights & ~self.rights:
            raise BadCapability("a copy needs the right to grant and has at most the same rights")
        return Capability(self.kind, self.id, rights, self.name)


class CapabilityTable:
    """The capabilities of one environment; indices from 1 stay valid until it dies."""

    __slots__ = ("_numbers", "_rights", "_slots")

    def __init__(self, initial: list[Capability] | tuple[Capability, ...] = ()) -> None:
        self._slots: list[Capability | None] = [None]
        self._numbers = array("Q", bytes(8 * (MAX_CAPABILITIES + 1)))
        self._rights = array("Q", bytes(8 * (MAX_CAPABILITIES + 1)))
        """Of each tree capability, by index, as plain integers: what most crossings ask for."""
        for capability in initial:
            self.add(capability)

    def add(self, capability: Capability) -> int:
        """The index of the capability; one that is already held keeps its index."""
        for index, held in enumerate(self._slots):
            if held == capability:
                return index
        if len(self._slots) > MAX_CAPABILITIES:
            raise LimitReached(f"{MAX_CAPABILITIES} capabilities in one environment")
        self._slots.append(capability)
        if capability.kind == TREE:
            self._numbers[len(self._slots) - 1] = capability.id
            self._rights[len(self._slots) - 1] = int(capability.rights)
        return len(self._slots) - 1

    def tree(self, index: cython.longlong, rights: cython.ulonglong) -> cython.ulonglong:
        """The number of the tree capability at `index`; 0 unless it is one with those rights."""
        if not 0 < index <= _MOST or rights & ~self._rights[index]:
            return 0
        return self._numbers[index]

    def get(self, index: int, kind: str, rights: int) -> Capability:
        """The capability at `index`.  Raises BadCapability unless it is of that kind with those rights."""
        held = self._slots[index] if 0 < index < len(self._slots) else None
        if held is None:
            raise BadCapability(f"no capability at index {index}")
        if held.kind != kind:
            raise BadCapability(f"capability {index} is for {held.kind}, not {kind}")
        # On plain integers: a crossing is made of little else, and operators of flags take a microsecond each.
        missing = int(rights) & ~int(held.rights)
        if missing:
            raise BadCapability(f"capability {index} does not allow {Right(missing).name}")
        return held

    def __iter__(self):  # type: ignore[no-untyped-def]
        """(index, capability) of each one held."""
        return ((index, held) for index, held in enumerate(self._slots) if held is not None)
