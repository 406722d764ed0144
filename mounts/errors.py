"""What a program sees as errno when xokd or the libFS refuses.

`XokError` classes carry their errno; this is where the rest is decided, and where a defect of ours becomes EIO for one
caller instead of the end of the mount.
"""

from __future__ import annotations

import errno
import logging

from xok_host.abi.errors import XokError

log = logging.getLogger("xok.mount")


def errno_of(error: BaseException) -> int:
    """The errno for `error`.  Exceptions that are no refusal are logged with their traceback and become EIO."""
    if isinstance(error, XokError):
        return error.errno
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    log.error("a request failed by a defect of the mount process", exc_info=error)
    return errno.EIO
