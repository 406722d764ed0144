"""RFC 9669 as plainly as it can be written: the oracle for the interpreter.

Shares nothing with it: decodes the bytes itself, uses unbounded integers and ctypes for signs, and knows no speed.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

META, STACK, NEW = 0x1_0000_0000, 0x2_0000_0000, 0x3_0000_0000


class Fault(Exception):
    pass


def s64(x: int) -> int:
    return ctypes.c_int64(x & 2**64 - 1).value


def s32(x: int) -> int:
    return ctypes.c_int32(x & 2**32 - 1).value


def truncated(a: int, b: int) -> tuple[int, int]:
    """Quotient towards zero, and its remainder."""
    q = abs(a) // abs(b)
    q = -q if (a < 0) != (b < 0) else q
    return q, a - q * b


def alu(code: int, bits: int, a: int, b: int, variant: int) -> int:
    """One ALU operation on `bits`-bit patterns; the result is one."""
    mask = 2**bits - 1
    signed = s64 if bits == 64 else s32
    a, b = a & mask, b & mask
    if code == 0xB0 and variant:
        low = b & 2**variant - 1
        return (low - 2**variant if low >> variant - 1 else low) & mask
    if code == 0x30:
        if b == 0:
            return 0
        return (truncated(signed(a), signed(b))[0] if variant else a // b) & mask
    if code == 0x90:
        if b == 0:
            return a
        return (truncated(signed(a), signed(b))[1] if variant else a % b) & mask
    operations: dict[int, Callable[[], int]] = {
        0x00: lambda: a + b,
        0x10: lambda: a - b,
        0x20: lambda: a * b,
        0x40: lambda: a | b,
        0x50: lambda: a & b,
        0x60: lambda: a << b % bits,
        0x70: lambda: a >> b % bits,
        0x80: lambda: -a,
        0xA0: lambda: a ^ b,
        0xB0: lambda: b,
        0xC0: lambda: signed(a) >> b % bits,
    }
    return operations[code]() & mask


def taken(code: int, bits: int, a: int, b: int) -> bool:
    signed = s64 if bits == 64 else s32
    a, b = a & 2**bits - 1, b & 2**bits - 1
    return {
        0x00: True,
        0x10: a == b,
        0x20: a > b,
        0x30: a >= b,
        0x40: bool(a & b),
        0x50: a != b,
        0x60: signed(a) > signed(b),
        0x70: signed(a) >= signed(b),
        0xA0: a < b,
        0xB0: a <= b,
        0xC0: signed(a) < signed(b),
        0xD0: signed(a) <= signed(b),
    }[code]


def execute(
    code: bytes,
    meta: bytes,
    part: int = 0,
    *,
    new: bytes | None = None,
    r4: int = 0,
    r5: int = 0,
    budget: int = 1 << 16,
    max_out: int = 4096,
) -> tuple[int, list[tuple[int, int, int]], int]:
    """(r0, output, instructions executed).  Raises Fault, with the reason's first word."""
    r = [0, META, len(meta), part, r4, r5, 0, 0, 0, 0, STACK + 512]
    stack = bytearray(512)
    output: list[tuple[int, int, int]] = []
    pc = executed = 0

    def at(address: int, width: int, what: str) -> tuple[bytes | bytearray, int]:
        for base, memory in ((META, meta), (STACK, stack), (NEW, new or b"")):
            if base <= address and address + width <= base + len(memory):
                if what == "writes" and base != STACK:
                    break
                return memory, address - base
        raise Fault(what)

    while True:
        if executed >= budget:
            raise Fault("instruction")
        executed += 1
        op, registers, off, imm = struct.unpack_from("<BBhi", code, pc * 8)
        dst, src = registers & 15, registers >> 4
        pc += 1
        kind, width = op & 7, {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}[op & 0x18]
        if op == 0x18:
            r[dst] = imm & 2**32 - 1 | (struct.unpack_from("<I", code, pc * 8 + 4)[0] << 32)
            pc += 1
        elif kind in (7, 4):
            bits = 64 if kind == 7 else 32
            if op & 0xF0 == 0xD0:
                low = r[dst] & 2**imm - 1
                if op == 0xD4:
                    r[dst] = low
                else:
                    r[dst] = int.from_bytes(low.to_bytes(imm // 8, "little"), "big")
            else:
                operand = r[src] if op & 8 else imm & 2**64 - 1
                r[dst] = alu(op & 0xF0, bits, r[dst], operand, off)
        elif op == 0x95:
            return r[0], output, executed
        elif op == 0x85:
            if len(output) >= max_out:
                raise Fault("emits")
            output.append({1: (r[1], r[2], r[3]), 2: (r[1], 1, 0), 3: (r[1], r[2], 0)}[imm])
            r[0:6] = [0] * 6
        elif kind in (5, 6):
            operand = r[src] if op & 8 else imm & 2**64 - 1
            if taken(op & 0xF0, 64 if kind == 5 else 32, r[dst], operand):
                pc += imm if op == 0x06 else off
        elif kind == 1:
            memory, place = at((r[src] + off) & 2**64 - 1, width, "reads")
            r[dst] = int.from_bytes(memory[place : place + width], "little", signed=op & 0xE0 == 0x80) & 2**64 - 1
        elif op & 0xE7 == 0xC3:
            memory, place = at((r[dst] + off) & 2**64 - 1, width, "writes")
            assert isinstance(memory, bytearray)
            there = memory[place : place + width]
            old, bits = int.from_bytes(there, "little"), 8 * width
            if imm == 0xF1:
                fits = there == r[0].to_bytes(8, "little")[:width]
                new_value, r[0] = r[src] if fits else old, old
            else:
                new_value = r[src] if imm == 0xE1 else alu(imm & 0xF0, bits, old, r[src], 0)
                if imm & 1:
                    r[src] = old
            memory[place : place + width] = new_value.to_bytes(8, "little")[:width]
        else:
            memory, place = at((r[dst] + off) & 2**64 - 1, width, "writes")
            value = r[src] if kind == 3 else imm
            assert isinstance(memory, bytearray)
            memory[place : place + width] = (value & 2 ** (8 * width) - 1).to_bytes(width, "little")
