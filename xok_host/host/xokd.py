"""xokd: kernel, disk, network, call loop, launcher and control socket in one process and one thread.

The call loop is the outer loop.  trio runs as its guest and has the things that wait: control requests, supervision of
mounts, orderly shutdown.  So a call from a libOS never passes through trio, and trio never blocks one.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import select
import signal
import stat
import time
from collections.abc import Callable
from ipaddress import IPv4Interface
from typing import Any

import trio

from xok_host.abi.calls import CatalogueEntry
from xok_host.abi.errors import BadCall, Exists, Gone, InUse, NotAllowed, NotFound, XokError
from xok_host.abi.types import Right
from xok_host.host import confine
from xok_host.host.callloop import Mailbox
from xok_host.host.config import Config, parse_interface
from xok_host.host.controlserver import Connection, ControlServer, Peer
from xok_host.host.environments import Environments, Program, Record, describe_status, last_words
from xok_host.host.keeping import Keepers
from xok_host.host.launchlink import LaunchLink
from xok_host.host.mountinfo import kind_of_mount
from xok_host.host.mounting import DETACHED, FILE_SYSTEM, OWN_MODULE, Mount, MountFailed, Mounts, User
from xok_host.host.patching import MAX_PATCH_SECONDS, PATCH_SECONDS, Patcher
from xok_host.host.system import System
from xok_host.kernel.capability import TREE, Capability
from xok_host.kernel.xn.catalogue import FLAG_TAINTED

log = logging.getLogger("xokd")

MKFS_MODULES = {"cffs": "libfs.cffs.mkfs"}
WEB_MODULE = "mounts.web"
WEB_SECONDS = 20.0
"""How long a web server may take until it accepts connections."""
MKFS_SECONDS = 120.0
CODE_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
PLACES = ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs")
"""Kinds of file system on which users may mount: nothing that the host's programs read to learn about the host."""
LAST_ANSWERS_SECONDS = 2.0
_CARRIED_LIMITS = {
    "Max address space": "AS",
    "Max data size": "DATA",
    "Max cpu time": "CPU",
    "Max file size": "FSIZE",
    "Max stack size": "STACK",
    "Max processes": "NPROC",
    "Max locked memory": "MEMLOCK",
}
"""The caller's limits that its environments inherit, as proc(5) names them."""


