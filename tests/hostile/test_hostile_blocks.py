"""A hostile libOS against XN: other people's blocks, freed blocks, pages, metadata that is mapped."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.hostile.attack import SECRET, Battlefield, battlefield
from xok_host.abi.types import CHUNK_PAGES


@pytest.fixture(scope="module")
def field() -> Iterator[Battlefield]:
    with battlefield() as field:
        yield field


def test_a_block_of_another_cannot_be_claimed(field: Battlefield) -> None:
    results = field.attack(
        """
def main(env, argv):
    toy = Own("claim", env)
    root, own = toy.root, toy.add_data(toy.root, 0, b"own")
    def point(block, count=1, kind=OpKind.MODIFY, db=0, taken=1):
        new = toy.sector(root, 1)
        new.pointers.append((block, count, TYPE_XN_DB, 0))
        toy.transact(toy.modify(root, 1, new, kind, db=db, count=taken, type=TYPE_XN_DB))
    for name in ("root", "data", "node", "raw"):
        block = VICTIM[name]
        attempt(f"point at {name}", point, block)
        attempt(f"allocate {name}", point, block, kind=OpKind.ALLOC, db=block)
        attempt(f"install on {name}", env.call, "install_mount", DEV, block, 1, TYPE_XN_DB, data=b"stolen")
        attempt(f"bind {name}", env.call, "insert_and_read", da(root), cap=toy.cap, data=pack_extents([(block, 1, 0)]))
        attempt(f"free {name}", lambda: toy.transact(
            toy.modify(root, 0, toy.sector(root, 0), OpKind.FREE, db=block, count=1, type=TYPE_XN_DB)))
    free = toy.free_block(2)
    attempt("say one, take two", point, free, 2, OpKind.ALLOC, db=free)
    attempt("say one, take another", lambda: toy.transact(toy.modify(
        root, 1, Sector([(free + 1, 1, TYPE_XN_DB, 0)]), OpKind.ALLOC, db=free, count=1, type=TYPE_XN_DB)))
    attempt("own it twice", point, own)
    attempt("call data a node", lambda: toy.transact(toy.modify(root, 0, Sector([(own, 1, toy.type, 0)]))))
    for block in (0, 1, 2):
        attempt(f"allocate XN's {block}", point, block, kind=OpKind.ALLOC, db=block)
    last = env.devices[DEV] - 1
    attempt("allocate the last", point, last, kind=OpKind.ALLOC, db=last)
    attempt("allocate beyond", point, last + 1, kind=OpKind.ALLOC, db=last + 1)
    attempt("run beyond the numbers", point, free, 0xFFFFFFFF, OpKind.ALLOC, db=free, taken=0xFFFFFFFF)
    attempt("nothing at all", point, free, 1, OpKind.ALLOC, db=free, taken=0)
    return report()
"""
    )
    for name in ("root", "data", "node", "raw"):
        assert results[f"point at {name}"] == "BogusUpdate"
        assert results[f"allocate {name}"] == results[f"install on {name}"] == "NotFree"
        assert results[f"bind {name}"] == "NotOwned"
        assert results[f"free {name}"] == "BogusUpdate"
    for name in ("say one, take two", "say one, take another", "own it twice", "call data a node"):
        assert results[name] == "BogusUpdate", name
    for block in ("XN's 0", "XN's 1", "XN's 2", "the last"):
        assert results[f"allocate {block}"] == "NotFree", block
    for name in ("allocate beyond", "run beyond the numbers", "nothing at all"):
        assert results[name] == "BadCall", name


def test_metadata_of_another_cannot_be_touched(field: Battlefield) -> None:
    """Neither with one's own capability, nor with numbers that are no capability of the caller's."""
    results = field.attack(
        """
