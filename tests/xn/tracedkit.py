"""Types whose partitions are traced, for tests: a heap whose records grow and shrink, and names by a shared base.

*Heap*: in each sector a directory of 8 entries {offset u16, extents u16}, each a partition, and behind it, anywhere in
the sector, the record that the entry points at: so many extents {first block u32, count u32}.  No access function could
say where a partition is; it is wherever its entry leads.

*Based*: in each sector {base u64, live u16} and 8 partitions {delta u16}: a partition whose delta is not 0 owns block
base + delta.  All that are not empty depend on the base; `uses` counts them, as `live` or by looking.

*Oracle*: whoever has all partitions asked before and after each modification needs no tracing at all.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.xn.toy import DEV, da, install_type
from xok_host.abi.calls import Op, OpFlag, OpKind, pack_transaction
from xok_host.abi.errors import UdfFailed
from xok_host.abi.template import Partitions, Template
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB
from xok_host.abi.udf import META, Function, load
from xok_host.kernel.local import LocalEnvironment, LocalXok
from xok_host.kernel.xn.template import Template as Accepted

SLOTS = 8
"""Partitions in each sector, of both types."""
ENTRY = struct.Struct("<HH")
EXTENT = struct.Struct("<II")
MAX_EXTENTS = 16


def heap_owns() -> bytes:
    f = Function()
    sector = f.var((f.part >> 3) * SECTOR)
    entry = f.var(META + sector + (f.part & 7) * ENTRY.size)
    offset = f.var(load(entry, 2))
    with f.if_(offset != 0):
        extents = f.var(load(entry + 2, 2))
        with f.if_(extents > MAX_EXTENTS):
            f.set(extents, MAX_EXTENTS)
        with f.for_range(0, extents) as i:
            at = f.var(META + sector + offset + i * EXTENT.size)
            count = f.var(load(at + 4, 4))
            with f.if_(count != 0):
                f.emit(load(at, 4), count, int(TYPE_XN_DB))
    return f.finish()


def heap(name: str = "heap", **changes: Any) -> Template:
    given: dict[str, Any] = {"parts": SECTORS * SLOTS, "partitions": Partitions.TRACED, "owns": heap_owns()}
    return Template(name=name.encode(), **(given | changes))


BASED = struct.Struct("<QH8H")
DELTAS_AT = 10


def based_owns() -> bytes:
    f = Function()
    sector = f.var(META + (f.part >> 3) * SECTOR)
    delta = f.var(load(sector + DELTAS_AT + (f.part & 7) * 2, 2))
    with f.if_(delta != 0):
        f.emit(load(sector, 8) + delta, 1, int(TYPE_XN_DB))
    return f.finish()


def based_uses(by_looking: bool = False) -> bytes:
    """How many partitions read the base: as many as there are deltas, or as the libFS says in `live`."""
    f = Function()
    at = f.var(f.part * SECTOR)
    live = f.var(load(META + at + 8, 2))
    if by_looking:
        f.set(live, 0)
        with f.for_range(0, SLOTS) as i:
            with f.if_(load(META + at + DELTAS_AT + i * 2, 2) != 0):
                f.set(live, live + 1)
    with f.if_(live != 0):
        f.emit(at, 8, live)
    f.emit(at + DELTAS_AT, 2 * SLOTS, 1)
    return f.finish()


def based(name: str = "based", by_looking: bool = False, **changes: Any) -> Template:
    given: dict[str, Any] = {
        "parts": SECTORS * SLOTS,
        "partitions": Partitions.OVERLAPPING,
        "owns": based_owns(),
        "uses": based_uses(by_looking),
    }
    return Template(name=name.encode(), **(given | changes))


def choosy(db: int, emit: bool = False) -> Template:
    """Two partitions of a byte each; at one block of the disk, `refs` reads the other's byte, or says something."""
    f, byte = Function(), Function()
    own = f.var(load(META + f.part, 1))
    with f.if_(f.address == (1 << 56 | db << 12)):
        if emit:
            f.emit_ref(f.address + 1)
        else:
            f.set(own, load(META + 1 - f.part, 1))
    byte.return_(load(META + byte.part, 1))
    return Template(name=b"choosy", parts=2, partitions=Partitions.TRACED, refs=f.finish(), owns=byte.finish())


@dataclass
class Tree:
    """A root of a type whose partitions are traced."""

    local: LocalXok
    env: LocalEnvironment
    root: int
    cap: int
    type: int

    @classmethod
    def of(cls, local: LocalXok, template: Template, name: str = "tree") -> Tree:
        env = local.environment()
        kind = install_type(env, template.name.decode(), template.pack())
        root = env.call("install_mount", DEV, 0, 1, kind, data=name.encode())
        return cls(local, env, root.r0, root.r1, kind)

    def accepted(self) -> Accepted:
        found = self.local.kernel.devices[DEV].types[self.type].template
        assert isinstance(found, Accepted)
        return found

    def bytes(self, db: int = 0) -> bytes:
        return self.env.call("readb", da(db or self.root), BLOCK, cap=self.cap, out_bytes=BLOCK).data

    def op(
        self,
        part: int,
        *writes: tuple[int, bytes],
        kind: OpKind = OpKind.MODIFY,
        dependents: Sequence[int] = (),
        at: int = 0,
        **fields: int,
    ) -> Op:
        return Op(kind, da(at or self.root), part, writes=writes, dependents=dependents, **fields)

    def transact(self, *ops: Op) -> None:
        self.env.call("transact", cap=self.cap, data=pack_transaction(ops))

    def free(self, count: int = 1, hint: int = 0) -> int:
        return self.env.call("findfree", DEV, hint, count).r0

    def alloc(self, part: int, db: int, *writes: tuple[int, bytes], **more: Any) -> Op:
        return self.op(
            part, *writes, kind=OpKind.ALLOC, db=db, count=1, type=int(TYPE_XN_DB), flags=OpFlag.ZERO, **more
        )


def outputs(template: Accepted, meta: bytes, db: int) -> list[Any]:
    """What every partition says of a block, asked one by one, each with all of its sector before it."""
    out: list[Any] = []
    for part in range(template.parts):
        try:
            said = [template.owns(meta, part), template.refs(meta, part, da(db)), template.refcnt(meta, part, da(db))]
            out.append([one.tolist() for one in said])
        except UdfFailed as fault:
            out.append(str(fault))
    return out
