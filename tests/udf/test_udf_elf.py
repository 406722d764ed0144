"""UDFs in C: object files, as clang writes them where it is installed, and as this test writes them everywhere."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.udf.test_udf_derive import SIMPLE
from xok_host.abi.derive import derive
from xok_host.abi.ebpf import ALU64, R0, R1, R2, R3, Assembler, Instruction, K, X
from xok_host.abi.elf import (
    HEADER,
    MAX_OBJECT,
    RELOCATION,
    SECTION,
    SYMBOL,
    BadObject,
    programs_of_object,
    template_of_object,
)
from xok_host.abi.template import Partitions
from xok_host.abi.types import BLOCK
from xok_host.cli import exits
from xok_host.cli.__main__ import main
from xok_host.kernel.xn.interp import Program
from xok_host.kernel.xn.template import import_template

EXAMPLES = Path(__file__).parents[2] / "examples" / "udf"
CLANG = next((found for name in ("clang", "clang-14", "clang-16", "clang-18") if (found := shutil.which(name))), None)


class Strings:
    def __init__(self) -> None:
        self.data = bytearray(1)

    def add(self, text: str) -> int:
        at = len(self.data)
        self.data += text.encode() + b"\0"
        return at


def build(
    programs: dict[str, bytes],
    relocations: list[tuple[str, int, str]] = [],  # noqa: B006
    symbols: list[tuple[str, str, int, int, int]] = [],  # noqa: B006
    data: dict[str, bytes] = {},  # noqa: B006
    functions: bool = True,
    **head: Any,
) -> bytes:
    """An object file as clang lays it out.  Symbols are (name, section, kind, value, size)."""
    names, strings = Strings(), Strings()
    order = ["", *programs, *data]
    contents = [b"", *programs.values(), *data.values()]
    kinds = [0] + [1] * (len(order) - 1)
    flags = [0] + [6] * len(programs) + [2] * len(data)
    links, infos = [0] * len(order), [0] * len(order)
    table = list(symbols)
    if functions:
        table += [(f"xok_{name}", name, 2, 0, len(code)) for name, code in programs.items()]
    packed = bytes(SYMBOL.size)
    for name, section, kind, value, size in table:
        place = order.index(section) if section in order else 0
        packed += SYMBOL.pack(name=strings.add(name), info=16 | kind, shndx=place, value=value, size=size)
    for target in programs:
        found = [(slot, symbol) for section, slot, symbol in relocations if section == target]
        if found:
            number = {symbol[0]: index + 1 for index, symbol in enumerate(table)}
            entries = [RELOCATION.pack(offset=8 * slot, info=number[symbol] << 32 | 1) for slot, symbol in found]
            order.append(f".rel{target}")
            contents.append(b"".join(entries))
            kinds.append(9)
            flags.append(0)
            links.append(len(order) + 1)
            infos.append(order.index(target))
    for name, kind, body in ((".strtab", 3, b""), (".symtab", 2, packed)):
        order.append(name)
        kinds.append(kind)
        contents.append(body)
        flags.append(0)
        links.append(order.index(".strtab"))
        infos.append(0)
    contents[order.index(".strtab")] = bytes(strings.data)
    order.append(".shstrtab")
    kinds.append(3)
    flags.append(0)
    links.append(0)
    infos.append(0)
    at = [names.add(name) for name in order]
    contents.append(bytes(names.data))
    out, headers = bytearray(HEADER.size), b""
    for index in range(len(order)):
        headers += SECTION.pack(
            name=at[index],
            type=kinds[index],
            flags=flags[index],
            offset=len(out),
            size=len(contents[index]),
            link=links[index],
            info=infos[index],
        )
        out += contents[index]
    values: dict[str, Any] = {
        "ident": b"\x7fELF\2\1\1",
        "type": 1,
        "machine": 247,
        "version": 1,
        "shoff": len(out),
        "ehsize": 64,
        "shentsize": 64,
        "shnum": len(order),
        "shstrndx": len(order) - 1,
        **head,
    }
    HEADER.pack_into(out, **values)
    return bytes(out) + headers


def code(write: Callable[[Assembler], None] = lambda asm: None) -> bytes:
    asm = Assembler()
    write(asm)
    asm.mov(R0, 0)
    asm.exit()
    return asm.finish()


def owning(asm: Assembler) -> None:
    asm.mov(R2, 1)
    asm.load(R1, R1, 0, 8)
    asm.call(1)


GOOD = build({"owns": code(), "guard": code()})


def test_programs_come_out_by_section() -> None:
    assert programs_of_object(GOOD) == {"owns": code(), "guard": code()}
    described = template_of_object(GOOD, b"c", parts=4)
    accepted = import_template(described.pack())
    assert accepted.parts == 4 and accepted.regions[3] == ((1536, 512),)
    sized = build({"owns": code(), "size": code(lambda asm: asm.exit()), "access": described.access})
    assert template_of_object(sized, b"c").blocks == 0
    assert template_of_object(sized, b"c").access == described.access


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not an object file: compile with `clang -target bpf -O2 -c`"),
        (b"\x7fELF", "not an object file"),
        (bytes(MAX_OBJECT + 1), "bytes, at most"),
        (build({"owns": code()}, machine=62), "not for the little-endian BPF machine"),
        (build({"owns": code()}, ident=b"\x7fELF\1\1\1"), "little-endian BPF"),
        (build({"owns": code()}, ident=b"\x7fELF\2\2\1"), "little-endian BPF"),
        (build({"owns": code()}, type=2), "compile with -c"),
        (build({"owns": code()}, shentsize=40), "sections of 40 bytes"),
        (build({"owns": code()}, shnum=0), "0 sections"),
        (build({"owns": code()}, shnum=300), "300 sections"),
        (build({"owns": code()}, shstrndx=200), "sections of"),
        (build({"owns": code()}, shoff=1 << 62), "section table lies outside"),
        (build({}), "no section is called access, owns"),
        (build({"own": code()}), "section 'own' with xok_own: programs are called"),
        (build({"owns": code(), ".text": code()}), "xok_.text: a function that is no program"),
        (build({"owns": code()}, functions=False), "must be one function, and holds none"),
        (build({"owns": code()}, symbols=[("two", "owns", 2, 8, 8)]), "holds two, xok_owns: XOK_INLINE"),
        (build({"owns": code()[:-4]}), "not a whole number of instructions"),
        (build({"owns": code() + b"\xff" * 8}), "slot 2: unknown opcode"),
        (build({"owns": code(lambda asm: asm.call(5))}), "slot 0: calls helper 5; UDFs know 1 emit, 2 emit_ref"),
        (
            build({"owns": code(lambda asm: asm.add(Instruction(0x85, 0, 1, 0, 2)))}),
            "calls another function; write XOK_INLINE",
        ),
        (
            build(
                {"owns": code()},
                relocations=[("owns", 0, "table")],
                symbols=[("table", ".rodata", 1, 0, 8)],
                data={".rodata": bytes(8)},
            ),
            "owns, slot 0: uses table in .rodata; a UDF has no data",
        ),
        (
            build(
                {"owns": code(lambda asm: asm.wide(R1, 0))},
                relocations=[("owns", 0, "hash")],
                symbols=[("hash", ".maps", 1, 0, 8)],
                data={".maps": bytes(8)},
            ),
            "uses hash in .maps",
        ),
        (
            build({"owns": code()}, relocations=[("owns", 1, "memcpy")], symbols=[("memcpy", "", 0, 0, 0)]),
            "slot 1: memcpy is defined nowhere",
        ),
        (
            build({"owns": code(), "refs": code()}, relocations=[("owns", 1, "xok_refs")]),
            "calls xok_refs; write XOK_INLINE",
        ),
    ],
)
def test_refused(raw: bytes, why: str) -> None:
    with pytest.raises(BadObject) as caught:
        programs_of_object(raw)
    assert why in str(caught.value), str(caught.value)


def test_every_cut_and_every_flipped_byte_is_refused_or_read() -> None:
    """ELF-1: no other exception, whatever the bytes are."""
    good = build(
        {"owns": code(owning)},
        relocations=[("owns", 0, "table")],
        symbols=[("table", ".rodata", 1, 0, 8)],
        data={".rodata": bytes(8)},
    )
    dice = random.Random(4)
    tries = [good[:length] for length in range(len(good))]
    for raw in (good, GOOD):
        for at in range(len(raw)):
            for byte in (0, 0xFF, raw[at] ^ 1 << dice.randrange(8)):
                changed = bytearray(raw)
                changed[at] = byte
                tries.append(bytes(changed))
    taken = 0
    for raw in tries:
        try:
            programs_of_object(raw)
            taken += 1
        except BadObject:
            pass
    assert 0 < taken < len(tries)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_forged_numbers_are_refused_or_read(data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 8))
        raw[at : at + 8] = data.draw(st.sampled_from((0, 1, 2**63, 2**64 - 1, len(raw), 2**32 - 1))).to_bytes(
            8, "little"
        )
    try:
        programs_of_object(bytes(raw))
    except BadObject:
        pass


# With a compiler

needs_clang = pytest.mark.skipif(CLANG is None, reason="no clang here; the reader itself is tested above")


def compile_c(directory: Path, text: str, *flags: str) -> bytes:
    source, out = directory / "t.c", directory / "t.o"
    source.write_text(text)
    assert CLANG is not None
    words = [CLANG, "-target", "bpf", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{EXAMPLES}", *flags, "-c", "-o"]
    done = subprocess.run([*words, str(out), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out.read_bytes()


@needs_clang
@pytest.mark.parametrize("flags", [("-mcpu=v1",), ("-mcpu=v2",), ("-mcpu=v3",), ("-mcpu=v3", "-g")], ids="-".join)
def test_the_example_in_c_says_what_the_declaration_says(tmp_path: Path, flags: tuple[str, ...]) -> None:
    raw = compile_c(tmp_path, (EXAMPLES / "simple.c").read_text(), *flags)
    in_c = template_of_object(raw, b"simple")
    import_template(in_c.pack())
    derived = derive(SIMPLE, b"simple", types={"data": 1})
    dice = random.Random(7)
    for _ in range(60):
        block = bytearray(BLOCK)
        for _ in range(dice.randrange(80)):
            block[dice.randrange(BLOCK)] = dice.randrange(256)
        for part in range(8):
            for name in ("owns", "refs", "refcnt"):
                said = [Program(getattr(t, name)).run(block, part, r5=5 << 56)[1] for t in (in_c, derived)]
                assert said[0] == said[1]


@needs_clang
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("static const u64 t[4] = {3, 1, 4, 1}; XOK_PROGRAM(owns) { return t[part & 3]; }", "has no data"),
        ("u64 counter; XOK_PROGRAM(owns) { return counter++; }", "uses counter in .bss; a UDF has no data"),
        (
            "static __attribute__((noinline)) u64 f(u64 x) { return x * x; } XOK_PROGRAM(owns) { return f(part); }",
            "XOK_INLINE",
        ),
        ("u64 far(u64); XOK_PROGRAM(owns) { return far(part); }", "far is defined nowhere"),
        (
            "static u64 (*const ktime)(void) = (void *)5; XOK_PROGRAM(owns) { return ktime(); }",
            "calls helper 5; UDFs know",
        ),
        ("XOK_PROGRAM(own) { return 0; }", "section 'own'"),
        ("u64 f(void) { return 0; }", "f: a function that is no program"),
        ("int unused;", "no section is called"),
    ],
)
def test_what_c_may_not_do(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(BadObject) as caught:
        programs_of_object(compile_c(tmp_path, '#include "xok.h"\n' + text + "\n"))
    assert why in str(caught.value), str(caught.value)


# The command


def reading(asm: Assembler) -> None:
    asm.add(Instruction(ALU64 | 0x00 | X, 1, 3, 0, 0))
    asm.load(R0, R1, 0, 1)


def using(asm: Assembler) -> None:
    """The first two bytes of the first sector, once each."""
    asm.add(Instruction(0x55, 3, 0, 4, 0))  # jne r3, 0
    asm.mov(R1, 0)
    asm.mov(R2, 2)
    asm.mov(R3, 1)
    asm.call(1)


def test_partitions_of_an_object_may_be_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traced = template_of_object(build({"owns": code(reading)}), b"c", parts=4, traced=True)
    assert traced.partitions == Partitions.TRACED and not traced.access
    import_template(traced.pack())
    raw = build({"owns": code(reading), "uses": code(using)})
    import_template(template_of_object(raw, b"c", parts=2).pack())
    source = tmp_path / "mine.o"
    source.write_bytes(build({"owns": code(reading)}))
    assert main(["udf", "explain", str(source), "--traced"]) == exits.OK
    assert "partition 5: reads bytes 5\n" in capsys.readouterr().out
    source.write_bytes(raw)
    assert main(["udf", "list", str(source), "--parts", "2"]) == exits.OK
    assert "2 overlapping partitions" in capsys.readouterr().out
    assert main(["udf", "list", str(source), "--parts", "3"]) == exits.REFUSED
    assert "uses says that 0 partitions read byte 2; 1 do" in capsys.readouterr().err


def test_an_object_is_packed_run_and_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, packed = tmp_path / "mine.o", tmp_path / "mine.tmpl"
    dividing = code(lambda asm: asm.add(Instruction(ALU64 | 0x30 | K, 1, 0, 0, 3)))
    source.write_bytes(build({"owns": dividing, "guard": code(owning_cap)}))
    assert main(["udf", "pack", str(source), str(packed), "--name", "theirs", "--parts", "4"]) == exits.OK
    assert "type theirs, 4 partitions; instructions: access" in capsys.readouterr().out
    assert import_template(packed.read_bytes()).name == b"theirs"
    for words in (["list", str(packed)], ["list", str(source), "--parts", "2"], ["explain", str(source)]):
        assert main(["udf", *words]) == exits.OK
    assert "2 partitions" in capsys.readouterr().out
    assert main(["udf", "disassemble", str(source), "owns"]) == exits.OK
    assert "div64 r1, 3" in capsys.readouterr().out
    source.write_bytes(build({"own": code()}))
    for words in (["list", str(source)], ["pack", str(source), str(packed)]):
        assert main(["udf", *words]) == exits.REFUSED
        assert "section 'own'" in capsys.readouterr().err
    assert main(["udf", "pack", str(tmp_path / "absent.o"), str(packed)]) == exits.REFUSED


def owning_cap(asm: Assembler) -> None:
    asm.mov(R2, 3)
    asm.call(3)
