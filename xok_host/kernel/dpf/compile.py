"""The eBPF engine: programs for the host's kernel, generated from a plan of the trie (thesis 6.1; DESIGN.md 5).

    entry       clsact egress: tail-calls what is in `programs`, so that a new classifier is swapped in by one store.
                Nothing there (xokd is gone) → drop.
    classifier  clsact egress: walks the table as classify.walk does, row by row; counts; drops what nobody claims;
                mark = queue + 1.
    steering    the TAP's steering program: queue = mark - 1.
    assertion   the TAP's filter program: drops unless mark and the queue chosen agree, whatever way the packet came.

The classifier is straight-line code, one piece a row, in which a failed row jumps behind its subtree: it needs no loop
and its length bounds its time.  The front of the packet is copied to the stack once, by `bpf_skb_load_bytes`, which
takes linear packets and others; what lies behind a shift or further back is loaded by a call each.  Only instructions
and helpers of Linux 5.8 are used.
"""

from __future__ import annotations

from typing import Final

from xok_host.abi.dpf import ETH
from xok_host.abi.ebpf import R0, R1, R2, R3, R4, R6, R7, R8, R10, Assembler, Reg
from xok_host.kernel.dpf import maps
from xok_host.kernel.dpf.classify import ALL_BRANCHES, GUARD, OP, Plan
from xok_host.kernel.dpf.trie import ROOT

MAP_LOOKUP: Final = 1
TAIL_CALL: Final = 12
SKB_LOAD_BYTES: Final = 26

# Offsets in struct __sk_buff (linux/bpf.h), part of the host kernel's stable ABI.
SKB_LEN: Final = 0
SKB_MARK: Final = 8
SKB_QUEUE_MAPPING: Final = 12
SKB_VLAN_PRESENT: Final = 20
SKB_GSO_SIZE: Final = 176

ACT_OK: Final = 0
ACT_SHOT: Final = 2

# The classifier's stack: key (node, edge, value), a field, then (node, branches, base) for each depth, and the front of
# the packet, placed so that the fields of IP and ARP are aligned as the verifier wants.
_KEY: Final = -16
_FIELD: Final = -24
_FRONT: Final = -360 + 2
FRONT_BYTES: Final = ETH + 40
"""An IPv4 and a TCP header without options, or an IPv6 header."""


def _level(depth: int) -> int:
    return -40 - 16 * depth


def signed(value: int) -> int:
    """A 32-bit pattern as the signed immediate that stands for it."""
    return (value & 0xFFFF_FFFF ^ 1 << 31) - (1 << 31)


def load_map(asm: Assembler, register: Reg, spec: maps.MapSpec) -> None:
    asm.wide(register, maps.map_number(spec), maps.PSEUDO_MAP)


def load_bytes(asm: Assembler, base: Reg | int, offset: int, stack: int, width: Reg | int, otherwise: str) -> None:
    """Copy `width` bytes of the packet (in r6) at base + offset to the stack; beyond its end go to `otherwise`."""
    asm.mov(R2, base)
    asm.alu("add", R2, offset)
    asm.mov(R1, R6)
    asm.mov(R3, R10)
    asm.alu("add", R3, stack)
    asm.mov(R4, width)
    asm.call(SKB_LOAD_BYTES)
    asm.branch("jne", R0, 0, otherwise)


def load_field(asm: Assembler, dst: Reg, stack: int, width: int) -> None:
    """A big-endian field that was copied to the stack."""
    asm.load(dst, R10, stack, width)
    if width > 1:
        asm.swap("be", dst, 8 * width)


def look_up(asm: Assembler, spec: maps.MapSpec, key: int, otherwise: str) -> None:
    """r0 = address of the value for the key on the stack."""
    load_map(asm, R1, spec)
    asm.mov(R2, R10)
    asm.alu("add", R2, key)
    asm.call(MAP_LOOKUP)
    asm.branch("jeq", R0, 0, otherwise)


def add_to(asm: Assembler, base: Reg, offset: int, amount: Reg) -> None:
    asm.atomic(base, offset, amount, 8)


def entry() -> bytes:
    """Tail-calls the classifier; drops if there is none."""
    asm = Assembler()
    load_map(asm, R2, maps.PROGRAMS)
    asm.mov(R3, 0)
    asm.call(TAIL_CALL)
    asm.mov(R0, ACT_SHOT)
    asm.exit()
    return asm.finish()


def classifier(plan: Plan) -> bytes:
    """r6 = packet, r7 = heaviest verdict so far, r8 = base."""
    asm = Assembler()
    asm.mov(R6, R1)
    asm.mov(R7, 0)
    asm.load(R1, R6, SKB_VLAN_PRESENT, 4)
    asm.branch("jne", R1, 0, "unclaimed")
    for offset in range(_FRONT - 2, _FRONT + FRONT_BYTES, 8):
        asm.store(R10, offset, 0, 8)
    asm.load(R4, R6, SKB_LEN, 4)
    asm.branch("jle", R4, FRONT_BYTES, "short")
    asm.mov(R4, FRONT_BYTES)
    asm.label("short")
    asm.branch("jeq", R4, 0, "unclaimed")
    load_bytes(asm, 0, 0, _FRONT, R4, "unclaimed")
    asm.store(R10, _level(0), ROOT, 8)
    asm.store(R10, _level(0) + 8, signed(ALL_BRANCHES), 4)
    asm.store(R10, _level(0) + 12, 0, 4)
    for index in range(len(plan.rows)):
        asm.label(f"row{index}")
        _row(asm, plan, index)
    asm.label(f"row{len(plan.rows)}")
    _deliver(asm)
    return asm.finish()


