"""Hypothesis strategies for legal headers, over the whole range that a value type admits."""

from __future__ import annotations

from hypothesis import strategies as st

from netstack.wire.arp import REPLY, REQUEST, Arp
from netstack.wire.ethernet import LEAST_TYPE, Ethernet
from netstack.wire.icmp import (
    ECHO_REPLY,
    ECHO_REQUEST,
    FRAGMENTATION_NEEDED,
    MOST_CODE,
    TIME_EXCEEDED,
    UNREACHABLE,
    Echo,
    Error,
)
from netstack.wire.ipv4 import Ipv4
from netstack.wire.tcp import SYN, Tcp
from netstack.wire.tcpoptions import MAX_OPTIONS, Options
from netstack.wire.udp import Udp
from netstack.wire.vnet import DATA_VALID, GSO_ECN, GSO_NONE, GSO_TYPES, NEEDS_CSUM, Vnet

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
data = st.binary(max_size=200)
macs = st.binary(min_size=6, max_size=6)
stations = macs.map(lambda mac: bytes([mac[0] & 0xFE]) + mac[1:])
sources = st.one_of(st.integers(1, 0xDFFFFFFF), st.integers(0xF0000000, 0xFFFFFFFE))

ethernets = st.builds(Ethernet, macs, stations, st.integers(LEAST_TYPE, 0xFFFF))
arps = st.builds(Arp, st.sampled_from((REQUEST, REPLY)), stations, sources, macs, u32)
udps = st.builds(Udp, u16, st.integers(1, 0xFFFF))
echoes = st.builds(Echo, st.sampled_from((ECHO_REQUEST, ECHO_REPLY)), u16, u16, data)


@st.composite
def ipv4s(draw: st.DrawFn) -> Ipv4:
    """Headers with and without options and fragmentation, for short payloads."""
    more = draw(st.booleans())
    length = draw(st.integers(0, 25).map(lambda n: n * 8) if more else st.integers(0, 200))
    options = draw(st.lists(st.sampled_from((b"\1", b"\x94\4\0\0", b"\x07\7\4\0\0\0\0")), max_size=4).map(b"".join))
    options += b"\0" * (-len(options) % 4)
    return Ipv4(
        source=draw(sources),
        destination=draw(st.integers(1, 0xFFFFFFFF)),
        protocol=draw(u8),
        length=length,
        ttl=draw(st.integers(1, 255)),
        tos=draw(u8),
        identification=draw(u16),
        dont_fragment=draw(st.booleans()),
        more_fragments=more,
        fragment_offset=draw(st.integers(0, 8000)) * 8,
        options=options,
    )


@st.composite
def errors(draw: st.DrawFn) -> Error:
    """Errors about a datagram that is quoted from its first 8 octets on to its whole."""
    kind = draw(st.sampled_from((UNREACHABLE, TIME_EXCEEDED)))
    code = draw(st.integers(0, MOST_CODE[kind]))
    inner = draw(ipv4s())
    least = min(8, inner.length)
    quoted = inner.pack() + draw(st.binary(min_size=least, max_size=inner.length))
    return Error(kind, code, quoted, draw(u16) if (kind, code) == (UNREACHABLE, FRAGMENTATION_NEEDED) else 0)


@st.composite
def options(draw: st.DrawFn, *, syn: bool) -> Options:
    """Options that fit together; the ones of a SYN only if `syn`."""
    found = Options(
        mss=draw(st.none() | st.integers(1, 0xFFFF)) if syn else None,
        window_scale=draw(st.none() | st.integers(0, 14)) if syn else None,
        sack_permitted=syn and draw(st.booleans()),
        timestamps=draw(st.none() | st.tuples(u32, u32)),
    )
    room = max((MAX_OPTIONS - len(found.pack()) - 4) // 8, 0)
    blocks = draw(st.lists(st.tuples(u32, u32), max_size=min(room, 4)))
    return Options(found.mss, found.window_scale, found.sack_permitted, tuple(blocks), found.timestamps)


@st.composite
def tcps(draw: st.DrawFn) -> Tcp:
    """Headers with any flags."""
    flags = draw(u8)
    chosen = draw(options(syn=bool(flags & SYN)))
    return Tcp(draw(u16), draw(u16), draw(u32), draw(u32), flags, draw(u16), draw(u16), chosen)


@st.composite
def vnets(draw: st.DrawFn) -> Vnet:
    """Headers whose checksum, if any, lies within 200 octets."""
    gso = draw(st.sampled_from(GSO_TYPES))
    if gso != GSO_NONE:
        return Vnet(
            flags=NEEDS_CSUM | draw(st.sampled_from((0, DATA_VALID))),
            gso_type=gso | draw(st.sampled_from((0, GSO_ECN))),
            hdr_len=draw(u16),
            gso_size=draw(st.integers(1, 0xFFFF)),
            csum_start=draw(st.integers(0, 100)),
            csum_offset=draw(st.integers(0, 98)),
        )
    return Vnet(
        flags=draw(st.integers(0, 3)),
        hdr_len=draw(u16),
        csum_start=draw(st.integers(0, 100)),
        csum_offset=draw(st.integers(0, 98)),
    )
