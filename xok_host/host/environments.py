"""Environments as processes: made through the launcher, known to kernel and call loop, released when they die.

E-1  A slot is the environment's number, and decides its uid; it is free again only after the launcher has reaped the
     process and the kernel has released what it held.
E-2  Whatever fails on the way to a running environment undoes what was done before.
E-3  What a libOS prints goes to a log of bounded size, through a pipe: it can neither fill the host's disk nor touch a
     descriptor that somebody else uses.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any, Protocol

import trio

from xok_host.abi import channel
from xok_host.abi.calls import Event
from xok_host.abi.errors import Gone, LimitReached, XokError
from xok_host.abi.types import ENVIRONMENT_LIMIT, ENVIRONMENT_UID_BASE
from xok_host.host.callloop import CallLoop
from xok_host.host.launchlink import LaunchLink
from xok_host.host.memory import allocate
from xok_host.kernel.capability import Capability

log = logging.getLogger("xok.environments")

MAX_ENVIRONMENTS = ENVIRONMENT_LIMIT - 1
"""Slots 1 to this; the last one is xokd's own."""
LOG_BYTES = 1 << 20
"""Of one environment's output that is kept; then it starts over, with the part before in `.old`."""
LAST_WORDS = 2000
"""Bytes of its output that its user is shown when it failed."""
LOG_SECONDS = 2.0
"""Longest wait for the end of its output to reach the log."""
PER_USER = 64
"""Environments that one user without privileges may have."""
STOP_SECONDS = 10.0
"""From the request to stop to SIGKILL."""


@dataclass(slots=True, frozen=True)
class NetworkGrant:
    """What an environment has of the network: for the start message, and its descriptors by table name."""

    start: dict[str, Any]
    descriptors: dict[str, int]
    address: str


class Backend(Protocol):
    """What environments are made of, beside the process."""

    def create_environment(self, slot: int, uid: int, owner: int, name: str, held: Sequence[Capability]) -> list[int]:
        """Indices of the capabilities in the new environment; `owner` is the user that started it."""
        ...

    def destroy_environment(self, slot: int) -> None: ...

    def tables(self) -> dict[str, int]: ...

    def devices(self) -> dict[int, int]: ...

    def grant_network(
        self, slot: int, interface: IPv4Interface, listening: int | None
    ) -> tuple[NetworkGrant, list[Capability]]:
        """A whole address, or one TCP port of one that has an owner."""
        ...

    def revoke_network(self, slot: int) -> None:
        """It has been asked to go: no packet more.  The environment may have none."""
        ...

    def release_network(self, slot: int) -> None:
        """It is dead."""
        ...


@dataclass(slots=True, eq=False)
class Record:
    """One environment.  `status` is its exit code, or −signal, once `exited` is set."""

    slot: int
    name: str
    kind: str
    caller: int
    address: str = ""
    pid: int = 0
    status: int = 0
    stopping: bool = False
    started: float = field(default_factory=time.time)
    exited: trio.Event = field(default_factory=trio.Event)
    log: Path | None = None
    log_start: int = 0
    """Where in the log its own output begins."""
    logged: trio.Event = field(default_factory=trio.Event)
    """All of its output is in the log."""

    @property
    def uid(self) -> int:
        return ENVIRONMENT_UID_BASE + self.slot


@dataclass(slots=True, frozen=True)
class Program:
    """What to run: an installed module, or (with `descriptors["fd:program"]`) a file that the caller opened."""

    module: str
    arguments: Sequence[str] = ()
    descriptors: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)


