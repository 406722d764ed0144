"""What a type's UDFs say of one block and how they came to say it: for `xok udf explain`, and for who writes a type.

The answers are XN's own (`template.Template`); `trace` adds what was read and where it stopped.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from xok_host.abi.errors import UdfFailed
from xok_host.abi.types import SECTOR, SECTORS, da_block
from xok_host.kernel.xn import readset, udf
from xok_host.kernel.xn.template import IMPORT_BUDGET, Template
from xok_host.kernel.xn.trace import Fault, Trace, trace

ASKED = ("owns", "refs", "refcnt", "reboot")
"""Programs that are asked of each partition."""

Triples = list[tuple[int, int, int]]


@dataclass(slots=True)
class Answer:
    """What one program said.  `refused` is why XN does not take it: a fault, or output that means nothing."""

    program: str
    said: Triples
    executed: int
    read: list[tuple[int, int]]
    """(first, past last) byte of the instance."""
    offsets: list[int]
    """Where each read began, in order."""
    refused: str = ""
    fault: Fault | None = None


@dataclass(slots=True)
class Partition:
    """One partition's regions (offset, bytes), of a traced one those that it reads now, and answers."""

    number: int
    regions: tuple[tuple[int, int], ...]
    answers: list[Answer] = field(default_factory=list)


def explain(template: Template, meta: bytes, part: int, da: int) -> Partition:
    """Ask `owns`, `refs`, `refcnt` and `reboot` of one partition.  Raises BogusPartition."""
    out = Partition(template.partition(part), template.regions[part])
    questions: dict[str, Callable[[], array[int]]] = {
        "owns": lambda: template.owns(meta, part),
        "refs": lambda: template.refs(meta, part, da),
        "refcnt": lambda: template.refcnt(meta, part, da),
        "reboot": lambda: template.reboot(meta, part),
    }
    for name in ASKED:
        program = template.programs.get(name)
        if program is None:
            continue
        run = trace(program, meta, part, r5=da if name in ("refs", "refcnt") else 0, windows=template.windows[part])
        out.answers.append(_answer(name, run, questions[name]))
    if template.read_sets is not None:
        start = template.regions[part][0][0]
        read = [(a - start, b - start) for answer in out.answers for a, b in answer.read]
        found = readset.union((1 << b) - (1 << a) for a, b in read)
        out.regions = tuple((a, b - a) for a, b in readset.ranges(found, start))
    return out


@dataclass(slots=True)
class Readers:
    """Bytes of one sector that the same number of partitions read; `claimed`: how many `uses` says."""

    first: int
    end: int
    number: int
    claimed: int
    refused: str = ""


def readers(template: Template, meta: bytes, da: int) -> list[Readers]:
    """Of overlapping partitions: who reads what, where anybody does or is said to.  A sector that cannot be asked is
    one entry, which says why."""
    sets = template.read_sets
    if sets is None or not sets.overlapping:
        return []
    out = []
    for sector, members in enumerate(sets.members):
        start = sector * SECTOR
        try:
            sets.begin(IMPORT_BUDGET)
            found = readset.tally(sets.ask(meta, part, da_block(da))[1] for part in members)
            claimed = sets.uses(meta, sector)
        except UdfFailed as refusal:
            out.append(Readers(start, start + SECTOR, 0, 0, refusal.detail))
            continue
        at = 0
        while at < SECTOR:
            pair = readset.count(found, at), readset.count(claimed, at)
            end = at
            while end < SECTOR and pair == (readset.count(found, end), readset.count(claimed, end)):
                end += 1
            if any(pair):
                out.append(Readers(start + at, start + end, *pair))
            at = end
    return out


def _answer(name: str, run: Trace, ask: Callable[[], array[int]]) -> Answer:
    answer = Answer(
        name, run.output, run.executed, run.bytes_read(), [at for _, at, _, _ in run.reads], fault=run.fault
    )
    try:
        answer.said = udf.extents(ask())
    except UdfFailed as refusal:
        answer.refused = str(run.fault) if run.fault else refusal.detail
    return answer


def whole_block(template: Template, meta: bytes, da: int) -> str:
    """Why XN would not take the instance as a whole (two partitions own a block, or share bytes); empty if it would.

    What is wrong with a single partition is said there."""
    said = array("Q")
    try:
        for part in range(template.parts):
            said += template.owns(meta, part)
    except UdfFailed:
        return ""
    try:
        udf.canonical(said)
    except UdfFailed as refusal:
        return f"{refusal.detail}, in two partitions"
    if template.read_sets is not None:
        template.read_sets.begin(IMPORT_BUDGET)
        try:
            for sector in range(SECTORS):
                template.read_sets.survey(meta, sector, da_block(da))
        except UdfFailed as refusal:
            return refusal.detail
    return ""
