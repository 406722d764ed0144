"""The maps that xokd and the programs in the host's kernel share, and the form of their keys and values.

Declared once; compile.py and inverse_compile.py read them by the offsets below, host/steer.py fills them.  All are
little-endian (the machine's order) except where a value is a copy of bytes on the wire.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from xok_host.kernel.dpf.trie import MAX_ENTRIES, Key, Value

HASH, ARRAY, PROG_ARRAY = 1, 2, 3
NO_PREALLOC: Final = 1

MAX_QUEUES: Final = 256
"""Queues of a TAP, the host's bound."""
MAX_PORTS: Final = 4096
"""Receivers of packets: environments that hold a queue or a packet ring."""
REASONS: Final = 16
"""Counters of one sender."""


@dataclass(frozen=True, slots=True)
class MapSpec:
    name: str
    kind: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int = 0


TRIE_KEY: Final = struct.Struct("<QII")
"""node, edge, masked value"""
TRIE_VALUE: Final = struct.Struct("<QII")
"""next node, verdict, branches"""
PORT: Final = struct.Struct("<IIQQQ")
"""queue + 1 (0: nobody receives), 0, packets, bytes, packets dropped because nobody receives"""
SENDER: Final = struct.Struct("<6sHQ")
"""MAC as on the wire, what the queue is, 0"""
SENDER_CHECKED: Final = 1
SENDER_TRUSTED: Final = 2
"""xokd's own queue: it has judged the packets itself."""
ADDRESS: Final = struct.Struct("<I16s")
"""queue, IPv6 address or IPv4-mapped address as on the wire"""

TRIE = MapSpec("trie", HASH, TRIE_KEY.size, TRIE_VALUE.size, MAX_ENTRIES, NO_PREALLOC)
PORTS = MapSpec("ports", ARRAY, 4, PORT.size, MAX_PORTS)
UNCLAIMED = MapSpec("unclaimed", ARRAY, 4, 16, 1)
"""packets, bytes"""
PROGRAMS = MapSpec("programs", PROG_ARRAY, 4, 4, 1)
SENDERS = MapSpec("senders", ARRAY, 4, SENDER.size, MAX_QUEUES)
ADDRESSES = MapSpec("addresses", HASH, ADDRESS.size, 4, 16384, NO_PREALLOC)
SENT = MapSpec("sent", ARRAY, 4, 8, (MAX_QUEUES + 1) * REASONS)
"""queue × REASONS + reason → packets; the last row is for packets from no queue"""

MAPS: Final = (TRIE, PORTS, UNCLAIMED, PROGRAMS, SENDERS, ADDRESSES, SENT)
"""A program refers to a map by its place here; the loader puts the descriptor in."""
PSEUDO_MAP: Final = 1
"""Source register of an LD_IMM64 that names a map."""


def map_number(spec: MapSpec) -> int:
    return MAPS.index(spec)


def trie_key(key: Key) -> bytes:
    return TRIE_KEY.pack(*key)


def trie_value(value: Value) -> bytes:
    return TRIE_VALUE.pack(*value)
