"""A UDF run slowly and in the open: what it read, what it said, and at a fault where and why.  For `xok udf` and tests.

TRACE-1  It says the same as `interp.Program`: result, output, instructions executed, and fault with its instruction.
         It shares no code with it but the decoder; tests/udf/test_udf_trace.py holds the two against each other.
TRACE-2  XN never asks it anything.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from xok_host.abi.ebpf import FETCH, Instruction, Opcode, width_of
from xok_host.abi.udf import CONTEXT_BASE, META_BASE, NEW_BASE, STACK_BASE, STACK_BYTES
from xok_host.kernel.xn.interp import BUDGET, MAX_OUTPUT, Program, verify

_M64 = (1 << 64) - 1
_M32 = (1 << 32) - 1
REGIONS = {META_BASE >> 32: "META", STACK_BASE >> 32: "stack", NEW_BASE >> 32: "NEW", CONTEXT_BASE >> 32: "CONTEXT"}

READS_OUTSIDE = "reads outside what it may see"
WRITES_OUTSIDE = "writes outside its stack"
BUDGET_USED_UP = "instruction budget used up"
EMITS_TOO_MUCH = "emits more than its bound"


def describe_address(address: int) -> str:
    """`META+16`, or the bare number outside the regions."""
    name = REGIONS.get(address >> 32)
    return f"{name}+{address & _M32}" if name else f"{address:#x}"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a run stopped.  `number` counts decoded instructions, `slot` is what the disassembly shows."""

    reason: str
    number: int
    slot: int
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason} at slot {self.slot}" + (f": {self.detail}" if self.detail else "")


@dataclass(slots=True)
class Trace:
    """One run.  `reads` are (region, offset, bytes, slot) in order, of META, NEW and CONTEXT."""

    r0: int = 0
    output: list[tuple[int, int, int]] = field(default_factory=list)
    executed: int = 0
    reads: list[tuple[str, int, int, int]] = field(default_factory=list)
    fault: Fault | None = None

    def bytes_read(self, region: str = "META") -> list[tuple[int, int]]:
        """(first, past last) of what was read, ascending, joined where it touches."""
        out: list[tuple[int, int]] = []
        for start, end in sorted({(at, at + width) for name, at, width, _ in self.reads if name == region}):
            if out and start <= out[-1][1]:
                out[-1] = out[-1][0], max(end, out[-1][1])
            else:
                out.append((start, end))
        return out


OnStep = Callable[[int, Instruction, list[int]], None]
"""Called before each instruction: slot, instruction, registers (not to be changed)."""


