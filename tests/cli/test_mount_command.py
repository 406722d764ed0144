"""`xok mkfs`, `mount`, `umount`, `down`, on a real FUSE mount; servers and xokd die and come back."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.xokkit import Xok, instance, public_directory
from xok_host.cli import exits
from xok_host.host.mountinfo import mounts_now

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no FUSE on this host")


@pytest.fixture(scope="module")
def xok() -> Iterator[Xok]:
    with public_directory() as directory, instance(directory) as xok:
        xok.up()
        xok("mkfs", "vol")
        yield xok


@pytest.fixture
def mounted(xok: Xok) -> Iterator[Path]:
    directory = xok.directory / "mount point"
    directory.mkdir()
    xok("mount", "vol", directory)
    yield directory
    if is_mounted(directory):
        xok("umount", directory)
    directory.rmdir()


def is_mounted(directory: Path) -> bool:
    return str(directory) in [point for point, _ in mounts_now()]


def test_names_are_listed_and_not_given_twice(xok: Xok) -> None:
    assert xok("list").split()[:2] == ["vol", "root"]
    done = xok.try_("mkfs", "vol")
    assert done.status == exits.REFUSED and "name is taken" in done.err
    done = xok.try_("mkfs", "a/b")
    assert done.status == exits.USAGE


def test_files_survive_umount_and_down(xok: Xok, mounted: Path) -> None:
    (mounted / "dir").mkdir()
    (mounted / "dir" / "file").write_bytes(b"x" * 100000)
    xok("umount", mounted)
    assert not is_mounted(mounted) and not os.listdir(mounted)
    xok("mount", "vol", mounted)
    assert (mounted / "dir" / "file").read_bytes() == b"x" * 100000
    (mounted / "late").write_text("late")
    xok("down")
    assert not is_mounted(mounted)
    assert xok("check", xok.image).splitlines()[-1] == "clean"
    xok.up()
    xok("mount", "vol", mounted)
    assert (mounted / "late").read_text() == "late"


def test_every_user_may_look_and_permissions_are_the_kernels(xok: Xok, mounted: Path) -> None:
    (mounted / "open").write_text("for all")
    (mounted / "secret").write_text("for root")
    os.chmod(mounted / "secret", 0o600)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            assert (mounted / "open").read_text() == "for all"
            try:
                (mounted / "secret").read_text()
            except PermissionError:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    line = next(text for text in Path("/proc/self/mountinfo").read_text().splitlines() if "fuse.xok" in text)
    assert {"nosuid", "nodev"} <= set(line.split()[5].split(","))


def test_a_setuid_file_on_the_mount_gives_nothing(xok: Xok, mounted: Path) -> None:
    """Without nosuid, an untrusted server would be root by this."""
    program = mounted / "id"
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o4755)
    assert program.stat().st_mode & 0o7777 == 0o4755 and program.stat().st_uid == 0
    done = subprocess.run(
        [str(program), "-u"], user=65534, group=65534, extra_groups=[], capture_output=True, text=True
    )
    assert done.stdout == "65534\n", done


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["mount", "nothing", "{dir}"], exits.REFUSED, "`xok list`"),
        (["mount", "vol", "{dir}"], exits.REFUSED, "is mounted on"),
        (["umount", "/tmp"], exits.REFUSED, "nothing of ours"),
    ],
)
def test_refusals(xok: Xok, mounted: Path, arguments: list[str], status: int, words: str) -> None:
    done = xok.try_(*(word.replace("{dir}", str(mounted)) for word in arguments))
    assert done.status == status and words in done.err


def test_a_mount_in_use_is_not_taken_away(xok: Xok, mounted: Path) -> None:
    with open(mounted / "held", "w") as file:
        file.write("x")
        done = xok.try_("umount", mounted)
        assert done.status == exits.REFUSED and f"process {os.getpid()}" in done.err and "--lazy" in done.err, done
        done = xok.try_("down")
        assert done.status == exits.REFUSED and f"process {os.getpid()}" in done.err and "--force" in done.err
        assert is_mounted(mounted)


def test_a_mount_in_use_is_detached_at_once_and_served_until_the_last_user_leaves(xok: Xok, mounted: Path) -> None:
    with open(mounted / "held", "w") as file:
        began = time.monotonic()
        xok("umount", mounted, "--lazy")
        assert time.monotonic() - began < 10 and not is_mounted(mounted)
        assert [mount["state"] for mount in xok.status()["mounts"]] == ["detached"]
        for words in (["mount", "vol", mounted], ["umount", mounted], ["umount", mounted, "--lazy"]):
            done = xok.try_(*words)
            assert done.status == exits.REFUSED and ("is mounted on" in done.err or "detached" in done.err), done
        file.write("written after it was detached")
    for _ in range(100):
        if not xok.status()["mounts"]:
            break
        time.sleep(0.05)
    xok("mount", "vol", mounted)
    assert (mounted / "held").read_text() == "written after it was detached"


@pytest.mark.parametrize("lazily", [False, True])
def test_down_by_force_waits_for_nobody_and_keeps_what_was_written(xok: Xok, mounted: Path, lazily: bool) -> None:
    with open(mounted / "held", "wb", buffering=0) as file:
        file.write(b"x" * 100_000)
        if lazily:
            xok("umount", mounted, "--lazy")
        began = time.monotonic()
        xok("down", *([] if lazily else ["--force"]))
        assert time.monotonic() - began < 15 and not is_mounted(mounted)
    assert "did not stop" not in xok.log()
    assert xok("check", xok.image).splitlines()[-1] == "clean"
    xok.up()
    xok("mount", "vol", mounted)
    assert (mounted / "held").read_bytes() == b"x" * 100_000


def test_any_printable_name_can_be_mounted(xok: Xok, mounted: Path) -> None:
    place = mounted.parent / "other"
    place.mkdir()
    for name in ("ü b", "a,b", "100%"):
        xok("mkfs", name)
        xok("mount", name, place)
        (place / "file").write_text(name)
        xok("umount", place)
    assert xok.try_("mkfs", "--", "-x").status == exits.USAGE
    done = xok.try_("mkfs", "a,b")
    assert done.status == exits.REFUSED and "'a,b'" in done.err and "exit status" not in done.err, done


def test_a_killed_server_is_replaced_on_the_same_mount(xok: Xok, mounted: Path) -> None:
    (mounted / "file").write_text("kept")
    with open(mounted / "file", "r+") as file:
        os.fsync(file.fileno())
    directory = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(3):
            os.kill(xok.pid("mount:vol"), signal.SIGKILL)
            assert (mounted / "file").read_text() == "kept"
            os.stat("file", dir_fd=directory)
    finally:
        os.close(directory)
    assert xok.status()["mounts"][0]["restarts"] == 3


def test_a_server_that_keeps_dying_is_given_up_and_nobody_hangs(xok: Xok, mounted: Path) -> None:
    for _ in range(20):
        for environment in xok.status()["environments"]:
            os.kill(environment["pid"], signal.SIGKILL)
        if not is_mounted(mounted):
            break
        time.sleep(0.2)
    assert not is_mounted(mounted)
    assert xok.status()["mounts"] == []
    xok("mount", "vol", mounted)


def test_a_mount_that_root_unmounted_by_hand_is_forgotten(xok: Xok, mounted: Path) -> None:
    (mounted / "file").write_text("x")
    subprocess.run(["umount", str(mounted)], check=True)
    for _ in range(100):
        if not xok.status()["mounts"]:
            break
        time.sleep(0.05)
    xok("mount", "vol", mounted)
    assert (mounted / "file").read_text() == "x"


def test_kill_9_of_xokd_loses_nothing_that_was_synced(xok: Xok, mounted: Path) -> None:
    for number in range(50):
        (mounted / f"file{number}").write_text(str(number))
    directory = os.open(mounted, os.O_RDONLY)
    for number in range(50):
        with open(mounted / f"file{number}", "rb+") as file:
            os.fsync(file.fileno())
    os.fsync(directory)
    os.close(directory)
    copying = subprocess.Popen(["cp", "-r", str(Path(__file__).parents[2] / "xok_host"), str(mounted)], stderr=-3)
    time.sleep(0.2)
    xok.kill_xokd()
    copying.wait(20)
    assert not is_mounted(mounted)
    assert xok.try_("status").status == exits.NOT_RUNNING
    done = xok.try_("check", xok.image)
    assert done.status == exits.OK and "not shut down in order" in done.out, done
    xok.up()
    assert "reconstructed" in xok.log()
    xok("mount", "vol", mounted)
    for number in range(50):
        assert (mounted / f"file{number}").read_text() == str(number)


def test_after_a_crash_a_disk_may_be_used_without_a_walk(xok: Xok, mounted: Path) -> None:
    """What takes longer than it may waits for a start that has the time; everything else goes on."""
    with open(mounted / "kept", "w") as file:
        file.write("kept")
        file.flush()
        os.fsync(file.fileno())
    (mounted / "more").write_bytes(b"m" * 1_000_000)
    xok.kill_xokd()
    done = xok.try_("up", "--disk", xok.image, "--no-network", "--walk", "soon")
    assert done.status == exits.USAGE and "'soon' is no number of seconds; write it like 10, 0 or inf" in done.err
    xok.up("--no-network", "--walk", "0")
    assert "0 seconds did not do to walk all trees" in xok.log()
    assert xok.status()["disks"][0]["surplus"] and "not walked since a crash" in xok("status")
    xok("mount", "vol", mounted)
    assert (mounted / "kept").read_text() == "kept"
    (mounted / "after").write_bytes(b"a" * 3_000_000)
    xok("umount", mounted)
    xok("down")
    done = xok.try_("check", xok.image)
    assert done.status == exits.OK and "it was started without a walk; the next `xok up`" in done.out, done
    xok.up()
    assert "was started without a walk before: reconstructing" in xok.log()
    assert not xok.status()["disks"][0]["surplus"] and "not walked" not in xok("status")
    xok("mount", "vol", mounted)
    assert (mounted / "after").read_bytes() == b"a" * 3_000_000 and (mounted / "kept").read_text() == "kept"


def test_when_the_launcher_is_killed_the_disk_is_saved(tmp_path: Path) -> None:
    with instance(tmp_path) as xok:
        xok.up()
        xok("mkfs", "vol")
        directory = tmp_path / "mnt"
        directory.mkdir()
        xok("mount", "vol", directory)
        pid = int(xok.status()["xokd"]["pid"])
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        daemon = os.pidfd_open(pid)
        os.kill(int(child), signal.SIGKILL)
        assert select.select([daemon], [], [], 20)[0]
        os.close(daemon)
        assert not is_mounted(directory)
        assert "the launcher died" in xok.log() and "every disk is clean" in xok.log()
        assert xok("check", xok.image).splitlines()[-1] == "clean"


def test_in_the_foreground_ctrl_c_unmounts(xok: Xok) -> None:
    directory = xok.directory / "here"
    directory.mkdir()
    command = xok.start("mount", "vol", directory, "--foreground")
    assert command.stdout is not None
    assert "mounted" in command.stdout.readline()
    (directory / "file").write_text("x")
    command.send_signal(signal.SIGINT)
    assert command.wait(20) == 0
    assert not is_mounted(directory)


def test_foreground_xokd_ends_in_order_on_sigterm(tmp_path: Path) -> None:
    xok = Xok(tmp_path)
    xok("format", xok.image, "--size", "64M")
    daemon = xok.start("up", "--disk", xok.image, "--no-network", "--foreground")
    try:
        for _ in range(200):
            if xok.try_("status").status == 0:
                break
            time.sleep(0.05)
        daemon.send_signal(signal.SIGTERM)
        _, errors = daemon.communicate(timeout=20)
        assert daemon.returncode == 0 and "every disk is clean" in errors
    finally:
        daemon.kill()


def test_readiness_is_told_to_the_service_manager(tmp_path: Path) -> None:
    import socket

    xok = Xok(tmp_path)
    xok("format", xok.image, "--size", "64M")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        daemon = subprocess.Popen(
            xok.command("up", "--disk", xok.image, "--no-network", "--foreground"),
            env={**xok.environment(), "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=subprocess.DEVNULL,
        )
        assert select.select([notify], [], [], 20)[0]
        assert notify.recv(100) == b"READY=1"
    xok("down")
    assert daemon.wait(20) == 0
