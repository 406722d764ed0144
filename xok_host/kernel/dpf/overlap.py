"""When two filters may claim the same packet, and when one lies inside the other (thesis 6.1.1).

OV-1  `disjoint` is proof: some bit is fixed by both, from the same base, to different values.  All else may overlap.
      Bits counted from different bases are never compared, so a filter that assumes an IP header of fixed length and
      one that measures it are taken to overlap.
OV-2  `inside(a, b)` is proof that every packet of a is one of b: a fixes every bit that b fixes, to the same values.

Both err to the side of refusing: xokd decides by checking, and need not solve for packets.
"""

from __future__ import annotations

from collections.abc import Iterator

from xok_host.abi.dpf import Match
from xok_host.kernel.dpf.filter import Base, Claims, NormalFilter
from xok_host.kernel.dpf.trie import Entry, Trie


def disjoint(a: NormalFilter, b: NormalFilter) -> bool:
    few, many = (a.claims, b.claims) if len(a.claims) < len(b.claims) else (b.claims, a.claims)
    for key, (mask, value) in few.items():
        other = many.get(key)
        if other and (value ^ other[1]) & mask & other[0]:
            return True
    return False


def inside(inner: NormalFilter, outer: NormalFilter) -> bool:
    """Every packet that `inner` accepts, `outer` accepts too."""
    for key, (mask, value) in outer.claims.items():
        own_mask, own_value = inner.claims.get(key, (0, 0))
        if own_mask & mask != mask or own_value & mask != value:
            return False
    return True


def _known(claims: Claims, base: Base, offset: int, width: int) -> tuple[int, int]:
    """(mask, value) of what the claims fix of a field."""
    mask = value = 0
    for byte in range(width):
        own_mask, own_value = claims.get((base, offset + byte), (0, 0))
        mask, value = mask << 8 | own_mask, value << 8 | own_value
    return mask, value


def _excluded(claims: Claims, guard: Match) -> bool:
    """The claims fix the guard's field to another value.  Guards are at base 0."""
    mask, value = _known(claims, (), guard.offset, guard.width)
    return bool((value ^ guard.value) & mask & guard.mask)


def candidates(trie: Trie, new: NormalFilter) -> Iterator[Entry]:
    """Ends of the trie that `new` may overlap with: a walk that follows what `new` fixes and branches on the rest.

    Filters that fix the same fields are told apart by one lookup a step, so inserting the thousandth connection costs
    what the second did.
    """
    waiting = [(trie.root, trie.shapes)]
    while waiting:
        node, position = waiting.pop()
        for edge in position.edges.values():
            entries = node.tables.get(edge.id)
            if not entries:
                continue
            shape = edge.shape
            if any(_excluded(new.claims, guard) for guard in shape.guards):
                continue
            mask, value = _known(new.claims, edge.child.base, shape.offset, shape.width)
            if mask & shape.mask == shape.mask:
                found = entries.get(value & shape.mask)
                matching = [found] if found else []
            else:
                matching = [entry for key, entry in entries.items() if not (key ^ value) & mask & shape.mask]
            for entry in matching:
                if entry.filter is not None:
                    yield entry
                if entry.child.tables:
                    waiting.append((entry.child, edge.child))
