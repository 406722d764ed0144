"""`xok repair`, and how `check`, `list`, `status`, `mount` and `up` show a tree with errors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from libfs.cffs import layout, sector
from libfs.cffs.inode import Node
from tests.host.xokkit import Xok, instance, public_directory
from xok_host.abi.types import BLOCK, SECTOR
from xok_host.cli import exits
from xok_host.kernel.xn import recover
from xok_host.kernel.xn.format import newest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="xokd needs root")


@pytest.fixture
def xok() -> Iterator[Xok]:
    """xokd is down; the disk is clean and has a volume `vol`."""
    with public_directory() as directory, instance(directory) as xok:
        xok.up("--no-network")
        xok("mkfs", "vol")
        xok("down")
        yield xok


class Image:
    """The disk of an xokd that is down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nblocks = path.stat().st_size // BLOCK

    def read(self, db: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(db * BLOCK)
            return file.read(BLOCK)

    def write(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def root(self) -> int:
        entry = recover.read_catalogue(self.read, self.nblocks)[1].get("vol")
        assert entry is not None
        return entry.db

    def root_sector(self) -> bytearray:
        return bytearray(self.read(self.root())[:SECTOR])

    def put_root_sector(self, data: bytes) -> None:
        self.write(self.root() * BLOCK, bytes(data))

    def set_links(self, links: int) -> None:
        """The link count of the root directory, which has one name."""
        data = self.root_sector()
        at = layout.ROOT_SLOT * layout.INODE_BYTES
        node = Node.unpack(layout.ino_of(self.root(), 0, layout.ROOT_SLOT), 0, bytes(data), at)
        node.nlink = links
        node.pack_into(data, at)
        self.put_root_sector(data)

    def add_dangling_name(self) -> None:
        data = self.root_sector()
        sector.add(data, b"lost", 8, 0, layout.ino_of(self.root(), 3, 3))
        self.put_root_sector(data)

    def not_clean(self) -> None:
        """As when the power has failed."""
        superblock = newest(self.read(0), self.read(self.nblocks - 1)).renewed(clean=False)
        self.write(0, superblock.pack())
        self.write((self.nblocks - 1) * BLOCK, superblock.pack())


@pytest.fixture
def image(xok: Xok) -> Image:
    return Image(xok.image)


def checked(xok: Xok, status: int = exits.OK) -> dict:  # type: ignore[type-arg]
    done = xok.try_("check", xok.image, "--json")
    assert done.status == status, done
    found: dict = json.loads(done.out)  # type: ignore[type-arg]
    return found


def test_a_count_too_high_is_mended_at_the_start_after_a_crash(xok: Xok, image: Image) -> None:
    image.set_links(3)
    image.not_clean()
    found = checked(xok)
    assert found["over_counts"] == 1 and found["errors"][0]["kind"] == "over-count"
    assert (found["errors"][0]["count"], found["errors"][0]["references"]) == (3, 1)
    xok.up("--no-network")
    assert "vol: repaired" in xok.log()
    xok("down")
    assert checked(xok)["over_counts"] == 0


def test_a_count_too_high_is_mended_on_demand(xok: Xok, image: Image) -> None:
    image.set_links(2)
    xok.up("--no-network")
    out = xok("repair", "vol")
    assert out.splitlines() == ["link counts corrected: 1", "vol is sound"]
    done = json.loads(xok("repair", "vol", "--json"))
    assert (done["reason"], done["over_counts_before"], done["rounds"]) == ("", 0, 1)
    xok("down")
    assert checked(xok)["over_counts"] == 0


def test_a_tainted_tree_is_shown_refused_and_repaired_by_force(xok: Xok, image: Image) -> None:
    image.add_dangling_name()
    image.not_clean()
    found = checked(xok, exits.NOT_CLEAN)
    assert "leads nowhere" in found["tainted"]["vol"]
    xok.up("--no-network")
    for again in (False, True):
        assert xok.status()["tainted"][0]["name"] == "vol"
        assert "leads nowhere" in xok("status")
        assert "vol is tainted: a reference to" in xok("list")
        entry = next(entry for entry in json.loads(xok("list", "--json")) if entry["name"] == "vol")
        assert entry["tainted"] and "leads nowhere" in entry["reason"]
        if not again:  # a clean disk with a tainted tree: the reasons are found out anew
            xok("down")
            xok.up("--no-network")
    directory = xok.directory / "there"
    directory.mkdir()
    done = xok.try_("mount", "vol", directory)
    assert done.status != exits.OK and "repair" in done.err
    done = xok.try_("repair", "vol")
    assert done.status == exits.NOT_CLEAN and "vol is as it was: 1 errors are left" in done.out
    assert xok("repair", "vol", "--force").splitlines() == ["names that led nowhere dropped: 1", "vol is sound"]
    assert not xok.status()["tainted"]
    xok("down")
    assert not checked(xok)["tainted"]


PROGRAMS = {
    "dies": ("import os\ndef main(env, argv): os.abort()", "signal "),
    "fails": ("def main(env, argv): return 3", "exit status 3"),
    "loops": ("def main(env, argv):\n while True: pass", "did not end within 1 s"),
    "lies": ("def main(env, argv): return 0", "errors are left"),
    "destroys": (
        """
from xok_host.abi.types import disk_address
def main(env, argv):
    cap = env.caps[0].index
    found = env.call("read_errors", 1, cap=cap, data=b"vol", out_bytes=4096)
    for db in range(1024):
        try:
            env.call("patch_write", disk_address(1, db), cap=cap, data=b"\\xcf\\x01\\x06\\x01" * 1024)
        except Exception as refused:
            if type(refused).__name__ != "NotOwned":
                raise
    return 0
""",
        "errors are left",
    ),
}


def test_programs_that_mend_nothing_change_nothing(xok: Xok, image: Image) -> None:
    image.add_dangling_name()
    image.not_clean()
    xok.up("--no-network")
    before = image.read(image.root())
    for name, (code, why) in PROGRAMS.items():
        done = xok.try_("repair", "vol", "--program", xok.program(code), "--seconds", "1" if name == "loops" else "50")
        assert done.status == exits.NOT_CLEAN and why in done.out, (name, done)
        assert image.read(image.root()) == before, name
        assert xok.status()["tainted"]
    sleeper = xok.start("run", xok.program("import time\ndef main(env, argv):\n print(1, flush=True)\n time.sleep(99)"))
    assert sleeper.stdout is not None and sleeper.stdout.readline() == "1\n"
    done = xok.try_("repair", "vol")
    assert done.status == exits.REFUSED and "uses the disks" in done.err
    sleeper.kill()
    sleeper.wait()
    xok("repair", "vol", "--force")


def test_what_makes_no_sense(xok: Xok) -> None:
    xok.up("--no-network")
    assert xok.try_("repair", "nothing").status == exits.REFUSED
    assert xok.try_("repair", "vol", "--seconds", "0").status == exits.USAGE
    assert xok.try_("repair", "vol", "--program", "/nowhere").status == exits.USAGE
    done = xok.try_("repair", "vol", user=54321, group=54321, extra_groups=[])
    assert done.status == exits.NOT_ALLOWED and "belongs to user 0" in done.err


def test_the_owner_of_a_file_system_repairs_it_with_a_program_of_his_own(xok: Xok, image: Image) -> None:
    """And not when nothing is wrong: nobody can use the disk meanwhile."""
    owner = {"user": 54321, "group": 54321, "extra_groups": []}
    xok.up("--no-network")
    xok("mkfs", "mine", **owner)
    done = xok.try_("repair", "mine", **owner)
    assert done.status == exits.NOT_ALLOWED and "nothing wrong" in done.err
    xok("down")
    entry = recover.read_catalogue(image.read, image.nblocks)[1].get("mine")
    assert entry is not None
    data = bytearray(image.read(entry.db)[:SECTOR])
    sector.add(data, b"lost", 8, 0, layout.ino_of(entry.db, 3, 3))
    image.write(entry.db * BLOCK, bytes(data))
    image.not_clean()
    xok.up("--no-network")
    program = xok.program("from libfs.cffs.patch import main as mend\ndef main(env, argv): return mend(env, [*argv])\n")
    out = xok("repair", "mine", "--force", "--program", program, **owner)
    assert out.splitlines() == ["names that led nowhere dropped: 1", "mine is sound"]