def main(env, argv):
    toy = Own("touch", env)
    own = toy.add_data(toy.root, 0, b"own")
    root, data = da(VICTIM["root"]), da(VICTIM["data"])
    change = Op(OpKind.MODIFY, root, 0, writes=[(0, bytes(SECTOR))])
    generation = env.registry.lookup(data >> 12).generation
    for cap in (toy.cap, 0, toy.cap + 1, 12345, 0xFFFFFFFF):
        for name, call in {
            "transact": lambda: env.call("transact", cap=cap, data=pack_transaction([change])),
            "readb": lambda: env.call("readb", data, 4, cap=cap, out_bytes=4),
            "pin": lambda: env.call("pin", data, generation, cap=cap),
            "share": lambda: env.call("lock", root, 1, cap=cap),
            "lock": lambda: env.call("lock", root, 2, cap=cap),
            "udf_enum": lambda: env.call("udf_enum", root, 0, 8, cap=cap, out_bytes=999),
            "get_refcnt": lambda: env.call("get_refcnt", element(VICTIM["root"], 0, 0), cap=cap),
            "bind": lambda: env.call("insert_and_read", root, cap=cap, data=pack_extents([(VICTIM["data"], 1, 0)])),
            "mount": lambda: env.call("mount", DEV, cap=cap, data=b"victim", out_bytes=200),
            "uninstall": lambda: env.call("uninstall_mount", DEV, cap=cap, data=b"victim"),
            "uninstall type": lambda: env.call("uninstall_mount", DEV, cap=cap, data=b"victim-node"),
        }.items():
            attempt(f"{name} with {cap}", call)
    attempt("uninstall reserved", env.call, "uninstall_mount", DEV, cap=toy.cap, data=b"victim-reserved")
    attempt("mark dirty", env.call, "mark_dirty", DEV, data=pack_extents([(VICTIM["data"], 1, 255)]))
    attempt("unlock", env.call, "unlock", root, 2)
    attempt("unpin", env.call, "unpin", env.registry.lookup(data >> 12).page)
    attempt("drop a root", env.call, "delete_attr", DEV, data=pack_extents([(VICTIM["root"], 1, 0)]))
    catalogue = env.call("read_catalogue", DEV, out_bytes=1 << 16).data
    from xok_host.abi.calls import CATALOGUE_ENTRY, CatalogueEntry
    names = {}
    for at in range(0, len(catalogue), CATALOGUE_ENTRY.size):
        entry = CatalogueEntry.unpack(catalogue[at : at + CATALOGUE_ENTRY.size])
        names[entry.name] = entry.capability != 0
    attempt("capability numbers", lambda: [name for name, shown in names.items() if shown and "victim" in name])
    attempt("own capability number", lambda: int(names["touch"]))
    return report()
"""
    )
    calls = ("transact", "readb", "pin", "share", "lock", "udf_enum", "get_refcnt", "bind", "mount", "uninstall")
    attempts = {name: value for name, value in results.items() if " with " in name}
    assert len(attempts) == 5 * (len(calls) + 1)
    assert set(attempts.values()) == {"BadCapability"}, attempts
    assert results["uninstall reserved"] == "BadCapability"
    assert results["mark dirty"] == "BadCapability"
    assert results["unlock"] == results["unpin"] == "NotFound"
    assert results["drop a root"] == "InUse"
    assert results["capability numbers"] == [] and results["own capability number"] == 1


def test_a_freed_block_cannot_be_pointed_at(field: Battlefield) -> None:
    results = field.attack(
        """
