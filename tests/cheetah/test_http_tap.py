"""Cheetah on a real TAP, asked by unmodified programs: curl, wrk, the host's own sockets."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

NAME = f"xk{os.getpid()}"
NETWORK = f"10.83.{os.getpid() % 250 + 2}"
URL = f"http://{NETWORK}.2"
SIZES = (0, 1, 1000, 1448, 1449, 4096, 65536, 100_000, 3_000_000, 9_000_000)
SITE = Path(__file__).parents[2] / "examples" / "site"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a TAP takes root")


class Server:
    """The process, and its counters once it has been stopped."""

    def __init__(self, root: Path) -> None:
        self.root = root
        script = str(Path(__file__).parent / "http_station.py")
        command = [sys.executable, "-P", script, NAME, NETWORK, str(root)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def stop(self) -> dict[str, Any]:
        self.process.terminate()
        out, _ = self.process.communicate(timeout=10)
        assert self.process.returncode == 0
        counters: dict[str, Any] = json.loads(out)
        return counters


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "www"
    shutil.copytree(SITE, root)
    for size in SIZES:
        (root / f"{size}.bin").write_bytes(hashlib.shake_128(b"%d" % size).digest(size))
    running = Server(root)
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.communicate()


def curl(*arguments: str) -> bytes:
    command = ["curl", "-sS", "--max-time", "20", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def test_every_file_with_curl(server: Server, tmp_path: Path) -> None:
    files = [path for path in server.root.rglob("*") if path.is_file()]
    assert len(files) > 30
    names = [str(path.relative_to(server.root)).replace(" ", "%20") for path in files]
    arguments = [word for number, name in enumerate(names) for word in ("-o", f"{tmp_path}/{number}", f"{URL}/{name}")]
    curl("--fail", *arguments)  # one kept connection
    for number, path in enumerate(files):
        assert (tmp_path / str(number)).read_bytes() == path.read_bytes(), path
    counters = server.stop()
    assert counters["cheetah"]["connections_total"] == 1
    assert counters["cheetah"]["responses"] == {"2xx": len(files), "3xx": 0, "4xx": 0, "5xx": 0}
    assert counters["stack"]["malformed"] == 0


def test_parallel_clients_get_their_own_bytes(server: Server) -> None:
    wanted = [size for size in SIZES if size < 200_000]

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(f"{NETWORK}.2", timeout=20)
        for step in range(30):
            size = wanted[(number + step) % len(wanted)]
            connection.request("GET", f"/{size}.bin", headers={"Connection": "close"} if step % 5 == 4 else {})
            data = connection.getresponse().read()
            assert data == (server.root / f"{size}.bin").read_bytes()
        connection.close()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(client, range(16)))
    assert server.stop()["cheetah"]["requests"] == 16 * 30


def test_ranges_resume_and_conditions(server: Server, tmp_path: Path) -> None:
    whole = (server.root / "3000000.bin").read_bytes()
    partial = tmp_path / "partial"
    partial.write_bytes(whole[:1_234_567])
    curl("-C", "-", "-o", str(partial), f"{URL}/3000000.bin")
    assert partial.read_bytes() == whole
    tag, kept = tmp_path / "tag", tmp_path / "kept"
    curl("--etag-save", str(tag), "-o", str(kept), f"{URL}/style.css")
    status = curl("--etag-compare", str(tag), "-o", str(kept), "-w", "%{http_code}", f"{URL}/style.css")
    assert status == b"304"
    assert curl("-o", os.devnull, "-w", "%{http_code} %{num_redirects}", "-L", f"{URL}/idea") == b"200 1"
    assert curl("-o", os.devnull, "-w", "%{http_code}", "--path-as-is", f"{URL}/../etc/passwd") == b"400"
    assert curl("-o", os.devnull, "-w", "%{http_code}", "-X", "DELETE", f"{URL}/") == b"405"


def test_a_replaced_file_is_noticed(server: Server) -> None:
    for version in range(5):
        (server.root / "new").write_text(f"version {version}")
        os.replace(server.root / "new", server.root / "notes.txt")
        curl("--retry", "0", "-o", os.devnull, f"{URL}/")
        subprocess.run(["sleep", "0.03"], check=True)  # STORE-2: a directory of the host is asked every 20 ms
        assert curl(f"{URL}/notes.txt") == b"version %d" % version


def test_closed_ports_refuse_and_the_address_answers(server: Server) -> None:
    with socket.socket() as sock:
        sock.settimeout(5)
        with pytest.raises(ConnectionRefusedError):
            sock.connect((f"{NETWORK}.2", 81))


def test_a_client_that_reads_slowly(server: Server) -> None:
    whole = (server.root / "9000000.bin").read_bytes()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.settimeout(20)
        sock.connect((f"{NETWORK}.2", 80))
        sock.sendall(b"GET /9000000.bin HTTP/1.0\r\n\r\n")
        received = bytearray()
        while piece := sock.recv(30_000):
            received += piece
    assert bytes(received[received.index(b"\r\n\r\n") + 4 :]) == whole


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@pytest.mark.parametrize("close", [False, True])
def test_a_burst_from_wrk_has_no_errors(server: Server, close: bool) -> None:
    fields = ["-H", "Connection: close"] if close else []
    command = ["wrk", "-t1", "-c32", "-d1", *fields, f"{URL}/1000.bin"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Socket errors" not in report, report
    assert "Non-2xx" not in report, report
    counters = server.stop()["cheetah"]
    assert counters["requests"] > 64
    assert counters["hits"] >= counters["requests"] - 3
