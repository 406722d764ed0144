"""`xok COMMAND …`: finds the command's module and turns refusals into one line and an exit status."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from xok_host.abi.errors import BadCall, XokError
from xok_host.cli import exits
from xok_host.host.control import said

COMMANDS = (
    "demo",
    "format",
    "up",
    "mkfs",
    "list",
    "mount",
    "umount",
    "serve",
    "run",
    "status",
    "check",
    "repair",
    "udf",
    "down",
)
"""Each is a module here with HELP, `configure(parser)`, `run(options) -> exit status`, and an EPILOG if its exit status
is not that of the table."""

DESCRIPTION = "An exokernel: xokd protects disk, memory and network; library operating systems manage them."


def command(name: str) -> ModuleType:
    return importlib.import_module(f"xok_host.cli.{name}")


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line, or (`only`) what one command needs, which is much quicker to make."""
    top = argparse.ArgumentParser(
        prog="xok", description=DESCRIPTION, epilog=_epilog(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in COMMANDS if only is None else (only,):
        module = command(name)
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            epilog=getattr(module, "EPILOG", exits.epilog()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(sub)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments) or ["status"]
    name = ""
    try:
        known = parser(words[0] if words[0] in COMMANDS else None)
        options, unknown = known.parse_known_args(words)
        if unknown and options.command is not None:  # argparse would show the usage of `xok` alone
            where = f"xok {options.command}"
            print(f"{where}: no option {' '.join(unknown)}; `{where} --help` shows them", file=sys.stderr)
            return exits.USAGE
        if unknown:
            known.error(f"unrecognized arguments: {' '.join(unknown)}")
        if options.command is None:
            options = parser("status").parse_args(["status"])
        name = options.command
        return int(command(name).run(options))
    except BadCall as error:
        print(f"xok {name}: {error.detail or error}", file=sys.stderr)
        return exits.USAGE
    except XokError as error:
        print(f"xok {name}: {error}", file=sys.stderr)
        return int(getattr(error, "status", error.exit))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output left: nothing to complain about
        return 141
    except OSError as error:
        print(f"xok {name}: {said(error)}", file=sys.stderr)
        return exits.REFUSED


def _epilog() -> str:
    return (
        "without a command, xok shows the status.\n\n"
        "environment:\n"
        "  XOK_RUNTIME_DIR  sockets, state and logs of one instance (default /run/xok)\n"
        "  XOK_WITHOUT      features to do without, separated by commas: uring, ebpf, tcx, …\n\n" + exits.epilog()
    )


if __name__ == "__main__":
    sys.exit(main())
