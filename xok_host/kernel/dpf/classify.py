# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""The portable engine: whose packet is it, by the same table that the host kernel's program walks.

Compiled (Cython, pure Python mode).  It is the oracle of the eBPF engine, and serves where that cannot run.

A `Plan` is the shape trie flattened into rows in the order of the walk; `end` of a row is the first row that is not
below it.  A walk goes through the rows once, so it is bounded by their number (TR-4):

    row:  if the node at this depth has the branch:  guards and shifts;  load the field;  look up (node, edge, field)
          found → remember the verdict if heavier, go to the rows below;  else → continue at `end`
"""

from __future__ import annotations

import array

from xok_host.abi.dpf import MAX_ATOMS, Shift
from xok_host.kernel.dpf.trie import MAX_BRANCHES, ROOT, Key, Trie, Value, verdict_owner

Frame = bytes | bytearray | memoryview
Numbers = array.array  # type: ignore[type-arg]

ALL_BRANCHES = (1 << MAX_BRANCHES) - 1
ROW = 8
"""Integers in a row: depth, branch, offset, width, end, first and last of its prelude, edge."""
OP = 4
"""Integers in a piece of prelude: offset, width, SHIFT or GUARD, distance or value."""
SHIFT, GUARD = 0, 1


class Plan:
    """Flattened shapes.  `rows` and `masks` are what both engines generate from; immutable."""

    def __init__(self, trie: Trie) -> None:
        self.version = trie.shape_version
        rows: list[list[int]] = []
        masks: list[int] = []
        ops: list[int] = []
        op_masks: list[int] = []
        open_rows: list[list[int]] = []
        self.bases: list[bool] = []
        """For each row whether its base has moved before its prelude."""
        for depth, edge in trie.edges():
            for row in open_rows[depth:]:
                row[4] = len(rows)
            del open_rows[depth:]
            first = len(op_masks)
            self.bases.append(len(edge.child.base) > len(edge.shape.shifts))
            for atom in edge.shape.prelude:
                what = [SHIFT, atom.shift] if isinstance(atom, Shift) else [GUARD, atom.value]
                ops += [atom.offset, atom.width, *what]
                op_masks.append(atom.mask)
            shape = edge.shape
            row = [depth, edge.branch, shape.offset, shape.width, 0, first, len(op_masks), edge.id]
            rows.append(row)
            masks.append(shape.mask)
            open_rows.append(row)
        for row in open_rows:
            row[4] = len(rows)
        self.rows = rows
        self.masks = masks
        self.ops = ops
        self.op_masks = op_masks


def _packed(values: list[int]) -> Numbers:
    """An array that is never empty, so that it can always be viewed."""
    return array.array("q", values or [0])


class Classifier:
    """Classifies frames by a trie, following its changes."""

    def __init__(self, trie: Trie) -> None:
        self.trie = trie
        self._load()

    def _load(self) -> None:
        plan = Plan(self.trie)
        self.version = plan.version
        self._rows = _packed([number for row in plan.rows for number in row])
        self._masks = _packed(plan.masks)
        self._ops = _packed(plan.ops)
        self._op_masks = _packed(plan.op_masks)
        self._count = len(plan.rows)

    def verdict(self, frame: Frame) -> int:
        """The heaviest matching filter's verdict, 0 if nobody claims the frame (Ethernet, no virtio header)."""
        if self.version != self.trie.shape_version:
            self._load()
        if not len(frame):
            return 0
        return walk(frame, self.trie.table, self._count, self._rows, self._masks, self._ops, self._op_masks)

    def port(self, frame: Frame) -> int:
        """The port of the frame's owner, -1 if nobody claims it."""
        return verdict_owner(self.verdict(frame))


def _field(data: Frame, offset: int, width: int) -> int:
    """The big-endian field, -1 if it is not wholly inside the frame."""
    if offset + width > len(data):
        return -1
    value = data[offset]
    for index in range(offset + 1, offset + width):
        value = value << 8 | data[index]
    return value


def walk(
    data: Frame,
    table: dict[Key, Value],
    count: int,
    rows: Numbers,
    masks: Numbers,
    ops: Numbers,
    op_masks: Numbers,
) -> int:
    """The heaviest verdict on the way through a plan's rows.  C types are in classify.pxd."""
    nodes = [ROOT] * (MAX_ATOMS + 1)
    branches = [ALL_BRANCHES] * (MAX_ATOMS + 1)
    bases = [0] * (MAX_ATOMS + 1)
    best = 0
    at = 0
    while at < count:
        row = at * ROW
        depth = rows[row]
        here = at
        at = rows[row + 4]
        if not branches[depth] >> rows[row + 1] & 1:
            continue
        base = bases[depth]
        value = 0
        for index in range(rows[row + 5], rows[row + 6]):
            value = _field(data, base + ops[OP * index], ops[OP * index + 1])
            if value < 0:
                break
            value &= op_masks[index]
            operand = ops[OP * index + 3]
            if ops[OP * index + 2] == GUARD:
                if value != operand:
                    value = -1
                    break
            else:
                base += value << operand if operand >= 0 else value >> -operand
        if value < 0:
            continue
        value = _field(data, base + rows[row + 2], rows[row + 3])
        if value < 0:
            continue
        found = table.get((nodes[depth], rows[row + 7], value & masks[here]))
        if found is None:
            continue
        next_node, verdict, onward = found
        if verdict > best:
            best = verdict
        if onward:
            nodes[depth + 1] = next_node
            branches[depth + 1] = onward
            bases[depth + 1] = base
            at = here + 1
    return best
