# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""The UDF interpreter: runs eBPF (RFC 9669) that nobody trusts, deterministically.

INTERP-1  A run depends on nothing but the program, the bytes it is shown, and its five inputs: every register and the
          stack start at fixed values, addresses are constants, there is no clock and no state between runs.
INTERP-2  A run ends: each instruction counts against a budget.
INTERP-3  A run reads only what it is shown: META (or the windows of META that the caller allows), its stack, and NEW
          and CONTEXT if there are such.  It writes only to its stack.
INTERP-4  A run yields at most `max_out` elements of three 64-bit integers.
INTERP-5  Compiled and uncompiled, every program gives the same results and the same faults at the same instruction.
INTERP-6  `run_traced` marks exactly the bytes of its window that the run's loads have read.  Loads of other runs cost
          nothing for it: a trace keeps the window that was found last from being remembered, so that every load looks.
          A run that uses up its budget may have marked what it would have read next, up to the next jump.

Instructions are counted where the program leaves a straight line: at jumps that are taken, at its end and at faults.
What was executed beyond the budget by then has changed nothing that anybody will see, and the fault is told of the
instruction at which the budget ended, as if each had been counted by itself.

A program is verified when it is made: opcodes, registers, reserved fields, jumps that stay inside and on instructions,
known helpers, no way to fall off its end.  What can only be seen while running is a `UdfFault`.

