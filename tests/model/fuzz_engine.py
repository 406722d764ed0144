"""Coverage-guided fuzzing of whatever takes a list of byte strings: mutate, run, keep what reaches a new line.

Ours, because what exists does not fit: atheris has binaries for x86-64 and some versions of Python only, and the
project runs on others.  It is deterministic for a seed and a number of executions.  Lines are counted in the
uncompiled kernel and ABI (XOK_PURE=1), with `sys.monitoring` where Python has it (each line then costs once) and
`sys.settrace` elsewhere.

FUZZ-1  A run that raises anything is a finding, and so is one that takes longer than `HANG_SECONDS`.
FUZZ-2  A finding is made shorter as long as it stays the same finding.
"""

from __future__ import annotations

import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from xok_host.abi.accel import ROOT

Input = list[bytes]
WATCHED = (f"{ROOT}/xok_host/kernel/", f"{ROOT}/xok_host/abi/")
HANG_SECONDS = 5
MAX_PARTS = 24
EDGES = [
    0,
    1,
    2,
    7,
    8,
    255,
    4095,
    4096,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 44,
    (1 << 63),
    (1 << 64) - 1,
]


class Hang(BaseException):
    """A single run took longer than HANG_SECONDS of its own time."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """An endless loop becomes an exception; compiled code notices it when it next runs Python.

    The seconds are those that this process computes: it waits for nothing, and what else runs, or how long Linux takes
    to find memory, is not its fault."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds} s of its own time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class Coverage:
    """Lines of the watched files that have run.  `new()` says how many since the last question."""

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()
        self._known = 0
        self._watched: dict[CodeType, bool] = {}

    def new(self) -> int:
        found, self._known = len(self.lines) - self._known, len(self.lines)
        return found

    def watches(self, code: CodeType) -> bool:
        known = self._watched.get(code)
        if known is None:
            known = self._watched[code] = code.co_filename.startswith(WATCHED)
        return known

    @contextmanager
    def __call__(self) -> Iterator[None]:
        monitoring: Any = getattr(sys, "monitoring", None)
        if monitoring is None:
            sys.settrace(self._enter)
            try:
                yield
            finally:
                sys.settrace(None)
            return
        tool = monitoring.COVERAGE_ID
        monitoring.use_tool_id(tool, "xok-fuzz")

        def line(code: CodeType, number: int) -> Any:
            if self.watches(code):
                self.lines.add((code.co_filename, number))
            return monitoring.DISABLE

        monitoring.register_callback(tool, monitoring.events.LINE, line)
        monitoring.set_events(tool, monitoring.events.LINE)
        try:
            yield
        finally:
            monitoring.set_events(tool, 0)
            monitoring.free_tool_id(tool)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if self.watches(frame.f_code) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


@dataclass
class Finding:
    what: str
    """Kind of exception and the place it came from: what makes two findings the same."""
    text: str
    input: Input


@dataclass
class Fuzzer:
    """`run(input, watch)` gives a value to compare between builds, and does what it tests `with watch()`; `words` are
    numbers that mean something to it."""

    run: Callable[[Input, Any], Any]
    seeds: list[Input]
    words: list[int]
    seed: int = 1
    executions: int = 0
    corpus: list[Input] = field(default_factory=list)
    findings: dict[str, Finding] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=Coverage)

    def fuzz(self, seconds: float, executions: int = 1 << 62, report: Callable[[str], None] = print) -> None:
        """Until the time is over or so many inputs have run; seeds first."""
        chance = random.Random(self.seed)
        end, told = time.monotonic() + seconds, time.monotonic()
        for given in self.seeds:
            self.attempt(given, keep=True)
        while time.monotonic() < end and self.executions < executions:
            self.attempt(self.mutated(chance), keep=False)
            if time.monotonic() - told > 60:
                told = time.monotonic()
                report(self.statistics())

    def statistics(self) -> str:
        return (
            f"{self.executions} executions, {len(self.coverage.lines)} lines, corpus of {len(self.corpus)}, "
            f"{len(self.findings)} findings"
        )

    def attempt(self, given: Input, *, keep: bool) -> None:
        self.executions += 1
        found = self.outcome(given, self.coverage)
        if found is not None and found.what == Hang.__name__:
            found = self.outcome(given)  # counting lines takes ten times as long as what is counted
        if found is not None and found.what not in self.findings:
            self.findings[found.what] = self.shrunk(found)
        if self.coverage.new() or keep:
            self.corpus.append(given)

    def outcome(self, given: Input, coverage: Coverage | None = None) -> Finding | None:
        try:
            with deadline(HANG_SECONDS):
                self.run(given, coverage or nullcontext)
        except (Exception, Hang) as wrong:  # FUZZ-1
            frames = traceback.extract_tb(wrong.__traceback__)
            place = (
                "" if isinstance(wrong, Hang) else f" at {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}"
            )
            text = "".join(traceback.format_exception(wrong)[-6:])
            return Finding(f"{type(wrong).__name__}{place}", text, given)
        return None

    def shrunk(self, found: Finding) -> Finding:
        """FUZZ-2: without the parts that do not matter."""
        best = found
        at = 0
        while at < len(best.input):
            less = best.input[:at] + best.input[at + 1 :]
            again = self.outcome(less)
            if again is not None and again.what == found.what:
                best = again
            else:
                at += 1
        return best

    # ---- mutation

    def mutated(self, chance: random.Random) -> Input:
        recent = self.corpus[-40:] if chance.random() < 0.5 else self.corpus
        parts = list(chance.choice(recent))
        for _ in range(chance.choice([1, 1, 2, 4, 8])):
            how = chance.randrange(10)
            at = chance.randrange(len(parts)) if parts else 0
            if how == 0 or not parts:
                other = chance.choice(self.corpus)
                parts[at:at] = other[chance.randrange(len(other) or 1) :][:6]
            elif how == 1 and len(parts) > 1:
                del parts[at]
            elif how == 2:
                parts.insert(chance.randrange(len(parts) + 1), parts[at])
            else:
                parts[at] = self.altered(parts[at], chance)
        return parts[:MAX_PARTS]

    def altered(self, raw: bytes, chance: random.Random) -> bytes:
        if not raw:
            return chance.randbytes(8)
        out, how = bytearray(raw), chance.randrange(7)
        width = chance.choice([1, 2, 4, 4, 8, 8])
        at = chance.randrange(max(1, len(out) // width)) * width
        if how == 0:
            out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
        elif how == 1:
            value = int.from_bytes(out[at : at + width], "little") + chance.choice([-8, -1, 1, 8, 512, 4096])
            out[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        elif how in (2, 3, 4):
            value = chance.choice(self.words if how < 4 else EDGES)
            out[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        elif how == 5:
            donor = chance.choice(chance.choice(self.corpus) or [b""])
            start = chance.randrange(len(donor) // 8 + 1) * 8
            length = chance.choice([8, 16, 40, 1 << 12])
            out[at : at + chance.choice([0, length])] = donor[start : start + length]
        else:
            del out[at : at + chance.choice([1, 8, 40])]
        return bytes(out[: 1 << 14])