def main(env, argv):
    toy, other = Own("freed", env), Own("freed-other", env)
    root, block = toy.root, toy.add_data(toy.root, 0, b"old words")
    toy.durable(block)
    toy.durable(root)
    own = env.registry.lookup(da(block) >> 12).page
    env.call("lock", da(block), 1, cap=toy.cap)
    env.call("unlock", da(block), 1)
    toy.remove(root, 0, block)
    def point(kind, **fields):
        new = Sector([(block, 1, TYPE_XN_DB, 0)])
        toy.transact(toy.modify(root, 0, new, kind, type=TYPE_XN_DB, **fields))
    attempt("point while it waits", point, OpKind.MODIFY)
    attempt("allocate while it waits", point, OpKind.ALLOC, db=block, count=1)
    attempt("free twice", point, OpKind.FREE, db=block, count=1)
    attempt("free twice plainly", lambda: toy.transact(toy.modify(
        root, 0, toy.sector(root, 0), OpKind.FREE, db=block, count=1, type=TYPE_XN_DB)))
    page = toy.page(b"new words")
    attempt("publish into it", lambda: toy.transact(Op(OpKind.PUBLISH, da(root), 0, db=block, count=1, page=page)))
    attempt("read it", env.call, "readb", da(block), 9, cap=toy.cap, out_bytes=9)
    attempt("bind it", env.call, "insert_and_read", da(root), cap=toy.cap, data=pack_extents([(block, 1, 0)]))
    attempt("lock it", env.call, "lock", da(block), 2, cap=toy.cap)
    attempt("mark it dirty", env.call, "mark_dirty", DEV, data=pack_extents([(block, 1, 255)]))
    toy.durable(root)
    toy.flush()
    attempt("it is free now", lambda: int(env.freemaps[DEV].is_free(block)))
    attempt("point when it is free", point, OpKind.MODIFY)
    other.transact(other.modify(other.root, 0, Sector([(block, 1, TYPE_XN_DB, 0)]), OpKind.ALLOC,
        db=block, count=1, type=TYPE_XN_DB, page=other.page(b"another's words"), flags=OpFlag.PAGES))
    attempt("point when it is another's", point, OpKind.MODIFY)
    attempt("allocate another's", point, OpKind.ALLOC, db=block, count=1)
    attempt("read another's", env.call, "readb", da(block), 9, cap=toy.cap, out_bytes=9)
    return report()
"""
    )
    assert results["point while it waits"] == "BogusUpdate"
    assert results["allocate while it waits"] == "NotFree"
    assert results["free twice"] == results["free twice plainly"] == "BogusUpdate"
    assert results["publish into it"] == "BogusUpdate"
    assert results["read it"] == results["lock it"] == results["mark it dirty"] == "NotInCore"
    assert results["bind it"] == "NotOwned"
    assert results["it is free now"] == 1
    assert results["point when it is free"] == results["point when it is another's"] == "BogusUpdate"
    assert results["allocate another's"] == "NotFree"
    assert results["read another's"] == "BadCapability"


def test_old_bytes_of_a_block_are_not_shown_to_its_next_owner(field: Battlefield) -> None:
    """What lies on the disk under a new block is its former owner's: it is not read in."""
    results = field.attack(
        """
def main(env, argv):
    first, second = Own("before", env), Own("after", env)
    block = first.add_data(first.root, 0, b"words of before" * 99)
    second.durable(second.root)
    first.durable(block)
    first.durable(first.root)
    first.remove(first.root, 0, block)
    first.durable(first.root)
    new = Sector([(block, 1, TYPE_XN_DB, 0)])
    second.transact(second.modify(second.root, 0, new, OpKind.ALLOC, db=block, count=1, type=TYPE_XN_DB))
    extent = pack_extents([(block, 1, 0)])
    attempt("uninitialised", env.call, "readb", da(block), 4096, cap=second.cap, out_bytes=4096)
    attempt("fetch", env.call, "insert_and_read", da(second.root), cap=second.cap, data=extent)
    attempt("prefetch", env.call, "read_and_insert", DEV, data=extent)
    attempt("evict", env.call, "delete_attr", DEV, data=extent)
    attempt("fetch again", env.call, "insert_and_read", da(second.root), cap=second.cap, data=extent)
    def read():
        data = env.call("readb", da(block), 4096, cap=second.cap, out_bytes=4096).data
        return "words" if b"words of before" in data else "nothing"
    attempt("read", read)
    attempt("write the pointer", second.durable, second.root)
    second.transact(Op(OpKind.PUBLISH, da(second.root), 0, db=block, count=1, page=second.page(b"after")))
    second.durable(block)  # so that xok down finds nothing that cannot be written
    attempt("initialise it and write the pointer", second.durable, second.root)
    return report()
"""
    )
    assert results["uninitialised"] == "NotInCore"
    assert results["read"] in ("nothing", "NotInCore", "BadCapability")
    assert results["write the pointer"] == "Tainted"
    assert results["initialise it and write the pointer"] == "done"


