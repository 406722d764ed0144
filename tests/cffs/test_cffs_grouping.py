"""Block choice against a naive search of the same map."""

from __future__ import annotations

import random

import pytest

from libfs.cffs import freespace
from libfs.cffs.grouping import GROUP_BLOCKS, Grouping, Scattered


def a_map(nblocks: int, seed: int, density: float) -> tuple[bytearray, set[int]]:
    rng = random.Random(seed)
    bits = bytearray((nblocks + 7) // 8)
    free = set()
    for block in range(nblocks):
        if rng.random() < density or block == 0:
            bits[block >> 3] |= 1 << (block & 7)
        else:
            free.add(block)
    return bits, free


@pytest.mark.parametrize("seed, density", [(1, 0.0), (2, 0.3), (3, 0.9), (4, 0.99)])
def test_searches(seed: int, density: float) -> None:
    nblocks = 1003
    bits, free = a_map(nblocks, seed, density)
    assert freespace.count_free(bits, nblocks) == len(free)
    for begin in (0, 1, 500, 1000):
        assert freespace.next_free(bits, begin, nblocks) == min((b for b in free if b >= begin), default=-1)
        for want in (1, 2, 5, 16):
            for align in (1, 16):
                expected = next(
                    (
                        at
                        for at in range((begin + align - 1) // align * align, nblocks - want + 1, align)
                        if all(at + i in free for i in range(want))
                    ),
                    -1,
                )
                assert freespace.find_run(bits, begin, nblocks, want, align) == expected


def test_a_directory_fills_its_group() -> None:
    bits, _ = a_map(512, 0, 0)
    grouping = Grouping(memoryview(bits), 512)
    group = 0
    blocks = []
    for _ in range(40):
        block, group = grouping.small(group, 100)
        blocks.append(block)
    assert blocks == list(range(112, 152))
    other, _ = grouping.small(0, 100)
    assert other % GROUP_BLOCKS == 0 and other >= 160, "another directory gets another group"


@pytest.mark.parametrize("strategy", [Grouping, Scattered])
def test_every_free_block_is_found_once(strategy: type[Grouping]) -> None:
    bits, free = a_map(300, 6, 0.5)
    grouping = strategy(memoryview(bits), 300)
    found = []
    group = 0
    with pytest.raises(OSError):
        while True:
            block, group = grouping.small(group, 50)
            found.append(block)
    assert sorted(found) == sorted(free)


def test_large_files_get_long_runs() -> None:
    bits, free = a_map(2000, 0, 0)
    grouping = Grouping(memoryview(bits), 2000)
    assert list(grouping.large(100, 1500)) == [(100, 1500)]
    runs = list(grouping.large(0, 300))
    blocks = [b for start, count in runs for b in range(start, start + count)]
    assert len(set(blocks)) == 300 and set(blocks) <= free and not set(blocks) & set(range(100, 1600))
    with pytest.raises(OSError):
        list(grouping.large(0, 1000))
