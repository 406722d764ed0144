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
    from xok_host.kernel.xn import interp, methods
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
        (accepted.IMPORT_BUDGET, "{} instructions for all runs of an import"),
        (accepted.MAX_PARTS, "1 to {} partitions"),
        (accepted.MAX_BLOCKS, "a constant size of 1 to {} blocks"),
        (template.MAX_BYTES, "at most {} bytes"),
        (template.VERSION, "Version {}, "),
    ):
        assert phrase.format(f"{number:,}") in text, phrase
    for address in (udf.META_BASE, udf.STACK_BASE, udf.NEW_BASE, udf.CONTEXT_BASE):
        assert f"`0x{address >> 32:x}_0000_0000`" in text


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


if __name__ == "__main__":
    PAGE.write_text(current(PAGE.read_text()))
