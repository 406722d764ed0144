"""What XN is told about C-FFS: the templates of its two block types, with their UDFs (docs/cffs.md section 2).

A malformed sector can only make its own file system's updates fail: every loop is bounded by the sector.
"""

from __future__ import annotations

from libfs.cffs import layout as l
from xok_host.abi.template import Template
from xok_host.abi.types import SECTOR, SECTORS, TYPE_XN_DB, Right
from xok_host.abi.udf import META, Function, bit, load

_IFMT, _IFDIR = 0xF000, 0x4000
_DEVICE_MASK = 0xFF << 56


def access() -> bytes:
    """Partition p is sector p."""
    f = Function()
    f.emit(f.part * SECTOR, SECTOR, 0)
    return f.finish()


def guard() -> bytes:
    """Whoever holds the tree's capability may read and write."""
    f = Function()
    f.emit_cap(f.tree, int(Right.READ | Right.WRITE))
    return f.finish()


def directory_owns(directory_type: int, node_type: int) -> bytes:
    """Every used slot owns its extents, or the root of its extent tree."""
    f = Function()
    sector = f.var(META + f.part * SECTOR)
    used = f.var(load(sector + l.SECTOR_HEADER.offset("used"), 1))
    for slot in range(1, l.SLOTS + 1):
        with f.if_(bit(used, 1 << slot)):
            inode = f.at(l.INODE, sector + slot * l.INODE_BYTES)
            flags = f.var(inode.flags)
            with f.if_(~bit(flags, l.INLINE)):
                with f.if_(bit(flags, l.DEPTH_MASK)):
                    f.emit(inode.tree, 1, node_type)
                with f.else_():
                    content = f.var(int(TYPE_XN_DB))
                    with f.if_((inode.mode & _IFMT) == _IFDIR):
                        f.set(content, directory_type)
                    for number in range(l.DIRECT):
                        count = inode.get(f"extents[{number}].count")
                        with f.if_(count != 0):
                            f.emit(inode.get(f"extents[{number}].start"), count, content)
    return f.finish()


def directory_refs() -> bytes:
    """Every name refers to its inode; names that are not whole refer to nothing."""
    f = Function()
    sector = f.var(META + f.part * SECTOR)
    end = f.var(sector + load(sector + l.SECTOR_HEADER.offset("end"), 2))
    here = f.var(sector + l.HEADER_BYTES)
    with f.if_(end > sector + SECTOR):
        f.return_(0)
    with f.while_(here + l.NAME_ENTRY.size < end):
        entry = f.at(l.NAME_ENTRY, here)
        slot = f.var(entry.kind >> 4 & 3)
        following = f.var(here + l.NAME_ENTRY.size + entry.length)
        with f.if_(slot == 0):
            f.set(following, following + 8 + entry.chain * 8)
        with f.if_(following > end):
            f.return_(0)
        with f.if_(slot == 0):
            number = load(here + l.NAME_ENTRY.size, 8)
            f.emit_ref((number << 7 & (1 << 56) - 1) | (f.address & _DEVICE_MASK))
        with f.else_():
            f.emit_ref(f.address + (sector - META) + slot * l.INODE_BYTES)
        f.set(here, following)
    return f.finish()


def directory_refcnt() -> bytes:
    """Every used slot is counted: nlink names."""
    f = Function()
    sector = f.var(META + f.part * SECTOR)
    used = f.var(load(sector + l.SECTOR_HEADER.offset("used"), 1))
    for slot in range(1, l.SLOTS + 1):
        with f.if_(bit(used, 1 << slot)):
            nlink = load(sector + slot * l.INODE_BYTES + l.INODE.offset("nlink"), 4)
            f.emit(f.address + (sector - META) + slot * l.INODE_BYTES, nlink, 0)
    return f.finish()


def node_owns(directory_type: int, node_type: int) -> bytes:
    """Each entry of the sector: child nodes above level 0, else blocks of the node's content."""
    f = Function()
    sector = f.var(META + f.part * SECTOR)
    header = f.at(l.NODE_HEADER, sector)
    used = f.var(header.used)
    with f.if_(used > l.SECTOR_ENTRIES):
        f.set(used, l.SECTOR_ENTRIES)
    content = f.var(int(TYPE_XN_DB))
    with f.if_(header.content != 0):
        f.set(content, directory_type)
    with f.if_(header.level != 0):
        f.set(content, node_type)
    with f.for_each(l.EXTENT, sector + l.HEADER_BYTES, used) as extent:
        f.emit(extent.start, extent.count, content)
    return f.finish()


def directory_template(directory_type: int, node_type: int) -> Template:
    return Template(
        name=l.DIR_TYPE_NAME.encode(),
        parts=SECTORS,
        access=access(),
        owns=directory_owns(directory_type, node_type),
        refs=directory_refs(),
        refcnt=directory_refcnt(),
        guard=guard(),
    )


def node_template(directory_type: int, node_type: int) -> Template:
    return Template(
        name=l.NODE_TYPE_NAME.encode(),
        parts=SECTORS,
        access=access(),
        owns=node_owns(directory_type, node_type),
        guard=guard(),
    )
