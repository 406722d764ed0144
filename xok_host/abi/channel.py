"""The call ring of one environment: layout, and both ends without any waiting.

One memory file, created and sealed by xokd, mapped writable by both.  The libOS writes entries and operand bytes and
moves `sq_tail`; xokd copies an entry and its operands before it looks at either (CH-1), so later writes change
nothing; it answers into the completion ring and into the result area the entry named.

    0        header: magic, version, sizes
    64       sq_tail   (libOS writes)       128  sq_head  (xokd writes)
    192      cq_tail   (xokd writes)        256  cq_head  (libOS writes)
    320      cq_sleep  (both write)         384  cq_wanted (libOS writes)
    4096     submission ring, 64 bytes an entry
    …        completion ring, 32 bytes each
    DATA     operand and result bytes, laid out by the libOS as it likes

CH-2  All indices are free-running u32, masked on use: no value of theirs reaches outside.
CH-3  xokd takes at most what the completion ring can answer, so it never waits for a libOS that does not read.
CH-4  Operand and result ranges are clipped to the data area; a range that does not fit is `BadCall`.
CH-5  An index is stored and loaded whole, and whoever sees it sees what was written before it; the host is
      little-endian, like everything in the ring.
CH-6  `cq_sleep` says where the libOS is.  AWAY: ring its doorbell.  HERE: it will look for answers before it sleeps or
      goes away, so nothing need be done.  ASLEEP: it sleeps on that word (futex), after it looked for answers once
      more; xokd makes it HERE and wakes it.  Each side looks at what the other stores after a fence behind its own.
CH-7  `cq_wanted` is how many answers the libOS sleeps for: fewer do not wake it, an event does.  It has taken all that
      were there before it sleeps.
"""

from __future__ import annotations

import struct
from typing import Any

import cython

if cython.compiled:
    from cython.cimports.cpython.long import PyLong_AsUnsignedLongLongMask
    from cython.cimports.libc.string import memcpy
    from cython.cimports.xok_host.abi import futex
else:
    from xok_host.abi import futex

MAGIC = 0x4B4F5843
VERSION = 3
HEADER = struct.Struct("<IIIIII")
"""magic, version, submission entries, completions, data offset, data bytes."""

SQ_TAIL, SQ_HEAD, CQ_TAIL, CQ_HEAD, CQ_SLEEP, CQ_WANTED = 64, 128, 192, 256, 320, 384
AWAY, HERE, ASLEEP = 0, 1, 2
"""Values of `cq_sleep` (CH-6)."""
SQ_OFFSET = 4096
ENTRY = struct.Struct("<HHIQIIIIQQQQ")
"""call, flags, capability index, cookie, operand offset and bytes, result offset and bytes, a0 … a3."""
_SCALARS = struct.Struct("<4Q")
COMPLETION = struct.Struct("<QiIQQ")
"""cookie (0: an event, code is its kind), error code (0: success), result bytes, r0, r1."""

SUBMISSIONS = 256
COMPLETIONS = 1024
DATA_BYTES = 4 * 1024 * 1024
CQ_OFFSET = SQ_OFFSET + SUBMISSIONS * ENTRY.size
DATA_OFFSET = (CQ_OFFSET + COMPLETIONS * COMPLETION.size + 4095) // 4096 * 4096
RING_BYTES = DATA_OFFSET + DATA_BYTES

_MASK32 = cython.declare(cython.ulonglong, 0xFFFF_FFFF)
_MASK64 = 0xFFFF_FFFF_FFFF_FFFF

