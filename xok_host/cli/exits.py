"""Exit statuses of every command, in one table.  They never change meaning."""

from __future__ import annotations

OK = 0
REFUSED = 1
USAGE = 2
BAD_DISK = 3
NOT_ALLOWED = 4
MEDIA = 5
NOT_CLEAN = 6
NOT_RUNNING = 7

MEANINGS: dict[int, str] = {
    OK: "done",
    REFUSED: "refused or failed; the message says what and why",
    USAGE: "the command line or an argument makes no sense",
    BAD_DISK: "the disk cannot be used, or holds something else",
    NOT_ALLOWED: "the caller may not do this",
    MEDIA: "the device failed to read, write or flush",
    NOT_CLEAN: "the disk is not clean or violates an invariant (`xok check`)",
    NOT_RUNNING: "xokd is not running, or ended meanwhile",
}


def epilog() -> str:
    """The table, for --help."""
    return "exit status:\n" + "\n".join(f"  {status}  {meaning}" for status, meaning in MEANINGS.items())
