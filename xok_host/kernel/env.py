"""Environments: the principals.  An environment's record holds everything that must be released when it dies."""

from __future__ import annotations

from typing import Any

from xok_host.kernel.capability import Capability, CapabilityTable
from xok_host.kernel.pageset import PageSet

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


class Environment:
    """One environment.  `id` is its slot, from 1; it is reused only after everything below was released."""

    __slots__ = (
        "alive",
        "capabilities",
        "group",
        "id",
        "locks",
        "name",
        "npins",
        "pages",
        "pending",
        "pinned",
        "trees",
        "uid",
        "unsettled",
    )

    def __init__(self, slot: int, uid: int, name: str, capabilities: list[Capability]) -> None:
        self.id = slot
        self.uid = uid
        self.name = name
        self.capabilities = CapabilityTable(capabilities)
        self.pages = PageSet()
        """Allocated and not published."""
        self.trees: set[int] = set()
        """Capability numbers that it took pages for."""
        self.pinned: dict[int, list[Any]] = {}
        """Page to [number of this environment's pins on it, the registry entry whose page it was]."""
        self.npins = 0
        self.pending = 0
        self.alive = True
        self.group: Any = None
        """The chain of entries that the last one submitted belongs to."""
        self.unsettled: dict[Any, None] = {}
        """Registry entries that it changed or allocated, oldest first; those that may leave by now are dropped at
        need."""
        self.locks: set[Any] = set()
        """Registry entries on which it holds a lock or waits for one."""