# The same structures as C has them: x86-64 and AArch64 lay them out alike.
EntryHeader = cython.struct(
    number=cython.ushort,
    flags=cython.ushort,
    cap=cython.uint,
    cookie=cython.ulonglong,
    in_offset=cython.uint,
    in_bytes=cython.uint,
    out_offset=cython.uint,
    out_bytes=cython.uint,
    a0=cython.ulonglong,
    a1=cython.ulonglong,
    a2=cython.ulonglong,
    a3=cython.ulonglong,
)
CompletionHeader = cython.struct(
    cookie=cython.ulonglong,
    code=cython.int,
    nbytes=cython.uint,
    r0=cython.ulonglong,
    r1=cython.ulonglong,
)
_DATA = cython.declare(cython.long, DATA_OFFSET)
_DATA_BYTES = cython.declare(cython.ulonglong, DATA_BYTES)
_SUBMISSIONS = cython.declare(cython.uint, SUBMISSIONS)
_COMPLETIONS = cython.declare(cython.uint, COMPLETIONS)
_UNANSWERED = cython.declare(cython.ulonglong, COMPLETIONS - 64)
# Both are powers of two, so an index is masked with one less (CH-2).
_ENTRY = cython.declare(cython.uint, SUBMISSIONS - 1)
_COMPLETION = cython.declare(cython.uint, COMPLETIONS - 1)
_ENTRIES_AT = cython.declare(cython.long, SQ_OFFSET)
_COMPLETIONS_AT = cython.declare(cython.long, CQ_OFFSET)
_SQ_TAIL = cython.declare(cython.long, SQ_TAIL)
_SQ_HEAD = cython.declare(cython.long, SQ_HEAD)
_CQ_TAIL = cython.declare(cython.long, CQ_TAIL)
_CQ_HEAD = cython.declare(cython.long, CQ_HEAD)
_CQ_SLEEP = cython.declare(cython.long, CQ_SLEEP)
_CQ_WANTED = cython.declare(cython.long, CQ_WANTED)
_AWAY = cython.declare(cython.uint, AWAY)
_HERE = cython.declare(cython.uint, HERE)
_ASLEEP = cython.declare(cython.uint, ASLEEP)


@cython.freelist(64)
@cython.no_gc
@cython.cclass
class Entry:
    """A submission, already copied out of shared memory."""

    __slots__ = ("a0", "a1", "a2", "a3", "cap", "cookie", "data", "flags", "number", "out_bytes", "out_offset")

    def __init__(
        self,
        number: int,
        flags: int,
        cap: int,
        cookie: int,
        a0: int,
        a1: int,
        a2: int,
        a3: int,
        data: bytes,
        out_offset: int,
        out_bytes: int,
    ) -> None:
        self.number = number
        self.flags = flags
        self.cap = cap
        self.cookie = cookie
        self.a0 = a0
        self.a1 = a1
        self.a2 = a2
        self.a3 = a3
        self.data = data
        self.out_offset = out_offset
        self.out_bytes = out_bytes


@cython.freelist(64)
@cython.no_gc
@cython.cclass
class Completion:
    """An answer, or (cookie 0) an event."""

    __slots__ = ("code", "cookie", "data", "r0", "r1")

    def __init__(self, cookie: int, code: int, r0: int, r1: int, data: bytes) -> None:
        self.cookie = cookie
        self.code = code
        self.r0 = r0
        self.r1 = r1
        self.data = data


class RingFull(Exception):
    """No free submission slot, or not enough room for operands: take completions first."""


def _wrap(index: cython.longlong) -> cython.uint:
    """A free-running index."""
    return index & _MASK32


def _low64(value: Any) -> cython.ulonglong:
    """What of an integer fits."""
    if cython.compiled:
        return PyLong_AsUnsignedLongLongMask(value)
    else:
        return value & _MASK64


def _whole_words(nbytes: cython.long) -> cython.long:
    """Operand space is handed out in words of eight bytes."""
    return (nbytes + 7) & ~7


class _Ring:
    def __init__(self, memory: memoryview) -> None:
        if len(memory) < RING_BYTES:
            raise ValueError(f"a call ring has {RING_BYTES} bytes")
        self.memory = memory
        # One load or store of the processor each (CH-5); `struct` would write zeros first, which the other side sees.
        self._words = memory[:RING_BYTES].cast("I")
        if cython.compiled:
            self._start = cython.cast(cython.p_char, cython.address(self._words[0]))

    def _load(self, at: cython.long) -> cython.uint:
        if cython.compiled:
            return futex.load(cython.cast(cython.p_uint, self._base() + at))
        else:
            return self._words[at >> 2]

    def _store(self, at: cython.long, value: cython.uint) -> None:
        if cython.compiled:
            futex.store(cython.cast(cython.p_uint, self._base() + at), value)
        else:
            self._words[at >> 2] = value

    def _base(self) -> cython.p_char:
        """Where the memory begins: for compiled code."""
        if not self._start:
            raise ValueError("the ring's memory has been let go")
        return self._start

    def _copy_out(self, offset: cython.long, nbytes: cython.long) -> bytes:
        """Bytes of the data area; the range has been checked."""
        if not nbytes:
            return b""
        if cython.compiled:
            start: cython.p_char = self._base() + _DATA + offset
            return start[:nbytes]
        else:
            return bytes(self.memory[_DATA + offset : _DATA + offset + nbytes])

    def _copy_in(self, offset: cython.long, data: bytes) -> None:
        """Bytes into the data area; the range has been checked."""
        if cython.compiled:
            memcpy(self._base() + _DATA + offset, cython.cast(cython.p_char, data), len(data))
        else:
            self.memory[_DATA + offset : _DATA + offset + len(data)] = data

    def release(self) -> None:
        """Let go of the memory, so that it can be unmapped."""
        if cython.compiled:
            self._start = cython.NULL
            self._words = None  # type: ignore[assignment]
        else:
            self._words.release()
        self.memory.release()


