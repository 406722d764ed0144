"""`xok udf`: a disk's types offline, what their programs say of a block, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.host.xokkit import Done, Xok
from tests.xn import toy, tracedkit
from xok_host.abi.calls import CatalogueEntry
from xok_host.abi.types import BLOCK, TYPE_XN_DB
from xok_host.abi.udf import META, Function, load
from xok_host.cli import exits
from xok_host.cli.__main__ import main
from xok_host.kernel.local import LocalXok

NBLOCKS = 1024
CHILD = 500


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a toy file system: partition 2 of its root owns a data block, refers and counts."""
    local = LocalXok(nblocks=NBLOCKS)
    fs = toy.Toy(local)
    block = fs.add_data(fs.root, 2, b"hello")
    new = fs.sector(fs.root, 2)
    assert new.pointers[0][0] == block
    fs.durable(block, fs.root)
    path = tmp_path_factory.mktemp("udf") / "disk.img"
    path.write_bytes(bytes(local.disk.durable))
    path.with_suffix(".json").write_text(json.dumps({"root": fs.root, "block": block, "type": fs.type}))
    return path


@pytest.fixture
def places(image: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(image.with_suffix(".json").read_text())
    return found


@pytest.fixture
def ask(image: Path, capsys: pytest.CaptureFixture[str]) -> object:
    def run(*words: object, source: Path = image) -> Done:
        action, *rest = words
        status = main(["udf", str(action), str(source), *map(str, rest)])
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return run


def test_list(ask, places) -> None:  # type: ignore[no-untyped-def]
    done = ask("list")
    assert done.status == 0 and f"{'toy-node':24} type {places['type']}" in done.out
    [row] = json.loads(ask("list", "--json").out)
    assert row["parts"] == 8 and set(row["instructions"]) == {"access", "owns", "refs", "refcnt", "guard"}


def test_disassemble(ask, places) -> None:  # type: ignore[no-untyped-def]
    done = ask("disassemble", "toy-node", "owns")
    assert done.status == 0 and "; call emit" in done.out and "exit" in done.out
    assert ask("disassemble", places["type"], "owns").out == done.out == ask("disassemble", "owns").out
    every = ask("disassemble").out
    assert all(f"toy-node {name}\n" in every for name in ("access", "owns", "refs", "refcnt", "guard"))
    assert json.loads(ask("disassemble", "toy-node", "guard", "--json").out)["guard"][-1].endswith("exit")


def test_explain(ask, places) -> None:  # type: ignore[no-untyped-def]
    done = ask("explain", "toy-node", "--block", places["root"])
    assert done.status == 0, done
    assert f"owns block {places['block']}, type {TYPE_XN_DB} (xn-db)" in done.out
    assert "partition 2: bytes 1024 to 1535" in done.out and "bytes read: 1024 to 1039" in done.out
    found = json.loads(ask("explain", "toy-node", "--block", places["root"], "--part", 2, "--json").out)
    [part] = found["partitions"]
    assert part["owns"]["said"] == [[places["block"], 1, TYPE_XN_DB]] and part["owns"]["executed"] > 12
    assert part["refcnt"]["said"] == [] and part["refcnt"]["refused"] is None


def test_explain_counts_references_and_refuses(ask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sector = toy.Sector(pointers=[(9, 1, 1, 0), (9, 1, 1, 0)], counts=[3] + [0] * 7, references=[0x1234])
    path = tmp_path / "block"
    path.write_bytes(bytes(512) + sector.pack())
    done = ask("explain", "toy-node", "--file", path, "--da", hex(1 << 56 | 7 << 12))
    assert done.status == exits.REFUSED
    assert "REFUSED: owns names a block twice" in done.out
    assert "counts 3 references to block 7 byte 800" in done.out
    assert "refers to block 1 byte 564" in done.out
    path.write_bytes(toy.Sector(pointers=[(9, 2, 1, 0)]).pack() * 2)
    done = ask("explain", "toy-node", "--file", path)
    assert done.status == exits.REFUSED and "names a block twice, in two partitions" in done.out


def reading_elsewhere() -> bytes:
    f = Function()
    with f.if_(load(META + f.part * 512, 1) != 0):
        f.emit(load(META + 4000, 8), 1, 1)
    return f.finish()


def test_a_fault_is_shown_where_it_is(ask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    template = tmp_path / "faulty"
    template.write_bytes(toy.template("faulty", owns=reading_elsewhere(), refs=b"", refcnt=b""))
    block = tmp_path / "block"
    block.write_bytes(b"\1")
    assert ask("explain", source=template).status == exits.OK  # the empty instance is in order
    done = ask("explain", "--file", block, source=template)
    assert done.status == exits.REFUSED
    assert "8 bytes at META+4000, but it may see 0 to 511" in done.out
    line = next(line for line in done.out.splitlines() if "ldx64" in line)
    listed = ask("disassemble", "faulty", "owns", source=template).out
    assert line.strip() in listed
    ran = ask("run", "owns", "--file", block, source=template)
    assert ran.status == exits.REFUSED and "FAULT: reads outside" in ran.out and line.strip() in ran.out


def test_run(ask, places) -> None:  # type: ignore[no-untyped-def]
    done = ask("run", "toy-node", "owns", "--block", places["root"], "--part", 2)
    assert done.status == 0 and f"emits owns block {places['block']}" in done.out and "r0 = 0" in done.out
    assert "emits bytes 1536 to 2047" in ask("run", "toy-node", "access", "--part", 3).out
    assert "emits capability 0x9 may read and write" in ask("run", "toy-node", "guard", "--capability", 9).out
    traced = ask("run", "toy-node", "guard", "--capability", 9, "--trace").out
    assert "call 3" in traced and "r1=0x9" in traced
    found = json.loads(ask("run", "toy-node", "owns", "--block", places["root"], "--part", 2, "--json").out)
    assert found["emitted"] == [[places["block"], 1, 1]] and found["fault"] is None


def test_run_of_an_acl(ask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """It sees what was and what shall be, who asks, and the time."""
    f = Function()
    f.return_((f.tree << 32) + (f.address << 16) + (load(META, 1) << 8) + load(META + (2 << 32), 1))
    template, old, new = tmp_path / "t", tmp_path / "old", tmp_path / "new"
    template.write_bytes(toy.template("judge", acl=f.finish()))
    old.write_bytes(b"\x05")
    new.write_bytes(b"\x06")
    words = ("run", "acl", "--file", old, "--new", new, "--capability", 7, "--time", 8)
    assert f"r0 = {(7 << 32) + (8 << 16) + (5 << 8) + 6}" in ask(*words, source=template).out


def test_c_ffs_with_names_for_its_bytes(ask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A fresh C-FFS: its root sector has two inodes, with a name for each."""
    from libfs.cffs import layout, mkfs

    local = LocalXok(nblocks=NBLOCKS)
    environment = local.environment()
    mkfs.make(environment, 1, "home", clock=lambda: 0)
    root = next(e for e in mkfs_catalogue(environment) if e.name == "home").db
    image = tmp_path / "cffs.img"
    image.write_bytes(bytes(local.disk.durable))
    done = ask("explain", layout.DIR_TYPE_NAME, "--block", root, "--part", 0, source=image)
    assert done.status == exits.OK, done
    assert f"counts 1 references to block {root} byte 384" in done.out
    assert f"refers to block {root} byte 384" in done.out and f"refers to block {root} byte 256" in done.out
    assert "fields read: header.used, slots[1].nlink, slots[2].nlink" in done.out
    traced = ask("run", layout.DIR_TYPE_NAME, "refcnt", "--block", root, "--trace", source=image).out
    assert "; slots[2].nlink" in traced and "; header.used" in traced
    named = ("--fields", "libfs.cffs.layout:NODE_SECTOR")
    done = ask("explain", layout.DIR_TYPE_NAME, "--block", root, "--part", 0, *named, source=image)
    assert "fields read: header.content" in done.out
    for wrong in ("nothing:X", "libfs.cffs.layout:NOTHING", "libfs.cffs.layout:SLOTS", ""):
        done = ask("explain", layout.DIR_TYPE_NAME, "--fields", wrong, source=image)
        assert done.status == exits.USAGE and "--fields" in done.err


def mkfs_catalogue(environment) -> list[CatalogueEntry]:  # type: ignore[no-untyped-def]
    raw = environment.call("read_catalogue", 1, out_bytes=1 << 20).data
    size = len(CatalogueEntry("", 0, 0, 0, 0, 0, 0, 0).pack())
    return [CatalogueEntry.unpack(raw[at : at + size]) for at in range(0, len(raw), size)]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("explain", "nobody"), exits.REFUSED, "has no type 'nobody'; its types: toy-node ("),
        (("explain", "toy-node", "--block", NBLOCKS), exits.USAGE, f"it has blocks 0 to {NBLOCKS - 1}"),
        (("explain", "toy-node", "--block", -1), exits.USAGE, "is not on"),
        (("explain", "toy-node", "--part", 8), exits.REFUSED, "partitions 0 to 7"),
        (("run", "toy-node"), exits.USAGE, "name a program of toy-node: access, owns"),
        (("run", "toy-node", "acl"), exits.REFUSED, "toy-node has no program acl; it has access"),
        (("run", "toy-node", "fly"), exits.USAGE, "there is no program 'fly'"),
        (("explain", "toy-node", "--file", "/no/such/file"), exits.REFUSED, "No such file"),
    ],
)
def test_refusals_say_what_to_do(ask, words, status: int, says: str) -> None:  # type: ignore[no-untyped-def]
    done = ask(*words)
    assert done.status == status and says in done.err and len(done.err.splitlines()) == 1, done


def test_what_is_no_source(ask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = ask("list", source=tmp_path / "absent")
    assert done.status == exits.BAD_DISK and "does not exist" in done.err
    other = tmp_path / "other"
    other.write_bytes(bytes(8 << 20))
    done = ask("list", source=other)
    assert done.status == exits.BAD_DISK and "not an XN disk" in done.err
    other.write_bytes(toy.template()[:-1] + b"?")
    done = ask("list", source=other)
    assert done.status == exits.REFUSED and "checksum" in done.err
    other.write_bytes(toy.template())
    done = ask("explain", "--block", 3, source=other)
    assert done.status == exits.USAGE and "is no disk" in done.err
    big = tmp_path / "big"
    big.write_bytes(bytes(16 * BLOCK + 1))
    assert ask("explain", "--file", big, source=other).status == exits.USAGE


def test_a_type_that_xn_would_refuse_is_listed_and_not_run(ask, image, tmp_path) -> None:  # type: ignore[no-untyped-def]
    raw = bytearray(image.read_bytes())
    at = raw.index(b"XOK-TMPL")
    raw[at + 40] ^= 1
    broken = tmp_path / "broken.img"
    broken.write_bytes(raw)
    assert "REFUSED: checksum" in ask("list", source=broken).out
    done = ask("explain", "toy-node", source=broken)
    assert done.status == exits.REFUSED and "checksum" in done.err


def test_a_disk_in_use_is_refused(tmp_path: Path) -> None:
    xok = Xok(tmp_path)
    xok("format", xok.image, "--size", "64M")
    assert xok("udf", "list", xok.image) == "no types\n"
    xok.up()
    try:
        done = xok.try_("udf", "list", xok.image)
        assert done.status == exits.REFUSED and "another xokd" in done.err
    finally:
        xok("down")


def test_traced_partitions_are_shown_as_they_are_read(ask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    template, block = tmp_path / "heap", tmp_path / "block"
    template.write_bytes(tracedkit.heap().pack())
    assert "STRUCT, 64 traced partitions; instructions: owns" in ask("list", source=template).out
    record = tracedkit.EXTENT.pack(9, 1)
    block.write_bytes(
        tracedkit.ENTRY.pack(64, 1) + tracedkit.ENTRY.pack(80, 1) + bytes(56) + record + bytes(8) + record
    )
    done = ask("explain", "--file", block, source=template)
    assert done.status == exits.REFUSED and "owns names a block twice, in two partitions" in done.out
    assert (
        "partition 0: reads bytes 0 to 3, 64 to 71\n" in done.out
        and "partition 9: reads bytes 516 to 517\n" in done.out
    )
    block.write_bytes(tracedkit.ENTRY.pack(64, 2) + tracedkit.ENTRY.pack(72, 1) + bytes(56) + record)
    done = ask("explain", "--file", block, source=template)
    assert done.status == exits.REFUSED and "REFUSED: byte 76 is read by 2 partitions" in done.out
    found = json.loads(ask("explain", "--file", block, "--part", 1, "--json", source=template).out)
    assert found["partitions"][0]["regions"] == [[4, 4], [76, 4]] and "readers" not in found


def test_overlapping_partitions_are_shown_with_their_readers(ask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    template, block = tmp_path / "based", tmp_path / "block"
    template.write_bytes(tracedkit.based().pack())
    assert "64 overlapping partitions; instructions: owns" in ask("list", source=template).out
    block.write_bytes(tracedkit.BASED.pack(100, 2, 1, 2, *[0] * 6))
    done = ask("explain", "--file", block, source=template)
    assert done.status == 0, done
    assert "partition 1: reads bytes 0 to 7, 12 to 13\n" in done.out
    assert "bytes 0 to 7: read by 2, as uses says\nbytes 10 to 25: read by 1, as uses says\n" in done.out
    assert "emits bytes 0 to 7 are read by 2 partitions" in ask("run", "uses", "--file", block, source=template).out
    assert "emits bytes 522 to 537" in ask("run", "uses", "--file", block, "--part", 1, source=template).out
    assert ask("run", "uses", "--part", 8, source=template).status != 0
    block.write_bytes(tracedkit.BASED.pack(100, 3, 1, 2, *[0] * 6))
    done = ask("explain", "--file", block, source=template)
    assert done.status == exits.REFUSED and "bytes 0 to 7: read by 2, and uses says by 3\n" in done.out
    assert "REFUSED: uses says that 3 partitions read byte 0; 2 do" in done.out
    found = json.loads(ask("explain", "--file", block, "--json", source=template).out)
    assert found["readers"][0] == {"first": 0, "end": 8, "number": 2, "claimed": 3, "refused": ""}
    block.write_bytes(tracedkit.BASED.pack(100, 600, 1, 2, *[0] * 6))
    assert "REFUSED: uses(0) gives byte 0 600 users" in ask("explain", "--file", block, source=template).out
