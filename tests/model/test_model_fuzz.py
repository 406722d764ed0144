"""Fuzzing, bounded; `./xok test tests/model --fuzz-seconds 3600` fuzzes each target for that long.

Coverage is measured in a process of its own, uncompiled; what it kept is then run compiled, where integers have an end,
and must give the same answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import target
from fuzz_engine import Coverage, Fuzzer, deadline

from tests.hostile.attack import battlefield
from xok_host.abi.accel import ROOT

SECONDS = {"calls": 12.0, "import": 6.0}
"""In the default run."""
LEAST_LINES = {"calls": 1500, "import": 500}
REAL_SECONDS = 6.0
BOUND_MS = 1000
"""In which a neighbour of the fuzzer's is answered."""


def fuzzed(name: str, seconds: float, save: Path) -> str:
    command = [
        sys.executable,
        "-P",
        f"{ROOT}/tests/model/fuzz.py",
        name,
        "--seconds",
        str(seconds),
        "--save",
        str(save),
    ]
    environment = {**os.environ, "XOK_PURE": "1", "PYTHONPATH": ROOT}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", SECONDS)
def test_no_input_gets_through(name: str, tmp_path: Path, request: pytest.FixtureRequest, tell: list[str]) -> None:
    seconds = request.config.getoption("--fuzz-seconds") or SECONDS[name]
    said = fuzzed(name, seconds, tmp_path / "corpus.json")
    tell.append(f"fuzz {said}")
    found = json.loads((tmp_path / "corpus.json").read_text())
    assert found["lines"] > LEAST_LINES[name], "the fuzzer hardly reaches anything"
    assert len(found["corpus"]) > len(target(name)[1]), "nothing new was reached by mutation"
    run = target(name)[0]
    for given, uncompiled in found["corpus"]:
        with deadline(20):
            compiled = run([bytes.fromhex(part) for part in given])
        assert compiled == uncompiled, f"compiled and uncompiled differ: {given}"


def test_the_fuzzer_is_deterministic_and_follows_lines() -> None:
    """A target with a secret behind five comparisons, which blind mutation would not find."""
    reached: list[bytes] = []

    def guarded(given: list[bytes], watch: object) -> None:
        with watch():  # type: ignore[operator]
            deep(bytes(given[0][:5]) if given else b"")

    def deep(raw: bytes) -> None:
        if raw[:1] == b"f":
            if raw[1:2] == b"u":
                if raw[2:3] == b"z":
                    reached.append(raw)
                    raise KeyError("found")

    def outcome(seed: int) -> tuple[list[str], list[list[bytes]]]:
        coverage = Coverage()
        coverage.watches = lambda code: code.co_filename == __file__  # type: ignore[method-assign]
        fuzzer = Fuzzer(guarded, [[b"....."], [b"....", b"more"]], [ord(c) for c in "fuz"], seed, coverage=coverage)
        fuzzer.fuzz(20, executions=6000)
        return [finding.what for finding in fuzzer.findings.values()], fuzzer.corpus

    first = outcome(3)
    assert len(first[0]) == 1 and first[0][0].startswith("KeyError"), first[0]
    assert outcome(3) == first


