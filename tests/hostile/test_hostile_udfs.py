"""Hostile templates: UDFs that fault, loop and lie, and types that are not the caller's to make."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.hostile.attack import Battlefield, battlefield


@pytest.fixture(scope="module")
def field() -> Iterator[Battlefield]:
    with battlefield() as field:
        yield field


TEMPLATES = r'''
from xok_host.abi.ebpf import Assembler
from xok_host.abi.template import Kind
from xok_host.abi.udf import STACK_BASE

def code(write, last=True):
    f = Function()
    write(f)
    return f.finish()

def forever(f):
    with f.while_(load(META, 1) == load(META, 1)):
        f.store(STACK_BASE, 1, 8)

def when(byte, then):
    """A program that behaves until the first byte of its sector is `byte`."""
    def write(f):
        sector = f.var(META + f.part * SECTOR)
        with f.if_(load(sector, 1) == byte):
            then(f, sector)
    return code(write)

def import_new(env, name, raw):
    return install_type(env, name, raw)
'''


def test_templates_that_are_lies_from_the_start_are_not_imported(field: Battlefield) -> None:
    results = field.attack(
        TEMPLATES
        + r"""
def main(env, argv):
    def part(f, value): f.emit(value, SECTOR, 0)
    everything = {
        "reads outside": dict(owns=code(lambda f: f.emit(load(META + 5000, 8), 1, 1))),
        "reads xokd's memory": dict(owns=code(lambda f: f.emit(load(0x7f0000000000, 8), 1, 1))),
        "writes what it reads": dict(owns=code(lambda f: f.store(META, 1, 8))),
        "loops": dict(owns=code(forever)),
        "owns from the start": dict(owns=code(lambda f: f.emit(VICTIM["root"], 1, 1))),
        "refers from the start": dict(refs=code(lambda f: f.emit_ref(da(VICTIM["root"])))),
        "counts from the start": dict(refcnt=code(lambda f: f.emit(f.address, 5, 0))),
        "partitions overlap": dict(access=code(lambda f: f.emit(0, SECTOR, 0))),
        "partitions leave the block": dict(access=code(lambda f: f.emit(f.part * SECTOR + 300, SECTOR, 0))),
        "partitions move": dict(access=code(lambda f: f.emit(load(META, 2), SECTOR, 0))),
        "guard faults": dict(guard=code(lambda f: f.emit_cap(load(0, 8), 3))),
        "wrong helper": dict(owns=code(lambda f: f.emit_cap(1, 3))),
        "no code": dict(owns=b"\xff" * 64),
        "half an instruction": dict(owns=owns()[:-4]),
        "falls off the end": dict(owns=owns()[:-8]),
    }
    for number, (name, programs) in enumerate(everything.items()):
        type_name = f"lie{number}"
        attempt(name, import_new, env, type_name, template(type_name, **programs))
    attempt("no template", import_new, env, "zeros", bytes(4096))
    raw = template("broken")
    attempt("broken checksum", import_new, env, "broken", raw[:-1] + bytes([raw[-1] ^ 1]))
    attempt("cut short", import_new, env, "short", raw[:200])
    return report()
"""
    )
    assert len(results) == 18
    assert set(results.values()) == {"TypeInvalid"}, results


def test_udfs_that_turn_bad_later_hurt_their_own_volume_only(field: Battlefield) -> None:
    """Each misbehaves once a byte of the metadata says so: that modification is refused, and nothing has changed."""
    results = field.attack(
        TEMPLATES
        + r"""
