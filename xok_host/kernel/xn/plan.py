"""Which waits a transaction brings (TXN-6): who must be durable before whom, and that nobody waits for himself."""

from __future__ import annotations

from xok_host.abi.errors import BogusUpdate
from xok_host.abi.types import TYPE_XN_DB, Flag
from xok_host.kernel.xn import order, udf
from xok_host.kernel.xn.registry import Cached
from xok_host.kernel.xn.shadow import Touched, Transaction, noted, survivor

_META = int(Flag.META)
_TEMPORARY = int(Flag.TEMPORARY)


def order_of(t: Transaction) -> None:
    """The waits to add, as (block, sector, on block, on sector), and that they close no cycle (ORDER-7)."""
    device = t.device
    assert device is not None
    for move in t.allocs:
        parent = move.touched.shadow.entry
        assert parent.xtype is not None
        for db in range(move.db, move.db + move.count):
            child = t.children.get(db) if t.children else None
            if child is not None:
                device.set_parent(child, parent, move.touched.part)
                child.linked = child.anchored = False
    freed: dict[int, Touched] = {}
    for move in t.frees:
        for entry in device.cached_in(move.db, move.count):
            if entry.flags & _META:
                freed[entry.key] = move.touched
    t.freed = freed
    if t.moved:
        no_circle(t)
    for loser, gainer, db, count in t.moved:
        for moved in device.cached_in(db, count):
            order.attached(moved)  # by where it was: remembered before it hangs elsewhere
        source = survivor(loser, freed)
        entry, on = gainer.shadow.entry, source.shadow.entry
        same_fate(entry, on)
        if entry.flags & _TEMPORARY:
            continue
        if entry is on and gainer.sector == source.sector or order.hangs_below(entry, on, source.sector):
            continue
        for block in range(db, db + count):
            if udf.kind_of(gainer.after, block) != TYPE_XN_DB:
                raise BogusUpdate(
                    f"block {block} would be lost if a crash came between its leaving sector {loser.sector} of "
                    f"block {loser.shadow.entry.db} and its arrival: metadata moves within a sector, or below it"
                )
        t.edges = noted(t.edges, (entry, gainer.sector, on, source.sector))
    for _, gainer, db, count in t.moved:
        for _, _, on, on_sector in device.moves_of(db, count):
            edge(t, gainer, on, on_sector)
    for later, earlier in t.reference_order:
        same_fate(later.shadow.entry, earlier.shadow.entry)
        if later.shadow.entry.flags & _TEMPORARY:
            continue
        source = survivor(earlier, freed)
        edge(t, later, source.shadow.entry, source.sector)
        if earlier.shadow is not source.shadow:
            continue
        entry = earlier.shadow.entry
        for on, on_sector in order.uncertain_links(entry, later.shadow.entry):
            edge(t, later, on, on_sector)
    handed: list[tuple[Cached, int, Cached, int]] = []
    for key, touched in freed.items():
        gone = t.kernel.registry.get(key)
        assert gone is not None
        if not gone.linked:
            continue
        parent = touched.shadow.entry
        for wait in gone.waits:
            if wait.on.key not in freed:
                edge(t, touched, wait.on, wait.on_sector)
            else:
                source = survivor(freed[wait.on.key], freed)
                edge(t, touched, source.shadow.entry, source.sector)
        for waiter in gone.waiters:
            if isinstance(waiter, order.Wait) and waiter.entry.key not in freed:
                handed.append((waiter.entry, waiter.sector, parent, touched.sector))
    if t.edges or handed:
        order.check_cycle([*t.edges, *handed])


def no_circle(t: Transaction) -> None:
    """What is owned stays a tree: no block moves below itself, be it by way of others that move as well."""
    device = t.device
    assert device is not None
    homes: dict[int, Cached] = {}
    for _, gainer, db, count in t.moved:
        for moved in device.cached_in(db, count):
            if moved.flags & _META:
                homes[moved.key] = gainer.shadow.entry
    for key, home in homes.items():
        seen = {key}
        above: Cached | None = home
        while above is not None:
            if above.key in seen:
                raise BogusUpdate(f"block {device.registry[key].db} would be below itself")
            seen.add(above.key)
            above = homes.get(above.key) or above.parent


def same_fate(entry: Cached, other: Cached) -> None:
    """ORDER-8: what survives a restart and what does not are kept apart."""
    if (entry.flags ^ other.flags) & _TEMPORARY:
        lasting, temporary = (other, entry) if entry.flags & _TEMPORARY else (entry, other)
        raise BogusUpdate(f"block {temporary.db} is of a temporary file system, and block {lasting.db} is not")


def edge(t: Transaction, later: Touched, on: Cached, on_sector: int) -> None:
    """`later` waits for that sector, unless it becomes durable in the same moment anyway."""
    entry = later.shadow.entry
    if entry.flags & _TEMPORARY or entry is on and later.sector == on_sector or order.hangs_below(entry, on, on_sector):
        return
    t.edges = noted(t.edges, (entry, later.sector, on, on_sector))
