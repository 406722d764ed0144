"""The launcher: starts, kills, reaps; dies with xokd and takes everything along; keeps FUSE mounts alive."""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
from pathlib import Path

import pytest
import trio

from tests.host.launchkit import Kit, run_program, with_launcher
from xok_host.host import confine, fusemount
from xok_host.host.launchlink import LaunchError
from xok_host.host.mountinfo import mounts_now

SLEEP = """
import time
def main(env, argv):
    print("running", flush=True)
    time.sleep(1000)
"""
WAIT_FOR_XOKD = """
def main(env, argv):
    while True:
        env.wait_event()
"""


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether the process ends within the time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


def test_the_exit_status_is_the_programs() -> None:
    assert run_program("def main(env, argv): return 7")[0] == 7
    assert run_program("def main(env, argv): return None")[0] == 0
    assert run_program("def main(env, argv): raise SystemExit(9)")[0] == 9


def test_arguments_and_output_arrive() -> None:
    assert run_program("def main(env, argv): print(env.id, argv)", "a", "b c") == (0, "1 ['a', 'b c']\n")


@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        ("import nothing_of_the_kind", confine.EXIT_IMPORT, "ModuleNotFoundError"),
        ("x = 1", confine.EXIT_IMPORT, "has no attribute 'main'"),
        ("def main(env, argv): 1 / 0", confine.EXIT_CRASH, "ZeroDivisionError"),
    ],
)
def test_a_program_that_fails_says_why(program: str, status: int, words: str) -> None:
    got, output = run_program(program)
    assert got == status and words in output


def test_a_killed_environment_is_reported_and_its_slot_free_again() -> None:
    async def main(kit: Kit) -> None:
        pid = await kit.spawn(3, SLEEP)
        with pytest.raises(LaunchError) as refusal:
            await kit.spawn(3, SLEEP)
        assert refusal.value.errno == errno.EEXIST
        kit.exited[3] = trio.Event()
        os.kill(pid, signal.SIGKILL)
        await kit.exited[3].wait()
        assert kit.exits[3] == -signal.SIGKILL
        await kit.spawn(3, SLEEP)
        await kit.link.kill(3)
        assert (await kit.finish(3))[0] == -signal.SIGKILL

    with_launcher(main)


def test_environments_have_different_uids_and_do_not_see_one_another() -> None:
    program = "import os\ndef main(env, argv): print(os.getuid(), os.listdir('/proc').count('1'))\n"

    async def main(kit: Kit) -> set[str]:
        await kit.spawn(1, program)
        await kit.spawn(2, program)
        return {(await kit.finish(1))[1], (await kit.finish(2))[1]}

    outputs = with_launcher(main)
    assert len(outputs) == 2 and all(output.split()[1] == "1" for output in outputs)


def test_a_signal_from_the_host_cannot_be_missed_but_sigkill_is_what_counts() -> None:
    """Pid 1 of a namespace ignores what it has no handler for: the launcher uses SIGKILL."""

    async def main(kit: Kit) -> None:
        pid = await kit.spawn(1, SLEEP)
        os.kill(pid, signal.SIGTERM)
        await trio.sleep(0.05)
        assert not kit.exited[1].is_set()
        await kit.link.kill(1)
        await kit.exited[1].wait()

    with_launcher(main)


def test_when_xokd_dies_everything_it_started_dies() -> None:
    pids = []

    async def main(kit: Kit) -> None:
        for slot in (1, 2):
            pids.append(await kit.spawn(slot, SLEEP))

    with_launcher(main)  # closes xokd's end and waits for the launcher
    assert all(gone(pid) for pid in pids)


def test_when_the_launcher_is_killed_its_environments_die() -> None:
    async def main(kit: Kit) -> None:
        pid = await kit.spawn(1, SLEEP)
        os.kill(kit.pid, signal.SIGKILL)
        assert await trio.to_thread.run_sync(gone, pid)

    with pytest.raises(BaseException) as raised:
        with_launcher(main)
    assert "the launcher died" in str(raised.value.exceptions)  # type: ignore[attr-defined]


def test_an_environment_sees_that_xokd_is_gone() -> None:
    async def main(kit: Kit) -> tuple[int, str]:
        await kit.spawn(1, WAIT_FOR_XOKD)
        kit.sockets[1].shutdown(2)
        return await kit.finish(1)

    status, output = with_launcher(main)
    assert status == confine.EXIT_CRASH and "xokd is gone" in output


