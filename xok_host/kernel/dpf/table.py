"""Who may claim which packets: address capabilities and the filters inserted under them (DESIGN.md 5).

A *grant* is what an address capability names: regions, each of them a filter.  The grant of an IP address has the
regions of its wildcard (its packets; who asks for its MAC).  A grant can be delegated in part: the new grant's regions
lie inside its parent's.

DPF-1  A filter lies inside a region of the grant it is inserted under.
DPF-2  Filters of different holders do not overlap, except that one lies strictly inside the other and its grant was
       delegated, directly or not, from the other's grant.  The inner one wins: it fixes more bits (TR-3).
DPF-3  When a filter goes, its packets go to the filter around it, if there is one: a dead server's to the address's
       owner.
DPF-4  A holder has at most MAX_HOLDER_FILTERS filters of at most MAX_HOLDER_SHAPES shapes, and brings at most
       MAX_NEW_SHAPES in its life: nobody alone can use up the trie, lengthen everybody's walk or keep xokd busy.

Order of calls: own_address, then insert and remove as one likes; `remove_holder` when an environment dies.  Whoever
calls has checked that the caller holds the capability whose id is the grant.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from xok_host.abi.dpf import Filter, wildcard
from xok_host.abi.errors import BadCapability, Exists, LimitReached, NotFound, Overlap
from xok_host.kernel.dpf.classify import Classifier, Frame
from xok_host.kernel.dpf.filter import NormalFilter, import_filter, normalise
from xok_host.kernel.dpf.overlap import candidates, disjoint, inside
from xok_host.kernel.dpf.trie import Position, Trie

MAX_HOLDER_FILTERS: Final = 16384
MAX_HOLDER_SHAPES: Final = 40
MAX_HOLDER_BRANCHES: Final = 8
"""Of the shapes that follow one and the same."""
MAX_NEW_SHAPES: Final = 512
"""New shapes that a holder may bring in its life: each makes xokd load a program, which takes milliseconds."""
MAX_GRANTS: Final = 4096
MAX_REGIONS: Final = 16


@dataclass(slots=True, frozen=True)
class Grant:
    """What an address capability allows to claim.  `address` is the IP address as text."""

    id: int
    address: str
    regions: tuple[NormalFilter, ...]
    parent: int = 0


@dataclass(slots=True, frozen=True)
class Bound:
    """A filter in force."""

    id: int
    holder: int
    grant: int
    port: int
    source: Filter
    normal: NormalFilter


@dataclass(slots=True)
class _Holder:
    filters: set[int] = field(default_factory=set)
    shapes: Counter[int] = field(default_factory=Counter)
    """edge of the trie → how many of its filters use it"""
    made: int = 0
    """New shapes it brought."""


class FilterTable:
    """All grants and filters.  `trie` is what the engines follow."""

    def __init__(self) -> None:
        self.trie = Trie()
        self.grants: dict[int, Grant] = {}
        self.filters: dict[int, Bound] = {}
        self._holders: dict[int, _Holder] = {}
        self._next_grant = 1
        self._next_filter = 1
        self._classifier = Classifier(self.trie)
        self.refused = 0

    # ---- capabilities

    def own_address(self, address: str) -> int:
        """A grant for a whole IP address.  Raises Exists if the address has an owner already."""
        address = str(ipaddress.ip_address(address))
        if any(grant.address == address and not grant.parent for grant in self.grants.values()):
            raise Exists(f"address {address}")
        return self._grant(address, tuple(normalise(region) for region in wildcard(address)), 0)

    def delegate(self, parent: int, regions: Sequence[bytes]) -> int:
        """A grant for part of another; each region is a packed filter.

        Raises NotFound (no such grant), BadCall (malformed), BadCapability (not inside the parent), LimitReached.
        """
        above = self._known(parent)
        if not 0 < len(regions) <= MAX_REGIONS:
            raise LimitReached(f"a grant has 1 to {MAX_REGIONS} regions")
        normal = tuple(import_filter(region)[1] for region in regions)
        if not all(self._allowed(above, region) for region in normal):
            raise BadCapability(f"a region is not inside grant {parent}")
        return self._grant(above.address, normal, parent)

    def revoke(self, grant: int) -> list[Bound]:
        """Withdraw a grant and all delegated from it, with the filters under them.  Returns those."""
        self._known(grant)
        doomed = {number for number in self.grants if number == grant or self._descends(number, grant)}
        gone = [bound for bound in self.filters.values() if bound.grant in doomed]
        for bound in gone:
            self._take_out(bound)
        for number in doomed:
            del self.grants[number]
        return gone

    # ---- filters

    def insert(self, holder: int, grant: int, wire: bytes, port: int) -> int:
        """Bind the packets of a packed filter to `port`.  Returns the filter's id.

        Raises BadCall, BadCapability, Overlap and LimitReached; nothing has changed then.
        """
        try:
            return self._insert(holder, grant, wire, port)
        except (BadCapability, Overlap, LimitReached):
            self.refused += 1
            raise

    def _insert(self, holder: int, grant: int, wire: bytes, port: int) -> int:
        source, normal = import_filter(wire)
        try:
            under = self._known(grant)
        except NotFound:
            raise BadCapability(f"there is no address grant {grant}") from None
        if not self._allowed(under, normal):
            raise BadCapability(f"the filter claims packets outside address {under.address}")
        self._check_overlap(holder, grant, normal)
        own = self._holders.setdefault(holder, _Holder())
        if len(own.filters) >= MAX_HOLDER_FILTERS:
            raise LimitReached(f"{MAX_HOLDER_FILTERS} filters")
        self._check_shapes(own, normal)
        number = self._next_filter
        shapes_before = self.trie.shape_version
        try:
            path = self.trie.insert(number, normal, port)
        except Exists:
            raise Overlap("an equal filter is there already") from None
        self._next_filter += 1
        self.filters[number] = Bound(number, holder, grant, port, source, normal)
        own.filters.add(number)
        own.shapes.update(path)
        own.made += self.trie.shape_version - shapes_before
        return number

    def remove(self, holder: int, number: int) -> None:
        """Raises NotFound if the holder has no such filter."""
        bound = self.filters.get(number)
        if bound is None or bound.holder != holder:
            raise NotFound(f"filter {number}")
        self._take_out(bound)

    def remove_holder(self, holder: int) -> int:
        """Everything an environment had; returns how many filters.  Its packets fall back (DPF-3)."""
        numbers = list(self._holders.get(holder, _Holder()).filters)
        for number in numbers:
            self._take_out(self.filters[number])
        self._holders.pop(holder, None)
        return len(numbers)

    def port(self, frame: Frame) -> int:
        """The portable engine's answer: the port a frame goes to, -1 if nobody claims it."""
        return self._classifier.port(frame)

    def statistics(self) -> dict[str, Any]:
        return {
            "filters": len(self.filters),
            "grants": len(self.grants),
            "entries": len(self.trie.table),
            "shapes": sum(1 for _ in self.trie.edges()),
            "programs": self.trie.shape_version,
            "refused": self.refused,
        }

    # ---- inside

    def _grant(self, address: str, regions: tuple[NormalFilter, ...], parent: int) -> int:
        if len(self.grants) >= MAX_GRANTS:
            raise LimitReached(f"{MAX_GRANTS} address grants")
        number = self._next_grant
        self._next_grant += 1
        self.grants[number] = Grant(number, address, regions, parent)
        return number

    def _known(self, grant: int) -> Grant:
        found = self.grants.get(grant)
        if found is None:
            raise NotFound(f"address grant {grant}")
        return found

    @staticmethod
    def _allowed(grant: Grant, new: NormalFilter) -> bool:
        return any(inside(new, region) for region in grant.regions)

    def _descends(self, grant: int, ancestor: int) -> bool:
        """Whether `grant` was delegated from `ancestor`; nothing descends from itself."""
        while grant := self.grants[grant].parent:
            if grant == ancestor:
                return True
        return False

    def _check_overlap(self, holder: int, grant: int, new: NormalFilter) -> None:
        for entry in candidates(self.trie, new):
            assert entry.filter is not None
            other = self.filters[entry.filter]
            if other.holder == holder or disjoint(new, other.normal):
                continue
            if inside(new, other.normal) and new.weight > other.normal.weight:
                allowed = self._descends(grant, other.grant)
            elif inside(other.normal, new) and other.normal.weight > new.weight:
                allowed = self._descends(other.grant, grant)
            else:
                allowed = False
            if not allowed:
                raise Overlap(f"filter {other.id} of environment {other.holder}")

    def _check_shapes(self, own: _Holder, new: NormalFilter) -> None:
        fresh = new_shapes = 0
        position: Position | None = self.trie.shapes
        for shape, _ in new.steps:
            edge = position.edges.get(shape) if position else None
            new_shapes += edge is None
            if edge is None or not own.shapes[edge.id]:
                fresh += 1
                here = position.edges.values() if position else ()
                if sum(1 for other in here if own.shapes[other.id]) >= MAX_HOLDER_BRANCHES:
                    raise LimitReached(f"filters that go on from one point in {MAX_HOLDER_BRANCHES} ways")
            position = edge.child if edge else None
        if len(own.shapes) + fresh > MAX_HOLDER_SHAPES:
            raise LimitReached(f"filters of {MAX_HOLDER_SHAPES} different shapes")
        if own.made + new_shapes > MAX_NEW_SHAPES:
            raise LimitReached(f"{MAX_NEW_SHAPES} new shapes in the life of an environment")

    def _take_out(self, bound: Bound) -> None:
        path = self.trie.remove(bound.id)
        own = self._holders[bound.holder]
        own.filters.discard(bound.id)
        own.shapes.subtract(path)
        own.shapes = +own.shapes
        del self.filters[bound.id]
