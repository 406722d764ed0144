"""What an instance of xokd is told at its start, and where its sockets and files are."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from xok_host.abi.errors import BadCall
from xok_host.abi.types import CHUNK_BYTES

DEFAULT_RUNTIME = "/run/xok"
DEFAULT_TAP = "xok0"
DEFAULT_HOST_ADDRESS = "10.42.0.1/24"
DEFAULT_WALK = 10.0
"""Seconds."""

MAX_DISKS = 8
"""Of one xokd: an environment is sent a descriptor for each one's free map."""

FEATURES = ("uring", "direct", "ebpf", "tcx", "btf")
"""What XOK_WITHOUT may name."""

LONGEST_RUNTIME = 90
"""Bytes: the name of a socket in it must fit into sun_path."""

LONGEST_PREFIX = 30
"""Of the TAP's network: the host and one server."""

LEAST_CHUNKS = 8
"""Of memory for cached blocks."""

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
    walk_seconds: float = DEFAULT_WALK
    """How long trees are walked before a disk is used that was not shut down in order, if they need not be."""


def without_from_environment() -> frozenset[str]:
    """The features that XOK_WITHOUT forces off.  Raises BadCall for one that there is not."""
    words = frozenset(word for word in re.split(r"[,\s]+", os.environ.get("XOK_WITHOUT", "")) if word)
    unknown = sorted(words.difference(FEATURES))
    if unknown:
        raise BadCall(f"XOK_WITHOUT names {unknown[0]!r}; one can do without {', '.join(FEATURES)}")
    return words


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


def parse_host_address(text: str) -> ipaddress.IPv4Interface:
    """The host's address on the TAP, with a network that has room for others.  Raises BadCall."""
    interface = parse_interface(text)
    network = interface.network
    if "/" not in text or network.prefixlen > LONGEST_PREFIX:
        raise BadCall(f"{text} leaves no address for servers: write it with its network, like {interface.ip}/24")
    if interface.ip in (network.network_address, network.broadcast_address):
        raise BadCall(f"{interface.ip} is the network's own, not a host's: {network.network_address + 1} would do")
    return interface


def parse_seconds(text: str) -> float:
    """Not negative; "inf" is for ever.  Raises BadCall."""
    with contextlib.suppress(ValueError):
        if (seconds := float(text)) >= 0:
            return seconds
    raise BadCall(f"{text!r} is no number of seconds; write it like 10, 0 or inf")


def machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def default_memory() -> int:
    """Bytes for cached blocks: a quarter of the machine's memory, at most 1 GiB."""
    return min(1 << 30, machine_memory() // 4)


def parse_memory(text: str) -> int:
    """Bytes for cached blocks.  Raises BadCall for less than LEAST_CHUNKS, or more than the machine has."""
    memory, least = parse_size(text), LEAST_CHUNKS * CHUNK_BYTES
    if not least <= memory <= machine_memory():
        raise BadCall(
            f"--memory {text}: give at least {least >> 20}M, and at most the {machine_memory() >> 20}M there are"
        )
    return memory


def chunks(memory: int) -> int:
    return max(LEAST_CHUNKS, memory // CHUNK_BYTES)
