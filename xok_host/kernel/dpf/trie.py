"""The merged trie: filters as data (thesis 6.1.1 and 6.1.3, "code is data, but data is not code").

Two structures side by side:

* the **shape trie** says which shapes follow which.  It is what a program is generated from, and changes only when a
  filter of a new kind arrives;
* the **table** is one hash table (node, edge, masked value) → (next node, verdict, which shapes go on).  It changes
  with every filter, and both engines read the same one.

TR-1  Node numbers and edge numbers are never used twice.  A program of yesterday's shapes finds nothing under today's.
TR-2  Insertion writes the leaf first and what makes it reachable last; removal begins with what made it reachable.  A
      walk that runs meanwhile sees the filter whole or not at all.
TR-3  Of several filters that match a packet the heaviest wins: most bits fixed.  Filters of different holders overlap
      only if nested (table.py), so the winner's holder never depends on the order of insertion.
TR-4  At most MAX_EDGES shapes, of which MAX_BRANCHES after any one: the walk is bounded by the program's length.
TR-5  `changes` holds every change of the table in order, until `drain` takes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from xok_host.abi.errors import Exists, LimitReached
from xok_host.kernel.dpf.filter import Base, NormalFilter, Shape

MAX_EDGES: Final = 96
MAX_BRANCHES: Final = 32
"""Bits in a table value's mask of shapes that go on."""
MAX_FILTERS: Final = 65536
"""Ends in the trie."""
MAX_ENTRIES: Final = 262144
"""Entries of the table, and of the host kernel's hash map."""

Key = tuple[int, int, int]
"""(node, edge, masked value)"""
Value = tuple[int, int, int]
"""(next node, verdict or 0, bit mask of the branches that go on)"""
Change = tuple[Key, Value | None]
"""None: the entry goes."""

ROOT: Final = 1


def verdict(weight: int, owner: int) -> int:
    """Comparable as an integer: the heavier filter is greater.  `owner` is a port, below 65535."""
    return weight << 16 | owner + 1


def verdict_owner(value: int) -> int:
    """The port in a verdict; -1 if it is 0, unclaimed."""
    return (value & 0xFFFF) - 1


@dataclass(slots=True, eq=False)
class Position:
    """A node of the shape trie: what has been looked at, not what was found.  `base` is where offsets count from."""

    base: Base
    edges: dict[Shape, Edge] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Edge:
    id: int
    shape: Shape
    branch: int
    """Bit of the parent's mask."""
    child: Position
    uses: int = 0
    """Filters whose path takes it."""


@dataclass(slots=True, eq=False)
class Entry:
    """One value under one edge of one node."""

    key: Key
    child: Node
    filter: int | None = None
    """Number of the filter that ends here."""
    verdict: int = 0

    def value(self) -> Value:
        return (self.child.id, self.verdict, self.child.branches)


@dataclass(slots=True, eq=False)
class Node:
    id: int
    tables: dict[int, dict[int, Entry]] = field(default_factory=dict)
    """edge → masked value → entry"""
    branches: int = 0


