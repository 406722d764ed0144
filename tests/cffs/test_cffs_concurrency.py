"""Many requests at once, as a mount has them: operations between the steps of synchronisations, growths, fetches."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
from cffs_harness import Volume

from libfs.api import NotInCore


class Client:
    """One process's work in a directory of its own and in one that all share; what it must find there."""

    def __init__(self, volume: Volume, number: int, own: int, shared: int, seed: int) -> None:
        self.fs = volume.fs
        self.rng = random.Random(seed * 100 + number)
        self.number = number
        self.places = {own: "own", shared: "shared"}
        self.directories = [own, shared]
        self.files: dict[tuple[int, bytes], tuple[int, bytes]] = {}

    async def call(self, operation: Callable[..., Any], *args: Any) -> Any:
        for _ in range(200):
            try:
                return operation(*args)
            except NotInCore as missing:
                await self.fs.afetch(missing.requests)
        raise AssertionError("never in core")

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await self.step()
            if self.rng.random() < 0.3:
                await trio.lowlevel.checkpoint()

    async def step(self) -> None:
        rng, fs = self.rng, self.fs
        directory = rng.choice(self.directories)
        name = b"%d-%d" % (self.number, rng.randrange(60)) + b"z" * rng.choice([0, 30, 200])
        what = rng.random()
        if what < 0.5:
            if (directory, name) not in self.files:
                data = b"%d" % rng.randrange(1000) * rng.choice([1, 2000])
                ino = (await self.call(fs.create, directory, name, 0o644, 0, 0)).ino
                self.files[directory, name] = (ino, b"")
                await self.call(fs.write, ino, 0, data)
                self.files[directory, name] = (ino, data)
            return
        if not self.files:
            return
        place = rng.choice(list(self.files))
        ino, data = self.files[place]
        if what < 0.65:
            await self.call(fs.unlink, *place)
            del self.files[place]
        elif what < 0.8:
            if (directory, name) == place:
                return
            await self.call(fs.rename, *place, directory, name)
            del self.files[place]
            self.files[directory, name] = (ino, data)
        elif what < 0.9:
            found = await self.call(fs.lookup, *place)
            assert found.ino == ino and found.nlink == 1
            views = await self.call(fs.read, ino, 0, 10000)
            assert b"".join(map(bytes, views)) == data
        elif what < 0.95:
            await self.call(fs.setattr, ino)
        else:
            await fs.afsync(ino)

    async def check(self) -> None:
        for (directory, name), (ino, data) in self.files.items():
            assert (await self.call(self.fs.lookup, directory, name)).ino == ino
            assert b"".join(map(bytes, await self.call(self.fs.read, ino, 0, 10000))) == data


@pytest.mark.parametrize("seed, shared", [(0, False), (1, False), (2, False), (0, True), (1, True)])
def test_clients_do_not_disturb_each_other(seed: int, shared: bool) -> None:
    volume = Volume(8192, shared=shared)
    fs = volume.fs
    original = volume.env.dispatch
    rung = [False]

    def ring() -> None:
        rung[0] = True

    def late() -> int:
        """After the doorbell completions come when the loop runs again, not at once."""
        if rung[0]:
            rung[0] = False
            return 0
        return original()

    async def pump() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            original()

    async def background() -> None:
        while True:
            for _ in range(60):
                await trio.lowlevel.checkpoint()
            fs.flush()
            await fs.async_all()

    clients: list[Client] = []

    async def main() -> None:
        shared = volume("mkdir", volume.root, b"shared", 0o755, 0, 0).ino
        for number in range(170):
            volume.file(shared, b"before%d" % number)
        for number in range(5):
            own = volume("mkdir", volume.root, b"own%d" % number, 0o755, 0, 0).ino
            clients.append(Client(volume, number, own, shared, seed))
        volume.env.dispatch, volume.env.ring_doorbell = late, ring  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump)
            nursery.start_soon(background)
            async with trio.open_nursery() as workers:
                for client in clients:
                    workers.start_soon(client.run, 120)
            nursery.cancel_scope.cancel()
        for client in clients:
            await client.check()

    trio.run(main)
    assert max(node.level for node in fs.nodes.values() if node.is_directory) >= 1, "the shared directory has grown"
    volume.env.dispatch = original  # type: ignore[method-assign]
    assert not fs.errors
    volume.check_disk()
    files = {place: entry for client in clients for place, entry in client.files.items()}
    volume.remount()
    for (directory, name), (ino, data) in files.items():
        assert volume("lookup", directory, name).ino == ino
        assert volume.contents(ino) == data
    volume.check_disk()
