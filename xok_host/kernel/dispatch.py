"""The calls, one method each: operands are checked here, XN's parts do the work.

A handler gives (r0, r1, data), or a `Pending` for what may complete later, or raises the `XokError` that answers the
call.  The call table (xok_host.abi.calltable) says what each takes and how it fails.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cython

from xok_host.abi import ops
from xok_host.abi.calls import EXTENT, MAX_OPS, TEMPORARY_ROOT, CallNumber, CatalogueEntry, pack_transaction
from xok_host.abi.channel import Entry
from xok_host.abi.errors import (
    BadCall,
    BadCapability,
    BogusPartition,
    Exists,
    InUse,
    LimitReached,
    MediaError,
    NoSpace,
    NotClean,
    NotFound,
    NotFree,
    NotInCore,
    Tainted,
    WrongType,
    XokError,
)
from xok_host.abi.types import (
    ALL_SECTORS,
    BLOCK,
    BLOCK_LIMIT,
    CHUNK_PAGES,
    SECTORS,
    TYPE_XN_DB,
    TYPE_XN_TYPE,
    Flag,
    Right,
    disk_address,
)
from xok_host.abi.views import REGISTRY_ENTRY_BYTES
from xok_host.kernel.capability import TREE, Capability
from xok_host.kernel.env import MAX_PAGE_PINS, MAX_PAGES, MAX_PINS, MAX_WRITE_TREES, Environment
from xok_host.kernel.extents import Extents
from xok_host.kernel.pages import DATA
from xok_host.kernel.tables import REGISTRY_ENTRIES
from xok_host.kernel.xn import apply, bind, order, traced, txn, types, udf
from xok_host.kernel.xn.catalogue import FLAG_TAINTED, FLAG_TEMPORARY, check_name
from xok_host.kernel.xn.device import Device
from xok_host.kernel.xn.io import DeviceIo
from xok_host.kernel.xn.pending import Pending, new_pending
from xok_host.kernel.xn.registry import Cached, Registry
from xok_host.kernel.xn.shadow import Transaction
from xok_host.kernel.xn.verify import UDF_BUDGET

if TYPE_CHECKING:
    from xok_host.kernel.kernel import Kernel

Result = tuple[int, int, bytes] | Pending
Handler = Callable[[Environment, Entry], Result]

OK = (0, 0, b"")
MAX_ENUM = 4096
"""Extents that one UDF_ENUM may give."""
MAX_READB = 64
"""Blocks that one READB may reach over."""
MAX_ROOT_BLOCKS = 256
RESERVED_SHIFT = 32
"""`CatalogueEntry.flags` of raw blocks installed under a reserved name: the type id that they will have."""
_DEVICE_BYTES = BLOCK_LIMIT * BLOCK
_TRIPLE = struct.Struct("<QQQ")
_ALL = cython.declare(cython.int, ALL_SECTORS)
_ATTACHED = cython.declare(cython.uint, int(Flag.ATTACHED))
_BLOCK_LIMIT = cython.declare(cython.ulonglong, BLOCK_LIMIT)
_META = cython.declare(cython.uint, int(Flag.META))
_READING = cython.declare(cython.uint, int(Flag.READING))
_ROOT = cython.declare(cython.uint, int(Flag.ROOT))
_TEMPORARY = cython.declare(cython.uint, int(Flag.TEMPORARY))
_READ = int(Right.READ)
_WRITE = cython.declare(cython.int, int(Right.WRITE))
_VALID = cython.declare(cython.uint, int(Flag.VALID))


class Dispatch:
    """Call number to handler."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.handlers: dict[int, Handler] = {
            int(number): getattr(self, number.name.lower())
            for number in CallNumber
            if hasattr(self, number.name.lower())
        }

    # ---- helpers

    def _tree(self, env: Environment, index: cython.longlong, rights: cython.int) -> cython.ulonglong:
        number: cython.ulonglong = env.capabilities.tree(index, rights)
        return number or env.capabilities.get(index, TREE, rights).id  # which says what is wrong

    def _cached(self, da: int) -> Cached:
        device = self._kernel.device(da >> 56)
        entry = device.get(da >> 12 & (1 << 44) - 1)
        if entry is None or not entry.flags & _VALID:
            raise NotInCore(f"block {da >> 12 & (1 << 44) - 1} is not in the registry")
        return entry

    def _readable(self, env: Environment, da: int, index: int) -> Cached:
        """The block in core, if the capability lets the caller read it."""
        capability = self._tree(env, index, _READ)
        entry = self._cached(da)
        if entry.access is None or capability not in entry.access.read:
            raise BadCapability(f"the capability does not allow reading block {entry.db}")
        return entry

    # ---- pages

    def null(self, env: Environment, call: Entry) -> Result:
        return OK

    def page_alloc(self, env: Environment, call: Entry) -> Result:
        capability = self._tree(env, call.cap, _READ | _WRITE)
        count = call.a0
        if not 0 < count <= CHUNK_PAGES:
            raise BadCall(f"{count} pages, not 1 to {CHUNK_PAGES}")
        pages = self._kernel.pages
        most = min(MAX_PAGES, pages.limit // 2)
        if len(env.pages) + count > most:
            raise LimitReached(f"{most} unpublished pages in one environment")
        if capability not in env.trees and len(env.trees) >= MAX_WRITE_TREES:
            raise LimitReached(f"pages for {MAX_WRITE_TREES} trees in one environment: let another write the others")
        if len(env.pages) + count + len(env.unsettled) > pages.limit * 3 // 4:
            apply.check_share(self._kernel, env, len(env.pages) + count)
        access = self._kernel.access_by_capability(capability)
        runs = pages.alloc_runs(pages.arena(access, env.id, DATA), count)
        for first, length in runs:
            env.pages.add(first, length)
        env.trees.add(capability)
        return count, 0, _numbers(runs, count)

    def page_free(self, env: Environment, call: Entry) -> Result:
        if len(call.data) % 8:
            raise BadCall("page numbers have 8 bytes each")
        if len(call.data) > 8 * len(env.pages):
            raise BadCapability("these are more pages than the caller has")
        numbers = [number for (number,) in struct.iter_unpack("<Q", call.data)]
        if len(set(numbers)) != len(numbers) or not all(number in env.pages for number in numbers):
            raise BadCapability("a page is not an unpublished one of the caller's")
        for number in numbers:
            env.pages.remove(number, 1)
            self._kernel.pages.drop(number)
        return OK

    def chunk_map(self, env: Environment, call: Entry) -> Result:
        chunk = self._kernel.pages.chunk(call.a0)
        if chunk is None:
            raise NotFound(f"no chunk {call.a0}")
        arena = chunk.arena
        writable = arena.writer == env.id
        if not writable and not any(
            held.kind == TREE and held.rights & _READ and held.id in arena.access.read for _, held in env.capabilities
        ):
            raise BadCapability(f"no capability lets the caller read chunk {call.a0}")
        chunk.mapped.add(env.id)
        return int(writable), 0, b""

    def pin(self, env: Environment, call: Entry) -> Result:
        entry = self._readable(env, call.a0, call.cap)
        if entry.generation != call.a1:
            raise NotInCore(f"block {entry.db} is of generation {entry.generation}, not {call.a1}")
        if env.npins >= MAX_PINS:
            raise LimitReached(f"{MAX_PINS} pins in one environment")
        if entry.pins >= MAX_PAGE_PINS:
            raise LimitReached(f"{MAX_PAGE_PINS} pins on block {entry.db}")
        self._kernel.pin(env, entry)
        return entry.page, 0, b""

    def unpin(self, env: Environment, call: Entry) -> Result:
        self._kernel.unpin(env, call.a0)
        return OK

    # ---- types and roots

    def install_mount(self, env: Environment, call: Entry) -> Result:
        kernel = self._kernel
        device = kernel.device(call.a0)
        db, count, type_id = call.a1, call.a2, call.a3 & ~TEMPORARY_ROOT
        temporary = call.a3 & TEMPORARY_ROOT != 0
        name = check_name(call.data)
        if not 0 < count <= MAX_ROOT_BLOCKS:
            raise BadCall(f"a root has 1 to {MAX_ROOT_BLOCKS} blocks")
        if type_id == TYPE_XN_TYPE:
            raise WrongType("types are made by type_import")
        xtype = device.type_of(type_id)
        taken = device.catalogue.get(name)
        reserved = _reservation(taken, env) if type_id == TYPE_XN_DB else 0
        if taken is not None and not reserved:
            raise Exists(f"{name!r} exists")
        if reserved and temporary:
            raise WrongType(f"{name!r} is to become a type, and types survive")
        if not device.catalogue.room():
            raise NoSpace("the catalogue is full")
        if not reserved:
            device.catalogue.check_share(env.uid)
        if not db:
            db = device.freemap.find(device.superblock.first, count) or 0
            if not db:
                raise NoSpace(f"no {count} free blocks in a row", r0=device.waiting_frees)
        elif not device.freemap.is_free(db, count):
            raise NotFree(f"not all of {count} blocks at {db} are free")
        if xtype.traced:
            traced.check_empty(xtype, db, count, UDF_BUDGET)
        apply.check_share(kernel, env, count)
        if not kernel.make_room(count):
            raise LimitReached("the registry is full")
        tree = kernel.new_capability_id()
        access = kernel.access_by_capability(tree)
        pages = kernel.pages.alloc_run(kernel.pages.arena(access), count)
        try:
            index = env.capabilities.add(Capability(TREE, tree, Right.READ | Right.WRITE | Right.GRANT, name))
        except LimitReached:
            for page in pages:
                kernel.pages.drop(page)
            raise
        device.freemap.allocate(db, count, temporary)
        device.counters.add("blocks_allocated", count)
        flags = FLAG_TEMPORARY if temporary else reserved << RESERVED_SHIFT
        if reserved:
            device.catalogue.remove(name)
        device.catalogue.add(
            CatalogueEntry(name, db, count, type_id, tree, CatalogueEntry.ROOT, env.uid, flags),
            pending=True,
        )
        blocks = []
        for block, page in zip(range(db, db + count), pages, strict=True):
            kernel.pages.zero(page)
            entry = device.new_entry(block, xtype, access)
            entry.tree = tree
            entry.flags |= _ROOT | _VALID | (_TEMPORARY if temporary else 0)
            entry.parent_da = disk_address(device.number, db)
            entry.linked = entry.anchored = False
            entry.durable = 0
            apply.charge(env, entry)
            entry.dirty = ALL_SECTORS
            entry.sequence = 1
            if not xtype.data:
                entry.changed = [1] * SECTORS
            device.insert(entry)
            device.set_page(entry, page)
            device.registry.publish(entry)
            blocks.append(entry)
        device.roots[name] = blocks
        return db, index, b""

    def type_import(self, env: Environment, call: Entry) -> Result:
        device = self._kernel.device(call.a0)
        name = check_name(call.data)
        entry = device.catalogue.find(name).entry
        if entry.kind != CatalogueEntry.ROOT or entry.type != TYPE_XN_DB:
            raise WrongType(f"{name!r} is not raw blocks")
        if entry.flags & FLAG_TEMPORARY:
            raise WrongType(f"{name!r} is temporary, and types survive")
        if not any(
            held.kind == TREE and held.id == entry.capability and held.rights & _WRITE for _, held in env.capabilities
        ):
            raise BadCapability(f"no capability of the caller's allows writing {name!r}")
        blocks = device.root_entries(entry)
        if blocks is None:
            raise NotInCore(f"the blocks of {name!r} are not in core: mount it")
        for block in blocks:
            if block.dirty or block.in_flight or block.written or block.durable != ALL_SECTORS:
                raise Tainted(f"block {block.db} is not durable: write it back and flush", r0=block.db)
        raw = b"".join(bytes(device.pages.view(block.page)) for block in blocks)
        type_id = entry.flags >> RESERVED_SHIFT or device.catalogue.next_type
        xtype = types.load(type_id, name, raw)
        if not entry.flags >> RESERVED_SHIFT:
            device.catalogue.new_type_id()
        for block in blocks:
            device.forget(block)  # the writer's own pages: a template never changes any more
        device.roots.pop(name, None)
        device.catalogue.change(name, kind=CatalogueEntry.TYPE, type=type_id, flags=0)
        device.types[type_id] = xtype
        return type_id, 0, b""

    def reserve_type(self, env: Environment, call: Entry) -> Result:
        device = self._kernel.device(call.a0)
        name = check_name(call.data)
        found = device.catalogue.get(name)
        if found is not None:
            if reserved := _reservation(found, env):
                return reserved, 0, b""
            raise Exists(f"{name!r} exists")
        if not device.catalogue.room():
            raise NoSpace("the catalogue is full")
        device.catalogue.check_share(env.uid)
        type_id = device.catalogue.new_type_id()
        device.catalogue.add(CatalogueEntry(name, 0, 0, type_id, 0, CatalogueEntry.RESERVED, env.uid, 0), pending=False)
        return type_id, 0, b""

    def mount(self, env: Environment, call: Entry) -> Result:
        kernel = self._kernel
        device = kernel.device(call.a0)
        name = check_name(call.data)
        entry = device.catalogue.find(name).entry
        if entry.kind != CatalogueEntry.ROOT:
            raise NotFound(f"{name!r} is no root")
        capability = self._tree(env, call.cap, _READ)
        if capability != entry.capability:
            raise BadCapability(f"the capability is not for {name!r}")
        if entry.flags & FLAG_TAINTED:
            raise NotClean(f"reconstruction found violations in {name!r}, which `xok repair {name}` may mend")
        xtype = device.type_of(entry.type)
        pending = new_pending()
        pending.r0 = disk_address(device.number, entry.db)
        pending.r1 = entry.count
        pending.data = entry.pack()
        access = kernel.access_by_capability(capability)
        for db in range(entry.db, entry.db + entry.count):
            cached = device.get(db)
            if cached is not None and cached.flags & _ROOT:
                if cached.flags & _READING:
                    device.io.await_read(cached, pending)
                continue
            if cached is not None:
                if not cached.evictable() or cached.flags & _READING:
                    raise InUse(f"block {db} is in quarantine and being read: try again")
                device.forget(cached)
            page = kernel.pages.alloc(kernel.pages.arena(access))
            cached = device.new_entry(db, xtype, access)
            cached.tree = capability
            cached.flags |= _ROOT | _ATTACHED
            cached.parent_da = disk_address(device.number, entry.db)
            try:
                bind._start(device, cached, page)
            except XokError:
                xtype.cached -= 1
                raise
            device.io.read([cached], pending)
        device.roots[name] = [
            block for db in range(entry.db, entry.db + entry.count) if (block := device.get(db)) is not None
        ]
        return pending

    def type_mount(self, env: Environment, call: Entry) -> Result:
        kernel = self._kernel
        device = kernel.device(call.a0)
        name = check_name(call.data)
        entry = device.catalogue.find(name).entry
        if entry.kind != CatalogueEntry.TYPE:
            raise NotFound(f"{name!r} is no type")
        if entry.type in device.types:
            return entry.type, 0, b""
        pending = new_pending()
        pending.r0 = entry.type
        pages = device.pages.alloc_run(device.own_arena, entry.count)
        left = [entry.count]

        def arrived(db: int, errno: int) -> None:
            left[0] -= 1
            if errno:
                pending.fail(MediaError(f"block {db}: the device reports error {errno}"))
            if not left[0]:
                raw = b"".join(bytes(device.pages.view(page)) for page in pages)
                for page in pages:
                    device.pages.drop(page)
                try:
                    if pending.error is None and entry.type not in device.types:
                        device.types[entry.type] = types.load(entry.type, name, raw)
                except XokError as error:
                    pending.fail(error)
                pending.release()

        pending.hold()
        for index, page in enumerate(pages):
            device.io.read_own(entry.db + index, page, arrived)
        return pending

    def uninstall_mount(self, env: Environment, call: Entry) -> Result:
        device = self._kernel.device(call.a0)
        name = check_name(call.data)
        entry = device.catalogue.find(name).entry
        if entry.kind == CatalogueEntry.RESERVED:
            if entry.uid != env.uid:
                raise BadCapability(f"{name!r} is not the caller's")
            device.catalogue.remove(name)
            return OK
        capability = self._tree(env, call.cap, _WRITE)
        if capability != entry.capability:
            raise BadCapability(f"the capability is not for {name!r}")
        blocks = device.roots.get(name)
        if entry.kind == CatalogueEntry.TYPE:
            xtype = device.types.get(entry.type)
            if xtype is not None and xtype.cached:
                raise InUse(f"{xtype.cached} blocks of type {name!r} are cached")
            if any(
                other.type == entry.type for other in device.catalogue.entries() if other.kind == CatalogueEntry.ROOT
            ):
                raise InUse(f"a root is of type {name!r}")
            if log := device.reports.log_of_type(entry.type):
                raise InUse(f"block {log}, of type {name!r}, reports what was never written: take that out")
            device.types.pop(entry.type, None)
        else:
            if not blocks or any(block.dead or not block.flags & _VALID for block in blocks):
                raise InUse(f"mount {name!r} first: it must be seen that it owns nothing")
            template = blocks[0].xtype.template if blocks[0].xtype is not None else None
            since = template.spent if template is not None else 0
            for block in blocks:
                if template is not None and template.owns_all(device.pages.view(block.page), since):
                    raise InUse(f"{name!r} still owns blocks")
                if device.reports.is_log(block.db):
                    raise InUse(f"block {block.db} of {name!r} reports what was never written: take that out")
                if block.lock or block.pins:
                    raise InUse(f"block {block.db} is locked or pinned")
        record = order.WillFree(device, entry.db, entry.count)
        busy = False
        for db in range(entry.db, entry.db + entry.count):
            cached = device.get(db)
            if cached is not None:
                if cached.flights:
                    cached.will_free = record
                    record.conditions += 1
                    busy = True
                order.release_waiters(cached)
                device.forget(cached)
        device.roots.pop(name, None)
        if device.catalogue.remove(name):
            record.conditions += 1
            device.catalogue_frees.append(record)
            busy = True
        if busy:
            device.waiting_frees += entry.count
        else:
            device.free_now(record)
        return OK

    # ---- the buffer cache

    def read_and_insert(self, env: Environment, call: Entry) -> Result:
        device = self._kernel.device(call.a0)
        pending = new_pending()
        pending.r0 = bind.read_and_insert(device, Extents(call.data), pending)
        return pending

    def insert_attr(self, env: Environment, call: Entry) -> Result:
        capability = self._tree(env, call.cap, _READ)
        device = self._kernel.device(call.a0 >> 56)
        parent = device.metadata(call.a0)
        bind.bind(device, parent, capability, Extents(call.data), None, True)
        return OK

    def insert_and_read(self, env: Environment, call: Entry) -> Result:
        capability = self._tree(env, call.cap, _READ)
        device: Device = self._kernel.device(call.a0 >> 56)
        pending: Pending = new_pending()
        extents = Extents(call.data)
        pending.r0 = bind.bind(device, device.metadata(call.a0), capability, extents, pending, False)
        return pending

    def delete_attr(self, env: Environment, call: Entry) -> Result:
        device: Device = self._kernel.device(call.a0)
        extents: Extents = Extents(call.data)
        bind.check_extents(device, extents)
        found: dict[Cached, None] = {}
        """Each once, however often it is named."""
        block: cython.ulonglong
        entry: Cached | None
        i: cython.Py_ssize_t
        for i in range(extents.n):
            for block in range(extents.db(i), extents.db(i) + extents.count(i)):
                entry = device.get(block)
                if entry is None:
                    continue
                if not entry.evictable() or entry.flags & _ROOT:
                    raise InUse(f"block {block} is dirty, pinned, locked, in flight, or a root")
                found[entry] = None
        for entry in found:
            device.forget(entry)
        return len(found), 0, b""

    def writeback(self, env: Environment, call: Entry) -> Result:
        if not call.a2:
            raise BadCall("no blocks; writebackv takes a list of extents")
        _check_total(call.a2)
        return self._write(call.a0, Extents(EXTENT.pack(call.a1, call.a2, call.a3 & ALL_SECTORS)))

    def writebackv(self, env: Environment, call: Entry) -> Result:
        return self._write(call.a0, Extents(call.data))

    def _write(self, dev: Any, extents: Extents) -> Result:
        device: Device = self._kernel.device(dev)
        io: DeviceIo = device.io
        pending: Pending = new_pending()
        registry: Registry = device.registry
        number: cython.ulonglong = device.number
        db: cython.ulonglong
        count: cython.ulonglong
        i: cython.Py_ssize_t
        runs: list[Any] = []
        _check_total(extents.total())
        for i in range(extents.n):
            db, count = extents.db(i), extents.count(i)
            _check_blocks(db, count)
            runs.append(registry.run(number << 44 | db, count, True))
        for i in range(extents.n):
            io.write_blocks(runs[i], extents.third(i) & _ALL or _ALL, pending)
        return pending

    def flush(self, env: Environment, call: Entry) -> Result:
        pending = new_pending()
        self._kernel.device(call.a0).io.flush(pending)
        return pending

    def transact(self, env: Environment, call: Entry) -> Result:
        return self.transaction(env, call.cap, call.data, 0), 0, b""

    def writeb(self, env: Environment, call: Entry) -> Result:
        most = MAX_OPS * BLOCK - call.a0 % BLOCK
        if not 0 < len(call.data) <= most:
            raise BadCall(f"{len(call.data)} bytes, not 1 to {most}")
        if (call.a0 & _DEVICE_BYTES - 1) + len(call.data) > _DEVICE_BYTES:
            raise BadCall("the bytes reach beyond all addresses of the device")
        return self.transaction(env, call.cap, pack_transaction(ops.writeb(call.a0, call.data)), 0), 0, b""

    def one_operation(self, env: Environment, call: Entry) -> Result:
        """The calls that are one operation (txn.SHAPES)."""
        return self.transaction(env, call.cap, call.data, call.number), 0, b""

    alloc = free = add_edge = set_type = move = swap = one_operation

    def transaction(self, env: Environment, cap: cython.longlong, data: bytes, number: cython.int) -> cython.long:
        """Carry out the operations in `data`, of which call `number` makes its demands (0: none); how many they are."""
        capability: cython.ulonglong = self._tree(env, cap, _WRITE)
        transaction: Transaction = Transaction.__new__(Transaction)
        transaction.begin(self._kernel, env, capability)
        try:
            txn.run(transaction, data, number)
        except XokError as error:
            error.fields.setdefault("r0", transaction.at)
            error.fields.setdefault("r1", transaction.at)
            raise
        return transaction.nops

    def readb(self, env: Environment, call: Entry) -> Result:
        if call.a1 > MAX_READB * BLOCK - call.a0 % BLOCK:
            raise BadCall(f"{call.a1} bytes are in more than {MAX_READB} blocks")
        _needs_room(call, call.a1)
        out = []
        at, end = call.a0, call.a0 + call.a1
        while True:
            entry = self._readable(env, at, call.cap)
            self._kernel.registry.touch(entry)
            stop = min(end, at - at % BLOCK + BLOCK)
            out.append(bytes(self._kernel.pages.view(entry.page)[at % BLOCK : at % BLOCK + stop - at]))
            at = stop
            if at == end:
                return call.a1, 0, b"".join(out)

    def mark_dirty(self, env: Environment, call: Entry) -> Result:
        device = self._kernel.device(call.a0)
        found = []
        extents: Extents = Extents(call.data)
        _check_total(extents.total())
        i: cython.Py_ssize_t
        block: cython.ulonglong
        for i in range(extents.n):
            mask = extents.third(i)
            if mask & ~ALL_SECTORS:
                raise BadCall(f"{mask:#x} is no sector mask")
            _check_blocks(extents.db(i), extents.count(i))
            for block in range(extents.db(i), extents.db(i) + extents.count(i)):
                entry = device.get(block)
                if entry is None or not entry.flags & _VALID:
                    raise NotInCore(f"block {block} is not in the registry")
                if entry.writer != env.id:
                    raise BadCapability(f"the page of block {block} is not the caller's to write")
                found.append((entry, mask or ALL_SECTORS))
        apply.check_share(self._kernel, env, len({entry for entry, _ in found if apply.adds(env, entry)}))
        for entry, mask in found:
            apply.charge(env, entry)
            entry.dirty |= mask
            entry.sequence += 1
            device.registry.renew(entry)
            device.registry.publish(entry)
        return OK

    # ---- reading XN's structures

    def read_attr(self, env: Environment, call: Entry) -> Result:
        device = self._kernel.device(call.a0 >> 56)
        entry = device.get(call.a0 >> 12 & (1 << 44) - 1)
        if entry is None:
            raise NotInCore("the block is not in the registry")
        _needs_room(call, REGISTRY_ENTRY_BYTES)
        return 0, 0, device.registry.image(entry)

    def read_catalogue(self, env: Environment, call: Entry) -> Result:
        entries = self._kernel.device(call.a0).catalogue.entries()
        mine = {held.id for _, held in env.capabilities if held.kind == TREE}
        shown = [entry if entry.capability in mine else _without_capability(entry) for entry in entries]
        return len(entries), 0, b"".join(entry.pack() for entry in shown)

    def dev_list(self, env: Environment, call: Entry) -> Result:
        devices = sorted(self._kernel.devices)
        _needs_room(call, 8 * len(devices))
        return len(devices), 0, struct.pack(f"<{len(devices)}Q", *devices)

    def info(self, env: Environment, call: Entry) -> Result:
        device = self._kernel.device(call.a0)
        superblock = device.superblock
        return (
            device.freemap.free,
            device.waiting_frees,
            struct.pack(
                "<6Q",
                device.nblocks,
                device.freemap.free,
                superblock.catalogue,
                superblock.freemap,
                (device.nblocks + 7) // 8,
                superblock.session,
            ),
        )

    def findfree(self, env: Environment, call: Entry) -> Result:
        device = self._kernel.device(call.a0)
        if not 0 < call.a2 <= device.nblocks:
            raise BadCall(f"{call.a2} blocks")
        db = device.freemap.find(call.a1 or device.superblock.first, call.a2)
        if db is None:
            waiting = device.waiting_frees
            raise NoSpace(f"no {call.a2} free blocks in a row; {waiting} wait for a flush to be freed", r0=waiting)
        return db, 0, b""

    def list_writeable(self, env: Environment, call: Entry) -> Result:
        device = self._kernel.device(call.a0)
        found = []
        for entry in device.dirty_blocks:
            if device.reports.writeable(entry):
                found.append(entry.db)
        return len(found), 0, struct.pack(f"<{len(found)}Q", *found)

    def root(self, env: Environment, call: Entry) -> Result:
        self._kernel.device(call.a0)
        return 0, 0, b""

    def get_refcnt(self, env: Environment, call: Entry) -> Result:
        entry = self._readable(env, call.a0, call.cap)
        xtype = entry.xtype
        if xtype is None or xtype.template is None:
            raise WrongType(f"block {entry.db} is plain data")
        meta = self._kernel.pages.view(entry.page)
        part = xtype.template.counting(meta, call.a0 % BLOCK, entry.key << 12)
        if part >= 0:
            counts = udf.counts(xtype.template.refcnt(meta, part, entry.key << 12))
            element = udf.element(call.a0)
            if element in counts:
                return counts[element], 0, b""
        raise NotInCore(f"{call.a0:#x} is not a countable element")

    def get_nowns(self, env: Environment, call: Entry) -> Result:
        entry = self._readable(env, call.a0, call.cap)
        return (entry.xtype.nparts if entry.xtype is not None else 0), 0, b""

    def udf_enum(self, env: Environment, call: Entry) -> Result:
        entry = self._readable(env, call.a0, call.cap)
        xtype = entry.xtype
        parts = xtype.nparts if xtype is not None else 0
        if not call.a1 <= call.a2 <= parts:
            raise BogusPartition(f"partitions {call.a1} to {call.a2} of {parts}")
        out: list[bytes] = []
        if xtype is not None and xtype.template is not None:
            meta = self._kernel.pages.view(entry.page)
            since = xtype.template.spent
            for part in range(call.a1, call.a2):
                out += [_TRIPLE.pack(*extent) for extent in udf.extents(xtype.template.owns(meta, part))]
                xtype.template.bound(since)
                if len(out) > MAX_ENUM:
                    raise LimitReached(f"more than {MAX_ENUM} extents: ask for fewer partitions")
        return len(out), 0, b"".join(out)

    # ---- locks

    def lock(self, env: Environment, call: Entry) -> Result:
        right = _WRITE if call.a1 == 2 else _READ
        capability = self._tree(env, call.cap, right)
        entry = self._cached(call.a0)
        if entry.access is None or capability not in (entry.access.write if call.a1 == 2 else entry.access.read):
            raise BadCapability(f"the capability does not allow this lock on block {entry.db}")
        pending = new_pending()
        self._kernel.locks.lock(env, entry, call.a1, pending)
        return pending

    def unlock(self, env: Environment, call: Entry) -> Result:
        device = self._kernel.device(call.a0 >> 56)
        entry = device.get(call.a0 >> 12 & (1 << 44) - 1)
        if entry is None:
            raise NotFound("the block is not in core, so nobody has it locked")
        self._kernel.locks.unlock(env, entry, call.a1)
        return OK


def _reservation(entry: CatalogueEntry | None, env: Environment) -> int:
    """The type id that the entry reserves for this caller; 0 if it does not."""
    if entry is None or entry.kind != CatalogueEntry.RESERVED or entry.uid != env.uid:
        return 0
    return entry.type


def _numbers(runs: list[tuple[int, int]], count: cython.Py_ssize_t) -> bytes:
    """The numbers of `count` pages in runs, 8 bytes each."""
    out = array("Q", bytes(8 * count))
    v: cython.p_ulonglong = udf.words(out)
    page: cython.ulonglong
    end: cython.ulonglong
    i: cython.Py_ssize_t = 0
    for first, length in runs:
        end = first + length
        for page in range(first, end):
            v[i] = page
            i += 1
    return out.tobytes()


def _check_total(blocks: Any) -> None:
    """Of blocks in core nobody can name more than there are; repetitions, and extents of nothing, would keep xokd
    busy."""
    if blocks > REGISTRY_ENTRIES:
        raise BadCall(f"{blocks} blocks, at most {REGISTRY_ENTRIES} in a call")


def _check_blocks(db: cython.ulonglong, count: cython.ulonglong) -> None:
    """Numbers that a block of a disk may have.  Raises NotInCore."""
    if count and (db >= _BLOCK_LIMIT or count > _BLOCK_LIMIT - db):
        raise NotInCore(f"block {max(db, BLOCK_LIMIT)} is not in the registry")


def _needs_room(call: Entry, nbytes: int) -> None:
    if call.out_bytes < nbytes:
        raise BadCall(f"{nbytes} bytes of results, and room for {call.out_bytes}", r0=nbytes)


def _without_capability(entry: CatalogueEntry) -> CatalogueEntry:
    """Capability numbers are shown to their holders alone."""
    return CatalogueEntry(entry.name, entry.db, entry.count, entry.type, 0, entry.kind, entry.uid, entry.flags)
