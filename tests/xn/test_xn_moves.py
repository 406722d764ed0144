"""What a crash leaves of moves (docs/xn.md, “What moves”): cut after each step, with the cache lost or kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from toy import COUNTS_AT, DEV, Sector, Toy, da, element

from xok_host.abi.calls import Op, pack_extents, pack_transaction
from xok_host.abi.ops import Extent, Part, add_edge, drop_edge, move
from xok_host.abi.types import SECTOR, SECTORS
from xok_host.kernel.local import LocalXok

KEPT = (lambda sector: True, lambda sector: False, lambda sector: sector % 2 == 0)
"""Which of the sectors in the disk's cache survive the cut."""


def new_toy() -> Toy:
    return Toy(LocalXok(512, max_chunks=16, entries=1 << 10))


def part(toy: Toy, sector: int, contents: Sector) -> Part:
    return Part(da(toy.root), sector, [(sector * SECTOR, contents.pack())])


def run(toy: Toy, operations: list[Op]) -> None:
    toy.env.call("transact", cap=toy.cap, data=pack_transaction(operations))


def write(toy: Toy, sector: int) -> None:
    toy.env.call("writeback", DEV, toy.root, 1, 1 << sector)


def cut(steps: Callable[[Toy], Iterator[None]]) -> Iterator[Toy]:
    """The file system after a crash behind each of the steps, reconstructed without a violation."""
    total = sum(1 for _ in steps(new_toy()))
    assert total > 2
    for stop in range(1, total + 1):
        for kept in KEPT:
            toy = new_toy()
            for done, _ in enumerate(steps(toy), 1):
                if done == stop:
                    break
            toy.local.crash(kept)
            report = toy.local.recover()
            assert report.sound, (stop, report.violations)
            yield toy


def on_disk(toy: Toy, sector: int) -> Sector:
    return Sector.unpack(toy.local.disk.read_sectors(toy.root * SECTORS + sector, 1))


def test_moved_data_has_one_owner_or_none() -> None:
    def steps(toy: Toy) -> Iterator[None]:
        block = toy.add_data(toy.root, 1, b"x")
        toy.local.sync()
        yield
        pointers = toy.sector(toy.root, 1).pointers
        run(toy, move(part(toy, 1, Sector()), part(toy, 2, Sector(pointers=pointers)), Extent(block, 1)))
        yield
        write(toy, 1)
        yield
        toy.flush()
        yield
        write(toy, 2)
        yield
        toy.flush()
        yield

    owners = {len(on_disk(toy, 1).pointers) + len(on_disk(toy, 2).pointers) for toy in cut(steps)}
    assert owners == {0, 1}  # lost in between: XN will not have two owners on the disk


def test_data_that_moves_within_a_sector_is_never_lost() -> None:
    def steps(toy: Toy) -> Iterator[None]:
        for contents in (b"1", b"2"):
            toy.add_data(toy.root, 1, contents)
        toy.local.sync()
        yield
        new = toy.sector(toy.root, 1)
        new.pointers.reverse()
        run(toy, [toy.modify(toy.root, 1, new)])
        yield
        write(toy, 1)
        yield
        toy.flush()
        yield

    assert all(len(on_disk(toy, 1).pointers) == 2 for toy in cut(steps))


def test_an_edge_that_is_added_before_it_is_dropped_is_never_lost() -> None:
    """The thesis's third rule, and how a libFS keeps it."""

    def steps(toy: Toy) -> Iterator[None]:
        there = element(toy.root, 3, 0)

        def counts(count: int) -> Part:
            return Part(da(toy.root), 3, [(3 * SECTOR + COUNTS_AT, count.to_bytes(8, "little"))])

        edge = Sector(references=[there])
        run(toy, add_edge(part(toy, 1, edge), there, counts(1)))
        toy.local.sync()
        yield
        run(toy, add_edge(part(toy, 2, edge), there, counts(2)))
        yield
        for sector in (3, 2):  # the count first, then the reference
            write(toy, sector)
            yield
            toy.flush()
            yield
        run(toy, drop_edge(part(toy, 1, Sector()), there, counts(1)))
        yield
        for sector in (1, 3):  # the reference first, then the count
            write(toy, sector)
            yield
            toy.flush()
            yield

    states = {(len(on_disk(toy, 1).references), len(on_disk(toy, 2).references)) for toy in cut(steps)}
    assert states == {(1, 0), (1, 1), (0, 1)}


def test_an_edge_moved_in_one_step_may_be_lost_and_its_count_is_never_too_low() -> None:
    def steps(toy: Toy) -> Iterator[None]:
        there = element(toy.root, 3, 0)
        counted = Sector()
        counted.counts[0] = 1
        run(toy, add_edge(part(toy, 1, Sector(references=[there])), there, part(toy, 3, counted)))
        toy.local.sync()
        yield
        gone, come = part(toy, 1, Sector()), part(toy, 2, Sector(references=[there]))
        run(toy, [*drop_edge(gone, there), *add_edge(come, there)])
        yield
        for sector in (1, 2):
            write(toy, sector)
            yield
            toy.flush()
            yield

    states = {(len(on_disk(toy, 1).references), len(on_disk(toy, 2).references)) for toy in cut(steps)}
    assert states == {(1, 0), (0, 0), (0, 1)}


@pytest.mark.parametrize("first", [1, 2])
def test_the_gaining_sector_cannot_go_first(toy: Toy, first: int) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    toy.local.sync()
    pointers = toy.sector(toy.root, 1).pointers
    run(toy, move(part(toy, 1, Sector()), part(toy, 2, Sector(pointers=pointers)), Extent(block, 1)))
    extents = pack_extents([(toy.root, 1, 1 << first)])
    refused = toy.code("writebackv", DEV, data=extents)
    assert (refused is None) == (first == 1)
