"""The verification of a transaction (TXN-2 to TXN-5): UDFs are asked before and after, and the answers compared.

What a partition's UDFs say of the present contents is remembered with the block (`Cached.memo`): owns is deterministic,
so it need be asked again only when the bytes have changed (thesis 4.1).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import cython

from xok_host.abi.errors import BogusUpdate, Locked, NotInCore, RefcountWrong, Refused, UdfFailed, WrongType
from xok_host.abi.types import Flag
from xok_host.abi.views import LOCK_EXCLUSIVE
from xok_host.kernel.tables import INDEX
from xok_host.kernel.xn import traced, udf
from xok_host.kernel.xn.registry import Cached
from xok_host.kernel.xn.shadow import EMPTY, MAX_ALLOC, NO_PARTITION, Claim, Move, Shadow, Touched, Transaction, noted
from xok_host.kernel.xn.types import XnType

UDF_BUDGET = 1 << 22
"""Instructions that the UDFs of one transaction may execute."""

_VALID = int(Flag.VALID)
_NOT_ASKED = (EMPTY, EMPTY, EMPTY)
_UDF_INSTRUCTIONS = cython.declare(cython.int, INDEX["udf_instructions"])
_UDF_RUNS = cython.declare(cython.int, INDEX["udf_runs"])
_BUDGET = cython.declare(cython.longlong, UDF_BUDGET)


def modifications(t: Transaction) -> None:
    """Discriminators, `acl`, and a guard that would change what children may be read by."""
    settle(t)
    shadow: Shadow
    for shadow in t.shadows:
        if shadow.changed and not shadow.plain and shadow.entry.xtype.careful:
            modification(t, shadow)


def modification(t: Transaction, shadow: Shadow) -> None:
    xtype: XnType = shadow.entry.xtype
    if xtype.discriminators and not shadow.set_type:
        for start, length in xtype.discriminators:
            if shadow.whole[start : start + length] != shadow.before[start : start + length]:
                raise BogusUpdate(f"bytes {start} to {start + length} are a discriminator: use set_type")
    if xtype.has_acl:
        parts = [touched.part for touched in t.parts(shadow)]
        if shadow.loose:
            parts.append(NO_PARTITION)
        for part in parts:
            unpaid: int = xtype.template.spent
            if not xtype.template.approves(shadow.before, shadow.whole, part, t.capability, t.kernel.now):
                raise Refused(f"acl of {xtype.name}, partition {part}")
            pay(t, xtype.template.spent - unpaid)
    if not xtype.guard_constant and not shadow.fresh:
        check_guard(t, shadow)
    if xtype.traced:
        traced.check(t, shadow, UDF_BUDGET)


def check_guard(t: Transaction, shadow: Shadow) -> None:
    """A guard may change only while nothing that it guards is in core: bindings would outlive it."""
    entry, device = shadow.entry, t.device
    template = entry.xtype.template
    unpaid: int = template.spent
    same = template.guard(shadow.before, entry.tree) == template.guard(shadow.whole, entry.tree)
    guarded = [] if same else udf.extents(template.owns_all(shadow.before, unpaid))
    pay(t, template.spent - unpaid)
    for db, count, _ in guarded:
        for block in range(db, db + min(count, MAX_ALLOC)):
            if device.get(block) is not None:
                raise Locked(f"block {block}, which the guard of block {entry.db} guards, is in core: delete_attr it")


def remembered(touched: Touched) -> tuple[array[int], array[int], array[int]]:
    """What the partition's UDFs say of the block before the transaction: (owns, refs, refcnt).

    Binding remembers what owns says, and None for the others."""
    shadow: Shadow = touched.shadow
    if touched.said is None:
        if shadow.fresh:
            touched.said = _NOT_ASKED  # all zeros: TMPL-3
        else:
            memo: dict[int, tuple[array[int], array[int], array[int]]] = shadow.entry.memo
            touched.said = memo.get(touched.part)
            if touched.said is None or touched.said[1] is None:
                touched.said = ask(shadow.entry.xtype, shadow.before, touched.part, shadow.entry.db)
                memo[touched.part] = touched.said
    return touched.said


def ask(
    xtype: XnType, meta: bytes | bytearray | memoryview, part: cython.uint, db: cython.ulonglong
) -> tuple[array[int], array[int], array[int]]:
    """(owns, canonical; refs; refcnt) of a partition of the block `db`.  Raises UdfFailed.

    Reconstruction asks here as well: what a type says must not depend on who asks."""
    if xtype.traced:
        return traced.ask(xtype, meta, part, db, UDF_BUDGET)
    xtype.show(meta, part)
    return owned(xtype, part, EMPTY), referred(xtype, part, db, EMPTY), counted(xtype, part, db, EMPTY)


# Of the partition shown.  Each gives `said`, itself, if that is what the UDF says: XN has checked it when it was said
# first, for this partition of this block, and to look at the same once more would show nothing new.


def owned(xtype: XnType, part: cython.uint, said: array[int]) -> array[int]:
    """What `owns` says, canonical.  It is not told where the block lies: DET-4."""
    out = xtype.ask(xtype.owns_program, part, 0, said)
    return said if out is said else udf.canonical(out)


def referred(xtype: XnType, part: cython.uint, db: cython.ulonglong, said: array[int]) -> array[int]:
    """What `refs` says."""
    if xtype.references_program is None:
        return EMPTY
    return xtype.ask(xtype.references_program, part, udf.element(db << 12), said)


def counted(xtype: XnType, part: cython.uint, db: cython.ulonglong, said: array[int]) -> array[int]:
    """What `refcnt` says, with counts where they belong."""
    if xtype.counts_program is None:
        return EMPTY
    da: cython.ulonglong = udf.element(db << 12)
    out = xtype.ask(xtype.counts_program, part, da, said)
    if out is not said:
        check_counts(xtype, out, part, da)
    return out


def check_counts(xtype: XnType, counts: array[int], part: cython.uint, da: cython.ulonglong) -> None:
    """A count belongs to the bytes that hold it: every element lies in the partition, and is counted once."""
    edges: cython.p_ulonglong = udf.words(xtype.windows[part])
    v: cython.p_ulonglong = udf.words(counts)
    nedges: cython.Py_ssize_t = len(xtype.windows[part])
    n: cython.Py_ssize_t = len(counts)
    i: cython.Py_ssize_t
    k: cython.Py_ssize_t
    ascending: cython.bint = True
    for i in range(0, n, 3):
        for k in range(0, nedges, 2):
            if v[i] >= da + edges[k] and v[i] < da + edges[k + 1]:
                break
        else:
            raise UdfFailed(f"refcnt counts {v[i]:#x}, which is outside partition {part}")
        ascending = ascending and (i == 0 or v[i] > v[i - 3])
    if not ascending and 3 * len(set(counts[0::3])) != n:
        raise UdfFailed("refcnt gives one element two counts")


def one_more(before: array[int], after: array[int]) -> cython.Py_ssize_t:
    """Where in `after` the one triple stands that `before` has not; -1 if they differ in any other way."""
    n: cython.Py_ssize_t = len(before)
    i: cython.Py_ssize_t
    k: cython.Py_ssize_t
    if len(after) != n + 3:
        return -1
    if n == 0:
        return 0
    old: cython.p_ulonglong = udf.words(before)
    new: cython.p_ulonglong = udf.words(after)
    i = 0
    while i < n and old[i] == new[i] and old[i + 1] == new[i + 1] and old[i + 2] == new[i + 2]:
        i += 3
    for k in range(i, n):
        if old[k] != new[k + 3]:
            return -1
    return i


def question(t: Transaction) -> None:
    """Ask the UDFs of every partition touched; the answers are left in it."""
    touched: Touched
    shadow: Shadow
    xtype: XnType
    entry: Cached
    for touched in t.touched:
        shadow = touched.shadow
        entry = shadow.entry
        xtype = entry.xtype
        owns, references, counts = remembered(touched)
        touched.before = owns
        if not shadow.changed >> touched.sector & 1:
            touched.after, touched.references, touched.counts = owns, references, counts
        elif not xtype.traced:  # of those `traced.check` has asked
            xtype.show(shadow.held, touched.part)
            touched.after = owned(xtype, touched.part, owns)
            touched.references = referred(xtype, touched.part, entry.db, references)
            touched.counts = counted(xtype, touched.part, entry.db, counts)
        if not (touched.after is owns and touched.references is references and touched.counts is counts):
            t.differs = True
        if t.spent + xtype.spent > _BUDGET:
            break  # which is an error
    charge(t)


def settle(t: Transaction) -> None:
    """What others left uncounted in the types (a refused transaction, say) is not this transaction's."""
    shadow: Shadow
    for shadow in t.shadows:
        settle_type(t, shadow.entry.xtype)


