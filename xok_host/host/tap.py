"""The TAP: creation, queues, offloads, the host's address on it.

TAP-1  A queue keeps its number for as long as the TAP lives: none is ever detached or closed.  The host would move its
       last queue into the gap, and two environments would get each other's packets.
TAP-2  Queue 0 is xokd's own.  Of the others xokd keeps the descriptor and gives away a duplicate.  Both name one open
       file description, so xokd never reads or writes it while an environment holds it (it could be made to wait).
TAP-3  Frames carry a virtio header of VNET_BYTES, and may be segments of up to 64 KB without a checksum.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import re
import struct
from collections.abc import Iterable
from typing import Final

from pyroute2 import IPRoute  # type: ignore[attr-defined, unused-ignore]
from pyroute2.netlink.exceptions import NetlinkError

VNET_BYTES: Final = 10
FRAME_BYTES: Final = 65536 + 256
"""Enough for the longest frame."""
MAX_QUEUES: Final = 256
_DRAIN_LIMIT: Final = 65536
_CLONE: Final = "/dev/net/tun"

_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETSTEERINGEBPF: Final = 0x800454E0
_TUNSETFILTEREBPF: Final = 0x800454E1

_IFF_TAP, _IFF_MULTI_QUEUE, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
_FLAGS: Final = _IFF_TAP | _IFF_MULTI_QUEUE | _IFF_NO_PI | _IFF_VNET_HDR
_OFFLOADS: Final = 0x01 | 0x02 | 0x04 | 0x08
"""Checksums, TSO4, TSO6, TSO with ECN."""
_IFREQ: Final = struct.Struct("16sH22x")
_INT: Final = struct.Struct("i")
_GOOD_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")


class Tap:
    """One multi-queue TAP.  Raises OSError naming it; also if it is in use or has another form."""

    def __init__(self, name: str) -> None:
        if not _GOOD_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a network interface")
        self.name = name
        self.queues: list[int] = []
        self.add_queue()
        try:
            self._require_alone()
            with IPRoute() as netlink:
                self.ifindex = int(netlink.link_lookup(ifname=name)[0])
        except BaseException:
            self.close()
            raise

    def add_queue(self) -> int:
        """Append a queue and return its number.  Raises OSError E2BIG if there are MAX_QUEUES."""
        fd = os.open(_CLONE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(self.name.encode(), _FLAGS))
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, _INT.pack(VNET_BYTES))
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)
        except OSError as failure:
            os.close(fd)
            hint = {
                errno.EINVAL: "it exists and is not a multi-queue TAP with vnet_hdr, or is in use; --tap names another",
                errno.EBUSY: "another program has it",
                errno.EPERM: "creating a TAP takes CAP_NET_ADMIN",
            }.get(failure.errno or 0, os.strerror(failure.errno or 0))
            raise OSError(failure.errno, f"TAP {self.name}: {hint}") from None
        self.queues.append(fd)
        return len(self.queues) - 1

    def duplicate(self, queue: int) -> int:
        """A descriptor of the queue to give away (TAP-2)."""
        if queue == 0:
            raise ValueError("queue 0 is not given away")
        return fcntl.fcntl(self.queues[queue], fcntl.F_DUPFD_CLOEXEC, 0)

    def drain(self, queue: int) -> int:
        """Throw away what waits in a queue whose holder is dead.  Returns how many packets."""
        fd = self.queues[queue]
        os.set_blocking(fd, False)
        for count in range(_DRAIN_LIMIT):
            try:
                os.read(fd, FRAME_BYTES)
            except BlockingIOError:
                return count
            except OSError as failure:
                if failure.errno == errno.EBADFD or failure.errno == errno.EIO:
                    return count
                raise
        return _DRAIN_LIMIT

    def set_programs(self, steering: int, assertion: int) -> None:
        """Let loaded programs choose the queue and check the choice.  Takes their descriptors."""
        fcntl.ioctl(self.queues[0], _TUNSETFILTEREBPF, _INT.pack(assertion))
        fcntl.ioctl(self.queues[0], _TUNSETSTEERINGEBPF, _INT.pack(steering))

    def start(self, host_addresses: Iterable[str] = (), mtu: int = 1500) -> None:
        """Give the host its addresses ("10.42.0.1/24") and let packets flow: after the programs are in place."""
        interfaces = [ipaddress.ip_interface(address) for address in host_addresses]
        with IPRoute() as netlink:
            for interface in interfaces:
                prefix = interface.network.prefixlen
                try:
                    netlink.addr("add", index=self.ifindex, address=str(interface.ip), prefixlen=prefix)
                except NetlinkError as refusal:
                    if refusal.code != errno.EEXIST:
                        raise OSError(refusal.code, f"TAP {self.name}: address {interface}: {refusal}") from None
            netlink.link("set", index=self.ifindex, mtu=mtu, state="up")

    def mac(self) -> bytes:
        """The host's MAC on this link."""
        with IPRoute() as netlink:
            return bytes.fromhex(netlink.get_links(self.ifindex)[0].get("address").replace(":", ""))

    def close(self) -> None:
        """The TAP goes, unless somebody made it persistent or still holds a queue."""
        for fd in self.queues:
            os.close(fd)
        self.queues.clear()

    def _require_alone(self) -> None:
        """All queues must be ours, or numbers would not be what we think."""
        directory = f"/sys/class/net/{self.name}/queues"
        try:
            entries = os.listdir(directory)
        except FileNotFoundError:
            # The file system shows another network namespace's devices: the host's answer to TUNSETIFF must do.
            return
        if sum(entry.startswith("tx-") for entry in entries) != 1:
            raise OSError(errno.EBUSY, f"TAP {self.name}: another program holds queues of it; --tap names another")
