"""HTTP: Cheetah beside nginx and a canned responder, 0 to 100 KB, one connection a request and kept alive.

Every server answers a client in the host's own TCP over an interface with an MTU of 1500 and offloads: Cheetah and the
canned responder behind a TAP with the same programs attached, nginx in a network namespace behind a veth pair. All have
an initial window of 10 segments (RFC 6928; Linux's default, so nginx's). nginx runs with sendfile and without, and each
cell takes the better.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.responder import canned
from benchmarks.system import System
from benchmarks.tools import (
    PLACEMENTS,
    BenchmarkFailure,
    compile_c,
    cpu_seconds,
    end,
    place,
    ratio,
    run,
    scratch,
    table,
    wait_until,
)

SIZES = (0, 1024, 10240, 102400)
CONNECTIONS = 16
OURS, LIMIT = "cheetah", "canned"


@dataclass(frozen=True)
class Server:
    """`base` is the URL to which a size is appended; `pids` the processes whose CPU time is the server's."""

    base: str
    pids: Callable[[], list[int]]


def _documents(directory: Path) -> None:
    for size in SIZES:
        (directory / str(size)).write_bytes(b"x" * size)


def _cheetah(stack: ExitStack, where: Path) -> Server:
    disk = where / "disk.img"
    with disk.open("wb") as file:
        file.truncate(1 << 30)
    system = System(stack, where, disk, network=252)
    mounting = stack.enter_context(ExitStack())
    system.mount(mounting, where / "mnt")
    _documents(where / "mnt")
    system.serve()
    return Server(f"http://{system.address}/", system.pids)


NGINX = """
daemon off; worker_processes {workers}; pid {where}/nginx.pid; error_log {where}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_requests 100000000; open_file_cache max=100; open_file_cache_valid 1h; tcp_nopush on;
    client_body_temp_path {where}/t1; proxy_temp_path {where}/t2; fastcgi_temp_path {where}/t3;
    uwsgi_temp_path {where}/t4; scgi_temp_path {where}/t5;
    server {{ listen {address}:80 reuseport; root {where}/www; sendfile on; }}
    server {{ listen {address}:81 reuseport; root {where}/www; sendfile off; }}
}}
"""


