"""`xok up`."""

from __future__ import annotations

import argparse
import os

from xok_host.abi.errors import BadCall, NotAllowed
from xok_host.cli import exits
from xok_host.host import config, daemon

HELP = "start xokd on one disk or several, and a TAP; returns when it is ready"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--disk",
        required=True,
        action="append",
        metavar="DISK",
        help="image file or block device, formatted; may be given several times",
    )
    parser.add_argument("--tap", default=config.DEFAULT_TAP, metavar="NAME", help="TAP to make or adopt (default xok0)")
    parser.add_argument(
        "--host-address",
        default=config.DEFAULT_HOST_ADDRESS,
        metavar="ADDRESS",
        help=f"the host's own on the TAP (default {config.DEFAULT_HOST_ADDRESS})",
    )
    parser.add_argument("--no-network", action="store_true", help="do without a TAP")
    parser.add_argument("--memory", metavar="SIZE", help="for cached blocks (default: a quarter of memory, up to 1G)")
    parser.add_argument(
        "--walk",
        default=f"{config.DEFAULT_WALK:g}",
        metavar="SECONDS",
        help="after a crash, walk all trees of a disk for so long before it is used (default %(default)s; inf: to the "
        "end); one that takes longer, and in which nothing has been found wrong, starts with the free map that it "
        "holds, which may show too much in use",
    )
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground and log to standard error")


def run(options: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise NotAllowed("xokd opens disks, TAPs and mounts, which needs root: sudo xok up …")
    config.parse_host_address(options.host_address)
    if not 0 < len(options.tap) < 16 or "/" in options.tap:
        raise BadCall(f"{options.tap!r} is no name for a network interface")
    disks = tuple(os.path.realpath(disk) for disk in options.disk)
    if len(disks) > config.MAX_DISKS:
        raise BadCall(f"{len(disks)} disks; one xokd takes at most {config.MAX_DISKS}")
    if len(set(disks)) != len(disks):
        raise BadCall("a disk is given twice")
    memory = config.default_memory() if options.memory is None else config.parse_memory(options.memory)
    wanted = config.Config(
        runtime=config.Runtime.from_environment(),
        disks=disks,
        tap=None if options.no_network else options.tap,
        host_address=options.host_address,
        memory_chunks=config.chunks(memory),
        without=config.without_from_environment(),
        walk_seconds=config.parse_seconds(options.walk),
    )
    started = daemon.start(wanted, foreground=options.foreground)
    if not options.foreground:
        print(f"xokd: process {started}, disk {', '.join(disks)}" + (f", TAP {wanted.tap}" if wanted.tap else ""))
    return exits.OK