class Xokd:
    """One instance.  `run` is its life."""

    def __init__(self, config: Config, link: Any) -> None:
        self.config = config
        self._started = time.time()
        self._launcher_socket = link
        self._outcome: Any = None

    def run(self, ready: Callable[[], None]) -> None:
        """Come up, call `ready`, serve until asked to stop, shut down.  Raises what kept it from coming up."""
        try:
            self.system = System(self.config)
        except BaseException:
            self._launcher_socket.close()
            raise
        try:
            self.loop = self.system.loop
            mailbox = Mailbox(self.loop)
            trio.lowlevel.start_guest_run(
                self._main,
                ready,
                run_sync_soon_threadsafe=mailbox.post,
                done_callback=self._done,
                host_uses_signal_set_wakeup_fd=False,
                restrict_keyboard_interrupt_to_checkpoints=True,
            )
            # The registry's entries are many and live long: a collection that visits them all costs a call its time.
            gc.freeze()
            gc.set_threshold(100_000, 50, 100)
            turn, wait_seconds = self.loop.turn, self.system.turns.wait_seconds
            while self._outcome is None:
                turn(wait_seconds())
            mailbox.close()
        finally:
            self.system.close()
            self._launcher_socket.close()  # the launcher cleans up and ends
        self._outcome.unwrap()

    def _done(self, outcome: Any) -> None:
        self._outcome = outcome

    # ---- life

    async def _main(self, ready: Callable[[], None]) -> None:
        self._stop = trio.Event()
        self._force = False
        self._trouble: XokError | None = None
        self._stopped = trio.Event()
        async with trio.open_nursery() as nursery:
            self.link = LaunchLink(self._launcher_socket, self._on_exit)
            nursery.start_soon(self._listen_to_launcher)
            nursery.start_soon(self._signals)
            try:
                await self.system.attach()
            except XokError as error:
                self._trouble = error
            else:
                await self._serve_calls(nursery, ready)
            nursery.cancel_scope.cancel()
        if self._trouble is not None:
            raise self._trouble

    async def _serve_calls(self, nursery: trio.Nursery, ready: Callable[[], None]) -> None:
        """From the first call to the last."""
        self.environments = Environments(self.system, self.loop, self.link, nursery, self.config.runtime.logs)
        self.system.on_flood = self._flooded
        self.mounts = Mounts(self.environments, self.link, nursery)
        self.keepers: Keepers | None = None
        if self.system.network is not None:
            self.keepers = Keepers(self.environments, self.system.network, nursery)
        self.serving: dict[int, dict[str, Any]] = {}
        self.patcher = Patcher(self.system, self.environments, time.time_ns)
        await self.patcher.at_start()
        control = ControlServer(self.config.runtime, self._handlers())
        nursery.start_soon(control.serve)
        try:
            log.info("ready: disk %s, runtime %s", ", ".join(self.config.disks), self.config.runtime.directory)
            ready()
            await self._stop.wait()
            with trio.CancelScope(shield=True):
                await self._shut_down()
                await self._last_answers(control)
        finally:
            control.close()

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("signal %d: shutting down", number)
                self._force = True
                self._stop.set()

    async def _last_answers(self, control: ControlServer) -> None:
        """Those who wait for the end are told of it."""
        self._stopped.set()
        with trio.move_on_after(LAST_ANSWERS_SECONDS):
            while control.answering:
                await trio.sleep(0.005)

    async def _shut_down(self) -> None:
        """Servers first, so that nobody reads; then mounts, which write everything back; then the disk."""
        for record in list(self.environments.records.values()):
            if record.kind not in ("mount", "keeper"):
                await self.environments.stop(record)
        async with trio.open_nursery() as unmounting:  # all at once: no user's server holds up another's
            for mount in list(self.mounts.mounts.values()):
                unmounting.start_soon(self._last_umount, mount)
        for record in list(self.environments.records.values()):
            await self.environments.stop(record)
        while self.patcher.busy:  # its program has been stopped: the disk comes back
            await trio.sleep(0.02)
        try:
            await self.system.detach()
            log.info("down: every disk is clean")
        except XokError as error:
            log.error("down, but not every disk is clean: %s", error)
            self._trouble = error

    async def _last_umount(self, mount: Mount) -> None:
        try:  # what a user has open is no reason for xokd to stay
            if self._force or mount.user is not None or mount.state == DETACHED:
                await self.mounts.end(mount.directory)
            else:
                await self.mounts.umount(mount.directory)
        except XokError as error:
            log.error("%s", error)
            if isinstance(error, MountFailed):
                self._trouble = error

    async def _listen_to_launcher(self) -> None:
        """Without the launcher its environments die and nothing can be started: save the disk and end."""
        try:
            await self.link.receive()
        except Gone as error:
            log.critical("%s: shutting down", error)
            for record in list(self.environments.records.values()):
                await trio.to_thread.run_sync(_wait_dead, record.pid)
                self._on_exit(record.slot, -signal.SIGKILL)
            self._force = True
            self._trouble = error
            self._stop.set()

    def _on_exit(self, slot: int, status: int) -> None:
        self.environments.on_exit(slot, status)
        self.serving.pop(slot, None)

    def _flooded(self, slot: int) -> None:
        record = self.environments.records.get(slot)
        if record is not None:
            log.warning("%s (%d) does not take its events and is killed", record.name, slot)
            os.kill(record.pid, signal.SIGKILL)

    # ---- requests

    def _handlers(self) -> dict[str, Any]:
        return {
            "status": self._status,
            "list": self._list,
            "mkfs": self._mkfs,
            "mount": self._mount,
            "umount": self._umount,
            "serve": self._serve,
            "run": self._run,
            "repair": self._repair,
            "wait": self._wait,
            "down": self._down,
        }

    async def _down(self, peer: Peer, request: dict[str, Any], fds: list[int], connection: Connection) -> Any:
        if not request.get("force"):
            for mount in [mount for mount in self.mounts.mounts.values() if mount.user is None]:
                await _check_idle(mount.directory, "use --force")
        self._force = bool(request.get("force"))
        self._stop.set()
        await self._stopped.wait()
        if self._trouble is not None:
            raise self._trouble
        return {}

    async def _list(self, peer: Peer, request: dict[str, Any], fds: list[int], connection: Connection) -> Any:
        kinds = {CatalogueEntry.ROOT: "root", CatalogueEntry.TYPE: "type", CatalogueEntry.RESERVED: "reserved"}
        names = {
            (dev, entry.type): entry.name for dev, entry in self.system.catalogue() if entry.kind != CatalogueEntry.ROOT
        }
        return [
            {
                "name": entry.name,
                "kind": kinds[entry.kind],
                "type": names.get((dev, entry.type), str(entry.type))
                if entry.kind == CatalogueEntry.ROOT
                else str(entry.type),
                "block": entry.db,
                "uid": entry.uid,
                "tainted": entry.kind == CatalogueEntry.ROOT and bool(entry.flags & FLAG_TAINTED),
                "reason": self.system.reason(dev, entry),
                "device": dev,
                "disk": self.system.disks[dev].path,
            }
            for dev, entry in self.system.catalogue()
        ]

    async def _mkfs(self, peer: Peer, request: dict[str, Any], fds: list[int], connection: Connection) -> Any:
        """Whoever makes a file system owns it: XN's catalogue keeps the user whose environment made the root."""
        self.patcher.check_idle()
        name = _name(request["name"])
        owner = ["--dev", str(self._device(request)), "--uid", str(peer.uid), "--gid", str(peer.gid)]
        if fds:
            _check_sealed(fds)
            descriptors = {f"fd:{FILE_SYSTEM}": fds[0]}
            program = Program(OWN_MODULE, [name, "--make", *owner], descriptors, _limits(peer))
        elif request["type"] in MKFS_MODULES:
            shared = ["--shared"] if request.get("shared") is True else []
            program = Program(MKFS_MODULES[request["type"]], [name, *owner, *shared], limits=_limits(peer))
        else:
            raise BadCall(f"no file system has the type {request['type']!r}")
        dev = self._device(request)
        if any((dev, name) == (of, entry.name) for of, entry in self.system.catalogue()):
            raise Exists(f"{self.system.disks[dev].path} has something called {name!r}; `xok list --types` shows it")
        record = await self.environments.start(f"mkfs:{name}", "mkfs", program, caller=peer.uid)
        with trio.move_on_after(MKFS_SECONDS):
            await record.exited.wait()
        if not record.exited.is_set():
            await self.environments.kill(record)
        if record.status:
            words = await last_words(record)
            raise MakingFailed(f"{name}: {describe_status(record.status)}" + (f"\n{words}" if words else ""))
        return {}

    async def _mount(self, peer: Peer, request: dict[str, Any], fds: list[int], connection: Connection) -> Any:
        """`fds`: the directory, which a user must have opened, and the file system's code if it brings its own."""
        self.patcher.check_idle()
        name, directory, user = _name(request["name"]), request["directory"], None
        if not fds:
            raise BadCall("`mount` needs a descriptor of the directory")
        if len(fds) > 1:
            _check_sealed(fds[1:])
        dev, tree = self._owners_tree(peer, name, request.get("disk"), Right.READ | Right.WRITE)
        if peer.uid:
            directory = _users_directory(peer, fds[0])
            user = User(peer.uid, peer.gid, _limits(peer), fds[0])
        if not os.path.isabs(directory):
            raise BadCall(f"{directory} is not an absolute path")
        program = fds[1] if len(fds) > 1 else -1
        shared = self.system.has_method(*self._root(name, request.get("disk")))
        mount = await self.mounts.mount(name, directory, dev, tree, user=user, program=program, shared=shared)
        return {"directory": mount.directory}

    async def _umount(self, peer: Peer, request: dict[str, Any], fds: list[int], connection: Connection) -> Any:
        mount = self._users_mount(peer, request["directory"])
        if not request.get("lazy") and mount.user is None and mount.state != DETACHED:
            await _check_idle(mount.directory, "unmount with --lazy")
        await self.mounts.umount(mount.directory, lazy=bool(request.get("lazy")))
        return {}

    async def _serve(self, peer: Peer, request: dict[str, Any], fds: list[int], connection: Connection) -> Any:
        self.patcher.check_idle()
        name, interface = _name(request["name"]), parse_interface(request["address"])
        port = int(request["port"])
        if self.keepers is None:
            raise NotAllowed("xokd was started without a network")
        dev, entry = self._root(name, request.get("disk"))
        what = {"name": name, "device": dev, "address": str(interface), "port": port}
        for slot, other in self.serving.items():
            if (other["address"], other["port"]) == (what["address"], port):
                raise Exists(f"{interface.ip} port {port} is served by environment {slot}, from {other['name']}")
        await self.keepers.keep(interface)
        arguments = [name, "--dev", str(dev), "--root", request["root"], "--port", str(port)]
        record = await self.environments.start(
            f"serve:{name}",
            "serve",
            Program(WEB_MODULE, arguments),
            capabilities=[_tree(entry, Right.READ)],
            interface=interface,
            listening=port,
        )
        self.serving[record.slot] = what
        try:
            await self._wait_accepting(record, interface, port)
        except BaseException:
            with trio.CancelScope(shield=True):
                if not record.exited.is_set():
                    await self.environments.kill(record)
            raise
        return {"env": record.slot}

    async def _wait_accepting(self, record: Record, interface: IPv4Interface, port: int) -> None:
        with trio.move_on_after(WEB_SECONDS):
            while not record.exited.is_set():
                with contextlib.suppress(OSError), trio.move_on_after(1.0):
                    stream = await trio.open_tcp_stream(str(interface.ip), port)
                    await stream.aclose()
                    return
                await trio.sleep(0.02)
        how = describe_status(record.status) if record.exited.is_set() else f"does not answer after {WEB_SECONDS:g} s"
        raise ServingFailed(f"{interface.ip} port {port}: {how}{self._last_words(record)}")

    async def _run(self, peer: Peer, request: dict[str, Any], fds: list[int], connection: Connection) -> Any:
        self.patcher.check_idle()
        if len(fds) != 2:
            raise BadCall("`run` needs the program and somewhere for its output")
        interface = parse_interface(request["address"]) if request.get("address") else None
        if interface is not None and self.keepers is not None:
            await self.keepers.give_up(interface)
        trees = [self._users_tree(peer, text) for text in request.get("trees", [])]
        name = _name(request["name"])
        record = await self.environments.start(
            name,
            "run",
            Program(name, [str(word) for word in request["arguments"]], {confine.SOURCE: fds[0]}, _limits(peer)),
            caller=peer.uid,
            capabilities=trees,
            interface=interface,
            output=fds[1],
        )
        os.close(fds.pop())  # the caller sees the end of the output when the environment has ended
        return await self._until_end(record, connection)

    async def _repair(self, peer: Peer, request: dict[str, Any], fds: list[int], connection: Connection) -> Any:
        """`fds`: somewhere for the output, and the patch program if it is not one of ours."""
        name = _name(request["name"])
        if not 1 <= len(fds) <= 2:
            raise BadCall("`repair` needs somewhere for its output")
        seconds = float(request.get("seconds") or PATCH_SECONDS)
        self.patcher.check_idle()
        dev, entry = self._root(name, request.get("disk"))
        if peer.uid not in (0, entry.uid):
            raise NotAllowed(f"{name} belongs to user {entry.uid}")
        if not 0 < seconds <= (MAX_PATCH_SECONDS if peer.uid == 0 else PATCH_SECONDS):
            raise BadCall(f"{seconds:g} seconds are too many")
        report = self.system.patching.reports.get(dev)
        if peer.uid and not (report and report.log(name)):  # nobody can use the disk meanwhile
            raise NotAllowed(f"reconstruction found nothing wrong in {name}")
        arguments = [name, "--dev", str(dev), *(["--force"] if request.get("force") is True else [])]
        if len(fds) == 2:
            program = Program(_name(request["program"]), arguments, {confine.SOURCE: fds[1]}, _limits(peer))
        else:
            module = self.patcher.module_for(dev, entry)
            if not module:
                raise BadCall(f"there is no patch program for the type of {name}: bring one with --program FILE")
            program = Program(module, arguments, limits=_limits(peer))
        return await self.patcher.run(dev, entry, program, caller=peer.uid, output=fds[0], seconds=seconds)

    async def _wait(self, peer: Peer, request: dict[str, Any], fds: list[int], connection: Connection) -> Any:
        """Until an environment or a mount has ended; meanwhile {"op": "stop"} ends it in order."""
        if "mount" in request:
            mount = self._users_mount(peer, request["mount"])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_mount_when_asked, connection, mount.directory)
                await mount.gone.wait()
                nursery.cancel_scope.cancel()
            return {"status": 0}
        record = self.environments.records.get(int(request["env"]))
        if record is None:
            raise NotFound(f"environment {request['env']}")
        if peer.uid not in (0, record.caller):
            raise NotAllowed("it is not yours")
        return await self._until_end(record, connection)

    async def _stop_mount_when_asked(self, connection: Connection, directory: str) -> None:
        await connection.wait_word()
        with contextlib.suppress(XokError):
            await self.mounts.end(directory)

    async def _until_end(self, record: Record, connection: Connection) -> Any:
        """Wait for the end; a word from the caller asks for it, its hanging up forces it."""

        async def listen() -> None:
            if await connection.wait_word():
                nursery.start_soon(self.environments.stop, record)
                await connection.wait_word()
            await self.environments.kill(record)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await record.exited.wait()
            nursery.cancel_scope.cancel()
        return {"env": record.slot, "status": record.status}

    async def _status(self, peer: Peer, request: dict[str, Any], fds: list[int], connection: Connection) -> Any:
        return {
            "xokd": {
                "pid": os.getpid(),
                "runtime": str(self.config.runtime.directory),
                "seconds": time.time() - self._started,
                "without": sorted(self.config.without),
            },
            **self.system.status(),
            "tainted": [
                {"name": entry.name, "device": dev, "reason": self.system.reason(dev, entry)}
                for dev, entry in self.system.catalogue()
                if entry.kind == CatalogueEntry.ROOT and entry.flags & FLAG_TAINTED
            ],
            "environments": [
                {
                    "id": record.slot,
                    "pid": record.pid,
                    "name": record.name,
                    "kind": record.kind,
                    "uid": record.uid,
                    "caller": record.caller,
                    "address": record.address,
                    "seconds": time.time() - record.started,
                }
                for record in self.environments.records.values()
            ],
            "mounts": [
                {
                    "name": mount.name,
                    "device": mount.dev,
                    "directory": mount.directory,
                    "state": mount.state,
                    "env": mount.record.slot if mount.record else 0,
                    "restarts": len(mount.restarts),
                    "uid": mount.user.uid if mount.user else 0,
                }
                for mount in self.mounts.mounts.values()
            ],
            "services": [{"env": slot, **what} for slot, what in self.serving.items()],
        }

    # ---- capabilities

    def _device(self, request: dict[str, Any]) -> int:
        """Where something new goes: the disk named, or the only one."""
        if request.get("disk") is not None:
            return self.system.device_named(str(request["disk"]))
        if len(self.system.disks) > 1:
            raise BadCall(f"there are {len(self.system.disks)} disks: say which with --disk")
        return 1

    def _root(self, name: str, disk: str | None = None) -> tuple[int, CatalogueEntry]:
        """The root called `name` and its device, on all disks or the one named.  Raises NotFound, BadCall."""
        only = None if disk is None else self.system.device_named(str(disk))
        found = [
            (dev, entry)
            for dev, entry in self.system.catalogue()
            if entry.kind == CatalogueEntry.ROOT and entry.name == name and only in (None, dev)
        ]
        if not found:
            where = "" if only is None else f" on disk {self.system.disks[only].path}"
            raise NotFound(f"no file system is called {name!r}{where}; `xok list` shows them")
        if len(found) > 1:
            paths = " and ".join(self.system.disks[dev].path for dev, _ in found)
            raise BadCall(f"{name!r} is on {paths}: say which (--disk, or DISK/NAME with --tree)")
        return found[0]

    def _users_tree(self, peer: Peer, text: str) -> Capability:
        """NAME or NAME:ro, or DISK/NAME and so on, for root or the file system's owner."""
        where, _, mode = text.partition(":")
        if mode not in ("", "ro"):
            raise BadCall(f"{text!r}: write NAME or NAME:ro")
        disk, slash, name = where.rpartition("/")
        rights = Right.READ if mode else Right.READ | Right.WRITE
        return self._owners_tree(peer, name, disk if slash else None, rights)[1]

    def _owners_tree(self, peer: Peer, name: str, disk: str | None, rights: int) -> tuple[int, Capability]:
        """Device and capability of a root, for root or the user who made it."""
        dev, entry = self._root(name, disk)
        if peer.uid not in (0, entry.uid):
            raise NotAllowed(f"{name} belongs to user {entry.uid}")
        return dev, _tree(entry, rights)

    def _users_mount(self, peer: Peer, directory: str) -> Mount:
        """The mount on `directory`, for root or the user whose mount it is."""
        mount = self.mounts.mounts.get(directory)
        if mount is None:
            raise NotFound(f"nothing of ours is mounted on {directory}")
        if peer.uid and (mount.user is None or mount.user.uid != peer.uid):
            raise NotAllowed(f"the mount on {directory} is not yours")
        return mount

    def _last_words(self, record: Record) -> str:
        """The end of what it printed, for the person who asked."""
        path = self.config.runtime.logs / f"{record.name.replace(':', '_')}.log"
        with contextlib.suppress(OSError), open(path, errors="replace") as file:
            lines = file.read()[-2000:].strip().splitlines()
            if lines:
                return f": {lines[-1]} (more in {path})"
        return ""


