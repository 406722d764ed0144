"""Several FUSE mounts of one shared volume: each sees at once what the others did, whatever happens to them.

A mistake here leaves processes that wait in the kernel for ever: what touches a mount runs with a limit, after which
the connections are aborted, and then the test fails.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host.xokkit import Xok, instance, public_directory
from xok_host.cli import exits

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no FUSE on this host")

MNT_FORCE = 1
LIMIT_SECONDS = 150.0
USER = 65534
_NUMBERS = itertools.count()


class Mounts:
    """Mounts of one volume."""

    def __init__(self, xok: Xok, volume: str) -> None:
        self.xok = xok
        self.volume = volume
        self.places: list[Path] = []

    @property
    def tree(self) -> Path:
        """Something to copy."""
        return self.xok.directory / "tree"

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            place = self.xok.directory / f"{self.volume} {len(self.places)}"
            place.mkdir()
            self.xok("mount", self.volume, place)
            self.places.append(place)

    def server(self, number: int) -> int:
        """Process that serves the mount made as number `number`; 0: none just now."""
        status = self.xok.status()
        slot = next(mount["env"] for mount in status["mounts"] if mount["directory"] == str(self.places[number]))
        return int(next((env["pid"] for env in status["environments"] if env["id"] == slot), 0))

    def abort(self) -> None:
        for place in self.places:
            ctypes.CDLL(None).umount2(os.fsencode(place), MNT_FORCE)


@pytest.fixture(scope="module")
def xok() -> Iterator[Xok]:
    with public_directory() as directory, instance(directory, "256M") as xok:
        xok.up()
        _make_tree(directory / "tree")
        yield xok
        xok("down")
        assert xok("check", xok.image).splitlines()[-1] == "clean"


@pytest.fixture
def mounts(xok: Xok) -> Iterator[Mounts]:
    """Two mounts of a volume of the test's own."""
    found = Mounts(xok, f"vol{next(_NUMBERS)}")
    xok("mkfs", found.volume, "--shared")
    watchdog = threading.Timer(LIMIT_SECONDS, found.abort)
    watchdog.daemon = True
    watchdog.start()
    try:
        found.add(2)
        yield found
        alive = watchdog.is_alive()
    finally:
        watchdog.cancel()
        for place in found.places:
            xok.try_("umount", place, "--lazy")
    assert alive, f"mounts did not answer for {LIMIT_SECONDS:g} s and were aborted"


def test_names_and_attributes_are_seen_at_once(mounts: Mounts) -> None:
    mounts.add()
    for turn in range(12):
        one, other, third = (mounts.places[(turn + at) % 3] for at in range(3))
        name = f"name{turn}"
        (one / name).mkdir()
        (other / name / "f").write_text("x" * turn)
        assert (third / name / "f").stat().st_size == turn
        assert (one / name / "f").stat().st_ino == (third / name / "f").stat().st_ino
        os.chmod(third / name / "f", 0o640)
        assert (other / name / "f").stat().st_mode & 0o777 == 0o640
        os.rename(one / name / "f", one / f"moved{turn}")
        assert os.listdir(other / name) == [] and not (third / name / "f").exists()
        os.link(third / f"moved{turn}", third / name / "g")
        assert (one / f"moved{turn}").stat().st_nlink == 2
        with pytest.raises(FileExistsError):
            (other / name / "g").touch(exist_ok=False)
        (other / name / "g").unlink()
        (one / name).rmdir()
        assert not (other / name).exists() and not (third / name).exists()
    expected = sorted(f"moved{turn}" for turn in range(12))
    assert all(sorted(os.listdir(place)) == expected for place in mounts.places)


def test_contents_are_seen_at_once_by_who_has_the_file_open(mounts: Mounts) -> None:
    one, other = mounts.places
    (one / "f").write_bytes(b"a" * 10_000)
    with open(one / "f", "r+b", buffering=0) as mine, open(other / "f", "r+b", buffering=0) as his:
        for number in range(1, 30):
            writer, reader = (mine, his) if number % 2 else (his, mine)
            assert os.pread(reader.fileno(), 20_000, 0) == os.pread(writer.fileno(), 20_000, 0)
            text = b"%d" % number * 3000
            os.pwrite(writer.fileno(), text, number * 7)
            assert os.pread(reader.fileno(), len(text), number * 7) == text
        os.ftruncate(mine.fileno(), 5)
        assert os.pread(his.fileno(), 100, 0) == b"aaaaa" and os.fstat(his.fileno()).st_size == 5


