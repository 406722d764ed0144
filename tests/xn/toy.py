"""A library file system for tests: nodes that own blocks and refer to elements, with the smallest possible format.

A node is one block, each sector one partition:

    0    12 pointers {block u64, count u32, type u32, generation u64}
    288  8 elements' reference counts, u64 each (an element's da is the address of its count)
    352  18 references, da u64 each
    496  generation u64: that of the pointer to this node, or 0 while the sector was never written

Generations let a test see on the disk alone whether a pointer and what it leads to belong together.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from xok_host.abi.calls import Op, OpFlag, OpKind, pack_extents, pack_transaction
from xok_host.abi.errors import XokError
from xok_host.abi.template import Template
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB, Right, disk_address
from xok_host.abi.udf import META, Function, load
from xok_host.kernel.local import DEV, LocalEnvironment, LocalXok

POINTERS, ELEMENTS, REFERENCES = 12, 8, 18
POINTER = struct.Struct("<QIIQ")
COUNTS_AT, REFERENCES_AT, GENERATION_AT = 288, 352, 496
NO_PARTITION = 0xFFFF_FFFF


def access() -> bytes:
    f = Function()
    f.emit(f.part * SECTOR, SECTOR, 0)
    return f.finish()


def owns() -> bytes:
    f = Function()
    sector = f.var(META + f.part * SECTOR)
    with f.for_range(0, POINTERS) as i:
        at = f.var(sector + i * POINTER.size)
        count = f.var(load(at + 8, 4))
        with f.if_(count != 0):
            f.emit(load(at, 8), count, load(at + 12, 4))
    return f.finish()


def refs() -> bytes:
    f = Function()
    sector = f.var(META + f.part * SECTOR)
    with f.for_range(0, REFERENCES) as i:
        target = f.var(load(sector + REFERENCES_AT + i * 8, 8))
        with f.if_(target != 0):
            f.emit_ref(target)
    return f.finish()


def refcnt() -> bytes:
    f = Function()
    offset = f.var(f.part * SECTOR + COUNTS_AT)
    with f.for_range(0, ELEMENTS) as i:
        count = f.var(load(META + offset + i * 8, 8))
        with f.if_(count != 0):
            f.emit(f.address + offset + i * 8, count, 0)
    return f.finish()


def guard() -> bytes:
    f = Function()
    f.emit_cap(f.tree, int(Right.READ | Right.WRITE))
    return f.finish()


def template(name: str = "toy", **programs: bytes) -> bytes:
    given = {"access": access(), "owns": owns(), "refs": refs(), "refcnt": refcnt(), "guard": guard()}
    given.update(programs)
    return Template(name=name.encode(), parts=SECTORS, **given).pack()


@dataclass
class Sector:
    """The contents of one sector of a node, as Python values."""

    pointers: list[tuple[int, int, int, int]] = field(default_factory=list)
    counts: list[int] = field(default_factory=lambda: [0] * ELEMENTS)
    references: list[int] = field(default_factory=list)
    generation: int = 0

    def pack(self) -> bytes:
        raw = bytearray(SECTOR)
        for i, pointer in enumerate(self.pointers):
            POINTER.pack_into(raw, i * POINTER.size, *pointer)
        struct.pack_into(f"<{ELEMENTS}Q", raw, COUNTS_AT, *self.counts)
        struct.pack_into(f"<{len(self.references)}Q", raw, REFERENCES_AT, *self.references)
        struct.pack_into("<Q", raw, GENERATION_AT, self.generation)
        return bytes(raw)

    @classmethod
    def unpack(cls, raw: bytes) -> Sector:
        pointers = [POINTER.unpack_from(raw, i * POINTER.size) for i in range(POINTERS)]
        references = struct.unpack_from(f"<{REFERENCES}Q", raw, REFERENCES_AT)
        return cls(
            [pointer for pointer in pointers if pointer[1]],
            list(struct.unpack_from(f"<{ELEMENTS}Q", raw, COUNTS_AT)),
            [target for target in references if target],
            struct.unpack_from("<Q", raw, GENERATION_AT)[0],
        )

    def copy(self) -> Sector:
        return Sector(list(self.pointers), list(self.counts), list(self.references), self.generation)


def da(db: int, offset: int = 0) -> int:
    return disk_address(DEV, db, offset)


def element(db: int, sector: int, index: int) -> int:
    """The da of an element."""
    return da(db, sector * SECTOR + COUNTS_AT + index * 8)


def install_type(env: LocalEnvironment, name: str, raw: bytes, dev: int = DEV) -> int:
    """The four steps of chapter 8, B.1."""
    count = (len(raw) + BLOCK - 1) // BLOCK
    installed = env.call("install_mount", dev, 0, count, TYPE_XN_DB, data=name.encode())
    pages = take_pages(env, installed.r1, count)
    ops = []
    for index, page in enumerate(pages):
        env.page(page)[:] = raw[index * BLOCK : (index + 1) * BLOCK].ljust(BLOCK, b"\0")
        db = installed.r0 + index
        ops.append(Op(OpKind.PUBLISH, disk_address(dev, installed.r0), NO_PARTITION, db=db, count=1, page=page))
    env.call("transact", cap=installed.r1, data=pack_transaction(ops))
    env.call("writebackv", dev, data=pack_extents([(installed.r0, count, 0)]))
    env.call("flush", dev)
    return env.call("type_import", dev, data=name.encode()).r0


def take_pages(env: LocalEnvironment, cap: int, count: int) -> list[int]:
    got = env.call("page_alloc", count, cap=cap, out_bytes=8 * count)
    return list(struct.unpack(f"<{count}Q", got.data))


class Toy:
    """A toy file system on a local exokernel: operations by hand, one method each."""

    def __init__(self, local: LocalXok, name: str = "toy", env: LocalEnvironment | None = None) -> None:
        self.local = local
        self.env = env or local.environment()
        type_name = f"{name}-node"
        self.type = install_type(self.env, type_name, template(type_name))
        root = self.env.call("install_mount", DEV, 0, 1, self.type, data=name.encode())
        self.root, self.cap = root.r0, root.r1

    def flags(self, db: int) -> int:
        entry = self.env.registry.lookup(da(db) >> 12)
        assert entry is not None
        return entry.flags

    def entry(self, db: int):  # type: ignore[no-untyped-def]
        return self.env.registry.lookup(da(db) >> 12)

    def sector(self, db: int, sector: int) -> Sector:
        """As it is in core now."""
        raw = self.env.call("readb", da(db, sector * SECTOR), SECTOR, cap=self.cap, out_bytes=SECTOR).data
        return Sector.unpack(raw)

    def free_block(self, count: int = 1, hint: int = 0) -> int:
        return self.env.call("findfree", DEV, hint, count).r0

    def page(self, contents: bytes) -> int:
        page = take_pages(self.env, self.cap, 1)[0]
        self.env.page(page)[:] = contents.ljust(BLOCK, b"\0")
        return page

    def transact(self, *ops: Op) -> int:
        return self.env.call("transact", cap=self.cap, data=pack_transaction(ops)).r0

    def modify(self, node: int, sector: int, new: Sector, kind: OpKind = OpKind.MODIFY, **fields: int) -> Op:
        return Op(kind, da(node), sector, writes=[(sector * SECTOR, new.pack())], **fields)

    def add_data(self, db: int, sector: int, contents: bytes, generation: int = 0) -> int:
        """A data block with these contents below a node's sector; its number."""
        new, block = self.sector(db, sector), self.free_block()
        new.pointers.append((block, 1, TYPE_XN_DB, generation))
        page = self.page(contents)
        self.transact(
            self.modify(
                db, sector, new, OpKind.ALLOC, db=block, count=1, type=TYPE_XN_DB, page=page, flags=OpFlag.PAGES
            )
        )
        return block

    def add_node(self, db: int, sector: int, generation: int = 0) -> int:
        new, block = self.sector(db, sector), self.free_block()
        new.pointers.append((block, 1, self.type, generation))
        self.transact(self.modify(db, sector, new, OpKind.ALLOC, db=block, count=1, type=self.type))
        return block

    def remove(self, db: int, sector: int, block: int) -> None:
        """Free a block below a node's sector."""
        new = self.sector(db, sector)
        gone = next(pointer for pointer in new.pointers if pointer[0] == block)
        new.pointers.remove(gone)
        self.transact(self.modify(db, sector, new, OpKind.FREE, db=block, count=gone[1], type=gone[2]))

    def writeback(self, *blocks: int, mask: int = 0) -> None:
        self.env.call("writebackv", DEV, data=pack_extents([(db, 1, mask) for db in blocks]))

    def flush(self) -> None:
        self.env.call("flush", DEV)

    def durable(self, *blocks: int) -> None:
        self.writeback(*blocks)
        self.flush()

    def code(self, name: str, *scalars: int, cap: int | None = None, data: bytes = b"") -> type[XokError] | None:
        """The refusal of a call, or None when it succeeds."""
        try:
            self.env.call(name, *scalars, cap=self.cap if cap is None else cap, data=data)
        except XokError as error:
            return type(error)
        return None
