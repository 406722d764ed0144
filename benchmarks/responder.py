"""The canned responder on a TAP of its own, bound by the same programs as an environment (`c/canned.c`)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.tools import BenchmarkFailure, end
from xok_host.abi.dpf import wildcard
from xok_host.host.net import GrantedQueue, NetEdge
from xok_host.kernel.dpf.table import FilterTable

MAC = bytes.fromhex("020000000a02")
OWNER, SERVER = 1, 2


def canned(stack: ExitStack, program: Path, network: int) -> tuple[str, Callable[[], list[int]]]:
    """Start it; returns its base URL and what gives its process."""
    address = f"10.43.{network}.2"
    net = NetEdge.open(f"xkr{os.getpid()}n{network}", [f"10.43.{network}.1/24"])
    stack.callback(net.close)
    if net.engine != "ebpf":
        raise BenchmarkFailure("the canned responder needs DPF's programs in the host's kernel")
    # Cheetah's TAP has as many: xokd's own, the address owner's, the server's.
    os.close(net.grant_queue(OWNER).fd)
    granted: GrantedQueue = net.grant_queue(SERVER)
    net.set_inverse(SERVER, MAC, [address])
    table = FilterTable()
    grant = table.own_address(address)
    for claim in wildcard(address):
        table.insert(holder=SERVER, grant=grant, wire=claim.pack(), port=granted.port)
    net.sync(table)
    command = [str(program), str(granted.fd), MAC.hex(":")]
    server = subprocess.Popen(command, pass_fds=[granted.fd], stderr=subprocess.DEVNULL)
    os.close(granted.fd)
    stack.callback(end, server)
    return f"http://{address}/", lambda: [server.pid]
