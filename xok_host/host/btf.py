"""The type information of the running kernel (BTF, Documentation/bpf/btf.rst): where a structure's fields lie.

The only question asked of it is the offset of a field, so a few kinds of type are enough: structures and unions, whose
anonymous members are searched too, and what a member of array or other type needs not.
"""

from __future__ import annotations

import struct
from typing import Final

from xok_host.kernel.dpf.inverse_compile import SkbLayout

VMLINUX: Final = "/sys/kernel/btf/vmlinux"
_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_MEMBER: Final = struct.Struct("<III")
_STRUCT, _UNION = 4, 5
_TRAILER: Final = {1: 4, 3: 12, 14: 4, 17: 4}
"""Kinds with a trailer of fixed size, bytes."""
_PER_MEMBER: Final = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
"""Kinds with a trailer for each member, bytes."""
_LAST_KIND: Final = 19


class NoBtf(OSError):
    """The running kernel does not say where its fields lie."""


class Btf:
    """The structures of one BTF blob."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        try:
            magic, _, _, header, type_at, type_bytes, string_at, string_bytes = _HEADER.unpack_from(raw)
        except struct.error:
            raise NoBtf(0, "BTF is too short") from None
        if magic != _MAGIC:
            raise NoBtf(0, "BTF of another byte order or format")
        self._strings = raw[header + string_at : header + string_at + string_bytes]
        self._types: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)]
        """(kind, members, position of the members, kind flag), by type number"""
        self._named: dict[bytes, int] = {}
        at, end = header + type_at, header + type_at + type_bytes
        while at < end:
            name, info, _ = _TYPE.unpack_from(raw, at)
            at += _TYPE.size
            kind, count = info >> 24 & 31, info & 0xFFFF
            if not 0 < kind <= _LAST_KIND:
                raise NoBtf(0, f"BTF has types of unknown kind {kind}")
            if kind in (_STRUCT, _UNION) and name:
                self._named.setdefault(self._string(name), len(self._types))
            self._types.append((kind, count, at, info >> 31))
            at += _TRAILER.get(kind, 0) + _PER_MEMBER.get(kind, 0) * count

    def _string(self, offset: int) -> bytes:
        return self._strings[offset : self._strings.index(b"\0", offset)]

    def bit_offset(self, structure: str, field: str) -> int:
        """Bits from the start of `struct structure` to its member `field`.  Raises NoBtf if there is none."""
        number = self._named.get(structure.encode())
        found = None if number is None else self._search(number, field.encode(), 0)
        if found is None:
            raise NoBtf(0, f"the kernel's BTF does not know {structure}.{field}")
        return found

    def _search(self, number: int, field: bytes, base: int) -> int | None:
        kind, count, at, flag = self._types[number]
        if kind not in (_STRUCT, _UNION):
            return None
        for index in range(count):
            name, member, offset = _MEMBER.unpack_from(self._raw, at + index * _MEMBER.size)
            bits = base + (offset & 0xFF_FFFF if flag else offset)
            if not name:
                found = self._search(member, field, bits)
                if found is not None:
                    return found
            elif self._string(name) == field:
                return bits
        return None


def skb_layout(path: str = VMLINUX) -> SkbLayout:
    """Where the running kernel keeps checksum and segmentation of a packet.  Raises NoBtf, also for unsuitable ones."""
    try:
        with open(path, "rb") as file:
            btf = Btf(file.read())
    except FileNotFoundError:
        raise NoBtf(0, f"this kernel has no {path}") from None

    def byte(structure: str, field: str) -> int:
        bits = btf.bit_offset(structure, field)
        if bits % 8:
            raise NoBtf(0, f"{structure}.{field} does not begin on a byte")
        return bits // 8

    summed = btf.bit_offset("sk_buff", "ip_summed")
    if summed % 8 > 6:
        raise NoBtf(0, "sk_buff.ip_summed crosses a byte")
    return SkbLayout(
        ip_summed=summed // 8,
        ip_summed_bit=summed % 8,
        csum_start=byte("sk_buff", "csum_start"),
        csum_offset=byte("sk_buff", "csum_offset"),
        mac_header=byte("sk_buff", "mac_header"),
        head=byte("sk_buff", "head"),
        end=byte("sk_buff", "end"),
        gso_type=byte("skb_shared_info", "gso_type"),
    )
