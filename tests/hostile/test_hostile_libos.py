"""Hostile libOSes under a whole xok: each attack is refused by name, and a neighbour's work goes on."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.xokkit import Xok, instance, public_directory
from xok_host.abi.types import ENVIRONMENT_UID_BASE

TAP = f"xh{os.getpid()}"
NETWORK = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"

PRELUDE = """
import ctypes, errno, fcntl, json, mmap, os, random, select, socket, struct, time
from xok_host.abi import calls, calltable, channel, errors
from xok_host.abi.client import CHUNK_MESSAGE
from xok_host.abi.types import BLOCK, TYPE_XN_DB, disk_address

RESULTS = {}

def attempt(name, function, *arguments):
    try:
        value = function(*arguments)
        RESULTS[name] = "done" if value is None else value
    except errors.XokError as error:
        RESULTS[name] = type(error).__name__
    except OSError as error:
        RESULTS[name] = errno.errorcode[error.errno]
    except Exception as error:
        RESULTS[name] = repr(error)

def descriptor(env, chunk):
    '''A chunk's descriptor itself, which the client stub would only map.'''
    writable = env.call("chunk_map", chunk).r0
    while chunk not in env._chunk_fds:
        env._receive(0)
    return env._chunk_fds.pop(chunk)[0], writable

def new_root(env, name):
    made = env.call("install_mount", 1, 0, 1, TYPE_XN_DB, data=name.encode())
    return made.r0, made.r1, env.registry.lookup(1 << 44 | made.r0)
"""


@pytest.fixture(scope="module")
def xok() -> Iterator[Xok]:
    with public_directory() as directory, instance(directory) as xok:
        xok.up("--tap", TAP, "--host-address", f"{NETWORK}.1/24")
        yield xok


def attack(xok: Xok, body: str, *arguments: str, address: str = "", trees: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run `body` as a libOS; what it tried and what each attempt gave."""
    program = xok.program(PRELUDE + body + "\n", "attack.py")
    options = [word for tree in trees for word in ("--tree", tree)]
    if address:
        options += ["--address", address]
    done = xok.try_("run", *options, program, *arguments)
    assert done.status == 0, done
    found: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return found


def alive(xok: Xok) -> None:
    """xokd answers, and made no mistake that it noticed."""
    assert xok.status()["counters"]["faults"] == 0


def test_memory_that_is_shared_cannot_be_resized_punched_or_written(xok: Xok) -> None:
    results = attack(
        xok,
        """
def main(env, argv):
    db, cap, entry = new_root(env, "arena")
    page = struct.unpack("<Q", env.call("page_alloc", 1, cap=cap, out_bytes=8).data)[0]
    own, writable = descriptor(env, page // 1024)
    RESULTS["own is writable"] = writable
    attempt("own: shrink", os.ftruncate, own, 0)
    attempt("own: grow", os.ftruncate, own, 1 << 30)
    attempt("own: punch", os.posix_fallocate, own, 0, BLOCK)
    attempt("own: seal", fcntl.fcntl, own, 1033, 1)
    area = mmap.mmap(own, 1024 * BLOCK)
    attempt("own: punch by advice", area.madvise, 9)
    attempt("own: write", lambda: area.__setitem__(slice(0, 1), b"x"))
    meta, writable = descriptor(env, entry.page // 1024)
    RESULTS["metadata is writable"] = writable
    attempt("metadata: map", lambda: mmap.mmap(meta, 1024 * BLOCK).close())
    attempt("metadata: write", os.pwrite, meta, b"x", 0)
    attempt("metadata: reopen", os.open, f"/proc/self/fd/{meta}", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    readable = mmap.mmap(meta, 1024 * BLOCK, access=mmap.ACCESS_READ)
    libc.mmap.restype = ctypes.c_void_p
    at = libc.mmap(None, 4096, 1, 1, meta, ctypes.c_long(0))
    RESULTS["metadata: mprotect"] = errno.errorcode[ctypes.get_errno()] if libc.mprotect(
        ctypes.c_void_p(at), 4096, 3) else "done"
    for fd in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        for table in ("registry", "counters", "freemap1"):
            if f"xok-{table} " in link + " ":
                attempt(table, lambda fd=fd: mmap.mmap(int(fd), 4096).close())
        if "xok-ring" in link:
            attempt("ring: shrink", os.ftruncate, int(fd), 0)
    print(json.dumps(RESULTS))
""",
    )
    assert results == {
        "own is writable": 1,
        "own: shrink": "EPERM",
        "own: grow": "EPERM",
        "own: punch": "EPERM",
        "own: seal": "EPERM",
        "own: punch by advice": "EPERM",
        "own: write": "done",
        "metadata is writable": 0,
        "metadata: map": "EACCES",
        "metadata: write": "EBADF",
        "metadata: reopen": "EACCES",
        "metadata: mprotect": "EACCES",
        "registry": "EACCES",
        "counters": "EACCES",
        "freemap1": "EACCES",
        "ring: shrink": "EPERM",
    }
    alive(xok)


