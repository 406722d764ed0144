"""`./xok bench`: see `--help`. Root, some minutes, and an otherwise idle machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks import files, web, xn
from benchmarks.tools import PLACEMENTS, BenchmarkFailure

PARTS = ("files", "web", "xn")


def main() -> int:
    parser = argparse.ArgumentParser(prog="xok bench", description="Measure beside peers, interleaved, as ratios.")
    parser.add_argument("what", nargs="*", metavar="NAME", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--seconds", type=int, default=1, help="length of one HTTP measurement (default 1)")
    parser.add_argument("--placement", choices=list(PLACEMENTS), action="append", help="default: both")
    parser.add_argument("--json", type=Path, help="also write every single measurement to this file")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--rounds and --seconds must be positive")
    unknown = [name for name in options.what if name not in PARTS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there is {', '.join(PARTS)}")
    what = options.what or PARTS
    placements = options.placement or list(PLACEMENTS)
    results: dict[str, Any] = {"machine": {"cpus": os.cpu_count(), "kernel": platform.release()}}
    try:
        if "files" in what:
            results["files"] = files.measure(options.rounds, placements)
            print(files.report(results["files"]), flush=True)
        if "web" in what:
            results["web"] = web.measure(options.rounds, options.seconds, placements)
            print(web.report(results["web"]), flush=True)
        if "xn" in what:
            results["xn"] = xn.measure(options.rounds, placements)
            print(xn.report(results["xn"]), flush=True)
    except BenchmarkFailure as failure:
        print(f"xok bench: {failure}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
