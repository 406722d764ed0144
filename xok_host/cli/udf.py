"""`xok udf list|disassemble|run|explain|pack SOURCE …`: what downloaded code says, and how it comes to say it.

Everything is offline, like `xok check`: SOURCE is a disk that no xokd uses, a file with one packed template, or an
object file of `clang -target bpf`, of which `pack` makes a template.
Types are looked up in the disk's catalogue; without `--block` or `--file` the instance is the empty one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from xok_host.abi import elf
from xok_host.abi.calls import CatalogueEntry
from xok_host.abi.declare import Structure
from xok_host.abi.ebpf import Instruction, decode, disassemble
from xok_host.abi.errors import BadCall, NotFound, TypeInvalid
from xok_host.abi.template import MAGIC, MAX_BYTES, PROGRAMS, BadTemplate
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB, TYPE_XN_TYPE, da_block, da_offset, disk_address
from xok_host.abi.udf import HELPERS, META_BASE
from xok_host.cli import exits
from xok_host.host.blockdev import open_disk
from xok_host.host.config import without_from_environment
from xok_host.host.reconstruct import BlockReader
from xok_host.host.signature import naming
from xok_host.kernel.xn import recover
from xok_host.kernel.xn.explain import Answer, Partition, Readers, explain, readers, whole_block
from xok_host.kernel.xn.interp import MAX_OUTPUT
from xok_host.kernel.xn.readset import MAX_USES
from xok_host.kernel.xn.template import MAX_BLOCKS, MAX_GUARDS, MAX_REGIONS, Template, import_template
from xok_host.kernel.xn.trace import trace

HELP = "list, disassemble, run and explain the UDFs of a disk's types, and pack those written in C"

_SOURCE = "a disk that no xokd uses, a file with a packed template, or an object file of `clang -target bpf`"

_DEV = 1
"""Device number in disk addresses: offline any will do."""
_MAX_OUTPUT = {"access": MAX_REGIONS, "guard": MAX_GUARDS, "uses": MAX_USES}
_BUILTIN = {int(TYPE_XN_DB): "xn-db", int(TYPE_XN_TYPE): "xn-type"}


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    for name, text in (
        ("list", "the types and the size of their programs"),
        ("disassemble", "print one program of a type, or all"),
        ("run", "run one program against an instance and print what it emits"),
        ("pack", "make a template of an object file, for a libFS to import"),
        ("explain", "ask every partition of an instance what it owns, references and counts, and why not"),
    ):
        action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        action.add_argument("source", metavar="SOURCE", help=_SOURCE)
        action.add_argument("--parts", metavar="P", type=int, default=SECTORS, help="object file: partitions (8)")
        action.add_argument("--traced", action="store_true", help="object file: its partitions are what they read")
        if name == "pack":
            action.add_argument("output", metavar="OUTPUT", help="where to write the template")
            action.add_argument("--name", metavar="NAME", help="of the type; default: the file's")
            continue
        action.add_argument("--json", action="store_true", help="as JSON")
        if name == "list":
            continue
        action.add_argument("type", metavar="TYPE", nargs="?", help="name or number; not needed if there is only one")
        if name != "explain":
            action.add_argument("program", metavar="PROGRAM", nargs="?", help=", ".join(PROGRAMS))
        if name == "disassemble":
            continue
        action.add_argument(
            "--fields", metavar="MODULE:NAME", help="a Structure: what a partition is, to name its bytes"
        )
        instance = action.add_mutually_exclusive_group()
        instance.add_argument("--block", metavar="N", type=int, help="the instance is this block of the disk")
        instance.add_argument("--file", metavar="FILE", help="the instance is this file, filled up with zeros")
        action.add_argument(
            "--part", metavar="P", type=int, help="partition, of uses the sector (explain: all; run: 0)"
        )
        action.add_argument(
            "--da", metavar="DA", type=_number, help="disk address of the instance; default: the block's"
        )
        if name == "run":
            action.add_argument("--new", metavar="FILE", help="acl, method: the proposed bytes")
            action.add_argument("--context", metavar="FILE", help="method: what it is told besides")
            action.add_argument(
                "--capability", metavar="C", type=_number, default=0, help="guard: tree's; acl: caller's"
            )
            action.add_argument("--time", metavar="NS", type=_number, default=0, help="acl, method: the time")
            action.add_argument("--trace", action="store_true", help="print every instruction with its operands")


def run(options: argparse.Namespace) -> int:
    if options.action == "pack":
        return _pack(options)
    with _open(options.source, options) as source:
        if options.action == "list":
            return _list(source, options)
        kind = source.pick(options)
        source.structure = _structure(kind, getattr(options, "fields", None))
        return {"disassemble": _disassemble, "run": _run, "explain": _explain}[options.action](source, kind, options)


def _structure(kind: Kind, wanted: str | None) -> Structure | None:
    """The structure that names a partition's bytes: the one asked for, or C-FFS's own.  Raises BadCall."""
    if wanted is None:
        known: dict[str, Structure] = importlib.import_module("libfs.cffs.layout").SECTOR_OF
        return known.get(kind.name)
    module, _, name = wanted.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadCall(f"--fields {wanted}: {error}") from None
    if not isinstance(found, Structure):
        raise BadCall(f"--fields {wanted} is no Structure")
    return found


def _pack(options: argparse.Namespace) -> int:
    raw = _read_file(options.source, elf.MAX_OBJECT)
    template = _of_object(raw, options.name or os.path.basename(options.source).partition(".")[0], options)
    with open(options.output, "wb") as file:
        file.write(template.described.pack())
    lengths = "  ".join(f"{name} {program.length}" for name, program in template.programs.items())
    print(f"{options.output}: type {template.name.decode()}, {template.parts} partitions; instructions: {lengths}")
    return exits.OK


def _of_object(raw: bytes, name: str, options: argparse.Namespace) -> Template:
    """The accepted type that an object file makes.  Raises TypeInvalid."""
    try:
        return import_template(
            elf.template_of_object(raw, name.encode(), parts=options.parts, traced=options.traced).pack()
        )
    except (elf.BadObject, BadTemplate) as error:
        raise TypeInvalid(str(error)) from None


def _number(text: str) -> int:
    return int(text, 0)


@dataclass(slots=True)
class Kind:
    """A type of the source: `template` is None, and `refused` says why, if XN would not take it."""

    id: int
    name: str
    template: Template | None
    refused: str = ""


@dataclass(slots=True)
class Source:
    """Where types and blocks come from; `read` is None without a disk."""

    path: str
    kinds: list[Kind] = field(default_factory=list)
    nblocks: int = 0
    read: BlockReader | None = None
    structure: Structure | None = None
    """What a partition of the type in question is, if that is known."""

    def name_of(self, type_id: int) -> str:
        known = {kind.id: kind.name for kind in self.kinds if kind.id} | _BUILTIN
        return f"type {type_id}" + (f" ({known[type_id]})" if type_id in known else ", which this disk does not have")

    def pick(self, options: argparse.Namespace) -> Kind:
        """The type asked for.  Raises NotFound, BadCall, or TypeInvalid if XN would refuse it."""
        wanted = options.type
        if wanted in PROGRAMS and getattr(options, "program", "") is None and not self._find(wanted):
            options.program, wanted = wanted, None
        names = ", ".join(f"{kind.name} ({kind.id})" if kind.id else kind.name for kind in self.kinds) or "none"
        if wanted is None and len(self.kinds) != 1:
            raise BadCall(f"name a type of {self.path}: {names}")
        kind = self.kinds[0] if wanted is None else self._find(wanted)
        if kind is None:
            raise NotFound(f"{self.path} has no type {wanted!r}; its types: {names}")
        if kind.template is None:
            raise TypeInvalid(f"{kind.name}: {kind.refused}")
        return kind

    def _find(self, wanted: str) -> Kind | None:
        by_name = [kind for kind in self.kinds if kind.name == wanted]
        by_number = [kind for kind in self.kinds if kind.id and str(kind.id) == wanted]
        return next(iter(by_name + by_number), None)

    def instance(self, template: Template, options: argparse.Namespace) -> bytes:
        """The bytes to run against.  Raises BadCall for a block that is not there."""
        size = template.first_bytes
        if options.file is not None:
            return _read_file(options.file, MAX_BLOCKS * BLOCK).ljust(size, b"\0")
        if options.block is None:
            return bytes(size)
        if self.read is None:
            raise BadCall(f"{self.path} is no disk, so it has no blocks: give --file FILE")
        if not 0 <= options.block <= self.nblocks - size // BLOCK:
            raise BadCall(f"block {options.block} is not on {self.path}: it has blocks 0 to {self.nblocks - 1}")
        return b"".join(self.read(options.block + i) for i in range(size // BLOCK))


@contextmanager
def _open(path: str, options: argparse.Namespace) -> Iterator[Source]:
    """Raises BadDisk, InUse, or TypeInvalid for a file that begins like a template and is none."""
    head = b""
    if os.path.isfile(path) and os.access(path, os.R_OK):  # else opening it as a disk says what is wrong
        head = _read_file(path, elf.MAX_OBJECT, cut=True)
    if head.startswith((MAGIC, elf.MAGIC)):
        name = os.path.basename(path).partition(".")[0]
        template = import_template(head) if head.startswith(MAGIC) else _of_object(head, name, options)
        yield Source(path, [Kind(0, template.name.decode(), template)])
        return
    disk = open_disk(path, without=without_from_environment())
    try:
        source = Source(path, [], disk.nblocks, BlockReader(disk))
        assert source.read is not None
        with naming(path):
            _, catalogue = recover.read_catalogue(source.read, disk.nblocks)
        for entry in catalogue.entries():
            if entry.kind == CatalogueEntry.TYPE:
                source.kinds.append(_kind(source.read, disk.nblocks, entry))
        yield source
    finally:
        disk.close()


def _kind(read: BlockReader, nblocks: int, entry: CatalogueEntry) -> Kind:
    if not 0 < entry.db <= nblocks - entry.count or entry.count * BLOCK > MAX_BYTES:
        return Kind(entry.type, entry.name, None, f"its template is said to be {entry.count} blocks at {entry.db}")
    raw = b"".join(read(entry.db + i) for i in range(entry.count))
    try:
        return Kind(entry.type, entry.name, import_template(raw))
    except TypeInvalid as error:
        return Kind(entry.type, entry.name, None, error.detail)


def _read_file(path: str, limit: int, cut: bool = False) -> bytes:
    with open(path, "rb") as file:
        raw = file.read(limit if cut else limit + 1)
    if len(raw) > limit:
        raise BadCall(f"{path} has more than {limit} bytes, the largest instance")
    return raw


def _program(kind: Kind, name: str | None) -> Any:
    assert kind.template is not None
    has = ", ".join(kind.template.programs) or "none"
    if name is None:
        raise BadCall(f"name a program of {kind.name}: {has}")
    if name not in PROGRAMS:
        raise BadCall(f"there is no program {name!r}; programs are {', '.join(PROGRAMS)}")
    if name not in kind.template.programs:
        raise NotFound(f"{kind.name} has no program {name}; it has {has}")
    return kind.template.programs[name]


def _list(source: Source, options: argparse.Namespace) -> int:
    rows = []
    for kind in source.kinds:
        row: dict[str, Any] = {"id": kind.id, "name": kind.name}
        if kind.template is None:
            row["refused"] = kind.refused
        else:
            row["kind"] = kind.template.kind.name
            row["parts"] = kind.template.parts
            row["partitions"] = kind.template.described.partitions.name.lower()
            row["instructions"] = {name: program.length for name, program in kind.template.programs.items()}
        rows.append(row)
    if options.json:
        print(json.dumps(rows, indent=2))
        return exits.OK
    if not rows:
        print("no types")
    for row in rows:
        number = f"type {row['id']:<6}" if row["id"] else ""
        if "refused" in row:
            print(f"{row['name']:24} {number} REFUSED: {row['refused']}")
            continue
        programs = "  ".join(f"{name} {count}" for name, count in row["instructions"].items())
        way = "" if row["partitions"] == "explicit" else row["partitions"] + " "
        print(f"{row['name']:24} {number} {row['kind']}, {row['parts']} {way}partitions; instructions: {programs}")
    return exits.OK


def _disassemble(source: Source, kind: Kind, options: argparse.Namespace) -> int:
    assert kind.template is not None
    names = [options.program] if options.program else list(kind.template.programs)
    listings = {name: _listing(_program(kind, name).code) for name in names}
    if options.json:
        print(json.dumps(listings, indent=2))
        return exits.OK
    for number, (name, lines) in enumerate(listings.items()):
        print(("\n" if number else "") + f"{kind.name} {name}")
        print("\n".join(lines))
    return exits.OK


def _listing(code: bytes) -> list[str]:
    """The disassembly, with helpers by name."""
    calls = {f"call {number}": f"call {name}" for number, name in HELPERS.items()}
    return [line + f"  ; {calls[line[6:]]}" if line[6:] in calls else line for line in disassemble(code).splitlines()]


def _run(source: Source, kind: Kind, options: argparse.Namespace) -> int:
    template = kind.template
    assert template is not None
    name = options.program
    program = _program(kind, name)
    meta = source.instance(template, options)
    start, windows = 0, None
    part = 0 if name in ("guard", "size") else options.part or 0
    if name == "uses":
        if not 0 <= part < SECTORS:
            raise BadCall(f"uses is asked of a sector, 0 to {SECTORS - 1}: not of {part}")
        start = part * SECTOR
        windows = array("Q", (start, start + SECTOR))
    elif name not in ("guard", "size"):
        start = template.regions[template.partition(part)][0][0]
        windows = template.windows[part] if name in ("owns", "refs", "refcnt", "reboot") else None
    how: dict[str, Any] = {"windows": windows, "max_out": _MAX_OUTPUT.get(name, MAX_OUTPUT)}
    if name == "access":
        meta, how["windows"] = bytes(template.first_bytes), array("Q")
    if name in ("guard", "acl", "method"):
        how["r4"] = options.capability
    if name in ("refs", "refcnt"):
        how["r5"] = _da(options)
    if name in ("acl", "method"):
        how["r5"] = options.time
        how["new"] = (
            meta if options.new is None else _read_file(options.new, MAX_BLOCKS * BLOCK).ljust(len(meta), b"\0")
        )
    if name == "method" and options.context is not None:
        how["context"] = _read_file(options.context, MAX_BLOCKS * BLOCK)
    if options.trace and not options.json:
        how["on_step"] = lambda *step: _print_step(source.structure, start, *step)
    result = trace(program, meta, part, **how)
    if options.json:
        print(
            json.dumps(
                {
                    "r0": result.r0,
                    "emitted": result.output,
                    "executed": result.executed,
                    "read": result.bytes_read(),
                    "fault": str(result.fault) if result.fault else None,
                },
                indent=2,
            )
        )
    else:
        for values in result.output:
            print("emits " + _meaning(source, name, values))
        print(f"{result.executed} instructions; bytes read: {_ranges(result.bytes_read())}")
        _print_fields(source.structure, start, [at for region, at, _, _ in result.reads if region == "META"])
        if result.fault:
            print(f"FAULT: {result.fault}\n  {_line(program.code, result.fault.slot)}")
        else:
            print(f"r0 = {result.r0}")
    return exits.REFUSED if result.fault else exits.OK


def _print_fields(structure: Structure | None, start: int, offsets: list[int]) -> None:
    """Names of what was read, in the order of the first time."""
    names = [] if structure is None else [name for at in offsets if (name := structure.name_at(at - start))]
    if names:
        print("          fields read: " + ", ".join(dict.fromkeys(names)))


def _print_step(
    structure: Structure | None, start: int, slot: int, instruction: Instruction, registers: list[int]
) -> None:
    used = sorted({instruction.dst, instruction.src} if instruction.opcode.form not in ("jump", "exit") else {0})
    if instruction.opcode.form == "call":
        used = [1, 2, 3]
    text = f"{slot:4d}  {instruction!s:32} " + "  ".join(f"r{n}={registers[n]:#x}" for n in used)
    if structure is not None and instruction.opcode.form == "load":
        name = structure.name_at(registers[instruction.src] + instruction.offset - META_BASE - start)
        text += f"  ; {name}" if name else ""
    print(text)


def _explain(source: Source, kind: Kind, options: argparse.Namespace) -> int:
    template = kind.template
    assert template is not None
    meta = source.instance(template, options)
    parts = range(template.parts) if options.part is None else [template.partition(options.part)]
    found = [explain(template, meta, part, _da(options)) for part in parts]
    whole = whole_block(template, meta, _da(options)) if options.part is None else ""
    shared = readers(template, meta, _da(options)) if options.part is None else []
    bad = bool(whole) or any(answer.refused for partition in found for answer in partition.answers)
    if options.json:
        said = {"type": kind.name, "partitions": [_as_json(p) for p in found], "refused": whole}
        if template.read_sets is not None and template.read_sets.overlapping:
            said["readers"] = [asdict(one) for one in shared]
        print(json.dumps(said, indent=2))
        return exits.REFUSED if bad else exits.OK
    where = f"block {options.block}" if options.block is not None else options.file or "the empty instance"
    print(f"{kind.name}, {where}")
    for partition in found:
        regions = _ranges([(start, start + length) for start, length in partition.regions])
        way = "" if template.read_sets is None else "reads "
        print(f"partition {partition.number}: {way}bytes {regions}")
        for answer in partition.answers:
            _print_answer(source, template, answer, template.regions[partition.number][0][0])
    for one in shared:
        _print_readers(one)
    if whole:
        print(f"REFUSED: {whole}")
    return exits.REFUSED if bad else exits.OK


def _print_answer(source: Source, template: Template, answer: Answer, start: int) -> None:
    print(f"  {answer.program:7} {answer.executed} instructions; bytes read: {_ranges(answer.read)}")
    _print_fields(source.structure, start, answer.offsets)
    for values in answer.said:
        print("          " + _meaning(source, answer.program, values))
    if answer.refused:
        print(f"          REFUSED: {answer.refused}")
    if answer.fault:
        print("          " + _line(template.programs[answer.program].code, answer.fault.slot).strip())


def _print_readers(one: Readers) -> None:
    """How many partitions read some bytes, and how many `uses` says."""
    if one.refused:
        print(f"bytes {one.first} to {one.end - 1}: REFUSED: {one.refused}")
        return
    text = f"bytes {_ranges([(one.first, one.end)])}: read by {one.number}"
    print(text + (", as uses says" if one.number == one.claimed else f", and uses says by {one.claimed}"))


def _as_json(partition: Partition) -> dict[str, Any]:
    return {
        "part": partition.number,
        "regions": partition.regions,
        **{
            answer.program: {
                "said": answer.said,
                "executed": answer.executed,
                "read": answer.read,
                "refused": answer.refused or None,
            }
            for answer in partition.answers
        },
    }


def _da(options: argparse.Namespace) -> int:
    return int(disk_address(_DEV, options.block or 0)) if options.da is None else int(options.da)


def _meaning(source: Source, program: str, values: tuple[int, int, int]) -> str:
    """One element of the output in words."""
    first, second, third = values
    if program == "owns":
        last = f" to {first + second - 1}" if second > 1 else ""
        return f"owns block {first}{last}, {source.name_of(third)}"
    if program == "access":
        return f"bytes {first} to {first + second - 1}"
    if program == "uses":
        return f"bytes {first} to {first + second - 1} are read by {third} partitions"
    if program == "refs":
        return f"refers to {_place(first)}"
    if program == "refcnt":
        return f"counts {second} references to {_place(first)}"
    if program == "reboot":
        return f"reports the pointer to block {second} in the sector of {_place(first)}, in session {third}"
    if program == "guard":
        return f"capability {first:#x} may {('nothing', 'read', 'write', 'read and write')[second & 3]}"
    return str(values)


def _place(da: int) -> str:
    return f"block {da_block(da)} byte {da_offset(da)} (da {da:#x})"


def _ranges(ranges: list[tuple[int, int]]) -> str:
    return ", ".join(f"{a}" if b - a == 1 else f"{a} to {b - 1}" for a, b in ranges) or "none"


def _line(code: bytes, slot: int) -> str:
    """The disassembly of one slot."""
    at = 0
    for number, instruction in enumerate(decode(code)):
        if at == slot:
            return _listing(code)[number]
        at += instruction.slots
    raise AssertionError(f"slot {slot} is not an instruction")
