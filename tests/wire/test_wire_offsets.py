"""The C enums of the wire formats say what their Python modules say, and compiled code may use them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

WIRE = Path(__file__).parents[2] / "netstack" / "wire"
PROTOCOLS = sorted(path.stem for path in WIRE.glob("*.pxd") if path.stem != "octets")


def numbers(protocol: str) -> dict[str, int]:
    """The module's public integers that a C int holds."""
    module = importlib.import_module(f"netstack.wire.{protocol}")
    own = re.findall(r"^([A-Z][A-Z0-9_]*): Final", (WIRE / f"{protocol}.py").read_text(), re.MULTILINE)
    return {n: getattr(module, n) for n in own if isinstance(getattr(module, n), int) and getattr(module, n) < 1 << 31}


def test_every_protocol_has_its_enums() -> None:
    assert PROTOCOLS == ["arp", "ethernet", "icmp", "ipv4", "tcp", "tcpoptions", "udp", "vnet"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_enums_are_the_module(protocol: str) -> None:
    text = (WIRE / f"{protocol}.pxd").read_text()
    enums = {name: int(value, 0) for name, value in re.findall(r"^    (\w+) = (\w+)$", text, re.MULTILINE)}
    assert enums == numbers(protocol)
    assert enums["HEADER" if protocol != "tcpoptions" else "MAX_OPTIONS"] > 0
