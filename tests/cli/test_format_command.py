"""`xok format`: what it makes, and everything that it refuses."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.host.xokkit import Xok
from xok_host.cli import exits


@pytest.fixture
def xok(tmp_path: Path) -> Xok:
    return Xok(tmp_path)


def test_a_new_image_is_sparse_and_checks_clean(xok: Xok) -> None:
    assert "16384 blocks" in xok("format", xok.image, "--size", "64M")
    info = xok.image.stat()
    assert info.st_size == 64 << 20 and info.st_blocks * 512 < 4 << 20
    assert xok("check", xok.image).splitlines()[-1] == "clean"


def refused(xok: Xok, status: int, words: str, *arguments: str | Path) -> None:
    done = xok.try_(*arguments)
    assert done.status == status, done
    assert words in done.err and len(done.err.splitlines()) == 1, done.err


def test_a_size_is_needed_for_a_new_file(xok: Xok) -> None:
    refused(xok, exits.BAD_DISK, "give --size", "format", xok.image)
    assert not xok.image.exists()


@pytest.mark.parametrize("size", ["", "4X", "-1", "1.5G", "G"])
def test_a_size_that_is_none(xok: Xok, size: str) -> None:
    refused(xok, exits.USAGE, "no size", "format", xok.image, f"--size={size}")


def test_a_disk_that_would_be_too_small(xok: Xok) -> None:
    refused(xok, exits.BAD_DISK, "at least 4M", "format", xok.image, "--size", "1M")
    assert not xok.image.exists()


def test_somebodys_letter_is_not_overwritten(xok: Xok) -> None:
    letter = "Dear bank,\n" * 1000000
    xok.image.write_text(letter)
    refused(xok, exits.BAD_DISK, "--force overwrites it", "format", xok.image)
    assert xok.image.read_text() == letter
    xok("format", xok.image, "--force")
    assert xok.try_("check", xok.image).status == exits.OK


def test_an_xn_disk_is_not_formatted_twice_by_accident(xok: Xok) -> None:
    xok("format", xok.image, "--size", "64M")
    refused(xok, exits.BAD_DISK, "an XN disk", "format", xok.image)
    xok("format", xok.image, "--force")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (["mkfs.ext4", "-q", "-F"], "ext4"),
        (["mkswap", "-q"], "swap"),
    ],
)
def test_foreign_file_systems_are_recognised(xok: Xok, make: list[str], words: str) -> None:
    with open(xok.image, "wb") as file:
        file.truncate(64 << 20)
    program = subprocess.run(
        [*make, str(xok.image)], capture_output=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    )
    assert program.returncode == 0, program.stderr
    refused(xok, exits.BAD_DISK, words, "format", xok.image)


def test_a_partition_table_is_recognised(xok: Xok) -> None:
    with open(xok.image, "wb") as file:
        file.truncate(64 << 20)
        file.seek(512)
        file.write(b"EFI PART")
    refused(xok, exits.BAD_DISK, "GPT", "format", xok.image)


def test_what_is_no_disk(xok: Xok, tmp_path: Path) -> None:
    refused(xok, exits.BAD_DISK, "neither a block device nor a file", "format", tmp_path)
    refused(xok, exits.BAD_DISK, "No such file", "format", tmp_path / "no" / "dir", "--size", "64M")
    refused(xok, exits.BAD_DISK, "neither", "format", "/dev/null")


def test_a_disk_in_use_is_refused_even_with_force(xok: Xok) -> None:
    xok("format", xok.image, "--size", "64M")
    xok.up()
    try:
        refused(xok, exits.REFUSED, "another xokd", "format", xok.image, "--force")
        refused(xok, exits.REFUSED, "another xokd", "check", xok.image)
    finally:
        xok("down")


def test_check_tells_a_damaged_disk(xok: Xok) -> None:
    xok("format", xok.image, "--size", "64M")
    with open(xok.image, "r+b") as file:
        file.write(os.urandom(4096))
    assert xok("check", xok.image).splitlines()[-1] == "clean"  # the second superblock counts
    with open(xok.image, "r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(os.urandom(4096))
    refused(xok, exits.BAD_DISK, "not an XN disk", "check", xok.image)
