"""The registry's image in shared memory, the pages under it, and the free map (REG-1, REG-2, PAGES-1 to PAGES-8)."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from toy import DEV, Toy, da, take_pages

from xok_host.abi.errors import LimitReached, NotInCore
from xok_host.abi.types import BLOCK, CHUNK_PAGES
from xok_host.abi.views import RegistryView, registry_bytes
from xok_host.kernel.pages import DATA, LOOK_CHUNKS, META, ROOTS, Pages, PlainMemory
from xok_host.kernel.xn.format import layout
from xok_host.kernel.xn.freemap import FreeMap
from xok_host.kernel.xn.registry import Cached, Registry

FIELDS = ("key", "page", "generation", "type", "flags", "dirty", "in_flight", "written", "durable", "pins", "writer")


def registry(entries: int = 64, buckets: int = 16) -> tuple[Registry, RegistryView]:
    table = memoryview(bytearray(registry_bytes(entries, buckets)))
    made = Registry(table, entries, buckets)
    return made, RegistryView(table)


def entry(key: int) -> Cached:
    return Cached(SimpleNamespace(), key & (1 << 44) - 1, key)  # type: ignore[arg-type]


def test_the_image_shows_every_field() -> None:
    made, view = registry()
    cached = entry(1 << 44 | 77)
    made.insert(cached)
    for number, name in enumerate(FIELDS[1:], 3):
        setattr(cached, name, number)
    cached.page, cached.parent_da, cached.lock, cached.total_taint = 1 << 40, 1 << 56 | 5, 0xFFFF_FFFF, 9
    cached.generation = 40
    made.publish(cached)
    seen = view.lookup(cached.key)
    assert seen is not None
    for name in FIELDS:
        assert getattr(seen, name) == getattr(cached, name), name
    assert (seen.parent, seen.lock, seen.taint) == (1 << 56 | 5, 0xFFFF_FFFF, 9)


def test_a_run_is_what_single_lookups_find() -> None:
    """Entries and gaps, neighbours in the table in either direction or nowhere near, places that others had before."""
    made, _ = registry(64, 16)
    dice = random.Random(5)
    there: dict[int, Cached] = {}
    base = 3 << 44
    for turn in range(300):
        for key in dice.sample(range(base, base + 60), 20):
            if key in there:
                made.remove(there.pop(key))
        new = [key for key in range(base, base + 60) if key not in there and dice.random() < 0.5]
        for key in sorted(new, reverse=bool(turn % 2)):
            there[key] = entry(key)
            made.insert(there[key])
        first = base + dice.randrange(40)
        assert made.run(first, 25, False) == [there.get(key) for key in range(first, first + 25)]
        missing = next((key for key in range(first, first + 25) if key not in there), 0)
        if missing:
            with pytest.raises(NotInCore, match=f"block {missing - base} is not in the registry"):
                made.run(first, 25, True)
        near = there[dice.choice(list(there))]
        assert [made.after(near, key) for key in range(base, base + 60)] == [
            there.get(key) for key in range(base, base + 60)
        ]


def test_lookup_finds_what_is_there_and_nothing_else() -> None:
    """Few buckets, so that chains are long; removals from their middle."""
    made, view = registry(64, 4)
    dice = random.Random(3)
    there: dict[int, Cached] = {}
    for _ in range(2000):
        key = dice.choice([1, 2]) << 44 | dice.randrange(100)
        if key in there:
            made.remove(there.pop(key))
        elif len(there) < 64:
            there[key] = entry(key)
            made.insert(there[key])
        else:
            with pytest.raises(LimitReached):
                made.insert(entry(key))
        assert view.in_use() == len(there) == 64 - made.room()
    for key in [dev << 44 | db for dev in (1, 2) for db in range(100)]:
        seen = view.lookup(key)
        assert (seen is not None) == (key in there) and (seen is None or seen.key == key)


def test_entries_are_kept_in_the_order_of_use() -> None:
    """Against a dictionary, whose order is that of insertion; everybody sees it in the table."""
    made, view = registry(64, 4)
    dice = random.Random(5)
    known: dict[int, Cached] = {}
    for _ in range(3000):
        key = dice.randrange(80)
        if key in known and dice.random() < 0.5:
            made.touch(known[key])
            known[key] = known.pop(key)
        elif key in known:
            made.remove(known.pop(key))
            with pytest.raises(KeyError):
                made[key]
        elif len(known) < 64:
            known[key] = entry(key)
            made.insert(known[key])
        assert made.in_core() == len(known)
        assert made.oldest() is next(iter(known.values()), None)
        assert [seen.key for seen in view.least_recently_used(5)] == list(known)[:5]
    assert list(made.cached) == list(known) == [seen.key for seen in view.least_recently_used(99)]
    assert all(made[key] is cached for key, cached in known.items())


def test_a_generation_never_comes_back_to_a_place() -> None:
    made, view = registry(1, 4)
    generations = []
    for key in range(5):
        cached = entry(key)
        made.insert(cached)
        generations.append(view.at(0).generation)
        made.renew(cached)
        made.publish(cached)
        generations.append(view.at(0).generation)
        made.remove(cached)
        assert view.lookup(key) is None
    assert generations == sorted(set(generations)) and not any(generation & 1 for generation in generations)


def test_pages_return_to_their_arena() -> None:
    pages = Pages(PlainMemory(4))
    one = pages.arena(pages.access(frozenset({1}), frozenset({1})))
    page = pages.alloc(one)
    pages.hold(page)
    assert pages.shared(page)
    pages.drop(page)
    pages.drop(page)
    assert pages.in_use == 0 and pages.alloc(one) == page


def test_runs_of_pages_are_contiguous_where_a_chunk_has_room() -> None:
    """PAGES-6, against a set of what is free in the chunks that are looked at."""
    pages = Pages(PlainMemory(6))
    arena = pages.arena(pages.access(frozenset({1}), frozenset({1})))
    dice = random.Random(7)
    held: list[list[int]] = []
    for _ in range(600):
        count = dice.choice([1, 2, 7, 64, 256])
        free = {p for c in arena.chunks for p in range(c * CHUNK_PAGES, (c + 1) * CHUNK_PAGES)}.difference(*held)
        looked = {chunk.number for chunk in arena.open[-LOOK_CHUNKS:]}
        try:
            run = pages.alloc_run(arena, count)
        except LimitReached:
            assert len(free) < count
            run = []
        assert run == sorted(set(run)) and len(run) in (0, count)
        if arena.chunks and free.issuperset(run) and run and run[-1] - run[0] != count - 1:
            for start in (page for page in free if page // CHUNK_PAGES in looked):  # scattered only if none has room
                assert (start % CHUNK_PAGES) + count > CHUNK_PAGES or not free.issuperset(range(start, start + count))
        held.append(run)
        for _ in range(dice.randrange(2)):
            for page in held.pop(dice.randrange(len(held))):
                pages.drop(page)
        assert pages.in_use == sum(map(len, held))
    for page in [page for run in held for page in run]:
        pages.drop(page)
    assert pages.in_use == 0 and not any(any(pages.chunk(c).users) for c in arena.chunks)  # type: ignore[union-attr]


def test_a_span_reaches_into_the_pages_behind() -> None:
    pages = Pages(PlainMemory(2))
    first, second = pages.alloc_run(pages.arena(pages.access(frozenset({1}), frozenset({1}))), 2)
    pages.view(first)[:], pages.view(second)[:] = b"1" * BLOCK, b"2" * BLOCK
    assert bytes(pages.span(first, 7, 2)) == b"1" * 512 + b"2" * 512


def test_chunks_change_arenas_only_when_nobody_can_see_them() -> None:
    pages = Pages(PlainMemory(2))
    first = pages.arena(pages.access(frozenset({1}), frozenset({1})), 5, DATA)
    page = pages.alloc(first)
    pages.view(page)[:] = b"s" * BLOCK
    other = pages.arena(pages.access(frozenset({2}), frozenset({2})), 6, DATA)
    pages.alloc(other)
    third = pages.arena(pages.access(frozenset({3}), frozenset({3})), 7, DATA)
    pages.drop(page)
    chunk = pages.chunk(page // CHUNK_PAGES)
    assert chunk is not None
    chunk.mapped.add(5)
    with pytest.raises(LimitReached):
        pages.alloc(third)
    meta = pages.arena(pages.access(frozenset({3}), frozenset({3})), 0, META)
    pages.environment_died(5)
    with pytest.raises(LimitReached):
        pages.alloc(meta)  # another kind: sealed otherwise
    again = pages.alloc(third)
    assert again // CHUNK_PAGES == page // CHUNK_PAGES and not any(chunk.view)


def test_no_arena_takes_all() -> None:
    pages = Pages(PlainMemory(4))
    greedy = pages.arena(pages.access(frozenset({1}), frozenset({1})))
    with pytest.raises(LimitReached):
        while True:
            pages.alloc(greedy)
    assert len(greedy.chunks) == 3
    modest = pages.arena(pages.access(frozenset({2}), frozenset({2})))
    pages.alloc(modest)


def test_many_trees_of_one_user_leave_chunks_to_others() -> None:
    """PAGES-7: each tree's pages are in chunks of their own; a chunk that one of his trees gives up serves another."""
    pages = Pages(PlainMemory(12))
    pages.payer = 1000
    held = []
    with pytest.raises(LimitReached, match="9 of 12 chunks of memory are in use by the caller's trees"):
        for tree in range(1, 13):
            only = frozenset({tree})
            held.append(pages.alloc(pages.arena(pages.access(only, only))))
    assert len(held) == 9
    pages.drop(held[0])
    fifth = frozenset({50})
    assert pages.alloc(pages.arena(pages.access(fifth, fifth))) // CHUNK_PAGES == held[0] // CHUNK_PAGES
    for uid in (1001, 0):
        pages.payer = uid
        other = frozenset({100 + uid})
        pages.alloc(pages.arena(pages.access(other, other)))
    assert pages.total == 11 * CHUNK_PAGES
    pages.payer = ROOTS + 3
    for tree in range(200, 201):
        only = frozenset({tree})
        pages.alloc(pages.arena(pages.access(only, only)))
    pages.environment_died(3)
    assert not any(pages.chunk(number).payer == ROOTS + 3 for number in range(12))  # type: ignore[union-attr]


