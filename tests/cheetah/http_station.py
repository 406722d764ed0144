"""Run Cheetah on a TAP of its own without xokd: python http_station.py TAP NETWORK DIRECTORY (NETWORK like 10.83.7).

The TAP is made here and goes with the process; the host is .1, the server .2. SIGTERM ends it, and it prints its
counters as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000
CSUM_TSO4_TSO6 = 1 | 2 | 4


def open_tap(name: str, host: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_NO_PI_VNET_HDR))
    fcntl.ioctl(fd, TUNSETOFFLOAD, CSUM_TSO4_TSO6)
    subprocess.run(["ip", "address", "add", f"{host}/24", "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    return fd


def environment(fd: int, address: str) -> Any:
    """As much of an Environment as a Station uses, with the whole address."""
    from xok_host.abi.client import CapabilityInfo, TapInfo

    xokd, _ = socket.socketpair()
    mac = b"\x02\x58" + IPv4Address(address).packed
    return SimpleNamespace(
        tap=TapInfo(fd, 0, mac, (address,), 24, 1500),
        caps=[CapabilityInfo(1, "address", 0, 7, address)],
        call=lambda *operands, **named: None,
        extra_fds={},
        fileno=xokd.fileno,
        drain=lambda: None,
        dispatch=lambda: 0,
        stop_requested=False,
    )


def main(name: str, network: str, directory: str) -> None:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from netstack.cheetah.server import Cheetah
    from netstack.cheetah.station import Station
    from netstack.cheetah.store import DirectoryStore

    env = environment(open_tap(name, f"{network}.1"), f"{network}.2")
    station = Station(env)
    cheetah = Cheetah(DirectoryStore(directory), 12345, time.time_ns())
    station.listen(80, cheetah)
    signal.signal(signal.SIGTERM, lambda *_: setattr(env, "stop_requested", True))
    print("ready", flush=True)
    station.run(cheetah.tick)
    print(json.dumps({"cheetah": cheetah.statistics(), "stack": station.stack.statistics()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
