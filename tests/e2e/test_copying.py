"""Unmodified programs on the mount: cp, diff, tar, a compiler, other users."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

from e2e_kit import Xok

NOBODY = 65534


def _diff(first: Path, second: Path) -> str:
    command = ["diff", "--recursive", "--no-dereference", "--brief", str(first), str(second)]
    return subprocess.run(command, capture_output=True, text=True).stdout


def _as_nobody(*command: str | Path) -> subprocess.CompletedProcess[str]:
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True)


def test_copy_of_a_thousand_files_is_the_same_now_and_after_a_remount_and_a_restart(system: Xok, tree: Path) -> None:
    copy = system.mount_point / "copy"
    subprocess.run(["cp", "-r", tree, copy], check=True)
    assert _diff(tree, copy) == ""
    system.run("umount", system.mount_point)
    assert not copy.exists()
    system.mount()
    assert _diff(tree, copy) == ""
    system.run("down")
    assert "clean" in system.run("check", system.disk)
    system.up()
    system.mount()
    assert _diff(tree, copy) == ""
    shutil.rmtree(copy)
    assert not copy.exists()


def test_archive_keeps_modes_times_and_links(system: Xok, tree: Path) -> None:
    archive = system.mount_point / "tree.tar"
    subprocess.run(["tar", "-C", tree, "-cf", archive, "."], check=True)
    unpacked = system.mount_point / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-C", unpacked, "-xpf", archive], check=True)
    assert _diff(tree, unpacked) == ""
    for path in tree.rglob("*"):
        wanted, got = path.lstat(), (unpacked / path.relative_to(tree)).lstat()
        assert (got.st_mode, int(got.st_mtime)) == (wanted.st_mode, int(wanted.st_mtime)), path
    subprocess.run(["tar", "-C", unpacked, "--compare", "-f", archive], check=True)


def test_compiler_runs_on_the_mount_and_so_does_what_it_made(system: Xok) -> None:
    work = system.mount_point / "work"
    work.mkdir()
    (work / "greet.h").write_text("const char *greeting(void);\n")
    (work / "greet.c").write_text('#include "greet.h"\nconst char *greeting(void) { return "hello from the mount"; }\n')
    (work / "main.c").write_text(
        '#include <stdio.h>\n#include "greet.h"\nint main(void) { return puts(greeting()) < 0; }\n'
    )
    for source in ("greet", "main"):
        subprocess.run(["gcc", "-c", f"{source}.c", "-o", f"{source}.o"], cwd=work, check=True)
    subprocess.run(["ar", "rcs", "libgreet.a", "greet.o"], cwd=work, check=True)
    subprocess.run(["gcc", "main.o", "-L.", "-lgreet", "-o", "hello"], cwd=work, check=True)
    assert (
        subprocess.run([work / "hello"], capture_output=True, text=True, check=True).stdout == "hello from the mount\n"
    )


def test_names_behave_as_unix_names_do(system: Xok) -> None:
    work = system.mount_point / "names"
    work.mkdir()
    first, second = work / "first", work / "second"
    first.write_text("one")
    os.link(first, second)
    assert first.stat().st_ino == second.stat().st_ino and first.stat().st_nlink == 2
    os.rename(second, work / "third")
    (work / "other").write_text("two")
    os.replace(work / "other", work / "third")
    assert (work / "third").read_text() == "two" and first.stat().st_nlink == 1
    with first.open("r+b") as file:
        first.unlink()
        file.seek(0)
        assert file.read() == b"one"  # open and unlinked
        file.truncate(10)
        assert os.fstat(file.fileno()).st_size == 10
    assert sorted(os.listdir(work)) == ["third"]


def test_large_sparse_file(system: Xok) -> None:
    path = system.mount_point / "sparse"
    with path.open("wb") as file:
        file.seek(1 << 40)
        file.write(b"the end")
        file.flush()
        os.fsync(file.fileno())
    assert path.stat().st_size == (1 << 40) + 7
    assert path.stat().st_blocks * 512 < 1 << 20
    with path.open("rb") as file:
        file.seek((1 << 40) - 8)
        assert file.read() == bytes(8) + b"the end"
    path.unlink()


def test_permissions_hold_for_every_user(system: Xok) -> None:
    system.mount_point.chmod(0o755)
    secret, public = system.mount_point / "secret", system.mount_point / "public"
    secret.write_text("mine")
    secret.chmod(0o600)
    public.write_text("yours")
    public.chmod(0o644)
    assert _as_nobody("cat", public).stdout == "yours"
    assert "Permission denied" in _as_nobody("cat", secret).stderr
    assert "Permission denied" in _as_nobody("touch", system.mount_point / "new").stderr
    shared = system.mount_point / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    assert _as_nobody("touch", shared / "theirs").returncode == 0
    assert (shared / "theirs").stat().st_uid == NOBODY


def test_mount_is_nosuid_nodev_and_checked_by_the_host_kernel(system: Xok) -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    line = next(line for line in lines if line.split()[4] == str(system.mount_point))
    flags = line.replace(",", " ").split()
    assert {"nosuid", "nodev", "default_permissions", "allow_other"} <= set(flags)
    tool = system.mount_point / "id"
    shutil.copy("/usr/bin/id", tool)
    tool.chmod(0o4755)
    assert stat.S_ISUID & tool.stat().st_mode
    assert _as_nobody(tool, "-u").stdout.strip() == str(NOBODY)
