"""Each feature of the host that can be missing is done without, and the whole path still works."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from e2e_kit import ROOT, running

FEATURES = ("uring", "direct", "tcx", "btf", "ebpf")
SITE = ROOT / "examples" / "site"


@pytest.mark.parametrize("without", [*FEATURES, ",".join(FEATURES)])
def test_whole_path(without: str, tmp_path: Path) -> None:
    with running(without) as xok:
        assert sorted(xok.status()["xokd"]["without"]) == sorted(without.split(","))
        subprocess.run(["cp", "-r", f"{SITE}/.", xok.mount_point], check=True, timeout=60)
        large = os.urandom(3 << 20)
        (xok.mount_point / "large.bin").write_bytes(large)
        xok.serve()
        for path in (path for path in SITE.rglob("*") if path.is_file()):
            name = str(path.relative_to(SITE)).replace(" ", "%20")
            got = subprocess.run(
                ["curl", "-sSf", "--noproxy", "*", f"{xok.url}/{name}"], capture_output=True, timeout=60
            )
            assert (got.stdout, got.stderr) == (path.read_bytes(), b""), name
        got = subprocess.run(
            ["curl", "-sSf", "--noproxy", "*", f"{xok.url}/large.bin"], capture_output=True, timeout=60
        )
        assert got.stdout == large
        xok.run("down")
        xok.run("check", xok.disk)
