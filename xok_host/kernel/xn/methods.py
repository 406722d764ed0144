"""Asking protected methods (thesis 6.4; `xok_host.abi.method` says what they are and what holds)."""

from __future__ import annotations

from xok_host.abi.errors import Refused, UdfFailed
from xok_host.abi.method import CONTEXT_HEADER, WITNESS
from xok_host.abi.types import BLOCK, SECTORS, Flag
from xok_host.kernel.xn.registry import Cached
from xok_host.kernel.xn.shadow import NO_PARTITION, Shadow, Transaction
from xok_host.kernel.xn.types import XnType

_ROOT = int(Flag.ROOT)
METHOD_BUDGET = 1 << 20
"""Instructions of one run: a method may have to look through several blocks."""
METHODS_BUDGET = 1 << 22
"""Instructions of all methods that one transaction runs."""


def approve(t: Transaction) -> None:
    """TXN-7.  Raises Refused, or UdfFailed when a method faults."""
    shadow: Shadow
    xtype: XnType
    for shadow in t.shadows:
        xtype = shadow.entry.xtype
        if shadow.changed and xtype.method_program is not None:
            _ask(t)
            return


def _ask(t: Transaction) -> None:
    xtype: XnType
    asked = [
        shadow
        for shadow in t.shadows
        if shadow.changed and shadow.entry.xtype is not None and shadow.entry.xtype.method_program is not None
    ]
    context = _context(t)
    spent = 0
    for shadow in asked:
        xtype = shadow.entry.xtype
        program = xtype.method_program
        assert program is not None
        _header(t, shadow, context)
        parts = [touched.part for touched in t.parts(shadow) if shadow.changed >> touched.sector & 1]
        if shadow.loose:
            parts.append(NO_PARTITION)
        for part in parts:
            approved, _ = program.run(
                shadow.before,
                part,
                new=shadow.whole,
                context=context,
                r4=t.capability,
                r5=t.kernel.now,
                budget=METHOD_BUDGET,
                max_out=0,
            )
            spent += program.executed
            if not approved:
                raise Refused(f"method of {xtype.name}, block {shadow.entry.db}, partition {part}")
            if spent > METHODS_BUDGET:
                raise UdfFailed(f"the transaction's methods take more than {METHODS_BUDGET} instructions")
    t.kernel.counters.add("udf_instructions", spent)


def _context(t: Transaction) -> bytearray:
    """The witnesses; the header's part about the block itself is filled in for each (`_header`)."""
    out = bytearray(BLOCK * (1 + len(t.witnesses)))
    device = t.device
    for index, key in enumerate(t.witnesses):
        shadow = t.shadow(key)
        db = key & (1 << 44) - 1
        child = t.children.get(db) if t.children else None
        entry = child if child is not None else t.kernel.registry[key]
        parent, sector = _parent(t, entry)
        WITNESS.pack_into(
            out,
            CONTEXT_HEADER.size + index * WITNESS.size,
            block=db,
            parent=parent,
            sector=sector,
            type=entry.xtype.id if entry.xtype is not None else 0,
            changed=shadow.changed if shadow is not None else (1 << SECTORS) - 1 if child is not None else 0,
        )
        start = BLOCK * (1 + index)
        if shadow is not None:
            out[start : start + BLOCK] = shadow.whole
        elif child is None:
            out[start : start + BLOCK] = device.pages.view(entry.page)
    return out


def _header(t: Transaction, shadow: Shadow, context: bytearray) -> None:
    parent, sector = _parent(t, shadow.entry)
    CONTEXT_HEADER.pack_into(
        context,
        now=t.kernel.now,
        block=shadow.entry.db,
        parent=parent,
        sector=sector,
        uid=t.env.uid,
        environment=t.env.id,
        fresh=int(shadow.fresh),
        witnesses=len(t.witnesses),
        capability=t.capability,
    )


def _parent(t: Transaction, entry: Cached) -> tuple[int, int]:
    """METHOD-2: (block, sector) of the pointer as the transaction would leave it; block 0 for a root's."""
    for _, gainer, db, count in t.moved:
        if db <= entry.db < db + count:
            return gainer.shadow.entry.db, gainer.sector
    for move in t.allocs:
        if move.db <= entry.db < move.db + move.count:
            return move.touched.shadow.entry.db, move.touched.sector
    if entry.flags & _ROOT:
        return 0, 0
    return entry.parent_da >> 12 & (1 << 44) - 1, entry.parent_sector
