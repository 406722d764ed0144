"""The network as libraries: wire formats, XIO (TCP/IP) and Cheetah (HTTP)."""

from __future__ import annotations

from xok_host.abi import accel

accel.install()
