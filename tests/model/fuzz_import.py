"""The import of types under fuzzing: an input is a template's fields and programs, or its bytes as they are.

Part 0: header bytes that overwrite those of the packed template (all zeros: none).  Parts 1 to 9: the programs, in the
template's order.  The checksum is made right again, so that what is behind it is reached.  What is accepted is run on
blocks of several kinds: it may fault, and must not do anything else.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from contextlib import nullcontext
from typing import Any

from toy import ELEMENTS, POINTERS, Sector, access, guard, owns, refcnt, refs
from tracedkit import based, heap

from xok_host.abi import template as form
from xok_host.abi.errors import XokError
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB
from xok_host.kernel.xn import types, udf
from xok_host.kernel.xn.template import import_template

Input = list[bytes]
PROGRAMS = form.PROGRAMS
BLOCKS = (
    bytes(BLOCK),
    b"\xff" * BLOCK,
    b"".join(
        Sector(
            [(100 + i, 1, TYPE_XN_DB, i) for i in range(POINTERS)], [s] * ELEMENTS, [(1 << 56) + (5 << 12) + s]
        ).pack()
        for s in range(SECTORS)
    ),
    hashlib.sha512(b"random").digest() * (BLOCK // 64),
)


def run(given: Input, watch: Any = nullcontext) -> str:
    """What the import says, and what the programs give."""
    with watch():
        return imported(given)


def imported(given: Input) -> str:
    said = hashlib.sha256()
    parts = [*given, *[b""] * 10][: 1 + len(PROGRAMS)]
    programs = dict(zip(PROGRAMS, parts[1:], strict=True))
    try:
        way = form.Partitions.EXPLICIT
        if not programs["access"]:
            way = form.Partitions.OVERLAPPING if programs["uses"] else form.Partitions.TRACED
        raw = bytearray(form.Template(name=b"fuzzed", parts=SECTORS, partitions=way, **programs).pack())
    except form.BadTemplate:
        return "not a template"
    for at, byte in enumerate(parts[0][: form.HEADER.size]):
        raw[at] ^= byte
    form.HEADER.view(raw).checksum = 0
    form.HEADER.view(raw).checksum = zlib.crc32(raw)
    try:
        template = import_template(bytes(raw))
        xtype = types.load(16, "fuzzed", bytes(raw))
    except XokError as refused:
        return type(refused).__name__
    assert not template.owns_all(BLOCKS[0], template.spent), "TMPL-3: an empty instance owns something"
    if xtype.data:
        return "plain"
    for block in BLOCKS:
        for part in range(min(template.parts, 4)):
            said.update(repr([asked(xtype, template, name, block, part) for name in PROGRAMS]).encode())
            if part in range(len(template.regions)):
                confined(template, block, part)
    return said.hexdigest()


def asked(xtype: Any, template: Any, name: str, block: bytes, part: int) -> Any:
    """What a program says, or how it faults."""
    try:
        if name == "owns":
            return udf.extents(template.owns(block, part))
        if name == "refcnt":
            return list(template.refcnt(block, part, 5 << 12))
        if name == "refs":
            return list(template.refs(block, part, 5 << 12))
        if name == "reboot":
            return list(template.reboot(block, part))
        if name == "guard":
            read, write = template.guard(block, 99)
            return sorted(read), sorted(write)
        if name == "acl" and xtype.has_acl:
            return bool(template.approves(block, block, part, 99, 5))
    except XokError as refused:
        return type(refused).__name__
    return None


def confined(template: Any, block: bytes, part: int) -> None:
    """TMPL-2, READ-1: bytes that are not a partition's, or were not read, do not change what it owns."""
    inside = {at for start, length in template.regions[part] for at in range(start, start + length)}
    if template.read_sets is not None:
        template.read_sets.begin(1 << 22)
        try:
            _, reads = template.read_sets.ask(block, part, 5)
        except XokError:
            return
        inside = {at for at in inside if reads >> at % SECTOR & 1}
    other = bytes(byte if at in inside else byte ^ 0x5A for at, byte in enumerate(block))
    answers = []
    for raw in (block, other):
        try:
            answers.append(udf.extents(template.owns(raw, part)))
        except XokError:
            answers.append(None)
    assert answers[0] == answers[1], f"owns of partition {part} reads other partitions"


def target() -> tuple[Any, list[Input], list[int]]:
    whole = {"access": access(), "owns": owns(), "refs": refs(), "refcnt": refcnt(), "guard": guard()}
    codes = [whole.get(name, b"") for name in PROGRAMS]
    bare = [whole[name] if name in ("access", "owns") else b"" for name in PROGRAMS]
    approving = [
        code or (whole["guard"] if name in ("acl", "size") else b"") for name, code in zip(PROGRAMS, codes, strict=True)
    ]
    header = [bytes(form.HEADER.size), *codes]
    operations = [byte for byte in range(256)]  # all opcodes: the language's own numbers
    offsets = [struct.unpack("<Q", bytes([op, 0x21, 8, 0, 1, 0, 0, 0]))[0] for op in operations]
    traced = [[b"", *(getattr(t, name) for name in PROGRAMS)] for t in (heap(), based(), based(by_looking=True))]
    return run, [header, [b"", *codes], [b"", *bare], [b"", *approving], *traced], [*operations, *offsets]