def test_what_nobody_may_read_keeps_its_last_chunk() -> None:
    """PAGES-8: XN writes its own sectors however much others hold."""
    pages = Pages(PlainMemory(4))
    own = pages.arena(pages.access(frozenset(), frozenset()))
    for page in [pages.alloc(own) for _ in range(CHUNK_PAGES + 1)]:
        pages.drop(page)
    assert pages.total == 2 * CHUNK_PAGES
    only = frozenset({1})
    tree = pages.arena(pages.access(only, only))
    for _ in range(3 * CHUNK_PAGES):  # two new chunks, and one that the arena can spare
        pages.alloc(tree)
    other = pages.arena(pages.access(frozenset({2}), only))
    with pytest.raises(LimitReached):
        pages.alloc(other)
    pages.alloc(own)


def test_the_writers_of_dead_arenas_are_gone(toy: Toy) -> None:
    block = toy.add_data(toy.root, 1, b"x")
    pages = toy.local.kernel.pages
    page = toy.entry(block).page
    assert pages.arena_of(page).writer == toy.env.id
    toy.env.close()
    assert pages.arena_of(page).writer == 0 and pages.arena_of(page).kind == DATA


def test_chunks_of_the_dead_serve_the_living(toy: Toy) -> None:
    """Clean blocks in them are dropped when the memory is needed."""
    block = toy.add_data(toy.root, 1, b"x")
    toy.local.sync()
    toy.env.close()
    toy.local.memory.limit = toy.local.kernel.pages.total // CHUNK_PAGES
    env = toy.local.environment(roots=["toy"])
    for _ in range(2):  # the first chunk that comes free was the type's, the second held the block
        take_pages(env, env.caps[0].index, CHUNK_PAGES)
    assert env.registry.lookup(da(block) >> 12) is None
    assert toy.local.disk.read_block(block)[:1] == b"x"


def test_the_free_map_counts() -> None:
    superblock = layout(5000, bytes(16), 16)
    freemap = FreeMap(memoryview(bytearray(4096)), 5000, superblock.freemap)
    freemap.loaded(superblock)
    free = freemap.free
    assert free == 5000 - superblock.first - 1
    assert freemap.find(0, 10) == superblock.first
    freemap.allocate(4030, 10)
    assert freemap.free == free - 10 and not freemap.is_free(4035) and freemap.is_free(4040)
    assert [sector for sector, _ in freemap.take_dirty()] == [superblock.freemap * 8, superblock.freemap * 8 + 1]
    assert freemap.dirty == 0
    freemap.release(4030, 10)
    assert freemap.free == free and freemap.is_free(4030, 10)
    assert freemap.find(4990, 20) == superblock.first
    assert not freemap.is_free(4999) and not freemap.is_free(5000) and not freemap.is_free(4990, 100)
    assert not freemap.is_free(1 << 63, 1 << 63)
    assert DEV == 1