def test_what_belongs_to_another_tree_is_out_of_reach(xok: Xok) -> None:
    victim = """
def main(env, argv):
    db, cap, entry = new_root(env, "victim")
    print(json.dumps([db, entry.page, entry.generation]))
"""
    db, page, generation = attack(xok, victim)
    results = attack(
        xok,
        """
def main(env, argv):
    db, page, generation = map(int, argv)
    mine, cap, _ = new_root(env, "attacker")
    da = disk_address(1, db)
    write = calls.pack_transaction([calls.Op(calls.OpKind.MODIFY, da, 0, writes=[(0, b"owned")])])
    grab = calls.pack_transaction([calls.Op(calls.OpKind.ALLOC, disk_address(1, mine), 0, db=db, count=1, type=1)])
    for index in (0, 1, cap, 99, 0xFFFFFFFF):
        who = {cap: "own capability"}.get(index, f"capability {index}")
        attempt(f"mount, {who}", lambda: env.call("mount", 1, cap=index, data=b"victim", out_bytes=200).r0)
        attempt(f"read, {who}", lambda: env.call("readb", da, 16, cap=index, out_bytes=16).r0)
        attempt(f"pin, {who}", lambda: env.call("pin", da, generation, cap=index).r0)
        attempt(f"lock, {who}", lambda: env.call("lock", da, 2, cap=index).r0)
        attempt(f"modify, {who}", lambda: env.call("transact", cap=index, data=write).r0)
        attempt(f"uninstall, {who}", lambda: env.call("uninstall_mount", 1, cap=index, data=b"victim").r0)
    attempt("map its chunk", lambda: env.call("chunk_map", page // 1024).r0)
    attempt("claim its block", lambda: env.call("transact", cap=cap, data=grab).r0)
    attempt("take its block for a root", lambda: env.call("install_mount", 1, db, 1, TYPE_XN_DB, data=b"mine!").r0)
    attempt("take its name", lambda: env.call("install_mount", 1, 0, 1, TYPE_XN_DB, data=b"victim").r0)
    attempt("bind it", lambda: env.call("insert_attr", disk_address(1, mine), cap=cap,
                                        data=calls.pack_extents([(db, 1, 0)])).r0)
    attempt("free its pages", lambda: env.call("page_free", data=struct.pack("<Q", page)).r0)
    attempt("unpin its page", lambda: env.call("unpin", page).r0)
    attempt("make a superblock a root", lambda: env.call("install_mount", 1, 0, 0, TYPE_XN_DB, data=b"zero").r0)
    attempt("a block beyond the disk", lambda: env.call("install_mount", 1, 1 << 40, 1, TYPE_XN_DB, data=b"far").r0)
    print(json.dumps(RESULTS))
""",
        str(db),
        str(page),
        str(generation),
    )
    allowed = {"BadCapability", "NotOwned", "WrongType", "BogusPartition"}
    for name, result in results.items():
        if ", " in name:
            assert result in allowed, (name, result)
    # The victim's chunk is the attacker's too only if an arena were shared, and arenas are by tree.
    assert results["map its chunk"] == "BadCapability"
    assert results["claim its block"] not in ("done", 0)
    assert results["take its block for a root"] == "NotFree"
    assert results["take its name"] == "Exists"
    assert results["bind it"] in allowed
    assert results["free its pages"] == "BadCapability"
    assert results["unpin its page"] == "NotFound"
    assert results["make a superblock a root"] == "BadCall"
    assert results["a block beyond the disk"] == "NotFree"
    alive(xok)


