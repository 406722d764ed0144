"""The instruction set of downloaded code: eBPF as in RFC 9669, declared once.

`OPCODES` is the table: from it come the encoder's and decoder's checks, the disassembler, the static verification of
UDFs, the interpreter's tests and the reference page.  An instruction is 8 bytes, little-endian (RFC 9669 section 3):
opcode, registers (destination in the low, source in the high half byte), signed 16-bit offset, signed 32-bit immediate.
The one wide instruction, LD_IMM64, carries the upper half of its immediate in a second slot.

`Assembler` writes programs with labels; `disassemble` prints them.  UDFs are usually written with the builder of
`xok_host.abi.udf`, one level up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

INSTRUCTION = 8
"""Bytes of one instruction slot."""
_LAYOUT = struct.Struct("<BBhi")

# Instruction classes, RFC 9669 section 3.2
LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)
# Source operand bit: immediate (K) or register (X)
K, X = 0x00, 0x08
# Sizes and modes of loads and stores, section 5
SIZES = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}
IMM, ABS, IND, MEM, MEMSX, ATOMIC = 0x00, 0x20, 0x40, 0x60, 0x80, 0xC0

ALU_CODES = {
    "add": 0x00,
    "sub": 0x10,
    "mul": 0x20,
    "div": 0x30,
    "or": 0x40,
    "and": 0x50,
    "lsh": 0x60,
    "rsh": 0x70,
    "neg": 0x80,
    "mod": 0x90,
    "xor": 0xA0,
    "mov": 0xB0,
    "arsh": 0xC0,
    "end": 0xD0,
}
BRANCH_CODES = {
    "jeq": 0x10,
    "jgt": 0x20,
    "jge": 0x30,
    "jset": 0x40,
    "jne": 0x50,
    "jsgt": 0x60,
    "jsge": 0x70,
    "jlt": 0xA0,
    "jle": 0xB0,
    "jslt": 0xC0,
    "jsle": 0xD0,
}
JA, CALL, EXIT = 0x00, 0x80, 0x90
FETCH = 0x01
ATOMIC_CODES = {
    "add": 0x00,
    "or": 0x40,
    "and": 0x50,
    "xor": 0xA0,
    "add_fetch": 0x00 | FETCH,
    "or_fetch": 0x40 | FETCH,
    "and_fetch": 0x50 | FETCH,
    "xor_fetch": 0xA0 | FETCH,
    "xchg": 0xE0 | FETCH,
    "cmpxchg": 0xF0 | FETCH,
}
"""Immediates of atomic operations, section 5.3.  FETCH: the source register (of cmpxchg, r0) gets what was there."""
_ATOMIC_NAMES = {code: name for name, code in ATOMIC_CODES.items()}
NEGATED = {
    "jeq": "jne",
    "jne": "jeq",
    "jgt": "jle",
    "jle": "jgt",
    "jge": "jlt",
    "jlt": "jge",
    "jsgt": "jsle",
    "jsle": "jsgt",
    "jsge": "jslt",
    "jslt": "jsge",
}
"""The branch taken exactly when the other is not; `jset` has none."""


class Reg(IntEnum):
    """Registers: r0 result, r1–r5 arguments (lost in calls), r6–r9 kept over calls, r10 end of the stack, read only."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Reg


class BadProgram(ValueError):
    """Bytes that are not a program; the message names the slot and the reason."""


@dataclass(frozen=True, slots=True)
class Opcode:
    """One row of the table.  `form` says which fields an instruction uses; all others must be zero."""

    code: int
    name: str
    form: str
    offsets: tuple[int, ...] = (0,)
    """Values of the offset field that select a variant (signed division, moves with sign extension)."""

    @property
    def kind(self) -> int:
        return self.code & 7


