"""`xok down`."""

from __future__ import annotations

import argparse

from xok_host.cli import exits
from xok_host.host.config import Runtime
from xok_host.host.control import ControlClient

HELP = "stop everything in order, with nothing lost"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="even if mounts are in use: takes them away")


def run(options: argparse.Namespace) -> int:
    client = ControlClient(Runtime.from_environment())
    client.request("down", force=options.force)
    # xokd closes the connection as the last thing it does.
    client.wait_closed()
    return exits.OK
