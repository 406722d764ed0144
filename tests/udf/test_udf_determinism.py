"""Why a UDF says the same whenever it is asked: DET-1 … DET-6 of docs/udf.md, one test or more each.

And the instruction set, counted: all of RFC 9669's base, division and atomic groups, and nothing else.
"""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest

from tests.xn.toy import DEV, Toy, da, guard, install_type
from xok_host.abi.calls import Op, OpFlag, OpKind
from xok_host.abi.ebpf import (
    ATOMIC_CODES,
    OPCODES,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
    Assembler,
    BadProgram,
    Instruction,
    Reg,
)
from xok_host.abi.errors import UdfFailed, XokError
from xok_host.abi.template import PROGRAMS, Template
from xok_host.abi.types import BLOCK, SECTOR, TYPE_XN_DB
from xok_host.abi.udf import CONTEXT_BASE, META, META_BASE, NEW_BASE, STACK_BASE, STACK_BYTES, Function, load
from xok_host.kernel.local import LocalXok
from xok_host.kernel.xn.template import import_template

REGISTERS = (R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10)
EXIT = Instruction(0x95).encode()


# DET-1: every register and all of the stack start at fixed values


def reporting(register: Reg) -> bytes:
    asm = Assembler()
    asm.mov(R0, register)
    asm.exit()
    return asm.finish()


def dirtying(fault: bool) -> bytes:
    asm = Assembler()
    for offset in range(-STACK_BYTES, 0, 8):
        asm.store(R10, offset, -1, 8)
    for register in REGISTERS[:10]:
        asm.mov(register, 0x5A5A_5A5A)
    if fault:
        asm.load(R0, R9, 0, 1)
    asm.exit()
    return asm.finish()


@pytest.mark.parametrize("fault", [False, True])
def test_registers_and_stack_never_written_are_fixed(interp: ModuleType, fault: bool) -> None:
    dirty = interp.Program(dirtying(fault))
    want = [0, META_BASE, 5, 3, 7, 9, 0, 0, 0, 0, STACK_BASE + STACK_BYTES]
    for register, value in zip(REGISTERS, want, strict=True):
        try:
            dirty.run(b"12345")
        except UdfFailed:
            assert fault
        assert interp.Program(reporting(register)).run(b"12345", 3, r4=7, r5=9)[0] == value
        for offset in range(-STACK_BYTES, 0, 8):
            asm = Assembler()
            asm.load(R0, R10, offset, 8)
            asm.exit()
            if register == R10:
                assert interp.Program(asm.finish()).run(b"")[0] == 0


def test_one_program_does_not_remember_its_own_last_run(interp: ModuleType) -> None:
    asm = Assembler()
    asm.load(R0, R10, -8, 8)
    asm.alu("add", R0, R6)
    asm.store(R10, -8, 77, 8)
    asm.mov(R6, 5)
    asm.exit()
    program = interp.Program(asm.finish())
    assert [program.run(b"")[0] for _ in range(3)] == [0, 0, 0]


# DET-2: no address of the machine, and no bytes but those shown


def test_where_the_bytes_lie_in_the_hosts_memory_does_not_matter(interp: ModuleType) -> None:
    f = Function()
    f.emit(META, load(META, 8), load(META + 3, 4))
    program = interp.Program(f.finish())
    raw = bytes(range(64))
    shown = [raw, bytearray(raw), memoryview(raw), memoryview(b"?" + raw)[1:], memoryview(bytearray(b"???" + raw))[3:]]
    assert len({tuple(program.run(view)[1]) for view in shown}) == 1
    assert program.run(raw)[1][0][0] == META_BASE


@pytest.mark.parametrize("base", [0, META_BASE - 8, NEW_BASE, CONTEXT_BASE, 5 << 32, (1 << 64) - 8, STACK_BASE - 8])
def test_there_is_nothing_elsewhere(interp: ModuleType, base: int) -> None:
    f = Function()
    f.return_(load(f.part, 8))
    with pytest.raises(UdfFailed, match="reads outside"):
        interp.Program(f.finish()).run(bytes(64), base)


# DET-3: helpers only append; after a call the argument registers are 0


