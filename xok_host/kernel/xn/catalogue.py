"""Root and type catalogues of one device (thesis 4.5): what exists by name.

CAT-1  An entry is written to the disk only when what it names is durable and complete, free map included.
CAT-2  An entry that was removed frees its blocks when the sector without it is durable.
CAT-3  Type ids are never given out twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xok_host.abi.calls import CATALOGUE_ENTRY, CatalogueEntry
from xok_host.abi.errors import BadCall, Exists, LimitReached, NoSpace, NotFound
from xok_host.abi.types import SECTORS, TYPE_FIRST_LIBFS
from xok_host.kernel.xn.format import (
    CATALOGUE_LIMIT,
    ENTRIES_PER_SECTOR,
    Superblock,
    pack_catalogue_sector,
    unpack_catalogue_sector,
)

MAX_NAMES_OF_USER = CATALOGUE_LIMIT // 4
"""Roots, types and reservations of one user, so that nobody fills the catalogue of all, or memory: a root in core has a
chunk of its own.  The administrator (uid 0), who
makes the file systems that users share and can remove whatever fills it, is not bound."""
NAME_BYTES = 64
FLAG_TAINTED = 1
"""`CatalogueEntry.flags`: reconstruction found a violation below this root; it cannot be mounted."""
FLAG_TEMPORARY = 2
"""The root is not meant to survive: the entry is never written."""
_EMPTY = bytes(CATALOGUE_ENTRY.size)


@dataclass(slots=True)
class Slot:
    """`pending`: not on the disk yet, waits for CAT-1."""

    entry: CatalogueEntry
    pending: bool = False


def check_name(data: bytes) -> str:
    """The name in operand bytes.  Raises BadCall."""
    try:
        name = data.decode()
    except UnicodeDecodeError:
        raise BadCall("a name is UTF-8") from None
    if not name or len(data) > NAME_BYTES or "\0" in name or not name.isprintable():
        raise BadCall(f"a name has 1 to {NAME_BYTES} printable bytes")
    return name


class Catalogue:
    """Slots by position on the disk and by name."""

    def __init__(self, superblock: Superblock) -> None:
        self.start = superblock.catalogue
        self.next_type = max(superblock.next_type, TYPE_FIRST_LIBFS)
        self._slots: list[Slot | None] = [None] * CATALOGUE_LIMIT
        self._by_name: dict[str, int] = {}
        self._sequence = [1] * (CATALOGUE_LIMIT // ENTRIES_PER_SECTOR)
        self._dirty: set[int] = set()

    def load_sector(self, index: int, raw: bytes | memoryview) -> None:
        """Take over one sector of the disk.  Raises BadDisk."""
        self._sequence[index], entries = unpack_catalogue_sector(raw)
        for number, packed in enumerate(entries):
            if packed == _EMPTY:
                continue
            entry = CatalogueEntry.unpack(packed)
            place = index * ENTRIES_PER_SECTOR + number
            self._slots[place] = Slot(entry)
            self._by_name[entry.name] = place
            if entry.kind != CatalogueEntry.ROOT:
                self.next_type = max(self.next_type, entry.type + 1)

    def find(self, name: str) -> Slot:
        """Raises NotFound."""
        place = self._by_name.get(name)
        slot = None if place is None else self._slots[place]
        if slot is None:
            raise NotFound(f"nothing is called {name!r}")
        return slot

    def get(self, name: str) -> CatalogueEntry | None:
        place = self._by_name.get(name)
        slot = None if place is None else self._slots[place]
        return None if slot is None else slot.entry

    def add(self, entry: CatalogueEntry, *, pending: bool) -> None:
        """Raises Exists or NoSpace."""
        if entry.name in self._by_name:
            raise Exists(f"{entry.name!r} exists")
        if None not in self._slots:
            raise NoSpace(f"the catalogue holds {CATALOGUE_LIMIT} names")
        place = self._slots.index(None)
        self._slots[place] = Slot(entry, pending)
        self._by_name[entry.name] = place
        if not pending:
            self._dirty.add(place // ENTRIES_PER_SECTOR)

    def room(self) -> bool:
        return None in self._slots

    def check_share(self, uid: int) -> None:
        """One name more for this user?  Raises LimitReached, naming one that could go."""
        if not uid:
            return
        held = [slot.entry.name for slot in self._slots if slot is not None and slot.entry.uid == uid]
        if len(held) >= MAX_NAMES_OF_USER:
            raise LimitReached(
                f"user {uid} has {len(held)} roots, types and reservations, which is the most: uninstall_mount one "
                f"first, such as {held[-1]!r}"
            )

    def change(self, name: str, **fields: object) -> CatalogueEntry:
        place = self._by_name[name]
        slot = self._slots[place]
        assert slot is not None
        slot.entry = replace(slot.entry, **fields)  # type: ignore[arg-type]
        if not slot.pending:
            self._dirty.add(place // ENTRIES_PER_SECTOR)
        return slot.entry

    def settle(self, name: str) -> None:
        """What the entry names is durable: it may be written (CAT-1)."""
        place = self._by_name[name]
        slot = self._slots[place]
        assert slot is not None
        slot.pending = False
        self._dirty.add(place // ENTRIES_PER_SECTOR)

    def remove(self, name: str) -> bool:
        """Take the entry out; whether the disk has it, so that its blocks must wait (CAT-2)."""
        place = self._by_name.pop(name)
        slot = self._slots[place]
        assert slot is not None
        self._slots[place] = None
        if not slot.pending:
            self._dirty.add(place // ENTRIES_PER_SECTOR)
        return not slot.pending

    def new_type_id(self) -> int:
        self.next_type += 1
        return self.next_type - 1

    def entries(self) -> list[CatalogueEntry]:
        return [slot.entry for slot in self._slots if slot is not None]

    def pending(self) -> list[CatalogueEntry]:
        return [slot.entry for slot in self._slots if slot is not None and slot.pending]

    @property
    def dirty(self) -> int:
        return len(self._dirty)

    def take_dirty(self) -> tuple[list[tuple[int, bytes]], list[str]]:
        """((sector on the disk, 512 bytes) of each dirty sector; names of the roots in them)."""
        sectors = []
        names = []
        for index in sorted(self._dirty):
            self._sequence[index] += 1
            packed = []
            for slot in self._slots[index * ENTRIES_PER_SECTOR : (index + 1) * ENTRIES_PER_SECTOR]:
                if slot is None or slot.pending:
                    packed.append(_EMPTY)
                else:
                    packed.append(slot.entry.pack())
                    names.append(slot.entry.name)
            sectors.append((self.start * SECTORS + index, pack_catalogue_sector(self._sequence[index], packed)))
        self._dirty.clear()
        return sectors, names

    def mark_dirty(self, sector: int) -> None:
        """A write of that sector of the disk failed."""
        self._dirty.add(sector - self.start * SECTORS)