class _Stop(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail


class _Machine:
    """The state of one run."""

    def __init__(self, meta: bytes, new: bytes, context: bytes, windows: array[int] | None, max_out: int) -> None:
        self.memory: dict[int, bytes | bytearray] = {1: meta, 2: bytearray(STACK_BYTES), 3: new, 4: context}
        self.windows = None if windows is None else [(windows[i], windows[i + 1]) for i in range(0, len(windows), 2)]
        self.max_out = max_out
        self.registers = [0] * 11
        self.trace = Trace()

    def load(self, address: int, width: int, signed: bool, slot: int) -> int:
        region, at = address >> 32, address & _M32
        memory = self.memory.get(region, b"")
        visible = at + width <= len(memory)
        if region == 1 and self.windows is not None:
            visible = visible and any(start <= at and at + width <= end for start, end in self.windows)
        if not visible:
            seen = f"{len(memory)} bytes are there"
            if region == 1 and self.windows is not None:
                seen = "it may see " + (", ".join(f"{a} to {b - 1}" for a, b in self.windows) or "nothing")
            raise _Stop(READS_OUTSIDE, f"{width} bytes at {describe_address(address)}, but {seen}")
        if region != 2:
            self.trace.reads.append((REGIONS[region], at, width, slot))
        return int.from_bytes(memory[at : at + width], "little", signed=signed) & _M64

    def store(self, address: int, width: int, value: int) -> int:
        """Gives what was there."""
        at = address & _M32
        if address >> 32 != 2 or at + width > STACK_BYTES:
            raise _Stop(WRITES_OUTSIDE, f"{width} bytes at {describe_address(address)}")
        stack = self.memory[2]
        assert isinstance(stack, bytearray)
        before = int.from_bytes(stack[at : at + width], "little")
        stack[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        return before

    def call(self, helper: int) -> None:
        r = self.registers
        if len(self.trace.output) >= self.max_out:
            raise _Stop(EMITS_TOO_MUCH, f"{self.max_out} elements")
        self.trace.output.append((r[1], 1 if helper == 2 else r[2], r[3] if helper == 1 else 0))
        r[0:6] = [0] * 6


def trace(
    program: Program,
    meta: bytes | bytearray | memoryview,
    part: int = 0,
    *,
    new: bytes | bytearray | memoryview | None = None,
    context: bytes | bytearray | memoryview | None = None,
    r4: int = 0,
    r5: int = 0,
    budget: int = BUDGET,
    max_out: int = MAX_OUTPUT,
    windows: array[int] | None = None,
    on_step: OnStep | None = None,
) -> Trace:
    """Run as `Program.run` does.  A fault is in the trace, with all that was done before it."""
    instructions = verify(program.code)
    slots = list(accumulate((instruction.slots for instruction in instructions), initial=0))
    number_at = {slot: number for number, slot in enumerate(slots)}
    machine = _Machine(bytes(meta), bytes(new or b""), bytes(context or b""), windows, max_out)
    r, out = machine.registers, machine.trace
    r[1:6] = [META_BASE, len(meta), part & _M64, r4 & _M64, r5 & _M64]
    r[10] = STACK_BASE + STACK_BYTES
    number = 0
    try:
        while True:
            if out.executed >= budget:
                raise _Stop(BUDGET_USED_UP, f"{budget} instructions")
            instruction, slot = instructions[number], slots[number]
            if on_step is not None:
                on_step(slot, instruction, r)
            out.executed += 1
            number += 1
            form = instruction.opcode.form
            if form == "exit":
                out.r0 = r[0]
                return out
            if form.startswith(("jump", "branch")):
                distance = instruction.imm if form == "jump_long" else instruction.offset
                if form.startswith("jump") or _taken(instruction, r):
                    number = number_at[slot + 1 + distance]
            else:
                _execute(machine, instruction, slot)
    except _Stop as stop:
        # The interpreter counts an exhausted budget against the instruction before the one that it did not start.
        at = number - 1
        place = max(at, 0) if stop.reason != BUDGET_USED_UP else number
        out.fault = Fault(stop.reason, at, slots[place], stop.detail)
        return out


def _execute(machine: _Machine, i: Instruction, slot: int) -> None:
    r, form = machine.registers, i.opcode.form
    if form == "call":
        machine.call(i.imm)
    elif form == "load":
        address = r[i.src] + i.offset & _M64
        r[i.dst] = machine.load(address, width_of(i.code), i.opcode.name.startswith("ldsx"), slot)
    elif form in ("store_k", "store_x"):
        machine.store(r[i.dst] + i.offset & _M64, width_of(i.code), r[i.src] if form == "store_x" else i.imm)
    elif form == "atomic":
        _atomic(machine, i)
    elif form == "wide":
        r[i.dst] = i.imm
    elif form == "swap":
        low = (r[i.dst] & (1 << i.imm) - 1).to_bytes(i.imm // 8, "little")
        r[i.dst] = int.from_bytes(low, "little" if i.opcode.name == "le" else "big")
    else:
        name, bits = _split(i.opcode)
        r[i.dst] = _alu(name, bits, r[i.dst], r[i.src] if form == "alu_x" else i.imm, i.offset)


def _atomic(machine: _Machine, i: Instruction) -> None:
    """RFC 9669 section 5.3."""
    r, width, address = machine.registers, width_of(i.code), machine.registers[i.dst] + i.offset & _M64
    low, src = (1 << 8 * width) - 1, machine.registers[i.src]
    before = machine.store(address, width, 0)
    code = i.imm & ~FETCH
    after = {0x00: before + src, 0x40: before | src, 0x50: before & src, 0xA0: before ^ src, 0xE0: src}.get(code)
    if after is None:  # cmpxchg
        after = src if before == r[0] & low else before
    machine.store(address, width, after)
    if i.imm & FETCH:
        r[i.src if code != 0xF0 else 0] = before


def _split(opcode: Opcode) -> tuple[str, int]:
    """Name without its width, and the width."""
    name = opcode.name
    if name.endswith("32"):
        return name[:-2], 32
    return name.removesuffix("64"), 64


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def _divide(a: int, b: int) -> tuple[int, int]:
    """Quotient towards zero and remainder, as RFC 9669 has them for signed numbers."""
    quotient = abs(a) // abs(b)
    quotient = -quotient if (a < 0) != (b < 0) else quotient
    return quotient, a - quotient * b


def _alu(name: str, bits: int, a: int, b: int, variant: int) -> int:
    mask = (1 << bits) - 1
    a, b = a & mask, b & mask
    count = b & bits - 1
    if name in ("div", "mod"):
        if not b:
            return 0 if name == "div" else a
        pair = _divide(_signed(a, bits), _signed(b, bits)) if variant else divmod(a, b)
        return pair[name == "mod"] & mask
    if name == "mov":
        return (_signed(b, variant) if variant else b) & mask
    results = {"add": a + b, "sub": a - b, "mul": a * b, "or": a | b, "and": a & b, "xor": a ^ b, "neg": -a}
    if name in results:
        return results[name] & mask
    return {"lsh": a << count, "rsh": a >> count, "arsh": _signed(a, bits) >> count}[name] & mask


def _taken(i: Instruction, r: list[int]) -> bool:
    name, bits = _split(i.opcode)
    mask = (1 << bits) - 1
    a, b = r[i.dst] & mask, (r[i.src] if i.opcode.form == "branch_x" else i.imm) & mask
    if name == "jset":
        return bool(a & b)
    if name.startswith("js"):
        a, b = _signed(a, bits), _signed(b, bits)
        name = "j" + name[2:]
    return {"jeq": a == b, "jne": a != b, "jgt": a > b, "jge": a >= b, "jlt": a < b, "jle": a <= b}[name]
