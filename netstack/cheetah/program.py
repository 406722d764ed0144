"""Cheetah as a libOS of its own: serve a directory of the host, as far as the environment can read it.

    xok run --address 10.42.0.3/24 netstack/cheetah/program.py --root /usr/share/doc

Files of a C-FFS volume are served by `mounts.web`, which composes the same parts with the file system.
"""

from __future__ import annotations

import argparse
import os
import time

from netstack.cheetah.server import Cheetah
from netstack.cheetah.station import Station
from netstack.cheetah.store import DirectoryStore, FileStore
from xok_host.abi.client import Environment

PORT = 80


def serve(env: Environment, store: FileStore, port: int = PORT) -> Cheetah:
    """Serve `store` on the environment's address until xokd asks us to stop; the server, for its counters."""
    station = Station(env)
    cheetah = Cheetah(store, int.from_bytes(os.urandom(8), "little"), time.time_ns())
    station.listen(port, cheetah)
    try:
        station.run(cheetah.tick)
    finally:
        cheetah.cache.clear()
    return cheetah


def main(env: Environment, argv: list[str]) -> int:
    """The program's entry (see abi/client.py)."""
    options = argparse.ArgumentParser(prog="cheetah", description="serve a directory over HTTP")
    options.add_argument("--root", required=True, help="directory of the host to serve")
    options.add_argument("--port", type=int, default=PORT)
    chosen = options.parse_args(argv)
    serve(env, DirectoryStore(chosen.root), chosen.port)
    return 0
