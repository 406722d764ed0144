"""Programs that compose libraries: the FUSE mount and the web server over a library file system."""

from __future__ import annotations

from xok_host.abi import accel

accel.install()