def test_nobody_reads_pages_of_another_volume(field: Battlefield) -> None:
    """It maps every chunk that it is given, prefetches the victim's blocks, and looks for the secret."""
    results = field.attack(
        """
def main(env, argv):
    toy = Own("reader", env)
    toy.add_data(toy.root, 0, b"own")
    victims = sorted({env.registry.lookup(da(VICTIM[name]) >> 12).page // CHUNK_PAGES for name in ("root", "data")})
    everything = pack_extents([(db, 1, 0) for db in range(500, 600)])
    attempt("prefetch", lambda: int(env.call("read_and_insert", DEV, data=everything).r0 > 0))
    given, found, refusals = 0, 0, {}
    for chunk in range(99):
        try:
            descriptor, writable = take_chunk(env, chunk)
        except XokError as refused:
            refusals[chunk] = type(refused).__name__
            continue
        given += 1
        area = mmap.mmap(descriptor, CHUNK_BYTES, prot=mmap.PROT_READ)
        found += area.find(argv[0].encode()) >= 0
    attempt("given", lambda: given)
    attempt("found", lambda: found)
    attempt("victims", lambda: [refusals.get(chunk, "given") for chunk in victims])
    attempt("all refusals", lambda: sorted(set(refusals.values())))
    quarantined = [e for e in (env.registry.lookup(da(db) >> 12) for db in range(500, 600)) if e and e.flags & 8]
    attempt("quarantined", lambda: len(quarantined))
    attempt("quarantine chunks", lambda: sorted({refusals.get(e.page // CHUNK_PAGES, "given") for e in quarantined}))
    attempt("quarantine bytes", env.call, "readb", quarantined[0].key << 12, 8, cap=toy.cap, out_bytes=8)
    attempt("chunk 2^32 + 1", env.call, "chunk_map", (1 << 32) + 1)
    return report()
""",
        SECRET,
    )
    assert results["given"] >= 2, "its own metadata and its own data"
    assert results["found"] == 0
    assert len(results["victims"]) == 2 and set(results["victims"]) == {"BadCapability"}
    assert set(results["all refusals"]) == {"BadCapability", "NotFound"}
    assert results["quarantined"] > 0 and results["quarantine chunks"] == ["BadCapability"]
    assert results["quarantine bytes"] == "BadCapability"
    assert results["chunk 2^32 + 1"] == "NotFound"


@pytest.mark.parametrize("table", ["metadata", "registry", "counters", "freemap1"])
def test_writing_to_mapped_tables_kills_the_writer(field: Battlefield, table: str) -> None:
    """The hardware refuses what xokd never sees: SIGSEGV, for the writer alone."""
    done = field.run(
        """
def main(env, argv):
    toy = Own("segv-" + argv[0], env)
    if argv[0] == "metadata":
        descriptor, _ = take_chunk(env, env.registry.lookup(da(toy.root) >> 12).page // CHUNK_PAGES)
        size = CHUNK_BYTES
    else:
        descriptor = memory_files()["xok-" + argv[0]][0]
        size = 4096
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(size), 1, 1, descriptor, 0)
    ctypes.string_at(address, 16)
    print("mapped and read", flush=True)
    ctypes.memset(address, 0xFF, 16)
    print("written", flush=True)
""",
        table,
    )
    assert done.status == 128 + signal.SIGSEGV, done
    assert "mapped and read" in done.out and "written" not in done.out


