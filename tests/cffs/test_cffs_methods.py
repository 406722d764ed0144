"""A shared volume against a hostile writer: one who holds the same capability and sends transactions of its own.

Every attack differs from something that is approved in one respect only, and the approved one is tried as well.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from cffs_harness import Volume

from libfs.cffs import layout, methods, sector
from xok_host.abi.calls import Op, OpKind, pack_transaction
from xok_host.abi.errors import BogusUpdate, RefcountWrong, Refused, UdfFailed, XokError
from xok_host.abi.types import BLOCK, SECTOR, disk_address
from xok_host.kernel.local import DEV

LONG = b"l" * 200
CTIME, MTIME, FLAGS, NLINK = (layout.INODE.offset(field) for field in ("ctime", "mtime", "flags", "nlink"))
EXTENTS = layout.INODE.offset("extents")


class Hostile:
    """Directory `d` with two blocks and more, and somebody who may write it and does not use C-FFS."""

    def __init__(self, files: int = 30) -> None:
        self.volume = volume = Volume(2048, shared=True)
        self.d = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
        self.e = volume("mkdir", volume.root, b"e", 0o755, 0, 0).ino
        self.inos = {b"f%d" % number: volume.file(self.d, b"f%d" % number) for number in range(files)}
        self.inos[b"g"] = volume.file(self.e, b"g")
        self.map = {
            ino: {logical: start for logical, _, start in volume("directory", ino)[0].extents.items()}
            for ino in (volume.root, self.d, self.e)
        }
        node = volume.fs.nodes[self.d]
        self.node_block = node.extents.root.block if node.extents.root is not None else 0
        self.directory_type = volume.fs.directory_type
        volume.fs.close()
        self.env = volume.xok.environment(roots=["vol"], name="hostile")
        self.cap = self.env.caps[0].index

    @property
    def now(self) -> int:
        return self.volume.xok.kernel.now

    def block(self, db: int) -> bytes:
        entry = self.env.registry.lookup(DEV << 44 | db)
        return bytes(self.volume.xok.page_bytes(entry.page))

    def sector(self, key: int) -> bytearray:
        return bytearray(self.block(key >> 3)[(key & 7) * SECTOR : (key & 7) * SECTOR + SECTOR])

    def put(self, key: int, data: bytes) -> Op:
        at = (key & 7) * SECTOR
        return Op(OpKind.MODIFY, disk_address(DEV, key >> 3), key & 7, writes=[(at, bytes(data))])

    def shown(self, *inos: int) -> list[int]:
        """All that a method may want to see about these directories."""
        blocks = []
        for ino in inos or (self.d,):
            blocks += [ino >> 5, *self.map[ino].values()]
        return sorted({*blocks, *([self.node_block] if self.node_block else [])})

    def send(self, *ops: Op, shown: Iterable[int] | None = None) -> None:
        witnesses = [Op(OpKind.WITNESS, disk_address(DEV, db)) for db in (self.shown() if shown is None else shown)]
        self.env.call("transact", cap=self.cap, data=pack_transaction([*ops, *witnesses]))

    def refused(self, *ops: Op, shown: Iterable[int] | None = None, error: type[XokError] = Refused) -> None:
        """XN says no, and nothing has changed."""
        blocks = {op.da >> 12 & (1 << 44) - 1 for op in ops}
        before = {db: self.block(db) for db in blocks}
        with pytest.raises(error) as caught:
            self.send(*ops, shown=shown)
        assert type(caught.value) is error
        assert {db: self.block(db) for db in blocks} == before

    # ---- changes that XN itself has nothing against

    def link(self, key: int, name: bytes, ino: int, *, version: int = 0, length: int = 0) -> list[Op]:
        """One more name for an inode: the entry, and its count."""
        sectors = {k: self.sector(k) for k in (key, ino >> 2)}
        kind = 8 | version << layout.VERSION_SHIFT
        sector.add(sectors[key], name, kind, ino & 3 if key == ino >> 2 else 0, ino)
        at = (ino & 3) * layout.INODE_BYTES + NLINK
        sectors[ino >> 2][at] += 1
        return [self.put(k, data) for k, data in sectors.items()]

    def change(self, ino: int, **fields: int) -> Op:
        """Fields of an inode."""
        data = self.sector(ino >> 2)
        at = (ino & 3) * layout.INODE_BYTES
        for field, value in fields.items():
            place = layout.INODE.locate(field)
            data[at + place.offset : at + place.offset + place.width] = value.to_bytes(place.width, "little")
        return self.put(ino >> 2, data)

    def free_key(self, need: int = 40, block: int = 0) -> int:
        """A sector in use of one of d's blocks that has room for a name elsewhere."""
        for db in self.map[self.d].values():
            for key in range(db << 3, (db << 3) + 8):
                data = self.sector(key)
                if data[0] and sector.room_without_slot(data) >= need and block in (0, db):
                    return key
        raise AssertionError("no room")

    def unused_key(self) -> int:
        return next(
            key for db in self.map[self.d].values() for key in range(db << 3, (db << 3) + 8) if not self.sector(key)[0]
        )


