"""What a peer sends to xokd's control socket along with a request: xokd never waits for who sent it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.xokkit import Xok, instance, public_directory

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no FUSE on this host")

HANGS_AT_CLOSE = """
import stat, sys
import pyfuse3, trio

class Hanging(pyfuse3.Operations):
    def _attributes(self, inode):
        found = pyfuse3.EntryAttributes()
        found.st_ino, found.st_nlink, found.st_size = inode, 1, 4
        found.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o644
        return found
    async def getattr(self, inode, ctx=None):
        return self._attributes(inode)
    async def lookup(self, parent, name, ctx=None):
        return self._attributes(2)
    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)
    async def read(self, fh, offset, size):
        return b"pass"[offset:offset + size]
    async def flush(self, fh):
        print("asked", flush=True)
        await trio.sleep_forever()

async def main():
    print("up", flush=True)
    await pyfuse3.main()

pyfuse3.init(Hanging(), sys.argv[1], {"fsname=hanging"})
trio.run(main)
"""


@contextmanager
def hanging_file_system(directory: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A file whose server never answers a close."""
    place = directory / "hanging"
    place.mkdir()
    server = subprocess.Popen([sys.executable, "-c", HANGS_AT_CLOSE, str(place)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None and server.stdout.readline() == "up\n"
        yield place / "file", server
    finally:
        server.kill()  # the connection ends with its server, and with it all that waits
        server.wait()
        subprocess.run(["umount", "-l", place], check=False)


@pytest.fixture
def xok() -> Iterator[Xok]:
    with public_directory() as directory, instance(directory) as xok:
        xok.up()
        yield xok


ATTACK = """
import json, os, socket, sys, time

for text in sys.argv[3:]:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.connect(sys.argv[1])
    file = os.open(sys.argv[2], os.O_RDONLY)
    socket.send_fds(peer, [text.encode()], [file, file])
    print(peer.recv(1 << 16).decode(), flush=True)
time.sleep(1000)
"""
REQUESTS: list[dict[str, object]] = [
    {"op": "status"},
    {"op": "run", "name": "x", "arguments": []},
    {"op": "mkfs", "name": "x", "type": "cffs"},
    {"op": "mount", "name": "x", "directory": "/"},
    {"op": "no such"},
]


def test_a_file_whose_server_never_answers_holds_up_nobody(xok: Xok) -> None:
    with hanging_file_system(xok.directory) as (path, server):
        # A process of its own: ours would wait for that server when it starts another.
        words = [sys.executable, "-c", ATTACK, xok.runtime / "xokd.sock", path, *map(json.dumps, REQUESTS)]
        attacker = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        try:
            assert attacker.stdout is not None and server.stdout is not None
            for _ in REQUESTS:
                answer = json.loads(attacker.stdout.readline())
                assert "pipes, memory files" in answer["error"] and answer["exit"] == 2
            assert server.stdout.readline() == "asked\n", "closing it did ask, in a thread"
            xok("status")
            xok("mkfs", "usual")
            threads = os.listdir(f"/proc/{xok.status()['xokd']['pid']}/task")
            assert len(threads) < 12
        finally:
            server.kill()
            attacker.kill()
            attacker.wait()
    xok("status")


def test_what_commands_send_is_taken(xok: Xok) -> None:
    with hanging_file_system(xok.directory) as (path, _):
        # The command itself reads a program from wherever it is, and would wait for it: xokd gets a copy.
        client = xok.start("run", path)
        time.sleep(1)
        xok("status")
        client.kill()
    program = xok.program("def main(env, argv):\n    print('hello', argv)\n")
    assert xok("run", program, "you") == "hello ['you']\n"
