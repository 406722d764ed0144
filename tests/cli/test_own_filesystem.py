"""A user without privileges makes, mounts and uses a file system of his own code, on the disk that C-FFS is on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.xokkit import Done, Xok, instance, public_directory
from xok_host.cli import exits
from xok_host.host.mountinfo import mounts_now

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no FUSE on this host")

NOBODY, SOMEBODY = 65534, 65533
POCKET = Path(__file__).parents[2] / "examples" / "pocketfs.py"
FORBIDDEN = {exits.NOT_ALLOWED}


def user(uid: int) -> dict[str, Any]:
    return {"user": uid, "group": uid, "extra_groups": []}


def shell(text: str, uid: int = NOBODY) -> Done:
    done = subprocess.run(["sh", "-ec", text], capture_output=True, text=True, timeout=60, cwd="/", **user(uid))
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def xok() -> Iterator[Xok]:
    """C-FFS is mounted for everybody; a directory of nobody's waits."""
    with public_directory() as directory, instance(directory, "128M") as xok:
        shutil.copy(POCKET, directory / "pocketfs.py")
        xok.up()
        xok("mkfs", "vol")
        for name, owner in (("vol", 0), ("mine", NOBODY)):
            (directory / name).mkdir()
            os.chown(directory / name, owner, owner)
        xok("mount", "vol", directory / "vol")
        (directory / "vol" / "file").write_text("C-FFS")
        done = xok.try_("mkfs", "mine", "--type", directory / "pocketfs.py", **user(NOBODY))
        assert done.status == 0, (done, xok.log())
        yield xok
        assert (directory / "vol" / "file").read_text() == "C-FFS"


def mount(xok: Xok, directory: Path | None = None, uid: int = NOBODY, name: str = "mine", program: Any = None) -> Done:
    code = program or xok.directory / "pocketfs.py"
    return xok.try_("mount", name, directory or xok.directory / "mine", "--program", code, **user(uid))


@pytest.fixture
def mounted(xok: Xok) -> Iterator[Path]:
    directory = xok.directory / "mine"
    done = mount(xok)
    assert done.status == 0, (done, xok.log())
    yield directory
    if is_mounted(directory):
        done = xok.try_("umount", directory, **user(NOBODY))
        assert done.status == 0, (done, xok.log())


def is_mounted(directory: Path) -> bool:
    return str(directory) in [point for point, _ in mounts_now()]


def test_cp_ls_cat_mv_rm_beside_cffs(xok: Xok, mounted: Path) -> None:
    done = shell(
        f"cd {mounted}; cp {POCKET} a; cmp {POCKET} a; echo one > b; echo two >> b; cat b; mv b c; ls; "
        "truncate -s 5 c; cat c; sync c; rm a; chmod 600 c; stat -c '%a %s %u' c; df . >/dev/null"
    )
    assert done.status == 0, done
    assert done.out.split() == ["one", "two", "a", "c", "one", "t600", "5", str(NOBODY)]
    assert (xok.directory / "vol" / "file").read_text() == "C-FFS"
    assert xok.try_("umount", mounted, **user(NOBODY)).status == 0
    assert not is_mounted(mounted) and not os.listdir(mounted)
    assert mount(xok).status == 0
    assert shell(f"cat {mounted}/c; rm {mounted}/c").out == "one\nt"


def test_the_mount_is_for_its_user_and_gives_no_privilege(xok: Xok, mounted: Path) -> None:
    shell(f"cp /usr/bin/id {mounted}/id; chmod 4755 {mounted}/id")
    line = next(text for text in Path("/proc/self/mountinfo").read_text().splitlines() if f" {mounted} " in text)
    assert {"nosuid", "nodev"} <= set(line.split()[5].split(",")) and "default_permissions" in line
    assert f"user_id={NOBODY}" in line and "allow_other" not in line
    with pytest.raises(PermissionError):  # not even root can be made to wait for a user's server
        os.listdir(mounted)
    assert shell(f"ls {mounted}", SOMEBODY).status != 0
    status = next(item for item in xok.status()["mounts"] if item["name"] == "mine")
    assert status["uid"] == NOBODY
    environment = next(item for item in xok.status()["environments"] if item["id"] == status["env"])
    assert environment["caller"] == NOBODY and environment["uid"] not in (0, NOBODY)
    shell(f"rm {mounted}/id")


