"""What differs between a volume with one writer and a shared one (docs/cffs.md section 7), as strategy objects.

On a shared volume XN asks a protected method (methods.py) about every change, after it was answered.  `Sharing` keeps
what crosses so that the method is shown what it needs and finds what it asks for:

RULES-1  A transaction shows what the methods ask for: for a sector with new names the directory's inode, its table and
         the bucket; for a table, the blocks that come into it.  It fits into MAX_WITNESSES and MAX_OPS.
RULES-2  A directory's table changes in a crossing of its own (names.gain_blocks): so no sector that gets a name waits
         for a table that another transaction changes.
RULES-3  A name that was taken away crosses before the same name is given again, since nobody says in which order
         two sectors of a bucket cross.
RULES-4  An inode crosses with a ctime that the method takes: one that waited for long gets the present time.
RULES-5  One lock, on the root extent, stands for all: who has it exclusively may change the volume, and before it is
         let go everything has crossed, and no name is a ghost that others would see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from libfs.cffs import layout, methods, sector
from libfs.cffs.extents import ExtentMap, SingleBlocks
from libfs.cffs.overlay import MAX_WEIGHT
from xok_host.abi.calls import MAX_OPS, MAX_WITNESSES, OP_HEADER, OpKind
from xok_host.abi.types import BLOCK, SECTOR, LockMode

if TYPE_CHECKING:
    from libfs.cffs.inode import Node
    from libfs.cffs.overlay import Sector

_MODIFY, _ALLOC, _WITNESS = int(OpKind.MODIFY), int(OpKind.ALLOC), int(OpKind.WITNESS)
_BLOCK_OF = (1 << 44) - 1
_SHARED = int(LockMode.SHARED)
SHARED_PIECES = 8
"""As MAX_PIECES of crossing.py, on a shared volume: witnesses are operations too."""
SHARED_WEIGHT = 16
"""As MAX_WEIGHT of overlay.py."""
OLD_NS = methods.LATE_NS // 2
"""A ctime older than this is made new when it crosses."""


class OneWriter:
    """The ordinary volume."""

    names: tuple[str, ...] = (layout.DIR_TYPE_NAME, layout.NODE_TYPE_NAME)
    max_level = layout.MAX_LEVEL
    max_pieces = 16
    """Extents that the inodes of one sector gain or publish in one transaction."""
    table: type[ExtentMap] = ExtentMap
    """What a directory's blocks are kept in."""
    shared = False
    """Whether others may write the volume."""
    crosses_whole = False
    """Whether a sector may cross only with the whole overlay."""
    gains_ahead = True
    """Whether a directory may get several blocks at once."""

    def __init__(self, directory_type: int, node_type: int) -> None:
        self.directory_type, self.file_node_type = directory_type, node_type

    def lock_of(self, volume: Any, block: int) -> int:
        """The block whose lock stands for what `block` is to be locked for."""
        return block

    def goes_with(self, volume: Any, node: Node, block: int) -> bool:
        """Whether an inode may be kept in core only while the lock on `block` is held."""
        return node.home >> 5 == block

    def table_goes_with(self, volume: Any, node: Node, block: int) -> bool:
        """The same of what is loaded of a directory."""
        return node.ino >> 5 == block

    def lock_went(self, volume: Any, block: int) -> None:
        """A lock is no longer held, not even shared."""

    def is_alone(self, volume: Any) -> bool:
        """At mount: whether what the orphan list has is nobody's."""
        return True

    def others_have_orphans(self, volume: Any, node: Node) -> bool:
        """At mount: whether some of what the orphan list, inode `node`, has is still in use."""
        return False

    def home_of(self, volume: Any, block: int) -> int | None:
        """The directory that a block is of, if that can be seen without looking through the tree."""
        return None

    def node_type(self, node: Node) -> int:
        """The type of an inode's extent nodes."""
        return self.file_node_type

    def tag(self, node: Node) -> int:
        """What the sectors of an inode's extent nodes say about whose they are."""
        return 0

    def fresh(self, volume: Any, key: int) -> bytearray:
        """An empty sector; it was never used."""
        return sector.fresh(volume.homes[key >> 3] if key >> 3 != volume.root_block else 0)

    def crosses_before_name(self, directory: int, name: bytes) -> bool:
        """Whether the overlay has to cross before the name is given."""
        return False

    def too_heavy(self, volume: Any, keys: Iterable[int]) -> bool:
        """Whether these changed sectors are too much for one transaction."""
        return sum(map(volume.weight_of, keys)) > MAX_WEIGHT

    def name_taken(self, directory: int, name: bytes) -> None:
        """A name's entry has left its sector."""

    def stamp(self, volume: Any, node: Node, changed: Sector) -> None:
        """An inode's bytes are about to cross."""

    def arrange(self, volume: Any, overlay: dict[int, Sector], parts: dict[int, Any]) -> list[list[list[Any]]]:
        """Transactions, each a list of components, each a list of parts."""
        return volume.arrange(overlay, parts)  # type: ignore[no-any-return]

    def witnesses(self, volume: Any, transaction: list[list[Any]]) -> bytes:
        """The operations that show blocks to the methods."""
        return b""