def test_contents_are_seen_although_the_time_was_set_back(mounts: Mounts) -> None:
    """The kernel goes by size and mtime: what was written under the old ones shows in ctime."""
    one, other = mounts.places
    (one / "f").write_bytes(b"old")
    with open(other / "f", "rb", buffering=0) as his:
        for text in (b"new", b"NEW", b"123"):
            before = os.fstat(his.fileno())
            assert len(os.pread(his.fileno(), 10, 0)) == 3
            with open(one / "f", "r+b", buffering=0) as mine:
                mine.write(text)
                os.utime(mine.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
            assert os.pread(his.fileno(), 10, 0) == text
            assert os.fstat(his.fileno()).st_mtime_ns == before.st_mtime_ns


def test_appends_of_two_mounts_do_not_overwrite_each_other(mounts: Mounts) -> None:
    files = [open(place / "log", "ab", buffering=0) for place in mounts.places]
    for number in range(40):
        files[number % 2].write(b"line %d\n" % number)
    for file in files:
        file.close()
    for place in mounts.places:
        assert (place / "log").read_bytes() == b"".join(b"line %d\n" % number for number in range(40))


def test_what_is_mapped_is_brought_up_to_date(mounts: Mounts) -> None:
    one, other = mounts.places
    (one / "f").write_bytes(b"old" * 2000)
    with open(other / "f", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:3] == b"old"
        with open(one / "f", "r+b") as writing:
            writing.write(b"new")
        _wait_until(lambda: mapped[:3] == b"new", "the new contents")


def test_a_handle_of_a_removed_file_never_shows_another(mounts: Mounts) -> None:
    one, other = mounts.places
    (one / "f").write_text("mine")
    number = (one / "f").stat().st_ino
    with open(other / "f", "r+b", buffering=0) as his:
        (one / "f").unlink()
        (one / "g").write_text("a secret")
        assert (one / "g").stat().st_ino == number, "the inode is used again"
        for attempt in (lambda: os.pread(his.fileno(), 10, 0), lambda: os.pwrite(his.fileno(), b"x", 0)):
            with pytest.raises(OSError) as raised:
                attempt()
            assert raised.value.errno in (errno.ESTALE, errno.EIO)
    assert (other / "g").read_text() == "a secret"


def test_a_listing_shows_each_name_once_while_others_take_the_lock(mounts: Mounts) -> None:
    one, other = mounts.places
    names = {f"name-{number:04}" + "x" * 150 for number in range(300)}
    for name in names:
        (one / name).touch()
    listed = []
    for entry in os.scandir(other):
        listed.append(entry.name)
        if len(listed) % 20 == 0:
            (one / listed[-20]).unlink()  # what comes after it is no longer where it was
    assert len(listed) == len(set(listed)) and set(listed) == names


def test_an_open_file_without_a_name_outlives_the_death_of_another_mount(mounts: Mounts) -> None:
    """The successor comes when nobody has the lock, and leaves the orphan list alone."""
    one, other = mounts.places
    (one / "f").write_text("still here")
    with open(one / "f", "rb", buffering=0) as file:
        (one / "f").unlink()
        (other / "g").touch()
        dying = mounts.server(1)
        os.kill(dying, signal.SIGKILL)
        _wait_until(lambda: mounts.server(1) not in (0, dying), "a successor")
        assert os.listdir(other) in (["g"], [])
        assert os.pread(file.fileno(), 100, 0) == b"still here"


def test_directories_do_not_move_into_each_other(mounts: Mounts) -> None:
    one, other = mounts.places
    for name in ("a", "b"):
        (one / name).mkdir()
    inside = os.open(other / "a", os.O_RDONLY)
    os.rename(one / "a", one / "b" / "a")
    top = os.open(other, os.O_RDONLY)
    with pytest.raises(OSError):
        os.rename("b", "b", src_dir_fd=top, dst_dir_fd=inside)
    os.close(inside)
    os.close(top)
    for place in mounts.places:
        assert sorted(str(path.relative_to(place)) for path in place.rglob("*")) == ["b", "b/a"]


WORK = """
cd "$1"
for round in 1 2 3; do
    cp -r "$3" copy$2 && mv copy$2 moved$2 && tar -cf $2.tar moved$2 || exit 1
    mkdir box$2 && tar -xf $2.tar -C box$2 && diff -r "$3" box$2/moved$2 || exit 2
    rm -r moved$2 && mv box$2/moved$2 same$2.$round && rmdir box$2 && rm $2.tar || exit 3
done
"""


def test_work_on_two_mounts_in_one_directory(mounts: Mounts) -> None:
    _assert_worked(mounts, [_work(mounts, 0), _work(mounts, 1)])


def test_one_goes_on_when_another_dies(mounts: Mounts) -> None:
    victim = subprocess.Popen(
        ["cp", "-r", str(mounts.tree), str(mounts.places[0] / "whole")], stderr=subprocess.DEVNULL
    )
    worker = _work(mounts, 1)
    for _ in range(3):
        time.sleep(0.5)
        dying = mounts.server(0)
        os.kill(dying, signal.SIGKILL)
        _wait_until(lambda dying=dying: mounts.server(0) not in (0, dying), "a successor")  # type: ignore[misc]
    _assert_worked(mounts, [worker])
    victim.wait(60)
    (mounts.places[0] / "after").write_text("served again")
    assert (mounts.places[1] / "after").read_text() == "served again"
    assert sorted(os.listdir(mounts.places[0])) == sorted(os.listdir(mounts.places[1]))


def test_a_mount_that_does_not_let_go_loses_the_lock(mounts: Mounts) -> None:
    one, other = mounts.places
    (one / "before").write_text("x")
    stopped = mounts.server(0)
    os.kill(stopped, signal.SIGSTOP)
    try:
        began = time.monotonic()
        (other / "f").write_text("y")
        assert 0.5 < time.monotonic() - began < 20
        assert (other / "before").stat()
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert (one / "f").read_text() == "y"


def test_a_user_mounts_what_root_has_mounted(mounts: Mounts) -> None:
    xok = mounts.xok
    user = {"user": USER, "group": USER, "extra_groups": []}
    xok("mkfs", "hers", "--shared", **user)
    for name, who in (("roots", {}), ("users", user)):
        (xok.directory / name).mkdir()
        os.chown(xok.directory / name, USER, USER)
        xok("mount", "hers", xok.directory / name, **who)
    command = ["sh", "-c", 'echo "from her" > "$1"/f', "sh", str(xok.directory / "users")]
    subprocess.run(command, check=True, timeout=60, **user)
    assert (xok.directory / "roots" / "f").read_text() == "from her\n"
    (xok.directory / "roots" / "f").write_text("from root\n")
    command = ["cat", str(xok.directory / "users" / "f")]
    assert subprocess.run(command, check=True, timeout=60, capture_output=True, **user).stdout == b"from root\n"
    xok("umount", xok.directory / "users", **user)
    xok("umount", xok.directory / "roots")


def test_an_ordinary_volume_is_mounted_once(mounts: Mounts) -> None:
    xok = mounts.xok
    xok("mkfs", "plain")
    places = [xok.directory / "plain", xok.directory / "again"]
    for place in places:
        place.mkdir()
    xok("mount", "plain", places[0])
    done = xok.try_("mount", "plain", places[1])
    assert done.status == exits.REFUSED and "is mounted on" in done.err and "--shared" in done.err
    done = xok.try_("mount", mounts.volume, mounts.places[0])
    assert done.status == exits.REFUSED and "is mounted on" in done.err
    xok("umount", places[0])


def _make_tree(root: Path) -> None:
    chance = random.Random(7)
    for number in range(80):
        directory = root / f"directory{number % 7}" / f"inner{number % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        size = chance.choice([0, 100, 4096, 5000, 30_000, 200_000])
        (directory / f"file{number}").write_bytes(chance.randbytes(size))


def _work(mounts: Mounts, number: int) -> subprocess.Popen[str]:
    command = ["sh", "-c", WORK, "sh", str(mounts.places[number]), str(number), str(mounts.tree)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _assert_worked(mounts: Mounts, workers: list[subprocess.Popen[str]]) -> None:
    """All is there, the same on all mounts."""
    for worker in workers:
        said, _ = worker.communicate(timeout=LIMIT_SECONDS + 10)
        assert worker.returncode == 0, said
    copies = sorted(path.name for path in mounts.places[-1].glob("same*"))
    assert len(copies) == 3 * len(workers)
    for place in mounts.places:
        for copy in copies:
            done = subprocess.run(["diff", "-r", str(mounts.tree), str(place / copy)], capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (0, "")


def _wait_until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s"
        time.sleep(0.02)