def main(env, argv):
    def loops(f, sector):
        with f.while_(load(sector, 1) == 1):
            f.store(STACK_BASE, 1, 8)
    kinds = {
        "faults": lambda f, sector: f.emit(load(META + 5000, 8), 1, 1),
        "loops": loops,
        "claims": lambda f, sector: f.emit(VICTIM["data"], 1, 1),
        "claims as metadata": lambda f, sector: f.emit(VICTIM["data"], 1, VICTIM["type"]),
        "claims all": lambda f, sector: f.emit(1, 1 << 40, 1),
        "claims no block": lambda f, sector: f.emit(0, 1, 1),
        "claims no type": lambda f, sector: f.emit(9000, 1, 0),
        "claims twice": lambda f, sector: (f.emit(9000, 2, 1), f.emit(9001, 1, 1)),
    }
    for number, (name, then) in enumerate(kinds.items()):
        type_name = f"bad{number}"
        type_id = import_new(env, type_name, template(type_name, owns=when(1, then), refs=b"", refcnt=b"", guard=b""))
        made = env.call("install_mount", DEV, 0, 1, type_id, data=b"vol" + type_name.encode())
        change = [Op(OpKind.MODIFY, da(made.r0), 3, writes=[(3 * SECTOR, b"\1")])]
        attempt(name, lambda: env.call("transact", cap=made.r1, data=pack_transaction(change)))
        left = env.call("readb", da(made.r0, 3 * SECTOR), 1, cap=made.r1, out_bytes=1).data
        attempt(name + " left", lambda: left[0])
        change = [Op(OpKind.MODIFY, da(made.r0), 3, writes=[(3 * SECTOR, b"\2")])]
        attempt(name + " other change", lambda: env.call("transact", cap=made.r1, data=pack_transaction(change)))
    return report()
"""
    )
    for name in ("faults", "loops", "claims no block", "claims no type", "claims twice"):
        assert results[name] == "UdfFailed", (name, results)
    for name in ("claims", "claims as metadata", "claims all"):
        assert results[name] == "BogusUpdate", (name, results)
    assert {value for name, value in results.items() if name.endswith(" left")} == {0}
    assert {value for name, value in results.items() if name.endswith(" other change")} == {"done"}


def test_what_is_outside_its_partition_an_udf_does_not_see(field: Battlefield) -> None:
    """An `owns` that looks at another sector would change its mind without being asked again."""
    results = field.attack(
        TEMPLATES
        + r"""
def main(env, argv):
    peep = code(lambda f: f.emit(load(META + 7 * SECTOR, 8), 1, 1))
    attempt("import", import_new, env, "peep", template("peep", owns=peep, refs=b"", refcnt=b"", guard=b""))
    # Sector 7 alone may be read by partition 7; whoever reads it as another faults as soon as it is asked.
    def careful(f):
        with f.if_(f.part == 0):
            with f.if_(load(META, 1) == 1):
                with f.if_(load(META + 7 * SECTOR, 1) == 1):
                    f.emit(VICTIM["data"], 1, 1)
    type_id = import_new(env, "careful", template("careful", owns=code(careful), refs=b"", refcnt=b"", guard=b""))
    made = env.call("install_mount", DEV, 0, 1, type_id, data=b"volcareful")
    def write(part, offset):
        env.call("transact", cap=made.r1, data=pack_transaction(
            [Op(OpKind.MODIFY, da(made.r0), part, writes=[(offset, b"\1")])]))
    attempt("switch on", write, 0, 0)
    attempt("other sector", write, 7, 7 * SECTOR)
    attempt("under another's name", write, 0, 7 * SECTOR)
    attempt("in no partition's name", write, NO_PARTITION, 7 * SECTOR)
    attempt("enumerate", lambda: env.call("udf_enum", da(made.r0), 0, 8, cap=made.r1, out_bytes=4096).r0)
    return report()
"""
    )
    assert results["import"] == "TypeInvalid"
    assert results["switch on"] == "UdfFailed"
    assert results["other sector"] == "done"
    assert results["under another's name"] == results["in no partition's name"] == "BogusPartition"
    assert results["enumerate"] == 0


def test_types_of_others_are_not_the_callers_to_make_or_unmake(field: Battlefield) -> None:
    results = field.attack(
        TEMPLATES
        + r"""
