"""The host's own TCP against XIO, over a real TAP queue, over a packet ring, and with frames lost both ways."""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tapserver import (
    ABORT,
    ADDRESS,
    ECHO,
    GREET,
    SINK,
    SLOW,
    SOURCE,
    FaultyLink,
    TapServer,
    octets,
    ping,
    read_all,
    serve,
)

from netstack.xio.constants import CLOSE_DONE, CLOSE_RESET

LARGE = 10_000_000


@pytest.fixture(params=["queue", "ring"])
def server(tap_name: str, request: pytest.FixtureRequest) -> Iterator[TapServer]:
    with TapServer(tap_name, ring=request.param == "ring") as running:
        yield running


def upload(server: TapServer, data: bytes, port: int = SINK) -> None:
    with server.connect(port) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()


def download(server: TapServer, size: int) -> None:
    with server.connect(SOURCE) as connection:
        connection.sendall(b"%d\n" % size)
        assert read_all(connection) == octets(size)


def echo(server: TapServer, data: bytes) -> None:
    with server.connect(ECHO) as connection:
        sending = threading.Thread(target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR)))
        sending.start()
        assert read_all(connection) == data
        sending.join()


def at_once(tasks: list[Callable[[], object]]) -> None:
    """All in threads of their own; what one raises is raised."""
    failures: list[BaseException] = []

    def run(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def wait_for(server: TapServer, true: Callable[[dict[str, Any]], bool], seconds: float = 5) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while not true(found := server.statistics()):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


def test_large_transfers(server: TapServer) -> None:
    upload(server, octets(LARGE))
    download(server, LARGE)
    echo(server, octets(LARGE))
    # The last acknowledgement of a close may be on its way when the client has already seen its end of file.
    found = wait_for(server, lambda found: found["connections"] == 1)
    assert found["malformed"] == 0
    assert found["frames_refused_by_link"] == 0 or found["retransmitted"] > 0


def test_many_connections_at_once(server: TapServer) -> None:
    tasks: list[Callable[[], object]] = []
    for i in range(40):
        tasks += [lambda i=i: echo(server, octets(1000 * i + 1)), lambda i=i: download(server, 3000 * i + 1)]  # type: ignore[misc]
        tasks += [lambda i=i: upload(server, octets(2000 * i))]  # type: ignore[misc]
    at_once(tasks)
    found = wait_for(server, lambda found: found["connections"] == 1)
    assert found["opened_passive"] == 121 and found["refused"] == 0


def test_hundreds_stay_open_and_all_answer(server: TapServer) -> None:
    connections = [server.connect(ECHO) for _ in range(300)]
    for turn in range(3):
        for i, connection in enumerate(connections):
            connection.sendall(b"%d.%d" % (turn, i))
        for i, connection in enumerate(connections):
            assert connection.recv(100) == b"%d.%d" % (turn, i)
    assert server.statistics()["connections"] == 301
    for connection in connections:
        connection.close()
    # We closed first, so TIME-WAIT is ours.
    found = wait_for(server, lambda found: found["connections"] == 1)
    assert found["remnants"] <= 20


def test_half_close(server: TapServer) -> None:
    with server.connect(ECHO) as connection:
        connection.sendall(b"first")
        assert connection.recv(100) == b"first"
        connection.sendall(b"last")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"last"


def test_a_slow_reader_closes_the_window_and_opens_it(server: TapServer) -> None:
    upload(server, octets(2_000_000), SLOW)


def test_the_host_reads_slowly(server: TapServer) -> None:
    with server.connect(SOURCE) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        connection.sendall(b"3000000")
        time.sleep(1.5)  # the window is closed, and probed
        assert read_all(connection) == octets(3_000_000)


def test_a_closed_port_refuses_at_once(server: TapServer) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        server.connect(81)
    assert time.monotonic() - began < 0.5
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((ADDRESS, 53))
        datagrams.settimeout(2)
        datagrams.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            datagrams.recv(10)


def test_the_application_aborts(server: TapServer) -> None:
    with server.connect(ABORT) as connection:
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            connection.recv(10)
    wait_for(server, lambda found: found["connections"] == 1)


def test_the_host_aborts(server: TapServer) -> None:
    connection = server.connect(GREET)
    assert connection.recv(100) == b"hello"
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    found = wait_for(server, lambda found: found["connections"] == 1)
    assert found["events"] == ["open", f"close {CLOSE_RESET}"]


def test_the_host_closes(server: TapServer) -> None:
    with server.connect(GREET) as connection:
        assert connection.recv(100) == b"hello"
    found = wait_for(server, lambda found: found["connections"] == 1)
    assert found["events"] == ["open", "end", f"close {CLOSE_DONE}"]


def test_the_end_of_the_program_resets_its_connections(tap_name: str) -> None:
    with TapServer(tap_name) as server:
        connection = server.connect(GREET)
        assert connection.recv(100) == b"hello"
    # The TAP is gone with the server, and the reset before it.
    with pytest.raises(OSError) as raised:
        connection.recv(100)
    assert raised.value.errno == errno.ECONNRESET
    connection.close()


def test_ping(server: TapServer) -> None:
    for size in (0, 56, 1400):
        ping(size)


@pytest.mark.parametrize("seed", range(3))
def test_frames_are_lost_both_ways(tap_name: str, seed: int) -> None:
    # Whole frames of up to 64 KB are lost, and nothing tells the host which: each takes it a while to mend.
    with TapServer(tap_name, run=lambda env, stopped: serve(FaultyLink(env.tap.fd, 0.05, seed), stopped)) as server:
        at_once(
            [
                lambda: upload(server, octets(300_000 + seed)),
                lambda: download(server, 300_000 + seed),
                lambda: echo(server, octets(200_000)),
                *[lambda i=i: echo(server, octets(100 * i)) for i in range(10)],  # type: ignore[misc]
                *[lambda i=i: download(server, 5000 * i) for i in range(10)],  # type: ignore[misc]
            ]
        )
        assert server.statistics()["retransmitted"] > 0


def test_a_small_mtu(tap_name: str) -> None:
    with TapServer(tap_name, mtu=600) as server:
        upload(server, octets(300_000))
        download(server, 300_000)
