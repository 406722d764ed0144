"""What the commands that start environments share: passing output on, waiting for the end, stopping on Ctrl-C."""

from __future__ import annotations

import os
import select
import signal
from typing import Any

from xok_host.host.control import ControlClient


def follow(client: ControlClient, output: int | None, *, quiet: bool = False, announce: str = "") -> Any:
    """Copy an environment's output to ours (`quiet`: to nowhere) until xokd answers that it ended; returns the answer.

    The first SIGINT or SIGTERM asks for an orderly end, the second leaves (xokd then ends the environment). `announce`
    is a line to print once that is so: who has read it may send a signal.
    """
    asked = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        client.send("stop")

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    poll = select.poll()
    poll.register(client.fileno(), select.POLLIN)
    if output is not None:
        poll.register(output, select.POLLIN)
    try:
        if announce:
            print(announce, flush=True)
        while True:
            for fd, _ in poll.poll():
                if fd == output:
                    if not copy(output, quiet):
                        poll.unregister(output)
                        output = None
                else:
                    if output is not None:
                        while copy(output, quiet):
                            pass
                    return client.answer()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def copy(output: int, quiet: bool = False) -> bool:
    """Pass on what is there; False at the end."""
    data = os.read(output, 65536)
    view = memoryview(b"" if quiet else data)
    while view:
        view = view[os.write(1, view) :]
    return bool(data)
