"""The program that keeps an address, on a real TAP with a queue and with a packet ring."""

from __future__ import annotations

import os
import select
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tapserver import ADDRESS, MAC, TapServer, ping

from netstack.xio import keeper
from xok_host.abi.dpf import wildcard


def keep(env: Any, stopped: int) -> None:
    """The child: an environment that is asked to stop by the end of a socket."""
    calls: list[tuple[str, int, bytes]] = []
    env.tap.mac, env.tap.addresses = MAC, (ADDRESS,)
    env.caps = [SimpleNamespace(kind="tree", name="", index=0), SimpleNamespace(kind="address", name=ADDRESS, index=3)]
    env.call = lambda name, *, cap, data: calls.append((name, cap, data))
    env.fileno = lambda: stopped
    env.stop_requested = False
    env.dispatch = lambda: None

    def drain() -> None:
        env.stop_requested = bool(select.select([stopped], [], [], 0)[0])

    env.drain = drain
    assert keeper.main(env, []) == 0
    assert calls == [("filter_insert", 3, region.pack()) for region in wildcard(ADDRESS)]


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_the_word_to_stop_is_not_followed_by_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes once: who has taken it and sleeps then, sleeps until a packet comes."""
    env: Any = SimpleNamespace(caps=[SimpleNamespace(kind="address", name=ADDRESS, index=3)], stop_requested=False)
    env.tap = SimpleNamespace(mac=MAC, addresses=(ADDRESS,))
    env.call = env.drain = lambda *arguments, **named: None
    env.dispatch = lambda: setattr(env, "stop_requested", True)
    link = SimpleNamespace(receive=lambda buffer: 0, wait=lambda *how: pytest.fail("waits for what nobody sends"))
    monkeypatch.setattr(keeper, "open_polled_link", lambda env: link)
    assert keeper.main(env, []) == 0


@pytest.mark.parametrize("ring", [False, True], ids=["queue", "ring"])
def test_an_address_without_a_server_is_answered(tap_name: str, ring: bool) -> None:
    with TapServer(tap_name, ring=ring, run=keep) as server:
        for size in (0, 56, 1400):
            ping(size)
        for _ in range(200):  # more than a turn
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((ADDRESS, 80), 5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect((ADDRESS, 53))
            datagrams.settimeout(5)
            datagrams.send(b"?")
            with pytest.raises(ConnectionRefusedError):
                datagrams.recv(10)
        before = cpu_ticks(server.child)
        time.sleep(0.5)
        assert cpu_ticks(server.child) - before <= os.sysconf("SC_CLK_TCK") // 20  # it sleeps
        ping(100)