def _table() -> Iterator[Opcode]:
    for kind, suffix in ((ALU64, "64"), (ALU, "32")):
        for name, code in ALU_CODES.items():
            if name == "neg":
                yield Opcode(kind | code, f"neg{suffix}", "unary")
            elif name == "end":
                for source, title in ((K, "bswap"),) if kind == ALU64 else ((K, "le"), (X, "be")):
                    yield Opcode(kind | code | source, title, "swap")
            else:
                signed = (0, 1) if name in ("div", "mod") else (0,)
                extending = ((0, 8, 16, 32) if kind == ALU64 else (0, 8, 16)) if name == "mov" else signed
                yield Opcode(kind | code | K, name + suffix, "alu_k", signed)
                yield Opcode(kind | code | X, name + suffix, "alu_x", extending)
    for kind, suffix in ((JMP, ""), (JMP32, "32")):
        for name, code in BRANCH_CODES.items():
            yield Opcode(kind | code | K, name + suffix, "branch_k")
            yield Opcode(kind | code | X, name + suffix, "branch_x")
    yield Opcode(JMP | JA, "ja", "jump")
    yield Opcode(JMP32 | JA, "jal", "jump_long")
    yield Opcode(JMP | CALL, "call", "call")
    yield Opcode(JMP | EXIT, "exit", "exit")
    for width, size in SIZES.items():
        yield Opcode(LDX | MEM | size, f"ldx{width * 8}", "load")
        if width < 8:
            yield Opcode(LDX | MEMSX | size, f"ldsx{width * 8}", "load")
        yield Opcode(ST | MEM | size, f"st{width * 8}", "store_k")
        yield Opcode(STX | MEM | size, f"stx{width * 8}", "store_x")
        if width >= 4:
            yield Opcode(STX | ATOMIC | size, f"atomic{width * 8}", "atomic")
    yield Opcode(LD | IMM | SIZES[8], "lddw", "wide")


OPCODES: dict[int, Opcode] = {opcode.code: opcode for opcode in _table()}


