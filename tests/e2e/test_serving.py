"""Cheetah over the TAP, fetched by an unmodified client."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_kit import Xok, regular_files

CURL = ("curl", "--silent", "--show-error", "--globoff", "--path-as-is", "--noproxy", "*", "--max-time", "60")


@pytest.fixture(scope="module")
def site(system: Xok, tree: Path) -> Iterator[Xok]:
    subprocess.run(["cp", "-r", f"{tree}/.", system.mount_point], check=True)
    system.serve()
    yield system


def _url(xok: Xok, path: Path, root: Path) -> str:
    return f"{xok.url}/{urllib.parse.quote(str(path.relative_to(root)))}"


def _get(url: str, *options: str) -> bytes:
    return subprocess.run([*CURL, *options, url], capture_output=True, check=True).stdout


def _fetch_all(xok: Xok, tree: Path, into: Path, *options: str) -> list[str]:
    """Names of the files that came back different, or not at all."""
    into.mkdir()
    files = regular_files(tree)
    config = "".join(f'url = "{_url(xok, path, tree)}"\noutput = "{into}/{n}"\n' for n, path in enumerate(files))
    subprocess.run([*CURL, "--fail", *options, "--config", "-"], input=config, text=True, check=True)
    wrong = []
    for number, path in enumerate(files):
        got = into / str(number)
        if (got.read_bytes() if got.exists() else b"") != path.read_bytes():
            wrong.append(path.name)
    return wrong


def test_every_file_is_fetched_as_it_is(site: Xok, tree: Path, tmp_path: Path) -> None:
    assert _fetch_all(site, tree, tmp_path / "got") == []


def test_parallel_fetch_like_a_browser(site: Xok, tree: Path, tmp_path: Path) -> None:
    assert _fetch_all(site, tree, tmp_path / "got", "--parallel", "--parallel-max", "24") == []


def test_one_connection_for_each_file(site: Xok, tree: Path, tmp_path: Path) -> None:
    assert _fetch_all(site, tree, tmp_path / "got", "--header", "Connection: close") == []


def test_next_request_gets_what_was_written(site: Xok) -> None:
    page = site.mount_point / "page.html"
    for version in range(20):
        body = f"version {version} " * (1 + version * 100)
        page.write_text(body)
        assert _get(f"{site.url}/page.html") == body.encode()
    with page.open("r+") as file:
        file.write("VERSION")
        file.flush()
        assert _get(f"{site.url}/page.html").startswith(b"VERSION 19 ")  # still open for writing
    page.unlink()
    assert b"404" in _get(f"{site.url}/page.html", "--head")


def test_errors_and_conditional_requests(site: Xok) -> None:
    assert b"404" in _get(f"{site.url}/absent", "--head")
    assert b"HTTP/1.1 405" in _get(f"{site.url}/script.sh", "--include", "--data", "x=1")
    assert b"passwd" not in _get(f"{site.url}/../../../../etc/passwd", "--include")
    head = _get(f"{site.url}/script.sh", "--head").decode()
    modified = next(
        line.split(": ", 1)[1].strip() for line in head.splitlines() if line.lower().startswith("last-modified")
    )
    again = _get(f"{site.url}/script.sh", "--include", "--header", f"If-Modified-Since: {modified}")
    assert again.startswith(b"HTTP/1.1 304")


def test_unclaimed_port_is_refused_at_once_and_the_address_answers_echo(site: Xok) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((site.address, 81), timeout=5)
    assert time.monotonic() - began < 2
    assert subprocess.run(["ping", "-c", "2", "-W", "2", site.address], capture_output=True).returncode == 0


def test_slow_reader_does_not_hold_up_others(site: Xok, tree: Path) -> None:
    large = max(regular_files(tree), key=lambda path: path.stat().st_size)
    with socket.create_connection((site.address, 80), timeout=30) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(f"GET /{urllib.parse.quote(str(large.relative_to(tree)))} HTTP/1.0\r\n\r\n".encode())
        time.sleep(0.5)  # the window is full and nobody reads
        results: list[bytes] = []
        threads = [threading.Thread(target=lambda: results.append(_get(f"{site.url}/script.sh"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [b"#!/bin/sh\necho run\n"] * 8
        received = b""
        while chunk := slow.recv(1 << 20):
            received += chunk
    assert received.partition(b"\r\n\r\n")[2] == large.read_bytes()
