"""`xok mkfs NAME`."""

from __future__ import annotations

import argparse

from xok_host.abi.errors import BadCall
from xok_host.cli import exits, sealed
from xok_host.host.config import Runtime
from xok_host.host.control import ControlClient

BUILT_IN = ("cffs",)
HELP = "make a new file system in the root catalogue; it belongs to whoever makes it"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="what the file system will be called")
    parser.add_argument("--disk", metavar="DISK", help="on this one of several disks: its number, or its path")
    parser.add_argument(
        "--type",
        default="cffs",
        metavar="cffs|FILE",
        help="library file system: cffs (default), or a Python file of your own (docs/tutorial.md)",
    )
    parser.add_argument(
        "--shared",
        action="store_true",
        help="cffs: for several writers that distrust one another; XN checks each change",
    )


def run(options: argparse.Namespace) -> int:
    if options.shared and options.type not in BUILT_IN:
        raise BadCall("--shared is an option of cffs")
    code = [] if options.type in BUILT_IN else [sealed.read(options.type)]
    client = ControlClient(Runtime.from_environment())
    client.request("mkfs", code, name=options.name, type=options.type, disk=options.disk, shared=options.shared)
    print(f"{options.name}: made ({options.type}{', shared' if options.shared else ''})")
    return exits.OK
