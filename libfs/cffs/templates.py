"""What XN is told about C-FFS: the templates of its block types, with their UDFs (docs/cffs.md sections 2 and 7).

A malformed sector can only make its own file system's updates fail: every loop is bounded by the sector.
"""

from __future__ import annotations

from libfs.cffs import layout as l
from libfs.cffs import methods
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


def directory_owns(directory_type: int, node_type: int, map_type: int) -> bytes:
    """Every used slot owns its extents, or the root of its extent tree: a node of `map_type` if it is a directory's."""
    f = Function()
    sector = f.var(META + f.part * SECTOR)
    used = f.var(load(sector + l.SECTOR_HEADER.offset("used"), 1))
    for slot in range(1, l.SLOTS + 1):
        with f.if_(bit(used, 1 << slot)):
            inode = f.at(l.INODE, sector + slot * l.INODE_BYTES)
            flags = f.var(inode.flags)
            with f.if_(~bit(flags, l.INLINE)):
                with f.if_(bit(flags, l.DEPTH_MASK)):
                    if map_type == node_type:
                        f.emit(inode.tree, 1, node_type)
                    else:
                        tree = f.var(node_type)
                        with f.if_((inode.mode & _IFMT) == _IFDIR):
                            f.set(tree, map_type)
                        f.emit(inode.tree, 1, tree)
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
        owns=directory_owns(directory_type, node_type, node_type),
        refs=directory_refs(),
        refcnt=directory_refcnt(),
        guard=guard(),
    )


def node_template(directory_type: int, node_type: int, name: str = l.NODE_TYPE_NAME) -> Template:
    return Template(
        name=name.encode(),
        parts=SECTORS,
        access=access(),
        owns=node_owns(directory_type, node_type),
        guard=guard(),
    )


def shared_directory_template(directory_type: int, node_type: int, map_type: int) -> Template:
    return Template(
        name=l.SHARED_DIR_TYPE_NAME.encode(),
        parts=SECTORS,
        access=access(),
        owns=directory_owns(directory_type, node_type, map_type),
        refs=directory_refs(),
        refcnt=directory_refcnt(),
        guard=guard(),
        method=methods.directory_method(directory_type, map_type),
    )


def shared_map_template(directory_type: int, map_type: int) -> Template:
    """A type of its own, so that no file can come to own what is a directory's."""
    return Template(
        name=l.SHARED_MAP_TYPE_NAME.encode(),
        parts=SECTORS,
        access=access(),
        owns=node_owns(directory_type, map_type),
        guard=guard(),
        method=methods.map_method(directory_type, map_type),
    )


def of(directory_type: int, node_type: int, map_type: int = 0) -> list[Template]:
    """The templates of an ordinary volume, or with a `map_type` of a shared one, in the order of their ids."""
    if not map_type:
        return [directory_template(directory_type, node_type), node_template(directory_type, node_type)]
    return [
        shared_directory_template(directory_type, node_type, map_type),
        node_template(directory_type, node_type, l.SHARED_NODE_TYPE_NAME),
        shared_map_template(directory_type, map_type),
    ]
