"""Start programs in real environments through a real launcher, without xokd behind them."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from xok_host.abi import channel, views
from xok_host.host import launcher, view
from xok_host.host.launchlink import LaunchLink

T = TypeVar("T")


def memory(nbytes: int, data: bytes = b"") -> int:
    """A memory file such as xokd hands out."""
    fd = os.memfd_create("xok-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    os.pwrite(fd, data, 0)
    os.fchmod(fd, 0o600)
    return fd


def start_message(sock: socket.socket, program: str | None, args: list[str], extra: dict[str, int]) -> None:
    """Queue what xokd sends first: a ring, empty tables, the program's source, and `extra` descriptors."""
    header = struct.pack("<IIIIII", channel.MAGIC, channel.VERSION, 0, 0, 0, 0)
    registry = views.REGISTRY_HEADER.pack(views.REGISTRY_MAGIC, views.REGISTRY_VERSION, 1, 1, 0, 0, 0)
    tables = {
        "ring": memory(channel.RING_BYTES, header),
        "bell": os.eventfd(0),
        "registry": memory(4096, registry),
        "counters": memory(4096),
    }
    if program is not None:
        tables["fd:program"] = memory(len(program), program.encode())
    tables |= extra
    start = {"env": 1, "name": "test", "args": args, "caps": [], "devices": {}, "tables": list(tables)}
    if "tap" in extra:
        start["tap"] = {"queue": 0, "mac": "020000000001", "addresses": ["10.0.0.2"], "prefix": 24, "mtu": 1500}
    socket.send_fds(sock, [json.dumps(start).encode()], list(tables.values()))
    for name, fd in tables.items():
        if name not in extra:
            os.close(fd)


@dataclass
class Kit:
    """A launcher and what came out of its environments."""

    link: LaunchLink
    pid: int
    sock: socket.socket
    exits: dict[int, int] = field(default_factory=dict)
    exited: dict[int, trio.Event] = field(default_factory=dict)
    sockets: dict[int, socket.socket] = field(default_factory=dict)
    outputs: dict[int, int] = field(default_factory=dict)

    def on_exit(self, slot: int, status: int) -> None:
        self.exits[slot] = status
        self.exited[slot].set()

    async def spawn(
        self,
        slot: int,
        program: str | None = None,
        *args: str,
        module: str = "program",
        limits: dict[str, int] | None = None,
        **extra: int,
    ) -> int:
        """Start `program` (source text) and return its pid; `extra` descriptors go along."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        start_message(ours, program, list(args), extra)
        reading, writing = os.pipe()
        self.sockets[slot], self.outputs[slot], self.exited[slot] = ours, reading, trio.Event()
        try:
            return await self.link.spawn(slot, f"test{slot}", module, theirs.fileno(), writing, limits=limits)
        finally:
            theirs.close()
            os.close(writing)

    async def finish(self, slot: int) -> tuple[int, str]:
        """Wait for the end: status and everything it printed."""
        await self.exited[slot].wait()
        output = b"".join(iter(lambda: os.read(self.outputs[slot], 65536), b""))
        os.close(self.outputs.pop(slot))
        self.sockets.pop(slot).close()
        return self.exits[slot], output.decode()


def with_launcher(main: Callable[[Kit], Awaitable[T]]) -> T:
    """Run `main` beside a launcher that was forked, as in xokd, before there was an event loop."""
    pid, sock = launcher.fork(view.standard())

    async def run() -> T:
        holder: list[Kit] = []
        kit = Kit(LaunchLink(sock, lambda slot, status: holder[0].on_exit(slot, status)), pid, sock)
        holder.append(kit)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kit.link.receive)
            result = await main(kit)
            nursery.cancel_scope.cancel()
        return result

    try:
        return trio.run(run)
    finally:
        sock.close()
        os.waitpid(pid, 0)


def run_program(program: str, *args: str, **extra: int) -> tuple[int, str]:
    """One program in one environment: its exit status and output."""

    async def main(kit: Kit) -> tuple[int, str]:
        await kit.spawn(5, program, *args, **extra)
        return await kit.finish(5)

    return with_launcher(main)