def width_of(code: int) -> int:
    """Bytes that a load or store moves."""
    return {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}[code & 0x18]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.  `imm` is signed 32-bit; for `lddw` the whole unsigned 64-bit value."""

    code: int
    dst: int = 0
    src: int = 0
    offset: int = 0
    imm: int = 0

    @property
    def opcode(self) -> Opcode:
        return OPCODES[self.code]

    @property
    def writes(self) -> int | None:
        """The register that it changes, if it is one; calls change r0 to r5."""
        form = self.opcode.form
        if form == "atomic":
            return self.src if self.imm & FETCH and self.imm != ATOMIC_CODES["cmpxchg"] else None
        return self.dst if form in ("alu_k", "alu_x", "unary", "swap", "load", "wide") else None

    @property
    def slots(self) -> int:
        return 2 if self.code == LD | IMM | SIZES[8] else 1

    def encode(self) -> bytes:
        registers = self.dst | self.src << 4
        if self.slots == 1:
            return _LAYOUT.pack(self.code, registers, self.offset, self.imm)
        low, high = struct.unpack("<ii", struct.pack("<Q", self.imm & (1 << 64) - 1))
        return _LAYOUT.pack(self.code, registers, self.offset, low) + _LAYOUT.pack(0, 0, 0, high)

    def __str__(self) -> str:
        opcode = self.opcode
        dst, src, form = f"r{self.dst}", f"r{self.src}", opcode.form
        name = opcode.name
        if form in ("alu_k", "alu_x") and self.offset:
            name = f"{name}sx{self.offset}" if self.offset >= 8 else f"s{name}"
        text = {
            "alu_k": f"{name} {dst}, {self.imm}",
            "alu_x": f"{name} {dst}, {src}",
            "unary": f"{name} {dst}",
            "swap": f"{name}{self.imm} {dst}",
            "branch_k": f"{name} {dst}, {self.imm}, {self.offset:+d}",
            "branch_x": f"{name} {dst}, {src}, {self.offset:+d}",
            "jump": f"{name} {self.offset:+d}",
            "jump_long": f"{name} {self.imm:+d}",
            "call": f"{name} {self.imm}",
            "exit": name,
            "load": f"{name} {dst}, [{src}{self.offset:+d}]",
            "store_k": f"{name} [{dst}{self.offset:+d}], {self.imm}",
            "store_x": f"{name} [{dst}{self.offset:+d}], {src}",
            "atomic": f"{name} [{dst}{self.offset:+d}], {src}, {_ATOMIC_NAMES.get(self.imm, hex(self.imm))}",
            "wide": f"{name} {dst}, {self.imm:#x}" + (f" ({src})" if self.src else ""),
        }
        return text[form]


def decode(code: bytes) -> list[Instruction]:
    """The instructions of a program.  Raises BadProgram for unknown opcodes, bad registers and reserved fields."""
    if not code or len(code) % INSTRUCTION:
        raise BadProgram(f"{len(code)} bytes are not a whole number of instructions")
    out = []
    slot, end = 0, len(code) // INSTRUCTION
    while slot < end:
        number, registers, offset, imm = _LAYOUT.unpack_from(code, slot * INSTRUCTION)
        opcode = OPCODES.get(number)
        if opcode is None:
            raise BadProgram(f"slot {slot}: {_unknown(number)}")
        if opcode.form == "wide":
            if slot + 1 == end:
                raise BadProgram(f"slot {slot}: lddw lacks its second half")
            zero, zeros, zero_offset, high = _LAYOUT.unpack_from(code, (slot + 1) * INSTRUCTION)
            if zero or zeros or zero_offset:
                raise BadProgram(f"slot {slot + 1}: reserved fields of lddw are not zero")
            imm = imm & 0xFFFF_FFFF | (high & 0xFFFF_FFFF) << 32
        instruction = Instruction(number, registers & 15, registers >> 4, offset, imm)
        _check(slot, opcode, instruction)
        out.append(instruction)
        slot += instruction.slots
    return out


def _unknown(number: int) -> str:
    """Why there is no such instruction."""
    if number & 7 == LD and number & 0xE0 in (ABS, IND):
        return f"opcode {number:#04x} is packet access (RFC 9669, deprecated), and there are no packets here"
    return f"unknown opcode {number:#04x}"


_USES_DST = frozenset(
    ("alu_k", "alu_x", "unary", "swap", "branch_k", "branch_x", "load", "store_k", "store_x", "atomic", "wide")
)
_USES_SRC = frozenset(("alu_x", "branch_x", "load", "store_x", "atomic", "call", "wide"))
_USES_OFFSET = frozenset(("branch_k", "branch_x", "jump", "load", "store_k", "store_x", "atomic"))
_USES_IMM = frozenset(("alu_k", "branch_k", "jump_long", "call", "store_k", "swap", "atomic", "wide"))


def _check(slot: int, opcode: Opcode, instruction: Instruction) -> None:
    form = opcode.form
    if instruction.dst > 10 or instruction.src > 10:
        raise BadProgram(f"slot {slot}: no such register")
    if form not in _USES_DST and instruction.dst:
        raise BadProgram(f"slot {slot}: {opcode.name} has a destination")
    if form not in _USES_SRC and instruction.src:
        raise BadProgram(f"slot {slot}: {opcode.name} has a source")
    if form not in _USES_IMM and instruction.imm:
        raise BadProgram(f"slot {slot}: {opcode.name} has an immediate")
    if form not in _USES_OFFSET and instruction.offset not in opcode.offsets:
        raise BadProgram(f"slot {slot}: {opcode.name} has no variant {instruction.offset}")
    if form == "swap" and instruction.imm not in (16, 32, 64):
        raise BadProgram(f"slot {slot}: {opcode.name} of {instruction.imm} bits")
    if form == "atomic" and instruction.imm not in _ATOMIC_NAMES:
        raise BadProgram(f"slot {slot}: {opcode.name} has no operation {instruction.imm:#x}")


def disassemble(code: bytes) -> str:
    """One line an instruction: slot, text, and for jumps the slot that they go to."""
    lines = []
    slot = 0
    for instruction in decode(code):
        form = instruction.opcode.form
        target = ""
        if form in ("jump", "branch_k", "branch_x"):
            target = f"  → {slot + 1 + instruction.offset}"
        elif form == "jump_long":
            target = f"  → {slot + 1 + instruction.imm}"
        lines.append(f"{slot:4d}  {instruction}{target}")
        slot += instruction.slots
    return "\n".join(lines)


class Assembler:
    """Writes a program, instruction by instruction; labels are any strings, defined before or after their use.

    A source that is a `Reg` gives the register form, an `int` the immediate form.  `finish` resolves the labels.
    """

    def __init__(self) -> None:
        self._code: list[tuple[Instruction, str | None]] = []
        self._labels: dict[str, int] = {}
        self._slot = 0

    @property
    def slot(self) -> int:
        """The next instruction's slot."""
        return self._slot

    def add(self, instruction: Instruction, label: str | None = None) -> None:
        self._code.append((instruction, label))
        self._slot += instruction.slots

    def label(self, name: str, again: bool = False) -> None:
        """Name the next instruction; `again` moves a label there that was defined before."""
        if name in self._labels and not again:
            raise ValueError(f"label {name!r} is defined twice")
        self._labels[name] = self._slot

    def alu(self, name: str, dst: Reg, src: Reg | int, bits: int = 64, variant: int = 0) -> None:
        """`dst = dst name src`; `variant` 1 is the signed division, 8/16/32 the sign-extending move."""
        kind = ALU64 if bits == 64 else ALU
        if isinstance(src, Reg):
            self.add(Instruction(kind | ALU_CODES[name] | X, dst, src, variant))
        else:
            self.add(Instruction(kind | ALU_CODES[name] | K, dst, 0, variant, src))

    def mov(self, dst: Reg, src: Reg | int) -> None:
        """Copy a register, or set any 64-bit value in the shortest way."""
        if isinstance(src, Reg) or -(1 << 31) <= src < 1 << 31:
            self.alu("mov", dst, src)
        else:
            self.wide(dst, src)

    def wide(self, dst: Reg, value: int, source: int = 0) -> None:
        """LD_IMM64; `source` 1 and up are the host kernel's map references."""
        self.add(Instruction(LD | IMM | SIZES[8], dst, source, 0, value & (1 << 64) - 1))

    def neg(self, dst: Reg, bits: int = 64) -> None:
        self.add(Instruction((ALU64 if bits == 64 else ALU) | ALU_CODES["neg"], dst))

    def swap(self, name: str, dst: Reg, bits: int) -> None:
        """`le`, `be` (convert to that order) or `bswap` of 16, 32 or 64 bits."""
        code = {"le": ALU | 0xD0, "be": ALU | 0xD0 | X, "bswap": ALU64 | 0xD0}[name]
        self.add(Instruction(code, dst, 0, 0, bits))

    def load(self, dst: Reg, base: Reg, offset: int, width: int, signed: bool = False) -> None:
        self.add(Instruction(LDX | (MEMSX if signed else MEM) | SIZES[width], dst, base, offset))

    def store(self, base: Reg, offset: int, src: Reg | int, width: int) -> None:
        if isinstance(src, Reg):
            self.add(Instruction(STX | MEM | SIZES[width], base, src, offset))
        else:
            self.add(Instruction(ST | MEM | SIZES[width], base, 0, offset, src))

    def atomic(self, base: Reg, offset: int, src: Reg, width: int, operation: str = "add") -> None:
        """One of ATOMIC_CODES, on 4 or 8 bytes."""
        self.add(Instruction(STX | ATOMIC | SIZES[width], base, src, offset, ATOMIC_CODES[operation]))

    def branch(self, name: str, dst: Reg, src: Reg | int, label: str, bits: int = 64) -> None:
        kind = JMP if bits == 64 else JMP32
        if isinstance(src, Reg):
            self.add(Instruction(kind | BRANCH_CODES[name] | X, dst, src), label)
        else:
            self.add(Instruction(kind | BRANCH_CODES[name] | K, dst, 0, 0, src), label)

    def jump(self, label: str) -> None:
        self.add(Instruction(JMP | JA), label)

    def call(self, helper: int) -> None:
        self.add(Instruction(JMP | CALL, 0, 0, 0, helper))

    def exit(self) -> None:
        self.add(Instruction(JMP | EXIT))

    def finish(self) -> bytes:
        """The program.  Raises ValueError for labels that are not defined or too far away."""
        out = bytearray()
        slot = 0
        for instruction, label in self._code:
            slot += instruction.slots
            if label is not None:
                if label not in self._labels:
                    raise ValueError(f"label {label!r} is not defined")
                offset = self._labels[label] - slot
                instruction = Instruction(instruction.code, instruction.dst, instruction.src, offset, instruction.imm)
            try:
                out += instruction.encode()
            except struct.error as error:
                raise ValueError(f"{instruction.opcode.name}: operand out of range: {error}") from None
        return bytes(out)


def format_page() -> str:
    """The instruction set as a Markdown table: what UDFs may use, by form."""
    lines = ["| opcode | instruction | operands | variants |", "|---:|---|---|---|"]
    operands = {
        "alu_k": "dst, imm",
        "alu_x": "dst, src",
        "unary": "dst",
        "swap": "dst, imm = 16, 32 or 64 bits",
        "branch_k": "dst, imm, offset",
        "branch_x": "dst, src, offset",
        "jump": "offset",
        "jump_long": "imm",
        "call": "imm = helper",
        "exit": "",
        "load": "dst, [src + offset]",
        "store_k": "[dst + offset], imm",
        "store_x": "[dst + offset], src",
        "atomic": "[dst + offset], src, imm = operation",
        "wide": "dst, imm64",
    }
    atomic = ", ".join(f"{code:#x} {name}" for name, code in ATOMIC_CODES.items())
    for opcode in OPCODES.values():
        variants = ", ".join(f"{v}" for v in opcode.offsets) if len(opcode.offsets) > 1 else ""
        variants = atomic if opcode.form == "atomic" else variants
        lines.append(f"| {opcode.code:#04x} | {opcode.name} | {operands[opcode.form]} | {variants} |")
    return "\n".join(lines) + "\n"
