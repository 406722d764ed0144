"""What a program may not do: refused when it is made, or a fault that names its instruction; and determinism."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from types import ModuleType

import pytest

from xok_host.abi.ebpf import (
    ALU64,
    INSTRUCTION,
    JMP,
    OPCODES,
    R0,
    R1,
    R2,
    R3,
    R6,
    R10,
    Assembler,
    BadProgram,
    Instruction,
)
from xok_host.abi.errors import UdfFailed
from xok_host.abi.udf import META_BASE, NEW_BASE, STACK_BASE, Function, load

EXIT = Instruction(JMP | 0x90).encode()
MOV = ALU64 | 0xB0


def reason(
    interp: ModuleType, write: Callable[[Assembler], None], meta: bytes = b"12345678", **how: object
) -> tuple[str, int]:
    asm = Assembler()
    write(asm)
    asm.exit()
    with pytest.raises(UdfFailed) as caught:
        interp.Program(asm.finish()).run(meta, **how)
    assert caught.value.reason in str(caught.value)  # type: ignore[attr-defined]
    return caught.value.reason, caught.value.pc  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "address",
    [0, 1, 2**63, 2**64 - 8, 4 << 32]
    + [base + at for base in (META_BASE, NEW_BASE) for at in (-1, -8, 1, 8, 2**32 - 8)]
    + [STACK_BASE + at for at in (-1, -8, 505, 512, 2**32 - 8)],
)
def test_read_outside(interp: ModuleType, address: int) -> None:
    why, pc = reason(interp, lambda a: (a.wide(R1, address), a.load(R0, R1, 0, 8)), new=b"12345678")
    assert "reads outside" in why and pc == 1


def test_read_new_only_when_there_is_one(interp: ModuleType) -> None:
    f = Function()
    f.return_(load(NEW_BASE, 2))
    program = interp.Program(f.finish())
    assert program.run(b"", new=b"\x34\x12")[0] == 0x1234
    with pytest.raises(UdfFailed, match="reads outside"):
        program.run(b"")
    with pytest.raises(UdfFailed, match="reads outside"):
        program.run(b"", new=b"\x34")


@pytest.mark.parametrize(
    "address", [META_BASE, NEW_BASE, 0, STACK_BASE - 1, STACK_BASE + 505, STACK_BASE + 512, 2**64 - 8]
)
def test_write_outside_stack(interp: ModuleType, address: int) -> None:
    why, pc = reason(interp, lambda a: (a.wide(R1, address), a.store(R1, 0, 5, 8)), new=b"12345678")[:2]
    assert "writes outside" in why and pc == 1


def test_wrapping_addresses(interp: ModuleType) -> None:
    assert "reads" in reason(interp, lambda a: (a.mov(R1, -1), a.load(R0, R1, 4, 4)))[0]
    assert "reads" in reason(interp, lambda a: (a.mov(R2, 5), a.load(R0, R2, -6, 1)))[0]


def test_budget(interp: ModuleType) -> None:
    asm = Assembler()
    asm.label("again")
    asm.jump("again")
    asm.exit()
    program = interp.Program(asm.finish())
    for budget in (0, 1, 1000):
        with pytest.raises(UdfFailed, match="budget"):
            program.run(b"", budget=budget)
        assert program.executed == budget
    done = interp.Program(Instruction(MOV, 0, 0, 0, 1).encode() + EXIT)
    assert done.run(b"", budget=2)[0] == 1
    with pytest.raises(UdfFailed, match="budget"):
        done.run(b"", budget=1)


def test_output_bound(interp: ModuleType) -> None:
    f = Function()
    with f.for_range(0, f.part) as i:
        f.emit(i, 1, 1)
    program = interp.Program(f.finish())
    assert len(program.run(b"", 5, max_out=5)[1]) == 5
    with pytest.raises(UdfFailed, match="emits more"):
        program.run(b"", 6, max_out=5)
    assert len(program.run(b"", interp.MAX_OUTPUT)[1]) == interp.MAX_OUTPUT
    with pytest.raises(UdfFailed, match="emits more"):
        program.run(b"", interp.MAX_OUTPUT + 1)
    with pytest.raises(ValueError, match="max_out"):
        program.run(b"", 1, max_out=interp.MAX_OUTPUT + 1)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (b"", "whole number"),
        (EXIT[:-1], "whole number"),
        (b"\xff" * 8 + EXIT, "unknown opcode"),
        (Instruction(MOV, 11).encode() + EXIT, "no such register"),
        (Instruction(MOV, 10).encode() + EXIT, "r10 cannot be written"),
        (Instruction(0x79, 10, 1).encode() + EXIT, "r10 cannot be written"),
        (Instruction(MOV, 1, 2).encode() + EXIT, "has a source"),
        (Instruction(MOV | 8, 1, 2, 0, 5).encode() + EXIT, "has an immediate"),
        (Instruction(MOV, 1, 0, 8).encode() + EXIT, "no variant 8"),
        (Instruction(0x0F, 1, 2, 1).encode() + EXIT, "no variant 1"),
        (Instruction(0xD7, 1, 0, 0, 24).encode() + EXIT, "of 24 bits"),
        (Instruction(JMP, 0, 0, 1).encode() + EXIT, "jumps to slot 2"),
        (Instruction(JMP, 0, 0, -2).encode() + EXIT, "jumps to slot -1"),
        (Instruction(0x06, 0, 0, 0, 2**31 - 1).encode() + EXIT, "jumps to slot"),
        (Instruction(JMP, 0, 0, 1).encode() + Instruction(0x18, 1).encode() + EXIT, "jumps to slot 2"),
        (Instruction(0x18, 1).encode()[:8], "second half"),
        (Instruction(0x18, 1).encode()[:8] + EXIT, "reserved"),
        (Instruction(0x18, 1, 1).encode() + EXIT, "host object"),
        (Instruction(MOV, 1).encode(), "run on"),
        (EXIT + Instruction(0x15, 1, 0, -1).encode(), "run on"),
        (Instruction(0x85, 0, 0, 0, 4).encode() + EXIT, "no helper 4"),
        (Instruction(0x85, 0, 0, 0, 0).encode() + EXIT, "no helper 0"),
        (Instruction(0x85, 0, 1, 0, 1).encode() + EXIT, "no helper"),
        (Instruction(0xDB, 10, 1, -8, 0x11).encode() + EXIT, "no operation 0x11"),
        (Instruction(0x95, 1).encode(), "has a destination"),
    ],
)
def test_refused_programs(interp: ModuleType, code: bytes, why: str) -> None:
    with pytest.raises(BadProgram, match=why):
        interp.Program(code)


def test_program_bounds(interp: ModuleType) -> None:
    nop = Instruction(MOV, 0, 0, 0, 7).encode()
    interp.Program(nop * (interp.MAX_INSTRUCTIONS - 1) + EXIT)
    with pytest.raises(BadProgram, match="at most"):
        interp.Program(nop * interp.MAX_INSTRUCTIONS + EXIT)
    many = b"".join(Instruction(MOV, 0, 0, 0, i).encode() for i in range(interp.MAX_CONSTANTS + 1))
    with pytest.raises(BadProgram, match="constants"):
        interp.Program(many + EXIT)


def test_every_opcode_number_is_decided(interp: ModuleType) -> None:
    """All 256 first bytes either decode as the table says or are refused: nothing falls through."""
    for number in range(256):
        opcode = OPCODES.get(number)
        code = Instruction(number).encode() if opcode is None else None
        if code is not None:
            with pytest.raises(BadProgram, match="unknown opcode|packet access"):
                interp.Program(code + EXIT)
    assert len(OPCODES) == len({o.name + o.form for o in OPCODES.values()})


def test_initial_state_is_always_the_same(interp: ModuleType) -> None:
    """Registers and stack start fresh even after a run that dirtied them and faulted."""
    dirty = Assembler()
    for register in (R0, R1, R2, R3, R6):
        dirty.mov(register, -1)
    for offset in range(-512, 0, 8):
        dirty.store(R10, offset, -1, 8)
    dirty.load(R0, R0, 0, 8)
    dirty.exit()
    look = Assembler()
    for offset in range(-512, 0, 8):
        look.load(R1, R10, offset, 8)
        look.alu("or", R0, R1)
    for number in (4, 5, 6, 7, 8, 9):
        look.add(Instruction(ALU64 | 0x48, 0, number))
    look.exit()
    first, second = interp.Program(dirty.finish()), interp.Program(look.finish())
    for _ in range(2):
        with pytest.raises(UdfFailed):
            first.run(b"")
        assert second.run(b"abc", 3) == (0, [])
    inputs = Assembler()
    inputs.mov(R0, R10)
    inputs.call(1)
    inputs.exit()
    assert interp.Program(inputs.finish()).run(b"abc", 9, r4=1) == (0, [(META_BASE, 3, 9)])


def test_windows_confine_reads(interp: ModuleType) -> None:
    f = Function()
    f.return_(load(META_BASE + f.part, 4))
    program = interp.Program(f.finish())
    meta = bytes(range(64))
    windows = array("Q", [8, 16, 32, 40, 40, 44])
    readable = []
    for at in range(61):
        try:
            assert program.run(meta, at, windows=windows)[0] == int.from_bytes(meta[at : at + 4], "little")
            readable.append(at)
        except UdfFailed as fault:
            assert "reads outside" in str(fault)
    assert readable == [*range(8, 13), *range(32, 37), 40]
    with pytest.raises(UdfFailed):
        program.run(meta, 8, windows=array("Q"))
    # A window that reaches beyond the instance shows nothing that is not there.
    with pytest.raises(UdfFailed):
        program.run(meta, 62, windows=array("Q", [0, 1 << 40]))


def test_same_output(interp: ModuleType) -> None:
    f = Function()
    with f.for_range(0, 4) as i:
        with f.if_(load(META_BASE + i, 1) != 0):
            f.emit(load(META_BASE + i, 1), 1, 9)
    f.return_(load(META_BASE + 4, 1))
    program = interp.Program(f.finish())
    assert program.same_output(b"\x01\x02\0\0\0??", b"\x01\x02\0\0\0!!", 0)
    assert program.same_output(b"\x01\x02\0\0\0", b"\x01\0\x02\0\0", 0), "the sequence counts, not where it comes from"
    assert not program.same_output(b"\x01\x02\0\0\0", b"\x02\x01\0\0\0", 0)
    assert not program.same_output(b"\x01\x02\0\0\0", b"\x01\x02\x03\0\0", 0)
    assert not program.same_output(b"\x01\x02\0\0\0", b"\x01\x02\0\0\x01", 0), "r0 is output as well"
    with pytest.raises(UdfFailed):
        program.same_output(b"\x01\x02\0\0\0", b"\x01\x02", 0)


def test_raw_and_list_agree(interp: ModuleType) -> None:
    f = Function()
    with f.for_range(0, 7) as i:
        f.emit(i, i + 1, f.address)
    program = interp.Program(f.finish())
    flat = program.run_raw(b"", r5=2**64 - 1)
    assert flat.typecode == "Q"
    assert list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True)) == program.run(b"", r5=2**64 - 1)[1]
    assert flat[-1] == 2**64 - 1 and len(flat) == 21


def test_facts_of_a_program(interp: ModuleType) -> None:
    f = Function()
    f.emit_cap(3, 1)
    program = interp.Program(f.finish())
    assert program.helpers == {3} and len(program.code) % INSTRUCTION == 0
    for buffer in (b"12", bytearray(b"12"), memoryview(b"0123")[1:3]):
        assert program.run(buffer)[1] == [(3, 1, 0)]
