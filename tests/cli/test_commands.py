"""The command line itself: help, exit statuses, and errors a person can act on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.host.xokkit import Xok
from xok_host.abi import errors
from xok_host.abi.errors import BadCall
from xok_host.cli import exits
from xok_host.cli.__main__ import COMMANDS
from xok_host.cli.__main__ import parser as make_parser
from xok_host.host import config
from xok_host.host.confine import EXIT_CRASH


@pytest.fixture
def xok(tmp_path: Path) -> Xok:
    return Xok(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_exit_statuses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        make_parser().parse_args([command, "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert f"xok {command}" in text and "exit status:" in text


def test_run_says_that_its_exit_status_is_the_programs(xok: Xok) -> None:
    text = xok("run", "--help")
    assert "the program's own" in text and str(EXIT_CRASH) in text and exits.MEANINGS[exits.NOT_RUNNING] in text


def test_every_error_has_an_exit_status_of_the_table() -> None:
    for error in errors.BY_CODE.values():
        assert error.exit in exits.MEANINGS


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--json"],
        [],
        ["list"],
        ["mkfs", "x"],
        ["umount", "/mnt"],
        ["down"],
        ["mount", "x", "/tmp"],
    ],
)
def test_without_xokd_each_says_how_to_start_it(xok: Xok, arguments: list[str]) -> None:
    done = xok.try_(*arguments)
    assert done.status == exits.NOT_RUNNING
    assert "xok up --disk" in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["format"],
        ["up"],
        ["serve", "x"],
        ["serve", "x", "--address", "nowhere"],
        ["serve", "x", "--address", "10.0.0.2/24", "--port", "70000"],
        ["up", "--disk", "x", "--host-address", "10.0.0.300/24"],
        ["up", "--disk", "x", "--tap", "a-name-that-is-too-long"],
        ["up", "--disk", "x", "--host-address", "10.0.0.3"],
        ["up", "--disk", "x", "--host-address", "10.0.0.3/31"],
        ["up", "--disk", "x", "--host-address", "10.0.0.0/24"],
        ["up", "--disk", "x", "--memory", "lots"],
        ["up", "--disk", "x", "--memory", "3"],
        ["up", "--disk", "x", "--memory", "999T"],
        ["mount", "--wrong", "x", "/tmp"],
        ["mkfs", "x", "--type", "fat"],
        ["mount", "x", "/no/such/directory"],
        ["run", "/no/such/program"],
    ],
)
def test_a_senseless_command_line_is_2(xok: Xok, arguments: list[str]) -> None:
    done = xok.try_(*arguments)
    assert done.status == exits.USAGE and done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("prepare", "status", "words"),
    [
        (lambda path: None, exits.BAD_DISK, "does not exist; `xok format"),
        (lambda path: path.write_bytes(bytes(64 << 20)), exits.BAD_DISK, "not an XN disk"),
        (lambda path: path.write_bytes(b"x"), exits.BAD_DISK, "at least"),
        (lambda path: path.mkdir(), exits.BAD_DISK, "neither a block device nor a file"),
    ],
)
def test_what_keeps_xokd_from_starting_is_shown(xok: Xok, prepare: object, status: int, words: str) -> None:
    prepare(xok.image)  # type: ignore[operator]
    done = xok.try_("up", "--disk", xok.image, "--no-network")
    assert done.status == status and words in done.err, done
    assert xok.try_("status").status == exits.NOT_RUNNING


def test_a_second_xokd_is_refused_for_the_directory_and_for_the_disk(xok: Xok, tmp_path: Path) -> None:
    xok("format", xok.image, "--size", "64M")
    xok.up()
    other = Xok(tmp_path / "other")
    other.directory.mkdir()
    try:
        done = xok.try_("up", "--disk", xok.image, "--no-network")
        assert done.status == exits.REFUSED and "xok down" in done.err and "XOK_RUNTIME_DIR" in done.err
        done = other.try_("up", "--disk", xok.image, "--no-network")
        assert done.status == exits.REFUSED and "another xokd" in done.err
    finally:
        xok("down")


def test_a_tap_that_cannot_be_had_is_named(xok: Xok) -> None:
    xok("format", xok.image, "--size", "64M")
    done = xok.try_("up", "--disk", xok.image, "--tap", "lo")
    assert done.status == exits.REFUSED and "Traceback" not in done.err and "lo" in done.err, done


def test_a_runtime_directory_that_others_could_write_is_refused(xok: Xok) -> None:
    xok("format", xok.image, "--size", "64M")
    xok.runtime.mkdir()
    xok.runtime.chmod(0o777)
    done = xok.try_("up", "--disk", xok.image, "--no-network")
    assert done.status == exits.NOT_ALLOWED and "writable by nobody else" in done.err
    xok.runtime.chmod(0o755)
    os.chown(xok.runtime, 65534, 65534)
    assert xok.try_("up", "--disk", xok.image, "--no-network").status == exits.NOT_ALLOWED


def test_a_runtime_directory_too_long_for_a_socket(tmp_path: Path) -> None:
    xok = Xok(tmp_path / ("x" * 100))
    done = xok.try_("status")
    assert done.status == exits.USAGE and "XOK_RUNTIME_DIR" in done.err


def test_a_relative_runtime_directory_is_where_the_command_was_given(xok: Xok) -> None:
    xok("format", xok.image, "--size", "64M")
    environment = {**xok.environment(), "XOK_RUNTIME_DIR": "run"}
    for words in (["up", "--disk", "disk.img", "--no-network"], ["status"], ["down"]):
        done = subprocess.run(xok.command(*words), env=environment, cwd=xok.directory, capture_output=True, text=True)
        assert done.returncode == 0, done
    assert (xok.directory / "run" / "log" / "xokd.log").exists()


def test_a_runtime_directory_that_is_a_file(xok: Xok) -> None:
    xok("format", xok.image, "--size", "64M")
    xok.runtime.write_text("")
    done = xok.try_("up", "--disk", xok.image, "--no-network")
    assert done.status == exits.USAGE and "XOK_RUNTIME_DIR" in done.err and "Errno" not in done.err, done
    done = xok.try_("status")
    assert done.status == exits.NOT_RUNNING and "xok up --disk" in done.err, done


def test_a_network_that_another_interface_has_is_refused(xok: Xok) -> None:
    xok("format", xok.image, "--size", "64M")
    done = xok.try_("up", "--disk", xok.image, "--tap", f"xc{os.getpid()}", "--host-address", "127.0.0.2/8")
    assert done.status == exits.REFUSED and "lo (127.0.0.1/8)" in done.err and "--host-address" in done.err, done


@pytest.mark.parametrize("words", [["check"], ["udf", "list"], ["up", "--no-network", "--disk"]])
def test_somebody_elses_disk_is_named_with_what_it_holds(xok: Xok, words: list[str]) -> None:
    xok.image.write_bytes(bytes(1080) + b"\x53\xef" + bytes(8 << 20))
    done = xok.try_(*words, xok.image)
    assert done.status == exits.BAD_DISK, done
    assert str(xok.image) in done.err and "it holds an ext2, ext3 or ext4 file system" in done.err, done


def test_an_option_that_there_is_not_is_said_of_its_command(xok: Xok) -> None:
    done = xok.try_("mount", "--wrong", "x", "/tmp")
    assert "--wrong" in done.err and "`xok mount --help`" in done.err, done


def test_up_needs_root(xok: Xok) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            from xok_host.cli.__main__ import main

            os.setresuid(65534, 65534, 65534)
            status = main(["up", "--disk", str(xok.image)])
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == exits.NOT_ALLOWED


def test_output_into_a_closed_pipe_is_no_traceback(xok: Xok) -> None:
    shell = " ".join(xok.command("--help")) + " | true"
    done = subprocess.run(["sh", "-c", shell], env=xok.environment(), capture_output=True, text=True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("512K", 512 << 10), ("64M", 64 << 20), ("4G", 4 << 30), ("1TiB", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert config.parse_size(text) == size


def test_features_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XOK_WITHOUT", "uring, tcx,,ebpf")
    assert config.without_from_environment() == {"uring", "tcx", "ebpf"}
    with pytest.raises(BadCall):
        config.parse_interface("10.0.0.1/99")
    monkeypatch.setenv("XOK_WITHOUT", "uring, sugar")
    with pytest.raises(BadCall, match=r"'sugar'.*uring, direct, ebpf"):
        config.without_from_environment()
