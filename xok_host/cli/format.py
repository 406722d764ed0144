"""`xok format DISK`."""

from __future__ import annotations

import argparse

from xok_host.abi.types import BLOCK
from xok_host.cli import exits
from xok_host.host.config import parse_size
from xok_host.host.format import format_disk

HELP = "make an XN disk of an image file (created sparse) or a block device"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("disk", metavar="DISK", help="image file or block device")
    parser.add_argument("--size", metavar="SIZE", help="of a new image file, like 512M or 4G")
    parser.add_argument("--force", action="store_true", help="overwrite what the disk holds (never one that is in use)")


def run(options: argparse.Namespace) -> int:
    size = None if options.size is None else parse_size(options.size)
    blocks = format_disk(options.disk, size=size, force=options.force)
    print(f"{options.disk}: XN disk of {blocks} blocks, {blocks * BLOCK >> 20} MiB")
    return exits.OK
