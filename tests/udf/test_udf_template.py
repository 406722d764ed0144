"""Templates: their form on disk, every reason for which XN refuses a type, and what an accepted one answers."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xok_host.abi.declare import Structure, u32, u64
from xok_host.abi.errors import BogusPartition, TypeInvalid, UdfFailed
from xok_host.abi.template import HEADER, MAX_BYTES, PROGRAMS, BadTemplate, Kind, Partitions, Template
from xok_host.abi.types import Right
from xok_host.abi.udf import META, NEW, Function, load
from xok_host.kernel.xn.template import MAX_BLOCKS, MAX_GUARDS, MAX_PARTS, MAX_REGIONS, import_template
from xok_host.kernel.xn.udf import extents

POINTER = Structure("pointer", u64("block"), u32("count"), u32("kind"))
LEAF = 16
DA = 1 << 56 | 1234 << 12


def program(write: Callable[[Function], object]) -> bytes:
    f = Function()
    write(f)
    return f.finish()


def access_sectors(f: Function) -> None:
    f.emit(f.part * 512, 512, 0)


def owns_pointers(f: Function) -> None:
    """31 pointers behind 16 bytes of header in each sector."""
    with f.for_each(POINTER, f.var(META + f.part * 512 + 16), 31) as pointer:
        with f.if_(pointer.count != 0):
            f.emit(pointer.block, pointer.count, pointer.kind)


def refs_first(f: Function) -> None:
    with f.if_(load(f.var(META + f.part * 512), 8) != 0):
        f.emit_ref(load(META + f.part * 512, 8))


def refcnt_second(f: Function) -> None:
    f.emit(f.address + f.part * 512 + 8, load(META + f.part * 512 + 8, 8), 0)


GOOD = Template(
    name="größe".encode(),
    parts=8,
    access=program(access_sectors),
    owns=program(owns_pointers),
    refs=program(refs_first),
    refcnt=program(refcnt_second),
    guard=program(lambda f: f.emit_cap(f.tree, 3)),
)


def refused(why: str, **changes: Any) -> None:
    with pytest.raises(TypeInvalid, match=why) as caught:
        import_template(replace(GOOD, **changes).pack())
    assert caught.value.detail


def test_good_one_passes() -> None:
    template = import_template(GOOD.pack() + bytes(1000))
    assert template.described == GOOD and template.spent == 0
    assert template.regions == tuple(((part * 512, 512),) for part in range(8))


# The form on disk


def test_every_byte_is_covered_by_the_checksum() -> None:
    raw = GOOD.pack()
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 0x40
        with pytest.raises(BadTemplate):
            Template.unpack(changed)


def forged(**fields: Any) -> bytes:
    """A template with header fields changed and the checksum made right again."""
    raw = bytearray(fields.pop("raw", GOOD.pack()))
    view = HEADER.view(raw)
    for name, value in fields.items():
        setattr(view, name, value)
    view.checksum = 0
    view.checksum = zlib.crc32(raw)
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "too few"),
        (bytes(4096), "magic"),
        (forged(version=3), "version 3"),
        (forged(kind=3), "kind 3"),
        (forged(total=10), "length 10"),
        (forged(total=1 << 30), "length"),
        (GOOD.pack()[:-1], "length"),
        (GOOD.pack()[:24] + bytes(4) + GOOD.pack()[28:], "checksum"),
        (forged(discriminators=65), "discriminators, at most"),
        (forged(raw=Template(name=b"x", kind=Kind.BASE).pack(), discriminators=1), "beyond"),
        (forged(programs=[{"start": 8, "length": 8}]), "outside"),
        (forged(programs=[{"start": 1 << 31, "length": 1 << 31}]), "outside"),
        (forged(name=b"a\0b"), "without zeros"),
        (forged(name=b""), "name"),
        (forged(programs=[{}] * 7), "one form"),
    ],
)
def test_malformed_bytes(raw: bytes, why: str) -> None:
    with pytest.raises(BadTemplate, match=why):
        Template.unpack(raw)
    with pytest.raises(TypeInvalid, match=why):
        import_template(raw)


def test_bounds_of_packing() -> None:
    with pytest.raises(BadTemplate, match="name"):
        replace(GOOD, name=b"x" * 65).pack()
    with pytest.raises(BadTemplate, match="at most"):
        replace(GOOD, acl=bytes(MAX_BYTES)).pack()
    with pytest.raises(BadTemplate, match="65 discriminators"):
        replace(GOOD, discriminators=((0, 1),) * 65).pack()
    big = replace(GOOD, acl=b"\x95" + bytes(7), name=b"x" * 64, discriminators=tuple((i, 1) for i in range(64)))
    assert Template.unpack(big.pack()) == big


# Reasons of refusal


def test_shape() -> None:
    import_template(Template(name=b"data", kind=Kind.BASE).pack())
    base = Template(name=b"data", kind=Kind.BASE)
    for changes in ({"parts": 1}, {"blocks": 2}, {"owns": GOOD.owns}, {"discriminators": ((0, 1),)}):
        with pytest.raises(TypeInvalid, match="BASE"):
            import_template(replace(base, **changes).pack())
    refused("partitions, not 1", parts=0)
    refused("partitions, not 1", parts=MAX_PARTS + 1)
    refused("no access program", access=b"")
    refused("no owns program", owns=b"")
    refused("blocks, at most", blocks=MAX_BLOCKS + 1)
    refused("constant size or a size program", blocks=0)
    refused("constant size or a size program", size=program(lambda f: f.return_(1)))
    refused("UNION has discriminators", kind=Kind.UNION)
    refused("UNION has discriminators", discriminators=((0, 8),))
    refused("not UTF-8", name=b"\xff")


def goes_with(name: str) -> dict[str, Any]:
    """What else a template with this program says."""
    if name == "uses":
        return {"access": b"", "partitions": Partitions.OVERLAPPING}
    return {"blocks": 0} if name == "size" else {}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_verified(name: str) -> None:
    changes: dict[str, Any] = {name: b"\xff" * 8} | goes_with(name)
    refused(f"{name}: slot 0: unknown opcode", **changes)


@pytest.mark.parametrize("name", PROGRAMS)
def test_helpers_of_others_are_refused(name: str) -> None:
    own = {"refs": 2, "guard": 3, "acl": 0, "size": 0}.get(name, 1)
    calls: dict[int, Callable[[Function], None]] = {
        1: lambda f: f.emit(0, 1, 0),
        2: lambda f: f.emit_ref(0),
        3: lambda f: f.emit_cap(0, 1),
    }
    for helper, call in calls.items():
        if helper != own:
            changes: dict[str, Any] = {name: program(call)} | goes_with(name)
            refused(f"{name} calls helper {helper}", **changes)


def test_access() -> None:
    def overlapping(f: Function) -> None:
        f.emit(f.part * 500, 512, 0)

    def reading(f: Function) -> None:
        f.emit(f.part * 512, 512 + load(META, 1), 0)

    def same_region_twice(f: Function) -> None:
        f.emit(f.part * 512, 512, 0)
        f.emit(f.part * 512 + 511, 1, 0)

    def many(f: Function) -> None:
        with f.for_range(0, MAX_REGIONS + 1) as i:
            f.emit(f.part * 512 + i, 1, 0)

    refused("overlap at byte 500", access=program(overlapping))
    refused("overlap at byte 511", access=program(same_region_twice))
    refused("reads outside.*must be constant", access=program(reading))
    refused("513 bytes at 3584 of 4096", access=program(lambda f: f.emit(f.part * 512, 512 + f.part // 7, 0)))
    refused("bytes at", access=program(lambda f: f.emit(2**64 - 512, 1024, 0)))
    refused("0 bytes", access=program(lambda f: f.emit(f.part * 512, 0, 0)))
    refused("no bytes", access=program(lambda f: f.return_(0)))
    refused("third value", access=program(lambda f: f.emit(f.part * 512, 512, 1)))
    refused("emits more", access=program(many))


def test_empty_instance() -> None:
    refused(r"owns\(0\) of the empty instance is not empty", owns=program(lambda f: f.emit(9, 1, 1)))
    refused(r"owns\(3\) of the empty", owns=program(lambda f: _only_part(f, 3, lambda: f.emit(9, 1, 1))))
    refused(r"refs\(0\) of the empty instance is not empty", refs=program(lambda f: f.emit_ref(9)))
    refused(
        r"refcnt\(0\) of the empty instance is not empty",
        refcnt=program(lambda f: f.emit(f.address + f.part * 512, 1, 0)),
    )
    refused(r"refcnt\(0\).*outside the partition", refcnt=program(lambda f: f.emit(f.address + 4000, 0, 0)))
    refused(r"owns\(0\).*reads outside", owns=program(lambda f: f.return_(load(META + 512, 8))))
    refused(r"owns\(1\).*reads outside", owns=program(lambda f: f.return_(load(META, 8))))
    refused("guard of the empty instance fails: reads outside", guard=program(lambda f: f.return_(load(NEW, 1))))
    refused("guard.*rights 0x4", guard=program(lambda f: f.emit_cap(1, 4)))
    refused("guard.*rights 0x0", guard=program(lambda f: f.emit_cap(1, 0)))
    refused("size says 0 blocks", blocks=0, size=program(lambda f: f.return_(0)))
    refused("size says 17 blocks", blocks=0, size=program(lambda f: f.return_(MAX_BLOCKS + 1)))

    def endless(f: Function) -> None:
        with f.while_(f.part < 100):
            f.set(f.part, f.part)

    refused(r"owns\(0\).*budget", owns=program(endless))


def _only_part(f: Function, part: int, then: Callable[[], None]) -> None:
    with f.if_(f.part == part):
        then()


def test_import_is_bounded() -> None:
    """Every single run within its budget, and yet too much work in all."""

    def slow(f: Function) -> None:
        with f.for_range(0, 1000):
            pass

    import_template(replace(GOOD, owns=program(slow)).pack())
    access = program(lambda f: f.emit(f.part, 1, 0))
    refused("more than 4194304 instructions", parts=4096, access=access, owns=program(slow), refs=b"", refcnt=b"")


def test_faults_are_charged() -> None:
    def write(f: Function) -> None:
        with f.while_(load(META + f.part * 512, 1) != 0):
            f.set(f.part, f.part)

    template = import_template(replace(GOOD, owns=program(write)).pack())
    block = bytearray(4096)
    block[0] = 1
    with pytest.raises(UdfFailed, match="budget"):
        template.owns(block, 0)
    assert template.spent == 1 << 16
    with pytest.raises(UdfFailed, match="budget"):
        template.unchanged("owns", bytes(4096), block, 0)
    assert template.spent > 2 << 16


def test_discriminators() -> None:
    def union(*regions: tuple[int, int]) -> dict[str, Any]:
        return {"kind": Kind.UNION, "discriminators": regions}

    import_template(replace(GOOD, **union((0, 8), (512, 1), (8, 2))).pack())
    refused("does not lie in one partition", **union((508, 8)))
    refused("does not lie in one partition", **union((4096, 1)))
    refused("0 bytes at 5 does not", **union((5, 0)))
    refused("discriminators overlap at byte 4", **union((0, 8), (4, 1)))


# What an accepted type answers


def block_with(*pointers: tuple[int, int, int, int]) -> bytearray:
    block = bytearray(4096)
    for part, block_number, count, kind in pointers:
        where = next(at for at in range(part * 512 + 16, part * 512 + 512, 16) if not POINTER.view(block, at).count)
        POINTER.pack_into(block, where, block=block_number, count=count, kind=kind)
    return block


def test_answers() -> None:
    template = import_template(GOOD.pack())
    block = block_with((1, 50, 2, LEAF), (1, 52, 1, LEAF), (1, 9, 1, 1), (5, 60, 1, LEAF))
    assert extents(template.owns(block, 1)) == [(9, 1, 1), (50, 3, LEAF)]
    assert extents(template.owns(block, 0)) == []
    assert extents(template.owns_all(block, template.spent)) == [(9, 1, 1), (50, 3, LEAF), (60, 1, LEAF)]
    assert template.spent > 31 * 4 * 8
    with pytest.raises(UdfFailed, match="twice"):
        template.owns_all(block_with((1, 50, 2, 1), (2, 51, 1, 1)), template.spent)
    for part in (-1, 8):
        with pytest.raises(BogusPartition, match="0 to 7"):
            template.owns(block, part)
    block[512:520] = (77).to_bytes(8, "little")
    block[520:528] = (3).to_bytes(8, "little")
    assert extents(template.refs(block, 1, DA)) == [(1 << 56 | 77, 1, 0)]  # of the device that all elements are on
    assert extents(template.refs(block, 1, DA ^ 3 << 56)) == [(1 << 56 | 77, 1, 0)]
    assert extents(template.refcnt(block, 1, DA)) == [(DA + 520, 3, 0)]


def test_counts_are_where_they_belong() -> None:
    for emits, accepted in (
        (((520, 1), (528, 2)), True),
        (((528, 1), (520, 2)), True),
        (((520, 1), (528, 2), (520, 1)), False),
        (((511, 1),), False),
        (((1024, 1),), False),
        (((-8, 1),), False),
    ):

        def write(f: Function, emits: tuple[tuple[int, int], ...] = emits) -> None:
            with f.if_(load(META + f.part * 512, 1) != 0):
                for offset, count in emits:
                    f.emit(f.address + offset, count, 0)

        template = import_template(replace(GOOD, refcnt=program(write)).pack())
        block = bytearray(4096)
        block[512] = 1
        if accepted:
            assert sorted(extents(template.refcnt(block, 1, DA))) == sorted((DA + at, n, 0) for at, n in emits)
        else:
            with pytest.raises(UdfFailed, match="outside the partition"):
                template.refcnt(block, 1, DA)


def test_unchanged() -> None:
    template = import_template(GOOD.pack())
    one, two = block_with((1, 50, 2, LEAF)), block_with((1, 50, 2, LEAF), (2, 8, 1, 1))
    assert template.unchanged("owns", one, two, 1) and not template.unchanged("owns", one, two, 2)
    assert template.unchanged("refcnt", one, two, 2, DA)
    bare = import_template(replace(GOOD, refs=b"", refcnt=b"", guard=b"").pack())
    assert bare.unchanged("refs", one, two, 2) and not bare.refs(one, 2, DA) and not bare.refcnt(one, 2, DA)
    assert bare.guard(one, 9) == ((9,), (9,)) and bare.approves(one, two, 2, 0, 0)


def test_guard() -> None:
    def write(f: Function) -> None:
        f.emit_cap(f.tree, Right.READ | Right.WRITE)
        f.emit_cap(load(META, 2), Right.READ)
        f.emit_cap(load(META, 2), Right.READ)
        with f.for_range(0, load(META + 2, 1)):
            f.emit_cap(1, Right.READ)

    template = import_template(replace(GOOD, guard=program(write)).pack())
    block = bytearray(4096)
    block[0] = 5
    assert template.guard(block, 9) == ((5, 9), (9,))
    block[2] = MAX_GUARDS
    with pytest.raises(UdfFailed, match="emits more"):
        template.guard(block, 9)


def test_acl() -> None:
    """Approves only what keeps a time current, by one capability (the thesis's example, section 4.2)."""

    def write(f: Function) -> None:
        with f.if_((f.tree == 4) & (load(NEW, 8) == f.address) & (load(META, 8) <= load(NEW, 8))):
            f.return_(1)

    template = import_template(replace(GOOD, acl=program(write)).pack())
    old, new = bytearray(4096), bytearray(4096)
    new[0:8] = (1000).to_bytes(8, "little")
    assert template.approves(old, new, 0, 4, 1000)
    assert not template.approves(old, new, 0, 5, 1000)
    assert not template.approves(old, new, 0, 4, 1001)


def test_size() -> None:
    def write(f: Function) -> None:
        f.return_(load(META, 1) + 1)

    template = import_template(replace(GOOD, blocks=0, size=program(write)).pack())
    block = bytearray(8192)
    assert template.size_of(block) == 1
    block[0] = 15
    assert template.size_of(block) == 16
    block[0] = 16
    with pytest.raises(UdfFailed, match="17 blocks"):
        template.size_of(block)
    assert import_template(replace(GOOD, blocks=3).pack()).size_of(block) == 3


def test_partition_of() -> None:
    """Two regions a partition, interleaved, some touching."""

    def access(f: Function) -> None:
        f.emit(f.part * 16, 8, 0)
        f.emit(f.part * 16 + 8, 4, 0)
        f.emit(2048 + f.part * 16, 16, 0)

    template = import_template(
        replace(GOOD, access=program(access), owns=program(lambda f: f.return_(0)), refs=b"", refcnt=b"").pack()
    )
    regions = {
        byte: part for part in range(8) for start, n in template.regions[part] for byte in range(start, start + n)
    }
    for at in [*range(0, 140), *range(2040, 2180)]:
        for length in (0, 1, 4, 12, 13, 16, 17):
            owners = {regions.get(byte, -1) for byte in range(at, at + length)}
            want = owners.pop() if len(owners) == 1 else -1
            assert template.partition_of(at, length) == want, (at, length)


def test_is_discriminator() -> None:
    template = import_template(replace(GOOD, kind=Kind.UNION, discriminators=((8, 4), (100, 1))).pack())
    touched = [at for at in range(120) if template.is_discriminator(at, 2)]
    assert touched == [7, 8, 9, 10, 11, 99, 100]


def test_other_partitions_cannot_be_read() -> None:
    """TMPL-2 where it matters: an instance that makes owns look elsewhere is refused, whatever it would say."""

    def write(f: Function) -> None:
        with f.if_(load(META + f.part * 512, 8) != 0):
            f.emit(load(META + load(META + f.part * 512, 8), 8), 1, 1)

    template = import_template(replace(GOOD, owns=program(write)).pack())
    block = bytearray(4096)
    block[0:8] = (16).to_bytes(8, "little")
    block[16:24] = (99).to_bytes(8, "little")
    assert extents(template.owns(block, 0)) == [(99, 1, 1)]
    block[0:8] = (512).to_bytes(8, "little")
    with pytest.raises(UdfFailed, match="reads outside"):
        template.owns(block, 0)


def test_how_partitions_are_said_is_in_the_form() -> None:
    """Types with declared partitions are on the disk as they always were; the others have a byte and no `access`."""
    assert GOOD.pack()[HEADER.offset("partitions") :][:4] == bytes(4)
    first_byte = program(lambda f: f.return_(load(META + f.part, 1)))
    traced = replace(GOOD, access=b"", partitions=Partitions.TRACED, owns=first_byte, refs=b"", refcnt=b"")
    one_each = program(lambda f: f.emit(f.part * 512, 8, 1))
    shared = replace(traced, partitions=Partitions.OVERLAPPING, uses=one_each)
    for template in (traced, shared):
        assert Template.unpack(template.pack()) == template
    assert import_template(traced.pack()).regions == (((0, 512),),) * 8
    for changes, why in (
        ({"access": GOOD.access}, "traced partitions has no access"),
        ({"uses": one_each}, "traced partitions has no uses"),
        ({"uses": one_each, "partitions": Partitions.EXPLICIT}, "explicit partitions has no uses"),
    ):
        with pytest.raises(BadTemplate, match=why):
            replace(traced, **changes).pack()  # type: ignore[arg-type]
    raw = bytearray(GOOD.pack())
    view = HEADER.view(raw)
    view.partitions, view.checksum = 3, 0
    view.checksum = zlib.crc32(raw)
    with pytest.raises(BadTemplate, match="partitions 3"):
        Template.unpack(raw)
    with pytest.raises(TypeInvalid, match="BASE type is one block without"):
        import_template(Template(name=b"plain", kind=Kind.BASE, partitions=Partitions.TRACED).pack())
