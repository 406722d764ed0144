"""Seeded traffic between two stacks, printed as a digest: run compiled and uncompiled, it must be the same traffic.

python tests/xio/twin.py SEED
"""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

from pair import SERVER, Recorder, Weather, Wire

from netstack.xio import stack


class Talker(Recorder):
    """Sends pieces of random sizes at random times, holds some of what it gets, sometimes aborts."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.dice = random.Random(seed)

    def opened(self, tcb: Any) -> None:
        super().opened(tcb)
        tcb.context = self.dice.randrange(2, 8)
        tcb.set_alarm(tcb.endpoint.now + 1000)

    def data_received(self, tcb: Any, data: bytes) -> None:
        super().data_received(tcb, data)
        if self.dice.random() < 0.1:
            tcb.hold(len(data))
            tcb.release(len(data) // 2)

    def alarm(self, tcb: Any) -> None:
        if tcb.context is None:
            return
        tcb.context -= 1
        if tcb.context == 0:
            tcb.context = None
            if self.dice.random() < 0.2:
                tcb.abort()
            else:
                tcb.close()
            return
        tcb.send_bytes(self.dice.randbytes(self.dice.choice([1, 100, 1448, 5000, 70_000])), self.dice.randrange(2))
        tcb.set_alarm(tcb.endpoint.now + self.dice.randrange(100_000))

    def ended(self, tcb: Any) -> None:
        self.events.append("end")
        tcb.context = None
        tcb.close()


def main(seed: int) -> None:
    wire = Wire(Weather(seed, loss=0.05, double=0.05, late=0.1))
    talkers = [Talker(seed + i) for i in range(25)]
    wire.server.listen(80, talkers[0])
    for talker in talkers[1:]:
        wire.client.connect(talker, SERVER, 80)
    wire.client.connect(Recorder(), SERVER, 81)
    wire.run(300)
    dice = random.Random(seed)
    for frame in wire.frames[:2000]:
        forged = bytearray(frame)
        for _ in range(dice.randrange(1, 4)):
            forged[dice.randrange(len(forged))] ^= 1 << dice.randrange(8)
        wire.server.feed(bytes(forged[: dice.randrange(len(forged)) + 1 if dice.random() < 0.1 else len(forged)]))
    digest = hashlib.sha256()
    for frame in wire.frames:
        digest.update(len(frame).to_bytes(4, "big") + frame)
    for talker in talkers:
        digest.update(bytes(talker.received) + repr((talker.events, talker.reason)).encode())
    statistics = [sorted(end.statistics().items()) for end in (wire.client, wire.server)]
    print(stack.__file__.rpartition(".")[2], len(wire.frames), digest.hexdigest(), statistics)


if __name__ == "__main__":
    main(int(sys.argv[1]))
