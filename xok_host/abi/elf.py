"""Programs from an object file: `clang -target bpf -O2 -c` gives one ELF section for each (docs/udf.md, "In C").

    template = template_of_object(raw, b"simple")

A section is called like the program in it and holds one function.  A UDF is nothing but its instructions: it has no
data, no maps and no calls but of the helpers, so relocations are refused with what to write instead.

ELF-1  Nothing in the file is trusted: every number is checked before it is used, and what is wrong is a `BadObject`.
ELF-2  What comes out is verified by XN at import like any other program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from xok_host.abi.declare import Structure, chars, u8, u16, u32, u64
from xok_host.abi.ebpf import BadProgram, decode
from xok_host.abi.template import PROGRAMS, Partitions, Template
from xok_host.abi.types import SECTOR, SECTORS
from xok_host.abi.udf import HELPERS, Function

MAX_OBJECT = 1 << 20
"""Bytes of an object file."""
MAX_SECTIONS = 256

MAGIC = b"\x7fELF"
_CLASS64, _LITTLE, _RELOCATABLE, _BPF = 2, 1, 1, 247
_SYMTAB, _RELA, _NOBITS, _REL = 2, 4, 8, 9
_EXECINSTR = 4
_FUNCTION = 2

HEADER = Structure(
    "Elf64_Ehdr",
    chars("ident", 16),
    u16("type"),
    u16("machine"),
    u32("version"),
    u64("entry"),
    u64("phoff"),
    u64("shoff"),
    u32("flags"),
    u16("ehsize"),
    u16("phentsize"),
    u16("phnum"),
    u16("shentsize"),
    u16("shnum"),
    u16("shstrndx"),
)
SECTION = Structure(
    "Elf64_Shdr",
    u32("name"),
    u32("type"),
    u64("flags"),
    u64("addr"),
    u64("offset"),
    u64("size"),
    u32("link"),
    u32("info"),
    u64("addralign"),
    u64("entsize"),
)
SYMBOL = Structure("Elf64_Sym", u32("name"), u8("info"), u8("other"), u16("shndx"), u64("value"), u64("size"))
RELOCATION = Structure("Elf64_Rel", u64("offset"), u64("info"))


class BadObject(ValueError):
    """An object file that UDFs cannot be taken from; the message says what to change."""


@dataclass(frozen=True, slots=True)
class _Section:
    index: int
    name: str
    type: int
    flags: int
    data: bytes
    link: int
    info: int


@dataclass(frozen=True, slots=True)
class _Symbol:
    name: str
    kind: int
    section: int
    value: int
    size: int


def programs_of_object(raw: bytes) -> dict[str, bytes]:
    """The programs, by name.  Raises BadObject."""
    sections = _sections(bytes(raw))
    symbols = _symbols(sections)
    out: dict[str, bytes] = {}
    for section in sections:
        if not section.flags & _EXECINSTR or not section.data:
            continue
        functions = [s for s in symbols if s.section == section.index and s.kind == _FUNCTION]
        if section.name not in PROGRAMS:
            _refuse_section(section, functions)
        if section.name in out:
            raise BadObject(f"there are two sections {section.name}")
        if len(functions) != 1 or functions[0].value or functions[0].size != len(section.data):
            names = ", ".join(s.name for s in functions) or "none"
            raise BadObject(f"section {section.name} must be one function, and holds {names}: XOK_INLINE the others")
        _check_relocations(section, sections, symbols)
        _check_instructions(section)
        out[section.name] = section.data
    if not out:
        raise BadObject(f"no section is called {', '.join(PROGRAMS)}: write XOK_PROGRAM(owns) before the function")
    return out


def template_of_object(raw: bytes, name: bytes, *, parts: int = SECTORS, traced: bool = False, **more: Any) -> Template:
    """A template of the object's programs.  Without `access`, partition p is sector p, unless partitions are `traced`;
    with `uses` they overlap.  Raises BadObject."""
    programs: dict[str, Any] = dict(programs_of_object(raw))
    if "uses" in programs:
        more.setdefault("partitions", Partitions.OVERLAPPING)
    elif traced:
        more.setdefault("partitions", Partitions.TRACED)
    elif "access" not in programs:
        f = Function()
        f.emit(f.part * SECTOR, SECTOR, 0)
        programs["access"] = f.finish()
    if "size" in programs:
        more.setdefault("blocks", 0)
    return Template(name=name, parts=parts, **programs, **more)


def _refuse_section(section: _Section, functions: list[_Symbol]) -> None:
    names = ", ".join(s.name for s in functions) or "code"
    if section.name == ".text":
        raise BadObject(f"{names}: a function that is no program; write XOK_PROGRAM(…) or XOK_INLINE before it")
    raise BadObject(f"section {section.name!r} with {names}: programs are called {', '.join(PROGRAMS)}")


def _slice(raw: bytes, start: int, size: int, what: str) -> bytes:
    if start > len(raw) or size > len(raw) - start:
        raise BadObject(f"{what} lies outside the file")
    return raw[start : start + size]


def _sections(raw: bytes) -> list[_Section]:
    if len(raw) > MAX_OBJECT:
        raise BadObject(f"{len(raw)} bytes, at most {MAX_OBJECT}")
    if len(raw) < HEADER.size or raw[:4] != MAGIC:
        raise BadObject("not an object file: compile with `clang -target bpf -O2 -c`")
    head = HEADER.unpack(raw)
    if head.ident[4] != _CLASS64 or head.ident[5] != _LITTLE or head.machine != _BPF:
        raise BadObject("not for the little-endian BPF machine: compile with `clang -target bpfel -O2 -c`")
    if head.type != _RELOCATABLE:
        raise BadObject("not an object file: compile with -c, do not link")
    if head.shentsize != SECTION.size or not 0 < head.shnum <= MAX_SECTIONS or head.shstrndx >= head.shnum:
        raise BadObject(f"{head.shnum} sections of {head.shentsize} bytes; 1 to {MAX_SECTIONS} of {SECTION.size}")
    table = _slice(raw, head.shoff, head.shnum * SECTION.size, "the section table")
    headers = [SECTION.unpack(table, index * SECTION.size) for index in range(head.shnum)]
    contents = [
        b"" if h.type in (0, _NOBITS) else _slice(raw, h.offset, h.size, f"section {index}")
        for index, h in enumerate(headers)
    ]
    names = contents[head.shstrndx]
    return [
        _Section(index, _string(names, h.name), h.type, h.flags, contents[index], h.link, h.info)
        for index, h in enumerate(headers)
    ]


def _string(table: bytes, at: int) -> str:
    end = table.find(b"\0", at)
    if at >= len(table) or end < 0:
        if at == 0:
            return ""
        raise BadObject("a name lies outside its string table")
    return table[at:end].decode(errors="replace")


def _records(section: _Section, structure: Structure, size: int) -> Iterator[Any]:
    if len(section.data) % size:
        raise BadObject(f"section {section.name} is not a whole number of entries")
    for at in range(0, len(section.data), size):
        yield structure.unpack(section.data, at)


def _symbols(sections: list[_Section]) -> list[_Symbol]:
    tables = [section for section in sections if section.type == _SYMTAB]
    if len(tables) != 1:
        raise BadObject(f"{len(tables)} symbol tables: the object must not be stripped")
    [table] = tables
    if table.link >= len(sections):
        raise BadObject("the symbols' names are in no section")
    names = sections[table.link].data
    return [
        _Symbol(_string(names, s.name), s.info & 15, s.shndx, s.value, s.size)
        for s in _records(table, SYMBOL, SYMBOL.size)
    ]


def _check_relocations(section: _Section, sections: list[_Section], symbols: list[_Symbol]) -> None:
    for table in sections:
        if table.type not in (_REL, _RELA) or table.info != section.index:
            continue
        for entry in _records(table, RELOCATION, 16 if table.type == _REL else 24):
            number = entry.info >> 32
            symbol = symbols[number] if number < len(symbols) else _Symbol("something", 0, 0, 0, 0)
            where = f"{section.name}, slot {entry.offset // 8}"
            holder = sections[symbol.section].name if symbol.section < len(sections) else ""
            if symbol.kind == _FUNCTION:
                raise BadObject(f"{where}: calls {symbol.name}; write XOK_INLINE before it")
            if not symbol.section:
                raise BadObject(f"{where}: {symbol.name} is defined nowhere; a UDF calls helpers of xok.h only")
            used = f"uses {symbol.name or holder} in {holder}"
            raise BadObject(f"{where}: {used}; a UDF has no data: compute it, or keep it on the stack")


def _check_instructions(section: _Section) -> None:
    try:
        instructions = decode(section.data)
    except BadProgram as error:
        raise BadObject(f"{section.name}: {error}") from None
    slot = 0
    for instruction in instructions:
        where = f"{section.name}, slot {slot}"
        if instruction.opcode.form == "call":
            if instruction.src:
                raise BadObject(f"{where}: calls another function; write XOK_INLINE before it")
            if instruction.imm not in HELPERS:
                known = ", ".join(f"{number} {name}" for number, name in HELPERS.items())
                raise BadObject(f"{where}: calls helper {instruction.imm}; UDFs know {known}")
        slot += instruction.slots
