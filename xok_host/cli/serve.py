"""`xok serve NAME`."""

from __future__ import annotations

import argparse

from xok_host.abi.errors import BadCall
from xok_host.cli import exits, follow
from xok_host.host.config import Runtime, parse_interface
from xok_host.host.control import ControlClient

HELP = "serve a file system over HTTP with Cheetah, on an address of its own on the TAP"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="file system in the root catalogue")
    parser.add_argument("--disk", metavar="DISK", help="on this one of several disks: its number, or its path")
    parser.add_argument("--root", metavar="PATH", default="/", help="directory in the file system (default /)")
    parser.add_argument("--address", required=True, metavar="ADDRESS", help="like 10.42.0.2/24")
    parser.add_argument("--port", type=int, default=80, metavar="PORT", help="TCP port (default 80)")
    parser.add_argument("--foreground", action="store_true", help="stay until the server ends; Ctrl-C ends it")


def run(options: argparse.Namespace) -> int:
    interface = parse_interface(options.address)
    if not 0 < options.port < 65536:
        raise BadCall(f"{options.port} is no TCP port")
    client = ControlClient(Runtime.from_environment())
    started = client.request(
        "serve",
        name=options.name,
        disk=options.disk,
        root=options.root,
        address=str(interface),
        port=options.port,
    )
    port = "" if options.port == 80 else f":{options.port}"
    serving = f"{options.name}: http://{interface.ip}{port}/"
    if not options.foreground:
        print(serving)
        return exits.OK
    client.send("wait", env=started["env"])
    return int(follow.follow(client, None, announce=serving)["status"]) and exits.REFUSED