def test_a_killed_server_is_replaced(xok: Xok, mounted: Path) -> None:
    assert shell(f"echo kept > {mounted}/kept; sync {mounted}/kept").status == 0
    for _ in range(2):
        os.kill(xok.pid("mount:mine"), signal.SIGKILL)
        assert shell(f"cat {mounted}/kept").out == "kept\n"


def test_what_is_not_yours(xok: Xok, mounted: Path) -> None:
    other = xok.directory / "other"
    other.mkdir(exist_ok=True)
    os.chown(other, SOMEBODY, SOMEBODY)
    vol = xok.directory / "vol"
    for done, words in (
        (mount(xok, other, SOMEBODY), f"mine belongs to user {NOBODY}"),
        (mount(xok, other, SOMEBODY, "vol"), "vol belongs to user 0"),
        (xok.try_("umount", mounted, **user(SOMEBODY)), "not yours"),
        (xok.try_("umount", vol, **user(NOBODY)), "not yours"),
        (xok.try_("umount", vol, "--lazy", **user(NOBODY)), "not yours"),
        (xok.try_("down", **user(NOBODY)), "for root"),
    ):
        assert done.status == exits.NOT_ALLOWED and words in done.err, done
    assert xok.try_("mkfs", "mine", "--type", xok.directory / "pocketfs.py", **user(SOMEBODY)).status == exits.REFUSED
    assert is_mounted(mounted) and is_mounted(vol)


def test_nobody_takes_a_mount_away_by_waiting_for_it(xok: Xok) -> None:
    """`wait` on a mount and a word end it: for its owner."""
    from xok_host.host.config import Runtime
    from xok_host.host.control import ControlClient, Refusal

    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                ControlClient(Runtime(xok.runtime)).request("wait", mount=str(xok.directory / "vol"))
            except Refusal as refused:
                status = 0 if refused.status == exits.NOT_ALLOWED else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_mounted(xok.directory / "vol")


def test_directories_that_are_not_yours(xok: Xok) -> None:
    link = xok.directory / "mine" / "link"
    os.symlink("/etc", link)
    try:
        for directory, words in (
            (Path("/etc"), "belongs to user 0"),
            (link, "belongs to user 0"),
            (Path(f"/proc/{os.getpid()}"), "is on proc"),
            (xok.directory / "vol", "is on fuse.xok"),
        ):
            done = mount(xok, directory)
            assert done.status == exits.NOT_ALLOWED and words in done.err, done
        done = mount(xok, xok.directory / "nowhere")
        assert done.status == exits.USAGE and "is not a directory" in done.err
    finally:
        link.unlink()


GOOD = "\ndef make(env, dev, name, uid, gid): pass\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def mount(env:", "SyntaxError"),
        ("def mount(env, dev, name, cap): pass", "defines no make("),
        (GOOD, "defines no mount("),
        (GOOD + "def mount(env, dev, name, cap): 1 / 0", "ZeroDivisionError"),
        (GOOD + "def mount(env, dev, name, cap): raise SystemExit('not today')", "not today"),
        (GOOD + "import os\ndef mount(env, dev, name, cap): os._exit(9)", "exit status 9"),
        (GOOD + "import os\ndef mount(env, dev, name, cap): open('/etc/shadow')", "FileNotFoundError"),
    ],
)
def test_a_program_that_fails_is_shown_to_its_user(xok: Xok, code: str, words: str) -> None:
    done = mount(xok, program=xok.program(code, "bad.py"))
    assert done.status == exits.REFUSED and words in done.err, done
    assert not is_mounted(xok.directory / "mine")
    assert [item["name"] for item in xok.status()["mounts"]] == ["vol"]