@pytest.fixture
def hostile() -> Hostile:
    return Hostile()


# ---- M1


def test_m1_a_sector_keeps_its_header(hostile: Hostile) -> None:
    key = hostile.free_key()
    for offset, value in ((0, 0), (1, 2), (6, 1), (8, 0x55)):
        data = hostile.sector(key)
        data[offset] ^= value or 0xCF
        hostile.refused(hostile.put(key, data))
    hostile.send(hostile.put(key, hostile.sector(key)))


@pytest.mark.parametrize("wrong", ["owner", "no owner", "logical", "unseen", "magic"])
def test_m1_a_sector_comes_into_use_as_what_it_is(hostile: Hostile, wrong: str) -> None:
    key = hostile.unused_key()
    logical = next(number for number, db in hostile.map[hostile.d].items() if db == key >> 3)
    data = sector.fresh(hostile.d)
    data[6] = logical
    right = hostile.put(key, data)
    everything = hostile.shown(hostile.volume.root, hostile.d, hostile.e)
    if wrong == "owner":
        data[8:16] = hostile.e.to_bytes(8, "little")
    elif wrong == "no owner":
        data[8:16] = bytes(8)
    elif wrong == "logical":
        data[6] = logical ^ 1
    elif wrong == "magic":
        data[0] = 0
    if wrong == "unseen":
        for missing in (hostile.d >> 5, *(db for db in hostile.map[hostile.d].values() if db != key >> 3)):
            hostile.refused(right, shown=set(everything) - {missing})
    else:
        hostile.refused(hostile.put(key, data), shown=everything)
    hostile.send(right)


def test_m1_the_root_extent_gets_no_names_and_no_sectors(hostile: Hostile) -> None:
    root = hostile.volume.root
    key = root >> 2
    for name in (b"second", layout.hidden_name(root)):
        data = hostile.sector(key)
        sector.add(data, name, 4, layout.ROOT_SLOT)
        data[layout.ROOT_SLOT * layout.INODE_BYTES + NLINK] += 1
        hostile.refused(hostile.put(key, data))
    hostile.refused(hostile.put(key + 1, sector.fresh(0)))


# ---- M2


def test_m2_names_are_well_formed(hostile: Hostile) -> None:
    key = hostile.free_key()
    ino = hostile.inos[b"f3"]

    def bent(offset: int, value: int) -> Op:
        data = hostile.sector(key)
        data[offset] = value
        return hostile.put(key, data)

    plain = hostile.sector(key)
    hostile.refused(bent(3, plain[3] + 1))
    hostile.refused(bent(2, plain[2] | 0x10))
    hostile.refused(bent(4, plain[4] + 1))
    hostile.refused(bent(4, plain[4] + 3))
    for name in (b".", b"..", b"a/b", b"x\0y", b"\0not an inode", layout.hidden_name(ino ^ 1)):
        hostile.refused(*hostile.link(key, name, ino))
    for ops in (hostile.link(key, b"...", ino), hostile.link(key, layout.hidden_name(ino), ino)):
        hostile.send(*ops)