class Environments:
    """All that live."""

    def __init__(self, backend: Backend, loop: CallLoop, link: LaunchLink, nursery: trio.Nursery, logs: Path) -> None:
        self._backend = backend
        self._loop = loop
        self._link = link
        self._nursery = nursery
        self._logs = logs
        self._next = 1
        self.records: dict[int, Record] = {}

    async def start(
        self,
        name: str,
        kind: str,
        program: Program,
        *,
        caller: int = 0,
        capabilities: Sequence[Capability] = (),
        interface: IPv4Interface | None = None,
        listening: int | None = None,
        output: int | None = None,
    ) -> Record:
        """Start an environment; returns when it is confined and imports its libOS.

        `interface`: the address it gets, the whole of it or (`listening`) one TCP port.  `output`: descriptor for what
        it prints, else a log.  Raises XokError or OSError.
        """
        if caller and sum(record.caller == caller for record in self.records.values()) >= PER_USER:
            raise LimitReached(f"user {caller} has {PER_USER} environments")
        record = Record(self._free_slot(), name, kind, caller)
        self.records[record.slot] = record
        with contextlib.ExitStack() as undo:
            undo.callback(self._forget, record)
            granted: list[Capability] = list(capabilities)
            network = None
            if interface is not None:
                network, addresses = self._backend.grant_network(record.slot, interface, listening)
                granted += addresses
                record.address = network.address
                undo.callback(self._backend.release_network, record.slot)
            indices = self._backend.create_environment(record.slot, record.uid, caller, name, granted)
            undo.callback(self._backend.destroy_environment, record.slot)
            theirs = undo.enter_context(self._connect(record, program, granted, indices, network))
            undo.callback(self._loop.remove, record.slot)
            with contextlib.ExitStack() as closing:
                if output is None:
                    reading, output = os.pipe()
                    closing.callback(os.close, output)
                    record.log = self._logs / f"{_file_name(name)}.log"
                    with contextlib.suppress(OSError):
                        record.log_start = record.log.stat().st_size
                    self._nursery.start_soon(_keep_log, reading, record.log, record.logged)
                closing.callback(theirs.close)
                with trio.CancelScope(shield=True):
                    record.pid = await self._link.spawn(
                        record.slot,
                        name,
                        program.module,
                        theirs.fileno(),
                        output,
                        limits=dict(program.limits),
                        variables={key: os.environ[key] for key in ("XOK_PURE",) if key in os.environ},
                    )
            undo.pop_all()
        return record

    async def stop(self, record: Record, seconds: float = STOP_SECONDS) -> None:
        """Ask it to finish, and end it when it has not after `seconds`.  Returns when it is gone."""
        record.stopping = True
        self._loop.post(record.slot, Event.STOP)
        with trio.move_on_after(seconds):
            await record.exited.wait()
            return
        log.warning("%s (%d) did not stop within %g s and is killed", record.name, record.slot, seconds)
        await self.kill(record)

    async def kill(self, record: Record) -> None:
        """End it now.  Returns when it is gone."""
        record.stopping = True
        with contextlib.suppress(XokError):
            self._backend.revoke_network(record.slot)
        await self._link.kill(record.slot)
        await record.exited.wait()

    def on_exit(self, slot: int, status: int) -> None:
        """The launcher has reaped the process: release everything it held."""
        record = self.records.get(slot)
        if record is None or record.exited.is_set():
            return
        record.status = status
        log.info("%s (%d, process %d) ended: %s", record.name, slot, record.pid, describe_status(status))
        self._loop.remove(slot)
        self._backend.destroy_environment(slot)
        self._backend.release_network(slot)
        self._forget(record)

    def _forget(self, record: Record) -> None:
        self.records.pop(record.slot, None)
        record.exited.set()

    def _free_slot(self) -> int:
        """Round and round, so that a number comes back late."""
        for step in range(MAX_ENVIRONMENTS):
            slot = (self._next - 1 + step) % MAX_ENVIRONMENTS + 1
            if slot not in self.records:
                self._next = slot % MAX_ENVIRONMENTS + 1
                return slot
        raise LimitReached(f"{MAX_ENVIRONMENTS} environments are alive")

    def _connect(
        self,
        record: Record,
        program: Program,
        capabilities: Sequence[Capability],
        indices: Sequence[int],
        network: NetworkGrant | None,
    ) -> socket.socket:
        """Make ring and socket, register them, queue the start message.  Returns the environment's end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ring = allocate(f"ring-{record.slot}", channel.RING_BYTES, private=False)
        bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop.add(record.slot, ours, bell, ring)
        descriptors = {"ring": ring.writer, "bell": bell, **self._backend.tables(), **program.descriptors}
        if network is not None:
            descriptors |= network.descriptors
        start = {
            "env": record.slot,
            "name": record.name,
            "args": list(program.arguments),
            "caps": [
                {"index": index, "kind": held.kind, "id": held.id, "rights": held.rights, "name": held.name}
                for index, held in zip(indices, capabilities, strict=True)
            ],
            "devices": self._backend.devices(),
            "tables": list(descriptors),
            "tap": None if network is None else network.start,
        }
        socket.send_fds(ours, [json.dumps(start).encode()], list(descriptors.values()))
        if network is not None:
            for fd in network.descriptors.values():
                os.close(fd)
        return theirs


def describe_status(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {-status}"


def new_tree_capability_id() -> int:
    """Unguessable, and never 0, which names none."""
    return secrets.randbits(63) | 1


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in name)[:64]


async def last_words(record: Record) -> str:
    """What the environment printed last, for the person who started it; it has ended."""
    if record.log is None:
        return ""
    with trio.move_on_after(LOG_SECONDS):
        await record.logged.wait()
    with contextlib.suppress(OSError), open(record.log, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = record.log_start if record.log_start <= size else 0
        file.seek(max(start, size - LAST_WORDS))
        return file.read(LAST_WORDS).decode(errors="replace").strip()
    return ""


async def _keep_log(reading: int, path: Path, done: trio.Event) -> None:
    """Copy a pipe to a log until its other end is closed, keeping at most twice LOG_BYTES (E-3)."""
    os.set_blocking(reading, False)
    async with trio.lowlevel.FdStream(reading) as stream:
        with open(path, "ab", buffering=0) as file:
            try:
                async for data in stream:
                    if file.tell() + len(data) > LOG_BYTES:
                        os.replace(path, path.with_suffix(".old"))
                        file.close()
                        file = open(path, "ab", buffering=0)  # noqa: SIM115
                    with contextlib.suppress(OSError):
                        file.write(data)
            except trio.BrokenResourceError:
                pass
            finally:
                done.set()


__all__ = ["Backend", "Environments", "Gone", "NetworkGrant", "Program", "Record", "describe_status"]