class KernelRing(_Ring):
    """xokd's end.  Trusts nothing in the memory but what it wrote and remembers itself."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        HEADER.pack_into(memory, 0, MAGIC, VERSION, SUBMISSIONS, COMPLETIONS, DATA_OFFSET, DATA_BYTES)
        self._sq_head = 0
        self._cq_tail = 0
        self._news = False
        """An event was posted since the last `wake`."""
        self.owed = 0
        """Entries taken and not yet answered."""

    def pending(self) -> cython.uint:
        """Entries that wait; never more than the ring holds, whatever the libOS wrote."""
        waiting: cython.uint = _wrap(self._load(_SQ_TAIL) - self._sq_head)
        return waiting if waiting < _SUBMISSIONS else _SUBMISSIONS

    def room(self) -> cython.long:
        """Completions that still fit, those owed counted."""
        used: cython.uint = _wrap(self._cq_tail - self._load(_CQ_HEAD))
        left: cython.long = _COMPLETIONS
        left -= used if used < _COMPLETIONS else _COMPLETIONS
        left -= self.owed
        return left if left > 0 else 0

    def take(self) -> Entry | None:
        """Copy out the next entry with its operands (CH-1); None when there is none or no room to answer (CH-3)."""
        if not self.pending() or not self.room():
            return None
        at: cython.long = _ENTRIES_AT + (self._sq_head & _ENTRY) * 64
        entry: Entry = Entry.__new__(Entry)
        in_off: cython.ulonglong
        in_len: cython.ulonglong
        out_off: cython.ulonglong
        out_len: cython.ulonglong
        if cython.compiled:
            header = cython.declare(EntryHeader)
            memcpy(cython.address(header), self._base() + at, 64)
            entry.number, entry.flags, entry.cap, entry.cookie = header.number, header.flags, header.cap, header.cookie
            entry.a0, entry.a1, entry.a2, entry.a3 = header.a0, header.a1, header.a2, header.a3
            in_off, in_len, out_off, out_len = header.in_offset, header.in_bytes, header.out_offset, header.out_bytes
        else:
            (entry.number, entry.flags, entry.cap, entry.cookie, in_off, in_len, out_off, out_len, *scalars) = (
                ENTRY.unpack(bytes(self.memory[at : at + ENTRY.size]))
            )
            entry.a0, entry.a1, entry.a2, entry.a3 = scalars
        self._sq_head = _wrap(self._sq_head + 1)
        self._store(_SQ_HEAD, self._sq_head)
        self.owed += 1
        if in_off + in_len > _DATA_BYTES:
            entry.number = 0
            in_len = 0
        if out_off + out_len > _DATA_BYTES:
            out_off = out_len = 0
        entry.data = self._copy_out(in_off, in_len)
        entry.out_offset, entry.out_bytes = out_off, out_len
        return entry

    def complete(self, entry: Entry, code: Any, r0: Any = 0, r1: Any = 0, data: bytes = b"") -> None:
        """Answer an entry; result bytes are cut to the room the entry gave."""
        if data:
            data = bytes(data[: entry.out_bytes])
            self._copy_in(entry.out_offset, data)
        self.owed -= 1
        self._push(entry.cookie, code, len(data), r0, r1)

    def event(self, kind: int, r0: int = 0, r1: int = 0) -> bool:
        """Post an event; False when the ring has no room and the caller must keep it."""
        if not self.room():
            return False
        self._push(0, kind, 0, r0, r1)
        self._news = True
        return True

    def wake(self) -> cython.bint:
        """Answers are there: wake the libOS if it sleeps in the ring and waits for no more than they are (CH-6, CH-7).
        False if its doorbell must ring."""
        futex.fence()
        where: cython.uint = self._load(_CQ_SLEEP)
        news: cython.bint = self._news
        self._news = False
        if where == _ASLEEP and not news and _wrap(self._cq_tail - self._load(_CQ_HEAD)) < self._load(_CQ_WANTED):
            return True
        if where == _ASLEEP and futex.exchange(self._words, _CQ_SLEEP >> 2, _ASLEEP, _HERE):
            futex.wake(self._words, _CQ_SLEEP >> 2)
        return where == _ASLEEP or where == _HERE

    def _push(self, cookie: cython.ulonglong, code: cython.int, nbytes: cython.uint, r0: Any, r1: Any) -> None:
        at: cython.long = _COMPLETIONS_AT + (self._cq_tail & _COMPLETION) * 32
        if cython.compiled:
            header = cython.declare(CompletionHeader)
            header.cookie, header.code, header.nbytes = cookie, code, nbytes
            header.r0, header.r1 = _low64(r0), _low64(r1)
            memcpy(self._base() + at, cython.address(header), 32)
        else:
            COMPLETION.pack_into(self.memory, at, cookie, code, nbytes, _low64(r0), _low64(r1))
        self._cq_tail = _wrap(self._cq_tail + 1)
        self._store(_CQ_TAIL, self._cq_tail)


class _Area:
    """Where one entry's operands and results are."""

    __slots__ = ("begin", "done", "end", "out_bytes", "out_offset")

    def __init__(self) -> None:
        self.begin = self.end = self.out_offset = self.out_bytes = 0
        self.done = True


