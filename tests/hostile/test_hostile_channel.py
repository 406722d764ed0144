"""A hostile libOS against the call channel, locks and what is released at death."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from tests.hostile.attack import Battlefield, battlefield
from xok_host.abi import errors as e

BOUND_MS = 1000
"""In which a neighbour's call completes, whatever others do.  Far above what it takes, far below for ever."""


@pytest.fixture(scope="module")
def field() -> Iterator[Battlefield]:
    with battlefield() as field:
        yield field


RAW = r"""
def push(env, *fields, at=None):
    'Write an entry just as it is, past the client.'
    ring = env.ring
    slot = ring._sq_tail if at is None else at
    channel.ENTRY.pack_into(ring.memory, channel.SQ_OFFSET + slot % channel.SUBMISSIONS * channel.ENTRY.size, *fields)
    ring._sq_tail = ring._sq_tail + 1 & 0xFFFFFFFF

def answers(env, count, seconds=5):
    'Completions just as they are: (cookie, code, bytes, r0, r1).'
    ring, found, end = env.ring, [], time.monotonic() + seconds
    env.ring_doorbell()
    while len(found) < count and time.monotonic() < end:
        while ring._cq_head != ring._load(channel.CQ_TAIL):
            at = channel.CQ_OFFSET + ring._cq_head % channel.COMPLETIONS * channel.COMPLETION.size
            found.append(channel.COMPLETION.unpack_from(ring.memory, at))
            ring._cq_head = ring._cq_head + 1 & 0xFFFFFFFF
            ring._store(channel.CQ_HEAD, ring._cq_head)
        time.sleep(0.001)
    return found
"""

NEIGHBOUR = """
def main(env, argv):
    toy = Own("n" + argv[0], env)
    times = []
    for _ in range(20):
        start = time.monotonic()
        toy.transact(toy.modify(toy.root, 0, toy.sector(toy.root, 0)))
        times.append(time.monotonic() - start)
    attempt("worst ms", lambda: int(max(times) * 1000))
    return report()
"""


def test_an_entry_changed_after_submission_is_one_consistent_copy(field: Battlefield) -> None:
    """A second thread turns one pointer's bytes between a block of the caller's and the victim's, all the time.

    xokd refuses or accepts each time; were it to read again what it has checked, the victim's block would be in the
    metadata before long.  Both answers must come, or there was no race.
    """
    results = field.attack(
        r"""
def main(env, argv):
    sys.setswitchinterval(0.00002)
    toy = Own("race", env)
    root, mine = toy.root, toy.add_data(toy.root, 0, b"mine")
    good, bad = mine.to_bytes(8, "little"), VICTIM["data"].to_bytes(8, "little")
    data = pack_transaction([toy.modify(root, 0, toy.sector(root, 0))])
    where = data.index(good + (1).to_bytes(4, "little"))
    spot, ended = [None], []
    def flip():
        memory = env.ring.memory
        while not ended:
            at = spot[0]
            if at is not None:
                for _ in range(50):
                    memory[at : at + 8] = bad
                    memory[at : at + 8] = good
    thread = threading.Thread(target=flip)
    thread.start()
    said, pointers = {}, set()
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        cookie = env.submit("transact", cap=toy.cap, data=data)
        spot[0] = channel.DATA_OFFSET + env.ring._areas[cookie % channel.COMPLETIONS].out_offset - len(data) + where
        done = env.wait(cookie)
        spot[0] = None
        name = type(errors.by_code(done.code)).__name__ if done.code else "done"
        said[name] = said.get(name, 0) + 1
        pointers.add(toy.sector(root, 0).pointers[0][0])
    ended.append(True)
    thread.join()
    attempt("answers", lambda: said)
    attempt("pointers", lambda: [int(pointer != mine) for pointer in pointers])
    return report()
""".replace("def main", "from xok_host.abi import errors\ndef main", 1)
    )
    assert results["pointers"] == [0]
    assert set(results["answers"]) == {"done", "BogusUpdate"}, results
    assert min(results["answers"].values()) >= 5


