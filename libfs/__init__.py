"""Library file systems: untrusted code over XN, one folder each."""

from __future__ import annotations

from xok_host.abi import accel

accel.install()
