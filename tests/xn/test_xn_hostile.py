"""Calls that no libOS would make: each is refused by an XokError, none gets an exception out of the kernel."""

from __future__ import annotations

import random
import struct

import pytest
from test_xn_crash import Anarchist
from toy import DEV, Sector, Toy, da

from xok_host.abi.calls import OP_HEADER, VECTOR_HEADER, CallNumber, OpFlag, OpKind, pack_extents, pack_transaction
from xok_host.abi.channel import Entry
from xok_host.abi.errors import BadCall, BadCapability, LimitReached
from xok_host.abi.types import TYPE_XN_DB, Right
from xok_host.kernel.capability import ADDRESS, TREE, Capability
from xok_host.kernel.local import LocalXok
from xok_host.kernel.xn import recover

EDGES = [0, 1, 2, 7, 8, 255, 256, 4095, 4096, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 44) - 1, 1 << 44]
EDGES += [1 << 56, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


class Fuzzer:
    """Makes entries out of edge values, of what exists, and of damaged copies of valid operands."""

    def __init__(self, toy: Toy, seed: int) -> None:
        self.random = random.Random(seed)
        self.toy = toy
        self.blocks = [toy.root, 0, 1, 9, 10, 511, 512, 300]

    def number(self) -> int:
        dice = self.random.random()
        if dice < 0.3:
            return self.random.choice(EDGES)
        if dice < 0.6:
            return da(self.random.choice(self.blocks), self.random.choice([0, 0, 0, 512, 4088, 4095]))
        if dice < 0.8:
            return self.random.choice([DEV, DEV, DEV, *self.blocks])
        return self.random.getrandbits(64)

    def extents(self) -> bytes:
        pick = self.random.choice
        out = []
        for _ in range(pick([0, 1, 1, 1, 2, 5, 1024, 1025])):
            count = pick([0, 1, 1, 1, 8, 4096, (1 << 32) - 1])
            out.append(struct.pack("<QII", pick([*self.blocks, *EDGES]), count, pick([0, 1, 3, 255])))
        return b"".join(out)

    def operations(self) -> bytes:
        out = b""
        pick = self.random.choice
        for _ in range(pick([1, 1, 2, 3, 65])):
            vectors = pick([0, 1, 1, 2, 65, 65535])
            out += OP_HEADER.pack(
                pick([1, 2, 3, 4, 5, 5, 0, 6, 255]),
                pick([0, 0, 1, 2, 3, 255]),
                vectors,
                pick([0, 1, 7, 8, 0xFFFF_FFFF, 1 << 31]),
                pick([da(pick(self.blocks)), self.number()]),
                pick([*self.blocks, *EDGES]),
                pick([0, 1, 1, 2, 4096, 4097, (1 << 32) - 1]),
                pick([0, 1, 2, self.toy.type, 15, 99, (1 << 32) - 1]),
                pick([0, 1024, 2048, *EDGES]),
            )
            for _ in range(min(vectors, 3)):
                data = self.random.randbytes(pick([0, 1, 8, 512, 4096]))
                offset = pick([0, 512, 1024, 4095, 4096, (1 << 32) - 1])
                out += VECTOR_HEADER.pack(offset, pick([len(data), len(data), 0, (1 << 32) - 1])) + data
                out += b"\0" * (-len(data) % 8)
        return out[: self.random.randrange(len(out) + 1)] if self.random.random() < 0.2 else out

    def entry(self, cookie: int) -> Entry:
        number = int(self.random.choice(list(CallNumber)))
        if self.random.random() < 0.3:
            number = self.random.choice([int(CallNumber.TRANSACT), self.random.randrange(1 << 16)])
        data = b""
        if number == CallNumber.TRANSACT:
            data = self.operations()
        elif number in (CallNumber.PAGE_FREE,):
            data = struct.pack("<4Q", *(self.number() for _ in range(4)))[: self.random.randrange(33)]
        elif number in (
            CallNumber.INSTALL_MOUNT,
            CallNumber.RESERVE_TYPE,
            CallNumber.TYPE_IMPORT,
            CallNumber.MOUNT,
            CallNumber.TYPE_MOUNT,
        ):
            data = self.random.choice([b"toy", b"toy-node", b"new%d" % cookie, b"", b"\xff", b"x" * 65])
        elif number != CallNumber.UNINSTALL_MOUNT:
            data = self.extents()
        flags = self.random.choice([0, 0, 0, 1, 0xFFFF])
        cap = self.random.choice([0, 1, 1, 1, 1, 2, 3, 4, 5, (1 << 32) - 1])
        scalars = [self.random.choice([DEV, self.number()]), *(self.number() for _ in range(3))]
        return Entry(number, flags, cap, cookie, *scalars, data, 0, self.random.choice([0, 256, 1 << 20]))


@pytest.mark.parametrize("seed", range(8))
def test_no_entry_gets_an_exception_out_of_the_kernel(toy: Toy, seed: int) -> None:
    fuzzer = Fuzzer(toy, seed)
    node = toy.add_node(toy.root, 1)
    fuzzer.blocks += [node, toy.add_data(node, 2, b"x")]
    tree = toy.local.kernel.tree_capability(DEV, "toy", Right.READ | Right.WRITE)
    held = [tree, Capability(TREE, 99, 7), Capability(ADDRESS, 5, 7)]
    env = toy.local.environment(held)
    kernel = toy.local.kernel
    answered = set()
    for cookie in range(1, 1500):
        answer = kernel.execute(env.kernel_env, fuzzer.entry(cookie))
        if answer is not None:
            assert answer.cookie == cookie
            answered.add(answer.code)
        if cookie % 50 == 0:
            toy.local.pump()
            toy.local.tick(1.0)
    assert len(answered) >= 8, answered
    env.close()
    toy.local.sync()
    assert toy.code("null") is None
    report = recover.reconstruct(toy.local.disk.read_block, toy.local.disk.nblocks)
    assert report.sound, report.violations


@pytest.mark.parametrize("seed", range(4))
def test_a_neighbour_who_talks_nonsense_does_not_disturb(seed: int) -> None:
    """Two file systems: one in proper use, the other fuzzed; the first ends exactly as its model says."""
    world = Anarchist(seed + 700, max_chunks=24)
    other = Toy(world.local, "victim")
    fuzzer = Fuzzer(other, seed)
    fuzzer.blocks += list(range(10, 60))
    env = world.local.environment(roots=["victim"])
    for cookie in range(1, 200):
        world.step()
        for turn in range(4):
            world.local.kernel.execute(env.kernel_env, fuzzer.entry(cookie * 4 + turn))
        if cookie % 10 == 0:
            world.look()
    env.close()
    world.come_to_rest()


def test_floods_are_bounded(toy: Toy) -> None:
    """Entries that wait are counted; the rest are refused at once, and everything goes on afterwards."""
    block = toy.add_data(toy.root, 1, b"x")
    toy.local.hold_io = True
    toy.env.submit("writebackv", DEV, data=pack_extents([(block, 1, 0)]))
    codes = set()
    for cookie in range(5000):
        entry = Entry(int(CallNumber.FLUSH), 1, 0, 10_000 + cookie, DEV, 0, 0, 0, b"", 0, 0)
        answer = toy.local.kernel.execute(toy.env.kernel_env, entry)
        codes.add(answer.code if answer is not None else 0)
    assert codes == {0, 19}
    toy.local.hold_io = False
    toy.local.release_io()
    toy.env.dispatch()
    assert toy.env.kernel_env.pending == 0 and toy.code("null") is None


@pytest.mark.parametrize("flags", [0, OpFlag.ZERO])
def test_one_environment_cannot_fill_the_cache_with_what_cannot_leave_it(flags: int) -> None:
    """Neither with dirty blocks nor with blocks that it never initialises; the refusal says what to write back."""
    local = LocalXok(4096, max_chunks=16, entries=256)
    toy, neighbour = Toy(local, "greedy"), Toy(local, "neighbour")
    share = local.kernel.share
    assert share == 192
    taken: list[tuple[int, int]] = []

    def take(sector: int, count: int) -> None:
        new, block = toy.sector(toy.root, sector), toy.free_block(count)
        new.pointers.append((block, count, TYPE_XN_DB, 0))
        alloc = {"db": block, "count": count, "type": TYPE_XN_DB, "flags": flags}
        toy.transact(toy.modify(toy.root, sector, new, OpKind.ALLOC, **alloc))
        taken.append((block, count))

    with pytest.raises(LimitReached) as refused:
        for number in range(80):
            take(number // 10, 10)
    assert len(toy.env.kernel_env.unsettled) <= share < len(taken) * 10 + 10
    for number in range(20):
        neighbour.add_data(neighbour.root, number // 10, b"in peace")
    assert refused.value.fields["r0"]
    if not flags:
        with pytest.raises(LimitReached):
            take(7, 10)
        toy.env.close()  # what it did is nobody's now
        assert not toy.env.kernel_env.unsettled
        return
    root = local.kernel.devices[DEV].get(toy.root)
    while len(taken) < 80:  # as much as it likes, when it writes back what it is told to
        try:
            take(len(taken) // 10, 10)
        except LimitReached as again:
            named = again.fields["r0"]
            assert any(block <= named < block + count for block, count in taken) or named == toy.root
            toy.writeback(*(entry.db for entry in toy.env.kernel_env.unsettled if entry is not root))
            toy.flush()
            toy.durable(toy.root)
    local.sync()
    assert local.kernel.devices[DEV].dirty_blocks == []


def test_a_block_named_twice_leaves_the_registry_once(toy: Toy) -> None:
    blocks = [toy.add_data(toy.root, 1, b"x") for _ in range(2)]
    toy.durable(*blocks)
    toy.durable(toy.root)
    extents = [(blocks[0], 1, 0), (blocks[1], 1, 0), (blocks[0], 1, 0)]
    assert toy.env.call("delete_attr", DEV, data=pack_extents(extents)).r0 == 2
    toy.env.call("insert_and_read", da(toy.root), cap=toy.cap, data=pack_extents([(block, 1, 1) for block in blocks]))


def test_lists_longer_than_what_there_is_are_refused_before_they_are_read(toy: Toy) -> None:
    """Page numbers that nobody has, and extents of nothing, as many as operands may hold."""
    assert toy.code("page_free", data=bytes(8 * 500_000)) is BadCapability
    for call in ("writebackv", "mark_dirty"):
        assert toy.code(call, DEV, data=pack_extents([(1, 0, 0)] * 100_000)) is BadCall


def test_a_read_that_finds_no_place_leaves_its_type_as_it_was() -> None:
    small = Toy(LocalXok(4096, max_chunks=16, entries=64))
    node = small.add_node(small.root, 1)
    small.local.sync()
    device = small.local.kernel.devices[DEV]
    device.forget(device.get(node))
    others = [small.env, small.local.environment(roots=["toy"])]
    for sector, env in enumerate(others, 2):
        count = 30 if sector == 2 else 64 - len(device.registry.cached)
        start = small.free_block(count)
        op = small.modify(
            small.root,
            sector,
            Sector([(start, count, TYPE_XN_DB, 0)]),
            OpKind.ALLOC,
            db=start,
            count=count,
            type=TYPE_XN_DB,
        )
        env.call("transact", cap=next(h.index for h in env.caps if h.name == "toy"), data=pack_transaction([op]))
    before = device.types[small.type].cached
    with pytest.raises(LimitReached):
        small.env.call("insert_and_read", da(small.root), cap=small.cap, data=pack_extents([(node, 1, 1)]))
    assert device.types[small.type].cached == before