def test_entries_that_make_no_sense_are_answered_and_nothing_else(field: Battlefield) -> None:
    results = field.attack(
        RAW
        + r"""
def main(env, argv):
    top, size = 0xFFFFFFFF, channel.DATA_BYTES
    # call, flags, capability, cookie, operand offset and bytes, result offset and bytes, a0 … a3
    bad = {
        "no such call": (999, 0, 0, 11, 0, 0, 0, 256, 0, 0, 0, 0),
        "call 0": (0, 0, 0, 12, 0, 0, 0, 256, 0, 0, 0, 0),
        "operands beyond": (46, 0, 0, 13, size - 8, 16, 0, 256, 0, 0, 0, 0),
        "operands far beyond": (46, 0, 0, 14, top, top, 0, 256, 0, 0, 0, 0),
        "negative operands": (46, 0, 0, 15, top - 7, 8, 0, 256, 0, 0, 0, 0),
        "no device": (45, 0, 0, 16, 0, 0, 0, 256, (1 << 64) - 1, 0, 0, 0),
        "chained to a failure": (1, 1, 0, 18, 0, 0, 0, 256, 0, 0, 0, 0),
        "all ones": (0xFFFF, 0xFFFE, top, 17, 0, 0, 0, 256, (1 << 64) - 1, (1 << 64) - 1, (1 << 64) - 1, 1),
    }
    for entry in bad.values():
        push(env, *entry)
    found = {cookie: code for cookie, code, *_ in answers(env, len(bad))}
    for name, entry in bad.items():
        attempt(name, lambda: type(errors.by_code(found[entry[3]])).__name__)
    # Results that would lie outside are not written at all; the last bytes of the area are.
    env.ring.memory[-8:] = b"\xee" * 8
    for cookie, (offset, length) in enumerate([(top, 64), (size - 4, 8), (size - 8, 8), (top, top)], 100):
        push(env, 52, 0, 0, cookie, 0, 0, offset, length, 0, 0, 0, 0)
    found = {cookie: (code, nbytes) for cookie, code, nbytes, *_ in answers(env, 4)}
    attempt("result bytes", lambda: [list(found[cookie]) for cookie in range(100, 104)])
    attempt("in the last bytes", lambda: int.from_bytes(env.ring.memory[-8:], "little"))
    # Cookies are the caller's own business, equal ones and other environments' too.
    for cookie in (7, 7, 0, (1 << 64) - 1, 1):
        push(env, 1, 0, 0, cookie, 0, 0, 0, 0, 0, 0, 0, 0)
    attempt("cookies", lambda: [str(cookie) for cookie, *_ in answers(env, 5)])
    return report()
""".replace("def main", "from xok_host.abi import errors\ndef main", 1)
    )
    for name in ("no such call", "call 0", "operands beyond", "operands far beyond", "negative operands", "all ones"):
        assert results[name] == "BadCall", (name, results)
    assert results["no device"] == "NotFound"
    assert results["chained to a failure"] == "Cancelled"
    bad = e.BadCall.code  # DEV_LIST needs room for all devices
    assert results["result bytes"] == [[bad, 0], [bad, 0], [0, 8], [bad, 0]]
    assert results["in the last bytes"] == 1
    assert results["cookies"] == ["7", "7", "0", str((1 << 64) - 1), "1"]


@pytest.mark.parametrize("what", ["tail", "head", "header", "everything"])
def test_wild_indices_harm_their_own_ring_alone(field: Battlefield, what: str) -> None:
    done = field.run(
        RAW
        + r"""
def main(env, argv):
    import random
    chance, memory = random.Random(1998), env.ring.memory
    for round in range(200):
        if argv[0] in ("tail", "everything"):
            env.ring._store(channel.SQ_TAIL, chance.getrandbits(32))
        if argv[0] in ("head", "everything"):
            env.ring._store(channel.CQ_HEAD, chance.getrandbits(32))
            env.ring._store(channel.SQ_HEAD, chance.getrandbits(32))
            env.ring._store(channel.CQ_TAIL, chance.getrandbits(32))
        if argv[0] in ("header", "everything"):
            memory[:64] = chance.randbytes(64)
        if argv[0] == "everything":
            memory[4096 : channel.DATA_OFFSET] = chance.randbytes(channel.DATA_OFFSET - 4096)
        env._socket.send(b"x" * (1 + round % 200))
        time.sleep(0.002)
    print("still here")
""",
        what,
    )
    assert "still here" in done.out
    assert field.attack(NEIGHBOUR, f"wild-{what}")["worst ms"] < BOUND_MS


