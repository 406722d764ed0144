"""Making an XN disk of a file or block device: the one time that xokd's format is written without xokd running."""

from __future__ import annotations

import os
import secrets
import stat

from xok_host.abi.errors import BadDisk, XokError
from xok_host.abi.types import BLOCK
from xok_host.host import signature
from xok_host.host.blockdev import MIN_BLOCKS, open_disk
from xok_host.host.disk import Disk
from xok_host.host.reconstruct import put_sectors
from xok_host.kernel.xn import privileged


class ForeignData(XokError):
    """The disk already holds something."""

    exit = 3


def format_disk(path: str, *, size: int | None, force: bool) -> int:
    """Format `path`; a file that does not exist is made, sparse, of `size` bytes.  Returns the number of blocks.

    Raises `ForeignData` (unless `force`), `BadDisk` or `InUse`; until then nothing has been changed or made.
    """
    created = not os.path.exists(path)
    if created:
        _create(path, size)
    else:
        _check_existing(path, size, force)
    try:
        disk = open_disk(path)
        try:
            _write(disk)
        finally:
            disk.close()
    except BaseException:
        if created:
            os.unlink(path)
        raise
    return disk.nblocks


def _create(path: str, size: int | None) -> None:
    if size is None:
        raise BadDisk(f"{path} does not exist; give --size to make an image file")
    if size < MIN_BLOCKS * BLOCK:
        raise BadDisk(f"--size is {size} bytes; a disk has at least {MIN_BLOCKS * BLOCK >> 20}M")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadDisk(f"{path}: {error.strerror}") from None
    try:
        os.ftruncate(fd, size - size % BLOCK)
    except OSError as error:
        os.unlink(path)
        raise BadDisk(f"{path}: {error.strerror}") from None
    finally:
        os.close(fd)


def _check_existing(path: str, size: int | None, force: bool) -> None:
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise BadDisk(f"{path} is neither a block device nor a file")
    try:
        found = signature.found_on(path)
    except OSError as error:
        raise BadDisk(f"{path}: {error.strerror}") from None
    if found and not force:
        raise ForeignData(f"{path} holds {found}; --force overwrites it")
    open_disk(path).close()  # in use: refused before anything changes
    if stat.S_ISREG(mode):
        wanted = os.path.getsize(path) if size is None else size - size % BLOCK
        os.truncate(path, 0)
        os.truncate(path, wanted)
    elif size is not None:
        raise BadDisk(f"{path} is a block device and has its own size; leave --size out")


def _write(disk: Disk) -> None:
    for step in privileged.format(disk.nblocks, secrets.token_bytes(16)):
        put_sectors(disk, step, BadDisk)
