"""`xok list`."""

from __future__ import annotations

import argparse
import json

from xok_host.cli import exits
from xok_host.host.config import Runtime
from xok_host.host.control import ControlClient

HELP = "show file systems, types and roots"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--types", action="store_true", help="show the type catalogue too")


def run(options: argparse.Namespace) -> int:
    entries = ControlClient(Runtime.from_environment()).request("list")
    if options.json:
        print(json.dumps(entries, indent=2))
        return exits.OK
    rows = [
        (entry["name"], entry["kind"], entry["type"], str(entry["block"]), str(entry["uid"]), entry["disk"])
        for entry in entries
        if entry["kind"] == "root" or options.types
    ]
    if not rows:
        print("no file systems; `xok mkfs NAME` makes one")
    for row in rows:
        print("{:24} {:10} type {:12} block {:>10}   owner {:8} disk {}".format(*row))
    for entry in entries:
        if entry["tainted"]:
            print(f"{entry['name']} is tainted: {entry['reason']}; `xok repair {entry['name']}` may mend it")
    return exits.OK
