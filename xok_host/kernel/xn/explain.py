"""What a type's UDFs say of one block and how they came to say it: for `xok udf explain`, and for who writes a type.

The answers are XN's own (`template.Template`); `trace` adds what was read and where it stopped.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from xok_host.abi.errors import UdfFailed
from xok_host.kernel.xn import udf
from xok_host.kernel.xn.template import Template
from xok_host.kernel.xn.trace import Fault, Trace, trace

ASKED = ("owns", "refs", "refcnt")
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
    """One partition's regions (offset, bytes) and answers."""

    number: int
    regions: tuple[tuple[int, int], ...]
    answers: list[Answer] = field(default_factory=list)


def explain(template: Template, meta: bytes, part: int, da: int) -> Partition:
    """Ask `owns`, `refs` and `refcnt` of one partition.  Raises BogusPartition."""
    out = Partition(template.partition(part), template.regions[part])
    questions: dict[str, Callable[[], array[int]]] = {
        "owns": lambda: template.owns(meta, part),
        "refs": lambda: template.refs(meta, part, da),
        "refcnt": lambda: template.refcnt(meta, part, da),
    }
    for name in ASKED:
        program = template.programs.get(name)
        if program is None:
            continue
        run = trace(program, meta, part, r5=0 if name == "owns" else da, windows=template.windows[part])
        out.answers.append(_answer(name, run, questions[name]))
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


def whole_block(template: Template, meta: bytes) -> str:
    """Why XN would not take the instance as a whole (a block that two partitions own); empty if it would.

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
        return refusal.detail
    return ""
