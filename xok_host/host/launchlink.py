"""xokd's end of the socket to the launcher: requests that wait for their reply, and exits as they happen."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import trio

from xok_host.abi.errors import Gone
from xok_host.host.launcher import MAX_DESCRIPTORS, MAX_MESSAGE


class LaunchError(OSError):
    """The launcher could not do it; the message says why."""


class LaunchLink:
    """Run `receive()` in a nursery; every other method may then be called from any task."""

    def __init__(self, sock: socket.socket, on_exit: Callable[[int, int], None]) -> None:
        """`on_exit(slot, status)`: an environment's process was reaped; status is its exit code or −signal."""
        sock.setblocking(False)
        self._socket = sock
        self._on_exit = on_exit
        self._seq = 0
        self._replies: dict[int, tuple[dict[str, Any], list[int]]] = {}
        self._arrived: dict[int, trio.Event] = {}

    async def spawn(
        self,
        slot: int,
        name: str,
        module: str,
        sock: int,
        output: int,
        *,
        limits: dict[str, int] | None = None,
        variables: dict[str, str] | None = None,
    ) -> int:
        """Start an environment; returns the pid once it is confined and about to import its libOS."""
        request = {"op": "spawn", "slot": slot, "name": name, "module": module}
        request |= {"limits": limits or {}, "variables": variables or {}}
        reply, _ = await self._ask(request, [sock, output])
        return int(reply["pid"])

    async def kill(self, slot: int) -> None:
        await self._ask({"op": "kill", "slot": slot})

    async def mount(
        self, mount_id: str, directory: str, name: str, user: tuple[int, int, int] | None = None
    ) -> tuple[int, str]:
        """Mount FUSE on `directory`: a duplicate of the descriptor that the launcher keeps, and INIT in hexadecimal.

        `user`: uid and gid of the user whose mount it is, and a descriptor of the directory."""
        request: dict[str, Any] = {"op": "mount", "id": mount_id, "directory": directory, "name": name}
        if user is not None:
            request |= {"uid": user[0], "gid": user[1]}
        reply, fds = await self._ask(request, () if user is None else (user[2],))
        return fds[0], reply["init"]

    async def answers(self, mount_id: str) -> None:
        """Wait until the server of a user's mount answers him."""
        await self._ask({"op": "answers", "id": mount_id})

    async def fuse(self, mount_id: str) -> tuple[int, str]:
        """The same for a mount that exists, for a new server."""
        reply, fds = await self._ask({"op": "fuse", "id": mount_id})
        return fds[0], reply["init"]

    async def umount(self, mount_id: str, *, detach: bool = False) -> None:
        await self._ask({"op": "umount", "id": mount_id, "detach": detach})

    async def receive(self) -> None:
        """Hand out replies and exits until the launcher is gone, which raises `Gone`."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE, MAX_DESCRIPTORS)
            except BlockingIOError:
                continue
            if not data:
                raise Gone("the launcher died")
            message = json.loads(data)
            if message.get("event") == "exit":
                self._on_exit(message["slot"], message["status"])
            elif message["seq"] in self._arrived:
                self._replies[message["seq"]] = message, fds
                self._arrived.pop(message["seq"]).set()
            else:
                for fd in fds:  # whoever asked was cancelled
                    os.close(fd)

    async def _ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        self._seq += 1
        seq = self._seq
        arrived = self._arrived[seq] = trio.Event()
        try:
            data = json.dumps({"seq": seq, **request}).encode()
            while True:
                try:
                    socket.send_fds(self._socket, [data], list(fds))
                    break
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._socket)
                except OSError as error:
                    raise Gone("the launcher died") from error
            await arrived.wait()
        finally:
            self._arrived.pop(seq, None)
        reply, received = self._replies.pop(seq)
        if "error" in reply:
            raise LaunchError(reply["errno"], reply["error"])
        return reply, received
