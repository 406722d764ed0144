"""`xok umount DIR`."""

from __future__ import annotations

import argparse
import os

from xok_host.cli import exits
from xok_host.host.config import Runtime
from xok_host.host.control import ControlClient

HELP = "unmount, with everything written to the disk"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="the mount point")
    parser.add_argument("--lazy", action="store_true", help="out of sight now, served while in use")


def run(options: argparse.Namespace) -> int:
    directory = os.path.join(os.path.realpath(os.path.dirname(options.directory) or "."), "")
    name = os.path.basename(os.path.normpath(options.directory))
    path = os.path.normpath(os.path.join(directory, name))
    ControlClient(Runtime.from_environment()).request("umount", directory=path, lazy=options.lazy)
    return exits.OK
