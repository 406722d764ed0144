"""Mounts and their servers: a mount lives in the launcher, its server is an environment that may die.

MT-1  A mount that exists is either served, about to be served again, or given up and unmounted: no caller waits for
      ever on a mount that nobody will serve.
MT-2  A server that dies is replaced on the same connection, so open files and working directories survive it.
MT-3  `umount` returns when the server has flushed and ended.  Root's mount that was detached while somebody
      used it is served until nobody does any more, and counts as a mount until then; `end` does not wait for that.
MT-4  A user's mount is served under that user's limits, by code that cannot change meanwhile, and nobody waits for it
      but that user (`fusemount`, F-4).
MT-5  A file system has one mount, since it has one writer; but one whose root's type has a protected method, which
      holds whatever its writers do, has any number, each with a server of its own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from dataclasses import dataclass, field

import trio

from xok_host.abi.errors import Exists, Gone, InUse, NotFound, XokError
from xok_host.host import fusemount
from xok_host.host.environments import Environments, Program, Record, describe_status, last_words
from xok_host.host.launchlink import LaunchError, LaunchLink
from xok_host.host.mountinfo import mounts_now
from xok_host.kernel.capability import Capability

log = logging.getLogger("xok.mounts")

MODULE = "mounts.program"
OWN_MODULE = "mounts.own"
"""Serves a file system whose code is a file of the user's."""
FILE_SYSTEM = "filesystem"
FUSE = "fuse"
DETACHED = "detached"
"""State of a mount that is out of sight, and served until nobody uses it any more."""
MAX_RESTARTS = 5
"""Within `RESTART_SECONDS`; a server that dies more often is not started again."""
RESTART_SECONDS = 60.0
READY_SECONDS = 30.0
FLUSH_SECONDS = 120.0
"""How long a server may take to write everything back when its mount is gone."""
USER_FLUSH_SECONDS = 20.0
"""The same for a user's server, for which nobody else shall have to wait."""
STOP_SECONDS = 2.0
"""For a server that never answered."""
LAST_USE_SECONDS = 2.0
"""How long those who have files open may still use a mount that is ended."""


@dataclass(slots=True, frozen=True)
class User:
    """Whose mount it is.  `place`: a descriptor (O_PATH) of the directory, used while the mount is made."""

    uid: int
    gid: int
    limits: dict[str, int]
    place: int


@dataclass(slots=True, eq=False)
class Mount:
    name: str
    directory: str
    dev: int
    capability: Capability
    init: str = ""
    state: str = "starting"
    record: Record | None = None
    restarts: list[float] = field(default_factory=list)
    leaving: bool = False
    user: User | None = None
    program: int = -1
    """Descriptor of the sealed memory that holds the file system's code; closed with the mount."""
    gone: trio.Event = field(default_factory=trio.Event)


