"""What is on a disk before it is formatted: nobody's data is overwritten by a slip of the fingers.

Own checks know the common formats; `blkid`, where it is installed, knows the rest.  A regular file that holds anything
at all counts as somebody's data, because nobody's disk image begins as a letter to the bank.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from xok_host.abi.errors import BadDisk, XokError, by_code
from xok_host.kernel.xn.format import MAGIC

XN_DISK = "an XN disk"

# name, offset in bytes, magic
_MAGICS: tuple[tuple[str, int, bytes], ...] = (
    (XN_DISK, 0, MAGIC),
    ("an ext2, ext3 or ext4 file system", 1080, b"\x53\xef"),
    ("an XFS file system", 0, b"XFSB"),
    ("a Btrfs file system", 0x10040, b"_BHRfS_M"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 54, b"FAT"),
    ("a FAT file system", 82, b"FAT"),
    ("a SquashFS image", 0, b"hsqs"),
    ("an ISO 9660 image", 32769, b"CD001"),
    ("an F2FS file system", 1024, b"\x10\x20\xf5\xf2"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an LVM physical volume", 536, b"LVM2 001"),
    ("a RAID member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("a bcache device", 4120, b"\xc6\x85\x73\xf6"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("an MS-DOS partition table or boot sector", 510, b"\x55\xaa"),
    ("a QCOW image", 0, b"QFI\xfb"),
)
_LONGEST = 128 << 10


def found_on(path: str) -> str | None:
    """What `path` holds, in words; None when it may be formatted.  Raises OSError."""
    regular = os.path.isfile(path)
    with open(path, "rb") as file:
        head = file.read(_LONGEST)
    for name, offset, magic in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return name
    known = _blkid(path)
    if known is not None:
        return known
    if regular and any(head):
        return "data that is no disk's"
    return None


@contextmanager
def naming(path: str) -> Iterator[None]:
    """What is refused for a disk's contents is said with the disk's name, and with what it holds instead."""
    try:
        yield
    except XokError as error:
        found = None
        if isinstance(error, BadDisk):
            with suppress(OSError):
                found = found_on(path)
        instead = f"; it holds {found}" if found not in (None, XN_DISK) else ""
        raise by_code(error.code, f"{path}: {error.detail}{instead}") from None


def _blkid(path: str) -> str | None:
    program = shutil.which("blkid", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        return None
    # -p looks at the device itself and never at blkid's cache.
    done = subprocess.run([program, "-p", "-o", "export", path], capture_output=True, text=True, timeout=30)
    fields = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    for key in ("TYPE", "PTTYPE"):
        if key in fields:
            return f"{fields[key]} data"
    return None
