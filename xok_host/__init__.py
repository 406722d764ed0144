"""The exokernel: what protects (kernel), its Linux edge (host), its commands (cli), what a libOS may import (abi)."""

from __future__ import annotations

from xok_host.abi import accel

accel.install()
