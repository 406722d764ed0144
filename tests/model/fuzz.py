"""Fuzz one target for a time, as a program of its own because lines are counted in uncompiled code.

    XOK_PURE=1 python -P tests/model/fuzz.py calls --seconds 3600 --seed 7 --save FILE

Prints what it has done, each finding with its traceback, and writes the corpus with what each input gave (JSON), so
that the compiled kernel can be held against it.  Exit status 1 if there was a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.normpath(os.path.join(HERE, place)) for place in ("", "../xn", "../..")]


def target(name: str):  # type: ignore[no-untyped-def]
    import fuzz_calls
    import fuzz_import

    return {"calls": fuzz_calls, "import": fuzz_import}[name].target()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fuzz the call channel or the import of types.")
    parser.add_argument("target", choices=["calls", "import"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--executions", type=int, default=1 << 62)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args(arguments)
    from fuzz_engine import Fuzzer

    run, seeds, words = target(options.target)
    fuzzer = Fuzzer(run, seeds, words, options.seed)
    fuzzer.fuzz(options.seconds, options.executions, lambda line: print(line, flush=True))
    print(f"{options.target}: {fuzzer.statistics()}")
    for finding in fuzzer.findings.values():
        print(f"\n{finding.what}\n{finding.text}", *(part.hex() for part in finding.input), sep="\n  ")
    if options.save is not None:
        kept = [] if fuzzer.findings else [([part.hex() for part in given], run(given)) for given in fuzzer.corpus]
        result = {
            "executions": fuzzer.executions,
            "lines": len(fuzzer.coverage.lines),
            "findings": [[finding.what, finding.text] for finding in fuzzer.findings.values()],
            "corpus": kept,
        }
        options.save.write_text(json.dumps(result))
    return 1 if fuzzer.findings else 0


if __name__ == "__main__":
    sys.exit(main())
