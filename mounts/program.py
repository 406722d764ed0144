"""The mount program: a libOS that shows one C-FFS volume to the host through FUSE.

Started by the launcher in an environment of its own, with the descriptor of a FUSE mount that the launcher made and
keeps: when this program dies, the mount stays and a successor takes it over.  Arguments (argparse, below) come from
xokd.  Ends when the volume is unmounted or xokd asks it to stop; what was answered is flushed first.
"""

from __future__ import annotations

import argparse
import gc
import logging
from typing import Any

import pyfuse3
import trio

from libfs.cffs.filesystem import CFFS
from libfs.cffs.filesystem import NotInCore as CffsNotInCore
from mounts.fuseloop import InitReplay, PatientTrio
from mounts.operations import VolumeOperations
from xok_host.abi.calls import Event
from xok_host.abi.client import Environment
from xok_host.abi.errors import WrongType
from xok_host.abi.types import Right

log = logging.getLogger("xok.mount")

FLUSH_SECONDS = 1.0
"""How long an answered operation may wait in the overlay before it crosses to xokd."""
SYNC_SECONDS = 5.0
"""How long a crossed change may wait before it goes to disk, as long as nobody asks for fsync."""


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="mount")
    options.add_argument("volume", help="name in the root catalogue")
    options.add_argument("--dev", type=int, default=1)
    options.add_argument("--fuse-fd", required=True, help="name of the passed FUSE descriptor")
    options.add_argument("--init", required=True, help="the kernel's INIT request, in hexadecimal")
    options.add_argument("--answered", action="store_true", help="an earlier server answered INIT already")
    return options


def main(env: Environment, argv: list[str]) -> int:
    options = parser().parse_args(argv)
    try:
        fs = CFFS.mount(env, options.dev, options.volume, tree(env))
    except WrongType as refusal:
        raise SystemExit(f"{refusal.detail}: its code has to be given (`xok mount --program FILE`)") from None
    return trio.run(serve, env, options, fs)


def tree(env: Environment) -> int:
    """Index of the one tree capability that the environment was given."""
    return next(cap.index for cap in env.caps if cap.kind == "tree" and cap.rights & Right.WRITE)


async def serve(env: Environment, options: argparse.Namespace, fs: Any) -> int:
    """Answer FUSE from `fs` (libfs.api.FileSystem) until the mount is gone or xokd asks to stop."""
    # What is here by now stays, and a file system's caches make no cycles: look for those rarely.
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    operations = VolumeOperations(fs, CffsNotInCore)
    fuse_fd = env.extra_fds[f"fd:{options.fuse_fd}"]
    replay = InitReplay(fuse_fd, bytes.fromhex(options.init), answered=options.answered)
    pyfuse3.trio = PatientTrio(env.fileno(), replay, fs.idle)  # type: ignore[attr-defined]
    mount_options = set(pyfuse3.default_options) | {"fsname=xok"}  # the launcher gave it its name
    pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", mount_options)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_channel, env, nursery.cancel_scope)
            nursery.start_soon(_events, env, fs, nursery.cancel_scope)
            nursery.start_soon(_timers, fs)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=False)
        fs.close()
    return 0


async def _channel(env: Environment, scope: trio.CancelScope) -> None:
    """Take completions and events as they come; stop when xokd asks.  Waits for nothing else: others wait for this."""
    while not env.stop_requested:
        await trio.lowlevel.wait_readable(env.fileno())
        env.drain()
        env.dispatch()
    scope.cancel()


async def _events(env: Environment, fs: Any, scope: trio.CancelScope) -> None:
    """Let the libFS do what xokd and other environments ask for, and stop when asked, whoever dispatched the event."""
    wake = trio.Event()
    inner = env.on_event

    def on_event(event: Event, r0: int, r1: int) -> None:
        inner(event, r0, r1)
        wake.set()
        if event is Event.STOP:
            scope.cancel()

    env.on_event = on_event
    while True:
        await fs.aevents()
        await wake.wait()
        wake = trio.Event()


async def _timers(fs: Any) -> None:
    elapsed = 0.0
    while True:
        await trio.sleep(FLUSH_SECONDS)
        elapsed += FLUSH_SECONDS
        try:
            fs.flush()
            if elapsed >= SYNC_SECONDS:
                elapsed = 0.0
                await fs.async_all()
        except Exception:
            log.exception("background flush failed; the next fsync reports it")
