"""One xokd, two disk images: names, mounts, a disk that fails, and both clean at the end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.xokkit import Xok, public_directory
from xok_host.cli import exits
from xok_host.kernel.xn.io import FAILED_NS

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no FUSE on this host")


class TwoDisks(Xok):
    @property
    def second(self) -> Path:
        return self.directory / "second.img"

    def up(self, *arguments: str | Path) -> None:
        disks = ("--disk", self.image, "--disk", self.second)
        self("up", *disks, "--memory", "128M", *(arguments or ("--no-network",)))

    def place(self, name: str) -> Path:
        (self.directory / name).mkdir(exist_ok=True)
        return self.directory / name


@pytest.fixture
def xok() -> Iterator[TwoDisks]:
    with public_directory() as directory:
        xok = TwoDisks(directory)
        for image in (xok.image, xok.second):
            xok("format", image, "--size", "64M")
        xok.up()
        try:
            yield xok
        finally:
            if (xok.runtime / "xokd.sock").exists():
                xok.try_("down", "--force")


def test_two_disks_from_format_to_check(xok: TwoDisks) -> None:
    done = xok.try_("mkfs", "home")
    assert done.status == exits.USAGE and "--disk" in done.err
    xok("mkfs", "home", "--disk", "1")
    xok("mkfs", "archive", "--disk", xok.second)
    home, archive = xok.place("home"), xok.place("archive")
    xok("mount", "home", home)  # a name that one disk has needs no disk
    xok("mount", "archive", archive)
    (home / "letter").write_text("dear")
    shutil.copytree(Path(__file__).parent, archive / "tests", symlinks=True)
    os.sync()
    listed = json.loads(xok("list", "--json"))
    assert {(entry["name"], entry["device"], entry["disk"]) for entry in listed if entry["kind"] == "root"} == {
        ("home", 1, str(xok.image)),
        ("archive", 2, str(xok.second)),
    }
    assert str(xok.second) in xok("list")
    disks = xok.status()["disks"]
    assert [(disk["device"], disk["path"]) for disk in disks] == [(1, str(xok.image)), (2, str(xok.second))]
    assert disks[1]["blocks"] - disks[1]["free"] > disks[0]["blocks"] - disks[0]["free"]  # each has its own
    said = xok("status")
    assert f"disk 1       {xok.image}" in said and f"disk 2       {xok.second}" in said
    assert "archive of disk 2" in said
    xok("down")
    for image, names in ((xok.image, {"home"}), (xok.second, {"archive"})):
        report = json.loads(xok("check", image, "--json"))
        assert report["sound"] and report["was_clean"] and names <= set(report["trees"])
    xok.up()
    xok("mount", "archive", archive)
    assert (archive / "tests" / Path(__file__).name).read_bytes() == Path(__file__).read_bytes()


def test_one_name_on_both_disks(xok: TwoDisks) -> None:
    for disk in ("1", "2"):
        xok("mkfs", "vol", "--disk", disk)
    place = xok.place("vol")
    done = xok.try_("mount", "vol", place)
    assert done.status == exits.USAGE and str(xok.image) in done.err and str(xok.second) in done.err
    done = xok.try_("mount", "vol", place, "--disk", "3")
    assert done.status != 0 and "no disk 3" in done.err
    xok("mount", "vol", place, "--disk", "2")
    (place / "here").write_text("two")
    other = xok.place("other")
    xok("mount", "vol", other, "--disk", xok.image)
    assert os.listdir(other) == []
    (other / "here").write_text("one")
    assert (place / "here").read_text() == "two"


def test_a_libos_sees_both_and_uses_what_it_was_given(xok: TwoDisks) -> None:
    for disk in ("1", "2"):
        xok("mkfs", "vol", "--disk", disk)
    program = xok.program(
        """
import struct
from libfs.cffs.filesystem import CFFS
from xok_host.abi.errors import BadCapability

def main(env, argv):
    listed = env.call("dev_list", out_bytes=64)
    print(listed.r0, struct.unpack("<2Q", listed.data), sorted(env.freemaps))
    (cap,) = [cap.index for cap in env.caps if cap.kind == "tree"]
    fs = CFFS.mount(env, 2, "vol", cap)
    print(len(fs.nodes) >= 0)
    try:
        CFFS.mount(env, 1, "vol", cap)
    except BadCapability:
        print("refused")