def test_m2_names_do_not_run_into_inodes(hostile: Hostile) -> None:
    key = next(key for key in range(hostile.free_key(), 1 << 40) if hostile.sector(key)[2] == 0xE)
    ino = hostile.inos[b"f3"] if hostile.inos[b"f3"] >> 2 != key else hostile.inos[b"f9"]
    data = hostile.sector(key)
    end = sector.end_of(data)
    name = b"r" * (layout.INODE_BYTES + 10 - end)
    entry = bytes((len(name), 8, 0)) + ino.to_bytes(8, "little") + name
    data[end : end + len(entry)] = entry
    data[3] += 1
    data[4:6] = (end + len(entry)).to_bytes(2, "little")
    data[layout.INODE_BYTES + NLINK : layout.INODE_BYTES + NLINK + 4] = (1).to_bytes(4, "little")
    count = hostile.sector(ino >> 2)
    count[(ino & 3) * layout.INODE_BYTES + NLINK] += 1
    with pytest.raises(XokError):
        hostile.send(hostile.put(key, data), hostile.put(ino >> 2, count))


def test_m2_a_name_goes_to_a_used_slot(hostile: Hostile) -> None:
    """XN says so first: a reference to nothing."""
    key = hostile.inos[b"g"] >> 2
    assert hostile.sector(key)[2] == 1 << 3
    data = hostile.sector(key)
    sector.add(data, b"nothing", 8, 1)
    hostile.refused(hostile.put(key, data), error=RefcountWrong)


# ---- M3


def test_m3_a_name_is_given_once(hostile: Hostile) -> None:
    ino, other = hostile.inos[b"f3"], hostile.inos[b"f29"]
    for db in hostile.map[hostile.d].values():
        key = hostile.free_key(block=db)
        hostile.refused(*hostile.link(key, b"f3", other))  # of another file
        hostile.refused(*hostile.link(key, b"f3", ino))  # and of the same
        hostile.send(*hostile.link(key, b"unheard %d" % db, ino))
        hostile.refused(*hostile.link(key, b"unheard %d" % db, other))


def test_m3_what_is_not_shown_may_have_the_name(hostile: Hostile) -> None:
    key = hostile.free_key()
    ops = hostile.link(key, b"new", hostile.inos[b"f3"])
    needed = {hostile.d >> 5, *hostile.map[hostile.d].values()} - {key >> 3}
    assert len(needed) >= 2
    for missing in needed:
        hostile.refused(*ops, shown=needed - {missing})
    hostile.refused(*ops, shown=[])
    hostile.send(*ops, shown=needed)


def test_m3_one_transaction_cannot_give_it_twice(hostile: Hostile) -> None:
    first, second = list(hostile.map[hostile.d].values())[:2]
    ino, other = hostile.inos[b"f3"], hostile.inos[b"f29"]
    one = hostile.link(hostile.free_key(block=first), b"twin", ino)
    two = hostile.link(hostile.free_key(block=second), b"twin", other)
    keys = [op.da | op.own_id for op in one + two]
    assert len(set(keys)) == len(keys), "four sectors"
    hostile.refused(*one, *two)
    hostile.send(*one)


def test_m3_a_version_replaces_one_entry_only(hostile: Hostile) -> None:
    key = hostile.free_key(80)
    ino, other = hostile.inos[b"f3"], hostile.inos[b"f29"]
    hostile.refused(*hostile.link(key, b"f3", other, version=2))
    hostile.send(*hostile.link(key, b"f3", other, version=1))
    hostile.refused(*hostile.link(key, b"f3", other, version=2))
    hostile.refused(*hostile.link(key, b"f3", ino, version=3))
    hostile.volume.mount()
    assert hostile.volume("lookup", hostile.d, b"f3").ino == other


