"""Templates: how a libFS describes one type of on-disk structure to XN (thesis section 4.2).

A template is a value here and bytes on disk, in the type catalogue.  It is a header, its discriminators and its
programs; the header is declared below, which also gives the table of docs/udf.md.

    Template(name=b"cffs-directory", kind=Kind.UNION, parts=8, discriminators=((0, 8),),
             access=access_udf, owns=owns_udf, refs=refs_udf, refcnt=refcnt_udf, guard=guard_udf, acl=acl_udf).pack()

What the programs are given and give:

| program | r3 | r4 | r5 | gives |
|---|---|---|---|---|
| access | partition | 0 | 0 | emit(offset, nbytes, 0): the bytes of the partition; it cannot read the instance |
| uses | sector | 0 | 0 | emit(offset, nbytes, count): how many partitions read each of these bytes; others, none |
| owns | partition | 0 | 0 | emit(block, count, type id): what those bytes own |
| refs | partition | 0 | da | emit_ref(da): elements referred to |
| refcnt | partition | 0 | da | emit(da of element, count, 0) for every countable element |
| guard | 0 | tree's capability | 0 | emit_cap(capability, rights) |
| acl | partition | caller's capability | time, ns | r0 not zero approves; META is before, NEW after |
| method | partition | caller's capability | time, ns | as acl, with witnesses at CONTEXT (`xok_host.abi.method`) |
| size | 0 | 0 | 0 | r0: blocks; META is the first block alone |
| reboot | partition | 0 | 0 | emit(da in the holder's sector, block, session): what may be unwritten |

r1 is META, r2 the bytes shown there.  `da` is the disk address of the instance's first byte.

Which bytes a partition has is said in one of three ways (`Partitions`; thesis 4.1.1, 4.1.2): by `access`; by tracing
what `owns`, `refs` and `refcnt` read; or by tracing them where they may overlap, with `uses` to count who reads a byte.

Unpacking checks the form only; whether XN accepts the type is decided by `xok_host.kernel.xn.template`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntEnum

from xok_host.abi.declare import Structure, array, chars, pad, u8, u16, u32
from xok_host.abi.types import BLOCK

VERSION = 2
"""1: without `reboot`, which still is how a template without it is packed."""
MAGIC = b"XOK-TMPL"
NAME_BYTES = 64
MAX_BYTES = 4 * BLOCK
"""Largest packed template."""
MAX_DISCRIMINATORS = 64

_TABLE = ("access", "owns", "refs", "refcnt", "guard", "acl", "size", "method")
"""In the order of the header's program table; `uses` has the place of `access`, which its type does not have."""
PROGRAMS = (*_TABLE, "uses", "reboot")
"""`reboot` is behind the header, in version 2."""


class Kind(IntEnum):
    BASE = 0
    """Plain data: no partitions, no programs."""
    STRUCT = 1
    UNION = 2
    """Bytes that mean different things, told apart by discriminators, which only `set_type` changes."""


class Partitions(IntEnum):
    """How XN knows the bytes of a partition."""

    EXPLICIT = 0
    """`access` says: they are constant and disjoint."""
    TRACED = 1
    """What its programs read; they are disjoint in every state."""
    OVERLAPPING = 2
    """What its programs read; `uses` counts the partitions that read a byte."""


class BadTemplate(ValueError):
    """Bytes that are not a template; the message says why."""


RANGE = Structure("range", u32("start", "bytes from the start"), u32("length", "bytes"))

HEADER = Structure(
    "template header",
    chars("magic", 8, f"`{MAGIC.decode()}`"),
    u16("version", "of this format: 1, or 2 with a reboot program"),
    u8("kind", "0 BASE, 1 STRUCT, 2 UNION"),
    u8("discriminators", f"their number, at most {MAX_DISCRIMINATORS}"),
    u32("parts", "partitions, numbered from 0"),
    u32("blocks", "size of an instance in blocks; 0: the size program says"),
    u32("total", "bytes of the whole template"),
    u32("checksum", "CRC-32 of the whole template with this field zero"),
    u8("partitions", "0 explicit, 1 traced, 2 overlapping"),
    pad(3),
    chars("name", NAME_BYTES, "padded with zeros"),
    array(
        "programs",
        RANGE,
        len(_TABLE),
        f"{', '.join(_TABLE)}: where in the template; length 0 for none; of overlapping partitions, uses is the first",
    ),
    doc="Behind it follow, in version 2, one range more, that of reboot; the discriminators, one range each "
    "(offset in the instance); then the programs' bytes.",
)


_ONLY = {
    "access": (Partitions.EXPLICIT,),
    "uses": (Partitions.OVERLAPPING,),
    "reboot": (Partitions.EXPLICIT,),
}
"""Programs that only some ways of partitioning have."""


