"""Writes the generated parts of docs/xn.md and docs/disk-format.md anew: `python docs/generate.py`.

What stands between `<!-- generated: NAME -->` and `<!-- end -->` comes from the declarations; the rest of a page is
written by hand and stays as it is.  tests/docs sees to it that the pages are current.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))

from libfs.cffs import layout as cffs  # noqa: E402
from xok_host.abi import calls, errors  # noqa: E402
from xok_host.abi.calltable import CALLS, COMMON, Call  # noqa: E402
from xok_host.abi.declare import Structure  # noqa: E402
from xok_host.abi.types import BLOCK, SECTOR, TYPE_FIRST_LIBFS  # noqa: E402
from xok_host.kernel.xn import format as xn  # noqa: E402
from xok_host.kernel.xn.privileged import PRIVILEGED  # noqa: E402

COMMAND = "python docs/generate.py"
GROUPS = (
    ("Crossings, pages", 1, 29),
    ("Types and roots", 30, 39),
    ("The buffer cache", 40, 45),
    ("Changing metadata and data", 46, 48),
    ("Writing back a list", 49, 49),
    ("Reading XN's structures", 50, 56),
    ("Navigation", 57, 59),
    ("Locks", 60, 61),
    ("One operation", 62, 69),
    ("Packet filters", 70, 79),
    ("Errors and patch programs", 80, 89),
)
"""Headings of the reference, with the call numbers under each."""


def call_reference() -> str:
    shown: list[str] = []
    for heading, first, last in GROUPS:
        rows = [call for call in CALLS if first <= call.number <= last]
        shown += [f"### {heading}", "", *(line for call in rows for line in _call(call))]
    missing = [call.name for call in CALLS if not any(first <= call.number <= last for _, first, last in GROUPS)]
    assert not missing, f"no heading for {missing}"
    return "\n".join(shown)


def _call(call: Call) -> list[str]:
    takes = [f"a{index}: {name}" for index, name in enumerate(call.scalars)]
    if call.capability:
        takes.append(f"capability: {call.capability}")
    if call.data:
        takes.append(f"data: {call.data}")
    lines = [f"**`{call.name}`** ({call.number})" + (", may complete later" if call.waits else ""), ""]
    lines += [call.doc, ""] if call.doc else []
    lines += [f"* takes {'; '.join(takes)}"] if takes else []
    lines += [f"* gives {call.gives}"] if call.gives else []
    lines += [f"* fails with `{error.__name__}` if {why}" for error, why in call.fails.items()]
    return [*lines, ""] if lines[-1] else lines


def common_failures() -> str:
    return "".join(f"* `{error.__name__}`: {why}\n" for error, why in COMMON.items())


def privileged_calls() -> str:
    lines = []
    for name, (doc, fails) in PRIVILEGED.items():
        lines += [f"**`{name}`**", "", doc, ""]
        lines += [f"* fails with `{error.__name__}` if {why}" for error, why in fails.items()]
        lines.append("")
    return "\n".join(lines)


def error_table() -> str:
    lines = ["| code | error | meaning | exit status of a command |", "|---:|---|---|---:|"]
    for code, error in sorted(errors.BY_CODE.items()):
        if error.__module__ == errors.__name__:
            lines.append(f"| {code} | `{error.__name__}` | {' '.join((error.__doc__ or '').split())} | {error.exit} |")
    return "\n".join(lines) + "\n"


def operations() -> str:
    source = ast.parse(Path(calls.__file__).read_text())
    lines = ["| kind | operation | |", "|---:|---|---|"]
    for name, value, meaning in _members(source, "OpKind"):
        lines.append(f"| {value} | `{name}` | {meaning} |")
    lines += ["", "| flag | | |", "|---:|---|---|"]
    for name, value, meaning in _members(source, "OpFlag"):
        lines.append(f"| {value} | `{name}` | {meaning} |")
    return "\n".join(lines) + "\n"


def _members(source: ast.Module, enum: str) -> list[tuple[str, int, str]]:
    """(name, value, the sentence below it) of an enumeration's members."""
    (body,) = [node.body for node in source.body if isinstance(node, ast.ClassDef) and node.name == enum]
    found = []
    for at, node in enumerate(body):
        if isinstance(node, ast.Assign):
            assert isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Constant)
            below = body[at + 1] if at + 1 < len(body) else None
            meaning = ""
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                meaning = " ".join(str(below.value.value).split())
            found.append((node.targets[0].id, int(str(node.value.value)), meaning))
    return found