def test_a_call_tells_nothing(interp: ModuleType) -> None:
    for helper in (1, 2, 3):
        for register in (R0, R1, R2, R3, R4, R5):
            asm = Assembler()
            for each in (R0, R1, R2, R3, R4, R5):
                asm.mov(each, 9)
            asm.call(helper)
            asm.mov(R0, register)
            asm.exit()
            program = interp.Program(asm.finish())
            assert [program.run(b"")[0] for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("helper", [-1, 0, 4, 5, 7, 14, 15, 1 << 30])
def test_no_helper_that_knows_the_world(interp: ModuleType, helper: int) -> None:
    """5 is the time, 7 a random number, 14 and 15 process and user in the host's kernel."""
    asm = Assembler()
    asm.call(helper)
    asm.exit()
    with pytest.raises(BadProgram, match="no helper"):
        interp.Program(asm.finish())


# DET-4: owns, refs and refcnt cannot see time, credentials, proposed bytes or (owns) where they lie


def telling_inputs() -> bytes:
    """Owns a block whose number is made of everything that a UDF could be given; nothing while byte 0 is 0."""
    f = Function()
    with f.if_(load(META + f.part * SECTOR, 1) != 0):
        f.emit(f.tree * 1000 + f.address + 500, 1, int(TYPE_XN_DB))
    return f.finish()


def test_owns_cannot_see_time_credentials_or_its_place() -> None:
    """In a running XN, with a caller that has a capability, a clock that goes, and a block at some address."""
    local = LocalXok(nblocks=1024)
    toy = Toy(local)
    access = Function()
    access.emit(access.part * SECTOR, SECTOR, 0)
    packed = Template(name=b"curious", parts=8, access=access.finish(), owns=telling_inputs(), guard=guard()).pack()
    kind = install_type(toy.env, "curious", packed)
    root = toy.env.call("install_mount", DEV, 0, 1, kind, data=b"curious-root")
    toy.cap = root.r1
    page = toy.page(b"contents")
    op = Op(
        OpKind.ALLOC,
        da(root.r0),
        2,
        writes=[(2 * SECTOR, b"\1")],
        db=500,
        count=1,
        type=int(TYPE_XN_DB),
        page=page,
        flags=OpFlag.PAGES,
    )
    wrong = Op(OpKind.ALLOC, da(root.r0), 2, writes=[(2 * SECTOR, b"\1")], db=501, count=1, type=int(TYPE_XN_DB))
    with pytest.raises(XokError):
        toy.transact(wrong)
    toy.transact(op)  # 500: every input but the partition was 0 when XN asked
    toy.durable(500, root.r0)
    assert not local.recover().violations  # and reconstruction was told the same


@pytest.mark.parametrize("name", ["owns", "refs", "refcnt"])
@pytest.mark.parametrize("base", [NEW_BASE, CONTEXT_BASE])
def test_partition_programs_see_no_proposed_bytes(name: str, base: int) -> None:
    access = Function()
    access.emit(access.part * SECTOR, SECTOR, 0)
    f = Function()
    with f.if_(load(META + f.part * SECTOR, 1) != 0):
        f.return_(load(base, 1))
    empty = Function()
    programs = {"access": access.finish(), "owns": empty.finish(), name: f.finish()}
    accepted = import_template(Template(name=b"t", parts=8, **programs).pack())
    block = b"\1" + bytes(BLOCK - 1)
    ask: Any = getattr(accepted, name)
    with pytest.raises(UdfFailed, match="reads outside"):
        ask(block, 0) if name == "owns" else ask(block, 0, 1 << 56)


# DET-5: the answer depends on the bytes of the partition alone


def test_other_bytes_of_the_instance_change_nothing() -> None:
    access = Function()
    access.emit(access.part * SECTOR, SECTOR, 0)
    f = Function()
    with f.for_range(0, SECTOR // 8) as i:
        value = f.var(load(META + f.part * SECTOR + i * 8, 8))
        with f.if_(value != 0):
            f.emit((value & 0xFFF) + i * 5000 + 1, 1, 1)
    accepted = import_template(Template(name=b"t", parts=8, access=access.finish(), owns=f.finish()).pack())
    dice = random.Random(3)
    block = bytearray(dice.randbytes(BLOCK))
    said = accepted.owns(block, 3)
    for _ in range(50):
        other = bytearray(dice.randbytes(BLOCK))
        other[3 * SECTOR : 4 * SECTOR] = block[3 * SECTOR : 4 * SECTOR]
        assert accepted.owns(other, 3) == said


# DET-6: a run ends, at the same instruction on every machine


def test_the_budget_is_counted_in_instructions(interp: ModuleType) -> None:
    asm = Assembler()
    asm.label("again")
    asm.jump("again")
    program = interp.Program(asm.finish())
    for budget in (1, 7, 1000):
        with pytest.raises(UdfFailed, match="budget"):
            program.run(b"", budget=budget)
        assert program.executed == budget


def test_every_program_has_a_fixed_set_of_helpers() -> None:
    from xok_host.kernel.xn.template import _HELPER

    assert set(_HELPER) == set(PROGRAMS)


# The instruction set


def rfc_9669() -> dict[str, set[int]]:
    """Opcode bytes by conformance group, worked out from sections 4 and 5 and independent of `xok_host.abi.ebpf`."""
    groups: dict[str, set[int]] = {
        "base32": set(),
        "base64": set(),
        "divmul32": set(),
        "divmul64": set(),
        "atomic32": {0xC3},
        "atomic64": {0xDB},
    }
    for kind, width in ((0x04, "32"), (0x07, "64")):
        for code in (0x0, 0x1, 0x4, 0x5, 0x6, 0x7, 0xA, 0xB, 0xC):
            groups["base" + width] |= {kind | code << 4, kind | code << 4 | 8}
        for code in (0x2, 0x3, 0x9):
            groups["divmul" + width] |= {kind | code << 4, kind | code << 4 | 8}
    groups["base32"] |= {0x84, 0xD4, 0xDC, 0xD7}
    groups["base64"] |= {0x87, 0x18}
    for kind, group in ((0x06, "base32"), (0x05, "base64")):
        for code in (0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0xA, 0xB, 0xC, 0xD):
            groups[group] |= {kind | code << 4, kind | code << 4 | 8}
    groups["base32"] |= {0x05, 0x06, 0x85, 0x95}
    for size, group in ((0x00, "base32"), (0x08, "base32"), (0x10, "base32"), (0x18, "base64")):
        groups[group] |= {0x61 | size, 0x62 | size, 0x63 | size}
    groups["base32"] |= {0x89, 0x91}
    groups["base64"] |= {0x81}
    return groups


def test_the_table_is_the_rfcs() -> None:
    assert set(OPCODES) == set().union(*rfc_9669().values())
    assert sorted(ATOMIC_CODES.values()) == [0x00, 0x01, 0x40, 0x41, 0x50, 0x51, 0xA0, 0xA1, 0xE1, 0xF1]
    signed = {code for code, o in OPCODES.items() if o.offsets == (0, 1)}
    assert signed == {0x34, 0x3C, 0x37, 0x3F, 0x94, 0x9C, 0x97, 0x9F}
    assert OPCODES[0xBF].offsets == (0, 8, 16, 32) and OPCODES[0xBC].offsets == (0, 8, 16)


@pytest.mark.parametrize("number", [0x20, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x58])
def test_packet_access_is_refused_at_import(interp: ModuleType, number: int) -> None:
    with pytest.raises(BadProgram, match="packet access"):
        interp.Program(Instruction(number).encode() + EXIT)


@pytest.mark.parametrize(
    ("instruction", "why"),
    [
        (Instruction(0x3F, 1, 2, 2), "no variant 2"),
        (Instruction(0xBC, 1, 2, 32), "no variant 32"),
        (Instruction(0xB7, 1, 0, 8, 5), "no variant 8"),
        (Instruction(0x0F, 1, 2, 1), "no variant 1"),
        (Instruction(0xD7, 1, 0, 0, 8), "bswap of 8 bits"),
        (Instruction(0xDF, 1, 0, 0, 16), "unknown opcode"),
        (Instruction(0x99, 1, 2), "unknown opcode"),  # sign-extending load of 8 bytes
        (Instruction(0x86, 0, 0, 0, 1), "unknown opcode"),  # call and exit are of the 64-bit class only
        (Instruction(0x85, 0, 1, 0, 1), "no helper|another function|host"),
        (Instruction(0x18, 1, 1, 0, 1), "host object"),
    ],
)
def test_what_the_rfc_reserves_is_refused(interp: ModuleType, instruction: Instruction, why: str) -> None:
    with pytest.raises(BadProgram, match=why):
        interp.Program(instruction.encode() + EXIT)
