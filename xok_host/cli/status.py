"""`xok status`, also shown by bare `xok`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from xok_host.cli import exits
from xok_host.host.config import Runtime
from xok_host.host.control import ControlClient

HELP = "show disk, cache, environments, filters, mounts and counters"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, whose fields stay as they are")


def run(options: argparse.Namespace) -> int:
    status = ControlClient(Runtime.from_environment()).request("status")
    if options.json:
        print(json.dumps(status, indent=2))
    else:
        print("\n".join(describe(status)))
    return exits.OK


def describe(status: dict[str, Any]) -> list[str]:
    """The status as lines for a person."""
    cache, xokd = status["cache"], status["xokd"]
    lines = [
        f"xokd         process {xokd['pid']}, up {_duration(xokd['seconds'])}, runtime {xokd['runtime']}",
        *(_disk(disk) for disk in status["disks"]),
        f"cache        {_size(cache['pages_in_use'] * 4096)} in use, at most {_size(cache['pages_limit'] * 4096)}",
    ]
    network = status.get("network")
    if network:
        lines.append(f"network      {network['tap']} {network['host_address']}, {len(status['filters'])} filters")
    if xokd["without"]:
        lines.append(f"without      {', '.join(xokd['without'])}")
    several = len(status["disks"]) > 1
    for mount in status["mounts"]:
        where = f" of disk {mount['device']}" if several else ""
        lines.append(f"mount        {mount['name']}{where} on {mount['directory']} ({mount['state']})")
    lines += [f"tainted      {root['name']}: {root['reason']}" for root in status["tainted"]]
    for env in status["environments"]:
        where = f", {env['address']}" if env.get("address") else ""
        lines.append(f"environment  {env['id']:3} {env['name']:20} process {env['pid']}, uid {env['uid']}{where}")
    interesting = {name: count for name, count in status["counters"].items() if count}
    lines += [f"counter      {name:24} {count}" for name, count in interesting.items()]
    return lines


def _disk(disk: dict[str, Any]) -> str:
    used = disk["blocks"] - disk["free"]
    return (
        f"disk {disk['device']:<7} {disk['path']}: {_size(used * 4096)} of {_size(disk['blocks'] * 4096)} in use; "
        f"{disk['read_requests']} reads, {disk['write_requests']} writes, {disk['flushes']} flushes"
        + (f", {disk['errors']} ERRORS" if disk["errors"] else "")
        + (", perhaps less in use: not walked since a crash" if disk["surplus"] else "")
    )


def _size(nbytes: int) -> str:
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if nbytes >= 1 << shift:
            return f"{nbytes / (1 << shift):.1f} {unit}"
    return f"{nbytes / 1024:.0f} KiB"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h"