def test_a_callers_lower_limits_apply() -> None:
    program = "import resource\ndef main(env, argv): print(resource.getrlimit(resource.RLIMIT_DATA))\n"

    async def main(kit: Kit) -> str:
        await kit.spawn(1, program, limits={"DATA": 1 << 28, "NPROC": 1 << 30})
        return (await kit.finish(1))[1]

    assert with_launcher(main) == f"({1 << 28}, {1 << 28})\n"


FUSE = """
import os, select, struct
def main(env, argv):
    fd = env.extra_fds["fd:fuse"]
    init = bytes.fromhex(argv[0])
    unique = struct.unpack_from("<Q", init, 8)[0]
    def answer(unique, body=b"", error=0):
        os.write(fd, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
    if argv[1] == "first":
        answer(unique, struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0))
    print("ready", flush=True)
    attr = struct.pack("<QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
    while True:
        select.select([fd], [], [])
        try:
            request = os.read(fd, 65536)
        except OSError as error:
            print("read", error.errno)
            return 0
        opcode, unique = struct.unpack_from("<IQ", request, 4)
        if opcode == 3:       # GETATTR
            answer(unique, struct.pack("<QII", 0, 0, 0) + attr)
        elif opcode == 17:    # STATFS
            answer(unique, struct.pack("<QQQQQIIII24x", 1234, 0, 0, 0, 0, 4096, 255, 4096, 0))
        else:
            answer(unique, error=-38)
"""


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no FUSE on this host")
    path = tmp_path / "a mount"
    path.mkdir()
    return path


def blocks(path: Path) -> int:
    return os.statvfs(path).f_blocks


async def line(kit: Kit, slot: int) -> bytes:
    await trio.lowlevel.wait_readable(kit.outputs[slot])
    return os.read(kit.outputs[slot], 100)


def test_a_mount_outlives_its_server_and_goes_with_xokd(mount_point: Path) -> None:
    async def main(kit: Kit) -> None:
        fuse, init = await kit.link.mount("m", str(mount_point), "test")
        assert struct.unpack_from("<I", bytes.fromhex(init), 4)[0] == 26
        await kit.spawn(1, FUSE, init, "first", **{"fd:fuse": fuse})
        os.close(fuse)
        assert await line(kit, 1) == b"ready\n"
        assert await trio.to_thread.run_sync(blocks, mount_point) == 1234
        options = next(text for text in open("/proc/self/mountinfo") if "fuse.xok" in text)
        assert {"nosuid", "nodev"} <= set(options.split()[5].split(","))
        assert "default_permissions" in options and "allow_other" in options
        with pytest.raises(LaunchError):
            await kit.link.mount("m", str(mount_point), "again")

        await kit.link.kill(1)
        await kit.exited[1].wait()
        with trio.move_on_after(0.2) as patience:
            await trio.to_thread.run_sync(blocks, mount_point, abandon_on_cancel=True)
        assert patience.cancelled_caught, "without a server a request waits"
        fuse, again = await kit.link.fuse("m")
        assert again == init
        await kit.spawn(2, FUSE, init, "next", **{"fd:fuse": fuse})
        os.close(fuse)
        assert await line(kit, 2) == b"ready\n"
        assert await trio.to_thread.run_sync(blocks, mount_point) == 1234

    with_launcher(main)
    assert str(mount_point) not in [point for point, _ in mounts_now()]


def test_umount_ends_the_server_and_tells_when_it_is_busy(mount_point: Path) -> None:
    async def main(kit: Kit) -> tuple[int, str]:
        fuse, init = await kit.link.mount("m", str(mount_point), "test")
        await kit.spawn(1, FUSE, init, "first", **{"fd:fuse": fuse})
        os.close(fuse)
        await line(kit, 1)
        inside = await trio.to_thread.run_sync(os.open, mount_point, os.O_PATH)
        with pytest.raises(LaunchError) as refusal:
            await kit.link.umount("m")
        assert refusal.value.errno == errno.EBUSY
        os.close(inside)
        await kit.link.umount("m")
        with pytest.raises(LaunchError) as missing:
            await kit.link.umount("m")
        assert missing.value.errno == errno.ENOENT
        return await kit.finish(1)

    assert with_launcher(main) == (0, f"read {errno.ENODEV}\n")


def test_a_mount_that_somebody_else_unmounted_is_forgotten(mount_point: Path) -> None:
    async def main(kit: Kit) -> None:
        fuse, _ = await kit.link.mount("m", str(mount_point), "test")
        os.close(fuse)
        fusemount.umount(str(mount_point))
        await kit.link.umount("m")
        fuse, _ = await kit.link.mount("m", str(mount_point), "test")
        os.close(fuse)

    with_launcher(main)
