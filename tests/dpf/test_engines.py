"""The eBPF engine against the portable one: the same trie, the same frames, the same owner."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IPOption_NOP
from scapy.layers.inet6 import ICMPv6ND_NS

from tests.dpf.frames import ARP, HOST, HOST6, ICMP, IP, OTHER, OWN, OWN6, TCP, UDP, Injector, IPv6, read_all, to_env
from xok_host.abi.dpf import Filter, Match, Shift, connection, listener, where, wildcard
from xok_host.abi.errors import Exists, LimitReached
from xok_host.host import bpf
from xok_host.host.net import NetEdge
from xok_host.kernel.dpf import compile as programs
from xok_host.kernel.dpf import maps
from xok_host.kernel.dpf import trie as trie_module
from xok_host.kernel.dpf.classify import Classifier, Plan
from xok_host.kernel.dpf.filter import normalise
from xok_host.kernel.dpf.table import FilterTable
from xok_host.kernel.dpf.trie import Trie

PORTS = 64
_MARK = 8


class Loaded:
    """Maps and a classifier without a device, run through BPF_PROG_TEST_RUN."""

    def __init__(self) -> None:
        self.maps = {spec.name: bpf.Map(spec) for spec in maps.MAPS}
        for port in range(PORTS):
            self.maps["ports"][struct.pack("<I", port)] = maps.PORT.pack(port + 1, 0, 0, 0, 0)
        self.program: bpf.Program | None = None

    def load(self, trie: Trie) -> None:
        for key, value in trie.drain():
            if value is None:
                del self.maps["trie"][maps.trie_key(key)]
            else:
                self.maps["trie"][maps.trie_key(key)] = maps.trie_value(value)
        if self.program is not None:
            self.program.close()
        self.program = bpf.Program("classifier", bpf.SCHED_CLS, programs.classifier(Plan(trie)), self.maps)

    def port(self, frame: bytes) -> int:
        assert self.program is not None
        result, context = self.program.test_run(frame, bytes(192))
        mark = int(struct.unpack_from("<I", context, _MARK)[0])
        assert (result == programs.ACT_OK) == (mark > 0)
        return mark - 1

    def close(self) -> None:
        if self.program is not None:
            self.program.close()
        bpf.close_all(list(self.maps.values()))


@pytest.fixture
def loaded() -> Iterator[Loaded]:
    if os.geteuid():
        pytest.skip("needs root")
    made = Loaded()
    yield made
    made.close()


_MATCHES = st.builds(
    lambda offset, width, mask, value: Match(offset, width, mask & ((1 << 8 * width) - 1), value & mask & 0xFF),
    st.integers(12, 20),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0xFFFF_FFFF, 0x8000_000F, 0x0F]),
    st.integers(0, 2),
)
_SHIFTS = st.builds(Shift, st.integers(12, 16), st.sampled_from([1, 2, 4]), st.sampled_from([1, 3]), st.integers(-1, 2))
_FILTERS = st.builds(
    lambda atoms, last: Filter((*atoms, last)), st.lists(st.one_of(_MATCHES, _SHIFTS), max_size=3), _MATCHES
)
_FRAMES = st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=2, max_size=30).map(lambda tail: bytes(12) + bytes(tail))


def test_random_filters_and_frames(loaded: Loaded) -> None:
    @settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(_FILTERS, min_size=1, max_size=12), st.lists(_FRAMES, min_size=1, max_size=20))
    def compare(filters: list[Filter], frames: list[bytes]) -> None:
        trie = Trie()
        classifier = Classifier(trie)
        for number, source in enumerate(filters):
            try:
                trie.insert(number, normalise(source), number)
            except (Exists, ValueError):
                continue
        loaded.load(trie)
        for frame in frames:
            assert loaded.port(frame) == classifier.port(frame)
        for number in list(trie._filters):
            trie.remove(number)
        loaded.load(trie)

    compare()


def realistic() -> tuple[FilterTable, list[bytes]]:
    """Two addresses with everything on them, and packets of all kinds to them and past them."""
    table = FilterTable()
    port = 0
    for address in (OWN, OTHER, OWN6):
        grant = table.own_address(address)
        four = ":" not in address
        peer = HOST if four else HOST6
        sources = [*wildcard(address), listener(address, 80), listener(address, 53, "udp")]
        sources += [connection(address, 5000 + n, peer, 80) for n in range(5)]
        if four:
            sources.append(where({"ip.dst": address, "icmp.type": 8}))
        for source in sources:
            table.insert(1, grant, source.pack(), port)
            port += 1
    assert port < PORTS
    frames = []
    for address in (OWN, OTHER, "10.9.0.9"):
        for options in ([], [IPOption_NOP()] * 4, [IPOption_NOP()] * 40):
            ip = IP(src=HOST, dst=address, options=options)
            frames += [to_env(ip / transport) for transport in (TCP(dport=80), TCP(dport=81), UDP(dport=53), ICMP())]
            frames += [to_env(ip / TCP(sport=80, dport=5000 + n) / (b"x" * 20)) for n in range(6)]
        frames += [
            to_env(IP(src=HOST, dst=address, flags="MF") / TCP(dport=80)),
            to_env(IP(src=HOST, dst=address, frag=7) / TCP(dport=80)),
            to_env(ARP(pdst=address)),
        ]
    six = IPv6(src=HOST6, dst=OWN6)
    frames += [to_env(six / TCP(dport=80)), to_env(six / UDP(dport=53)), to_env(six / TCP(sport=80, dport=5003))]
    frames.append(to_env(IPv6(src=HOST6, dst="ff02::1:ff00:2") / ICMPv6ND_NS(tgt=OWN6)))
    return table, frames


def test_real_packets_and_their_ruins(loaded: Loaded) -> None:
    """Every frame whole, cut at lengths, and with bytes changed: the engines agree, and never crash."""
    table, frames = realistic()
    loaded.load(table.trie)
    assert len({table.port(frame) for frame in frames}) > 20
    dice = random.Random(7)
    for frame in frames:
        ruins = [frame, *(frame[:length] for length in range(54, len(frame), 3))]
        for _ in range(10):
            broken = bytearray(frame)
            for _ in range(dice.randint(1, 3)):
                broken[dice.randrange(12, len(broken))] = dice.randrange(256)
            ruins.append(bytes(broken))
        for ruin in ruins:
            if len(ruin) < 54:
                continue  # test runs refuse what is shorter than its type's header; a TAP takes it, see below
            assert loaded.port(ruin) == table.port(ruin)


def test_the_largest_program_is_accepted(loaded: Loaded) -> None:
    """The verifier takes what the trie's bounds allow, whether the shapes fan out or go deep; else a filter could be
    inserted that the host's kernel then refuses."""
    dice = random.Random(1)
    for most, reach in ((2, 4), (5, 6), (15, 60)):
        trie = Trie()
        number = 0
        while number < 4000:
            number += 1
            atoms: list[Match | Shift] = []
            for _ in range(dice.randint(most // 2 + 1, most)):
                if dice.random() < 0.3:
                    atoms.append(Shift(dice.randrange(reach), 1, 3, dice.choice([-1, 0, 2])))
                atoms.append(Match(dice.randrange(reach), dice.choice([1, 2, 4]), dice.choice([1, 3, 0x7F]), 0))
            try:
                trie.insert(number, normalise(Filter(tuple(atoms[:15]) + (Match(0, 1, 0x80, 0),))), 0)
            except Exists:
                continue
            except LimitReached as limit:
                if "kinds of filter at most" in str(limit) and dice.random() < 0.02:
                    break
        assert sum(1 for _ in trie.edges()) > trie_module.MAX_EDGES - 16
        loaded.load(trie)
        classifier = Classifier(trie)
        for _ in range(50):
            frame = bytes(12) + bytes(dice.choice([0, 0, 1, 3]) for _ in range(60))
            assert loaded.port(frame) == classifier.port(frame)
        for key in list(trie._filters):
            trie.remove(key)
        loaded.load(trie)


def send_paged(name: str, frame: bytes) -> None:
    """Send a frame of which only the Ethernet header is linear: the rest stays in pages of a packet socket's ring.

    A ring for each frame, because the host keeps one that was dropped at the ring's head and tries it again."""
    size = 4096
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as paged:
        paged.setsockopt(263, 13, struct.pack("IIII", size, 1, size, 1))  # SOL_PACKET, PACKET_TX_RING
        paged.bind((name, 0))
        with mmap.mmap(paged.fileno(), size) as ring:
            ring[32 : 32 + len(frame)] = frame  # behind struct tpacket_hdr
            struct.pack_into("LI", ring, 0, 1, len(frame))  # TP_STATUS_SEND_REQUEST
            with contextlib.suppress(OSError):  # dropped by the classifier
                paged.send(b"")


@pytest.mark.parametrize("how", ["linear", "paged"])
def test_on_a_real_tap(tap_name: str, how: str) -> None:
    """The whole way through traffic control, queue selection and the TAP, for linear and non-linear packets."""
    edge = NetEdge.open(tap_name, [f"{HOST}/24"])
    table, frames = realistic()
    environments = {}
    for env in range(1, 4):
        environments[env] = edge.grant_queue(env)
    assert edge.steering is not None
    # Three queues share the ports of the table.
    for port in range(PORTS):
        edge.steering.set_port(port, 1 + port % 3)
    edge.sync(table)
    sender = Injector(tap_name)
    if how == "linear":
        frames += [frame[:length] for frame in frames[::7] for length in range(15, len(frame), 4)]
    else:
        frames = frames[::4] + frames[-5:]
    for frame in frames:
        if how == "linear":
            sender.send(frame)
        else:
            send_paged(tap_name, frame)
        port = table.port(frame)
        for env, granted in environments.items():
            mine = port >= 0 and 1 + port % 3 == granted.queue
            assert read_all(granted.fd, 1.0 if mine else 0.0) == ([frame] if mine else []), env
    sender.close()
    for granted in environments.values():
        os.close(granted.fd)
    edge.close()