ATTACK = r"""
CORPUS = [[bytes.fromhex(part) for part in given] for given in json.loads(%r)]
NUMBERS = %r

def take(ring):
    tail = ring._load(channel.CQ_TAIL)
    count = tail - ring._cq_head & 0xFFFFFFFF
    if count > channel.COMPLETIONS:
        return 0  # half of a new index: the next look shows all of it
    ring._cq_head = tail
    ring._store(channel.CQ_HEAD, tail)
    return count

def main(env, argv):
    import random
    seconds, seed = float(argv[0]), int(argv[1])
    chance, ring = random.Random(seed), env.ring
    toy = Own("fuzz", env)
    data, child = toy.add_data(toy.root, 0, b"data"), toy.add_node(toy.root, 1)
    here = {"root": toy.root, "data": data, "child": child, "secret": VICTIM["data"], "other": VICTIM["root"],
            "node": toy.type}
    known = {}
    for name, there in NUMBERS.items():
        known[there] = here[name]
        if name != "node":
            known[da(there)] = da(here[name])
    def translated(raw):
        out = bytearray(raw)
        for at in range(0, len(out) - 7, 8):
            word = int.from_bytes(out[at : at + 8], "little")
            if word in known:
                out[at : at + 8] = known[word].to_bytes(8, "little")
        return out
    parts = [(bytes(translated(part[2:66])), bytes(translated(part[66:]))) for given in CORPUS for part in given]
    words = [*known.values(), 0, 1, 2, (1 << 64) - 1, 1 << 32, (1 << 63), 4096, (1 << 32) - 1]
    sent = taken = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(24):
            entry, operands = map(bytearray, chance.choice(parts))
            for _ in range(chance.choice([0, 0, 1, 2, 4])):
                into = operands if operands and chance.random() < 0.6 else entry
                at = chance.randrange(max(1, len(into) // 8)) * 8
                if chance.random() < 0.4:
                    into[chance.randrange(len(into))] ^= 1 << chance.randrange(8)
                else:
                    into[at : at + 8] = chance.choice(words).to_bytes(8, "little")[: len(into[at : at + 8])]
            place = channel.DATA_OFFSET + sent %% 64 * (1 << 14)
            entry = entry.ljust(channel.ENTRY.size, b"\0")
            operands = operands[: 1 << 14]
            if chance.random() < 0.9:  # otherwise where its bytes are is wild as well
                entry[16:24] = (place - channel.DATA_OFFSET).to_bytes(4, "little") + len(operands).to_bytes(4, "little")
            ring.memory[place : place + len(operands)] = operands
            at = channel.SQ_OFFSET + ring._sq_tail %% channel.SUBMISSIONS * channel.ENTRY.size
            ring.memory[at : at + channel.ENTRY.size] = entry
            ring._sq_tail = ring._sq_tail + 1 & 0xFFFFFFFF
            sent += 1
        ring._store(channel.SQ_TAIL, ring._sq_tail)
        try:
            env._socket.send(b"x", socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        try:
            while env._socket.recv(4096, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            pass
        until = time.monotonic() + 0.5
        while ring._load(channel.SQ_HEAD) != ring._sq_tail and time.monotonic() < until:
            time.sleep(0.0005)
            taken += take(ring)
        taken += take(ring)
    print(json.dumps({"sent": sent, "answered": taken}), flush=True)
"""

NEIGHBOUR = """
def main(env, argv):
    toy, times = Own("neighbour", env), []
    end = time.monotonic() + float(argv[0])
    while time.monotonic() < end:
        start = time.monotonic()
        toy.transact(toy.modify(toy.root, 0, toy.sector(toy.root, 0)))
        times.append(time.monotonic() - start)
        time.sleep(0.002)
    RESULTS["worst ms"], RESULTS["calls"] = int(max(times) * 1000), len(times)
    return report()
"""


@pytest.mark.slow
def test_a_running_xokd_outlives_it(request: pytest.FixtureRequest, tell: list[str]) -> None:
    """Mutations of the same entries, through the real ring, from a confined environment."""
    seconds = request.config.getoption("--fuzz-seconds") or REAL_SECONDS
    run, seeds, _ = target("calls")
    scene = run.__self__
    mine, other = scene.toys
    numbers = {"root": mine.root, "data": scene.data, "child": scene.child, "secret": scene.secret,
               "other": other.root, "node": scene.node}  # fmt: skip
    attack = ATTACK % (json.dumps([[part.hex() for part in given] for given in seeds]), numbers)
    with battlefield() as field:
        started = field.xok.start("run", field.program("import sys\n" + attack, "fuzzer.py"), str(seconds), "1")
        calm = field.attack(NEIGHBOUR, seconds * 0.8)
        out, _ = started.communicate(timeout=seconds + 60)
        assert started.returncode == 0, out
        said = json.loads(out.splitlines()[-1])
        assert calm["worst ms"] < BOUND_MS and calm["calls"] > 10, calm
        assert 500 < said["answered"] <= said["sent"] + 1000, said
        field.check()
        status = field.xok.status()
        assert status["environments"] == []
        field.xok("down")
        assert "clean" in field.xok("check", field.xok.image)
        tell.append(f"a running xokd: {said['sent']} entries, {said['answered']} answers, "
                    f"its neighbour waited {calm['worst ms']} ms at most")  # fmt: skip