def settle_type(t: Transaction, xtype: XnType) -> None:
    if xtype.spent:
        t.device.counters.count(_UDF_INSTRUCTIONS, xtype.spent)
        xtype.spent = 0


def charge(t: Transaction) -> None:
    """Count what the UDFs have taken.  Raises UdfFailed when it is too much for one transaction."""
    spent: cython.longlong = 0
    runs: cython.longlong = 0
    shadow: Shadow
    xtype: XnType
    for shadow in t.shadows:
        xtype = shadow.entry.xtype
        spent += xtype.spent
        runs += xtype.runs
        xtype.spent = xtype.runs = 0
    t.device.counters.count(_UDF_RUNS, runs)
    pay(t, spent)


def pay(t: Transaction, spent: cython.longlong) -> None:
    """The transaction's UDFs have executed so many instructions more.  Raises UdfFailed when it is too much."""
    t.spent += spent
    t.device.counters.count(_UDF_INSTRUCTIONS, spent)
    if t.spent > _BUDGET:
        raise UdfFailed(f"the transaction's UDFs take more than {UDF_BUDGET} instructions")


def ownership(t: Transaction) -> None:
    """TXN-3 and TXN-5 (allocation)."""
    touched: Touched
    move: Move
    changed: cython.int = 0
    last: Touched | None = None
    for touched in t.touched:
        if touched.after is touched.before or touched.after == touched.before:
            continue
        at: cython.Py_ssize_t = one_more(touched.before, touched.after)
        if at >= 0:
            gained, lost = touched.after[at : at + 3], EMPTY
        else:
            gained, lost = udf.difference(touched.before, touched.after)
        if touched.shadow.set_type:
            raise BogusUpdate(f"set_type changes what partition {touched.part} of block {touched.shadow.entry.db} owns")
        touched.gained = gained if gained else None
        touched.lost = lost if lost else None
        changed += 1
        last = touched
    if not changed and not t.allocs and not t.frees:
        return
    if changed == 1 and len(t.allocs) == 1 and not t.frees:
        # The commonest case of all: one extent, one pointer.
        move = t.allocs[0]
        assert last is not None
        gained = last.gained
        if (
            move.touched is last
            and last.lost is None
            and len(gained) == 3
            and gained[0] == move.db
            and gained[1] == move.count
            and gained[2] == move.type
        ):
            return
    compare(t)