def test_a_ring_full_of_garbage_harms_nobody(xok: Xok) -> None:
    results = attack(
        xok,
        """
def main(env, argv):
    chance = random.Random(1)
    memory = env.ring.memory
    for round in range(300):
        memory[64:channel.DATA_OFFSET] = chance.randbytes(channel.DATA_OFFSET - 64)
        # Numbers that exist, operands that do not.
        for index in range(channel.SUBMISSIONS):
            at = channel.SQ_OFFSET + index * channel.ENTRY.size
            struct.pack_into("<H", memory, at, chance.choice(list(calltable.BY_NUMBER)))
        try:
            env._socket.send(bytes(chance.randrange(1, 60)), socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        try:
            while True:
                env._socket.recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
    print(json.dumps({"rounds": round + 1}))
""",
    )
    assert results == {"rounds": 300}
    alive(xok)


def test_a_flood_leaves_its_neighbour_its_share(xok: Xok) -> None:
    flood = xok.program(
        PRELUDE
        + """
def main(env, argv):
    print("flooding", flush=True)
    while not env.stop_requested:
        for _ in range(100):
            env.submit("null")
        try:
            env.ring_doorbell()
        except BlockingIOError:
            pass
        env.drain()
        env.dispatch()
        env._done.clear()
""",
        "flood.py",
    )
    flooding = xok.start("run", flood)
    try:
        assert flooding.stdout is not None
        assert flooding.stdout.readline() == "flooding\n"
        results = attack(
            xok,
            """
def main(env, argv):
    began = time.monotonic()
    slowest = 0.0
    for _ in range(200):
        before = time.monotonic()
        env.call("null")
        slowest = max(slowest, time.monotonic() - before)
    print(json.dumps({"seconds": time.monotonic() - began, "slowest": slowest}))
""",
        )
        assert results["seconds"] < 10, results
    finally:
        flooding.terminate()
        flooding.communicate(timeout=30)
    alive(xok)


def test_one_that_never_reads_is_not_waited_for(xok: Xok) -> None:
    """Its socket and its completion ring fill up; it asks on, and xokd serves others."""
    results = attack(
        xok,
        """
def main(env, argv):
    memory = env.ring.memory
    asked = 0
    for _ in range(20):
        for _ in range(200):
            at = channel.SQ_OFFSET + asked % channel.SUBMISSIONS * channel.ENTRY.size
            channel.ENTRY.pack_into(memory, at, calls.CallNumber.CHUNK_MAP, 0, 0, 1, 0, 0, 0, 256, 0, 0, 0, 0)
            asked += 1
        struct.pack_into("<I", memory, channel.SQ_TAIL, asked)
        try:
            env._socket.send(b"1", socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        time.sleep(0.01)
    taken = struct.unpack_from("<I", memory, channel.SQ_HEAD)[0]
    print(json.dumps({"bounded": taken <= channel.COMPLETIONS, "some": taken > 100}))
""",
    )
    assert results == {"bounded": True, "some": True}
    assert attack(xok, "def main(env, argv): env.call('null'); print(json.dumps({}))") == {}
    alive(xok)


