"""Starting xokd: the launcher first, then the daemon; the person who asked learns whether it came up.

xok up ──fork──► xokd   forks the launcher at once, before anything is opened (L-1, DESIGN 1)
   ◄──pipe── {"ready": pid} or {"error": sentence, "exit": status}
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import resource
import socket
import sys
import traceback
from typing import IO, Any

from xok_host.abi import accel
from xok_host.abi.errors import BadCall, Exists, Gone, NotAllowed, XokError
from xok_host.host import launcher, view
from xok_host.host.config import Config, Runtime
from xok_host.host.control import Refusal, said

LOG_NAME = "xokd.log"


def start(config: Config, *, foreground: bool) -> int:
    """Start xokd and return its pid when it is ready; in the foreground, return 0 when it has ended."""
    _make_directories(config.runtime)
    closed = view.unreadable(view.standard(accel.ROOT))
    if closed:
        raise NotAllowed(
            f"environments run under uids of their own and could not read {closed[0]}"
            + (f" and {len(closed) - 1} more" if len(closed) > 1 else "")
            + "; `chmod -R o+rX` there"
        )
    log = config.runtime.logs / LOG_NAME
    if foreground:
        _xokd(config, None)
        return 0
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            os.setsid()
            _detach(str(log))
            if os.fork() == 0:
                _xokd(config, writing)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    if not answer:
        raise Gone(f"xokd died while it started; {log} says why")
    message = json.loads(answer)
    if "error" in message:
        raise Refusal(message["error"], message["exit"])
    return int(message["ready"])


def _make_directories(runtime: Runtime) -> None:
    os.umask(0o022)
    try:
        runtime.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise BadCall(
            f"XOK_RUNTIME_DIR is {runtime.directory}, which cannot be a directory: {error.strerror}"
        ) from None
    info = runtime.directory.stat()
    if info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise NotAllowed(
            f"{runtime.directory} must belong to root and be writable by nobody else: who can write there could put "
            "a socket or a log of his own in place of xokd's"
        )
    runtime.logs.mkdir(mode=0o755, exist_ok=True)


def _detach(log: str) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir("/")
    for fd in (null, output):
        if fd > 2:
            os.close(fd)


def _xokd(config: Config, pipe: int | None) -> None:
    """xokd's life, from the fork of the launcher on."""
    report = _Report(pipe)
    lock: IO[str] | None = None
    try:
        lock = _lock(config)
        _survive_shortage()
        pid, link = launcher.fork(
            view.standard(accel.ROOT), closing=[fd for fd in (pipe, lock.fileno()) if fd is not None]
        )
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
        _raise_limits()
        from xok_host.host.xokd import Xokd  # opens nothing, but the launcher has no use for it

        Xokd(config, link).run(report.ready)
        os.waitpid(pid, 0)
    except XokError as error:
        report.tell({"error": str(error), "exit": getattr(error, "status", error.exit)})
    except OSError as error:
        traceback.print_exc()
        report.tell({"error": f"the host refuses: {said(error)}", "exit": 1})
    except BaseException as error:
        traceback.print_exc()
        report.tell({"error": f"xokd failed: {error}; {config.runtime.logs / LOG_NAME} says more", "exit": 1})
    finally:
        if lock is not None:
            lock.close()


class _Report:
    """The pipe to whoever started a daemon; they are told once.  Without one (foreground) they see for themselves."""

    def __init__(self, fd: int | None) -> None:
        self.fd = fd
        self._foreground = fd is None

    def tell(self, message: dict[str, Any]) -> None:
        if self._foreground and "error" in message:
            raise Refusal(message["error"], message["exit"])
        fd, self.fd = self.fd, None
        if fd is not None:
            os.write(fd, json.dumps(message).encode())
            os.close(fd)

    def ready(self) -> None:
        self.tell({"ready": os.getpid()})
        _notify_systemd("READY=1")


def _notify_systemd(state: str) -> None:
    """sd_notify(3): one datagram to the socket that the service manager named."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


def _lock(config: Config) -> IO[str]:
    """One xokd for each runtime directory; the lock goes with its process, however that ends."""
    file = open(config.runtime.lock, "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise Exists(
            f"an xokd runs in {config.runtime.directory} already ({holder}); stop it with `xok down`, or set "
            "XOK_RUNTIME_DIR for a second one"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()}, disk {', '.join(config.disks)}\n")
    file.flush()
    return file


def _survive_shortage() -> None:
    """Short of memory, the host should end a libOS (`confine`) before xokd or the launcher."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-900")


def _raise_limits() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
