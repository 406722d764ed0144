"""Every way in which xokd refuses.

One class an error.  Its docstring is the sentence that a person reads, with the fields of the refusal filled in; its
`code` crosses the call channel and never changes meaning; its `exit` is the exit status of a command that ends with
it.  `by_code` turns a completion's code back into the exception on the libOS's side.
"""

from __future__ import annotations

import errno as _errno
import inspect
from typing import Any, ClassVar


class XokError(Exception):
    """xokd refused the call."""

    code: ClassVar[int] = 1
    exit: ClassVar[int] = 1
    errno: ClassVar[int] = _errno.EIO

    def __init__(self, detail: str = "", **fields: Any) -> None:
        self.detail = detail
        self.fields = fields
        super().__init__(detail)

    def __str__(self) -> str:
        text = inspect.cleandoc(type(self).__doc__ or "")
        return f"{text.rstrip('.')}: {self.detail}" if self.detail else text


class BadCall(XokError):
    """No such call, or its operands do not have the form the call table gives."""

    code = 2
    errno = _errno.EINVAL


class BadCapability(XokError):
    """The capability named does not exist or does not allow this."""

    code = 3
    errno = _errno.EACCES


class NotFound(XokError):
    """No such name."""

    code = 4
    errno = _errno.ENOENT


class Exists(XokError):
    """The name is taken."""

    code = 5
    errno = _errno.EEXIST


class NotInCore(XokError):
    """A block the call needs is not in the registry: fetch it first."""

    code = 6
    errno = _errno.EAGAIN


class NotFree(XokError):
    """A block that should be allocated is in use or waits to be freed."""

    code = 7
    errno = _errno.EBUSY


class NoSpace(XokError):
    """The disk has no free blocks left; frees that wait for a write are named if there are any."""

    code = 8
    errno = _errno.ENOSPC


class BogusUpdate(XokError):
    """The UDFs do not confirm what the operation claims."""

    code = 9
    errno = _errno.EPERM


class BogusPartition(XokError):
    """No such partition, or bytes outside its read set."""

    code = 10
    errno = _errno.EPERM


class UdfFailed(XokError):
    """A UDF faulted, ran over its budget or gave malformed output."""

    code = 11
    errno = _errno.EPERM


class TypeInvalid(XokError):
    """The template is not acceptable."""

    code = 12
    errno = _errno.EINVAL


class WrongType(XokError):
    """The block is not of the type the call needs."""

    code = 13
    errno = _errno.EINVAL


class NotOwned(XokError):
    """The parent's owns function does not name this block."""

    code = 14
    errno = _errno.EACCES


class Tainted(XokError):
    """Writing would let the disk point at what is not durable yet: flush the blocks named first."""

    code = 15
    errno = _errno.EBUSY


class WouldCycle(XokError):
    """The operation would make two blocks wait for one another: flush the block named first."""

    code = 16
    errno = _errno.EBUSY


class Locked(XokError):
    """Another environment holds the lock."""

    code = 17
    errno = _errno.EBUSY


class InUse(XokError):
    """The object is in use."""

    code = 18
    errno = _errno.EBUSY


class LimitReached(XokError):
    """The environment reached one of its bounds."""

    code = 19
    errno = _errno.EAGAIN


class MediaError(XokError):
    """The device failed to read, write or flush."""

    code = 20
    exit = 5
    errno = _errno.EIO


class NotAllowed(XokError):
    """The caller may not do this."""

    code = 21
    exit = 4
    errno = _errno.EPERM


class RefcountWrong(XokError):
    """References and reference counts would not agree."""

    code = 22
    errno = _errno.EPERM


class NotClean(XokError):
    """The disk was not shut down cleanly or violates an invariant: reconstruct it."""

    code = 23
    exit = 6
    errno = _errno.EIO


class Overlap(XokError):
    """The filter overlaps one of another holder."""

    code = 24
    errno = _errno.EADDRINUSE


class Cancelled(XokError):
    """An earlier entry of the chain failed."""

    code = 25
    errno = _errno.ECANCELED


class Refused(XokError):
    """The template's acl function refused the modification."""

    code = 26
    errno = _errno.EACCES


class BadDisk(XokError):
    """The disk cannot be used."""

    code = 27
    exit = 3
    errno = _errno.EINVAL


class Gone(XokError):
    """xokd or the environment has gone away."""

    code = 28
    exit = 7
    errno = _errno.ENOTCONN


class DependentsMissing(XokError):
    """Overlapping partitions depend on the bytes changed, and not all of them are named."""

    code = 29
    errno = _errno.EPERM


def _all_errors(base: type[XokError]) -> list[type[XokError]]:
    found = [base]
    for child in base.__subclasses__():
        found += _all_errors(child)
    return found


BY_CODE: dict[int, type[XokError]] = {error.code: error for error in _all_errors(XokError)}


def by_code(code: int, detail: str = "") -> XokError:
    """The exception for a completion's error code; unknown codes become `XokError`."""
    return BY_CODE.get(code, XokError)(detail)
