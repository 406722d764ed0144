"""`xok serve`: a server with one port of an address, a keeper with the rest; either may die."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.xokkit import Xok, instance
from xok_host.cli import exits

NUMBER = os.getpid() % 200
PAGE = "<p>served</p>" * 1000


@pytest.fixture(scope="module", params=["", "ebpf"])
def xok(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Xok]:
    """An instance with a file system that has a page; with eBPF, and without it (packet rings)."""
    if request.param:
        os.environ["XOK_WITHOUT"] = request.param
    try:
        with instance(tmp_path_factory.mktemp("serve")) as xok:
            xok.up("--tap", f"xs{os.getpid()}", "--host-address", f"10.{NUMBER}.77.1/24")
            xok("mkfs", "vol")
            directory = xok.directory / "mnt"
            directory.mkdir()
            xok("mount", "vol", directory)
            (directory / "index.html").write_text(PAGE)
            yield xok
    finally:
        os.environ.pop("XOK_WITHOUT", None)


def address(last: int) -> str:
    return f"10.{NUMBER}.77.{last}"


def fetch(last: int, port: int = 80) -> str:
    connection = http.client.HTTPConnection(address(last), port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def refused(last: int, port: int) -> bool:
    """Whether somebody says at once that nobody listens."""
    try:
        socket.create_connection((address(last), port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_page_is_served_and_other_ports_are_refused(xok: Xok) -> None:
    assert f"http://{address(2)}/" in xok("serve", "vol", "--address", f"{address(2)}/24")
    assert fetch(2) == PAGE
    assert refused(2, 81)


def test_a_change_is_what_the_next_request_gets(xok: Xok) -> None:
    page: Path = xok.directory / "mnt" / "index.html"
    for number in range(5):
        page.write_text(PAGE + str(number))
        assert fetch(2) == PAGE + str(number)
    page.write_text(PAGE)


def test_a_dead_servers_clients_are_told_and_another_may_take_its_place(xok: Xok) -> None:
    os.kill(xok.pid("serve:vol"), signal.SIGKILL)
    for _ in range(100):
        if refused(2, 80):
            break
        time.sleep(0.02)
    assert refused(2, 80)
    xok("serve", "vol", "--address", f"{address(2)}/24")
    assert fetch(2) == PAGE


def test_a_dead_keeper_is_replaced_and_its_server_goes_on(xok: Xok) -> None:
    keeper = xok.pid(f"address:{address(2)}")
    os.kill(keeper, signal.SIGKILL)
    for _ in range(100):
        names = {env["name"]: env["pid"] for env in xok.status()["environments"]}
        if names.get(f"address:{address(2)}", keeper) != keeper:
            break
        time.sleep(0.05)
    assert fetch(2) == PAGE
    assert refused(2, 81)


def test_two_servers_share_an_address_by_port(xok: Xok) -> None:
    xok("serve", "vol", "--address", f"{address(2)}/24", "--port", "8080")
    assert fetch(2, 8080) == fetch(2) == PAGE
    done = xok.try_("serve", "vol", "--address", f"{address(2)}/24", "--port", "8080")
    assert done.status == exits.REFUSED and "is served by environment" in done.err
    assert fetch(2, 8080) == PAGE


@pytest.mark.parametrize(
    ("name", "where", "status", "words"),
    [
        ("nothing", "10.{}.77.3/24", exits.REFUSED, "`xok list`"),
        ("vol", "192.0.2.7/24", exits.USAGE, "not in the TAP's network"),
        ("vol", "10.{}.77.1/24", exits.USAGE, "the host's own"),
        ("vol", "10.{}.77.3/16", exits.USAGE, "/24"),
    ],
)
def test_refusals(xok: Xok, name: str, where: str, status: int, words: str) -> None:
    done = xok.try_("serve", name, "--address", where.format(NUMBER))
    assert done.status == status and words in done.err, done


def test_in_the_foreground_sigterm_ends_the_server(xok: Xok) -> None:
    command = xok.start("serve", "vol", "--address", f"{address(4)}/24", "--foreground")
    assert command.stdout is not None
    assert command.stdout.readline().startswith("vol: http")
    assert fetch(4) == PAGE
    command.send_signal(signal.SIGTERM)
    assert command.wait(20) == 0
    assert refused(4, 80)
