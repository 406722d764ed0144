"""Traced and overlapping partitions against an oracle that knows no shortcut: it looks at *all* partitions each time.

The structure is the worst that there is: partitions are lists through a common pool of cells, and any byte may lead
anywhere.  Sector s has 8 heads (u8), then 24 cells {next u8, value u8, users u8, unused u8}; partition p follows its
head for at most six cells and owns block 100 + 16 * value + p of each, so those that share a cell all depend on it.
The oracle (plain Python, no UDF) says what each partition reads and owns of any bytes.  Overlapping, `users` is what
`uses` says of a cell.

Random transactions change random bytes and name random partitions; ALLOC and FREE are made for what the partitions
named gain and lose, so that ownership balances over *them*.  What XN then accepts is exactly what the oracle finds
sound.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import DEV
from tracedkit import Tree, outputs

from xok_host.abi.calls import Op, OpFlag, OpKind, pack_transaction
from xok_host.abi.errors import BogusPartition, BogusUpdate, DependentsMissing, NotFree, Tainted, UdfFailed, XokError
from xok_host.abi.template import Partitions, Template
from xok_host.abi.types import SECTOR, TYPE_XN_DB
from xok_host.abi.udf import META, Function, load
from xok_host.kernel.local import LocalXok

HEADS, CELLS, STEPS, WIDTH = 8, 24, 6, 4
USED = 2
"""Sectors that have partitions."""
FIRST = 100
END = HEADS + CELLS * WIDTH


def owns() -> bytes:
    f = Function()
    sector = f.var(META + (f.part >> 3) * SECTOR)
    cell = f.var(load(sector + (f.part & 7), 1))
    with f.for_range(0, STEPS):
        with f.if_((cell == 0) | (cell > CELLS)):
            f.break_()
        at = f.var(sector + HEADS + (cell - 1) * WIDTH)
        f.set(cell, load(at, 1))
        value = f.var(load(at + 1, 1))
        with f.if_(value != 0):
            f.emit(value * (USED * HEADS) + f.part + FIRST, 1, int(TYPE_XN_DB))
    return f.finish()


def uses() -> bytes:
    f = Function()
    sector = f.var(f.part * SECTOR)
    with f.if_(f.part < USED):
        f.emit(sector, HEADS, 1)
        with f.for_range(0, CELLS) as i:
            at = f.var(sector + HEADS + i * WIDTH)
            users = f.var(load(META + at + 2, 1))
            with f.if_(users != 0):
                f.emit(at, 2, users)
    return f.finish()


def lists(overlapping: bool) -> Template:
    way = Partitions.OVERLAPPING if overlapping else Partitions.TRACED
    code = uses() if overlapping else b""
    return Template(name=b"lists", parts=USED * HEADS, partitions=way, owns=owns(), uses=code)


# ---- the oracle


def follow(raw: bytes, part: int) -> tuple[set[int], list[int]]:
    """(bytes read, blocks owned; a block as often as it is said) of a partition."""
    sector = part // HEADS * SECTOR
    read, owned = {sector + part % HEADS}, []
    cell = raw[sector + part % HEADS]
    for _ in range(STEPS):
        if not 0 < cell <= CELLS:
            break
        at = sector + HEADS + (cell - 1) * WIDTH
        read |= {at, at + 1}
        cell = raw[at]
        if raw[at + 1]:
            owned.append(FIRST + raw[at + 1] * USED * HEADS + part)
    return read, owned


PARTS = range(USED * HEADS)


def readers(raw: bytes) -> Counter[int]:
    return Counter(byte for part in PARTS for byte in follow(raw, part)[0])


def counted(raw: bytes) -> bool:
    """Whether `users` is right everywhere."""
    found = readers(raw)
    cells = [s * SECTOR + HEADS + i * WIDTH for s in range(USED) for i in range(CELLS)]
    return all(raw[at + 2] == found[at] == found[at + 1] for at in cells)


def set_counts(raw: bytearray) -> None:
    found = readers(raw)
    for s in range(USED):
        for i in range(CELLS):
            at = s * SECTOR + HEADS + i * WIDTH
            raw[at + 2] = found[at]


@dataclass
class Change:
    """What a transaction would do, and whether it may."""

    before: bytes
    after: bytes
    named: frozenset[int]
    loose: bool
    overlapping: bool
    wrong: set[str] = field(default_factory=set)

    def judge(self) -> None:
        before, after = self.before, self.after
        differs = {at for at in range(len(before)) if before[at] != after[at]}
        mine: set[int] = set()
        for part in PARTS:
            old, new = follow(before, part), follow(after, part)
            if part in self.named:
                mine |= old[0] | new[0]
            elif differs & old[0]:
                self.wrong.add("hidden")
            if part in self.named and len(set(new[1])) < len(new[1]):
                self.wrong.add("owns a block twice")
        if differs - mine and not self.loose:
            self.wrong.add("stray")
        if self.overlapping:
            if not counted(after):
                self.wrong.add("count")
        elif max(readers(after).values()) > 1:
            self.wrong.add("meet")
        everything = Counter(block for part in PARTS for block in follow(after, part)[1])
        if max(everything.values(), default=0) > 1:
            self.wrong.add("owned twice")

    def changes_another(self) -> bool:
        """The one thing that must never happen."""
        return any(
            follow(self.before, part)[1] != follow(self.after, part)[1] for part in PARTS if part not in self.named
        )


REASONS: dict[type[XokError], set[str]] = {
    DependentsMissing: {"hidden"},
    BogusPartition: {"hidden", "stray", "meet"},
    BogusUpdate: {"count", "owned twice"},
    UdfFailed: {"owns a block twice", "count", "owned twice"},
    NotFree: {"owned twice", "waits"},
}


def ops_of(tree: Tree, change: Change) -> list[Op]:
    """The transaction: bytes by the first partition named in each sector, extents by those that gain and lose them."""
    named = sorted(change.named)
    gained = [(part, db) for part in named for db in sorted(minus(change.after, change.before, part))]
    lost = [(part, db) for part in named for db in sorted(minus(change.before, change.after, part))]
    stay = {db for _, db in gained} & {db for _, db in lost}
    ops = []
    for sector in range(USED):
        old, new = (raw[sector * SECTOR : sector * SECTOR + END] for raw in (change.before, change.after))
        here = [part for part in named if part // HEADS == sector]
        by = here[0] if here else 0xFFFFFFFF
        writes = [(sector * SECTOR + at, new[at : at + 1]) for at in range(END) if old[at] != new[at]]
        if change.overlapping and here:
            ops.append(tree.op(by, *writes[:60], dependents=here))
            ops.append(tree.op(by, *writes[60:]))
        else:
            ops += [tree.op(by, *writes[i : i + 60]) for i in range(0, len(writes), 60)]
            ops += [tree.op(part) for part in here]
    if change.loose:
        ops.append(tree.op(0xFFFFFFFF, (USED * SECTOR, b"\0"), (SECTOR - 1, b"\0")))
    kind = int(TYPE_XN_DB)
    ops += [
        tree.op(part, kind=OpKind.ALLOC, db=db, count=1, type=kind, flags=OpFlag.ZERO)
        for part, db in gained
        if db not in stay
    ]
    ops += [tree.op(part, kind=OpKind.FREE, db=db, count=1, type=kind) for part, db in lost if db not in stay]
    return ops


def minus(left: bytes, right: bytes, part: int) -> set[int]:
    return set(follow(left, part)[1]) - set(follow(right, part)[1])


# ---- random changes


def draw_change(chance: Random, before: bytes, overlapping: bool) -> Change:
    """Small steps that keep to the rules most of the time: push, pop and share of lists, and blind writes."""
    raw = bytearray(before)
    sector = chance.randrange(USED)
    base = sector * SECTOR
    touched: set[int] = set()
    taken = readers(before)
    free = [i + 1 for i in range(CELLS) if not taken[base + HEADS + i * WIDTH]]
    for _ in range(chance.randint(1, 3)):
        part = chance.randrange(HEADS)
        what = chance.choice(["push", "push", "pop", "share", "value", "blind"])
        head = base + part
        cell = raw[head]
        touched.add(sector * HEADS + part)
        if what == "push" and free:
            new = free.pop(chance.randrange(len(free)))
            at = base + HEADS + (new - 1) * WIDTH
            raw[at], raw[at + 1] = cell, chance.choice([0, *range(1, 40)])
            raw[head] = new
        elif what == "pop" and 0 < cell <= CELLS:
            raw[head] = raw[base + HEADS + (cell - 1) * WIDTH]
        elif what == "share":
            raw[head] = raw[base + chance.randrange(HEADS)]
        elif what == "value" and 0 < cell <= CELLS:
            raw[base + HEADS + (cell - 1) * WIDTH + 1] = chance.randrange(41)
        elif what == "blind":
            raw[base + chance.randrange(END)] = chance.randrange(CELLS + 3)
    if overlapping and chance.random() < 0.9:
        set_counts(raw)
    differs = {at for at in range(USED * SECTOR) if before[at] != raw[at]}
    named = touched | {part for part in PARTS if differs & follow(before, part)[0]}
    how = chance.random()
    if how < 0.1:
        named = touched
    elif how < 0.2:
        named = named - {chance.choice(sorted(named))}
    elif how < 0.3:
        named = named | set(chance.sample(PARTS, 4))
    loose = chance.random() < (0.9 if overlapping else 0.3) or not any(part // HEADS == sector for part in named)
    return Change(before, bytes(raw), frozenset(named), loose, overlapping)


SEEN: Counter[str] = Counter()


@pytest.mark.parametrize("overlapping", [False, True], ids=["traced", "overlapping"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_what_is_accepted_changes_nobody_elses_output(overlapping: bool, seed: int) -> None:
    chance = Random(seed)
    local = LocalXok(1024, max_chunks=16, entries=1 << 10)
    tree = Tree.of(local, lists(overlapping))
    for _ in range(12):
        if not chance.randrange(30):
            local.sync()
        before = tree.bytes()
        assert [sorted(e[0][0::3]) for e in outputs(tree.accepted(), before, tree.root)] == [
            blocks_as_extents(follow(before, part)[1]) for part in PARTS
        ], "the oracle and the UDF do not mean the same"
        change = draw_change(chance, before, overlapping)
        change.judge()
        gained = {db for part in PARTS for db in minus(change.after, before, part)}
        if not all(
            tree.env.freemaps[DEV].is_free(db) for db in gained - {db for p in PARTS for db in follow(before, p)[1]}
        ):
            change.wrong.add("waits")
        SEEN["tried"] += 1
        error: XokError | None = None
        ops = ops_of(tree, change)
        if len(ops) > 60 or not ops:
            continue
        try:
            tree.env.call("transact", cap=tree.cap, data=pack_transaction(ops))
        except XokError as refusal:
            error = refusal
        if error is None:
            SEEN["accepted"] += 1
            assert not change.changes_another(), "another partition's output changed"
            assert not change.wrong - {"waits"}, change.wrong
            assert tree.bytes()[: USED * SECTOR] == change.after[: USED * SECTOR]
        else:
            SEEN[type(error).__name__] += 1
            assert tree.bytes() == before
            assert change.wrong & REASONS.get(type(error), set()), (error, change.wrong)
    # Power fails while sectors are on their way: some of before stand beside some of now (PART-6).
    with suppress(Tainted):
        tree.env.call("writeback", DEV, tree.root, 1)
    local.crash(lambda sector: chance.random() < 0.5)
    report = local.recover()
    assert report.sound, report.violations


def blocks_as_extents(blocks: list[int]) -> list[int]:
    """First blocks of the runs."""
    return [db for db in sorted(set(blocks)) if db - 1 not in blocks]


def test_the_random_changes_are_not_all_of_one_kind() -> None:
    for outcome in ("accepted", "BogusPartition", "DependentsMissing", "BogusUpdate"):
        assert SEEN[outcome] >= 10, SEEN
    assert SEEN["accepted"] > SEEN["tried"] // 5, SEEN