def test_descriptors_in_another_mode_do_not_make_xokd_wait(field: Battlefield) -> None:
    """Everything it holds is made blocking, and its socket is never read: xokd does not notice, nor do others."""
    attacker = field.start(
        r"""
def main(env, argv):
    for fd in os.listdir("/proc/self/fd"):
        for blocking in (False, True):
            try:
                os.set_blocking(int(fd), blocking)
                os.lseek(int(fd), 12345, 0)
            except OSError:
                pass
    toy = Own("blocking", env)
    chunk = env.registry.lookup(da(toy.root) >> 12).page // CHUNK_PAGES
    print("started", flush=True)
    ring = env.ring
    while True:  # answers are taken, doorbells and descriptors on the socket are not
        try:
            ring.push(12, (chunk,), out_bytes=256)
        except channel.RingFull:
            pass
        ring.publish()
        try:
            env._socket.send(b"x", socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        while (done := ring.pop()) is not None:
            if done.code and not RESULTS:
                RESULTS["refused"] = done.code
                print(done.code, flush=True)
""",
        name="blocking.py",
    )
    try:
        assert attacker.stdout is not None
        assert int(attacker.stdout.readline()) == 19, "LimitReached: the environment does not read its socket"
        assert field.attack(NEIGHBOUR, "blocking")["worst ms"] < BOUND_MS
        assert attacker.poll() is None
    finally:
        field.end(attacker)