def test_read_only_memory_cannot_be_had_writable_or_resized(field: Battlefield) -> None:
    results = field.attack(
        """
import fcntl
def main(env, argv):
    toy = Own("memory", env)
    meta, writable = take_chunk(env, env.registry.lookup(da(toy.root) >> 12).page // CHUNK_PAGES)
    attempt("metadata writable", lambda: int(writable))
    page = toy.page(b"mine")
    data, writable = take_chunk(env, page // CHUNK_PAGES)
    attempt("data writable", lambda: int(writable))
    files = memory_files()
    ring = next(fds[0] for name, fds in files.items() if name.startswith("xok-ring"))
    memory = {"metadata": meta, "data": data, "ring": ring, "registry": files["xok-registry"][0],
              "freemap": files["xok-freemap1"][0]}
    PROT_WRITE, MAP_SHARED = 2, 1
    libc.mmap.restype = ctypes.c_void_p
    def protect(fd):
        address = libc.mmap(None, ctypes.c_size_t(4096), 1, MAP_SHARED, fd, 0)
        libcall("mprotect", ctypes.c_void_p(address), ctypes.c_size_t(4096), 3)
    def remove(fd):
        address = libc.mmap(None, ctypes.c_size_t(4096), 1, MAP_SHARED, fd, 0)
        libcall("madvise", ctypes.c_void_p(address), ctypes.c_size_t(4096), 9)
    for name, fd in memory.items():
        attempt(f"map {name} writable", lambda: mmap.mmap(fd, 4096, prot=3).close())
        attempt(f"protect {name}", protect, fd)
        attempt(f"write {name}", lambda: os.pwrite(fd, b"x", 4000) * 0)
        attempt(f"reopen {name}", lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
        attempt(f"shrink {name}", os.ftruncate, fd, 4096)
        attempt(f"empty {name}", os.ftruncate, fd, 0)
        attempt(f"grow {name}", os.ftruncate, fd, 1 << 30)
        attempt(f"punch {name}", libcall, "fallocate", fd, 3, ctypes.c_long(0), ctypes.c_long(4096))
        attempt(f"allocate {name}", libcall, "fallocate", fd, 0, ctypes.c_long(0), ctypes.c_long(1 << 30))
        attempt(f"advise away {name}", remove, fd)
        attempt(f"seal {name}", fcntl.fcntl, fd, 1033, 8)
        attempt(f"mode {name}", os.fchmod, fd, 0o666)
    attempt("sizes", lambda: [os.fstat(fd).st_size for fd in memory.values()])
    attempt("own page", lambda: bytes(env.page(page)[:4]).decode())
    return report()
"""
    )
    assert results["metadata writable"] == 0 and results["data writable"] == 1
    for name in ("metadata", "registry", "freemap"):
        assert results[f"map {name} writable"] == results[f"protect {name}"] == "EACCES", name
        assert results[f"write {name}"] == "EBADF", name
    for name in ("metadata", "data", "ring", "registry", "freemap"):
        assert results[f"reopen {name}"] == "EACCES", name
        for what in ("shrink", "empty", "grow"):
            assert results[f"{what} {name}"] in ("EPERM", "EINVAL"), (what, name)  # EINVAL: read-only descriptor
        for what in ("punch", "allocate", "advise away", "seal", "mode"):
            assert results[f"{what} {name}"] == "EPERM", (what, name)
    assert min(results["sizes"]) >= 2048 and results["own page"] == "mine"


