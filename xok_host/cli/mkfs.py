"""`xok mkfs NAME`."""

from __future__ import annotations

import argparse

from xok_host.cli import exits
from xok_host.host.config import Runtime
from xok_host.host.control import ControlClient

HELP = "make a new file system in the root catalogue"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="what the file system will be called")
    parser.add_argument("--disk", metavar="DISK", help="on this one of several disks: its number, or its path")
    parser.add_argument("--type", default="cffs", choices=["cffs"], help="library file system (default cffs)")


def run(options: argparse.Namespace) -> int:
    ControlClient(Runtime.from_environment()).request("mkfs", name=options.name, type=options.type, disk=options.disk)
    print(f"{options.name}: made ({options.type})")
    return exits.OK
