"""Frames for the tests, made by scapy; what sends them through a TAP, and who reads them."""

from __future__ import annotations

import errno
import os
import socket
import time

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

HOST_MAC = "02:00:00:00:00:01"
HOST, HOST6 = "10.9.0.1", "fd09::1"
OWN, OWN6 = "10.9.0.2", "fd09::2"
OTHER = "10.9.0.3"
VNET = bytes(10)

__all__ = ["ARP", "ICMP", "IP", "TCP", "UDP", "Ether", "IPv6"]


def to_env(packet: Packet) -> bytes:
    return bytes(Ether(src=HOST_MAC, dst="02:00:00:00:00:99") / packet)


def mac_text(mac: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in mac)


class Injector:
    """Sends frames out of a TAP from the host's side, past its IP stack."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((name, 0))

    def send(self, frame: bytes) -> bool:
        """False if the frame was dropped on the way out."""
        try:
            self._socket.send(frame)
        except OSError as failure:
            if failure.errno != errno.ENOBUFS:
                raise
            return False
        return True

    def bypass_traffic_control(self) -> None:
        self._socket.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS

    def set_mark(self, mark: int) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)

    def close(self) -> None:
        self._socket.close()


def read_all(fd: int, wait: float = 0.0) -> list[bytes]:
    """Frames (virtio header taken off) that wait in a queue; with `wait`, seconds to give the first."""
    frames = []
    deadline = time.monotonic() + wait
    while True:
        try:
            frames.append(os.read(fd, 70000)[10:])
        except BlockingIOError:
            if frames or time.monotonic() >= deadline:
                return frames
            time.sleep(0.001)
