"""`xok demo`: the whole path once, by the commands a person would type, on a disk, a TAP and a runtime of its own.

Formats an image file, starts xokd, makes a file system, mounts it, copies a site onto it with `cp -r`, serves it with
Cheetah, fetches every file with curl through the TAP and compares what came with what was copied. Stays up until
Ctrl-C, or until somebody stops it with `xok down`; with --once it ends after the comparison. Whatever happens, what
it started is stopped and what it made is removed, except an image that --image named.
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import json
import os
import select
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xok_host.abi.errors import NotAllowed

HELP = "format, start, mount, copy a site, serve it, fetch every file and compare: everything at once"

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "examples" / "site"
NAME = "demo"

# Room for what is copied, twice over for its metadata and its former versions, and at least this.
LEAST_DISK = 256 << 20

# Files that one curl fetches over one connection: bounds the space taken by copies that wait to be compared.
BATCH = 200


class DemoFailure(Exception):
    """A step did not do what it should; the message says which, and what it printed."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", nargs="?", metavar="DIR", type=Path, default=SITE, help="site to serve instead")
    parser.add_argument("--once", action="store_true", help="stop after the comparison; exit status 0 if all matched")
    parser.add_argument("--image", type=Path, help="keep the disk in this file (made if absent, never removed)")


