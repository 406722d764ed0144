"""xokd's end of the control socket (`control`).

CTL-1  A descriptor that a peer has sent is a pipe, a memory file, or one that only names a place (O_PATH).  All else
       is refused, and closed in a thread: closing a file of a FUSE file system asks the user who serves it, who need
       not answer.  A user has at most CLOSERS_OF_ONE_USER such threads; the rest of his connections wait for them.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from xok_host.abi.errors import BadCall, NotAllowed, XokError
from xok_host.host.config import Runtime
from xok_host.host.control import widen

MAX_REQUEST = 65536
MAX_DESCRIPTORS = 4
MAX_CONNECTIONS = 256
MAX_OF_ONE_USER = 64
"""Connections of one user other than root, so that no user can keep root out."""
CLOSERS_OF_ONE_USER = 2
"""Threads that close what one user should not have sent."""
MAX_WORD = 4096
"""Bytes of what a peer may say while its request is being carried out (`stop`)."""
FOR_EVERYBODY = frozenset({"status", "list", "run", "wait", "mkfs", "mount", "umount", "repair"})
"""What needs no privilege in itself; the handlers look at whose file system and whose directory it is."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, according to the kernel."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, sock: socket.socket) -> Peer:
        return cls(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


Handler = Callable[[Peer, dict[str, Any], list[int], "Connection"], Awaitable[Any]]


class Connection:
    """One peer.  A handler that goes on for long can wait for the peer to hang up."""

    def __init__(self, sock: trio.socket.SocketType, peer: Peer) -> None:
        self.sock = sock
        self.peer = peer

    async def wait_word(self) -> bool:
        """Wait for the peer to say something while its request is being carried out; False when it has hung up."""
        try:
            return bool(await self.sock.recv(MAX_WORD))
        except OSError:
            return False


class ControlServer:
    """xokd's end."""

    def __init__(self, runtime: Runtime, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers
        self._by_user: Counter[int] = Counter()
        self._closers: dict[int, trio.CapacityLimiter] = {}
        """Of users that have sent what may take its time to close."""
        self.answering = 0
        """Requests being carried out."""
        self._path: Path = runtime.socket
        self._limit = trio.CapacityLimiter(MAX_CONNECTIONS)
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self._path))
        os.chmod(self._path, 0o666)  # authorisation is by SO_PEERCRED
        self._listener.listen(64)

    async def serve(self) -> None:
        listener = trio.socket.from_stdlib_socket(self._listener)
        async with trio.open_nursery() as nursery:
            while True:
                await self._limit.acquire_on_behalf_of(token := object())
                try:
                    sock, _ = await listener.accept()
                except OSError:
                    self._limit.release_on_behalf_of(token)
                    await trio.sleep(0.1)  # out of descriptors: let some be closed
                    continue
                nursery.start_soon(self._connection, sock, token)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        self._listener.close()

    async def _connection(self, sock: trio.socket.SocketType, token: object) -> None:
        try:
            with sock:
                raw = socket.socket(fileno=os.dup(sock.fileno()))
                with raw:
                    peer = Peer.of(raw)
                    widen(raw)
                if peer.uid and self._by_user[peer.uid] >= MAX_OF_ONE_USER:
                    return
                self._by_user[peer.uid] += 1
                try:
                    connection = Connection(sock, peer)
                    while await self._request(connection):
                        pass
                finally:
                    self._by_user[peer.uid] -= 1
        except (OSError, trio.ClosedResourceError):
            pass  # the peer went away
        finally:
            self._limit.release_on_behalf_of(token)

    async def _request(self, connection: Connection) -> bool:
        sock = connection.sock
        await trio.lowlevel.wait_readable(sock)
        data, ancillary, flags, _ = await sock.recvmsg(MAX_REQUEST, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4))
        fds = _descriptors(ancillary)
        if not all(map(_closes_at_once, fds)):
            await self._refuse(connection, fds)
            return False
        self.answering += 1
        try:
            if not data:
                return False
            answer = await self._answer(connection, data, fds)
            await sock.send(json.dumps(answer).encode())
        finally:
            self.answering -= 1
            for fd in fds:
                os.close(fd)
        return True

    async def _refuse(self, connection: Connection, fds: list[int]) -> None:
        """CTL-1."""
        uid = connection.peer.uid
        words = "descriptors are pipes, memory files, or places opened with O_PATH; is the command of another version?"
        try:
            await connection.sock.send(json.dumps({"error": words, "exit": 2}).encode())
        finally:
            limiter = self._closers.setdefault(uid, trio.CapacityLimiter(CLOSERS_OF_ONE_USER))
            for fd in fds:
                await trio.to_thread.run_sync(os.close, fd, limiter=limiter, abandon_on_cancel=True)
            if not limiter.borrowed_tokens:
                self._closers.pop(uid, None)

    async def _answer(self, connection: Connection, data: bytes, fds: list[int]) -> dict[str, Any]:
        try:
            request = json.loads(data)
            if not isinstance(request, dict) or request.get("op") not in self._handlers:
                raise BadCall("xokd knows no such request; is the command of another version?")
            op = request["op"]
            if connection.peer.uid != 0 and op not in FOR_EVERYBODY:
                raise NotAllowed(f"`{op}` is for root")
            return {"ok": await self._handlers[op](connection.peer, request, fds, connection)}
        except BadCall as error:
            return {"error": error.detail or str(error), "exit": 2}
        except XokError as error:
            return {"error": str(error), "exit": error.exit}
        except OSError as error:
            return {"error": str(error), "exit": 1}
        except (KeyError, TypeError, ValueError) as error:
            return {"error": f"the request is malformed: {error!r}", "exit": 2}


def _closes_at_once(fd: int) -> bool:
    """Whether no file system is asked when the descriptor is closed; none is asked here either."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # memory files have seals
        return True
    except OSError:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:[")  # paths begin with a slash


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    out: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            out += [fd for (fd,) in struct.iter_unpack("i", data[: len(data) // 4 * 4])]
    return out
