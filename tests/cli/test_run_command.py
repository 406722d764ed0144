"""`xok run`: anybody's libOS, under its caller's limits; what it holds goes when it goes."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host.xokkit import Xok, instance, public_directory
from xok_host.abi import accel
from xok_host.cli import exits
from xok_host.cli.__main__ import main as xok_main

SLEEPER = """
import time
def main(env, argv):
    print("running", flush=True)
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def xok() -> Iterator[Xok]:
    with public_directory() as directory, instance(directory) as xok:
        xok.up()
        yield xok


def test_status_output_and_arguments_are_the_programs(xok: Xok) -> None:
    program = xok.program("def main(env, argv):\n print(argv)\n return 5\n")
    done = xok.try_("run", program, "a", "--b", "c d")
    assert (done.status, done.out) == (5, "['a', '--b', 'c d']\n")


def test_a_program_that_crashes_shows_its_traceback(xok: Xok) -> None:
    done = xok.try_("run", xok.program("def main(env, argv): 1 / 0"))
    assert done.status == 122 and "ZeroDivisionError" in done.out


def test_it_can_make_and_use_a_root_of_its_own(xok: Xok) -> None:
    program = xok.program(
        """
from xok_host.abi.types import TYPE_XN_DB
from xok_host.abi import errors

def main(env, argv):
    made = env.call("install_mount", 1, 0, 1, TYPE_XN_DB, data=b"mine")
    page = env.registry.lookup(1 << 44 | made.r0).page
    assert bytes(env.page(page)) == bytes(4096)
    try:
        env.call("install_mount", 1, 0, 1, TYPE_XN_DB, data=b"mine")
    except errors.Exists as refused:
        print("refused:", refused)
    env.call("flush", 1)
    print(env.counters.as_dict()["environments_created"] > 0, env.devices)
"""
    )
    out = xok("run", program)
    assert "refused: The name is taken" in out and "True" in out
    assert "mine" in xok("list")


def test_ctrl_c_asks_it_to_stop(xok: Xok) -> None:
    program = xok.program(
        """
def main(env, argv):
    print("running", flush=True)
    while not env.stop_requested:
        env.wait_event()
    print("stopping")
    return 3
"""
    )
    command = xok.start("run", program)
    assert command.stdout is not None
    assert command.stdout.readline() == "running\n"
    command.send_signal(signal.SIGINT)
    out, _ = command.communicate(timeout=20)
    assert (command.returncode, out) == (3, "stopping\n")


def test_it_dies_with_the_command_that_started_it(xok: Xok) -> None:
    program = xok.program(
        "import time\ndef main(env, argv):\n print('running', flush=True)\n time.sleep(1000)\n", "s.py"
    )
    command = xok.start("run", program)
    assert command.stdout is not None
    command.stdout.readline()
    pid = xok.pid("s.py")
    command.kill()
    command.communicate()
    for _ in range(200):
        if not os.path.exists(f"/proc/{pid}"):
            break
        time.sleep(0.05)
    assert not [env for env in xok.status()["environments"] if env["name"] == "s.py"]


def test_a_killed_one_is_reported_like_a_shell_would(xok: Xok) -> None:
    program = xok.program(
        "import time\ndef main(env, argv):\n print('running', flush=True)\n time.sleep(1000)\n", "k.py"
    )
    command = xok.start("run", program)
    assert command.stdout is not None
    command.stdout.readline()
    os.kill(xok.pid("k.py"), signal.SIGKILL)
    command.communicate(timeout=20)
    assert command.returncode == 128 + signal.SIGKILL


def test_death_releases_what_it_held(xok: Xok) -> None:
    """Pages, locks, pins: a thousand pages held at death are free afterwards, time after time."""
    make = xok.program("def main(env, argv): env.call('install_mount', 1, 0, 1, 1, data=b'held')", "make_held.py")
    xok("run", make)
    program = xok.program(
        """
import os
def main(env, argv):
    root = env.call("mount", 1, cap=1, data=b"held", out_bytes=200)
    env.call("page_alloc", 1000, cap=1, out_bytes=8000)
    env.call("lock", root.r0, 2, cap=1)
    env.call("pin", root.r0, env.registry.lookup(root.r0 >> 12).generation, cap=1)
    os.abort()
""",
        "hold.py",
    )
    before = xok.status()
    for _ in range(20):
        done = xok.try_("run", "--tree", "held", program)
        assert done.status in (128 + signal.SIGABRT, 128 + signal.SIGSEGV), done
    after = xok.status()
    assert after["environments"] == []
    assert after["cache"]["pages_in_use"] == before["cache"]["pages_in_use"]
    counters = after["counters"]
    assert counters["environments_created"] - counters["environments_destroyed"] == 1  # xokd's own


