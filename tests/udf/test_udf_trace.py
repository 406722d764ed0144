"""The slow, open interpreter (TRACE-1): what it says is what XN's own says, fault for fault."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xok_host.abi.ebpf import ATOMIC_CODES, OPCODES, R0, R1, R2, R3, R6, R10, Assembler, Instruction, Opcode
from xok_host.abi.udf import CONTEXT, META, NEW, STACK_BASE, Function, load
from xok_host.kernel.xn.interp import Program, UdfFault
from xok_host.kernel.xn.trace import BUDGET_USED_UP, trace

EDGES = (0, 1, 7, 63, 64, 0x80, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 1 << 63, (1 << 64) - 13)


def both(code: bytes, meta: bytes = b"", part: int = 0, **how: Any) -> Any:
    """Run with both; gives the trace, after comparing everything that there is to compare."""
    program = Program(code)
    slow = trace(program, meta, part, **how)
    try:
        r0, output = program.run(meta, part, **how)
    except UdfFault as fault:
        assert slow.fault is not None and (slow.fault.reason, slow.fault.number) == (fault.reason, fault.pc)
    else:
        assert slow.fault is None and (slow.r0, slow.output) == (r0, output)
    assert slow.executed == program.executed
    return slow


@pytest.mark.parametrize("opcode", OPCODES.values(), ids=lambda o: f"{o.name}-{o.form}")
def test_every_instruction(opcode: Opcode) -> None:
    variants = [0] if opcode.form in ("load", "store_k", "store_x", "atomic") else list(opcode.offsets)
    immediates = {"swap": (16, 32, 64), "alu_k": (0, 1, -1, 31, -0x80000000), "branch_k": (0, -1, 1 << 30)}
    immediates |= {"call": (1, 2, 3), "store_k": (-2,), "atomic": tuple(ATOMIC_CODES.values())}
    registers = opcode.form in ("alu_x", "branch_x", "store_x", "atomic")
    for variant in variants:
        for imm in immediates.get(opcode.form, (0,)):
            for a in EDGES:
                for b in EDGES if registers else (5,):
                    asm = Assembler()
                    asm.wide(R1, STACK_BASE + 8 if opcode.form.startswith(("store", "atomic")) else a)
                    asm.wide(R2, b)
                    source = {"load": 10}.get(opcode.form, 2 if registers else 0)
                    if opcode.form in ("jump_long", "exit", "call"):
                        asm.add(Instruction(opcode.code, imm=imm))
                    elif opcode.form == "jump":
                        asm.add(Instruction(opcode.code))
                    else:
                        place = -8 if opcode.form == "load" else variant
                        asm.add(Instruction(opcode.code, 1, source, place, imm))
                    if opcode.form.startswith("branch"):
                        asm.mov(R0, 1)
                    asm.load(R3, R10, -504, 8)
                    asm.call(1)
                    asm.exit()
                    both(asm.finish())


WORDS = st.sampled_from([o for o in OPCODES.values() if o.form != "wide"])


@st.composite
def programs(draw: st.DrawFn) -> bytes:
    """Any verified program at all: mostly it faults, which is half of the point."""
    count = draw(st.integers(1, 12))
    asm = Assembler()
    asm.mov(R6, R1)
    for at in range(count):
        opcode = draw(WORDS)
        form = opcode.form
        dst = draw(st.integers(0, 9)) if form not in ("jump", "jump_long", "call", "exit") else 0
        src = draw(st.integers(0, 10)) if form in ("alu_x", "branch_x", "load", "store_x") else 0
        offset = draw(st.sampled_from(opcode.offsets))
        imm = 0
        if form in ("branch_k", "branch_x", "jump"):
            offset = draw(st.integers(-at - 2, count - at))
        elif form in ("load", "store_k", "store_x"):
            offset = draw(st.integers(-16, 40))
        if form in ("alu_k", "branch_k", "store_k"):
            imm = draw(st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(-2, 2))
        elif form == "jump_long":
            imm = draw(st.integers(-at - 2, count - at))
        elif form == "swap":
            imm = draw(st.sampled_from((16, 32, 64)))
        elif form == "call":
            imm = draw(st.integers(1, 3))
        elif form == "atomic":
            dst, src = draw(st.sampled_from((1, 10))), draw(st.integers(0, 9))
            offset, imm = draw(st.integers(-24, -2)), draw(st.sampled_from(tuple(ATOMIC_CODES.values())))
        asm.add(Instruction(opcode.code, dst, src, offset, imm))
    asm.exit()
    asm.exit()
    return asm.finish()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(programs(), st.binary(max_size=40), st.integers(0, 8), st.booleans())
def test_any_program(code: bytes, meta: bytes, part: int, narrow: bool) -> None:
    windows = array("Q", [2, 9, 11, 30]) if narrow else None
    both(code, meta, part, r4=7, r5=1 << 63, budget=300, max_out=5, windows=windows, new=meta[::-1], context=meta)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(programs(), st.binary(min_size=40, max_size=40), st.integers(0, 8), st.integers(0, 20))
def test_the_interpreters_trace_is_what_was_read(code: bytes, meta: bytes, part: int, start: int) -> None:
    """INTERP-6, also of runs that end in a fault; and the run after it is as it would have been."""
    windows = array("Q", [start, 36])
    program, read = Program(code), bytearray(5)
    slow = trace(program, meta, part, r5=3, max_out=5, windows=windows, budget=300)
    if slow.fault is not None and slow.fault.reason == BUDGET_USED_UP:
        return
    try:
        program.run_traced(meta, part, windows, read, r5=3, max_out=5)
    except UdfFault as fault:
        assert slow.fault is not None and (slow.fault.reason, slow.fault.number) == (fault.reason, fault.pc)
    found = {start + bit for bit in range(40) if read[bit // 8] >> bit % 8 & 1}
    assert found == {at for first, end in slow.bytes_read() for at in range(first, end)}
    both(code, meta, part, r5=3, max_out=5, budget=300, windows=windows)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(programs(), st.binary(max_size=40))
def test_a_budget_ends_where_it_ends(code: bytes, meta: bytes) -> None:
    """INTERP-2: instructions are counted line by line, and the fault is as if each had been counted by itself."""
    executed = trace(Program(code), meta, budget=80, max_out=5).executed
    for budget in range(1, executed + 1):
        assert both(code, meta, budget=budget, max_out=5).executed == budget


def test_the_last_bytes_of_a_window_are_read_as_the_first() -> None:
    """Loads of all widths at all places of a window of 12 bytes, after one that made it known."""
    windows = array("Q", [4, 16])
    for width in (1, 2, 4, 8):
        for at in range(18):
            f = Function()
            f.emit(load(META + 4, 1), load(META + at, width), 0)
            slow = both(f.finish(), bytes(range(1, 21)), windows=windows)
            assert (slow.fault is None) == (4 <= at and at + width <= 16)


def test_a_trace_needs_a_map_of_its_window() -> None:
    f = Function()
    f.emit(load(META + 4, 2), load(META + 5, 4), load(META + 20, 1))
    program, read = Program(f.finish()), bytearray(4)
    assert len(program.run_traced(bytes(32), 0, array("Q", [0, 32]), read)) == 3
    assert int.from_bytes(read, "little") == 0x1001F0
    program.run_traced(bytes(32), 0, array("Q", [2, 32]), read)  # what was there stays, and bits count from the window
    assert int.from_bytes(read, "little") == 0x1001F0 | 0x1001F0 >> 2
    for windows in ([], [0, 33], [32, 0], [0, 8, 16, 24]):
        with pytest.raises(ValueError, match="no bit map"):
            program.run_traced(bytes(64), 0, array("Q", windows), read)


def test_what_was_read() -> None:
    f = Function()
    f.emit(load(META + 4, 2), load(META + 5, 4), load(META + 20, 1))
    slow = both(f.finish(), bytes(32))
    assert slow.bytes_read() == [(4, 9), (20, 21)] and slow.bytes_read("NEW") == []
    assert [read[:3] for read in slow.reads] == [("META", 4, 2), ("META", 5, 4), ("META", 20, 1)]


def test_all_regions() -> None:
    f = Function()
    f.emit(load(META, 1), load(NEW + 1, 1), load(CONTEXT + 2, 1))
    slow = both(f.finish(), b"a", new=b"bc", context=b"def")
    assert slow.output == [(ord("a"), ord("c"), ord("f"))] and slow.bytes_read("CONTEXT") == [(2, 3)]
    assert "META+0" not in str(both(f.finish(), b"a", new=b"bc").fault)


def test_a_fault_says_where_and_why() -> None:
    f = Function()
    f.emit(1 << 40, load(META + 512, 8), 0)
    slow = both(f.finish(), bytes(4096), windows=array("Q", [0, 512]))
    assert "8 bytes at META+512, but it may see 0 to 511" in str(slow.fault)
    assert "at slot 4" in str(slow.fault)  # the wide constant takes two slots
    f = Function()
    f.store(META, 1, 4)
    assert "4 bytes at META+0" in str(both(f.finish()).fault)
