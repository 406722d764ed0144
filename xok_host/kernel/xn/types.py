"""Types in use on one device: a template (checked by `template`) and what XN derives from it once.

TYPE-1  Each partition lies inside one sector, also one that is traced (READ-2).  Sectors are what a disk writes whole,
        so a partition is on the disk either as before an operation or as after it, and its `owns` never sees a mixture.
TYPE-2  A structured instance is one block.
"""

from __future__ import annotations

from array import array
from typing import Any

import cython

from xok_host.abi.ebpf import decode
from xok_host.abi.errors import TypeInvalid
from xok_host.abi.template import Kind
from xok_host.abi.types import SECTOR, TYPE_XN_DB, TYPE_XN_TYPE
from xok_host.kernel.xn import interp, udf
from xok_host.kernel.xn.interp import Program
from xok_host.kernel.xn.template import Template, import_template


class XnType:
    """`id` is the type's number on its device; `template` is None for plain data."""

    __slots__ = (
        "cached",
        "careful",
        "counts_program",
        "data",
        "discriminators",
        "guard_constant",
        "has_acl",
        "method_program",
        "id",
        "name",
        "owns_program",
        "reboot_program",
        "references_program",
        "runs",
        "sector_of",
        "spent",
        "template",
        "traced",
        "windows",
    )

    def __init__(self, type_id: int, name: str, template: Template | None) -> None:
        self.id = type_id
        self.name = name
        self.template: Any = template if template is not None and template.kind != Kind.BASE else None
        self.cached = 0
        """Blocks of this type in the registry."""
        self.sector_of: list[int] = []
        """Partition to the sector it lies in."""
        self.data = self.template is None
        """Plain data: nothing to ask."""
        self.discriminators: tuple[tuple[int, int], ...] = ()
        """(start, length) of the bytes that say which type a union is."""
        self.guard_constant = True
        self.has_acl = False
        self.careful = False
        """Modifications are looked at as a whole, beside what the partitions say."""
        self.method_program: Program | None = None
        self.owns_program: Program | None = None
        self.references_program: Program | None = None
        self.counts_program: Program | None = None
        self.reboot_program: Program | None = None
        self.windows: tuple[array[int], ...] = ()
        self.traced = False
        """What bytes a partition has is traced (`traced`)."""
        self.runs = 0
        self.spent = 0
        """Runs and instructions of `ask` that nobody has counted yet."""
        if self.template is None:
            return
        if self.template.blocks != 1:
            raise TypeInvalid("a structured type that is not one block is not supported")
        for part, regions in enumerate(self.template.regions):
            sectors = {at // SECTOR for start, length in regions for at in (start, start + length - 1)}
            if len(sectors) != 1:
                raise TypeInvalid(f"partition {part} is in several sectors, which are not written together")
            self.sector_of.append(sectors.pop())
        programs = self.template.programs
        guard = programs.get("guard")
        if guard is not None:
            self.guard_constant = not any("load" in item.opcode.form for item in decode(guard.code))
        self.has_acl = "acl" in programs
        self.method_program = programs.get("method")
        self.owns_program = programs["owns"]
        self.references_program = programs.get("refs")
        self.counts_program = programs.get("refcnt")
        self.reboot_program = programs.get("reboot")
        self.windows = self.template.windows
        self.discriminators = tuple(self.template.discriminators)
        self.traced = self.template.read_sets is not None
        self.careful = bool(self.discriminators or self.has_acl or not self.guard_constant or self.traced)

    @property
    def has_refs(self) -> bool:
        return self.references_program is not None or self.counts_program is not None

    def show(self, meta: Any, part: cython.uint) -> None:
        """The partition, whose number was checked, of this block is what `ask` is about."""
        interp.show(meta, self.windows[part])

    def ask(self, program: Any, part: cython.uint, da: cython.ulonglong, said: Any) -> Any:
        """What a program says of the partition shown, as an array('Q') of triples; `said` itself, if that is what it
        says.  Raises UdfFault."""
        count: cython.int = program.ask(part, da)
        self.runs += 1
        self.spent += program.executed
        return udf.answer(interp.output(), count, da != 0, said)

    @property
    def nparts(self) -> int:
        return 0 if self.template is None else self.template.parts


def builtin() -> dict[int, XnType]:
    """The types that every disk has."""
    return {
        TYPE_XN_DB: XnType(TYPE_XN_DB, "xn-db", None),
        TYPE_XN_TYPE: XnType(TYPE_XN_TYPE, "xn-type", None),
    }


def load(type_id: int, name: str, raw: bytes) -> XnType:
    """A type from the bytes of its template.  Raises TypeInvalid."""
    return XnType(type_id, name, import_template(raw))
