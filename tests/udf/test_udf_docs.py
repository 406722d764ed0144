"""docs/udf.md: its tables come from the declarations, its numbers are the bounds, its example runs.

`python tests/udf/test_udf_docs.py` writes the tables anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from xok_host.abi import ebpf, method, template, udf

PAGE = Path(__file__).parents[2] / "docs" / "udf.md"
GENERATED = {
    "template": template.HEADER.format_page() + "\n" + template.RANGE.format_page(),
    "instructions": ebpf.format_page(),
    "method": method.CONTEXT_HEADER.format_page() + "\n" + method.WITNESS.format_page(),
}


def current(text: str) -> str:
    for name, table in GENERATED.items():
        block = f"<!-- generated: {name} -->\n{table}<!-- end -->"
        text, found = re.subn(rf"<!-- generated: {name} -->\n.*?<!-- end -->", lambda _, b=block: b, text, flags=re.S)
        assert found == 1, name
    return text


def test_tables_are_current() -> None:
    text = PAGE.read_text()
    assert text == current(text), "run: python tests/udf/test_udf_docs.py"


def test_numbers_are_the_bounds() -> None:
    from xok_host.abi import calls
    from xok_host.kernel.xn import interp, methods, readset
    from xok_host.kernel.xn import template as accepted

    text = " ".join(PAGE.read_text().split())
    for number, phrase in (
        (interp.MAX_INSTRUCTIONS, "{} instruction slots"),
        (interp.MAX_CONSTANTS, "{} different constants"),
        (interp.BUDGET, "{} instructions a run"),
        (interp.MAX_OUTPUT, "{} elements of output"),
        (methods.METHOD_BUDGET, "{} instructions a run, all"),
        (calls.MAX_WITNESSES, "at most {}; they are shown"),
        (accepted.MAX_REGIONS, "{} regions from `access`"),
        (accepted.MAX_GUARDS, "{} capabilities from `guard`"),
        (accepted.MAX_PART_REPORTS, "{} reports from `reboot`"),
        (readset.MAX_USES, "{} ranges from `uses`"),
        (readset.MAX_READERS, "At most {} partitions are in one sector"),
        (calls.MAX_DEPENDENTS, "`dependents` (at most {} in a transaction)"),
        (accepted.IMPORT_BUDGET, "{} instructions for all runs of an import"),
        (accepted.MAX_PARTS, "1 to {} partitions"),
        (accepted.MAX_BLOCKS, "a constant size of 1 to {} blocks"),
        (template.MAX_BYTES, "at most {} bytes"),
        (template.VERSION, "Version {}, "),
    ):
        assert phrase.format(f"{number:,}") in text, phrase
    for address in (udf.META_BASE, udf.STACK_BASE, udf.NEW_BASE, udf.CONTEXT_BASE):
        assert f"`0x{address >> 32:x}_0000_0000`" in text


def test_every_determinism_rule_has_a_test() -> None:
    rules = set(re.findall(r"\*\*(DET-\d)\*\*", PAGE.read_text()))
    tests = Path(__file__).with_name("test_udf_determinism.py").read_text()
    assert rules and rules == set(re.findall(r"^# (DET-\d):", tests, re.M))


def test_example_runs() -> None:
    from xok_host.kernel.xn.template import import_template
    from xok_host.kernel.xn.udf import extents

    example = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert example
    names: dict[str, object] = {}
    exec(example[1], names)
    accepted = import_template(names["raw"])  # type: ignore[arg-type]
    block = bytearray(4096)
    names["NODE"].pack_into(block, 1024, extents=[{"start": 9, "count": 2}])  # type: ignore[attr-defined]
    assert extents(accepted.owns(block, 2)) == [(9, 2, 1)]


def test_derived_example_runs() -> None:
    from xok_host.kernel.xn.template import import_template
    from xok_host.kernel.xn.udf import extents

    example = next(e for e in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "derive(" in e)
    names: dict[str, object] = {}
    exec(example, names)
    accepted = import_template(names["template"].pack())  # type: ignore[attr-defined]
    block = bytearray(4096)
    inode = {"nlink": 1, "kind": 1, "body": {"extents": [{"start": 9, "count": 2}]}}
    names["SECTOR"].pack_into(block, 1024, used=1, inodes=[inode], names=[{"inode": 77}])  # type: ignore[attr-defined]
    assert extents(accepted.owns(block, 2)) == [(9, 2, 1)]
    assert extents(accepted.refs(block, 2, 1 << 56)) == [((1 << 56) + 77, 1, 0)]
    assert extents(accepted.refcnt(block, 2, 1 << 56)) == [((1 << 56) + 1024 + 8, 1, 0)]


def test_example_in_python_runs() -> None:
    import linecache

    from xok_host.abi import restrict
    from xok_host.kernel.xn.interp import Program

    text = PAGE.read_text()
    example = next(found for found in re.findall(r"```python\n(.*?)```", text, re.S) if "@udf" in found)
    linecache.cache["<example>"] = (len(example), None, example.splitlines(keepends=True), "<example>")
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(example, "<example>", "exec"), names)
    refs = names["refs"]
    assert isinstance(refs, restrict.Udf)
    block = bytearray(4096)
    block[512:522] = b"\x09\x00\x01\x02a\x02\x03bc\x07"
    said = [(5 << 12) + 512 + slot * 128 for slot in (2, 3)]
    assert Program(refs.program).run(block, 1, r5=5 << 12)[1] == [(da, 1, 0) for da in said]
    assert refs.python(block, 1, r5=5 << 12)[1] == [(da, 1, 0) for da in said]
    assert f"({restrict.MAX_INLINED} calls, {restrict.MAX_DEPTH} deep)" in " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(current(PAGE.read_text()))