def compare(t: Transaction) -> None:
    """All that was gained and lost against all that is allocated and freed."""
    touched: Touched
    move: Move
    gained_all = array("Q")
    lost_all = array("Q")
    for touched in t.touched:
        if touched.gained is not None:
            gained_all += touched.gained
        if touched.lost is not None:
            lost_all += touched.lost
    gained_all = udf.canonical(gained_all)
    lost_all = udf.canonical(lost_all)
    if gained_all and lost_all and udf.intersect(gained_all, lost_all):
        grown, shrunk = udf.difference(lost_all, gained_all)
        find_moves(t)
    else:
        grown, shrunk = gained_all, lost_all
    if grown != extents(t.allocs):
        raise BogusUpdate(f"owns grows by {udf.extents(grown)}, not by what is allocated")
    if shrunk != extents(t.frees):
        raise BogusUpdate(f"owns shrinks by {udf.extents(shrunk)}, not by what is freed")
    for move in t.allocs:
        if move.touched.gained is None or not udf.owns(move.touched.gained, move.db, move.count, move.type):
            raise BogusUpdate(f"{move.count} blocks at {move.db} are not gained by the partition named")
    for move in t.frees:
        if move.touched.lost is None or not udf.owns(move.touched.lost, move.db, move.count, move.type):
            raise BogusUpdate(f"{move.count} blocks at {move.db} are not lost by the partition named")


