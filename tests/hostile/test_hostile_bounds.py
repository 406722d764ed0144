"""A hostile libOS that leaves things behind, or takes more than its share: what others see of it."""

from __future__ import annotations

import json

from tests.hostile.attack import battlefield


def test_a_block_without_contents_does_not_keep_the_disk_from_stopping() -> None:
    """START-5: an allocation that its owner never filled, below a root that is durable."""
    with battlefield() as field:
        results = field.attack(
            """
def main(env, argv):
    toy = Own("forgetful", env)
    toy.durable(toy.root)
    first, new = toy.free_block(700), toy.sector(toy.root, 0)
    new.pointers.append((first, 700, TYPE_XN_DB, 0))
    toy.transact(toy.modify(toy.root, 0, new, OpKind.ALLOC, db=first, count=700, type=TYPE_XN_DB))
    attempt("written", toy.writeback, toy.root)
    return report()
"""
        )
        assert results["written"] == "Tainted"
        field.xok("down")
        assert field.xok("check", field.xok.image).endswith("clean\n")
        field.xok.up()  # which a disk that is not clean would have to be reconstructed for
        assert "reconstructing" not in field.xok.log()


HOLDER = """
def main(env, argv):
    toy = Own("wanted", env)
    blocks = []
    for sector in range(2):
        first, new = toy.free_block(1000), toy.sector(toy.root, sector)
        new.pointers.append((first, 1000, TYPE_XN_DB, 0))
        toy.transact(toy.modify(
            toy.root, sector, new, OpKind.ALLOC, db=first, count=1000, type=TYPE_XN_DB, flags=OpFlag.ZERO))
        blocks += range(first, first + 1000)
    heard = []
    env.on_event = lambda event, r0, r1: heard.append((int(event), r0))
    for block in blocks:
        env.call("lock", da(block), 1, cap=toy.cap)
    print(blocks[0], flush=True)
    time.sleep(7)
    while len(heard) < 2 * len(blocks):
        env.wait_event(10)
        env.dispatch()
    wanted = [r0 for event, r0 in heard if event == 1]
    lost = [r0 for event, r0 in heard if event == 2]
    print(json.dumps([len(wanted), len(set(wanted)), len(lost), len(set(lost))]), flush=True)
"""


def test_asking_for_all_of_a_stalled_holders_locks_does_not_end_it() -> None:
    """LOCK-2: two events about each of 2,000 locks, for one who takes none: they wait, and all arrive."""
    with battlefield() as field:
        holder = field.start(HOLDER, name="holder.py")
        try:
            asker = """
def main(env, argv):
    cap = env.caps[0].index
    env.call("mount", DEV, cap=cap, data=b"wanted")
    cookies = []
    for block in range(int(argv[0]), int(argv[0]) + 2000):
        cookies.append(env.submit("lock", da(block), 2, cap=cap))
        if len(cookies) == 1000:
            print(sum(env.wait(cookie).code for cookie in cookies))
            cookies = []
"""
            said = field.xok("run", "--tree", "wanted", field.program(asker, "asker.py"), field.said.strip())
            assert said.split() == ["0"] * 2
            assert holder.stdout is not None
            assert json.loads(holder.stdout.readline()) == [2000] * 4
        finally:
            field.end(holder)
        assert "does not take its events" not in field.xok.log()