class Mounts:
    """All mounts, by directory."""

    def __init__(self, environments: Environments, link: LaunchLink, nursery: trio.Nursery) -> None:
        self._environments = environments
        self._link = link
        self._nursery = nursery
        self.mounts: dict[str, Mount] = {}

    async def mount(
        self,
        name: str,
        directory: str,
        dev: int,
        capability: Capability,
        *,
        user: User | None = None,
        program: int = -1,
        shared: bool = False,
    ) -> Mount:
        """Mount and serve; returns when the mount answers.  Raises Exists, InUse, OSError.

        `program` is duplicated.  `user`: not root.  `shared`: the name may be mounted already (MT-5)."""
        if directory in self.mounts:
            raise Exists(f"{self.mounts[directory].name} is mounted on {directory}")
        for other in self.mounts.values():
            if (other.name, other.dev) == (name, dev) and not shared:
                still = ", detached and still in use" if other.state == DETACHED else ""
                raise InUse(
                    f"{name} is mounted on {other.directory}{still}; "
                    "only what was made with `xok mkfs --shared` is mounted more than once"
                )
        mount = Mount(name, directory, dev, capability, user=user)
        if program >= 0:
            mount.program = os.dup(program)
        self.mounts[directory] = mount
        try:
            whose = None if user is None else (user.uid, user.gid, user.place)
            fuse, mount.init = await self._link.mount(directory, directory, name, whose)
        except BaseException:
            self._forget(mount)
            raise
        try:
            await self._serve(mount, fuse, answered=False)
            await self._wait_ready(mount)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._give_up(mount, STOP_SECONDS)
            raise
        self._nursery.start_soon(self._supervise, mount)
        return mount

    async def umount(self, directory: str, *, lazy: bool = False) -> None:
        """Unmount and wait until everything is written; `lazy` detaches, and does not wait for those who use root's.

        Raises NotFound, InUse; MountFailed if the server could not finish."""
        mount = self.mounts.get(directory)
        if mount is None:
            raise NotFound(f"nothing of ours is mounted on {directory}")
        if mount.state == DETACHED:
            raise InUse(f"{directory} is detached already, and {mount.name} is served until nobody uses it any more")
        mount.leaving = True
        try:
            await self._link.umount(directory, detach=lazy)
        except LaunchError as error:
            mount.leaving = False
            why = os.strerror(error.errno or 0)
            raise InUse(f"{directory}: {why}; close what uses it, or unmount with --lazy") from None
        lasting = lazy and mount.user is None  # a user's server could keep those who wait for it for ever
        mount.state = DETACHED if lasting else "unmounting"
        seconds = _flush_seconds(mount)
        if lasting:
            with trio.move_on_after(LAST_USE_SECONDS):  # not in use: this ends like any other
                await mount.gone.wait()
                await _check_end(mount)
            return
        with trio.move_on_after(seconds):
            await mount.gone.wait()
        if mount.gone.is_set():
            await _check_end(mount)
            return
        if mount.record is not None and not mount.record.exited.is_set():
            await self._environments.kill(mount.record)
        await mount.gone.wait()
        raise MountFailed(f"{mount.name}: its server did not finish in {seconds:g} s and was killed")

    async def end(self, directory: str) -> None:
        """Unmount, whoever uses it: its server is asked to write everything back and to end.  Raises NotFound."""
        mount = self.mounts.get(directory)
        if mount is None:
            raise NotFound(f"nothing of ours is mounted on {directory}")
        mount.leaving = True
        if mount.state != DETACHED:
            try:
                await self._link.umount(directory, detach=True)
            except LaunchError as error:
                log.warning("%s: %s", directory, error)
            mount.state = "unmounting"
        with trio.move_on_after(LAST_USE_SECONDS):
            await mount.gone.wait()
            return
        if mount.record is not None and not mount.record.exited.is_set():
            await self._environments.stop(mount.record, _flush_seconds(mount))
        await mount.gone.wait()

    async def _serve(self, mount: Mount, fuse: int, *, answered: bool) -> None:
        """Start a server on the descriptor, which this closes."""
        arguments = [mount.name, "--dev", str(mount.dev), "--fuse-fd", FUSE, "--init", mount.init]
        if answered:
            arguments.append("--answered")
        descriptors, user = {f"fd:{FUSE}": fuse}, mount.user
        if mount.program >= 0:
            descriptors[f"fd:{FILE_SYSTEM}"] = mount.program
        try:
            mount.record = await self._environments.start(
                f"mount:{mount.name}",
                "mount",
                Program(
                    MODULE if mount.program < 0 else OWN_MODULE,
                    arguments,
                    descriptors,
                    {} if user is None else user.limits,
                ),
                caller=0 if user is None else user.uid,
                capabilities=[mount.capability],
            )
        finally:
            os.close(fuse)

    async def _wait_ready(self, mount: Mount) -> None:
        """Until the file system answers.  A server that ends, or says nothing for long, is an error."""
        assert mount.record is not None
        answers = trio.Event()

        async def ask() -> None:
            # Waits in the kernel, in a thread, until INIT was answered; given up with the mount (F-3).
            with contextlib.suppress(OSError):
                if mount.user is None:
                    await trio.to_thread.run_sync(os.statvfs, mount.directory, abandon_on_cancel=True)
                else:
                    await self._link.answers(mount.directory)
                answers.set()
            nursery.cancel_scope.cancel()

        async def watch(record: Record) -> None:
            await record.exited.wait()
            nursery.cancel_scope.cancel()

        with trio.move_on_after(READY_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                nursery.start_soon(watch, mount.record)
        if not answers.is_set():
            raise MountFailed(
                f"{mount.name}: its server "
                + (
                    f"ended with {describe_status(mount.record.status)}"
                    if mount.record.exited.is_set()
                    else f"does not answer after {READY_SECONDS:g} s"
                )
                + await _see_log(mount)
            )
        mount.state = "serving"

    async def _supervise(self, mount: Mount) -> None:
        """Replace the server when it dies, until the mount is gone."""
        while True:
            assert mount.record is not None
            await mount.record.exited.wait()
            if mount.leaving or not _is_mounted(mount.directory):
                break
            now = time.monotonic()
            mount.restarts = [when for when in mount.restarts if when > now - RESTART_SECONDS] + [now]
            if len(mount.restarts) > MAX_RESTARTS:
                log.error("the server of %s died %d times: unmounting %s", mount.name, MAX_RESTARTS, mount.directory)
                break
            mount.state = "restarting"
            log.warning("the server of %s died; starting another on the same mount", mount.name)
            try:
                fuse, _ = await self._link.fuse(mount.directory)
                await self._serve(mount, fuse, answered=True)
                mount.state = "serving"
            except (XokError, OSError) as error:
                log.error("no new server for %s: %s", mount.name, error)
                break
        await self._give_up(mount)

    async def _give_up(self, mount: Mount, seconds: float | None = None) -> None:
        """Take the mount away, whoever uses it, and wait for its server."""
        mount.leaving = True
        try:
            await self._link.umount(mount.directory, detach=True)
        except Gone:  # the launcher died, and with it the connection: only its mount point is left
            with contextlib.suppress(OSError):
                if mount.user is None:  # the launcher undoes a user's at its end; his path could lead anywhere now
                    await trio.to_thread.run_sync(lambda: fusemount.umount(mount.directory, detach=True))
        except OSError as error:
            if error.errno != errno.ENOENT:  # unmounted in order: nothing is left to take away
                log.warning("%s: %s", mount.directory, error)
        if mount.record is not None and not mount.record.exited.is_set():
            await self._environments.stop(mount.record, seconds or _flush_seconds(mount))
        self._forget(mount)
        mount.gone.set()

    def _forget(self, mount: Mount) -> None:
        if self.mounts.pop(mount.directory, None) is mount and mount.program >= 0:
            os.close(mount.program)


class MountFailed(XokError):
    """The mount did not come up, or did not end well."""


async def _check_end(mount: Mount) -> None:
    """Raises MountFailed if the server, which has ended, did not finish what it had to do."""
    if mount.record is not None and mount.record.status:
        how = describe_status(mount.record.status)
        raise MountFailed(
            f"{mount.name} is unmounted, but its server ended with {how}: what it had not written may be lost"
            + await _see_log(mount)
        )


async def _see_log(mount: Mount) -> str:
    """The end of a sentence about a mount's server: where its own words are, with the last ones if it has ended."""
    assert mount.record is not None
    words = await last_words(mount.record) if mount.record.exited.is_set() else ""
    return f"; see the log mount_{mount.name}.log" + (f"\n{words}" if words else "")


def _flush_seconds(mount: Mount) -> float:
    return FLUSH_SECONDS if mount.user is None else USER_FLUSH_SECONDS


def _is_mounted(directory: str) -> bool:
    """Whether a file system of ours is mounted there, without touching it."""
    return any(point == directory and kind == "fuse.xok" for point, kind in mounts_now())
