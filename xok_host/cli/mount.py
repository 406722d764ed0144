"""`xok mount NAME DIR`."""

from __future__ import annotations

import argparse
import os

from xok_host.abi.errors import BadCall
from xok_host.cli import exits, follow, sealed
from xok_host.host.config import Runtime
from xok_host.host.control import ControlClient

HELP = "mount a file system through FUSE, as root for every user (nosuid, nodev, permissions checked by the kernel)"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="file system in the catalogue; a shared one is mounted any number of times"
    )
    parser.add_argument("directory", metavar="DIR", help="an existing directory")
    parser.add_argument("--disk", metavar="DISK", help="on this one of several disks: its number, or its path")
    parser.add_argument("--program", metavar="FILE", help="Python file with the file system's code, if it is not C-FFS")
    parser.add_argument("--foreground", action="store_true", help="stay until it is unmounted; Ctrl-C unmounts")


def run(options: argparse.Namespace) -> int:
    directory = os.path.realpath(options.directory)
    if not os.path.isdir(directory):
        raise BadCall(f"{options.directory} is not a directory")
    descriptors = [os.open(directory, os.O_PATH | os.O_DIRECTORY)]
    if options.program is not None:
        descriptors.append(sealed.read(options.program))
    client = ControlClient(Runtime.from_environment())
    answer = client.request("mount", descriptors, name=options.name, directory=directory, disk=options.disk)
    directory = answer["directory"]
    mounted = f"{options.name}: mounted on {directory}"
    if not options.foreground:
        print(mounted)
        return exits.OK
    client.send("wait", mount=directory)
    follow.follow(client, None, announce=mounted)
    return exits.OK
