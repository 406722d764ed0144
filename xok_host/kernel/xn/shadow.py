"""What a transaction is made of: shadows of blocks, partitions touched, extents named.  Values only; see `txn`."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from xok_host.abi.types import BLOCK
from xok_host.kernel.env import Environment
from xok_host.kernel.xn.registry import NO_PAGE, Cached

if TYPE_CHECKING:
    from xok_host.kernel.kernel import Kernel

NO_PARTITION = 0xFFFF_FFFF
"""Names the bytes of a block that are in no partition."""
CHECKED = True
"""`./xok bench xn` compiles a copy of XN in which this is False, to see what the checks cost (thesis, chapter 5)."""
MAX_ALLOC = 4096
"""Blocks that one transaction may allocate."""

EMPTY = array("Q")
ZEROS = bytes(BLOCK)


class Shadow:
    """A block as the transaction would leave it."""

    __slots__ = (
        "before",
        "bytes",
        "changed",
        "copy_to",
        "entry",
        "fresh",
        "loose",
        "parts",
        "plain",
        "reading",
        "set_type",
    )

    def __init__(self, entry: Cached, before: bytes | memoryview, fresh: bool) -> None:
        self.entry = entry
        self.before = before
        self.bytes = bytearray(before)
        self.changed = 0
        """Sectors written to."""
        self.fresh = fresh
        """Allocated by this transaction."""
        self.parts: dict[int, Touched] = {}
        self.loose = False
        """Bytes outside all partitions were written to."""
        self.set_type = False
        self.plain = entry.xtype is None or entry.xtype.data
        """Plain data: it has no partitions and no UDF is asked."""
        self.copy_to = NO_PAGE
        """Page for the new contents when somebody holds the present one."""
        self.reading: Any = None
        """Of a type whose partitions are traced: what `traced` will remember with the block."""


class Touched:
    """One partition that the transaction names."""

    __slots__ = ("after", "before", "counts", "gained", "lost", "part", "references", "sector", "shadow")

    def __init__(self, shadow: Shadow, part: int, sector: int) -> None:
        self.shadow = shadow
        self.part = part
        self.sector = sector
        self.before = EMPTY
        """What it owned, and owns, as canonical sets."""
        self.after = EMPTY
        self.references = EMPTY
        """What `refs` and `refcnt` say now."""
        self.counts = EMPTY
        self.gained: Any = None
        self.lost: Any = None


class Move:
    """An extent that ALLOC or FREE names."""

    __slots__ = ("count", "db", "flags", "page", "touched", "type", "zeroed")

    def __init__(self, touched: Touched, db: int, count: int, type_id: int, page: int, flags: int) -> None:
        self.touched = touched
        self.db = db
        self.count = count
        self.type = type_id
        self.page = page
        self.flags = flags
        self.zeroed: list[int] = []
        """Pages reserved for blocks that start as zeros."""


class Claim:
    """What MOVE, ADD_EDGE or DROP_EDGE says of its partition: an extent it gains from the block with key `source`, or
    how many references to an element (`db`) it gains."""

    __slots__ = ("at", "change", "count", "db", "source", "touched", "type")

    def __init__(self, touched: Touched, at: int, db: int, count: int, type_id: int, source: int, change: int) -> None:
        self.touched = touched
        self.at = at
        """Which operation says so."""
        self.db = db
        self.count = count
        self.type = type_id
        self.source = source
        self.change = change


class Transaction:
    """One TRANSACT call.  `run` either applies it or raises; `at` is then the operation at fault."""

    __slots__ = (
        "allocs",
        "at",
        "capability",
        "children",
        "claims",
        "dependents",
        "device",
        "edges",
        "env",
        "freed",
        "frees",
        "kernel",
        "kinds",
        "moved",
        "new_pages",
        "nops",
        "now",
        "publishes",
        "reference_order",
        "shadows",
        "spent",
        "touched",
        "witnesses",
    )

    def __init__(self, kernel: Kernel, env: Environment, capability: int, now: int) -> None:
        self.kernel = kernel
        self.env = env
        self.capability = capability
        self.now = now
        self.device: Any = None
        self.shadows: dict[int, Shadow] = {}
        self.touched: list[Touched] = []
        self.allocs: list[Move] = []
        self.frees: list[Move] = []
        self.publishes: list[Move] = []
        self.claims: list[Claim] = []
        self.kinds: list[int] = []
        """Of its operations."""
        self.children: dict[int, Cached] = {}
        """Metadata blocks that this transaction allocates, by number."""
        self.moved: list[tuple[Touched, Touched, int, int]] = []
        """(loser, gainer, block, count)"""
        self.witnesses: list[int] = []
        """Keys of the blocks shown to protected methods."""
        self.reference_order: list[tuple[Touched, Touched]] = []
        self.edges: list[tuple[Cached, int, Cached, int]] = []
        self.freed: dict[int, Touched] = {}
        """Metadata that is freed, by key, and the partition that loses it."""
        self.new_pages: list[int] = []
        self.dependents = 0
        """Partitions that its operations name as dependents."""
        self.at = 0
        self.nops = 0
        self.spent = 0
        """Instructions that its UDFs executed."""


def survivor(touched: Touched, freed: dict[int, Touched]) -> Touched:
    """The partition whose writing ends what `touched` says: itself, or if its block is freed, the one that loses it."""
    while (above := freed.get(touched.shadow.entry.key)) is not None:
        touched = above
    return touched
