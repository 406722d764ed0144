"""One directory sector as bytes: find, add and remove names, take and release inode slots (docs/cffs.md section 1).

Pure functions over a `bytearray` of 512 bytes; compiled, because every create, unlink and directory scan is in them.

SECTOR-1  Names lie without gaps from byte 16 to `end`.
SECTOR-2  `end` is never beyond the offset of the lowest used slot.
SECTOR-3  Functions that read bytes from a disk check every length; what is malformed is a ValueError.
"""

from __future__ import annotations

import cython

_MAGIC: cython.int = 0xCF
_VERSION: cython.int = 1
_HEADER: cython.int = 16
_SECTOR: cython.int = 512
_SLOT: cython.int = 128


def fresh(owner: int) -> bytearray:
    """An empty sector of a block that directory `owner` owns."""
    data = bytearray(_SECTOR)
    data[0] = _MAGIC
    data[1] = _VERSION
    data[4] = _HEADER
    data[8:16] = owner.to_bytes(8, "little")
    return data


def owner_of(data: bytes) -> int:
    """Inode number of the directory that owns the sector's block; 0 also for a sector that was never used."""
    return int.from_bytes(data[8:16], "little")


@cython.locals(e=cython.int)
def end_of(data: bytearray) -> cython.int:
    """First byte after the names."""
    e = data[4] | data[5] << 8
    return e if e >= _HEADER else _HEADER


@cython.locals(used=cython.int)
def lowest(data: bytearray) -> cython.int:
    """Where the names must end: offset of the lowest used slot."""
    used = data[2]
    if used & 2:
        return _SLOT
    if used & 4:
        return 2 * _SLOT
    if used & 8:
        return 3 * _SLOT
    return _SECTOR


@cython.locals(used=cython.int, end=cython.int, slot=cython.int, limit=cython.int)
def free_slot(data: bytearray) -> cython.int:
    """The slot to take next, the highest that is free and lies behind the names; 0: none."""
    used = data[2]
    end = end_of(data)
    for slot in (3, 2, 1):
        if not used >> slot & 1 and end <= slot * _SLOT:
            return slot
    return 0


@cython.locals(slot=cython.int, limit=cython.int, low=cython.int)
def room(data: bytearray) -> cython.int:
    """Bytes for a name entry once a slot has been taken for its inode; -1: no slot."""
    slot = free_slot(data)
    if slot == 0:
        return -1
    limit = slot * _SLOT
    low = lowest(data)
    return (limit if limit < low else low) - end_of(data)


def room_without_slot(data: bytearray) -> cython.int:
    """Bytes for a name entry whose inode is elsewhere."""
    return lowest(data) - end_of(data)


def space(data: bytes) -> cython.int:
    """`room` of a sector that may never have been used."""
    if data[0] == 0:
        return 3 * _SLOT - _HEADER
    return room(bytearray(data))


def take(data: bytearray, slot: cython.int) -> None:
    data[2] = data[2] | 1 << slot


def drop(data: bytearray, slot: cython.int) -> None:
    """Release a slot; its bytes become zero."""
    data[2] = data[2] & ~(1 << slot) & 0xFF
    data[slot * _SLOT : (slot + 1) * _SLOT] = bytes(_SLOT)


def place(data: bytearray, name: bytes, kind: cython.int) -> cython.int:
    """Take a slot and add a name for it; the slot.  The caller checked the room."""
    slot: cython.int = free_slot(data)
    if slot == 0:
        raise ValueError("no free slot")
    take(data, slot)
    add(data, name, kind, slot)
    return slot


@cython.locals(at=cython.int, length=cython.int, n=cython.int)
def add(data: bytearray, name: bytes, kind: cython.int, slot: cython.int, ino: object = 0, chain: bytes = b"") -> None:
    """Append a name for the inode in `slot`, or (slot 0) for `ino` elsewhere with its chain; there must be room."""
    at = end_of(data)
    length = len(name)
    data[at] = length
    data[at + 1] = kind | slot << 4
    if slot:
        data[at + 2] = 0
        n = at + 3
    else:
        data[at + 2] = len(chain) // 8
        data[at + 3 : at + 11] = ino.to_bytes(8, "little")  # type: ignore[attr-defined]
        n = at + 11
        if chain:
            data[n : n + len(chain)] = chain
            n += len(chain)
    data[n : n + length] = name
    n += length
    if n > lowest(data):
        raise ValueError("name does not fit into its sector")
    data[3] = data[3] + 1
    data[4] = n & 0xFF
    data[5] = n >> 8


