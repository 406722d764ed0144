"""The launcher: the one process that makes environments, and that keeps their FUSE descriptors.

It is forked before xokd opens anything, so no environment can inherit a disk, a TAP or another's memory.  It has one
thread, no event loop, one socket to xokd, and imports nothing but this project and the standard library.

L-1  Everything it starts dies with it (parent-death signal); when xokd's end of the socket closes, it kills all
     environments, unmounts all mounts and exits.
L-2  It waits for nobody: a child that takes long to confine itself holds up no other request.
L-3  A slot is used again only after its process was reaped, so a uid is never shared by two live environments.

Messages are JSON, one a packet, with descriptors beside them.  Requests carry `seq`; the reply carries the same.

    {"op": "spawn", "slot", "name", "module", "limits", "variables"} + [socket, output]   → {"pid"}
    {"op": "kill", "slot"}                                                                → {}
    {"op": "mount", "id", "directory", "name"}                                            → {"init"} + [fuse]
    {"op": "mount", …, "uid", "gid"} + [directory]          (of an unprivileged user)     → {"init"} + [fuse]
    {"op": "answers", "id"}                                 (the same; waits)             → {}
    {"op": "fuse", "id"}                                                                  → {"init"} + [fuse]
    {"op": "umount", "id", "detach"}                                                      → {}
    {"event": "exit", "slot", "pid", "status"}      status: exit code, or −signal
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from xok_host.host import confine, fusemount, linux, view

MAX_MESSAGE = 65536
MAX_DESCRIPTORS = 8


@dataclass(slots=True)
class _Child:
    """An environment's process.  `report` is open until it has confined itself; `seq` is the spawn to answer."""

    slot: int
    pid: int
    pidfd: int
    report: int
    seq: int


@dataclass(slots=True)
class _Mount:
    directory: str
    fd: int
    init: bytes
    owner: fusemount.Owner | None = None

    def close(self) -> None:
        os.close(self.fd)
        if self.owner is not None:
            self.owner.close()


@dataclass(slots=True)
class _Helper:
    """A child that mounts or unmounts.  `finish` gets 0 or an errno."""

    pid: int
    pidfd: int
    deadline: float
    finish: Callable[[int], None]


