"""The FUSE side on a real mount: every request kind, fetching, a successor that takes over a dead server's mount."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyfuse3
import pytest
import trio
from memoryfs import MemoryFileSystem, Node, NotInCore, open_fuse, unmount

from mounts.fuseloop import IN_HEADER, INIT_OPCODE, InitReplay, PatientTrio
from mounts.operations import VolumeOperations


def serve(descriptor: int, request: bytes, *, answered: bool, fs: MemoryFileSystem) -> int:
    """Fork a server for the mount behind `descriptor`; its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        replay = InitReplay(descriptor, request, answered=answered)
        pyfuse3.trio = PatientTrio(-1, replay)
        pyfuse3.init(VolumeOperations(fs, NotInCore), f"/dev/fd/{descriptor}", set(pyfuse3.default_options))
        trio.run(pyfuse3.main)
        status = 0
    finally:
        os._exit(status)


class Mount:
    def __init__(self, directory: Path, make: Callable[[], MemoryFileSystem]) -> None:
        self.directory = directory
        self.descriptor = open_fuse(str(directory))
        ready, _, _ = select.select([self.descriptor], [], [], 5)
        assert ready, "the kernel sends INIT when the mount is made"
        self.request = os.read(self.descriptor, 65536)
        self.pid = serve(self.descriptor, self.request, answered=False, fs=make())

    def kill_server(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def restart(self, fs: MemoryFileSystem) -> None:
        self.kill_server()
        self.pid = serve(self.descriptor, self.request, answered=True, fs=fs)

    def close(self) -> None:
        unmount(str(self.directory))
        os.close(self.descriptor)
        self.kill_server()


@pytest.fixture(params=[0, 3], ids=["warm", "cold"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mount]:
    directory = tmp_path / "mnt"
    directory.mkdir()
    mounted = Mount(directory, lambda: MemoryFileSystem(miss_every=request.param))
    yield mounted
    mounted.close()


def test_the_init_request_is_what_the_replay_expects(mount: Mount) -> None:
    assert IN_HEADER.unpack_from(mount.request)[1] == INIT_OPCODE


def test_files_directories_and_links(mount: Mount) -> None:
    root = mount.directory
    (root / "d").mkdir()
    (root / "d" / "f").write_bytes(b"hello" * 10_000)
    assert (root / "d" / "f").read_bytes() == b"hello" * 10_000
    (root / "l").symlink_to("d/f")
    assert os.readlink(root / "l") == "d/f"
    os.link(root / "d" / "f", root / "hard")
    assert (root / "hard").stat().st_nlink == 2
    os.rename(root / "hard", root / "d" / "g")
    assert sorted(os.listdir(root / "d")) == ["f", "g"]
    with pytest.raises(OSError, match="not empty"):
        (root / "d").rmdir()
    (root / "d" / "f").unlink()
    (root / "d" / "g").unlink()
    (root / "d").rmdir()
    assert sorted(os.listdir(root)) == ["l"]


def test_attributes(mount: Mount) -> None:
    path = mount.directory / "f"
    path.write_bytes(b"0123456789")
    os.truncate(path, 4)
    assert path.read_bytes() == b"0123"
    os.chmod(path, 0o640)
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    os.chown(path, 5, 6)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 5, 6)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert os.statvfs(path).f_namemax == 255


MNT_FORCE = 1


class Contended(MemoryFileSystem):
    """Each write comes with news that another environment wants the file."""

    def write(self, ino: int, offset: int, data: bytes) -> int:
        self.on_invalidate(ino)
        return super().write(ino, offset, data)


def test_an_invalidation_does_not_wait_for_the_request_that_its_server_is_to_answer(tmp_path: Path) -> None:
    """INV-1: the kernel holds the pages of a WRITE until it is answered, and an invalidation waits for them."""
    directory = tmp_path / "mnt"
    directory.mkdir()
    mounted = Mount(directory, Contended)
    try:
        words = ["dd", "if=/dev/zero", f"of={directory}/f", "bs=1000", "count=64", "status=none"]  # parts of pages
        writer = subprocess.Popen(words)
        try:
            assert writer.wait(30) == 0
        except subprocess.TimeoutExpired:
            ctypes.CDLL(None).umount2(os.fsencode(directory), MNT_FORCE)  # or neither would ever end
            writer.wait()
            pytest.fail("the server waits for itself")
        assert (directory / "f").stat().st_size == 64_000
    finally:
        mounted.close()


class Elsewhere(MemoryFileSystem):
    """A shared file system: whoever looks for the name "change" has another mount write `f` and set its mtime back."""

    shared = True

    def lookup(self, parent: int, name: bytes) -> Node:
        if name == b"change":
            node = self.nodes[self.nodes[parent].names[b"f"]]
            node.data[:] = b"%04d" % (int(bytes(node.data)) + 1)
            node.ctime_ns += 1
        return super().lookup(parent, name)


def test_pages_are_good_although_only_ctime_tells_that_another_mount_wrote(tmp_path: Path) -> None:
    """OPS-1: nobody says so (`on_invalidate`), the attributes alone do, and before the kernel gets them."""
    directory = tmp_path / "mnt"
    directory.mkdir()
    mounted = Mount(directory, Elsewhere)
    try:
        (directory / "f").write_bytes(b"0000")
        with open(directory / "f", "rb", buffering=0) as file:
            times = set()
            for number in range(50):
                assert os.pread(file.fileno(), 10, 0) == b"%04d" % number
                times.add(os.fstat(file.fileno()).st_mtime_ns)
                assert not (directory / "change").exists()
            assert len(times) == 1
    finally:
        mounted.close()


def test_writing_takes_setuid_away(mount: Mount) -> None:
    path = mount.directory / "f"
    path.write_bytes(b"x")
    os.chmod(path, 0o4755)
    with open(path, "r+b") as file:
        file.write(b"y")
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    os.chmod(path, 0o6755)
    os.chown(path, 1, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_an_open_file_outlives_its_name(mount: Mount) -> None:
    path = mount.directory / "f"
    with open(path, "w+b") as file:
        file.write(b"still here")
        file.flush()
        path.unlink()
        file.seek(0)
        assert file.read() == b"still here"


def test_many_entries_are_listed_once_each(mount: Mount) -> None:
    names = [f"name-{i:04}" + "x" * (i % 200) for i in range(500)]
    for name in names:
        (mount.directory / name).touch()
    assert sorted(os.listdir(mount.directory)) == sorted(names)


def test_a_listing_has_the_directory_and_its_parent(mount: Mount) -> None:
    (mount.directory / "d" / "e").mkdir(parents=True)
    listed = subprocess.run(["ls", "-ai", str(mount.directory / "d" / "e")], capture_output=True, text=True, check=True)
    numbers = {name: int(number) for number, name in (line.split() for line in listed.stdout.splitlines())}
    assert numbers == {
        ".": (mount.directory / "d" / "e").stat().st_ino,
        "..": (mount.directory / "d").stat().st_ino,
    }


def test_extended_attributes_are_refused_clearly(mount: Mount) -> None:
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(mount.directory, "user.a", b"b")


def test_unprivileged_users_are_checked_by_the_kernel(mount: Mount) -> None:
    path = mount.directory / "secret"
    path.write_bytes(b"x")
    os.chmod(path, 0o600)
    os.chmod(mount.directory.parent, 0o755)
    refused = subprocess.run(["cat", str(path)], user=12345, group=12345, capture_output=True, text=True)
    assert refused.returncode != 0 and "Permission denied" in refused.stderr


def test_a_successor_takes_the_mount_over(mount: Mount) -> None:
    path = mount.directory / "f"
    path.write_bytes(b"before")
    fresh = MemoryFileSystem()
    node = fresh.create(fresh.root_ino, b"after", stat.S_IFREG | 0o644, 0, 0)
    node.data[:] = b"from the successor"
    mount.restart(fresh)
    assert (mount.directory / "after").read_bytes() == b"from the successor"
    (mount.directory / "new").write_bytes(b"works")
    assert (mount.directory / "new").read_bytes() == b"works"
