"""Every instruction, against the model and against answers worked out by hand from RFC 9669."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import isa_model
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xok_host.abi import ebpf
from xok_host.abi.ebpf import ATOMIC_CODES, OPCODES, R0, R1, R2, R3, R6, R10, Assembler, Instruction, Opcode, Reg
from xok_host.abi.errors import UdfFailed

EDGES = (0, 1, 2, 7, 31, 32, 63, 64, 0x7F, 0x80, 0xFF80, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1)
EDGES += (1 << 63, (1 << 64) - 1, (1 << 64) - 13, 0x0123456789ABCDEF)
IMMEDIATES = (0, 1, -1, 3, 31, 32, 63, 0x7FFFFFFF, -0x80000000, -13)


def outcome(interp: ModuleType, code: bytes, meta: bytes, part: int = 0, **how: Any) -> tuple[Any, ...]:
    program = interp.Program(code)
    try:
        r0, emitted = program.run(meta, part, **how)
    except UdfFailed as fault:
        return ("fault", fault.detail.split()[0], program.executed)
    return (r0, emitted, program.executed)


def expected(code: bytes, meta: bytes, part: int = 0, **how: Any) -> tuple[Any, ...]:
    try:
        return isa_model.execute(code, meta, part, **how)
    except isa_model.Fault as fault:
        return ("fault", str(fault))


def same(interp: ModuleType, code: bytes, meta: bytes = b"", part: int = 0, **how: Any) -> tuple[Any, ...]:
    got, want = outcome(interp, code, meta, part, **how), expected(code, meta, part, **how)
    assert got[: len(want)] == want, ebpf.disassemble(code)
    return got


def _around(instruction: Instruction, a: int, b: int) -> bytes:
    """A program that runs one instruction on r1 = a, r2 = b and returns what it left in r1, or which way it went."""
    asm = Assembler()
    asm.wide(R1, a)
    asm.wide(R2, b)
    asm.add(instruction)
    asm.alu("mov", R0, R1)
    asm.exit()
    return asm.finish()


VALUE_FORMS = [o for o in OPCODES.values() if o.form in ("alu_k", "alu_x", "unary", "swap")]
BRANCHES = [o for o in OPCODES.values() if o.form in ("branch_k", "branch_x")]


@pytest.mark.parametrize("opcode", VALUE_FORMS, ids=lambda o: f"{o.name}-{o.form}")
def test_arithmetic(interp: ModuleType, opcode: Opcode) -> None:
    for variant in opcode.offsets:
        for a in EDGES:
            if opcode.form == "alu_x":
                cases = [Instruction(opcode.code, 1, 2, variant) for _ in EDGES]
                others = EDGES
            else:
                values = (16, 32, 64) if opcode.form == "swap" else IMMEDIATES if opcode.form == "alu_k" else (0,)
                cases = [Instruction(opcode.code, 1, 0, variant, value) for value in values]
                others = (0,) * len(cases)
            for instruction, b in zip(cases, others, strict=True):
                same(interp, _around(instruction, a, b))


@pytest.mark.parametrize("opcode", BRANCHES, ids=lambda o: f"{o.name}-{o.form}")
def test_branches(interp: ModuleType, opcode: Opcode) -> None:
    ways = set()
    for a in EDGES:
        for b in EDGES if opcode.form == "branch_x" else IMMEDIATES:
            asm = Assembler()
            asm.wide(R1, a)
            if opcode.form == "branch_x":
                asm.wide(R2, b)
                asm.add(Instruction(opcode.code, 1, 2), "there")
            else:
                asm.add(Instruction(opcode.code, 1, 0, 0, b), "there")
            asm.mov(R0, 1)
            asm.exit()
            asm.label("there")
            asm.mov(R0, 2)
            asm.exit()
            ways.add(same(interp, asm.finish())[0])
    assert ways == {1, 2}


@pytest.mark.parametrize("opcode", [o for o in OPCODES.values() if o.form == "load"], ids=lambda o: o.name)
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_loads(interp: ModuleType, opcode: Opcode, offset: int) -> None:
    meta = bytes([0x80, 0xFF, 1, 2, 0x93, 4, 5, 0xE6, 7, 0x88, 9, 10, 11, 12, 13])
    asm = Assembler()
    asm.add(Instruction(opcode.code, 0, 1, offset))
    asm.exit()
    same(interp, asm.finish(), meta)


@pytest.mark.parametrize("opcode", [o for o in OPCODES.values() if o.form[:5] == "store"], ids=lambda o: o.name)
def test_stores(interp: ModuleType, opcode: Opcode) -> None:
    asm = Assembler()
    asm.wide(R2, 0x8877665544332211)
    asm.store(R10, -16, -1, 8)
    if opcode.form == "store_x":
        asm.add(Instruction(opcode.code, 10, 2, -15))
    else:
        asm.add(Instruction(opcode.code, 10, 0, -15, -77))
    asm.load(R1, R10, -16, 8)
    asm.load(R2, R10, -8, 8)
    asm.mov(R3, 1)
    asm.call(1)
    asm.exit()
    same(interp, asm.finish())


@pytest.mark.parametrize("operation", ATOMIC_CODES)
@pytest.mark.parametrize("width", [4, 8])
def test_atomic_operations(interp: ModuleType, width: int, operation: str) -> None:
    """On the stack, unaligned; registers and both words around are looked at."""
    for there in EDGES:
        for operand in EDGES[::3]:
            for expected_there in (there, 5):
                asm = Assembler()
                asm.wide(R0, expected_there)
                asm.wide(R2, there)
                asm.store(R10, -13, R2, 8)
                asm.wide(R2, operand)
                asm.atomic(R10, -13, R2, width, operation)
                asm.mov(R6, R0)
                asm.load(R1, R10, -13, 8)
                asm.load(R3, R10, -16, 8)
                asm.call(1)
                asm.mov(R0, R6)
                asm.exit()
                same(interp, asm.finish())


def test_atomic_operations_by_hand(interp: ModuleType) -> None:
    """RFC 9669 section 5.3: what was there comes back zero-extended; cmpxchg compares and answers in r0."""
    there, operand = 0xFFFF_FFFF_8000_0001, 0x1_0000_0003
    for operation, width, compared, left, r0, r2 in (
        ("add", 8, 9, 0x0000_0000_8000_0004, 9, operand),
        ("add", 4, 9, 0xFFFF_FFFF_8000_0004, 9, operand),
        ("add_fetch", 4, 9, 0xFFFF_FFFF_8000_0004, 9, 0x8000_0001),
        ("xor_fetch", 8, 9, 0xFFFF_FFFE_8000_0002, 9, there),
        ("xchg", 4, 9, 0xFFFF_FFFF_0000_0003, 9, 0x8000_0001),
        ("cmpxchg", 8, there, operand, there, operand),
        ("cmpxchg", 8, 9, there, there, operand),
        ("cmpxchg", 4, 0x7_8000_0001, 0xFFFF_FFFF_0000_0003, 0x8000_0001, operand),
    ):
        asm = Assembler()
        asm.wide(R2, there)
        asm.store(R10, -8, R2, 8)
        asm.wide(R2, operand)
        asm.wide(R0, compared)
        asm.atomic(R10, -8, R2, width, operation)
        asm.mov(R6, R0)
        asm.load(R1, R10, -8, 8)
        asm.mov(R3, 0)
        asm.call(1)
        asm.mov(R0, R6)
        asm.exit()
        assert interp.Program(asm.finish()).run(b"")[:2] == (r0, [(left, r2, 0)]), (operation, width)


@pytest.mark.parametrize("base", [ebpf.R1, R10])
def test_atomic_operations_write_to_the_stack_alone(interp: ModuleType, base: Reg) -> None:
    asm = Assembler()
    asm.atomic(base, 0, R2, 8)
    asm.exit()
    assert same(interp, asm.finish(), bytes(16))[:2] == ("fault", "writes")


@pytest.mark.parametrize(
    ("instruction", "what"),
    [
        (Instruction(0xDB, 10, 2, -8, 0x10), "no operation 0x10"),
        (Instruction(0xDB, 10, 2, -8, 0xE0), "no operation 0xe0"),
        (Instruction(0xD3, 10, 2, -8, 0x00), "unknown opcode"),
        (Instruction(0xDB, 10, 10, -8, 0x01), "r10 cannot be written"),
        (Instruction(0xDB, 10, 10, -8, 0xE1), "r10 cannot be written"),
    ],
)
def test_no_other_atomic_operations(interp: ModuleType, instruction: Instruction, what: str) -> None:
    with pytest.raises(ebpf.BadProgram, match=what):
        interp.Program(instruction.encode() + Instruction(0x95).encode())


def test_jumps_and_calls(interp: ModuleType) -> None:
    for code in (ebpf.JMP | ebpf.JA, ebpf.JMP32 | ebpf.JA):
        jump = Instruction(code, offset=1) if code == ebpf.JMP | ebpf.JA else Instruction(code, imm=1)
        asm = Assembler()
        asm.add(jump)
        asm.exit()
        for helper in (1, 2, 3):
            asm.mov(R1, helper)
            asm.mov(R2, 20)
            asm.mov(R3, 30)
            asm.mov(R0, 9)
            asm.call(helper)
            asm.alu("add", R6, R0)
            asm.alu("add", R6, R3)
        asm.alu("mov", R0, R6)
        asm.exit()
        result = same(interp, asm.finish())
        assert result[:2] == (0, [(1, 20, 30), (2, 1, 0), (3, 20, 0)])


def test_known_answers(interp: ModuleType) -> None:
    """Worked out by hand from RFC 9669 section 4, not by the model."""
    for name, variant, bits, a, b, answer in (
        ("div", 1, 64, (-13) % 2**64, 3, (-4) % 2**64),
        ("mod", 1, 64, (-13) % 2**64, 3, (-1) % 2**64),
        ("mod", 1, 64, 13, (-3) % 2**64, 1),
        ("div", 1, 64, 1 << 63, 2**64 - 1, 1 << 63),
        ("mod", 1, 64, 1 << 63, 2**64 - 1, 0),
        ("div", 0, 64, 5, 0, 0),
        ("mod", 0, 64, 5 << 40, 0, 5 << 40),
        ("mod", 0, 32, 5 << 40 | 3, 0, 3),
        ("mov", 8, 64, 0, 0x80, 2**64 - 128),
        ("mov", 16, 32, 0, 0x8000, 0xFFFF8000),
        ("lsh", 0, 32, 1, 33, 2),
        ("arsh", 0, 64, 1 << 63, 63, 2**64 - 1),
        ("add", 0, 32, 0xFFFFFFFF, 1, 0),
    ):
        asm = Assembler()
        asm.wide(R0, a)
        asm.wide(R1, b)
        asm.alu(name, R0, R1, bits, variant)
        asm.exit()
        assert interp.Program(asm.finish()).run(b"")[0] == answer, (name, variant, bits)
    for name, bits, answer in (
        ("be", 16, 0xEFCD),
        ("be", 32, 0xEFCDAB89),
        ("le", 32, 0x89ABCDEF),
        ("bswap", 16, 0xEFCD),
    ):
        asm = Assembler()
        asm.wide(R0, 0x0123456789ABCDEF)
        asm.swap(name, R0, bits)
        asm.exit()
        assert interp.Program(asm.finish()).run(b"")[0] == answer


@st.composite
def programs(draw: st.DrawFn) -> bytes:
    """Any verifiable program: random instructions, jumps anywhere inside, registers that often point somewhere."""
    choices = [o for o in OPCODES.values() if o.form != "exit"]
    count = draw(st.integers(1, 24))
    picked: list[Opcode] = [draw(st.sampled_from(choices)) for _ in range(count)]
    starts, slot = [], 0
    for opcode in picked:
        starts.append(slot)
        slot += 2 if opcode.form == "wide" else 1
    starts.append(slot)
    out = []
    for opcode, start in zip(picked, starts, strict=False):
        writable = draw(st.sampled_from((0, 1, 2, 3, 6, 7, 8)))
        reader = draw(st.sampled_from((0, 1, 2, 3, 5, 6, 7, 10, 10)))
        target = draw(st.sampled_from(starts))
        imm = draw(st.sampled_from(IMMEDIATES) | st.integers(-(2**31), 2**31 - 1))
        dst, src, offset = writable, reader, 0
        form = opcode.form
        if form in ("alu_k", "alu_x"):
            offset = draw(st.sampled_from(opcode.offsets))
        if form in ("alu_k", "unary", "swap", "branch_k", "store_k", "wide"):
            src = 0
        if form in ("alu_x", "unary", "branch_x", "load", "store_x", "jump"):
            imm = 0
        if form == "swap":
            imm = draw(st.sampled_from((16, 32, 64)))
        if form in ("branch_k", "branch_x", "jump"):
            offset = target - start - 1
        if form == "jump_long":
            imm = target - start - 1
        if form in ("jump", "jump_long", "call"):
            dst = src = 0
        if form == "call":
            imm = draw(st.sampled_from((1, 2, 3)))
        if form == "load":
            src = draw(st.sampled_from((1, 1, 10, 6)))
            offset = draw(st.integers(-24, 24))
        if form in ("store_k", "store_x"):
            dst = draw(st.sampled_from((10, 10, 10, 6)))
            offset = draw(st.integers(-24, 2))
        if form == "atomic":
            dst, src = draw(st.sampled_from((10, 10, 10, 6))), draw(st.integers(0, 9))
            offset, imm = draw(st.integers(-24, 2)), draw(st.sampled_from(tuple(ATOMIC_CODES.values())))
        if form == "wide":
            imm = draw(st.sampled_from(EDGES) | st.sampled_from((isa_model.META, isa_model.STACK + 8, isa_model.NEW)))
        out.append(Instruction(opcode.code, dst, src, offset, imm).encode())
    return b"".join(out) + Instruction(ebpf.JMP | ebpf.EXIT).encode()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(code=programs(), meta=st.binary(max_size=40), part=st.integers(0, 9), new=st.none() | st.binary(max_size=9))
def test_random_programs(interp: ModuleType, code: bytes, meta: bytes, part: int, new: bytes | None) -> None:
    how = {"new": new, "r4": 0xFFFF_FFFF_FFFF_FFFF, "r5": 7, "budget": 300, "max_out": 5}
    first = same(interp, code, meta, part, **how)
    assert outcome(interp, code, meta, part, **how) == first


def test_register_forms_share_no_state(interp: ModuleType) -> None:
    """A constant's register is never written: running twice gives the same."""
    asm = Assembler()
    for register in (Reg.R0, Reg.R7, Reg.R9):
        asm.alu("add", register, 41)
        asm.alu("mul", register, 41)
    asm.alu("add", R0, Reg.R7)
    asm.exit()
    program = interp.Program(asm.finish())
    assert program.run(b"") == program.run(b"x" * 100) == (2 * 41 * 41, [])