class Trie:
    """Filters merged.  Holds no policy: who may insert what is table.py's business."""

    def __init__(self) -> None:
        self.root = Node(ROOT)
        self.shapes = Position(())
        self.shape_version = 0
        """Grows when a program must be generated anew."""
        self.table: dict[Key, Value] = {}
        self.changes: deque[Change] = deque()
        self._next_node = ROOT + 1
        self._next_edge = 1
        self._edges = 0
        self._filters: dict[int, tuple[NormalFilter, list[Edge]]] = {}

    def __len__(self) -> int:
        return len(self._filters)

    def edges(self) -> Iterator[tuple[int, Edge]]:
        """All edges of the shape trie with their depth, each before those below it."""

        def below(position: Position, depth: int) -> Iterator[tuple[int, Edge]]:
            for edge in position.edges.values():
                yield depth, edge
                yield from below(edge.child, depth + 1)

        return below(self.shapes, 0)

    def known_path(self, new: NormalFilter) -> list[int]:
        """Those edges of the filter's path that are there."""
        path = []
        position = self.shapes
        for shape, _ in new.steps:
            edge = position.edges.get(shape)
            if edge is None:
                break
            path.append(edge.id)
            position = edge.child
        return path

    def insert(self, number: int, new: NormalFilter, owner: int) -> list[int]:
        """Merge a filter in.  `owner` is the port its packets go to.  Returns the edges of its path.

        Raises Exists if an equal filter is there, LimitReached if a bound would be passed; nothing has changed then.
        """
        self._check_room(new)
        path = self._shape_path(new)
        node = self.root
        nodes = [node]
        fresh: list[Entry] = []
        joint: Entry | None = None
        entry: Entry | None = None
        for edge, (_, value) in zip(path, new.steps, strict=True):
            entries = node.tables.get(edge.id)
            found = entries.get(value) if entries else None
            if found is None:
                found = Entry((node.id, edge.id, value), Node(self._next_node))
                self._next_node += 1
                node.tables.setdefault(edge.id, {})[value] = found
                node.branches |= 1 << edge.branch
                if not fresh:
                    joint = entry
                fresh.append(found)
            edge.uses += 1
            entry = found
            node = found.child
            nodes.append(node)
        assert entry is not None
        entry.filter, entry.verdict = number, verdict(new.weight, owner)
        self._filters[number] = (new, path)
        for made in reversed(fresh):
            self._set(made)
        if not fresh:
            self._set(entry)
        elif joint is not None and self.table[joint.key] != joint.value():
            self._set(joint)
        return [edge.id for edge in path]

    def remove(self, number: int) -> list[int]:
        """Take a filter out.  Returns the edges of its path.  Raises KeyError if there is none of this number."""
        old, path = self._filters.pop(number)
        chain: list[tuple[Node, Edge, Entry]] = []
        node = self.root
        for edge, (_, value) in zip(path, old.steps, strict=True):
            entry = node.tables[edge.id][value]
            chain.append((node, edge, entry))
            node = entry.child
            edge.uses -= 1
        last = chain[-1][2]
        last.filter, last.verdict = None, 0
        # The entries from `first` on serve nobody else; the one before them stays.
        first = len(chain)
        while first and chain[first - 1][2].filter is None and not self._leads_on(chain, first):
            first -= 1
        for node, edge, entry in chain[first:]:
            del node.tables[edge.id][entry.key[2]]
            if not node.tables[edge.id]:
                del node.tables[edge.id]
                node.branches &= ~(1 << edge.branch)
        if first and self.table[chain[first - 1][2].key] != chain[first - 1][2].value():
            self._set(chain[first - 1][2])
        for _, _, entry in chain[first:]:
            del self.table[entry.key]
            self.changes.append((entry.key, None))
        return [edge.id for edge in path]

    def forget_unused(self) -> None:
        """Drop the shapes that no filter uses, so that the next program is without them."""
        self._prune(self.shapes)
        self.shape_version += 1

    def drain(self) -> list[Change]:
        """The changes since the last call, in the order in which they must be made."""
        taken = list(self.changes)
        self.changes.clear()
        return taken

    @staticmethod
    def _leads_on(chain: list[tuple[Node, Edge, Entry]], index: int) -> bool:
        """Whether the node behind entry `index - 1` has ways other than entry `index` of the chain."""
        node = chain[index - 1][2].child
        others = sum(len(entries) for entries in node.tables.values())
        return others > (1 if index < len(chain) else 0)

    def _set(self, entry: Entry) -> None:
        value = entry.value()
        self.table[entry.key] = value
        self.changes.append((entry.key, value))

    def _check_room(self, new: NormalFilter) -> None:
        """All reasons to refuse, found before anything is changed."""
        if len(self._filters) >= MAX_FILTERS or len(self.table) + len(new.steps) > MAX_ENTRIES:
            raise LimitReached(f"there are {len(self._filters)} filters")
        if new.weight >= 1 << 16:
            raise LimitReached("the filter fixes too many bits")
        position: Position | None = self.shapes
        missing = 0
        node: Node | None = self.root
        entry: Entry | None = None
        for shape, value in new.steps:
            edge = position.edges.get(shape) if position else None
            if edge is None:
                missing += 1
                if position and len(self._live(position)) >= MAX_BRANCHES:
                    raise LimitReached(f"{MAX_BRANCHES} kinds of filter go on from one point")
            position = edge.child if edge else None
            entry = node.tables.get(edge.id, {}).get(value) if node and edge else None
            node = entry.child if entry else None
        if missing and self._live_edges() + missing > MAX_EDGES:
            raise LimitReached(f"{MAX_EDGES} kinds of filter at most")
        if entry is not None and entry.filter is not None:
            raise Exists("an equal filter")

    def _shape_path(self, new: NormalFilter) -> list[Edge]:
        """The edges of the filter's shapes; new ones make the program old."""
        if len(self.known_path(new)) < len(new.steps):
            self._prune(self.shapes)
        path: list[Edge] = []
        position = self.shapes
        for shape, _ in new.steps:
            edge = position.edges.get(shape)
            if edge is None:
                taken = {other.branch for other in position.edges.values()}
                branch = next(bit for bit in range(MAX_BRANCHES) if bit not in taken)
                edge = Edge(self._next_edge, shape, branch, Position(position.base + shape.shifts))
                self._next_edge += 1
                position.edges[shape] = edge
                self.shape_version += 1
            path.append(edge)
            position = edge.child
        return path

    @staticmethod
    def _live(position: Position) -> list[Edge]:
        return [edge for edge in position.edges.values() if edge.uses]

    def _live_edges(self) -> int:
        return sum(1 for _, edge in self.edges() if edge.uses)

    def _prune(self, position: Position) -> None:
        """Forget shapes that no filter uses.  Done only when the program changes anyway, so a kind of filter that
        comes and goes costs one program, not one each time."""
        position.edges = {shape: edge for shape, edge in position.edges.items() if edge.uses}
        for edge in position.edges.values():
            self._prune(edge.child)
