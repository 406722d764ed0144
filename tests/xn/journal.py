"""A journalling library file system for tests: the toy, with logs whose `reboot` program reports what is not written.

The root block is a toy node whose type has a `reboot` program that says nothing: its tree takes part.  In its last
sector it owns a log, a block of records in each sector: (address in the holder's sector, block, session).
"""

from __future__ import annotations

import struct

from toy import DEV, Sector, Toy, da, install_type, template

from xok_host.abi.calls import Op, OpFlag, OpKind
from xok_host.abi.declare import Structure, array, u64
from xok_host.abi.derive import derive, reports
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB, disk_address
from xok_host.abi.udf import META, Function, load
from xok_host.kernel.local import LocalEnvironment, LocalXok

RECORD = Structure(
    "report",
    u64("holder", "address in the sector that points"),
    u64("block", "which may not be written"),
    u64("session", "in which it was pointed to"),
    meaning=[reports("holder", "block", "session")],
)
LOG = Structure("log sector", array("records", RECORD, SECTOR // RECORD.size), size=SECTOR)
LOG_SECTOR = SECTORS - 1
Edge = tuple[int, int, int]
"""Holder, sector, block."""


def silent() -> bytes:
    return Function().finish()


def moody() -> bytes:
    """A reboot program that faults when a partition begins with a byte that is not 0."""
    f = Function()
    with f.if_(load(META + f.part * SECTOR, 1) != 0):
        f.emit(load(META + BLOCK, 8), 0, 0)
    return f.finish()


class Journal(Toy):
    """`consents` False: the root's type has no reboot program."""

    def __init__(
        self,
        local: LocalXok,
        name: str = "journal",
        env: LocalEnvironment | None = None,
        *,
        consents: bool = True,
        log: bytes | None = None,
        dev: int = DEV,
    ) -> None:
        self.local = local
        self.env = env or local.environment()
        self.name = name
        self.type = install_type(self.env, f"{name}-node", template(f"{name}-node"))
        raw = derive(LOG, f"{name}-log".encode()).pack() if log is None else log
        self.log_type = install_type(self.env, f"{name}-log", raw)
        programs = {"reboot": silent()} if consents else {}
        self.root_type = install_type(self.env, f"{name}-root", template(f"{name}-root", **programs))
        made = self.env.call("install_mount", dev, 0, 1, self.root_type, data=name.encode())
        self.root, self.cap = made.r0, made.r1
        self.records: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        self.log = self.add_log(self.root, LOG_SECTOR)
        self.local.sync()

    @property
    def session(self) -> int:
        return int(struct.unpack("<6Q", self.env.call("info", DEV, out_bytes=64).data)[5])

    @property
    def known(self):  # type: ignore[no-untyped-def]
        """What XN knows of the device's reports."""
        return self.local.kernel.devices[DEV].reports

    def add_of(self, db: int, sector: int, kind: int, generation: int = 0, **fields: int) -> int:
        """A block of that type below a node's sector; its number."""
        new, block = self.sector(db, sector), fields.pop("block", 0) or self.free_block()
        new.pointers.append((block, 1, kind, generation))
        self.transact(self.modify(db, sector, new, OpKind.ALLOC, db=block, count=1, type=kind, **fields))
        return block

    def add_log(self, db: int, sector: int) -> int:
        return self.add_of(db, sector, self.log_type)

    def log_op(self, log: int, sector: int, records: list[tuple[int, int, int]]) -> Op:
        raw = LOG.pack(records=[{"holder": h, "block": b, "session": s} for h, b, s in records])
        return Op(OpKind.MODIFY, da(log), sector, writes=[(sector * SECTOR, raw)])

    def report(self, *edges: Edge, sector: int = 0, log: int = 0, session: int | None = None) -> None:
        """Take these into the log, in core."""
        made = self.session if session is None else session
        at = (log or self.log, sector)
        records = self.records.setdefault(at, [])
        records += [(disk_address(0, db, s * SECTOR), block, made) for db, s, block in edges]
        self.transact(self.log_op(*at, records))

    def withdraw(self, *edges: Edge, sector: int = 0, log: int = 0) -> None:
        """Take them out again."""
        gone = {(disk_address(0, db, s * SECTOR), block) for db, s, block in edges}
        at = (log or self.log, sector)
        self.records[at] = [record for record in self.records.get(at, []) if record[:2] not in gone]
        self.transact(self.log_op(*at, self.records[at]))

    def fill(self, db: int, sector: int, block: int, contents: bytes) -> None:
        """First or new contents of a data block."""
        page = self.page(contents)
        self.transact(Op(OpKind.PUBLISH, da(db), sector, db=block, count=1, page=page))

    def early(self, db: int, sector: int, kind: int = TYPE_XN_DB, generation: int = 0) -> int:
        """A block whose pointer is durable and reported, and which was never written; its number."""
        block = self.add_of(db, sector, kind, generation)
        self.report((db, sector, block))
        self.durable(self.log)
        self.durable(db)
        return block

    def with_pages(self, contents: bytes) -> dict[str, int]:
        return {"page": self.page(contents), "flags": int(OpFlag.PAGES)}


def on_disk(local: LocalXok, db: int, sector: int) -> Sector:
    """A node's sector as it is on the disk."""
    return Sector.unpack(bytes(local.disk.read_block(db))[sector * SECTOR : (sector + 1) * SECTOR])
