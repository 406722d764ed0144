"""What an instance of xokd is told at its start, and where its sockets and files are."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from xok_host.abi.errors import BadCall
from xok_host.abi.types import BLOCK, CHUNK_BYTES

DEFAULT_RUNTIME = "/run/xok"
DEFAULT_TAP = "xok0"
DEFAULT_HOST_ADDRESS = "10.42.0.1/24"

MAX_DISKS = 8
"""Of one xokd: an environment is sent a descriptor for each one's free map."""

LONGEST_RUNTIME = 90
"""Bytes: the name of a socket in it must fit into sun_path."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class Runtime:
    """The directory of one instance: XOK_RUNTIME_DIR, else /run/xok."""

    directory: Path

    @classmethod
    def from_environment(cls) -> Runtime:
        """Raises BadCall for a directory whose sockets nobody could connect to."""
        directory = Path(os.environ.get("XOK_RUNTIME_DIR") or DEFAULT_RUNTIME).absolute()
        if len(os.fsencode(directory)) > LONGEST_RUNTIME:
            raise BadCall(f"XOK_RUNTIME_DIR has more than {LONGEST_RUNTIME} bytes, which no socket's name can have")
        return cls(directory)

    @property
    def socket(self) -> Path:
        return self.directory / "xokd.sock"

    @property
    def lock(self) -> Path:
        """Locked as long as xokd lives; holds its pid and disk."""
        return self.directory / "xokd.lock"

    @property
    def logs(self) -> Path:
        return self.directory / "log"


@dataclass(frozen=True, slots=True)
class Config:
    """One instance.  `tap` None: no network."""

    runtime: Runtime
    disks: tuple[str, ...]
    """Paths; a disk's number is its place, from 1."""
    tap: str | None
    host_address: str
    memory_chunks: int
    without: frozenset[str] = field(default_factory=frozenset)


def without_from_environment() -> frozenset[str]:
    """The features that XOK_WITHOUT forces off."""
    return frozenset(word for word in re.split(r"[,\s]+", os.environ.get("XOK_WITHOUT", "")) if word)


def parse_size(text: str) -> int:
    """Bytes of "64M", "4G", "4096".  Raises BadCall."""
    match = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise BadCall(f"{text!r} is no size; write it like 512M or 4G")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_interface(text: str) -> ipaddress.IPv4Interface:
    """Address and network of "10.42.0.2/24".  Raises BadCall."""
    try:
        interface = ipaddress.IPv4Interface(text)
    except ValueError as error:
        raise BadCall(f"{text!r} is no IPv4 address with a prefix length, like 10.42.0.2/24: {error}") from None
    return interface


def default_memory() -> int:
    """Bytes for cached blocks: a quarter of the machine's memory, at most 1 GiB."""
    total = os.sysconf("SC_PHYS_PAGES") * BLOCK
    return min(1 << 30, total // 4)


def chunks(memory: int) -> int:
    return max(8, memory // CHUNK_BYTES)
