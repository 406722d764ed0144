# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True
"""The connection table: from the four numbers of a segment to its connection.

Chained hashing with the chain in the entries themselves: a lookup allocates nothing. The hash is keyed with a secret,
so that nobody can choose ports that collide. The table doubles when it holds as many entries as it has buckets.
"""

from __future__ import annotations

import cython

from netstack.xio.timers import Timed

if not cython.compiled:
    from netstack.wire.octets import w64


class Entry(Timed):
    """A connection or what is left of one, under its addresses (32 bits, host order) and ports."""

    if not cython.compiled:

        def __init__(self) -> None:
            Timed.__init__(self)
            self.kind = 0
            self.hash = 0
            self.chain: Entry | None = None
            self.local_address = 0
            self.remote_address = 0
            self.local_port = 0
            self.remote_port = 0


class Table:
    """Entries by (local address, local port, remote address, remote port). `secret` is 64 random bits."""

    def __init__(self, secret: int) -> None:
        self.secret = secret | 1
        self.size = 64
        self.count = 0
        self.buckets: list[Entry | None] = [None] * self.size

    def hash_of(self, local_address: int, local_port: int, remote_address: int, remote_port: int) -> int:
        """A keyed mix of the four (multiply and shift, twice)."""
        h = w64((w64(remote_address) << 32 | remote_port << 16 | local_port) ^ self.secret)
        h = w64(h * MIX)
        h = w64((h ^ h >> 32 ^ local_address) * self.secret)
        return w64(h ^ h >> 29)

    def find(self, local_address: int, local_port: int, remote_address: int, remote_port: int) -> Entry | None:
        """The entry under exactly these four, or None."""
        h = self.hash_of(local_address, local_port, remote_address, remote_port)
        entry = self.buckets[h & (self.size - 1)]
        while entry is not None:
            if (
                entry.remote_port == remote_port
                and entry.remote_address == remote_address
                and entry.local_port == local_port
                and entry.local_address == local_address
            ):
                return entry
            entry = entry.chain
        return None

    def insert(self, entry: Entry) -> int:
        """Add an entry whose four numbers are set and not in the table yet."""
        if self.count >= self.size:
            self.grow()
        entry.hash = self.hash_of(entry.local_address, entry.local_port, entry.remote_address, entry.remote_port)
        i = entry.hash & (self.size - 1)
        entry.chain = self.buckets[i]
        self.buckets[i] = entry
        self.count += 1
        return 0

    def remove(self, entry: Entry) -> int:
        """Take out an entry; one that is not in the table is left alone."""
        i = entry.hash & (self.size - 1)
        at = self.buckets[i]
        if at is entry:
            self.buckets[i] = entry.chain
        else:
            while at is not None and at.chain is not entry:
                at = at.chain
            if at is None:
                return 0
            at.chain = entry.chain
        entry.chain = None
        self.count -= 1
        return 0

    def grow(self) -> int:
        """Twice the buckets; every entry into its new one."""
        old = self.buckets
        self.size *= 2
        self.buckets = [None] * self.size
        for entry in old:
            while entry is not None:
                chain = entry.chain
                i = entry.hash & (self.size - 1)
                entry.chain = self.buckets[i]
                self.buckets[i] = entry
                entry = chain
        return 0

    def entries(self) -> list[Entry]:
        """All entries, in no order (for statistics and shutting down)."""
        found: list[Entry] = []
        for entry in self.buckets:
            while entry is not None:
                found.append(entry)
                entry = entry.chain
        return found


if not cython.compiled:
    MIX = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio
