"""Operations of a transaction under chapter 8's names: each builder gives the `Op`s of one call.

    data = pack_transaction([*alloc(...), *add_edge(...), *writeb(...)])       # all or nothing
    env.call("transact", cap=tree, data=data)
    env.call("alloc", cap=tree, data=pack_transaction(alloc(...)))             # the same as a call of its own

`Part` is one partition of a metadata block and the bytes to change there: (da of the block, partition, writes), each
write being (offset in the block, bytes), as in Figure 8-1; and, of a type whose partitions overlap, those others that
read bytes written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xok_host.abi.calls import Op, OpFlag, OpKind
from xok_host.abi.types import BLOCK

NO_PARTITION = 0xFFFF_FFFF
"""As the partition: the bytes of a block that are in none."""


@dataclass(slots=True, frozen=True)
class Part:
    da: int
    own_id: int
    writes: Sequence[tuple[int, bytes]] = ()
    dependents: Sequence[int] = ()


@dataclass(slots=True, frozen=True)
class Extent:
    """`type` 0 in `free` and `move`: whatever the blocks are."""

    db: int
    count: int
    type: int = 0


def alloc(parent: Part, extent: Extent, *, zero: bool = False, page: int | None = None) -> list[Op]:
    """Allocate the extent; the parent's partition owns it afterwards.  Plain data starts without contents, as zeros,
    or as the caller's pages from `page` on; metadata starts as zeros."""
    flags = (OpFlag.ZERO if zero else 0) | (OpFlag.PAGES if page is not None else 0)
    return [_op(OpKind.ALLOC, parent, extent, page=page or 0, flags=flags)]


def free(parent: Part, extent: Extent) -> list[Op]:
    """Free the extent, which the parent's partition owned until now."""
    return [_op(OpKind.FREE, parent, extent)]


def add_edge(source: Part, element: int, counter: Part | None = None) -> list[Op]:
    """A reference from `source` to the element at address `element`, and its count, one higher, in `counter` (None:
    `source.writes` changes that too)."""
    return _edge(OpKind.ADD_EDGE, source, element, counter)


def drop_edge(source: Part, element: int, counter: Part | None = None) -> list[Op]:
    """The reverse.  It is what chapter 8's `free` does to something that others refer to."""
    return _edge(OpKind.DROP_EDGE, source, element, counter)


def set_type(union: Part) -> list[Op]:
    """Change the discriminator (and the rest) of a union's partition; it owns afterwards what it owned before."""
    return [_op(OpKind.SET_TYPE, union)]


def move(loser: Part | None, gainer: Part, extent: Extent, source: int | None = None) -> list[Op]:
    """The extent leaves `loser` and is `gainer`'s; both in one step.  `loser` None: another operation of the
    transaction takes it away, from the block at `source`."""
    ops = [] if loser is None else [_op(OpKind.MODIFY, loser)]
    at = loser.da if loser is not None else source
    if at is None:
        raise ValueError("say which block loses the extent")
    return [*ops, _op(OpKind.MOVE, gainer, extent, page=at)]


def swap(one: Part, ones: Extent, other: Part, others: Extent) -> list[Op]:
    """`one` owned `ones` and `other` owned `others`; afterwards the other way round, as the writes say."""
    return [_op(OpKind.MOVE, one, others, page=other.da), _op(OpKind.MOVE, other, ones, page=one.da)]


def writeb(da: int, data: bytes) -> list[Op]:
    """Change bytes from address `da` on, over as many blocks as they reach: one operation a block."""
    return [
        Op(OpKind.WRITEB, block * BLOCK, NO_PARTITION, writes=[(offset, piece)])
        for block, offset, piece in in_blocks(da, data)
    ]


def in_blocks(start: int, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Bytes that are to be at `start`, divided at block borders: (block, offset in it, the bytes there)."""
    done = 0
    while done < len(data):
        block, offset = divmod(start + done, BLOCK)
        piece = data[done : done + BLOCK - offset]
        yield block, offset, piece
        done += len(piece)


def _op(kind: OpKind, part: Part, extent: Extent | None = None, *, page: int = 0, flags: int = 0) -> Op:
    named = extent or Extent(0, 0)
    return Op(kind, part.da, part.own_id, named.db, named.count, named.type, page, flags, part.writes, part.dependents)


def _edge(kind: OpKind, source: Part, element: int, counter: Part | None) -> list[Op]:
    ops = [_op(kind, source, Extent(element, 0))]
    if counter is not None:
        ops.append(_op(OpKind.MODIFY, counter))
    return ops