@dataclass
class Demo:
    """One running demonstration. Order of calls: start, copy, serve, compare; close in any case."""

    source: Path
    image: Path | None
    scratch: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="xok-demo-", dir="/var/tmp")))
    up: bool = False
    mounted: bool = False

    def __post_init__(self) -> None:
        os.chmod(self.scratch, 0o755)  # every user may look at the mount inside
        self.disk = self.image or self.scratch / "disk.img"
        self.mount_point = self.scratch / "mnt"
        self.runtime = Path(os.environ.get("XOK_RUNTIME_DIR") or self.scratch / "run")
        self.tap, network = _free_network()
        self.host_address, self.address = network[1], network[2]
        self.prefix = network.prefixlen
        self.url = f"http://{self.address}/"

    # ---- the steps

    def start(self) -> None:
        if not (self.image and self.image.exists()):
            room = max(LEAST_DISK, 3 * sum(path.lstat().st_size for path in _files(self.source)))
            self.xok("format", str(self.disk), "--size", f"{(room >> 20) + 1}M")
        self.runtime.mkdir(mode=0o755, exist_ok=True)
        self.up = True
        address = f"{self.host_address}/{self.prefix}"
        self.xok("up", "--disk", str(self.disk), "--tap", self.tap, "--host-address", address)
        if not self._has_file_system():
            self.xok("mkfs", NAME)
        self.mount_point.mkdir()
        self.mounted = True
        self.xok("mount", NAME, str(self.mount_point))

    def copy(self) -> None:
        _shown("cp", "-r", f"{self.source}/.", f"{self.mount_point}/")

    def serve(self) -> None:
        self.xok("serve", NAME, "--address", f"{self.address}/{self.prefix}")

    def compare(self) -> int:
        """Fetch every regular file, compare hashes, print each that differs, and return how many differ."""
        files = sorted(_files(self.source))
        if not files:
            raise DemoFailure(f"{self.source} has no file to serve")
        began = time.monotonic()
        total = wrong = 0
        for first in range(0, len(files), BATCH):
            batch = files[first : first + BATCH]
            got = self._fetch(batch)
            for path, fetched in zip(batch, got, strict=True):
                total += path.stat().st_size
                if fetched != _hash(path):
                    wrong += 1
                    what = "could not be fetched" if fetched is None else "came back different"
                    print(f"  WRONG {os.fsdecode(os.path.relpath(path, self.source))}: {what}", flush=True)
        seconds = time.monotonic() - began
        kilobytes = total / 1024
        print(f"  {len(files) - wrong} of {len(files)} files, {kilobytes:,.0f} KB, identical, in {seconds:.1f} s")
        return wrong

    def close(self) -> list[str]:
        """Stop and remove what was started and made. Returns what did not go well."""
        troubles = []
        for running, command in ((self.mounted, ["umount", str(self.mount_point)]), (self.up, ["down"])):
            if running:
                try:
                    self.xok(*command)
                except DemoFailure as failure:
                    troubles.append(str(failure))
        if self.up and not troubles:
            try:
                self.xok("check", str(self.disk))
            except DemoFailure as failure:
                troubles.append(str(failure))
        if os.path.ismount(self.mount_point):
            subprocess.run(["umount", "--lazy", str(self.mount_point)], capture_output=True)
        if not os.path.ismount(self.mount_point):
            shutil.rmtree(self.scratch, ignore_errors=True)
        return troubles

    # ---- how

    def xok(self, *arguments: str) -> str:
        """Run one command of `xok` in this demonstration's runtime directory and return what it printed."""
        environment = {**os.environ, "XOK_RUNTIME_DIR": str(self.runtime)}
        command = [sys.executable, "-P", "-m", "xok_host.cli", *arguments]
        return _shown(*command, shown=["xok", *arguments], environment=environment)

    def status(self) -> dict[str, object]:
        environment = {**os.environ, "XOK_RUNTIME_DIR": str(self.runtime)}
        command = [sys.executable, "-P", "-m", "xok_host.cli", "status", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise DemoFailure(f"xok status failed: {done.stderr.strip()}")
        status: dict[str, object] = json.loads(done.stdout)
        return status

    def _has_file_system(self) -> bool:
        if not self.image:
            return False
        return any(line.split()[:1] == [NAME] for line in self.xok("list").splitlines())

    def _fetch(self, files: Sequence[Path]) -> list[str | None]:
        """Hashes of what curl gets for `files`, None where it gets no answer of 200."""
        target = self.scratch / "fetched"
        target.mkdir(exist_ok=True)
        lines = []
        for number, path in enumerate(files):
            quoted = urllib.parse.quote(os.fsencode(os.path.relpath(path, self.source)))
            lines.append(f'url = "{self.url}{quoted}"\noutput = "{target}/{number}"\n')
        options = ["--silent", "--fail", "--globoff", "--path-as-is", "--max-time", "600", "--noproxy", "*"]
        subprocess.run(["curl", *options, "--config", "-"], input="".join(lines), text=True, stderr=subprocess.DEVNULL)
        found = [target / str(number) for number in range(len(files))]
        hashes = []
        for path, copy in zip(files, found, strict=True):
            # curl makes no file for an empty answer: whether it was 200 is asked again.
            empty = not copy.exists() and path.stat().st_size == 0 and self._answers_empty(path)
            hashes.append(hashlib.sha256().hexdigest() if empty else _hash(copy) if copy.exists() else None)
        shutil.rmtree(target)
        return hashes

    def _answers_empty(self, path: Path) -> bool:
        url = self.url + urllib.parse.quote(os.fsencode(os.path.relpath(path, self.source)))
        command = ["curl", "--silent", "--globoff", "--path-as-is", "--noproxy", "*", "-w", "%{http_code}", url]
        return subprocess.run(command, capture_output=True, timeout=60).stdout == b"200"


def _shown(*command: str, shown: Sequence[str] = (), environment: dict[str, str] | None = None) -> str:
    print("  $", shlex.join(shown or command), flush=True)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = done.stdout.strip() or "it printed nothing"
        raise DemoFailure(f"`{shlex.join(shown or command)}` ended with status {done.returncode}: {said}")
    return done.stdout


def _files(directory: Path) -> Iterator[Path]:
    """Regular files below `directory`, symbolic links not followed."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free_network() -> tuple[str, ipaddress.IPv4Network]:
    """A TAP name and a /24 that this machine does not use yet."""
    said = subprocess.run(["ip", "-json", "-4", "address"], capture_output=True, text=True, check=True).stdout
    used = [
        ipaddress.ip_interface(f"{address['local']}/{address['prefixlen']}").network
        for link in json.loads(said or "[]")
        for address in link.get("addr_info", [])
    ]
    names = os.listdir("/sys/class/net")
    for number in range(256):
        network = ipaddress.IPv4Network(f"10.42.{number}.0/24")
        if f"xokdemo{number}" not in names and not any(network.overlaps(other) for other in used):
            return f"xokdemo{number}", network
    raise DemoFailure("every network 10.42.0.0/24 to 10.42.255.0/24 is in use on this machine")


def _describe(demo: Demo) -> None:
    environments = demo.status().get("environments", [])
    print("\nRunning:")
    for item in environments if isinstance(environments, list) else []:
        print(f"  environment {item['name']}: process {item['pid']}, uid {item['uid']}")
    shown = f"XOK_RUNTIME_DIR={demo.runtime} {ROOT}/xok"
    print(f"\n  site     {demo.url}")
    print(f"  files    {demo.mount_point}   (change one and fetch it again)")
    print(f"  look     sudo {shown} status")
    print(f"  stop     Ctrl-C here, or sudo {shown} down\n", flush=True)


def _wait_for_xokd(demo: Demo) -> None:
    """Return when xokd has ended."""
    xokd = demo.status()["xokd"]
    assert isinstance(xokd, dict)
    descriptor = os.pidfd_open(int(xokd["pid"]))
    try:
        select.select([descriptor], [], [])
    finally:
        os.close(descriptor)
    print("xokd has been stopped.")
    demo.up = demo.mounted = False


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def run(options: argparse.Namespace) -> int:
    """0 when every file matched, 1 when one did not or a step failed, 2 for a request that makes no sense.

    Raises NotAllowed."""
    if os.geteuid() != 0:
        raise NotAllowed("makes a TAP and a mount, which needs root: sudo ./xok demo")
    if not options.directory.is_dir():
        print(f"xok demo: {options.directory} is not a directory", file=sys.stderr)
        return 2
    status = 1
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        demo = Demo(options.directory.resolve(), options.image and options.image.resolve())
    except DemoFailure as failure:
        print(f"xok demo: {failure}", file=sys.stderr)
        return 1
    try:
        print("A disk, the exokernel on it, a file system, a mount:")
        demo.start()
        print(f"A site, copied from {demo.source}:")
        demo.copy()
        print("Cheetah, serving it:")
        demo.serve()
        print("Every file, fetched through the TAP:")
        status = 1 if demo.compare() else 0
        _describe(demo)
        if not options.once:
            _wait_for_xokd(demo)
    except DemoFailure as failure:
        print(f"xok demo: {failure}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # once is enough: what follows takes a moment and must finish
        print("Stopping:")
        troubles = demo.close()
        for trouble in troubles:
            print(f"xok demo: {trouble}", file=sys.stderr)
    return 1 if troubles else status