def test_pages_are_given_once_and_to_their_holder(field: Battlefield) -> None:
    results = field.attack(
        """
def main(env, argv):
    toy = Own("pages", env)
    other = Own("pages-other", env)
    root, block = toy.root, toy.add_data(toy.root, 0, b"published")
    published = env.registry.lookup(da(block) >> 12).page
    victims = env.registry.lookup(da(VICTIM["data"]) >> 12).page
    def publish(*pages):
        toy.transact(*(Op(OpKind.PUBLISH, da(root), 0, db=block, count=1, page=page) for page in pages))
    for name, page in {"victim's": victims, "metadata": env.registry.lookup(da(root) >> 12).page,
                       "published": published, "no": 1 << 40, "negative": (1 << 64) - 1}.items():
        attempt(f"publish {name} page", publish, page)
        attempt(f"free {name} page", env.call, "page_free", data=struct.pack("<Q", page))
    mine = toy.page(b"mine")
    attempt("publish other arena's page", publish, other.page(b"x"))
    attempt("free it twice at once", env.call, "page_free", data=struct.pack("<QQ", mine, mine))
    attempt("free it", env.call, "page_free", data=struct.pack("<Q", mine))
    attempt("free it again", env.call, "page_free", data=struct.pack("<Q", mine))
    attempt("publish a freed page", publish, mine)
    again, new = toy.page(b"again"), toy.sector(root, 1)
    two = toy.free_block(2)
    new.pointers = [(two, 1, TYPE_XN_DB, 0), (two + 1, 1, TYPE_XN_DB, 0)]
    attempt("one page for two blocks", lambda: toy.transact(*(toy.modify(root, 1, new, OpKind.ALLOC, db=db, count=1,
        type=TYPE_XN_DB, page=again, flags=OpFlag.PAGES) for db in (two, two + 1))))
    attempt("half a number", env.call, "page_free", data=b"xyz")
    for count in (0, CHUNK_PAGES + 1, 1 << 63):
        attempt(f"allocate {count}", env.call, "page_alloc", count, cap=toy.cap)
    attempt("allocate for another", env.call, "page_alloc", 1, cap=toy.cap + 99)
    return report()
"""
    )
    assert {value for name, value in results.items() if name.endswith(" page")} == {"BadCapability"}, results
    assert results["free it twice at once"] == results["free it again"] == "BadCapability"
    assert results["free it"] == "done"
    assert results["one page for two blocks"] == "BadCapability"
    assert results["half a number"] == "BadCall"
    assert [results[f"allocate {count}"] for count in (0, CHUNK_PAGES + 1, 1 << 63)] == ["BadCall"] * 3
    assert results["allocate for another"] == "BadCapability"


def test_pins_have_a_bound_that_their_counters_hold(field: Battlefield) -> None:
    """A page pinned so often that a counter overflows would be free while the registry uses it."""
    results = field.attack(
        """
def main(env, argv):
    toy = Own("pins", env)
    block = toy.add_data(toy.root, 0, b"pinned")
    entry = env.registry.lookup(da(block) >> 12)
    refused, given = "", 0
    while not refused:
        with env.batch() as batch:
            for _ in range(250):
                batch.add("pin", da(block), entry.generation, cap=toy.cap)
        for done in batch.results:
            if done.code:
                refused = refused or type(errors.by_code(done.code)).__name__
            else:
                given += 1
    attempt("pins", lambda: given)
    attempt("refused", lambda: refused)
    return report()
""".replace("def main", "from xok_host.abi import errors\ndef main", 1)
    )
    assert results["refused"] == "LimitReached"
    reused = field.attack(
        """
def main(env, argv):
    cap = env.caps[0].index
    root = env.call("mount", DEV, cap=cap, data=b"pins").r0
    block = Sector.unpack(env.call("readb", root, SECTOR, cap=cap, out_bytes=SECTOR).data).pointers[0][0]
    pages = take_pages(env, cap, CHUNK_PAGES)
    attempt("given away", lambda: int(env.registry.lookup(da(block) >> 12).page in pages))
    return report()
""",
        options=("--tree", "pins"),
    )
    assert reused["given away"] == 0
