"""Make a C-FFS: types first if the device does not have them, then the root extent with its two directories."""

from __future__ import annotations

import argparse
import stat
import time
from collections.abc import Callable
from typing import Any

from libfs.cffs import layout, sector, templates
from libfs.cffs.filesystem import RESULT_BYTES
from libfs.cffs.inode import Node
from libfs.cffs.rules import OneWriter, Sharing
from xok_host.abi import errors as e
from xok_host.abi.calls import CatalogueEntry, Op, OpKind, pack_extents, pack_transaction
from xok_host.abi.install import install_type
from xok_host.abi.types import SECTOR, disk_address


def make(
    env: Any,
    dev: int,
    name: str,
    *,
    uid: int = 0,
    gid: int = 0,
    mode: int = 0o755,
    shared: bool = False,
    clock: Callable[[], int] = time.time_ns,
) -> int:
    """Make the empty file system `name`; durable when this returns.  The index of its tree capability.

    `shared`: for several writers that distrust one another (docs/cffs.md section 7).

    Raises Exists when the name is taken, NoSpace when the disk or the catalogue is full."""
    directory_type = install_types(env, dev, shared=shared)[0]
    made = env.call("install_mount", dev, 0, 1, directory_type, data=name.encode(), out_bytes=RESULT_BYTES)
    root, cap = made.r0, made.r1
    data = sector.fresh(0)
    now = clock()
    root_ino = layout.ino_of(root, 0, layout.ROOT_SLOT)
    for slot, entry, rights in (
        (layout.ROOT_SLOT, layout.ROOT_NAME, mode),
        (layout.ORPHANS_SLOT, layout.ORPHANS_NAME, 0o700),
    ):
        node = Node(layout.ino_of(root, 0, slot), root_ino, stat.S_IFDIR | rights, uid, gid, 1, now)
        sector.take(data, slot)
        node.pack_into(data, slot * layout.INODE_BYTES)
        sector.add(data, entry, node.mode >> 12, slot)
    op = Op(OpKind.MODIFY, disk_address(dev, root), own_id=0, writes=[(0, bytes(data))])
    env.call("transact", cap=cap, data=pack_transaction([op]), out_bytes=RESULT_BYTES)
    env.call("writebackv", dev, data=pack_extents([(root, 1, 0)]), out_bytes=RESULT_BYTES)
    env.call("flush", dev, out_bytes=RESULT_BYTES)
    assert len(data) == SECTOR
    return int(cap)


def install_types(env: Any, dev: int, *, shared: bool = False) -> list[int]:
    """The ids of the types of one kind of volume on a device, imported if they are not there yet."""
    raw = env.call("read_catalogue", dev, out_bytes=1 << 20).data
    size = CatalogueEntry("", 0, 0, 0, 0, 0, 0, 0)
    step = len(size.pack())
    known = {
        entry.name: entry for entry in (CatalogueEntry.unpack(raw[at : at + step]) for at in range(0, len(raw), step))
    }
    names = (Sharing if shared else OneWriter).names
    entries = [known.get(name) for name in names]
    if all(entry is not None and entry.kind == CatalogueEntry.TYPE for entry in entries):
        return [env.call("type_mount", dev, data=name.encode(), out_bytes=RESULT_BYTES).r0 for name in names]
    ids = [env.call("reserve_type", dev, data=name.encode(), out_bytes=RESULT_BYTES).r0 for name in names]
    for name, template in zip(names, templates.of(*ids), strict=True):
        found = install_type(env, dev, name, template.pack())
        if found not in ids:
            raise e.TypeInvalid(f"{name} got type {found}, not the one reserved")
    return ids


def main(env: Any, argv: list[str]) -> int:
    """The libOS that `xok mkfs NAME` runs."""
    options = argparse.ArgumentParser(prog="mkfs")
    options.add_argument("name", help="of the new file system")
    options.add_argument("--dev", type=int, default=1)
    options.add_argument("--uid", type=int, default=0, help="owner of the root directory")
    options.add_argument("--gid", type=int, default=0)
    options.add_argument("--shared", action="store_true", help="for several writers that distrust one another")
    wanted = options.parse_args(argv)
    try:
        make(env, wanted.dev, wanted.name, uid=wanted.uid, gid=wanted.gid, shared=wanted.shared)
    except e.XokError as error:
        print(error)
        return 1
    return 0
