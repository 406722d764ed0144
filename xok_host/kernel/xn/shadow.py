"""What a transaction is made of: shadows of blocks, partitions touched, extents named.  Values only; see `txn`."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import cython

from xok_host.abi.types import ALL_SECTORS, BLOCK
from xok_host.kernel.env import Environment
from xok_host.kernel.xn.registry import NO_PAGE, Cached

if TYPE_CHECKING:
    from xok_host.kernel.core import Core
    from xok_host.kernel.pages import Pages

NO_PARTITION = 0xFFFF_FFFF
"""Names the bytes of a block that are in no partition."""
CHECKED = True
"""`./xok bench xn` compiles a copy of XN in which this is False, to see what the checks cost (thesis, chapter 5)."""
MAX_ALLOC = 4096
"""Blocks that one transaction may allocate."""

EMPTY = array("Q")
ZEROS = bytes(BLOCK)
_NONE: list[Any] = []
"""What nothing was noted in: shared, and never changed."""
_SPARE: bytearray | None = None
"""A buffer that no shadow needs: most transactions have one, and take this."""
_BLOCK = cython.declare(cython.int, BLOCK)
_ALL = cython.declare(cython.int, ALL_SECTORS)
_NO_PAGE = cython.declare(cython.ulonglong, NO_PAGE)


@cython.freelist(8)
@cython.no_gc
@cython.cclass
class Shadow:
    """A block as the transaction would leave it.  Holds nothing that leads back to it, nor does a partition
    or the transaction, so that all of them go with the call, without a collector (`no_gc`)."""

    __slots__ = (
        "_before",
        "_pages",
        "changed",
        "copy_to",
        "entry",
        "fresh",
        "held",
        "key",
        "loose",
        "plain",
        "present",
        "reading",
        "set_type",
    )

    def begin(self, entry: Cached, pages: Pages | None) -> Shadow:
        """`pages` is None for a block that this transaction allocates, which is zeros."""
        self.entry = entry
        self.key = entry.key
        self._pages = pages
        self._before: Any = None
        self.fresh = pages is None
        """Allocated by this transaction."""
        global _SPARE
        if pages is None or _SPARE is None:
            self.held = bytearray(_BLOCK)
        else:
            self.held = _SPARE
            _SPARE = None
        """The bytes of the sectors that are `present`; of others, anything."""
        self.present = _ALL if pages is None else 0
        self.changed = 0
        """Sectors written to."""
        self.loose = False
        """Bytes outside all partitions were written to."""
        self.set_type = False
        self.plain = entry.xtype is None or entry.xtype.data
        """Plain data: it has no partitions and no UDF is asked."""
        self.copy_to = _NO_PAGE
        """Page for the new contents when somebody holds the present one."""
        self.reading: Any = None
        """Of a type whose partitions are traced: what `traced` will remember with the block."""
        return self

    def bring(self, sectors: cython.int) -> None:
        """Have these sectors, as they are if nothing was written to them."""
        missing: cython.int = sectors & ~self.present
        if missing:
            assert self._pages is not None
            self._pages.take_sectors(self.entry.page, self.held, missing)
            self.present |= missing

    @property
    def whole(self) -> bytearray:
        """All its bytes."""
        self.bring(_ALL)
        return self.held

    def end(self) -> None:
        """Nobody needs its bytes any more."""
        global _SPARE
        _SPARE = self.held

    @property
    def before(self) -> bytes | memoryview:
        """Its bytes as they are."""
        if self._before is None:
            self._before = ZEROS if self._pages is None else self._pages.view(self.entry.page)
        return self._before


@cython.freelist(8)
@cython.no_gc
@cython.cclass
class Touched:
    """One partition that the transaction names."""

    __slots__ = ("after", "before", "counts", "gained", "lost", "part", "references", "said", "sector", "shadow")

    def begin(self, shadow: Shadow, part: cython.uint, sector: cython.int) -> Touched:
        self.shadow = shadow
        self.part = part
        self.sector = sector
        self.said: tuple[array[int], array[int], array[int]] | None = None
        """What its UDFs say of the block as it is: (owns, canonical; refs; refcnt)."""
        self.before = EMPTY
        """What it owned, and owns, as canonical sets."""
        self.after = EMPTY
        self.references = EMPTY
        """What `refs` and `refcnt` say now."""
        self.counts = EMPTY
        self.gained: Any = None
        self.lost: Any = None
        return self


@cython.freelist(8)
@cython.no_gc
@cython.cclass
class Move:
    """An extent that ALLOC or FREE names."""

    __slots__ = ("count", "db", "flags", "found", "page", "touched", "type", "zeroed")

    def begin(
        self,
        touched: Touched,
        db: cython.ulonglong,
        count: cython.ulonglong,
        type_id: cython.uint,
        page: cython.ulonglong,
        flags: cython.int,
    ) -> Move:
        self.touched = touched
        self.db = db
        self.count = count
        self.type = type_id
        self.page = page
        self.flags = flags
        self.found: list[Any] = _NONE
        """What was in core of the blocks that PUBLISH names when room was made, None for those that were not."""
        self.zeroed: list[int] = _NONE
        """Pages reserved for blocks that start as zeros."""
        return self


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


@cython.freelist(4)
@cython.no_gc
@cython.cclass
class Transaction:
    """One TRANSACT call.  `run` either applies it or raises; `at` is then the operation at fault.

    Most transactions are one modification: what these do not need is empty, and made a list by `noted` when used."""

    __slots__ = (
        "allocs",
        "at",
        "capability",
        "children",
        "claims",
        "dependents",
        "device",
        "differs",
        "edges",
        "env",
        "freed",
        "frees",
        "kernel",
        "kinds",
        "moved",
        "new_pages",
        "nops",
        "publishes",
        "reference_order",
        "shadows",
        "spent",
        "touched",
        "witnesses",
    )

    def begin(self, kernel: Core, env: Environment, capability: cython.ulonglong) -> Transaction:
        self.kernel = kernel
        self.env = env
        self.capability = capability
        self.device: Any = None
        self.shadows: list[Shadow] = _NONE
        """One for each block."""
        self.touched: list[Touched] = _NONE
        self.allocs: list[Move] = _NONE
        self.frees: list[Move] = _NONE
        self.publishes: list[Move] = _NONE
        self.claims: list[Claim] = _NONE
        self.kinds: list[int] = _NONE
        """Of its operations, if the call must be of certain ones."""
        self.children: dict[int, Cached] | None = None
        """Metadata blocks that this transaction allocates, by number."""
        self.moved: list[tuple[Touched, Touched, int, int]] = _NONE
        """(loser, gainer, block, count)"""
        self.witnesses: list[int] = _NONE
        """Keys of the blocks shown to protected methods."""
        self.reference_order: list[tuple[Touched, Touched]] = _NONE
        self.edges: list[tuple[Cached, int, Cached, int]] = _NONE
        self.freed: dict[int, Touched] | None = None
        """Metadata that is freed, by key, and the partition that loses it."""
        self.new_pages: list[int] = _NONE
        self.dependents = 0
        """Partitions that its operations name as dependents."""
        self.at = 0
        self.nops = 0
        self.spent = 0
        """Instructions that its UDFs executed."""
        self.differs = False
        """A partition says something else than it said."""
        return self

    def shadow(self, key: cython.ulonglong) -> Shadow | None:
        """The shadow of a block.  There are no more than operations, so looking through them is fastest."""
        shadow: Shadow
        for shadow in self.shadows:
            if shadow.key == key:
                return shadow
        return None

    def parts(self, shadow: Shadow) -> list[Touched]:
        """The partitions of the block that operations name."""
        touched: Touched
        found = []
        for touched in self.touched:
            if touched.shadow is shadow:
                found.append(touched)
        return found


def noted(known: Any, item: Any) -> Any:
    """The list `known`, or a first one, with one more."""
    if known is _NONE:
        return [item]
    known.append(item)
    return known


def survivor(touched: Touched, freed: dict[int, Touched] | None) -> Touched:
    """The partition whose writing ends what `touched` says: itself, or if its block is freed, the one that loses it."""
    while freed and (above := freed.get(touched.shadow.entry.key)) is not None:
        touched = above
    return touched