def _in_table(partitions: Partitions) -> tuple[str, ...]:
    return ("uses", *_TABLE[1:]) if partitions == Partitions.OVERLAPPING else _TABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One type's description.  Programs are eBPF bytes, empty for none."""

    name: bytes
    kind: Kind = Kind.STRUCT
    blocks: int = 1
    """Size of an instance; 0 if `size` computes it."""
    parts: int = 0
    discriminators: tuple[tuple[int, int], ...] = ()
    """(offset, nbytes) in the instance."""
    partitions: Partitions = Partitions.EXPLICIT
    access: bytes = b""
    owns: bytes = b""
    refs: bytes = b""
    refcnt: bytes = b""
    guard: bytes = b""
    acl: bytes = b""
    size: bytes = b""
    method: bytes = b""
    uses: bytes = b""
    reboot: bytes = b""

    def pack(self) -> bytes:
        """The bytes for the type catalogue.  Raises BadTemplate for what the format cannot hold."""
        if not self.name or len(self.name) > NAME_BYTES or b"\0" in self.name:
            raise BadTemplate(f"name {self.name!r} is not 1 to {NAME_BYTES} bytes without zeros")
        if len(self.discriminators) > MAX_DISCRIMINATORS:
            raise BadTemplate(f"{len(self.discriminators)} discriminators, at most {MAX_DISCRIMINATORS}")
        for program, ways in _ONLY.items():
            if getattr(self, program) and self.partitions not in ways:
                raise BadTemplate(f"a type with {self.partitions.name.lower()} partitions has no {program} program")
        version = VERSION if self.reboot else 1
        head = HEADER.size + RANGE.size * (version - 1)
        body = bytearray()
        for start, length in self.discriminators:
            body += RANGE.pack(start=start, length=length)
        places = []
        for program in (*_in_table(self.partitions), "reboot"):
            code = getattr(self, program)
            places.append({"start": head + len(body) if code else 0, "length": len(code)})
            body += code
        total = head + len(body)
        if total > MAX_BYTES:
            raise BadTemplate(f"{total} bytes, at most {MAX_BYTES}")
        out = bytearray(total)
        HEADER.pack_into(
            out,
            magic=MAGIC,
            version=version,
            kind=self.kind,
            discriminators=len(self.discriminators),
            parts=self.parts,
            blocks=self.blocks,
            partitions=self.partitions,
            total=total,
            name=self.name,
            programs=places[:-1],
        )
        if version == VERSION:
            RANGE.pack_into(out, HEADER.size, **places[-1])
        out[head:] = body
        HEADER.view(out).checksum = zlib.crc32(out)
        return bytes(out)

    @staticmethod
    def unpack(raw: bytes | bytearray | memoryview) -> Template:
        """The template at the start of `raw` (what follows it, such as the rest of a block, is not looked at).

        Raises BadTemplate."""
        if len(raw) < HEADER.size:
            raise BadTemplate(f"{len(raw)} bytes are too few")
        head = HEADER.unpack(raw)
        if head.magic != MAGIC:
            raise BadTemplate("no template here: wrong magic number")
        if head.version not in (1, VERSION):
            raise BadTemplate(f"version {head.version}; this program knows 1 to {VERSION}")
        if not HEADER.size <= head.total <= min(len(raw), MAX_BYTES):
            raise BadTemplate(f"length {head.total} does not fit {len(raw)} bytes")
        copy = bytearray(raw[: head.total])
        HEADER.view(copy).checksum = 0
        if zlib.crc32(copy) != head.checksum:
            raise BadTemplate("checksum does not match")
        if head.kind not in tuple(Kind):
            raise BadTemplate(f"kind {head.kind}")
        if head.partitions not in tuple(Partitions):
            raise BadTemplate(f"partitions {head.partitions}, which is no way to say what they are")
        if head.discriminators > MAX_DISCRIMINATORS:
            raise BadTemplate(f"{head.discriminators} discriminators, at most {MAX_DISCRIMINATORS}")
        table = HEADER.size + RANGE.size * (head.version - 1)
        start = table + head.discriminators * RANGE.size
        if start > head.total:
            raise BadTemplate("discriminators reach beyond the template")
        regions = [RANGE.unpack(copy, table + i * RANGE.size) for i in range(head.discriminators)]
        programs = {}
        partitions = Partitions(head.partitions)
        places = [*head.programs, *(RANGE.unpack(copy, HEADER.size) for _ in range(head.version - 1))]
        for name, place in zip((*_in_table(partitions), "reboot"), places, strict=False):
            if place.length and not start <= place.start <= place.start + place.length <= head.total:
                raise BadTemplate(f"program {name} lies outside the template")
            programs[name] = bytes(copy[place.start : place.start + place.length])
        template = Template(
            name=head.name.rstrip(b"\0"),
            kind=Kind(head.kind),
            blocks=head.blocks,
            parts=head.parts,
            partitions=partitions,
            discriminators=tuple((r.start, r.length) for r in regions),
            **programs,
        )
        if template.pack() != bytes(raw[: head.total]):
            raise BadTemplate("not in the one form that packing gives")
        return template
