"""`xok run PROGRAM …`: anybody's libOS."""

from __future__ import annotations

import argparse
import os

from xok_host.cli import exits, follow, sealed
from xok_host.host.config import Runtime, parse_interface
from xok_host.host.confine import EXIT_CRASH, EXIT_IMPORT
from xok_host.host.control import ControlClient

HELP = "run a library operating system of your own in an environment of its own"

EPILOG = f"""\
exit status:
  the program's own, or 128 and the number of the signal that ended it; {EXIT_IMPORT}: its file could not be imported;
  {EXIT_CRASH}: it ended by an exception.  If it was not started:
{exits.epilog().partition(chr(10))[2]}"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", metavar="ADDRESS", help="give it a queue on the TAP, and this address")
    parser.add_argument(
        "--tree",
        action="append",
        default=[],
        metavar="[DISK/]NAME[:ro]",
        help="give it the capability of a file system that is yours (may be repeated)",
    )
    parser.add_argument("program", metavar="PROGRAM", help="Python file that defines main(env, argv)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="its arguments")


def run(options: argparse.Namespace) -> int:
    """The program's own exit status, or 128 + the signal that ended it."""
    address = None if options.address is None else str(parse_interface(options.address))
    program = sealed.read(options.program)
    client = ControlClient(Runtime.from_environment())
    reading, writing = os.pipe()
    client.send(
        "run",
        [program, writing],
        name=os.path.basename(options.program),
        arguments=options.arguments,
        address=address,
        trees=options.tree,
    )
    os.close(writing)
    os.close(program)
    status = int(follow.follow(client, reading)["status"])
    return status if status >= 0 else 128 - status