def _row(asm: Assembler, plan: Plan, index: int) -> None:
    depth, branch, offset, width, end, first, last, edge = plan.rows[index]
    base = plan.bases[index]
    miss = f"row{end}"
    level = _level(depth)
    if depth:
        asm.load(R1, R10, level + 8, 4)
        asm.branch("jset", R1, signed(1 << branch), f"take{index}", bits=32)
        asm.jump(miss)
        asm.label(f"take{index}")
    at_front = not base
    asm.load(R8, R10, level + 12, 4)
    for number in range(first, last):
        op_offset, op_width, kind, operand = plan.ops[OP * number : OP * number + OP]
        _fetch(asm, at_front, op_offset, op_width, plan.op_masks[number], miss)
        if kind == GUARD:
            asm.branch("jne", R1, signed(operand), miss, bits=32)
        else:
            asm.alu("lsh" if operand >= 0 else "rsh", R1, abs(operand))
            asm.alu("add", R8, R1)
            at_front = False
    _fetch(asm, at_front, offset, width, plan.masks[index], miss)
    asm.store(R10, _KEY + 12, R1, 4)
    asm.store(R10, _KEY + 8, signed(edge), 4)
    asm.load(R1, R10, level, 8)
    asm.store(R10, _KEY, R1, 8)
    look_up(asm, maps.TRIE, _KEY, miss)
    asm.load(R1, R0, 8, 4)
    asm.branch("jle", R1, R7, f"lighter{index}")
    asm.mov(R7, R1)
    asm.label(f"lighter{index}")
    if end > index + 1:
        asm.load(R1, R0, 12, 4)
        asm.branch("jeq", R1, 0, miss)
        asm.store(R10, _level(depth + 1) + 8, R1, 4)
        asm.load(R1, R0, 0, 8)
        asm.store(R10, _level(depth + 1), R1, 8)
        asm.store(R10, _level(depth + 1) + 12, R8, 4)


def _fetch(asm: Assembler, at_front: bool, offset: int, width: int, mask: int, miss: str) -> None:
    """r1 = the masked field at base + offset.  `at_front`: the base is known to be 0."""
    stack = _FRONT + offset
    if at_front and offset + width <= FRONT_BYTES and not stack % width:
        # The length is read anew each time: what the verifier knew of it in a register would keep apart paths that
        # are the same, and a bushy trie would take it seconds.
        asm.load(R1, R6, SKB_LEN, 4)
        asm.branch("jlt", R1, offset + width, miss)
    else:
        stack = _FIELD
        load_bytes(asm, 0 if at_front else R8, offset, stack, width, miss)
    load_field(asm, R1, stack, width)
    if mask != (1 << 8 * width) - 1:
        asm.alu("and", R1, signed(mask), bits=32)


def _deliver(asm: Assembler) -> None:
    """What follows the walk: r7 is the verdict."""
    asm.branch("jeq", R7, 0, "unclaimed")
    asm.alu("and", R7, 0xFFFF)
    asm.alu("sub", R7, 1)
    asm.store(R10, _FIELD, R7, 4)
    look_up(asm, maps.PORTS, _FIELD, "unclaimed")
    asm.load(R8, R0, 0, 4)
    asm.mov(R1, 1)
    asm.branch("jne", R8, 0, "receiver")
    add_to(asm, R0, 24, R1)
    asm.mov(R0, ACT_SHOT)
    asm.exit()
    asm.label("receiver")
    add_to(asm, R0, 8, R1)
    asm.load(R1, R6, SKB_LEN, 4)
    add_to(asm, R0, 16, R1)
    asm.store(R6, SKB_MARK, R8, 4)
    asm.mov(R0, ACT_OK)
    asm.exit()
    asm.label("unclaimed")
    asm.store(R10, _FIELD, 0, 4)
    look_up(asm, maps.UNCLAIMED, _FIELD, "shot")
    asm.mov(R1, 1)
    add_to(asm, R0, 0, R1)
    asm.load(R1, R6, SKB_LEN, 4)
    add_to(asm, R0, 8, R1)
    asm.label("shot")
    asm.mov(R0, ACT_SHOT)
    asm.exit()


def steering() -> bytes:
    """The queue that the classifier chose.  A packet that it never saw has mark 0; the assertion drops it."""
    asm = Assembler()
    asm.load(R0, R1, SKB_MARK, 4)
    asm.alu("sub", R0, 1)
    asm.alu("and", R0, maps.MAX_QUEUES - 1)
    asm.exit()
    return asm.finish()


def assertion() -> bytes:
    """Keeps the packet (any length) if it goes to the queue that the classifier chose."""
    asm = Assembler()
    asm.load(R2, R1, SKB_MARK, 4)
    asm.load(R3, R1, SKB_QUEUE_MAPPING, 4)
    asm.alu("add", R3, 1)
    asm.mov(R0, 0)
    asm.branch("jne", R2, R3, "end")
    asm.mov(R0, 0x7FFF_FFFF)
    asm.label("end")
    asm.exit()
    return asm.finish()