def as_nobody(xok: Xok, function: Callable[[], int]) -> int:
    """Run in a child without privileges; its exit status."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.environ["XOK_RUNTIME_DIR"] = str(xok.runtime)
            null = os.open("/dev/null", os.O_RDWR)
            os.dup2(null, 2)
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            status = function()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_an_unprivileged_user_may_look_and_run_and_nothing_else(xok: Xok) -> None:
    program = str(xok.program("def main(env, argv): return 17"))
    assert as_nobody(xok, lambda: xok_main(["status"])) == exits.OK
    assert as_nobody(xok, lambda: xok_main(["list"])) == exits.OK
    assert as_nobody(xok, lambda: xok_main(["run", program])) == 17
    for words in (["serve", "x", "--address", "10.0.0.2/24"], ["down"], ["down", "--force"]):
        assert as_nobody(xok, lambda words=words: xok_main(words)) == exits.NOT_ALLOWED  # type: ignore[misc]
    for words in (["mount", "x", "/"], ["umount", "/x"]):  # test_own_filesystem.py has what is theirs
        assert as_nobody(xok, lambda words=words: xok_main(words)) == exits.REFUSED  # type: ignore[misc]
    assert as_nobody(xok, lambda: xok_main(["run", "--tree", "raw", program])) in (exits.REFUSED, exits.NOT_ALLOWED)


def test_a_program_that_only_its_owner_can_read_runs(xok: Xok) -> None:
    """The caller opens it; no other user needs to be able to."""
    program = xok.program("def main(env, argv): return 18", "private.py")
    os.chown(program, 65534, 65534)
    program.chmod(0o400)
    assert as_nobody(xok, lambda: xok_main(["run", str(program)])) == 18


def test_a_callers_own_limits_hold(xok: Xok) -> None:
    program = str(
        xok.program(
            "import resource\n"
            "def main(env, argv): return resource.getrlimit(resource.RLIMIT_DATA)[1] == 300 << 20 and 19\n",
            "limits.py",
        )
    )

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_DATA, (300 << 20, 300 << 20))
        return xok_main(["run", program])

    assert as_nobody(xok, limited) == 19


def test_a_tree_goes_to_its_owner_alone(xok: Xok) -> None:
    make = str(
        xok.program(
            "def main(env, argv):\n"
            " env.call('install_mount', 1, 0, 1, 1, data=b'nobodys')\n"
            " env.call('flush', 1)\n"
            " return 20\n",
            "make.py",
        )
    )
    use = str(xok.program("def main(env, argv): return 21 if env.caps[0].name == 'nobodys' else 0", "use.py"))
    assert as_nobody(xok, lambda: xok_main(["run", make])) == 20
    assert as_nobody(xok, lambda: xok_main(["run", "--tree", "nobodys", use])) == 21
    assert xok.try_("run", "--tree", "nobodys:ro", use).status == 21
    root = str(xok.program("def main(env, argv): env.call('install_mount', 1, 0, 1, 1, data=b'roots')", "root.py"))
    xok("run", root)
    assert as_nobody(xok, lambda: xok_main(["run", "--tree", "roots", use])) == exits.NOT_ALLOWED


def test_the_syncer_writes_what_a_program_left_dirty(xok: Xok) -> None:
    """Anybody may: it holds no capability."""
    xok("run", xok.program("def main(env, argv): env.call('install_mount', 1, 0, 3, 1, data=b'left')", "leave.py"))
    assert xok.status()["disk"]["dirty"] >= 3
    syncer = Path(accel.ROOT) / "libfs" / "syncer.py"
    assert as_nobody(xok, lambda: xok_main(["run", str(syncer), "--once"])) == 0
    assert xok.status()["disk"]["dirty"] == 0
    assert "positive" in xok.try_("run", syncer, "--interval", "0").out


def test_a_users_idle_connections_do_not_keep_root_out(xok: Xok) -> None:
    reading, writing = os.pipe()

    def hold() -> int:
        sockets = []
        for _ in range(300):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.settimeout(1)
            try:
                sock.connect(str(xok.runtime / "xokd.sock"))
            except OSError:
                break
            sockets.append(sock)
        os.write(writing, b"x")
        time.sleep(5)
        return len(sockets) > 64

    child = os.fork()
    if child == 0:
        os._exit(as_nobody(xok, hold))
    os.read(reading, 1)
    for _ in range(3):
        xok("status")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    os.close(reading)
    os.close(writing)
