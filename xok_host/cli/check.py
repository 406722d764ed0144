"""`xok check DISK`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from xok_host.cli import exits
from xok_host.host.blockdev import open_disk
from xok_host.host.config import without_from_environment
from xok_host.host.reconstruct import examine, repair
from xok_host.host.signature import naming
from xok_host.kernel.xn.recover import Report

HELP = "reconstruct a disk offline, verify every invariant, and report"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("disk", metavar="DISK", help="image file or block device that no xokd uses")
    parser.add_argument("--repair", action="store_true", help="write the exact free map and mark damaged trees")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """0 when no invariant is violated (leftovers of a crash are no violation), else 6."""
    disk = open_disk(options.disk, without=without_from_environment())
    try:
        with naming(options.disk):
            progress = Progress()
            report = examine(disk, progress)
            progress.end()
            if options.repair:
                repair(disk, report)
    finally:
        disk.close()
    over_counts = sum(found for _, found in report.totals.values())
    if options.json:
        fields = {
            "sound": report.sound,
            "was_clean": report.was_clean,
            "started_without_walk": report.superblock.surplus,
            "trees": report.trees,
            "blocks": report.blocks,
            "free": report.free,
            "leaked": report.leaked,
            "unmarked": report.unmarked,
            "never_written": len(report.unwritten),
            "over_counts": over_counts,
            "violations": [str(violation) for violation in report.violations],
            "tainted": {root: report.reason(root) for root in sorted(report.tainted)},
            "errors": [
                {"root": root, **asdict(error), "kind": error.kind.word}
                for root in sorted(report.totals)
                for error in report.log(root)
            ],
            "not_in_the_log": sum(map(sum, report.totals.values()))
            - sum(len(report.log(root)) for root in report.totals),
        }
        print(json.dumps(fields, indent=2))
        return exits.OK if report.sound else exits.NOT_CLEAN
    for name, blocks in sorted(report.trees.items()):
        print(f"{name:24} {blocks} blocks")
    print(f"in use {report.blocks} blocks, free {report.free}")
    if not report.was_clean:
        print(
            "it was not shut down in order" + (": repaired" if options.repair else "; the next `xok up` sees to that")
        )
    elif report.superblock.surplus and not options.repair:
        print("after a crash it was started without a walk; the next `xok up` that has time for one makes up for that")
    if report.leaked:
        print(f"{report.leaked} blocks are marked in use and belong to nobody (harmless, freed by a repair)")
    if over_counts:
        print(f"{over_counts} reference counts are too high (harmless; `xok up` or `xok repair NAME` corrects them)")
    if report.unmarked:
        print(f"VIOLATION: {report.unmarked} blocks are in use and marked free")
    for violation in report.violations:
        print(f"VIOLATION: {violation}")
    for root in sorted(report.tainted):
        print(f"{root} cannot be mounted before it is repaired: `xok repair {root}` once xokd is up")
    print("clean" if report.sound else "NOT clean")
    return exits.OK if report.sound else exits.NOT_CLEAN


class Progress:
    """One line on a terminal, ten times a second; nothing when standard error is none."""

    SECONDS = 0.1

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._began = time.monotonic()
        self._next = self._began + self.SECONDS
        self._shown = False

    def __call__(self, report: Report) -> None:
        now = time.monotonic()
        if not self._on or now < self._next:
            return
        self._next = now + self.SECONDS
        self._shown = True
        rate = report.blocks / (now - self._began)
        roots = f"{len(report.trees)} trees and types"
        line = f"{report.blocks} of about {report.expected} blocks, {rate:.0f}/s, {roots}: {report.walking}"
        print(f"\r{line[:79]:79}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._shown:
            print(f"\r{'':79}\r", end="", file=sys.stderr, flush=True)
