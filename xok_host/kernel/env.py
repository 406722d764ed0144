"""Environments: the principals.  An environment's record holds everything that must be released when it dies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xok_host.kernel.capability import Capability, CapabilityTable

MAX_PINS = 65536
"""Pins of one environment."""
MAX_PAGE_PINS = 32768
"""Pins of all environments on one page: a page's holds are counted in 16 bits, and others hold it as well."""
MAX_PAGES = 65536
"""Pages that one environment may hold unpublished; never more than half of memory."""
MAX_WRITE_TREES = 32
"""Trees for whose blocks one environment takes pages: each costs an arena of whole chunks, for as long as it lives."""
MAX_LOCKS = 4096
"""Locks that one environment may hold or wait for."""
MAX_PENDING = 4096
"""Entries of one environment that may wait for their completion, or for an entry before them."""


@dataclass(slots=True, eq=False)
class Environment:
    """One environment.  `id` is its slot, from 1; it is reused only after everything below was released."""

    id: int
    uid: int
    name: str
    capabilities: CapabilityTable
    pages: set[int] = field(default_factory=set)
    """Allocated and not published."""
    trees: set[int] = field(default_factory=set)
    """Capability numbers that it took pages for."""
    pinned: dict[int, list[Any]] = field(default_factory=dict)
    """Page to [number of this environment's pins on it, the registry entry whose page it was]."""
    npins: int = 0
    pending: int = 0
    alive: bool = True
    group: Any = None
    """The chain of entries that the last one submitted belongs to."""
    unsettled: dict[Any, None] = field(default_factory=dict)
    """Registry entries that it changed or allocated, oldest first; those that may leave by now are dropped at need."""
    locks: set[Any] = field(default_factory=set)
    """Registry entries on which it holds a lock or waits for one."""

    @classmethod
    def new(cls, slot: int, uid: int, name: str, capabilities: list[Capability]) -> Environment:
        return cls(slot, uid, name, CapabilityTable(capabilities))