def extents(moves: Sequence[Move]) -> array[int]:
    """The extents that operations name, as a canonical set; a FREE without type takes what the block is."""
    flat = array("Q")
    move: Move
    for move in moves:
        if not move.type and move.touched.lost is not None:
            move.type = udf.kind_of(move.touched.lost, move.db)
        if not move.type:
            raise BogusUpdate(f"{move.count} blocks at {move.db} have no type")
        flat.extend((move.db, move.count, move.type))
    return udf.canonical(flat)


def find_moves(t: Transaction) -> None:
    """Which partition lost what another gained."""
    for gainer in t.touched:
        if gainer.gained is None:
            continue
        for loser in t.touched:
            if loser is gainer or loser.lost is None:
                continue
            for db, count, _ in common(gainer.gained, loser.lost):
                t.moved = noted(t.moved, (loser, gainer, db, count))


def references(t: Transaction) -> None:
    """TXN-4, and who waits for whom on that account (ORDER-5)."""
    touched: Touched
    for touched in t.touched:
        said = remembered(touched)
        if touched.references is not said[1] or touched.counts is not said[2]:
            break
    else:
        return  # all partitions refer to and count what they did
    changes: dict[int, list[tuple[int, Touched]]] = {}
    counts: dict[int, tuple[int, Touched]] = {}
    for touched in t.touched:
        if not touched.shadow.changed >> touched.sector & 1:
            continue
        _, old_references, old_counts = remembered(touched)
        if touched.references is not old_references and touched.references != old_references:
            at: cython.Py_ssize_t = one_more(old_references, touched.references)
            count: cython.Py_ssize_t = one_more(old_counts, touched.counts)
            if at >= 0 and count >= 0:
                # A new element with its first reference, in one partition: durable together.
                if touched.references[at] == touched.counts[count] and touched.counts[count + 1] == 1:
                    continue
            for target, delta in udf.reference_changes(old_references, touched.references):
                changes.setdefault(target, []).append((delta, touched))
        if touched.counts is not old_counts and touched.counts != old_counts:
            for target, old, new in udf.count_changes(old_counts, touched.counts):
                counts[target] = (new - old, touched)
    for target, parts in changes.items():
        delta, counter = counts.pop(target, (0, parts[0][1]))
        if len(parts) == 1 and parts[0] == (delta, counter):
            continue  # name and count in one partition: they become durable together
        balance(t, target, parts, delta, counter)
    if counts:
        target = min(counts)
        raise RefcountWrong(f"element {target:#x}: its count changes by {counts[target][0]}, references do not")


