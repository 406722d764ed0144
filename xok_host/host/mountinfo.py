"""What is mounted where, without touching any of it: a dead server's mount point must not be asked."""

from __future__ import annotations

import re
from collections.abc import Iterator

_ESCAPE = re.compile(r"\\([0-7]{3})")


def mounts_now() -> Iterator[tuple[str, str]]:
    """(mount point, file-system type) of the calling process's mount namespace, in order of mounting."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read().splitlines()
    for line in lines:
        fields = line.split(" ")
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        yield point, fields[fields.index("-") + 1]


def kind_of_mount(number: int) -> str:
    """File-system type of the mount with this number (`mnt_id`); "" if it is not in our namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            if int(fields[0]) == number:
                return fields[fields.index("-") + 1]
    return ""
