"""The control socket: how commands talk to xokd.

AF_UNIX, SEQPACKET; one JSON object a packet, descriptors beside it.  A request is {"op": name, …}; the answer is
{"ok": …} or {"error": sentence, "exit": exit status}.  A connection may carry several requests, one after another.

The kernel says who the peer is (SO_PEERCRED); nothing in a message does.  Everybody may look (`status`, `list`), run a
libOS under their own limits, and make and mount file systems of their own; the rest is for root.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from typing import Any

from xok_host.abi.errors import Gone, NotAllowed, XokError
from xok_host.host.config import Runtime

MAX_MESSAGE = 1 << 20


class NotRunning(Gone):
    """xokd is not running."""


class ControlClient:
    """A command's connection."""

    def __init__(self, runtime: Runtime) -> None:
        """Raises `NotRunning`."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(str(runtime.socket))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise NotRunning(f"nothing listens on {runtime.socket}; start it with `xok up --disk DISK`") from None
        except PermissionError:
            raise NotAllowed(f"{runtime.socket} is not yours to use") from None
        widen(self._socket)

    def request(self, op: str, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """Send one request and wait for its answer.  Raises the refusal as XokError, with its exit status."""
        self.send(op, fds, **arguments)
        return self.answer()

    def send(self, op: str, fds: Sequence[int] = (), **arguments: Any) -> None:
        socket.send_fds(self._socket, [json.dumps({"op": op, **arguments}).encode()], list(fds))

    def answer(self) -> Any:
        try:
            data = self._socket.recv(MAX_MESSAGE)
        except ConnectionResetError:
            data = b""
        if not data:
            raise Gone("xokd ended before it answered; its log says why")
        reply = json.loads(data)
        if "error" in reply:
            raise Refusal(reply["error"], reply.get("exit", 1))
        return reply["ok"]

    def wait_closed(self) -> None:
        """Return when xokd has closed the connection."""
        try:
            while self._socket.recv(MAX_MESSAGE):
                pass
        except ConnectionResetError:
            pass

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


class Refusal(XokError):
    """xokd's own words, with the exit status that belongs to them."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status

    def __str__(self) -> str:
        return self.detail


def said(error: OSError) -> str:
    """An error of the host's, for a person: what it is about, and what is wrong."""
    words = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {words}" if isinstance(error.filename, str | bytes) else words


def widen(sock: socket.socket) -> None:
    """Room for a long status in one packet; needs a privilege on the sending side, which is root's."""
    for option in (32, socket.SO_SNDBUF):  # SO_SNDBUFFORCE first
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, 2 * MAX_MESSAGE)
            return
        except PermissionError:
            continue