def _nginx(stack: ExitStack, where: Path, workers: int) -> dict[str, Server]:
    """nginx in a namespace of its own, behind a veth pair."""
    tag = f"{os.getpid()}w{workers}"
    space, ours, theirs = f"xkb{tag}", f"xka{tag}"[:15], f"xkc{tag}"[:15]
    network = 252 + workers
    run("ip", "netns", "add", space)
    stack.callback(run, "ip", "netns", "delete", space)
    run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", space)
    run("ip", "address", "add", f"10.44.{network}.1/24", "dev", ours)
    run("ip", "link", "set", ours, "up")
    run("ip", "-n", space, "address", "add", f"10.44.{network}.2/24", "dev", theirs)
    run("ip", "-n", space, "link", "set", theirs, "up")
    (where / "www").mkdir(parents=True)
    for path in (where, where / "www"):
        path.chmod(0o755)
    _documents(where / "www")
    address = f"10.44.{network}.2"
    (where / "nginx.conf").write_text(NGINX.format(where=where, address=address, workers=workers))
    command = ["ip", "netns", "exec", space, "nginx", "-c", str(where / "nginx.conf"), "-e", str(where / "error.log")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(end, server)
    wait_until(lambda: (where / "nginx.pid").exists() or server.poll() is not None, "the start of nginx")
    if server.poll() is not None:
        raise BenchmarkFailure(f"nginx ended: {(where / 'error.log').read_text()}")

    def pids() -> list[int]:
        return [
            server.pid,
            *(int(p) for p in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()),
        ]

    return {
        "nginx": Server(f"http://{address}:80/", pids),
        "nginx without sendfile": Server(f"http://{address}:81/", pids),
    }


def _load(url: str, seconds: int, keep: bool) -> float:
    """Requests per second that wrk gets from `url`. An answer that is not 2xx is a failure."""
    header = [] if keep else ["-H", "Connection: close"]
    said = run("wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{seconds}s", *header, url)
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if not found or "Non-2xx" in said or float(found[1]) == 0:
        raise BenchmarkFailure(f"wrk on {url}: {said}")
    return float(found[1])


def _expect(server: Server) -> None:
    """Each size must be answered with as many bytes, or the comparison means nothing."""
    for size in SIZES:
        for header in ("Connection: close", "Connection: keep-alive"):
            url = f"{server.base}{size}"
            got = subprocess.run(["curl", "-sf", "--noproxy", "*", "-m", "10", "-H", header, url], capture_output=True)
            if got.returncode or len(got.stdout) != size:
                raise BenchmarkFailure(f"{url} gave {len(got.stdout)} bytes, curl's status {got.returncode}")


def measure(rounds: int, seconds: int, placements: list[str]) -> dict[str, Any]:
    """{placement: {"close" | "keep": {size: {server: {"rate": [...], "cpu": [µs of server per request, ...]}}}}}."""
    result: dict[str, Any] = {}
    for placement in placements:
        cpus = PLACEMENTS[placement]
        with ExitStack() as stack:
            where = scratch(stack)
            place([os.getpid()], cpus)
            stack.callback(place, [os.getpid()], PLACEMENTS["unpinned"])
            program = compile_c("canned", where)
            servers = {OURS: _cheetah(stack, where)}
            servers |= _nginx(stack, where / "nginx", workers=len(cpus))
            servers[LIMIT] = Server(*canned(stack, program, network=253))
            for server in servers.values():
                _expect(server)
                place(server.pids(), cpus)
            result[placement] = _measure(servers, rounds, seconds)
    return result


def _measure(servers: dict[str, Server], rounds: int, seconds: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for mode in ("close", "keep"):
        for size in SIZES:
            cell: dict[str, dict[str, list[float]]] = {name: {"rate": [], "cpu": []} for name in servers}
            for _ in range(rounds):
                for name, server in servers.items():
                    before = cpu_seconds(server.pids())
                    rate = _load(f"{server.base}{size}", seconds, mode == "keep")
                    used = cpu_seconds(server.pids()) - before
                    cell[name]["rate"].append(rate)
                    cell[name]["cpu"].append(used * 1e6 / (rate * seconds))
            result.setdefault(mode, {})[str(size)] = cell
    return result


def _better_nginx(cell: dict[str, Any]) -> str:
    return max((name for name in cell if name.startswith("nginx")), key=lambda n: statistics.median(cell[n]["rate"]))


def report(result: dict[str, Any]) -> str:
    parts = []
    for placement, modes in result.items():
        for mode, sizes in modes.items():
            rows = []
            for size, cell in sizes.items():
                nginx = _better_nginx(cell)
                rates = {name: statistics.median(cell[name]["rate"]) for name in (OURS, nginx, LIMIT)}
                cpu = {name: statistics.median(cell[name]["cpu"]) for name in (OURS, nginx, LIMIT)}
                rows.append(
                    [
                        f"{int(size) // 1024} KB",
                        *(f"{rates[name]:,.0f}" for name in (OURS, nginx, LIMIT)),
                        f"{ratio(cell[OURS]['rate'], cell[nginx]['rate']):.2f}×",
                        f"{ratio(cell[OURS]['rate'], cell[LIMIT]['rate']):.2f}×",
                        *(f"{cpu[name]:.1f}" for name in (OURS, nginx, LIMIT)),
                    ]
                )
            how = "kept alive" if mode == "keep" else "one connection a request"
            heads = ["", OURS, "nginx", LIMIT, "/ nginx", "/ canned", "µs CPU", "nginx", "canned"]
            parts.append(table(f"requests a second, {how}, {placement} (above 1× we are faster)", heads, rows))
    return "\n".join(parts)