def balance(t: Transaction, target: int, parts: list[tuple[int, Touched]], delta: int, counter: Touched) -> None:
    """One element: its count, in `counter`, changes by `delta`; `parts` are the changes of references to it."""
    total = sum(change for change, _ in parts)
    if total != delta:
        raise RefcountWrong(f"element {target:#x}: references change by {total}, its count by {delta}")
    gainers = [touched for change, touched in parts if change > 0]
    losers = [touched for change, touched in parts if change < 0]
    for gainer in gainers:
        if delta > 0:
            after(t, gainer, counter)
        for loser in losers:
            after(t, gainer, loser)
    if delta < 0:
        for loser in losers:
            after(t, counter, loser)


def claims(t: Transaction) -> None:
    """TXN-8: what MOVE, ADD_EDGE and DROP_EDGE say."""
    claim: Claim
    edges: dict[tuple[int, int, int], int] = {}
    for claim in t.claims:
        if claim.change:
            at = (claim.touched.shadow.entry.key, claim.touched.part, udf.element(claim.db))
            edges[at] = edges.get(at, 0) + claim.change
    for claim in t.claims:
        touched = claim.touched
        where = f"partition {touched.part} of block {touched.shadow.entry.db}"
        if claim.change:
            changes = dict(udf.reference_changes(remembered(touched)[1], touched.references))
            target = udf.element(claim.db)
            said = edges[touched.shadow.entry.key, touched.part, target]
            if changes.get(target, 0) != said:
                t.at = claim.at
                raise BogusUpdate(
                    f"{where}: references to {claim.db:#x} change by {changes.get(target, 0)}, not {said}"
                )
        elif not moved_to(t, claim):
            t.at = claim.at
            raise BogusUpdate(f"{claim.count} blocks at {claim.db} do not move from block {claim.source} to {where}")


def moved_to(t: Transaction, claim: Claim) -> bool:
    """Whether the whole extent left the block that the claim names, and is its partition's now."""
    touched = claim.touched
    if touched.gained is None or not udf.owns(touched.gained, claim.db, claim.count, claim.type):
        return False
    arrived = 0
    for loser, gainer, db, count in t.moved:
        if gainer is touched and loser.shadow.entry.key == claim.source:
            arrived += max(0, min(db + count, claim.db + claim.count) - max(db, claim.db))
    return arrived == claim.count


def after(t: Transaction, later: Touched, earlier: Touched) -> None:
    if later.shadow is not earlier.shadow or later.sector != earlier.sector:
        t.reference_order = noted(t.reference_order, (later, earlier))


def frees(t: Transaction) -> None:
    """TXN-5: freed metadata must be in core and empty."""
    device = t.device
    spent: cython.longlong
    xtype: XnType | None
    for move in t.frees:
        xtype = device.types.get(move.type)
        if xtype is None:
            raise WrongType(f"type {move.type} is not in use")
        if xtype.data:
            continue
        settle_type(t, xtype)
        for db in range(move.db, move.db + move.count):
            entry = device.get(db)
            if entry is None or not entry.flags & _VALID:
                raise NotInCore(f"block {db} is freed, and must be in core to see that it is empty")
            if entry.lock == LOCK_EXCLUSIVE and t.env not in entry.lock_holders:
                raise Locked(f"block {db} is locked by another environment")
            shadow = t.shadow(entry.key)
            meta = shadow.whole if shadow is not None else device.pages.view(entry.page)
            for part in range(xtype.nparts):
                owns, references, counts = ask(xtype, meta, part, db)
                spent, xtype.spent = xtype.spent, 0
                pay(t, spent)
                if owns:
                    raise BogusUpdate(f"block {db} is freed, but its partition {part} still owns blocks")
                if references or any(counts[1::3]):
                    raise RefcountWrong(f"block {db} is freed, but references from or to partition {part} remain")


def common(left: array[int], right: array[int]) -> list[tuple[int, int, int]]:
    """The blocks that two canonical sets share, with the type in the first."""
    out = []
    for db, count, kind in udf.extents(left):
        for other, length, _ in udf.extents(right):
            start, end = max(db, other), min(db + count, other + length)
            if start < end:
                out.append((start, end - start, kind))
    return out