@dataclass(slots=True)
class _Server:
    sock: socket.socket
    seen: view.View
    self_pidfd: int
    pid_namespace: int
    children: dict[int, _Child] = field(default_factory=dict)
    mounts: dict[str, _Mount] = field(default_factory=dict)
    helpers: dict[int, _Helper] = field(default_factory=dict)

    def serve(self) -> None:
        """Until xokd's end closes."""
        while True:
            handlers: dict[int, Callable[[], object]] = {}
            for child in self.children.values():
                handlers[child.pidfd] = partial(self._reap, child)
                if child.report >= 0:
                    handlers[child.report] = partial(self._confined, child)
            for helper in self.helpers.values():
                handlers[helper.pidfd] = partial(self._helped, helper)
            poll = select.poll()
            for fd in (self.sock.fileno(), *handlers):
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(None if not self.helpers else 1000):
                if fd in handlers:
                    handlers[fd]()
                elif not self._request():
                    return
            for helper in self.helpers.values():
                if helper.deadline < time.monotonic():
                    signal.pidfd_send_signal(helper.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """End every environment and every mount (L-1)."""
        for helper in self.helpers.values():
            signal.pidfd_send_signal(helper.pidfd, signal.SIGKILL)
        for child in self.children.values():
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        for child in self.children.values():
            os.waitpid(child.pid, 0)
        for mount in self.mounts.values():
            os.close(mount.fd)  # aborts the connection: nothing can hang on it any more
            with contextlib.suppress(OSError):
                fusemount.umount(mount.directory, detach=True, owner=mount.owner)

    # ---- requests

    def _request(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self.sock, MAX_MESSAGE, MAX_DESCRIPTORS)
        if not data:
            return False
        message: dict[str, Any] = json.loads(data)
        seq = int(message["seq"])
        try:
            match message["op"]:
                case "spawn":
                    self._spawn(message, fds)
                case "kill":
                    child = self.children.get(message["slot"])
                    if child is not None:
                        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
                    self._send({"seq": seq})
                case "mount":
                    self._mount(message, fds)
                case "fuse":
                    mount = self._find(message)
                    self._send({"seq": seq, "init": mount.init.hex()}, [mount.fd])
                case "answers":
                    self._answers(message)
                case "umount":
                    self._umount(message)
        except OSError as error:
            self._fail(seq, error)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        data = json.dumps(message).encode()
        try:
            socket.send_fds(self.sock, [data], fds or [])
        except (BrokenPipeError, ConnectionResetError):
            pass  # xokd is gone: the next receive says so

    def _spawn(self, message: dict[str, Any], fds: list[int]) -> None:
        job = confine.Job(
            slot=message["slot"],
            name=message["name"],
            module=message["module"],
            limits=message.get("limits", {}),
            variables=message.get("variables", {}),
        )
        if job.slot in self.children:
            raise FileExistsError(errno.EEXIST, f"slot {job.slot} is still alive")
        sock, output = fds
        reading, writing = os.pipe()
        linux.unshare(linux.CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                self._become(job, sock, output, writing)
        finally:
            linux.setns(self.pid_namespace, linux.CLONE_NEWPID)
            os.close(writing)
        self.children[job.slot] = _Child(job.slot, pid, os.pidfd_open(pid), reading, message["seq"])

    def _become(self, job: confine.Job, sock: int, output: int, report: int) -> NoReturn:
        status = confine.EXIT_CONFINEMENT
        try:
            status = confine.run(job, sock, output, report, self.self_pidfd, self.seen)
        finally:
            os._exit(status)

    def _mount(self, message: dict[str, Any], fds: list[int]) -> None:
        seq, name, directory = message["seq"], message["id"], message["directory"]
        if name in self.mounts:
            raise FileExistsError(errno.EEXIST, "this mount exists", directory)
        owner = fusemount.Owner.of(message["uid"], message["gid"], fds[0]) if fds else None
        fds.clear()  # the owner has it
        try:
            fd = fusemount.open_connection()
        except OSError:
            if owner is not None:
                owner.close()
            raise

        def finish(code: int) -> None:
            if code:
                _Mount(directory, fd, b"", owner).close()
                self._fail(seq, OSError(code, os.strerror(code), directory))
                return
            mount = self.mounts[name] = _Mount(directory, fd, fusemount.read_init(fd), owner)
            self._send({"seq": seq, "init": mount.init.hex()}, [fd])

        self._help(lambda: fusemount.mount(fd, directory, message["name"], owner), finish)

    def _answers(self, message: dict[str, Any]) -> None:
        seq, mount = message["seq"], self._find(message)
        owner = mount.owner
        if owner is None:
            raise PermissionError(errno.EPERM, "only a user's mount is asked in his name", mount.directory)

        def finish(code: int) -> None:
            if code:
                self._fail(seq, OSError(code, os.strerror(code), mount.directory))
            else:
                self._send({"seq": seq})

        self._help(lambda: fusemount.answers(mount.directory, owner), finish)

    def _find(self, message: dict[str, Any]) -> _Mount:
        mount = self.mounts.get(message["id"])
        if mount is None:
            raise FileNotFoundError(errno.ENOENT, "no such mount", message["id"])
        return mount

    def _umount(self, message: dict[str, Any]) -> None:
        seq, name, mount = message["seq"], message["id"], self._find(message)

        def finish(code: int) -> None:
            if code not in (0, errno.EINVAL):  # EINVAL: somebody else has unmounted it
                self._fail(seq, OSError(code, os.strerror(code), mount.directory))
                return
            if self.mounts.pop(name, None) is mount:
                mount.close()
            self._send({"seq": seq})

        detach = bool(message.get("detach"))
        self._help(lambda: fusemount.umount(mount.directory, detach=detach, owner=mount.owner), finish)

    def _help(self, action: Callable[[], None], finish: Callable[[int], None]) -> None:
        """Do what may take long in a child (L-2)."""
        pid = fusemount.apart(action)
        self.helpers[pid] = _Helper(pid, os.pidfd_open(pid), time.monotonic() + fusemount.DEADLINE, finish)

    def _fail(self, seq: int, error: OSError) -> None:
        self._send({"seq": seq, "errno": error.errno or errno.EIO, "error": str(error)})

    # ---- what children do

    def _confined(self, child: _Child) -> None:
        """The report pipe closed: the environment is confined, or said why it is not."""
        if child.report < 0:
            return
        why = os.read(child.report, 4096).decode(errors="replace")
        os.close(child.report)
        child.report = -1
        if why:
            self._send({"seq": child.seq, "errno": 5, "error": f"could not confine the environment: {why}"})
        else:
            self._send({"seq": child.seq, "pid": child.pid})

    def _helped(self, helper: _Helper) -> None:
        _, status = os.waitpid(helper.pid, 0)
        os.close(helper.pidfd)
        del self.helpers[helper.pid]
        helper.finish(fusemount.outcome(status))

    def _reap(self, child: _Child) -> None:
        if self.children.get(child.slot) is not child:
            return
        if child.report >= 0:
            self._confined(child)
        _, status = os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        del self.children[child.slot]
        code = os.waitstatus_to_exitcode(status)
        self._send({"event": "exit", "slot": child.slot, "pid": child.pid, "status": code})


def main(sock: socket.socket, seen: view.View) -> None:
    """The launcher's life.  `sock`: SEQPACKET socket to xokd.  Returns when xokd is gone and all is cleaned up."""
    os.umask(0o022)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    linux.set_process_name("xok-launcher")
    server = _Server(sock, seen, os.pidfd_open(os.getpid()), os.open("/proc/self/ns/pid", os.O_RDONLY))
    try:
        server.serve()
    finally:
        server.close()


def fork(seen: view.View, closing: Sequence[int] = ()) -> tuple[int, socket.socket]:
    """Fork the launcher; call this before anything is opened.  Returns its pid and xokd's end of the socket.

    `closing`: descriptors that it must not keep alive (a lock, a pipe that somebody reads to its end).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            for fd in closing:
                os.close(fd)
            os.setsid()
            main(theirs, seen)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    return pid, ours
