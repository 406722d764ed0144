"""`xok check DISK`."""

from __future__ import annotations

import argparse
import json

from xok_host.cli import exits
from xok_host.host.blockdev import open_disk
from xok_host.host.config import without_from_environment
from xok_host.host.reconstruct import examine, repair
from xok_host.host.signature import naming

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
            report = examine(disk)
            if options.repair:
                repair(disk, report)
    finally:
        disk.close()
    if options.json:
        fields = {
            "sound": report.sound,
            "was_clean": report.was_clean,
            "trees": report.trees,
            "blocks": report.blocks,
            "free": report.free,
            "leaked": report.leaked,
            "unmarked": report.unmarked,
            "over_counts": len(report.over_counts),
            "violations": [str(violation) for violation in report.violations],
        }
        print(json.dumps(fields, indent=2))
        return exits.OK if report.sound else exits.NOT_CLEAN
    for name, blocks in sorted(report.trees.items()):
        print(f"{name:24} {blocks} blocks")
    print(f"in use {report.blocks} blocks, free {report.free}")
    if not report.was_clean:
        print(
            "it was not shut down in order" + (": repaired" if options.repair else "; the next `xok up` repairs that")
        )
    if report.leaked:
        print(f"{report.leaked} blocks are marked in use and belong to nobody (harmless, freed by a repair)")
    if report.over_counts:
        print(f"{len(report.over_counts)} reference counts are too high (harmless, the file system corrects them)")
    if report.unmarked:
        print(f"VIOLATION: {report.unmarked} blocks are in use and marked free")
    for violation in report.violations:
        print(f"VIOLATION: {violation}")
    print("clean" if report.sound else "NOT clean")
    return exits.OK if report.sound else exits.NOT_CLEAN