def test_packets_and_filters_of_another_address(xok: Xok) -> None:
    holder = xok.program(
        PRELUDE
        + """
from xok_host.abi.dpf import wildcard
def main(env, argv):
    held = next(cap for cap in env.caps if cap.kind == "address")
    ids = [env.call("filter_insert", cap=held.index, data=region.pack()).r0 for region in wildcard(held.name)]
    print(ids, flush=True)
    while not env.stop_requested:
        env.wait_event()
""",
        "holder.py",
    )
    holding = xok.start("run", "--address", f"{NETWORK}.2/24", holder)
    try:
        assert holding.stdout is not None
        first = json.loads(holding.stdout.readline())[0]
        results = attack(
            xok,
            """
from xok_host.abi.dpf import listener, wildcard, where
def packet(source_mac, source, target, gso=(0, 0, 0, 0, 0, 0)):
    payload = b"x" * 64
    ip = bytearray(struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0,
                               socket.inet_aton(source), socket.inet_aton(target)))
    total = sum(struct.unpack(">10H", ip))
    struct.pack_into(">H", ip, 10, ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
    udp = struct.pack(">HHHH", 9, 9, 8 + len(payload), 0)
    return struct.pack("<BBHHHH", *gso) + b"\\xff" * 6 + source_mac + b"\\x08\\0" + bytes(ip) + udp + payload

def main(env, argv):
    other, host, filter_id = argv
    held = next(cap for cap in env.caps if cap.kind == "address")
    for name, wire in {"its wildcard": wildcard(other)[0], "its port": listener(other, 80),
                       "everything": where({"eth.type": 0x800})}.items():
        for index in (0, held.index, 7):
            attempt(f"filter: {name}, {index}", lambda: env.call("filter_insert", cap=index, data=wire.pack()).r0)
    attempt("filter: garbage", lambda: env.call("filter_insert", cap=held.index, data=os.urandom(64)).r0)
    attempt("filter: remove its", lambda: env.call("filter_remove", int(filter_id)).r0)
    mac, mine = env.tap.mac, env.tap.addresses[0]
    tagged = b"\\0" * 10 + b"\\xff" * 6 + mac + b"\\x81\\0" + b"\\0" * 60
    one_byte_segments, sum_in_header = (1, 1, 42, 1, 34, 8), (1, 0, 0, 0, 34, 65000)
    for forged in (
        packet(mac, other, host),
        packet(b"\\x02" * 6, mine, host),
        packet(mac, mine, host, one_byte_segments),
        packet(mac, mine, host, sum_in_header),
        tagged,
    ):
        attempt("send", os.write, env.tap.fd, forged)
    os.write(env.tap.fd, packet(mac, mine, host))
    time.sleep(0.1)
    print(json.dumps(RESULTS))
""",
            f"{NETWORK}.2",
            f"{NETWORK}.1",
            str(first),
            address=f"{NETWORK}.3/24",
        )
        for name, result in results.items():
            if name.startswith("filter: ") and "garbage" not in name and "remove" not in name:
                assert result == "BadCapability", (name, result)
        assert results["filter: garbage"] == "BadCall"
        assert results["filter: remove its"] == "NotFound"
        done = xok.try_("run", "--address", f"{NETWORK}.2/24", holder)
        assert done.status == 1 and "is held by environment" in done.err
        for bad in (f"{NETWORK}.1/24", "192.0.2.5/24", f"{NETWORK}.0/24", f"{NETWORK}.9/16"):
            done = xok.try_("run", "--address", bad, holder)
            assert done.status == 2 and bad.split("/")[0] in done.err, done
    finally:
        holding.terminate()
        holding.communicate(timeout=30)
    alive(xok)


def test_forged_packets_do_not_arrive(xok: Xok) -> None:
    """Six packets are sent; a socket of the host gets the honest one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((f"{NETWORK}.1", 9))
        receiver.settimeout(0.3)
        test_packets_and_filters_of_another_address(xok)
        sources = []
        while True:
            try:
                sources.append(receiver.recvfrom(65536)[1][0])
            except TimeoutError:
                break
        assert sources == [f"{NETWORK}.3"]


def test_uids_of_the_living_differ(xok: Xok) -> None:
    sleeper = xok.program(PRELUDE + "def main(env, argv):\n print(1, flush=True)\n time.sleep(100)\n", "sleeper.py")
    running = [xok.start("run", sleeper) for _ in range(4)]
    try:
        for command in running:
            assert command.stdout is not None
            command.stdout.readline()
        environments = xok.status()["environments"]
        uids = [environment["uid"] for environment in environments]
        assert len(set(uids)) == 4 and min(uids) > ENVIRONMENT_UID_BASE
        for environment in environments:
            assert os.stat(f"/proc/{environment['pid']}").st_uid in (0, environment["uid"])
    finally:
        for command in running:
            command.kill()
            command.communicate()
