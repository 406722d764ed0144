"""Whole connections between two stacks, in good weather and bad: every octet arrives once and in order."""

from __future__ import annotations

import random

import pytest
from pair import SERVER, Recorder, Weather, Wire

from netstack.xio.constants import CLOSE_DONE, CLOSE_REFUSED, CLOSE_TIMEOUT


def payload(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [1, 100, 1448, 10_380, 65_536, 1_000_000])
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_a_transfer_in_good_weather(size: int, both: bool) -> None:
    wire = Wire()
    server = Recorder(payload(size), close=True)
    client = Recorder(payload(size + 1) if both else b"", close=both)
    wire.server.listen(80, server)
    wire.client.connect(client, SERVER, 80)
    wire.run(30)
    assert bytes(client.received) == payload(size)
    assert bytes(server.received) == (payload(size + 1) if both else b"")
    assert client.events == ["open", "end", "close"] and server.events == ["open", "end", "close"]
    assert client.reason == server.reason == CLOSE_DONE
    assert wire.client.statistics()["connections"] == wire.server.statistics()["connections"] == 0
    assert wire.client.statistics()["retransmitted"] == wire.server.statistics()["retransmitted"] == 0


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "weather",
    [{"loss": 0.05}, {"loss": 0.2}, {"late": 0.3}, {"double": 0.3}, {"loss": 0.1, "late": 0.2, "double": 0.1}],
    ids=["5 % loss", "20 % loss", "reordering", "duplicates", "all"],
)
def test_a_transfer_in_bad_weather(seed: int, weather: dict[str, float]) -> None:
    wire = Wire(Weather(seed, **weather))
    server = Recorder(payload(200_000), close=True)
    client = Recorder(payload(50_000), close=True)
    wire.server.listen(80, server)
    wire.client.connect(client, SERVER, 80)
    wire.run(900)
    assert bytes(client.received) == payload(200_000)
    assert bytes(server.received) == payload(50_000)
    assert wire.client.statistics()["connections"] == wire.server.statistics()["connections"] == 0


def test_a_single_loss_is_mended_without_the_timer() -> None:
    wire = Wire()
    server = Recorder(payload(3_000_000), close=True)
    client = Recorder()
    wire.server.listen(80, server)
    wire.client.connect(client, SERVER, 80)
    wire.run(0.001)
    dropped = []
    original = wire.weather.delays

    def drop_one() -> list[int]:
        if len(wire.frames) > 60 and not dropped and len(wire.frames[-1]) > 1000:
            dropped.append(1)
            return []
        return original()

    wire.weather.delays = drop_one  # type: ignore[method-assign]
    wire.run(30)
    assert dropped and bytes(client.received) == payload(3_000_000)
    assert wire.server.statistics()["retransmitted"] >= 1
    assert wire.server.statistics()["timeouts"] == 0


def test_a_closed_port_refuses() -> None:
    wire = Wire()
    client = Recorder()
    wire.client.connect(client, SERVER, 81)
    wire.run(5)
    assert client.events == ["close"] and client.reason == CLOSE_REFUSED


def test_nobody_answers() -> None:
    wire = Wire(Weather(loss=1.0))
    client = Recorder()
    wire.client.connect(client, SERVER, 80)
    wire.run(300)
    assert client.events == ["close"] and client.reason == CLOSE_TIMEOUT
    assert wire.client.statistics()["connections"] == 0


def test_half_close_lets_the_other_side_go_on() -> None:
    class Patient(Recorder):
        def ended(self, tcb: object) -> None:
            self.events.append("end")
            self.tcb.send_bytes(b"after your end", 2)

    wire = Wire()
    server, client = Patient(), Recorder(b"all I have", close=True)
    wire.server.listen(80, server)
    wire.client.connect(client, SERVER, 80)
    wire.run(5)
    assert bytes(server.received) == b"all I have"
    assert bytes(client.received) == b"after your end"
    assert server.reason == client.reason == CLOSE_DONE


def test_a_closed_window_is_probed_and_opens_again() -> None:
    class Holder(Recorder):
        def data_received(self, tcb: object, data: bytes) -> None:
            super().data_received(tcb, data)
            self.tcb.hold(len(data))

    wire = Wire()
    server, client = Recorder(payload(600_000), close=True), Holder()
    wire.server.listen(80, server)
    wire.client.connect(client, SERVER, 80)
    wire.run(10)
    held = len(client.received)
    assert 200_000 < held <= 262_144 + 16
    while len(client.received) < 600_000:
        before = len(client.received)
        client.tcb.release(100_000)
        wire.run(70)
        assert len(client.received) > before
    assert bytes(client.received) == payload(600_000)


def test_remnants_are_bounded_and_expire() -> None:
    wire = Wire()
    wire.server.listen(80, Recorder(b"x", close=True))
    for _ in range(50):
        wire.client.connect(Recorder(), SERVER, 80)
    wire.run(1)
    assert wire.server.statistics()["remnants"] == 50
    wire.run(120)
    wire.server.advance(wire.now + 120_000_000)
    assert wire.server.statistics()["remnants"] == 0