def entry_bytes(name: bytes, away: bool, chain: bytes = b"") -> cython.int:
    """Room that a name entry takes."""
    return 3 + len(name) + (8 + len(chain) if away else 0)


@cython.locals(at=cython.int, end=cython.int, length=cython.int, start=cython.int, want=cython.int)
def find(data: bytearray, name: bytes) -> cython.int:
    """Offset of the entry `name`; 0: not here."""
    end = end_of(data)
    at = _HEADER
    want = len(name)
    while at + 3 <= end:
        length = data[at]
        start = at + 3
        if not data[at + 1] & 0x30:
            start += 8 + 8 * data[at + 2]
        if length == want and data[start : start + length] == name:
            return at
        at = start + length
    return 0


def find_of(data: bytearray, name: bytes, key: int, ino: int) -> cython.int:
    """Offset of the entry `name` that names inode `ino`, of sector `key`; 0: not here.

    While a name is being replaced a sector may hold it twice."""
    at: cython.int = _HEADER
    end: cython.int = end_of(data)
    length: cython.int = len(name)
    while at + 3 <= end:
        if data[at] == length:
            start: cython.int = at + size_at(data, at) - length
            if data[start : start + length] == name and target(data, at, key)[0] == ino:
                return at
        at += size_at(data, at)
    return 0


@cython.locals(start=cython.int)
def size_at(data: bytearray, at: cython.int) -> cython.int:
    """Bytes of the entry at `at`."""
    start = 3 + data[at]
    if not data[at + 1] & 0x30:
        start += 8 + 8 * data[at + 2]
    return start


@cython.locals(at=cython.int, end=cython.int, start=cython.int, size=cython.int, n=cython.int)
def remove(data: bytearray, at: cython.int) -> None:
    """Remove the entry at `at` and close the gap."""
    end = end_of(data)
    start = at + 3
    if not data[at + 1] & 0x30:
        start += 8 + 8 * data[at + 2]
    start += data[at]
    n = end - start
    if n:
        data[at : at + n] = data[start:end]
    at += n
    data[at:end] = bytes(end - at)
    data[3] = data[3] - 1
    data[4] = at & 0xFF
    data[5] = at >> 8


def target(data: bytearray, at: int, key: int) -> tuple[int, bytes]:
    """Inode number and chain of the entry at `at` of the sector `key` (layout.sector_key)."""
    slot = data[at + 1] >> 4 & 3
    if slot:
        return key << 2 | slot, b""
    ino = int.from_bytes(data[at + 3 : at + 11], "little")
    return ino, bytes(data[at + 11 : at + 11 + 8 * data[at + 2]])


@cython.locals(
    at=cython.int,
    end=cython.int,
    length=cython.int,
    start=cython.int,
    kind=cython.int,
    slot=cython.int,
    used=cython.int,
)
def scan(data: bytes, key: object) -> list:
    """All names of a sector as (name, inode number, chain or None if the inode is in this sector, kind with version).

    Raises ValueError for a sector that breaks SECTOR-1 or SECTOR-2.
    """
    found: list = []
    if data[0] == 0:
        return found
    if data[0] != _MAGIC or data[1] != _VERSION:
        raise ValueError("not a directory sector of this version")
    end = data[4] | data[5] << 8
    if end < _HEADER:
        end = _HEADER
    used = data[2]
    if end > _SECTOR or (used & 2 and end > _SLOT) or (used & 4 and end > 2 * _SLOT) or (used & 8 and end > 3 * _SLOT):
        raise ValueError("names run into inodes")
    at = _HEADER
    while at < end:
        if at + 3 > end:
            raise ValueError("a name entry is cut short")
        length = data[at]
        kind = data[at + 1]
        slot = kind >> 4 & 3
        start = at + 3
        if not slot:
            start += 8 + 8 * data[at + 2]
        if length == 0 or start + length > end:
            raise ValueError("a name entry is cut short")
        if slot:
            found.append((data[start : start + length], key << 2 | slot, None, kind & 0xCF))  # type: ignore[operator]
        else:
            ino = int.from_bytes(data[at + 3 : at + 11], "little")
            found.append((data[start : start + length], ino, data[at + 11 : start], kind & 0xCF))
        at = start + length
    return found
