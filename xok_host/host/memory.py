"""Memory that xokd shares: files in memory that nobody can resize, and that others can write only if xokd says so.

M-1  Sealed against shrinking, growing and further seals before anybody else gets a descriptor: no reader is ever hit by
     SIGBUS.
M-2  Allocated and mapped in full at once: a reader that touches it cannot make it grow, and xokd never runs into a
     hole, nor into a page fault in the middle of a request.
M-3  With `private`, no other process can map it writable or write to it at all (F_SEAL_FUTURE_WRITE); what readers
     get is a read-only descriptor in any case.
M-4  Owned by root, mode 0600: an environment cannot reopen its descriptor for more than it was given.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from dataclasses import dataclass

_F_SEAL_FUTURE_WRITE = 0x10


@dataclass(slots=True)
class Shared:
    """One piece of shared memory.  `memory` is xokd's own writable mapping."""

    name: str
    memory: memoryview
    reader: int
    """Descriptor that can only be read and mapped read-only."""
    writer: int
    """Descriptor that can be mapped writable; −1 if private."""
    _mapping: mmap.mmap

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    def close(self) -> None:
        """Let go of it; others keep what they mapped."""
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)
        self.reader = self.writer = -1
        self.memory.release()
        with contextlib.suppress(BufferError):  # somebody still has a view: it is unmapped with the last one
            self._mapping.close()


def allocate(name: str, nbytes: int, *, private: bool) -> Shared:
    """`nbytes` of zeros, a multiple of the page size.  Raises OSError (ENOMEM, ENFILE)."""
    fd = os.memfd_create(f"xok-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, nbytes)
        os.posix_fallocate(fd, 0, nbytes)
        mapping = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | (_F_SEAL_FUTURE_WRITE if private else 0))
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        os.close(fd)
        raise
    if private:
        os.close(fd)
        fd = -1
    return Shared(name, memoryview(mapping), reader, fd, mapping)
