"""A program's text, in a memory file that nobody can change any more, for xokd to pass on."""

from __future__ import annotations

import fcntl
import os

from xok_host.abi.errors import BadCall

MAX_SOURCE = 16 << 20


def read(path: str) -> int:
    """A descriptor of a sealed copy of the file.  Raises BadCall."""
    try:
        with open(path, "rb") as file:
            source = file.read(MAX_SOURCE + 1)
    except OSError as error:
        raise BadCall(f"{path}: {error.strerror}") from None
    if len(source) > MAX_SOURCE:
        raise BadCall(f"{path} has more than {MAX_SOURCE} bytes")
    descriptor = os.memfd_create(os.path.basename(path)[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as copy:
        copy.write(source)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