def test_m3_a_name_is_in_its_bucket() -> None:
    hostile = Hostile(400)
    assert hostile.node_block
    ino = hostile.inos[b"f3"]
    by_bucket: dict[int, int] = {}
    for logical, db in hostile.map[hostile.d].items():
        if logical >= layout.BUCKET:
            by_bucket.setdefault(logical // layout.BUCKET, db)
    right = layout.bucket_base(1, b"new") // layout.BUCKET
    for bucket, db in by_bucket.items():
        place = {logical: start for logical, start in hostile.map[hostile.d].items() if logical // 8 == bucket}
        shown = {hostile.d >> 5, hostile.node_block, *place.values()}
        ops = hostile.link(hostile.free_key(block=db), b"new", ino)
        if bucket != right:
            hostile.refused(*ops, shown=shown)
        else:
            hostile.refused(*ops, shown=shown - {hostile.node_block})
            good = ops, shown
    hostile.send(*good[0], shown=good[1])


# ---- M4


def test_m4_a_change_has_its_time(hostile: Hostile) -> None:
    ino, now = hostile.inos[b"f3"], hostile.now
    old = int.from_bytes(hostile.sector(ino >> 2)[(ino & 3) * 128 + CTIME :][:8], "little")
    mode = 0o100600
    hostile.volume.xok.tick(3600)
    now = hostile.now
    hostile.refused(hostile.change(ino, mode=mode))
    for wrong in (old - 1, old + 1, now - methods.LATE_NS - 1, now + methods.AHEAD_NS + 1, 0, (1 << 64) - 1):
        hostile.refused(hostile.change(ino, mode=mode, ctime=wrong))
        hostile.refused(hostile.change(ino, ctime=wrong))
    for fields in ({"uid": 7}, {"gid": 7}, {"size": 7}, {"mtime": 7}, {"extents[3].logical": 7}):
        hostile.refused(hostile.change(ino, **fields))
        hostile.send(hostile.change(ino, ctime=now, **fields))
        hostile.volume.xok.tick(100)
        now = hostile.now
    hostile.send(hostile.change(ino, mode=mode, ctime=now - methods.LATE_NS))
    hostile.refused(hostile.change(ino, mode=0o100644, ctime=now - methods.LATE_NS - 1))
    hostile.send(hostile.change(ino, mode=0o100644, ctime=now + methods.AHEAD_NS))
    hostile.refused(hostile.change(ino, mode=mode, ctime=now))


def test_m4_what_is_no_change_needs_no_time(hostile: Hostile) -> None:
    hostile.volume.xok.tick(3600)
    hostile.send(hostile.change(hostile.inos[b"f3"], atime=1, group=77))


def test_m4_a_clock_that_was_set_back_stops_nobody(hostile: Hostile) -> None:
    ino = hostile.inos[b"f3"]
    hostile.send(hostile.change(ino, ctime=hostile.now))
    ahead = hostile.now
    hostile.volume.xok.tick(-3600)
    hostile.refused(hostile.change(ino, size=5, ctime=hostile.now))
    hostile.refused(hostile.change(ino, size=5, ctime=ahead + 1))
    hostile.send(hostile.change(ino, size=5, ctime=ahead))


def test_m4_another_inode_in_the_slot_has_a_time_of_its_own(hostile: Hostile) -> None:
    """A generation is no way round: the new inode is as young as a change."""
    ino = hostile.inos[b"f3"]
    hostile.volume.xok.tick(3600)
    hostile.refused(hostile.change(ino, generation=1, ctime=hostile.now - methods.LATE_NS - 1))
    hostile.refused(hostile.change(ino, generation=1))
    hostile.send(hostile.change(ino, generation=1, ctime=hostile.now))


# ---- M5


def test_m5_a_directory_grows_step_by_step(hostile: Hostile) -> None:
    grown, growing = 1 << layout.LEVEL_SHIFT, 1 << layout.LEVEL_SHIFT | layout.GROWING
    for flags in (grown, layout.GROWING, 2 << layout.LEVEL_SHIFT | layout.GROWING, layout.INLINE, 2):
        with pytest.raises((Refused, BogusUpdate, UdfFailed)):
            hostile.send(hostile.change(hostile.d, flags=flags, ctime=hostile.now))
    hostile.send(hostile.change(hostile.d, flags=growing, ctime=hostile.now))
    for flags in (grown, 0, 2 << layout.LEVEL_SHIFT | layout.GROWING):
        hostile.refused(hostile.change(hostile.d, flags=flags, ctime=hostile.now))
    hostile.refused(*hostile.link(hostile.free_key(), b"new", hostile.inos[b"f3"]))


def test_m5_growth_ends_when_the_old_table_is_seen_to_be_empty(hostile: Hostile) -> None:
    """`e` has one name; it moves nowhere, it goes."""
    growing = 1 << layout.LEVEL_SHIFT | layout.GROWING
    (block,) = hostile.map[hostile.e].values()
    hostile.send(hostile.change(hostile.e, flags=growing, ctime=hostile.now))
    done = {"flags": 1 << layout.LEVEL_SHIFT, "ctime": hostile.now}
    hostile.refused(hostile.change(hostile.e, **done), shown=hostile.shown(hostile.e))
    data = hostile.sector(hostile.inos[b"g"] >> 2)
    sector.remove(data, sector.find(data, b"g"))
    sector.drop(data, hostile.inos[b"g"] & 3)
    hostile.send(hostile.put(hostile.inos[b"g"] >> 2, data))
    hostile.refused(hostile.change(hostile.e, **done), shown=set(hostile.shown(hostile.e)) - {block})
    hostile.send(hostile.change(hostile.e, **done), shown=hostile.shown(hostile.e))


def test_m5_only_old_names_come_into_a_table_that_grows(hostile: Hostile) -> None:
    """The way C-FFS goes, by hand: a block of the new table, and names for it."""
    growing = 1 << layout.LEVEL_SHIFT | layout.GROWING
    ino = hostile.inos[b"f3"]
    logical = layout.bucket_base(1, b"f3")
    new = next(db for db in range(1000, 2000) if hostile.env.freemaps[DEV].is_free(db))
    now = hostile.now
    slot = len(hostile.map[hostile.d])
    gain = {
        f"extents[{slot}].logical": logical,
        f"extents[{slot}].count": 1,
        f"extents[{slot}].start": new,
    }
    op = hostile.change(hostile.d, flags=growing, ctime=now, **gain)
    address, part = op.da, op.own_id
    alloc = Op(OpKind.ALLOC, address, part, db=new, count=1, type=hostile.directory_type)
    hostile.refused(op, alloc)  # a block is shown before it gets a place
    hostile.send(op, alloc, shown=[*hostile.shown(), new])
    hostile.map[hostile.d][logical] = new

    def name_it(name: bytes, target: int) -> list[Op]:
        data = sector.fresh(hostile.d)
        data[6] = logical
        sector.add(data, name, 8, 0, target)
        count = hostile.sector(target >> 2)
        count[(target & 3) * layout.INODE_BYTES + NLINK] += 1
        return [hostile.put(new << 3, data), hostile.put(target >> 2, count)]

    unheard = next(b"u%d" % n for n in range(99) if layout.bucket_base(1, b"u%d" % n) == logical)
    hostile.refused(*name_it(unheard, ino))
    hostile.refused(*name_it(b"f3", hostile.inos[b"f29"]))
    hostile.send(*name_it(b"f3", ino))


def extents_of(hostile: Hostile, ino: int) -> list[int]:
    return sorted(hostile.map[ino].items())


def test_m5_blocks_keep_their_places(hostile: Hostile) -> None:
    now = hostile.now
    (a, first), (b, second) = extents_of(hostile, hostile.d)[:2]
    swapped = {"extents[0].start": second, "extents[1].start": first, "ctime": now}
    hostile.refused(hostile.change(hostile.d, **swapped))
    hostile.refused(hostile.change(hostile.d, **{"extents[0].logical": 5, "ctime": now}))
    hostile.refused(hostile.change(hostile.d, **{"extents[1].logical": a, "ctime": now}))
    hostile.refused(hostile.change(hostile.d, **{"extents[0].logical": layout.SHARED_BLOCKS, "ctime": now}))
    # The same two in another order is the same table.
    order = {
        "extents[0].logical": b,
        "extents[0].start": second,
        "extents[1].logical": a,
        "extents[1].start": first,
        "ctime": now,
    }
    hostile.send(hostile.change(hostile.d, **order))


def test_m5_blocks_do_not_change_their_directory(hostile: Hostile) -> None:
    """Both inodes may be in one sector, where XN sees the same blocks owned before and after."""
    now, (_, mine), (_, theirs) = hostile.now, *(extents_of(hostile, ino)[0] for ino in (hostile.d, hostile.e))
    assert hostile.d >> 2 == hostile.e >> 2
    data = hostile.sector(hostile.d >> 2)
    for ino, start in ((hostile.d, theirs), (hostile.e, mine)):
        at = (ino & 3) * layout.INODE_BYTES
        data[at + EXTENTS + 8 : at + EXTENTS + 16] = start.to_bytes(8, "little")
        data[at + CTIME : at + CTIME + 8] = now.to_bytes(8, "little")
    hostile.refused(hostile.put(hostile.d >> 2, data), shown=hostile.shown(hostile.d, hostile.e))


def test_m5_a_table_in_a_node_keeps_its_places() -> None:
    hostile = Hostile(400)
    node = hostile.node_block
    used = hostile.block(node)[3]
    assert used >= 8
    at = layout.HEADER_BYTES
    for offset, value in ((at, 60), (at + 8, None), (at + 4, 2), (8, 1), (1, 1), (2, 0), (0, 0)):
        data = hostile.sector(node << 3)
        if value is None:  # two blocks change places
            data[at + 8 : at + 16], data[at + 24 : at + 32] = data[at + 24 : at + 32], data[at + 8 : at + 16]
        else:
            data[offset] = value
        with pytest.raises((Refused, BogusUpdate, UdfFailed)):
            hostile.send(
                hostile.put(node << 3, data), shown=[hostile.d >> 5, *list(hostile.map[hostile.d].values())[:20]]
            )
    data = hostile.sector(node << 3)
    data[at : at + 32] = data[at + 16 : at + 32] + data[at : at + 16]
    hostile.send(hostile.put(node << 3, data), shown=[])
    # and it stays with its directory
    swap = hostile.sector(hostile.d >> 2)
    for one, other in ((hostile.d, hostile.e), (hostile.e, hostile.d)):
        to, from_ = ((ino & 3) * layout.INODE_BYTES for ino in (one, other))
        old = hostile.sector(hostile.d >> 2)
        swap[to + EXTENTS : to + layout.INODE_BYTES] = old[from_ + EXTENTS : from_ + layout.INODE_BYTES]
        swap[to + FLAGS : to + FLAGS + 2] = old[from_ + FLAGS : from_ + FLAGS + 2]
        swap[to + CTIME : to + CTIME + 8] = hostile.now.to_bytes(8, "little")
    hostile.refused(hostile.put(hostile.d >> 2, swap), shown=hostile.shown(hostile.e) + [node])


# ---- what XN holds by itself


def test_link_counts_are_xns(hostile: Hostile) -> None:
    ino = hostile.inos[b"f3"]
    hostile.refused(hostile.change(ino, nlink=2), error=RefcountWrong)
    name_only, count = hostile.link(hostile.free_key(), b"new", ino)
    for alone in (name_only, count):
        hostile.refused(alone, error=RefcountWrong)
    hostile.send(name_only, count)


def test_after_all_that_the_volume_is_whole(hostile: Hostile) -> None:
    key = hostile.free_key()
    hostile.send(*hostile.link(key, b"theirs", hostile.inos[b"f3"]))
    hostile.refused(*hostile.link(key, b"f5", hostile.inos[b"f3"]))
    volume = hostile.volume
    hostile.env.close()
    volume.mount()
    names = volume.listing(hostile.d)
    assert names == {name: ino for name, ino in hostile.inos.items() if name != b"g"} | {b"theirs": hostile.inos[b"f3"]}
    assert volume("getattr", hostile.inos[b"f3"]).nlink == 2
    assert BLOCK == 4096
    volume.check_disk()