class MakingFailed(XokError):
    """The file system could not be made."""


class ServingFailed(XokError):
    """The web server did not come up."""


def _tree(entry: CatalogueEntry, rights: int) -> Capability:
    return Capability(TREE, entry.capability, rights, entry.name)


def _name(text: Any) -> str:
    if not isinstance(text, str) or not text or len(text.encode()) > 64 or "/" in text or not text.isprintable():
        raise BadCall(f"{text!r} is no name: 1 to 64 bytes, without a slash")
    if text.startswith("-"):
        raise BadCall(f"{text!r} is no name: it begins like an option")
    return text


def _check_sealed(fds: list[int]) -> None:
    """Code in memory that nobody can change: every server of a mount runs the same, and the descriptor that we keep is
    not of a file that a user serves himself."""
    try:
        seals = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if len(fds) > 1 or seals & CODE_SEALS != CODE_SEALS:
        raise BadCall("the file system's code has to come in one sealed memory file")


def _users_directory(peer: Peer, place: int) -> str:
    """The path of the directory that a user has opened to mount something there.  Raises NotAllowed.

    A descriptor shows what kind of file system it is of without asking that file system: one that the user serves
    would not need to answer."""
    with open(f"/proc/self/fdinfo/{place}") as file:
        number = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    directory = os.readlink(f"/proc/self/fd/{place}")
    kind = kind_of_mount(int(number))
    if kind not in PLACES:
        raise NotAllowed(
            f"{directory} is on {kind or 'a file system of elsewhere'}; users mount on {', '.join(PLACES)}"
        )
    found = os.fstat(place)
    if not stat.S_ISDIR(found.st_mode):
        raise BadCall(f"{directory} is not a directory")
    if found.st_uid != peer.uid:
        raise NotAllowed(f"{directory} belongs to user {found.st_uid}; mount on a directory of your own")
    return directory


def _wait_dead(pid: int) -> None:
    """Wait for a process that is being killed; what it mapped is its own until then."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [])
    os.close(pidfd)


def _limits(peer: Peer) -> dict[str, int]:
    """The caller's own hard limits, which an environment of its gets no more than."""
    if peer.uid == 0:
        return {}
    out = {}
    with open(f"/proc/{peer.pid}/limits") as file:  # prlimit(2) of another user's needs one capability more
        for line in file:
            name = _CARRIED_LIMITS.get(line[:26].strip())
            hard = line[47:68].strip()
            if name is not None and hard != "unlimited":
                out[name] = int(hard)
    return out


async def _check_idle(directory: str, else_: str) -> None:
    """Raises InUse, naming a process that uses the mount and what one can do besides closing it."""
    pid = await trio.to_thread.run_sync(_user_of, directory, abandon_on_cancel=True)
    if pid is not None:
        raise InUse(f"{directory} is used by process {pid}; close it, or {else_}")


def _user_of(directory: str) -> str | None:
    """A process that has its working directory, or a file open, below the mount."""
    below = directory.rstrip("/") + "/"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
        with contextlib.suppress(OSError):
            links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
        for link in links:
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target == directory or target.startswith(below):
                    return pid
    return None