def test_making_that_fails_is_shown_too(xok: Xok) -> None:
    for code, words in (("x = ", "SyntaxError"), (GOOD.replace("pass", "1 / 0"), "defines no mount(")):
        done = xok.try_("mkfs", "bad", "--type", xok.program(code, "bad.py"), **user(NOBODY))
        assert done.status == exits.REFUSED and words in done.err, done
    done = xok.try_("mkfs", "bad", "--type", xok.directory / "absent.py", **user(NOBODY))
    assert done.status == exits.USAGE and "No such file" in done.err
    assert "bad" not in xok("list").split()


HANGS = """
import time
import pocket
def make(env, dev, name, uid, gid): pass
class Hanging(pocket.PocketFS):
    def read(self, ino, offset, size):
        while True:
            pass
def mount(env, dev, name, cap):
    env.call("type_mount", dev, data=f"{name}.type".encode())
    return Hanging(pocket.Blocks(env, dev, name, cap))
"""


def test_a_server_that_loops_costs_its_user_only(xok: Xok) -> None:
    """The user's own processes wait, and can be killed; C-FFS, xokd and root go on; the user can end it."""
    source = POCKET.read_text() + HANGS.replace("import pocket\n", "").replace("pocket.", "")
    directory = xok.directory / "mine"
    assert mount(xok, program=xok.program(source, "hangs.py")).status == 0
    assert shell(f"echo x > {directory}/trap").status == 0
    reader = subprocess.Popen(["cat", str(directory / "trap")], **user(NOBODY), stdout=-3)
    time.sleep(0.5)
    assert reader.poll() is None
    started = time.monotonic()
    assert (xok.directory / "vol" / "file").read_text() == "C-FFS"
    (xok.directory / "vol" / "more").write_text("written meanwhile")
    assert xok.status()["mounts"]
    assert time.monotonic() - started < 10
    done = xok.try_("umount", directory, "--lazy", **user(NOBODY))
    assert "was killed" in done.err and not is_mounted(directory)
    assert reader.wait(20) != 0
    assert mount(xok).status == 0
    assert shell(f"rm {directory}/trap").status == 0
    assert xok.try_("umount", directory, **user(NOBODY)).status == 0


def test_a_path_that_changes_under_a_mount_leads_nobody_astray(xok: Xok) -> None:
    """The user moves the parent away and puts a link to another place there: only his own mount can go."""
    home = xok.directory / "home"
    (home / "a" / "m").mkdir(parents=True)
    for path in (home, home / "a", home / "a" / "m"):
        os.chown(path, NOBODY, NOBODY)
    assert mount(xok, home / "a" / "m").status == 0
    target = home / "target"
    assert shell(f"mkdir {target}; mv {home}/a {home}/b; ln -s {target} {home}/a").status == 0
    (target / "m").mkdir()
    xok("umount", xok.directory / "vol")
    xok("mount", "vol", target / "m")
    try:
        assert xok.try_("umount", str(home / "b" / "m"), **user(NOBODY)).status == exits.REFUSED
        xok.try_("umount", str(home / "b" / ".." / "a" / "m"), **user(NOBODY))
        assert is_mounted(target / "m")
        subprocess.run(["umount", home / "b" / "m"], check=True)
    finally:
        xok("umount", target / "m")
        xok("mount", "vol", xok.directory / "vol")


def test_the_disk_is_sound_afterwards(xok: Xok, mounted: Path) -> None:
    assert shell(f"echo late > {mounted}/late").status == 0
    xok("down")
    assert xok("check", xok.image).splitlines()[-1] == "clean"
    xok.up()
    xok("mount", "vol", xok.directory / "vol")
    assert mount(xok).status == 0
    assert shell(f"cat {mounted}/late").out == "late\n"


def test_umount_says_that_the_server_could_not_write_everything(xok: Xok) -> None:
    """As when the disk fails at the last moment."""
    program = xok.directory / "failing.py"
    broken = "\n\ndef fail(self):\n    raise OSError(errno.EIO, 'no more writing')\n\n\nPocketFS.close = fail\n"
    program.write_text(POCKET.read_text() + broken)
    assert mount(xok, program=program).status == 0
    done = xok.try_("umount", xok.directory / "mine", **user(NOBODY))
    assert done.status == exits.REFUSED, done
    assert "mine is unmounted, but its server ended with exit status 1" in done.err and "no more writing" in done.err
    assert not is_mounted(xok.directory / "mine")