"""
    )
    assert xok("run", "--tree", "2/vol", program).split("\n")[:3] == ["2 (1, 2) [1, 2]", "True", "refused"]
    assert xok.try_("run", "--tree", "vol", program).status == exits.USAGE


def test_a_disk_that_fails_leaves_the_other_usable(xok: TwoDisks) -> None:
    xok("mkfs", "good", "--disk", "1")
    xok("mkfs", "bad", "--disk", "2")
    good, bad = xok.place("good"), xok.place("bad")
    xok("mount", "good", good)
    xok("mount", "bad", bad)
    (bad / "file").write_bytes(b"x" * (8 << 20))
    xok("umount", bad)
    xok("down")
    xok.up()
    xok("mount", "good", good)
    os.truncate(xok.second, 1 << 20)  # what is behind the first megabyte cannot be read any more
    xok("mount", "bad", bad)
    with pytest.raises(OSError, match="Input/output"):
        (bad / "file").read_bytes()
    (good / "file").write_bytes(b"y" * 300_000)
    fd = os.open(good / "file", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    assert xok.status()["disks"][1]["errors"] > 0 and xok.status()["disks"][0]["errors"] == 0
    assert "ERRORS" in xok("status")
    xok.try_("down", "--force")
    report = json.loads(xok("check", xok.image, "--json"))
    assert report["sound"] and report["was_clean"]


def test_disks_that_cannot_be_used_together(xok: TwoDisks) -> None:
    xok("down")
    copied = xok.directory / "copy.img"
    shutil.copy(xok.image, copied)
    arguments = ("up", "--no-network", "--memory", "128M", "--disk", xok.image)
    done = xok.try_(*arguments, "--disk", copied)
    assert done.status == exits.BAD_DISK and "copy of a disk" in done.err and str(copied) in done.err
    done = xok.try_(*arguments, "--disk", xok.image)
    assert done.status == exits.USAGE and "twice" in done.err
    done = xok.try_(*arguments, *(word for number in range(8) for word in ("--disk", f"/nowhere/{number}")))
    assert done.status == exits.USAGE and "at most 8" in done.err
    done = xok.try_(*arguments, "--disk", "/nowhere")
    assert done.status == exits.BAD_DISK and "/nowhere" in done.err
    xok.up()  # none of that left a disk taken


def test_a_disk_that_vanishes_gives_its_memory_back(xok: TwoDisks) -> None:
    """What waited to be written to it is dropped when it has failed for long enough; the other disk goes on."""
    xok("down")
    attach = ["losetup", "--find", "--show", str(xok.second)]
    loop = subprocess.run(attach, capture_output=True, text=True, check=True).stdout.strip()
    try:
        xok("up", "--disk", xok.image, "--disk", loop, "--memory", "128M", "--no-network")
        xok("mkfs", "good", "--disk", "1")
        xok("mkfs", "bad", "--disk", "2")
        good, bad = xok.place("good"), xok.place("bad")
        xok("mount", "good", good)
        xok("mount", "bad", bad)
        (bad / "file").write_bytes(b"x")
        assert synced(bad / "file")
        os.truncate(xok.second, 0)
        subprocess.run(["losetup", "--set-capacity", loop], check=True)  # nothing can be written there any more
        (bad / "file").write_bytes(b"x" * (24 << 20))
        assert not synced(bad / "file")
        before = xok.status()
        assert before["cache"]["pages_in_use"] > 4000 and before["disks"][1]["in_use"]
        time.sleep(FAILED_NS / 1e9 + 1)
        assert not synced(bad / "file")
        after = xok.status()
        assert after["cache"]["pages_in_use"] < 2000 and not after["disks"][1]["in_use"]
        assert after["disks"][1]["dirty"] == 0
        (good / "file").write_bytes(b"y" * 300_000)
        assert synced(good / "file")
        done = xok.try_("down", "--force")
        assert done.status == exits.MEDIA and loop in done.err and "lost" in done.err
        report = json.loads(xok("check", xok.image, "--json"))
        assert report["sound"] and report["was_clean"] and "good" in report["trees"]
    finally:
        if (xok.runtime / "xokd.sock").exists():
            xok.try_("down", "--force")
        subprocess.run(["losetup", "--detach", loop], check=False)


def synced(path: Path) -> bool:
    try:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    except OSError:
        return False
    return True
