"""Protected methods (thesis 6.4): code bound to a type, through which alone instances of the type change.

A template's `method` program is run for every partition that a transaction changes, and the transaction is refused
unless it approves.  So those who distrust one another can share a structure by agreeing on its type: whoever writes to
it must keep the method's invariants, however he came to the bytes.  In the manner of the thesis's section 2.6 a method
does not act but checks: the libFS proposes the new bytes, the method says whether they may be.

What a method knows, beside META (before), NEW (after), the partition, the caller's capability and the time:

    CONTEXT              the structure CONTEXT_HEADER, and behind it one WITNESS for each block shown
    CONTEXT + 4096 (i+1) the bytes of witness i, as the transaction would leave them

METHOD-1  A method is asked about the state that would result: all changes of the transaction are in NEW and in the
          witnesses.  It is not asked about a part that no operation changed.
METHOD-2  Who owns a block is XN's word, not the libFS's: `parent` and `sector` are where the pointer is that XN
          follows, also if this very transaction makes it or moves it there.
METHOD-3  The caller chooses the witnesses.  A method that needs one and is not shown it refuses.
METHOD-4  Time and credentials are xokd's.
METHOD-5  Bytes outside all partitions are asked about once, with partition NO_PARTITION.

`Witnesses` helps to write one with the UDF builder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xok_host.abi.declare import Structure, pad, u32, u64
from xok_host.abi.types import BLOCK
from xok_host.abi.udf import CONTEXT, Expr, Fields, Function, Operand, Var

CONTEXT_HEADER = Structure(
    "method-context",
    u64("now", "ns since 1970, by xokd's clock"),
    u64("block", "the block that is asked about"),
    u64("parent", "block that owns it; 0: it is a root's"),
    u32("sector", "the parent's sector that has the pointer"),
    u32("uid", "user whose environment it is"),
    u32("environment", "slot of the caller's environment"),
    u32("fresh", "1: the block is allocated by this transaction"),
    u32("witnesses", "how many"),
    pad(4),
    u64("capability", "with which the caller writes"),
    size=64,
)

WITNESS = Structure(
    "witness",
    u64("block", "its number"),
    u64("parent", "block that owns it; 0: it is a root's"),
    u32("sector", "the parent's sector that has the pointer"),
    u32("type", "type id"),
    u32("changed", "sectors that the transaction changes, a bit each"),
    pad(4),
    size=32,
)


class Witnesses:
    """The witnesses as the builder sees them.

    shown = Witnesses(f)
    with shown.each() as (witness, data): …       # fields of WITNESS, address of the bytes
    found = shown.find(block)                     # address of that block's bytes, 0 if it is not shown
    """

    def __init__(self, f: Function) -> None:
        self._f = f
        self.context = f.at(CONTEXT_HEADER, CONTEXT)

    @contextmanager
    def each(self) -> Iterator[tuple[Fields, Expr]]:
        f = self._f
        with f.for_each(WITNESS, CONTEXT + CONTEXT_HEADER.size, self.context.witnesses) as witness:
            number = (witness.address() - (CONTEXT + CONTEXT_HEADER.size)) >> (WITNESS.size.bit_length() - 1)
            yield witness, CONTEXT + BLOCK + (number << (BLOCK.bit_length() - 1))

    def find(self, block: Operand) -> Var:
        """The address of the bytes of the witness `block`, kept in a variable; 0 if it is not shown."""
        f = self._f
        wanted = f.var(block)
        found = f.var(0)
        with self.each() as (witness, data), f.if_(witness.block == wanted):
            f.set(found, data)
            f.break_()
        return found