Order of calls: `Program(code)` once (import), then `run` (Python lists), `run_raw` (flat array), `same_output` (did a
modification leave the output as it was?) or, after `show`, `ask`, XN's usual question, as often as wanted.  Runs do not
nest and do not release the GIL, so the registers and output space are the program's and the module's own.
"""

from __future__ import annotations

import struct
from array import array
from typing import Any, NamedTuple

import cython

if cython.compiled:
    from cython.cimports.cpython import array as carray
    from cython.cimports.cpython.buffer import PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
    from cython.cimports.cpython.bytearray import PyByteArray_AS_STRING
    from cython.cimports.libc.string import memcpy, memset

from xok_host.abi.ebpf import BadProgram, Instruction, decode
from xok_host.abi.errors import UdfFailed
from xok_host.abi.udf import HELPERS, META_BASE, STACK_BASE, STACK_BYTES

MAX_INSTRUCTIONS = 4096
"""Slots of one program."""
MAX_CONSTANTS = 2048
BUDGET = 1 << 16
"""Instructions of one run, unless the caller says otherwise."""
MAX_OUTPUT = 4096
"""Elements that one run may emit."""

# Why a run stopped; 0 is success.
_FAULTS = (
    "",
    "reads outside what it may see",
    "writes outside its stack",
    "instruction budget used up",
    "emits more than its bound",
)

Step = cython.struct(op=cython.ushort, width=cython.ushort, dst=cython.ushort, src=cython.ushort, arg=cython.longlong)
"""A decoded instruction.  Immediates have become constants in registers 11 and up, so that one form serves both;
`arg` is a jump's target (in `_STRIDE`), an address offset, or a place in the stack; `width` the bytes of a load or
store, or the helper."""
_STEP = struct.Struct("=HHHHq")
_STRIDE = _STEP.size if cython.compiled else 1
"""What a step counts in `pc`, the targets of jumps and the budget of `_loop`: bytes, so that nothing is multiplied."""

View = cython.struct(
    window=cython.p_uchar,
    start=cython.ulonglong,
    inner=cython.ulonglong,
    meta=cython.p_uchar,
    meta_length=cython.ulonglong,
    new=cython.p_uchar,
    new_length=cython.ulonglong,
    context=cython.p_uchar,
    context_length=cython.ulonglong,
    windows=cython.p_ulonglong,
    window_count=cython.int,
    read=cython.p_uchar,
    value=cython.ulonglong,
)
"""What a run may see.  `windows` restrict META unless `window_count` is negative; `read` is a trace's bits.  The window
of META that was found last begins at address `start`, its bytes are at `window`, and at each of the first `inner` of
them eight may be loaded.  `value` is what `_look` has loaded."""


class _PureView:
    """The same, of memoryviews."""

    window: Any
    start: int
    inner: int
    meta: Any
    meta_length: int
    new: Any
    new_length: int
    context: Any
    context_length: int
    windows: Any
    window_count: int
    read: Any
    value: int


class _PureStep(NamedTuple):
    op: int
    width: int
    dst: int
    src: int
    arg: int


# Instructions that differ by their offset or immediate field get opcodes of their own, from numbers eBPF leaves free.
_VARIANTS = {
    (0x3F, 1): 0x00,  # sdiv64
    (0x9F, 1): 0x08,  # smod64
    (0x3C, 1): 0x10,  # sdiv32
    (0x9C, 1): 0x20,  # smod32
    (0xBF, 8): 0x28,  # movsx64 from 8 bits
    (0xBF, 16): 0x30,
    (0xBF, 32): 0x38,
    (0xBC, 8): 0x40,  # movsx32 from 8 bits
    (0xBC, 16): 0x48,
}
_TRUNCATE = {16: 0x50, 32: 0x58, 64: 0x60}
_REVERSE = {16: 0x68, 32: 0x70, 64: 0x78}
# A word of the stack at a constant address (r10 cannot be written): that it is inside is seen once, when decoding.
_LOAD_OWN = 0x18
_STORE_OWN = 0x80
# All atomic operations: which it is, is in the step's width, above the bytes.
_ATOMIC = 0xC3

_M64 = (1 << 64) - 1
_FIRST = cython.declare(bytearray, bytearray(24 * MAX_OUTPUT))
_SECOND = cython.declare(bytearray, bytearray(24 * MAX_OUTPUT))
_STACK_MEMORY = cython.declare(bytearray, bytearray(STACK_BYTES))
_NOTHING = b"\0"
_NO_WORDS = array("Q")

# The same as C variables: names of Python integers, and literals above 31 bits, would cost an object at each use.
_LOW = cython.declare(cython.ulonglong, 0xFFFF_FFFF)
_META = cython.declare(cython.ulonglong, META_BASE)
_STACK_SIZE = cython.declare(cython.ulonglong, STACK_BYTES)
_STACK_END = cython.declare(cython.ulonglong, STACK_BASE + STACK_BYTES)


@cython.cfunc
def _memory(of: bytearray) -> cython.p_uchar:
    """Its bytes: compiled, their address."""
    if cython.compiled:
        return cython.cast(cython.p_uchar, cython.cast(cython.p_char, of))
    else:
        return of


@cython.cfunc
def _words(of: bytearray) -> cython.p_ulonglong:
    """Its words of 64 bits."""
    if cython.compiled:
        return cython.cast(cython.p_ulonglong, cython.cast(cython.p_char, of))
    else:
        return memoryview(of).cast("Q")


_STACK = _memory(_STACK_MEMORY)
_OUT = _words(_FIRST)
_SHOWN_META = cython.declare(bytes, b"")
"""Keeps what `show` copied."""
if cython.compiled:
    _SHOWN = cython.declare(View)
    _SHOWN.new = _SHOWN.context = _SHOWN.read = cython.NULL
    _SHOWN.new_length = _SHOWN.context_length = 0
else:
    _SHOWN = _PureView()
    _SHOWN.new = _SHOWN.context = memoryview(_NOTHING)
    _SHOWN.new_length = _SHOWN.context_length = 0
    _SHOWN.read = None


class UdfFault(UdfFailed):
    """A UDF faulted, ran over its budget or gave malformed output."""

    def __init__(self, reason: str, pc: int) -> None:
        self.reason = reason
        self.pc = pc
        """Number of the instruction, counted in decoded instructions from 0."""
        super().__init__(f"{reason} (instruction {pc})")


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _u64(x: cython.ulonglong) -> cython.ulonglong:
    """Wrap: C does by itself, Python must be told."""
    if cython.compiled:
        return x
    else:
        return x & _M64


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _s64(x: cython.ulonglong) -> cython.longlong:
    if cython.compiled:
        return cython.cast(cython.longlong, x)
    else:
        return x - (1 << 64) if x >> 63 else x


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _extend(x: cython.ulonglong, bits: cython.int) -> cython.longlong:
    """The low `bits` (below 64) as a signed number."""
    sign: cython.longlong = cython.cast(cython.longlong, 1) << (bits - 1)
    low: cython.longlong = x & ((cython.cast(cython.ulonglong, 1) << bits) - 1)
    return (low ^ sign) - sign


@cython.cfunc
@cython.exceptval(check=False)
def _sdiv(a: cython.ulonglong, b: cython.ulonglong) -> cython.ulonglong:
    """Signed division towards zero; by zero gives 0 (RFC 9669 section 4.1)."""
    if b == 0:
        return 0
    x: cython.ulonglong = _u64(0 - a) if a >> 63 else a
    y: cython.ulonglong = _u64(0 - b) if b >> 63 else b
    q: cython.ulonglong = x // y
    return _u64(0 - q) if (a ^ b) >> 63 else q


@cython.cfunc
@cython.exceptval(check=False)
def _smod(a: cython.ulonglong, b: cython.ulonglong) -> cython.ulonglong:
    """Remainder of `_sdiv`, with the sign of `a`; by zero gives `a`."""
    if b == 0:
        return a
    x: cython.ulonglong = _u64(0 - a) if a >> 63 else a
    y: cython.ulonglong = _u64(0 - b) if b >> 63 else b
    r: cython.ulonglong = x % y
    return _u64(0 - r) if a >> 63 else r


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _get16(memory: cython.p_uchar, at: cython.ulonglong) -> cython.ulonglong:
    if cython.compiled:
        value: cython.ushort = 0
        memcpy(cython.address(value), memory + at, 2)
        return value
    else:
        return int.from_bytes(memory[at : at + 2], "little")


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _get32(memory: cython.p_uchar, at: cython.ulonglong) -> cython.ulonglong:
    if cython.compiled:
        value: cython.uint = 0
        memcpy(cython.address(value), memory + at, 4)
        return value
    else:
        return int.from_bytes(memory[at : at + 4], "little")


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _get64(memory: cython.p_uchar, at: cython.ulonglong) -> cython.ulonglong:
    if cython.compiled:
        value: cython.ulonglong = 0
        memcpy(cython.address(value), memory + at, 8)
        return value
    else:
        return int.from_bytes(memory[at : at + 8], "little")


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _put(memory: cython.p_uchar, at: cython.ulonglong, value: cython.ulonglong, width: cython.int) -> cython.void:
    if cython.compiled:
        memcpy(memory + at, cython.address(value), width)
    else:
        memory[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _reverse(value: cython.ulonglong, width: cython.int) -> cython.ulonglong:
    """The low `width` bytes in the opposite order, the others zero."""
    out: cython.ulonglong = 0
    k: cython.int
    for k in range(width):
        out = out << 8 | (value >> (8 * k) & 0xFF)
    return out


@cython.cfunc
@cython.exceptval(check=False)
def _combine(
    operation: cython.int, width: cython.int, there: cython.ulonglong, b: cython.ulonglong, r0: cython.ulonglong
) -> cython.ulonglong:
    """What an atomic operation leaves where `there` was (RFC 9669 section 5.3); its low `width` bytes count."""
    if operation == 0xF1:  # cmpxchg
        return b if there == (r0 if width == 8 else r0 & _LOW) else there
    operation = operation & 0xF0
    if operation == 0x00:
        return _u64(there + b)
    if operation == 0x40:
        return there | b
    if operation == 0x50:
        return there & b
    if operation == 0xA0:
        return there ^ b
    return b


@cython.cfunc
@cython.exceptval(check=False)
def _mark(read: cython.p_uchar, at: cython.ulonglong, width: cython.ulonglong) -> cython.void:
    """Set `width` bits from bit `at` on."""
    k: cython.ulonglong
    for k in range(at, at + width):
        read[k >> 3] |= 1 << (k & 7)


@cython.cfunc
@cython.exceptval(check=False)
def _look(view: cython.pointer[View], address: cython.ulonglong, width: cython.ulonglong) -> cython.bint:
    """INTERP-3: whether the run may load these bytes; if so they are in `view.value`."""
    memory: cython.p_uchar
    region: cython.ulonglong = address >> 32
    at: cython.ulonglong = address & _LOW
    low: cython.ulonglong = 0
    high: cython.ulonglong = 0
    k: cython.int
    if region == 1:
        if view.window_count < 0:
            high = view.meta_length
        for k in range(view.window_count):
            if at >= view.windows[2 * k] and at + width <= view.windows[2 * k + 1]:
                low = view.windows[2 * k]
                high = view.windows[2 * k + 1]
                break
        if at < low or at + width > high or high > view.meta_length:
            return False
        memory = view.meta
        if view.read:
            _mark(view.read, at - low, width)  # and the window is not remembered, so that the next load comes here too
        else:
            if cython.compiled:
                view.window = memory + low
            else:
                view.window = memory[low:]
            view.start = _META + low
            view.inner = high - low - 7 if high - low > 7 else 0
    elif region == 2 and at + width <= _STACK_SIZE:
        memory = _STACK
    elif region == 3 and at + width <= view.new_length:
        memory = view.new
    elif region == 4 and at + width <= view.context_length:
        memory = view.context
    else:
        return False
    if width == 8:
        view.value = _get64(memory, at)
    elif width == 4:
        view.value = _get32(memory, at)
    elif width == 2:
        view.value = _get16(memory, at)
    else:
        view.value = memory[at]
    return True


def verify(code: bytes) -> list[Instruction]:
    """The decoded program, or BadProgram: everything that can be checked without running it."""
    if len(code) > 8 * MAX_INSTRUCTIONS:
        raise BadProgram(f"{len(code) // 8} slots, at most {MAX_INSTRUCTIONS}")
    instructions = decode(code)
    starts = {}
    slot = 0
    for number, instruction in enumerate(instructions):
        starts[slot] = number
        slot += instruction.slots
    slot = 0
    for number, instruction in enumerate(instructions):
        opcode = instruction.opcode
        after = slot + instruction.slots
        if instruction.writes == 10:
            raise BadProgram(f"slot {slot}: r10 cannot be written")
        if opcode.form == "wide" and instruction.src:
            raise BadProgram(f"slot {slot}: lddw of a host object")
        if opcode.form == "call" and (instruction.src or instruction.imm not in HELPERS):
            raise BadProgram(f"slot {slot}: no helper {instruction.imm}")
        if opcode.form in ("jump", "jump_long", "branch_k", "branch_x"):
            target = after + (instruction.imm if opcode.form == "jump_long" else instruction.offset)
            if target not in starts:
                raise BadProgram(f"slot {slot}: jumps to slot {target}, which is not an instruction of the program")
        if number + 1 == len(instructions) and opcode.form not in ("exit", "jump", "jump_long"):
            raise BadProgram(f"slot {slot}: the program could run on after its last instruction")
        slot = after
    return instructions


class _Decoder:
    """Turns verified instructions into steps and a table of constants."""

    def __init__(self, code: bytes) -> None:
        self.instructions = verify(code)
        self.constants: dict[int, int] = {}
        self.helpers: set[int] = set()
        self.steps: list[_PureStep] = []
        starts = {}
        slot = 0
        for number, instruction in enumerate(self.instructions):
            starts[slot] = number
            slot += instruction.slots
        slot = 0
        for instruction in self.instructions:
            slot += instruction.slots
            form = instruction.opcode.form
            target = starts[slot + instruction.offset] if form in ("jump", "branch_k", "branch_x") else 0
            if form == "jump_long":
                target = starts[slot + instruction.imm]
            self.steps.append(self._step(instruction, form, target))

    def _constant(self, value: int) -> int:
        index = self.constants.setdefault(value & _M64, 11 + len(self.constants))
        if len(self.constants) > MAX_CONSTANTS:
            raise BadProgram(f"more than {MAX_CONSTANTS} different constants")
        return index

    def _step(self, i: Instruction, form: str, target: int) -> _PureStep:
        code = i.code
        width = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}[code & 0x18]
        own = STACK_BYTES + i.offset
        if code == 0x79 and i.src == 10 and 0 <= own <= STACK_BYTES - 8:
            return _PureStep(_LOAD_OWN, 8, i.dst, 0, own)
        if code == 0x7B and i.dst == 10 and 0 <= own <= STACK_BYTES - 8:
            return _PureStep(_STORE_OWN, 8, 0, i.src, own)
        if form == "wide":
            return _PureStep(0xBF, 0, i.dst, self._constant(i.imm), 0)
        if form == "alu_k":
            return _PureStep(_VARIANTS.get((code | 8, i.offset), code | 8), 0, i.dst, self._constant(i.imm), 0)
        if form == "alu_x":
            return _PureStep(_VARIANTS.get((code, i.offset), code), 0, i.dst, i.src, 0)
        if form == "swap":
            table = _TRUNCATE if i.opcode.name == "le" else _REVERSE
            return _PureStep(table[i.imm], 0, i.dst, 0, 0)
        if form == "branch_k":
            return _PureStep(code | 8, 0, i.dst, self._constant(i.imm), target * _STRIDE)
        if form == "branch_x":
            return _PureStep(code, 0, i.dst, i.src, target * _STRIDE)
        if form in ("jump", "jump_long"):
            return _PureStep(0x05, 0, 0, 0, target * _STRIDE)
        if form == "call":
            self.helpers.add(i.imm)
            return _PureStep(code, i.imm, 0, 0, 0)
        if form == "atomic":
            return _PureStep(_ATOMIC, width | i.imm << 8, i.dst, i.src, i.offset)
        if form == "store_k":
            return _PureStep(code | 1, width, i.dst, self._constant(i.imm), i.offset)
        return _PureStep(code, width, i.dst, i.src, i.offset)


class Program:
    """One verified program.

    `Program(code)` raises BadProgram.  `helpers` is the set of helper numbers that it calls anywhere, `code` its bytes;
    `executed` is how many instructions the last call executed, also if it ended in a fault.
    """

    def __init__(self, code: bytes) -> None:
        decoder = _Decoder(bytes(code))
        self.code = bytes(code)
        self.helpers = frozenset(decoder.helpers)
        self.length = len(decoder.steps)
        self.executed = 0
        self._r0 = 0
        self._count = 0
        self._pc = 0
        self._trace: Any = None
        registers = [0] * 11 + list(decoder.constants)
        self._steps: Any
        self._registers: Any
        if cython.compiled:
            self._steps = b"".join([_STEP.pack(*step) for step in decoder.steps])
            self._registers = bytearray(struct.pack(f"={len(registers)}Q", *registers))
            self._code = cython.cast(cython.p_char, cython.cast(bytes, self._steps))
            self._first = _words(self._registers)
        else:
            self._steps = self._code = decoder.steps
            self._registers = self._first = registers

    def run(
        self,
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
    ) -> tuple[int, list[tuple[int, int, int]]]:
        """Run; gives r0 and the elements emitted, in order.  Raises UdfFault.

        `windows` restricts META: (first, past last) byte offsets as pairs in an array('Q'); None shows all of it.
        """
        self.executed = 0
        self._start(_FIRST, meta, part, new, context, r4, r5, budget, max_out, windows)
        words = memoryview(_FIRST).cast("Q")
        flat = words[: 3 * self._count].tolist()
        return self._r0, list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))

    def run_raw(
        self,
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
    ) -> array[int]:
        """As `run`, but the elements come as one array('Q') of (block, count, type) triples."""
        self.executed = 0
        self._start(_FIRST, meta, part, new, context, r4, r5, budget, max_out, windows)
        if cython.compiled:
            out = cython.declare(
                carray.array, carray.clone(cython.cast(carray.array, _NO_WORDS), 3 * self._count, False)
            )
            memcpy(out.data.as_voidptr, cython.cast(cython.p_char, _FIRST), 24 * self._count)
            return out
        else:
            return array("Q", bytes(memoryview(_FIRST)[: 24 * self._count]))

    def run_traced(
        self,
        meta: bytes | bytearray | memoryview,
        part: int,
        windows: array[int],
        read: bytearray,
        *,
        r5: int = 0,
        max_out: int = MAX_OUTPUT,
    ) -> array[int]:
        """As `run_raw` with one window; also sets in `read` a bit for each byte of the window that was loaded."""
        if len(windows) != 2 or not windows[0] <= windows[1] <= windows[0] + 8 * len(read):
            raise ValueError(f"{len(read)} bytes are no bit map of the windows {windows.tolist()}")
        self._trace = read
        try:
            return self.run_raw(meta, part, r5=r5, max_out=max_out, windows=windows)
        finally:
            self._trace = None

    def ask(self, part: cython.ulonglong, r5: cython.ulonglong) -> cython.int:
        """A run that sees what was shown last (`show`), which verification makes all the time.  Gives how many triples
        it emitted; they are at `output` until the next run.  Raises UdfFault."""
        reason: cython.int
        self.executed = 0
        if cython.compiled:
            reason = _loop(self, cython.address(_SHOWN), _OUT, part, 0, r5, BUDGET, MAX_OUTPUT)
        else:
            reason = _loop(self, _SHOWN, _OUT, part & _M64, 0, r5 & _M64, BUDGET, MAX_OUTPUT)
        if reason:
            raise UdfFault(_FAULTS[reason], self._pc)
        return self._count

    def same_output(
        self,
        before: bytes | bytearray | memoryview,
        after: bytes | bytearray | memoryview,
        part: int = 0,
        *,
        r4: int = 0,
        r5: int = 0,
        budget: int = BUDGET,
        max_out: int = MAX_OUTPUT,
        windows: array[int] | None = None,
    ) -> bool:
        """Whether both instances make the program emit the identical sequence and return the same r0."""
        self.executed = 0
        self._start(_FIRST, before, part, None, None, r4, r5, budget, max_out, windows)
        count: cython.int = self._count
        r0: cython.ulonglong = self._r0
        self._start(_SECOND, after, part, None, None, r4, r5, budget, max_out, windows)
        if count != self._count or r0 != self._r0:
            return False
        if cython.compiled:
            a: cython.p_ulonglong = cython.cast(cython.p_ulonglong, cython.cast(cython.p_char, _FIRST))
            b: cython.p_ulonglong = cython.cast(cython.p_ulonglong, cython.cast(cython.p_char, _SECOND))
            k: cython.int
            for k in range(3 * count):
                if a[k] != b[k]:
                    return False
            return True
        else:
            return _FIRST[: 24 * count] == _SECOND[: 24 * count]

    def _start(
        self,
        out: bytearray,
        meta: Any,
        part: cython.ulonglong,
        new: Any,
        context: Any,
        r4: cython.ulonglong,
        r5: cython.ulonglong,
        budget: cython.longlong,
        max_out: cython.int,
        windows: Any,
    ) -> None:
        """Hand the buffers to the loop, and turn its verdict into a `UdfFault`."""
        if max_out > MAX_OUTPUT:
            raise ValueError(f"max_out {max_out}, at most {MAX_OUTPUT}")
        reason: cython.int
        if cython.compiled:
            view = cython.declare(View)
            held: cython.int = 0
            first = cython.declare("Py_buffer")
            second = cython.declare("Py_buffer")
            third = cython.declare("Py_buffer")
            fourth = cython.declare("Py_buffer")
            try:
                PyObject_GetBuffer(meta, cython.address(first), PyBUF_SIMPLE)
                held = 1
                PyObject_GetBuffer(_NOTHING if new is None else new, cython.address(second), PyBUF_SIMPLE)
                held = 2
                PyObject_GetBuffer(_NOTHING if windows is None else windows, cython.address(third), PyBUF_SIMPLE)
                held = 3
                PyObject_GetBuffer(_NOTHING if context is None else context, cython.address(fourth), PyBUF_SIMPLE)
                held = 4
                view.start = view.inner = 0
                view.meta = cython.cast(cython.p_uchar, first.buf)
                view.meta_length = first.len
                view.new = cython.cast(cython.p_uchar, second.buf)
                view.new_length = 0 if new is None else second.len
                view.windows = cython.cast(cython.p_ulonglong, third.buf)
                view.window_count = -1 if windows is None else third.len // 16
                view.context = cython.cast(cython.p_uchar, fourth.buf)
                view.context_length = 0 if context is None else fourth.len
                view.read = cython.NULL if self._trace is None else _memory(self._trace)
                reason = _loop(self, cython.address(view), _words(out), part, r4, r5, budget, max_out)
            finally:
                if held > 0:
                    PyBuffer_Release(cython.address(first))
                if held > 1:
                    PyBuffer_Release(cython.address(second))
                if held > 2:
                    PyBuffer_Release(cython.address(third))
                if held > 3:
                    PyBuffer_Release(cython.address(fourth))
        else:
            view = _PureView()
            view.start = view.inner = 0
            view.meta = memoryview(meta).cast("B")
            view.meta_length = len(view.meta)
            view.new = memoryview(_NOTHING if new is None else new).cast("B")
            view.new_length = 0 if new is None else len(view.new)
            view.windows = windows
            view.window_count = -1 if windows is None else len(windows) // 2
            view.context = memoryview(_NOTHING if context is None else context).cast("B")
            view.context_length = 0 if context is None else len(view.context)
            view.read = self._trace
            reason = _loop(self, view, _words(out), part & _M64, r4 & _M64, r5 & _M64, budget, max_out)
        if reason:
            raise UdfFault(_FAULTS[reason], self._pc)


def show(meta: bytes | bytearray | memoryview, windows: array[int]) -> None:
    """What `Program.ask` sees from now on: these windows of META, which the caller leaves as it is meanwhile."""
    if cython.compiled:
        global _SHOWN_META
        edges: carray.array = windows
        if type(meta) is bytearray:
            _SHOWN.meta = cython.cast(cython.p_uchar, PyByteArray_AS_STRING(meta))
            _SHOWN.meta_length = len(cython.cast(bytearray, meta))
        else:
            _SHOWN_META = bytes(meta)
            _SHOWN.meta = cython.cast(cython.p_uchar, cython.cast(cython.p_char, _SHOWN_META))
            _SHOWN.meta_length = len(_SHOWN_META)
        _SHOWN.start = _SHOWN.inner = 0
        _SHOWN.windows = edges.data.as_ulonglongs
        _SHOWN.window_count = len(edges) // 2
    else:
        _SHOWN.meta = memoryview(meta).cast("B")
        _SHOWN.meta_length = len(_SHOWN.meta)
        _SHOWN.start = _SHOWN.inner = 0
        _SHOWN.windows = windows
        _SHOWN.window_count = len(windows) // 2


@cython.cfunc
@cython.exceptval(check=False)
def output() -> cython.p_ulonglong:
    """Where the triples of the last `Program.ask` are."""
    return _OUT


@cython.cfunc
@cython.exceptval(check=False)
def _loop(
    program: Program,
    view: cython.pointer[View],
    out: cython.p_ulonglong,
    part: cython.ulonglong,
    r4: cython.ulonglong,
    r5: cython.ulonglong,
    budget: cython.longlong,
    max_out: cython.int,
) -> cython.int:
    """The interpreter proper: gives an index into `_FAULTS`."""
    op: cython.uchar
    width: cython.int
    k: cython.int
    reason: cython.int = 0
    count: cython.int = 0
    pc: cython.longlong = 0
    begin: cython.longlong = 0  # of the straight line that is being executed
    left: cython.longlong = budget * cython.sizeof(Step)  # before that line
    a: cython.ulonglong
    b: cython.ulonglong
    at: cython.ulonglong
    regs: cython.p_ulonglong = program._first
    code: cython.p_char = program._code
    if cython.compiled:
        s: cython.pointer[Step]
        memset(_STACK, 0, _STACK_SIZE)
    else:
        _STACK[:] = bytes(STACK_BYTES)
    regs[0] = 0
    regs[1] = _META
    regs[2] = view.meta_length
    regs[3] = part
    regs[4] = r4
    regs[5] = r5
    for k in range(6, 10):
        regs[k] = 0
    regs[10] = _STACK_END
    if budget <= 0:
        program._pc = -1
        return 3

    while True:
        if cython.compiled:
            s = cython.cast(cython.pointer(Step), code + pc)
        else:
            s = code[pc]
        pc += cython.sizeof(Step)
        op = s.op
        # Both operands for every instruction: reading them is cheaper than deciding whether they are needed.
        a = regs[s.dst]
        b = regs[s.src]
        if op == 0x0F:  # add64
            regs[s.dst] = _u64(a + b)
        elif op == 0xBF:  # mov64
            regs[s.dst] = b
        elif op == 0x18:  # _LOAD_OWN
            regs[s.dst] = _get64(_STACK, s.arg)
        # Loads: of the window that was found last at once, all others by looking.
        elif op == 0x79:  # ldx64
            at = _u64(b + s.arg - view.start)
            if at < view.inner:
                regs[s.dst] = _get64(view.window, at)
            elif _look(view, _u64(b + s.arg), 8):
                regs[s.dst] = view.value
            else:
                reason = 1
                break
        elif op == 0x61:  # ldx32
            at = _u64(b + s.arg - view.start)
            if at < view.inner:
                regs[s.dst] = _get32(view.window, at)
            elif _look(view, _u64(b + s.arg), 4):
                regs[s.dst] = view.value
            else:
                reason = 1
                break
        elif op == 0x69:  # ldx16
            at = _u64(b + s.arg - view.start)
            if at < view.inner:
                regs[s.dst] = _get16(view.window, at)
            elif _look(view, _u64(b + s.arg), 2):
                regs[s.dst] = view.value
            else:
                reason = 1
                break
        elif op == 0x71:  # ldx8
            at = _u64(b + s.arg - view.start)
            if at < view.inner:
                regs[s.dst] = view.window[at]
            elif _look(view, _u64(b + s.arg), 1):
                regs[s.dst] = view.value
            else:
                reason = 1
                break
        elif op == 0x81 or op == 0x89 or op == 0x91:  # ldsx: sign-extended
            if not _look(view, _u64(b + s.arg), s.width):
                reason = 1
                break
            regs[s.dst] = _u64(_extend(view.value, 8 * s.width))
        elif op == 0x80:  # _STORE_OWN
            _put(_STACK, s.arg, b, 8)
        elif op == 0x63 or op == 0x6B or op == 0x73 or op == 0x7B:  # stores
            width = s.width
            at = _u64(a + s.arg)
            if at >> 32 != 2 or (at & _LOW) + width > _STACK_SIZE:
                reason = 2
                break
            _put(_STACK, at & _LOW, b, width)
        elif op == 0xC3:  # _ATOMIC
            width = s.width & 0xFF
            at = _u64(a + s.arg)
            if at >> 32 != 2 or (at & _LOW) + width > _STACK_SIZE:
                reason = 2
                break
            at = at & _LOW
            a = _get64(_STACK, at) if width == 8 else _get32(_STACK, at)
            _put(_STACK, at, _combine(s.width >> 8, width, a, b, regs[0]), width)
            if s.width >> 8 == 0xF1:
                regs[0] = a
            elif s.width >> 8 & 1:
                regs[s.src] = a
        elif op == 0x1D:  # jeq
            if a == b:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x5D:  # jne
            if a != b:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0xAD:  # jlt
            if a < b:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0xBD:  # jle
            if a <= b:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x2D:  # jgt
            if a > b:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x3D:  # jge
            if a >= b:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x4D:  # jset
            if a & b:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0xCD:  # jslt
            if _s64(a) < _s64(b):
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0xDD:  # jsle
            if _s64(a) <= _s64(b):
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x6D:  # jsgt
            if _s64(a) > _s64(b):
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x7D:  # jsge
            if _s64(a) >= _s64(b):
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x05:  # ja, jal
            left -= pc - begin
            if left <= 0:
                break
            pc = begin = s.arg
        elif op == 0x85:  # call
            if count >= max_out:
                reason = 4
                break
            # emit(block, count, type); emit_ref(da) and emit_cap(capability, rights) leave the rest fixed.
            out[3 * count] = regs[1]
            out[3 * count + 1] = 1 if s.width == 2 else regs[2]
            out[3 * count + 2] = regs[3] if s.width == 1 else 0
            count += 1
            for k in range(6):
                regs[k] = 0
        elif op == 0x95:  # exit
            break
        elif op == 0x1F:  # sub64
            regs[s.dst] = _u64(a - b)
        elif op == 0x2F:  # mul64
            regs[s.dst] = _u64(a * b)
        elif op == 0x3F:  # div64
            regs[s.dst] = a // b if b else 0
        elif op == 0x9F:  # mod64
            regs[s.dst] = a % b if b else a
        elif op == 0x00:  # sdiv64
            regs[s.dst] = _sdiv(a, b)
        elif op == 0x08:  # smod64
            regs[s.dst] = _smod(a, b)
        elif op == 0x4F:  # or64
            regs[s.dst] = a | b
        elif op == 0x5F:  # and64
            regs[s.dst] = a & b
        elif op == 0xAF:  # xor64
            regs[s.dst] = a ^ b
        elif op == 0x6F:  # lsh64
            regs[s.dst] = _u64(a << (b & 63))
        elif op == 0x7F:  # rsh64
            regs[s.dst] = a >> (b & 63)
        elif op == 0xCF:  # arsh64
            regs[s.dst] = _u64(_s64(a) >> (b & 63))
        elif op == 0x87:  # neg64
            regs[s.dst] = _u64(0 - a)
        elif op == 0x28:  # movsx64 from 8
            regs[s.dst] = _u64(_extend(b, 8))
        elif op == 0x30:  # movsx64 from 16
            regs[s.dst] = _u64(_extend(b, 16))
        elif op == 0x38:  # movsx64 from 32
            regs[s.dst] = _u64(_extend(b, 32))
        elif op == 0x0C:  # add32, and so on: operands and results are the low halves, the upper half becomes 0
            regs[s.dst] = (a + b) & _LOW
        elif op == 0x1C:  # sub32
            regs[s.dst] = (a - b) & _LOW
        elif op == 0x2C:  # mul32
            regs[s.dst] = (a * b) & _LOW
        elif op == 0x3C:  # div32
            b = b & _LOW
            regs[s.dst] = (a & _LOW) // b if b else 0
        elif op == 0x9C:  # mod32
            a = a & _LOW
            b = b & _LOW
            regs[s.dst] = a % b if b else a
        elif op == 0x10:  # sdiv32
            regs[s.dst] = _sdiv(_u64(_extend(a, 32)), _u64(_extend(b, 32))) & _LOW
        elif op == 0x20:  # smod32
            regs[s.dst] = _smod(_u64(_extend(a, 32)), _u64(_extend(b, 32))) & _LOW
        elif op == 0x4C:  # or32
            regs[s.dst] = (a | b) & _LOW
        elif op == 0x5C:  # and32
            regs[s.dst] = a & b & _LOW
        elif op == 0xAC:  # xor32
            regs[s.dst] = (a ^ b) & _LOW
        elif op == 0x6C:  # lsh32
            regs[s.dst] = (a << (b & 31)) & _LOW
        elif op == 0x7C:  # rsh32
            regs[s.dst] = (a & _LOW) >> (b & 31)
        elif op == 0xCC:  # arsh32
            regs[s.dst] = (_extend(a, 32) >> (b & 31)) & _LOW
        elif op == 0x84:  # neg32
            regs[s.dst] = (0 - a) & _LOW
        elif op == 0xBC:  # mov32
            regs[s.dst] = b & _LOW
        elif op == 0x40:  # movsx32 from 8
            regs[s.dst] = _extend(b, 8) & _LOW
        elif op == 0x48:  # movsx32 from 16
            regs[s.dst] = _extend(b, 16) & _LOW
        elif op == 0x50:  # le16: the machine of a UDF is little-endian, so only the truncation remains
            regs[s.dst] = a & 0xFFFF
        elif op == 0x58:  # le32
            regs[s.dst] = a & _LOW
        elif op == 0x60:  # le64
            pass
        elif op == 0x68:  # be16, bswap16
            regs[s.dst] = _reverse(a, 2)
        elif op == 0x70:  # be32, bswap32
            regs[s.dst] = _reverse(a, 4)
        elif op == 0x78:  # be64, bswap64
            regs[s.dst] = _reverse(a, 8)
        elif op == 0x1E:  # jeq32
            if (a ^ b) & _LOW == 0:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x5E:  # jne32
            if (a ^ b) & _LOW:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0xAE:  # jlt32
            if a & _LOW < b & _LOW:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0xBE:  # jle32
            if a & _LOW <= b & _LOW:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x2E:  # jgt32
            if a & _LOW > b & _LOW:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x3E:  # jge32
            if a & _LOW >= b & _LOW:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x4E:  # jset32
            if a & b & _LOW:
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0xCE:  # jslt32
            if _extend(a, 32) < _extend(b, 32):
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0xDE:  # jsle32
            if _extend(a, 32) <= _extend(b, 32):
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0x6E:  # jsgt32
            if _extend(a, 32) > _extend(b, 32):
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
        elif op == 0xFF:  # not an instruction: with it, the cases reach over all bytes, and C needs no check of `op`
            pass
        else:  # jsge32 (0x7E): verification let nothing else through
            if _extend(a, 32) >= _extend(b, 32):
                left -= pc - begin
                if left <= 0:
                    break
                pc = begin = s.arg
    if left > 0:  # it ended within a line
        left -= pc - begin
        if left < 0:
            reason = 3
            pc += left
    else:  # at a jump, with the budget used up
        reason = 3
        pc = pc + left if left else s.arg
    program._pc = pc // cython.sizeof(Step) - 1
    program._count = count
    program._r0 = regs[0]
    program.executed += budget - (left // cython.sizeof(Step) if left > 0 else 0)
    return reason
