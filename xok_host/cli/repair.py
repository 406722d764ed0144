"""`xok repair NAME`."""

from __future__ import annotations

import argparse
import json
import os

from xok_host.abi.errors import BadCall
from xok_host.cli import exits, follow, sealed
from xok_host.host.config import Runtime
from xok_host.host.control import ControlClient

HELP = "run a patch program on a file system in which reconstruction found errors; xokd checks what it does"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="file system in the root catalogue, mounted nowhere")
    parser.add_argument("--disk", metavar="DISK", help="the disk it is on, by number or path, if several have the name")
    parser.add_argument("--program", metavar="FILE", help="your own patch program: Python that defines main(env, argv)")
    parser.add_argument("--force", action="store_true", help="drop what is lost (passed on to the program)")
    parser.add_argument("--seconds", type=float, metavar="N", help="for one run of the program (default 120)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """0 when the tree is sound, 6 when it is tainted as before, 1 when it is not and the program failed."""
    if options.seconds is not None and not 0 < options.seconds <= 86400:
        raise BadCall("--seconds: more than 0, at most a day")
    client = ControlClient(Runtime.from_environment())
    reading, writing = os.pipe()
    fds = [writing]
    if options.program is not None:
        fds.append(sealed.read(options.program))
    client.send(
        "repair",
        fds,
        name=options.name,
        disk=options.disk,
        force=options.force,
        seconds=options.seconds,
        program=options.program and os.path.basename(options.program),
    )
    for fd in fds:
        os.close(fd)
    done = follow.follow(client, reading, quiet=options.json)
    if options.json:
        print(json.dumps(done, indent=2))
    elif done["reason"]:
        print(f"{options.name} is as it was: {done['reason']}")
    else:
        print(f"{options.name} is sound" + _left(done["over_counts_after"]))
    if not done["reason"]:
        return exits.OK
    return exits.NOT_CLEAN if done["violations_after"] else exits.REFUSED


def _left(over_counts: int) -> str:
    return f"; {over_counts} counts are still too high, which is harmless" if over_counts else ""