def places() -> str:
    """Where XN's structures are, on a disk of 1 GiB as the example."""
    nblocks = (1 << 30) // BLOCK
    example = xn.layout(nblocks, bytes(16), TYPE_FIRST_LIBFS)
    rows = (
        ("superblock", "0, first sector", 0),
        ("catalogue", f"{xn.CATALOGUE_BLOCKS} blocks", example.catalogue),
        ("free map", f"one sector for {xn.BITS_PER_SECTOR:,} blocks", example.freemap),
        ("what libFSes allocate", "the rest", example.first),
        ("second superblock", "last block, first sector", nblocks - 1),
    )
    lines = ["| what | where | first block on a disk of 1 GiB |", "|---|---|---:|"]
    lines += [f"| {what} | {where} | {block} |" for what, where, block in rows]
    lines += [
        "",
        f"A block has {BLOCK} bytes, a sector {SECTOR}. A disk has at least {xn.MIN_BLOCKS} blocks; the format is",
    ]
    lines += [f"version {xn.VERSION}. The catalogue holds at most {xn.CATALOGUE_LIMIT} roots and types."]
    return "\n".join(lines) + "\n"


def structures(*shown: Structure) -> Callable[[], str]:
    return lambda: "\n".join(structure.format_page() for structure in shown)


def cffs_constants() -> str:
    rows = (
        ("format version", cffs.FORMAT_VERSION),
        ("slots for inodes in a sector", cffs.SLOTS),
        ("longest name, bytes", cffs.NAME_MAX),
        ("ancestors kept with a name", cffs.CHAIN_MAX),
        ("names of one inode", cffs.LINK_MAX),
        ("extents in an inode", cffs.DIRECT),
        ("extents in a node's sector", cffs.SECTOR_ENTRIES),
        ("bytes of a file that fit into the inode", cffs.INLINE_BYTES),
        ("blocks in the largest file", cffs.MAX_LOGICAL),
    )
    return "| | |\n|---|---:|\n" + "".join(f"| {what} | {value:,} |\n" for what, value in rows)


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "xn.md": {
        "common failures": common_failures,
        "calls": call_reference,
        "operations": operations,
        "privileged": privileged_calls,
        "errors": error_table,
    },
    "disk-format.md": {
        "places": places,
        "superblock": structures(xn.SUPERBLOCK),
        "catalogue": structures(xn.CATALOGUE_SECTOR, calls.CATALOGUE_FIELDS),
        "free map": structures(xn.FREEMAP_SECTOR),
        "cffs constants": cffs_constants,
        "cffs directory": structures(cffs.SECTOR_HEADER, cffs.NAME_ENTRY),
        "cffs inode": structures(cffs.INODE, cffs.EXTENT),
        "cffs node": structures(cffs.NODE_HEADER),
        "cffs shared": structures(cffs.SHARED_HEADER, cffs.MAP_HEADER),
    },
}


def current(page: str, text: str) -> str:
    """The page with its generated parts as they should be.  Every part must be there once."""
    for name, render in PAGES[page].items():
        part = f"<!-- generated: {name} -->\n{render()}<!-- end -->"
        pattern = rf"<!-- generated: {re.escape(name)} -->\n.*?<!-- end -->"
        text, found = re.subn(pattern, lambda _, part=part: part, text, flags=re.S)
        if found != 1:
            raise ValueError(f"{page} has {found} parts called {name!r}")
    return text


if __name__ == "__main__":
    for page in PAGES:
        path = DOCS / page
        path.write_text(current(page, path.read_text()))