FLOODS = {
    "null": 'batch.add("null")',
    "refused": 'batch.add("transact", cap=99, data=b"x" * 4000)',
    "reads": 'batch.add("readb", da(toy.root), 4096, cap=toy.cap, out_bytes=4096)',
    "findfree": 'batch.add("findfree", DEV, 0, env.devices[DEV])',
    "writebackv": 'batch.add("writebackv", DEV, data=pack_extents([(500, 4096, 0)] * 16))',
    "writebackv again": 'batch.add("writebackv", DEV, data=pack_extents([(500, 4096, 0)] * 1000))',
    "flush": 'batch.add("flush", DEV)',
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flooded_ring_costs_its_own_environment(field: Battlefield, name: str) -> None:
    attacker = field.start(
        f"""
def main(env, argv):
    toy = Own("flood-{name}", env)
    env.call("read_and_insert", DEV, data=pack_extents([(500, 4096, 0)]))
    print("started", flush=True)
    while True:
        with env.batch() as batch:
            for _ in range(60):
                {FLOODS[name]}
""",
        name="flood.py",
    )
    try:
        worst = field.attack(NEIGHBOUR, f"flood-{name}")["worst ms"]
        assert attacker.poll() is None, "it was flooding all the time"
    finally:
        field.end(attacker)
    assert worst < BOUND_MS


def test_locks_that_are_never_let_go_are_taken_after_the_deadline(field: Battlefield) -> None:
    field.xok("run", field.program('def main(env, argv):\n Own("locked", env)\n', "make.py"))
    attacker = field.start(
        """
def main(env, argv):
    cap = env.caps[0].index
    root = env.call("mount", DEV, cap=cap, data=b"locked").r0
    env.call("lock", root, 2, cap=cap)
    seen = []
    env.on_event = lambda event, r0, r1: seen.append(event.name)
    print("locked", flush=True)
    while "LOCK_LOST" not in seen:
        env.wait_event()
    print(json.dumps(seen), flush=True)
    change = Op(OpKind.MODIFY, root, 0, writes=[(0, b"\\0")])
    attempt("write", env.call, "transact", cap=cap, data=pack_transaction([change]))
    attempt("unlock", env.call, "unlock", root, 2)
    report()
    time.sleep(100)
""",
        options=("--tree", "locked"),
        name="locks.py",
    )
    try:
        others = field.xok(
            "run",
            "--tree",
            "locked",
            field.program(
                """
def main(env, argv):
    cap = env.caps[0].index
    root = env.call("mount", DEV, cap=cap, data=b"locked").r0
    change = Op(OpKind.MODIFY, root, 0, writes=[(0, b"\\0")])
    attempt("write before", env.call, "transact", cap=cap, data=pack_transaction([change]))
    start = time.monotonic()
    attempt("lock", env.call, "lock", root, 2, cap=cap)
    attempt("ms", lambda: int(1000 * (time.monotonic() - start)))
    attempt("write", env.call, "transact", cap=cap, data=pack_transaction([change]))
    report()
    print("done", flush=True)
    time.sleep(0.3)
""",
                "waiter.py",
            ),
        )
        assert attacker.stdout is not None
        seen, results = attacker.stdout.readline(), attacker.stdout.readline()
    finally:
        field.end(attacker)
    found = json.loads(others.splitlines()[0])
    assert found["write before"] == "Locked" and found["lock"] == found["write"] == "done"
    assert 1500 < found["ms"] < 4000
    assert "LOCK_WANTED" in seen and "LOCK_LOST" in seen
    assert json.loads(results) == {"write": "Locked", "unlock": "NotFound"}


def test_death_at_any_moment_releases_everything(field: Battlefield) -> None:
    """Killed in the middle of taking pages, pins and locks, of transactions and of I/O, time after time."""
    field.xok("run", field.program('def main(env, argv):\n Own("mortal", env)\n', "make.py"))
    chance = random.Random(8)
    for _ in range(4):
        attacker = field.start(
            """
def main(env, argv):
    toy = Own.__new__(Own)
    toy.env, toy.type, toy.cap = env, VICTIM["type"], env.caps[0].index
    toy.root = env.call("mount", DEV, cap=toy.cap, data=b"mortal").r0 >> 12 & (1 << 44) - 1
    root = da(toy.root)
    print("started", flush=True)
    while True:
        with env.batch() as batch:
            batch.add("page_alloc", 64, cap=toy.cap, out_bytes=512)
            batch.add("lock", root, 2, cap=toy.cap)
            batch.add("pin", root, env.registry.lookup(root >> 12).generation, cap=toy.cap)
            batch.add("read_and_insert", DEV, data=pack_extents([(700, 40, 0)]))
            batch.add("writebackv", DEV, data=pack_extents([(toy.root, 1, 0)]))
            batch.add("transact", cap=toy.cap, data=pack_transaction([toy.modify(toy.root, 0, Sector(counts=[0] * 8))]))
            batch.add("flush", DEV)
""",
            options=("--tree", "mortal"),
            name="mortal.py",
        )
        time.sleep(chance.random() * 0.15)
        os.kill(field.xok.pid("mortal.py"), signal.SIGKILL)
        attacker.communicate(timeout=20)
        assert attacker.returncode == 128 + signal.SIGKILL
        status = field.xok.status()
        assert status["environments"] == []
        assert status["cache"]["pages_in_use"] <= status["cache"]["blocks"], "no page but those of cached blocks"
    results = field.xok(
        "run",
        "--tree",
        "mortal",
        field.program(
            """
def main(env, argv):
    root = env.call("mount", DEV, cap=env.caps[0].index, data=b"mortal").r0
    entry = env.registry.lookup(root >> 12)
    attempt("free", lambda: [entry.lock, entry.pins])
    start = time.monotonic()
    attempt("lock", env.call, "lock", root, 2, cap=env.caps[0].index)
    attempt("ms", lambda: int(1000 * (time.monotonic() - start)))
    return report()
""",
            "heir.py",
        ),
    )
    heir = json.loads(results)
    assert heir["free"] == [0, 0] and heir["lock"] == "done" and heir["ms"] < 500
    field.check()