class ClientRing(_Ring):
    """The libOS's end.  Operand space is handed out in ring order and comes back in the order of submission."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        magic, version, *_ = HEADER.unpack_from(memory, 0)
        if magic != MAGIC or version != VERSION:
            raise ValueError("not a call ring of this version")
        self._sq_tail = self._load(SQ_TAIL)
        self._cq_head = self._load(CQ_HEAD)
        self._next_cookie = self._oldest = 1
        self.unanswered = 0
        """Entries queued whose answers were not taken."""
        self._areas = [_Area() for _ in range(COMPLETIONS)]
        """Of the entries from `_oldest` on, by cookie modulo their number, which is greater than `_UNANSWERED`."""
        self._begin = 0
        self._free_at = 0
        self._held = 0

    def push(
        self,
        number: cython.int,
        scalars: tuple = (),  # type: ignore[type-arg]
        cap: cython.uint = 0,
        data: bytes = b"",
        out_bytes: cython.long = 0,
        flags: cython.int = 0,
    ) -> cython.ulonglong:
        """Queue one entry and return its cookie.  Raises `RingFull`, and OverflowError or struct.error for numbers that
        do not fit.  xokd sees it after `publish`."""
        n: cython.Py_ssize_t = len(scalars)  # what does not fit has changed nothing
        if cython.compiled:
            header = cython.declare(EntryHeader)
            header.a0 = header.a1 = header.a2 = header.a3 = 0
            if n > 0:
                header.a0 = scalars[0]
            if n > 1:
                header.a1 = scalars[1]
            if n > 2:
                header.a2 = scalars[2]
            if n > 3:
                header.a3 = scalars[3]
        else:
            words = _SCALARS.pack(*(*scalars, 0, 0, 0, 0)[:4])
        cookie: cython.ulonglong = self._next_cookie
        if _wrap(self._sq_tail - self._load(_SQ_HEAD)) >= _SUBMISSIONS or cookie - self._oldest >= _UNANSWERED:
            raise RingFull
        in_bytes: cython.long = len(data)
        offset: cython.long = self._reserve(in_bytes + out_bytes)
        self._next_cookie = cookie + 1
        self.unanswered += 1
        area: _Area = self._areas[cookie & _COMPLETION]
        area.begin = offset
        area.end = offset + _whole_words(in_bytes + out_bytes)
        area.out_offset, area.out_bytes = offset + in_bytes, out_bytes
        area.done = False
        if in_bytes:
            self._copy_in(offset, data)
        at: cython.long = _ENTRIES_AT + (self._sq_tail & _ENTRY) * 64
        if cython.compiled:
            header.number, header.flags, header.cap, header.cookie = number, flags, cap, cookie
            header.in_offset, header.in_bytes, header.out_offset = offset, in_bytes, offset + in_bytes
            header.out_bytes = out_bytes
            memcpy(self._base() + at, cython.address(header), 64)
        else:
            operands = (offset, in_bytes, offset + in_bytes, out_bytes)
            ENTRY.pack_into(self.memory, at, number, flags, cap, cookie, *operands, *_SCALARS.unpack(words))
        self._sq_tail = _wrap(self._sq_tail + 1)
        return cookie

    def queued(self) -> cython.bint:
        """Whether there are entries that xokd does not see yet."""
        return self._load(_SQ_TAIL) != self._sq_tail

    def publish(self) -> None:
        self._store(_SQ_TAIL, self._sq_tail)

    def wait_here(self, here: cython.bint) -> cython.bint:
        """Begin to wait in the ring, so that no doorbell rings, or end it (CH-6).  Whether answers are there."""
        self._store(_CQ_SLEEP, _HERE if here else _AWAY)
        futex.fence()
        return self._cq_head != self._load(_CQ_TAIL)

    def sleep(self, ns: cython.longlong, wanted: cython.uint = 1) -> cython.bint:
        """Sleep until `wanted` answers or an event are there, at most `ns` nanoseconds; False if it was that long."""
        self._store(_CQ_WANTED, wanted)
        self._store(_CQ_SLEEP, _ASLEEP)
        futex.fence()
        if self._cq_head != self._load(_CQ_TAIL):
            return True
        return futex.sleep(self._words, _CQ_SLEEP >> 2, _ASLEEP, ns) != 0

    def pop(self) -> Completion | None:
        """The next completion or event, or None."""
        if self._cq_head == self._load(_CQ_TAIL):
            return None
        at: cython.long = _COMPLETIONS_AT + (self._cq_head & _COMPLETION) * 32
        done: Completion = Completion.__new__(Completion)
        nbytes: cython.long
        if cython.compiled:
            header = cython.declare(CompletionHeader)
            memcpy(cython.address(header), self._base() + at, 32)
            done.cookie, done.code, done.r0, done.r1 = header.cookie, header.code, header.r0, header.r1
            nbytes = header.nbytes
        else:
            done.cookie, done.code, nbytes, done.r0, done.r1 = COMPLETION.unpack_from(self.memory, at)
        self._cq_head = _wrap(self._cq_head + 1)
        self._store(_CQ_HEAD, self._cq_head)
        done.data = b""
        if done.cookie:
            if self.unanswered:  # a ring that was taken over may have answers of others
                self.unanswered -= 1
            area: _Area = self._areas[done.cookie & _COMPLETION]
            if nbytes:
                done.data = self._copy_out(area.out_offset, min(nbytes, area.out_bytes))
            area.done = True
            if done.cookie == self._oldest:
                self._release()
        return done

    def _reserve(self, nbytes: cython.long) -> cython.long:
        """Room for `nbytes` in the data area, which is used as a ring: [begin, free_at) is held."""
        nbytes = _whole_words(nbytes)
        size: cython.long = DATA_BYTES
        if nbytes > size:
            raise ValueError(f"operands of {nbytes} bytes, at most {DATA_BYTES}")
        if not self._held:
            self._begin = self._free_at = 0
        wrapped: cython.bint = self._held > 0 and self._free_at <= self._begin
        if self._free_at + nbytes > (self._begin if wrapped else size):
            if wrapped or nbytes > self._begin:
                raise RingFull
            self._free_at = 0
        offset = self._free_at
        self._free_at = offset + nbytes
        self._held += nbytes
        return offset

    def _release(self) -> None:
        """Areas come back in the order of submission, as far as they are done."""
        area: _Area
        while self._oldest != self._next_cookie:
            area = self._areas[self._oldest & _COMPLETION]
            if not area.done:
                break
            self._oldest += 1
            if area.begin != area.end:
                self._held -= area.end - area.begin
                self._begin = area.end
