"""A network namespace of its own for each test that wants a TAP, so that names and addresses are nobody else's."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

_CLONE_NEWNET = 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), what)


@pytest.fixture
def tap_name() -> Iterator[str]:
    """The name for a TAP, in a fresh network namespace that this thread is in until the test ends."""
    if os.geteuid():
        pytest.skip("needs root")
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    _check(_libc.unshare(_CLONE_NEWNET), "a network namespace")
    try:
        with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w") as switch:
            switch.write("1")  # the host's own chatter would be counted
        yield f"xk{os.getpid()}"
    finally:
        _check(_libc.setns(before, _CLONE_NEWNET), "back to the network namespace")
        os.close(before)