class Sharing(OneWriter):
    """A volume whose types have protected methods."""

    names = (layout.SHARED_DIR_TYPE_NAME, layout.SHARED_NODE_TYPE_NAME, layout.SHARED_MAP_TYPE_NAME)
    max_level = layout.SHARED_MAX_LEVEL
    max_pieces = SHARED_PIECES
    table = SingleBlocks
    shared = True
    crosses_whole = True  # RULES-3 speaks of names in all sectors
    gains_ahead = False  # the method is shown every block that comes into a table

    def __init__(self, directory_type: int, node_type: int, map_type: int) -> None:
        super().__init__(directory_type, node_type)
        self.map_type = map_type
        self._taken: set[tuple[int, bytes]] = set()
        """Names that left their sectors since the overlay crossed last."""

    # ---- RULES-5

    def lock_of(self, volume: Any, block: int) -> int:
        return volume.root_block  # type: ignore[no-any-return]

    def goes_with(self, volume: Any, node: Node, block: int) -> bool:
        return True

    def table_goes_with(self, volume: Any, node: Node, block: int) -> bool:
        return True

    def lock_went(self, volume: Any, block: int) -> None:
        """Others may change every home and parent now, but those of what nobody else can find: an open file without a
        name; and if the lock was taken from us, what XN has yet to refuse."""
        kept = {volume.root_block: volume.root_ino}
        needed = {db for ghost in volume.ghosts for db in (ghost.key >> 3, ghost.node.ino >> 5)}
        needed |= {key >> 3 for key in volume.overlay} | {ino >> 5 for ino in volume.dirty}
        for db in needed:
            while db not in kept and db in volume.homes:
                kept[db] = volume.homes[db]
                db = kept[db] >> 5
        volume.homes = kept
        volume.parents.clear()
        volume.hidden.clear()

    def is_alone(self, volume: Any) -> bool:
        entry = volume.env.registry.lookup(volume.dev << 44 | volume.root_block)
        return entry is not None and not entry.lock

    def others_have_orphans(self, volume: Any, node: Node) -> bool:
        entry = volume.env.registry.lookup(volume.dev << 44 | volume.extents(node).find(0)[0])
        return entry is not None and bool(entry.lock)

    def home_of(self, volume: Any, block: int) -> int | None:
        """A used sector says it (M1).  What this learns leads up to the root: chains of names are made of it."""
        volume.lock(block, _SHARED)
        found: dict[int, int] = {}
        at = block
        while at not in volume.homes:
            entry, page = volume.env.registry.lookup(volume.dev << 44 | at), volume.page_of(at)
            if page < 0 or entry is None or entry.type != self.directory_type or at in found:
                return None
            data = volume.env.page(page)
            used = [part for part in range(0, BLOCK, SECTOR) if data[part]]
            if not used:
                return None
            found[at] = int.from_bytes(data[used[0] + _OWNER : used[0] + _OWNER + 8], "little")
            at = found[at] >> 5
        volume.homes.update(found)
        home: int = volume.homes[block]
        return home

    # ---- the types

    def node_type(self, node: Node) -> int:
        return self.map_type if node.is_directory else self.file_node_type

    def tag(self, node: Node) -> int:
        return node.ino if node.is_directory else 0

    def fresh(self, volume: Any, key: int) -> bytearray:
        data = super().fresh(volume, key)
        if key >> 3 != volume.root_block:
            logical = self._logical(volume, key >> 3)
            data[6:8] = logical.to_bytes(2, "little")
        return data

    @staticmethod
    def _logical(volume: Any, db: int) -> int:
        """Where a directory block is in its directory's table."""
        home = volume.node(volume.homes[db])
        found: int = next(logical for logical, _, start in volume.extents(home).items() if start == db)
        return found

    # ---- RULES-3

    def crosses_before_name(self, directory: int, name: bytes) -> bool:
        return (directory, name) in self._taken

    def name_taken(self, directory: int, name: bytes) -> None:
        self._taken.add((directory, name))

    def too_heavy(self, volume: Any, keys: Iterable[int]) -> bool:
        keys = list(keys)
        if sum(map(volume.weight_of, keys)) > SHARED_WEIGHT:
            return True
        shown: set[int] = set()
        for key in keys:
            if key >> 3 != volume.root_block:
                shown |= self._bucket(volume, key >> 3)
        return len(shown) > MAX_WITNESSES

    # ---- RULES-4

    def stamp(self, volume: Any, node: Node, changed: Sector) -> None:
        at = (node.ino & 3) * layout.INODE_BYTES
        now, floor = volume.clock(), 0
        if node.crossed:
            before = volume.now(volume.known_bytes, changed.key)[at : at + layout.INODE_BYTES]
            after = changed.data[at : at + layout.INODE_BYTES]
            if before[:2] == after[:2] and all(before[a:b] == after[a:b] for a, b in layout.TRUE_BYTES):
                return
            floor = int.from_bytes(before[_CTIME : _CTIME + 8], "little")
        if node.ctime < max(floor, now - OLD_NS):
            node.ctime = max(floor, now)
            node.pack_into(changed.data, at)

    # ---- RULES-1

    def arrange(self, volume: Any, overlay: dict[int, Sector], parts: dict[int, Any]) -> list[list[list[Any]]]:
        self._taken.clear()
        for key, part in parts.items():
            self._show(volume, part, overlay[key])
        done: set[int] = set()
        transactions: list[list[list[Any]]] = []
        shown: set[int] = set()
        room = 0
        for key, changed in overlay.items():
            if key in done:
                continue
            together = changed.links or {key}
            done |= together
            component = [parts[one] for one in together if one in parts]
            need = sum(len(part.ops) for part in component)
            wanted = set().union(*(part.shown for part in component))
            if need + len(wanted - shown) > room or len(shown | wanted) > MAX_WITNESSES:
                transactions.append([])
                room, shown = MAX_OPS, set()
            transactions[-1].append(component)
            room -= need + len(wanted - shown)
            shown |= wanted
        return transactions

    def _show(self, volume: Any, part: Any, changed: Sector) -> None:
        """Note the blocks that the methods ask for about one sector's change."""
        key, shown = part.key, part.shown
        before = volume.now(volume.known_bytes, key)
        if key >> 3 != volume.root_block and (not before[0] or self._adds(key, before, changed.data)):
            shown |= volume.now(self._bucket, volume, key >> 3)
        for op in part.ops:
            kind, _, _, _, da, db, count, type_id, _ = OP_HEADER.unpack_from(op)
            if kind == _ALLOC and type_id in (self.directory_type, self.map_type):
                shown.update(range(db, db + count))
            elif kind == _MODIFY and da >> 12 & _BLOCK_OF != key >> 3:
                shown.add(key >> 3)
        for node in part.nodes:
            if not node.is_directory:
                continue
            root = node.extents.root if node.extents is not None else None
            if root is not None and root.block in shown:
                shown.update(start for _, _, start in node.extents.items())
            flags = int.from_bytes(before[_flags_at(node.ino) : _flags_at(node.ino) + 2], "little")
            if before[2] >> (node.ino & 3) & 1 and flags & layout.GROWING and not node.growing:
                shown |= volume.now(self._table_part, volume, node, 0)

    @staticmethod
    def _adds(key: int, before: bytes, after: bytearray) -> bool:
        """Whether a sector has visible names that it had not."""
        held = {(name, ino, kind) for name, ino, _, kind in sector.scan(before, key)}
        return any(
            name[:1] != layout.HIDDEN and (bytes(name), ino, kind) not in held
            for name, ino, _, kind in sector.scan(bytes(after), key)
        )

    def _bucket(self, volume: Any, db: int) -> set[int]:
        """What the method wants to see before a name comes into directory block `db`."""
        node = volume.node(volume.homes[db])
        base = self._logical(volume, db) & ~(layout.BUCKET - 1)
        found = self._table_part(volume, node, base)
        if node.growing:
            found |= self._table_part(volume, node, 0)
        found.discard(db)
        found.add(node.ino >> 5)
        return found

    @staticmethod
    def _table_part(volume: Any, node: Node, base: int) -> set[int]:
        """The blocks of a bucket, and the node that has the table."""
        extents = volume.extents(node)
        found = {db for _, db in volume.bucket_blocks(node, base)}
        if extents.root is not None:
            found.add(extents.root.block)
        return found

    def witnesses(self, volume: Any, transaction: list[list[Any]]) -> bytes:
        shown = set().union(*(part.shown for component in transaction for part in component))
        base = volume.dev << 56
        return b"".join(OP_HEADER.pack(_WITNESS, 0, 0, 0, base | db << 12, 0, 0, 0, 0) for db in sorted(shown))


_OWNER = layout.SECTOR_HEADER.offset("owner")
_CTIME = layout.INODE.offset("ctime")


def _flags_at(ino: int) -> int:
    return (ino & 3) * layout.INODE_BYTES + layout.INODE.offset("flags")


KINDS: tuple[type[OneWriter], ...] = (OneWriter, Sharing)