def main(env, argv):
    toy = Own("types", env)
    attempt("reserve it again", env.call, "reserve_type", DEV, data=b"victim-reserved")
    attempt("install under it", env.call, "install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"victim-reserved")
    attempt("import under it", env.call, "type_import", DEV, data=b"victim-reserved")
    attempt("import another's raw blocks", env.call, "type_import", DEV, data=b"victim-raw")
    attempt("import metadata", env.call, "type_import", DEV, data=b"victim")
    attempt("import a type again", env.call, "type_import", DEV, data=b"victim-node")
    attempt("take its name", env.call, "install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"victim-node")
    attempt("remove the type", env.call, "uninstall_mount", DEV, cap=toy.cap, data=b"victim-node")
    reserved = VICTIM["type"] + 1
    block = toy.free_block()
    for name, type_id in {"reserved": reserved, "unknown": 9999, "template": 2, "none": 0, "huge": 0xFFFFFFFF}.items():
        attempt(f"root of type {name}", env.call, "install_mount", DEV, 0, 1, type_id, data=b"new")
        new = Sector([(block, 1, type_id, 0)])
        attempt(f"block of type {name}", lambda: toy.transact(
            toy.modify(toy.root, 0, new, OpKind.ALLOC, db=block, count=1, type=type_id)))
    raw = template("mine")
    made = env.call("install_mount", DEV, 0, 1, TYPE_XN_DB, data=b"mine")
    page = take_pages(env, made.r1, 1)[0]
    env.page(page)[:] = raw.ljust(BLOCK, b"\0")
    env.call("transact", cap=made.r1, data=pack_transaction(
        [Op(OpKind.PUBLISH, da(made.r0), NO_PARTITION, db=made.r0, count=1, page=page)]))
    attempt("import what is not durable", env.call, "type_import", DEV, data=b"mine")
    toy.durable(made.r0)
    attempt("import", env.call, "type_import", DEV, data=b"mine")
    # The page is still mapped writable.  What xokd took is a copy, in memory and on the disk.
    env.page(page)[:] = b"\xff" * BLOCK
    for name, call in {
        "mark the template dirty": lambda: env.call("mark_dirty", DEV, data=pack_extents([(made.r0, 1, 255)])),
        "publish over it": lambda: env.call("transact", cap=made.r1, data=pack_transaction(
            [Op(OpKind.PUBLISH, da(made.r0), NO_PARTITION, db=made.r0, count=1, page=take_pages(env, made.r1, 1)[0])])),
    }.items():
        attempt(name, call)
    attempt("write it back", lambda: (toy.durable(made.r0), 0)[1])
    toy.flush()
    attempt("block", lambda: made.r0)
    return report()
"""
    )
    assert results["reserve it again"] == results["install under it"] == results["take its name"] == "Exists"
    assert results["import under it"] == results["import metadata"] == results["import a type again"] == "WrongType"
    assert results["import another's raw blocks"] == results["remove the type"] == "BadCapability"
    for name in ("reserved", "unknown", "template", "none", "huge"):
        assert results[f"root of type {name}"] == results[f"block of type {name}"] == "WrongType", name
    assert results["import what is not durable"] == "Tainted"
    assert results["import"] == "done"
    assert results["mark the template dirty"] in ("BadCapability", "NotInCore")
    assert results["publish over it"] in ("BadCapability", "WrongType", "NotInCore")
    with open(field.xok.image, "rb") as disk:
        disk.seek(results["block"] * 4096)
        assert disk.read(8) == b"XOK-TMPL"


def test_udfs_that_use_up_their_budget_do_not_keep_xokd_from_others(field: Battlefield) -> None:
    """Every entry of a full ring runs a UDF for as long as it may; a neighbour's calls come through all the same."""
    attacker = field.start(
        TEMPLATES
        + r"""
def main(env, argv):
    def loops(f, sector):
        with f.while_(load(sector, 1) == 1):
            f.store(STACK_BASE, 1, 8)
    type_id = import_new(env, "slow", template("slow", owns=when(1, loops), refs=b"", refcnt=b"", guard=b""))
    made = env.call("install_mount", DEV, 0, 1, type_id, data=b"slow-volume")
    ops = pack_transaction([Op(OpKind.MODIFY, da(made.r0), 0, writes=[(0, b"\1")])])
    print("started", flush=True)
    while not env.stop_requested:
        with env.batch() as batch:
            for _ in range(200):
                batch.add("transact", cap=made.r1, data=ops)
    return 0
""",
        name="slow.py",
    )
    try:
        neighbour = field.attack(
            """
def main(env, argv):
    times = []
    for _ in range(20):
        start = time.monotonic()
        env.call("null")
        times.append(time.monotonic() - start)
    times.sort()
    attempt("median ms", lambda: int(times[10] * 1000))
    attempt("worst ms", lambda: int(times[-1] * 1000))
    return report()
"""
        )
        time.sleep(0.1)
        assert attacker.poll() is None, "it was attacking all the time"
    finally:
        field.end(attacker)
    assert neighbour["worst ms"] < 500, neighbour
