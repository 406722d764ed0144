"""The inverse filter as eBPF: the rules of inverse.py for clsact ingress on the TAP, by queue.

A packet that a queue's holder wrote comes here with queue_mapping = queue + 1, before anything in the host has acted
on it.  What it may send is data in two maps (`senders`, `addresses`); the program never changes.

The offload header itself is not visible here, only what the host kernel made of it.  `gso_size` is part of the
program's view of a packet; whether a checksum is still to be stored, and where, is not.  That is read from the kernel's
own `struct sk_buff` with `bpf_probe_read_kernel`, at the offsets of the running kernel (`SkbLayout`, from its type
information): this works from Linux 5.8 on, while casting to the kernel's type needs 6.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xok_host.abi.dpf import ETH, ETH_ARP, ETH_IP, ETH_IP6, PROTO_ICMP, PROTO_ICMP6, PROTO_TCP, PROTO_UDP
from xok_host.abi.ebpf import R0, R1, R2, R3, R6, R7, R8, R9, R10, Assembler, Reg
from xok_host.kernel.dpf import inverse as inv
from xok_host.kernel.dpf import maps
from xok_host.kernel.dpf.compile import (
    ACT_OK,
    ACT_SHOT,
    SKB_GSO_SIZE,
    SKB_LEN,
    SKB_QUEUE_MAPPING,
    SKB_VLAN_PRESENT,
    add_to,
    load_bytes,
    load_field,
    look_up,
    signed,
)
from xok_host.kernel.dpf.inverse import Reason

PROBE_READ_KERNEL: Final = 113
CHECKSUM_PARTIAL: Final = 3
"""sk_buff.ip_summed: the checksum is still to be stored."""
SKB_GSO_TCPV4: Final = 1 << 0
SKB_GSO_DODGY: Final = 1 << 1
SKB_GSO_TCP_ECN: Final = 1 << 2
SKB_GSO_TCPV6: Final = 1 << 4

# The stack.
_QUEUE = -24
"""Key of `addresses`: queue, then 16 bytes of address."""
_ADDRESS = _QUEUE + 4
_SCRATCH = -32
_CHECKSUM_AT = -40
"""Offset of the checksum that may be asked for; 0: none."""
_SEGMENTED = -44
"""gso_type that the packet may have; 0: none."""
_ETH = -64
_IP = -104
_ICMP = -144


@dataclass(frozen=True, slots=True)
class SkbLayout:
    """Where the running kernel keeps what the offload header became.  Bytes, except the bit position."""

    ip_summed: int
    ip_summed_bit: int
    csum_start: int
    csum_offset: int
    mac_header: int
    head: int
    end: int
    gso_type: int
    """In struct skb_shared_info, which begins at head + end."""


def _drop(reason: Reason) -> str:
    return f"drop_{reason.name}"


def inverse(layout: SkbLayout) -> bytes:
    """r6 = packet, r7 = queue, r8 = offset of the header behind IP's, r9 = the sender's entry."""
    asm = Assembler()
    asm.mov(R6, R1)
    _sender(asm)
    _ethernet(asm)
    _arp(asm)
    _ip(asm)
    _ip6(asm)
    _icmp6(asm)
    asm.label("offload")
    _offload(asm, layout)
    _verdicts(asm)
    return asm.finish()


def _sender(asm: Assembler) -> None:
    asm.load(R7, R6, SKB_QUEUE_MAPPING, 4)
    asm.branch("jeq", R7, 0, "stranger")
    asm.branch("jgt", R7, maps.MAX_QUEUES, "stranger")
    asm.alu("sub", R7, 1)
    asm.store(R10, _QUEUE, R7, 4)
    look_up(asm, maps.SENDERS, _QUEUE, _drop(Reason.NO_SENDER))
    asm.mov(R9, R0)
    asm.load(R1, R9, 6, 2)
    asm.branch("jeq", R1, maps.SENDER_TRUSTED, _drop(Reason.PASSED))
    asm.branch("jne", R1, maps.SENDER_CHECKED, _drop(Reason.NO_SENDER))
    asm.store(R10, _CHECKSUM_AT, 0, 4)
    asm.store(R10, _SEGMENTED, 0, 4)
    asm.mov(R8, 0)


def _ethernet(asm: Assembler) -> None:
    load_bytes(asm, 0, 0, _ETH, ETH, _drop(Reason.MALFORMED))
    _same_mac(asm, _ETH + 6, Reason.SOURCE_MAC)
    asm.load(R1, R6, SKB_VLAN_PRESENT, 4)
    asm.branch("jne", R1, 0, _drop(Reason.VLAN))
    load_field(asm, R1, _ETH + 12, 2)
    asm.branch("jeq", R1, ETH_IP, "ip")
    asm.branch("jeq", R1, ETH_IP6, "ip6")
    asm.branch("jeq", R1, ETH_ARP, "arp")
    for tag in inv.ETH_VLAN:
        asm.branch("jeq", R1, tag, _drop(Reason.VLAN))
    asm.jump(_drop(Reason.PROTOCOL))


def _same_mac(asm: Assembler, stack: int, reason: Reason) -> None:
    """The six bytes on the stack are the sender's MAC; `stack` need not be aligned."""
    for part in range(0, 6, 2):
        asm.load(R1, R10, stack + part, 2)
        asm.load(R2, R9, part, 2)
        asm.branch("jne", R1, R2, _drop(reason))


def _known_address(asm: Assembler, stack: int, width: int, otherwise: str) -> None:
    """The address on the stack is one of the sender's."""
    if width == 4:
        asm.store(R10, _ADDRESS, 0, 4)
        asm.store(R10, _ADDRESS + 4, 0, 4)
        asm.store(R10, _ADDRESS + 8, signed(0xFFFF_0000), 4)
    for part in range(0, width, 4):
        _copy(asm, stack + part, _ADDRESS + 16 - width + part)
    look_up(asm, maps.ADDRESSES, _QUEUE, otherwise)


def _copy(asm: Assembler, source: int, target: int) -> None:
    """Four bytes on the stack, moved by twos because the source may be aligned to two only."""
    for part in (0, 2):
        asm.load(R1, R10, source + part, 2)
        asm.store(R10, target + part, R1, 2)


def _arp(asm: Assembler) -> None:
    asm.label("arp")
    load_bytes(asm, 0, ETH, _IP, 28, _drop(Reason.MALFORMED))
    for offset, width, value in ((0, 2, 1), (2, 2, ETH_IP), (4, 1, 6), (5, 1, 4)):
        load_field(asm, R1, _IP + offset, width)
        asm.branch("jne", R1, value, _drop(Reason.ARP))
    load_field(asm, R1, _IP + 6, 2)
    asm.branch("jeq", R1, 0, _drop(Reason.ARP))
    asm.branch("jgt", R1, 2, _drop(Reason.ARP))
    _same_mac(asm, _IP + 8, Reason.ARP)
    load_field(asm, R1, _IP + 6, 2)
    asm.branch("jne", R1, 1, "arp_address")
    asm.load(R1, R10, _IP + 14, 2)
    asm.load(R2, R10, _IP + 16, 2)
    asm.alu("or", R1, R2)
    asm.branch("jeq", R1, 0, "offload")
    asm.label("arp_address")
    _known_address(asm, _IP + 14, 4, _drop(Reason.ARP))
    asm.jump("offload")


def _ip(asm: Assembler) -> None:
    asm.label("ip")
    load_bytes(asm, 0, ETH, _IP, 20, _drop(Reason.MALFORMED))
    asm.load(R8, R10, _IP, 1)
    asm.mov(R1, R8)
    asm.alu("rsh", R1, 4)
    asm.branch("jne", R1, 4, _drop(Reason.MALFORMED))
    asm.alu("and", R8, 15)
    asm.alu("lsh", R8, 2)
    asm.branch("jlt", R8, 20, _drop(Reason.MALFORMED))
    asm.alu("add", R8, ETH)
    asm.load(R1, R6, SKB_LEN, 4)
    asm.branch("jgt", R8, R1, _drop(Reason.MALFORMED))
    _known_address(asm, _IP + 12, 4, _drop(Reason.SOURCE_ADDRESS))
    asm.load(R3, R10, _IP + 9, 1)
    load_field(asm, R1, _IP + 6, 2)
    asm.alu("and", R1, 0x3FFF)
    asm.branch("jeq", R1, 0, "ip_whole")
    asm.branch("jeq", R3, PROTO_ICMP, _drop(Reason.NEIGHBOUR))
    asm.jump("offload")
    asm.label("ip_whole")
    asm.branch("jne", R3, PROTO_ICMP, "ip_transport")
    load_bytes(asm, R8, 0, _SCRATCH, 1, _drop(Reason.MALFORMED))
    asm.load(R1, R10, _SCRATCH, 1)
    asm.branch("jeq", R1, inv.ICMP_REDIRECT, _drop(Reason.NEIGHBOUR))
    asm.branch("jeq", R1, inv.ICMP_ROUTER, _drop(Reason.NEIGHBOUR))
    asm.jump("offload")
    asm.label("ip_transport")
    _transport(asm, R3, SKB_GSO_TCPV4, "offload")


def _transport(asm: Assembler, protocol: Reg, gso_type: int, otherwise: str) -> None:
    """Allow the offloads of TCP or UDP and go on to them; another protocol goes to `otherwise`."""
    asm.branch("jeq", protocol, PROTO_TCP, f"tcp{gso_type}")
    asm.branch("jne", protocol, PROTO_UDP, otherwise)
    asm.store(R10, _CHECKSUM_AT, inv.CHECKSUM_AT[PROTO_UDP], 4)
    asm.jump("offload")
    asm.label(f"tcp{gso_type}")
    asm.store(R10, _CHECKSUM_AT, inv.CHECKSUM_AT[PROTO_TCP], 4)
    asm.store(R10, _SEGMENTED, gso_type, 4)
    asm.jump("offload")


def _ip6(asm: Assembler) -> None:
    asm.label("ip6")
    load_bytes(asm, 0, ETH, _IP, 40, _drop(Reason.MALFORMED))
    asm.mov(R8, ETH + 40)
    asm.load(R1, R10, _IP, 1)
    asm.alu("rsh", R1, 4)
    asm.branch("jne", R1, 6, _drop(Reason.MALFORMED))
    # From :: only neighbour discovery may come; whether it does is left in the scratch word.
    asm.store(R10, _SCRATCH, 0, 4)
    _known_address(asm, _IP + 8, 16, "ip6_stranger")
    asm.jump("ip6_next")
    asm.label("ip6_stranger")
    asm.mov(R1, 0)
    for part in range(0, 16, 4):
        asm.load(R2, R10, _ADDRESS + part, 4)
        asm.alu("or", R1, R2)
    asm.branch("jne", R1, 0, _drop(Reason.SOURCE_ADDRESS))
    asm.store(R10, _SCRATCH, 1, 4)
    asm.label("ip6_next")
    asm.load(R3, R10, _IP + 6, 1)
    asm.branch("jeq", R3, PROTO_ICMP6, "icmp6")
    asm.load(R1, R10, _SCRATCH, 4)
    asm.branch("jne", R1, 0, _drop(Reason.SOURCE_ADDRESS))
    asm.branch("jeq", R3, inv.IP6_FRAGMENT, "offload")
    _transport(asm, R3, SKB_GSO_TCPV6, _drop(Reason.PROTOCOL))


def _icmp6(asm: Assembler) -> None:
    refuse = _drop(Reason.NEIGHBOUR)
    asm.label("icmp6")
    load_bytes(asm, R8, 0, _ICMP, 1, _drop(Reason.MALFORMED))
    asm.load(R1, R10, _ICMP, 1)
    for kind in (inv.ND_ROUTER_SOLICITATION, inv.ND_SOLICITATION, inv.ND_ADVERTISEMENT):
        asm.branch("jeq", R1, kind, f"nd{kind}")
    asm.load(R2, R10, _SCRATCH, 4)
    asm.branch("jne", R2, 0, _drop(Reason.SOURCE_ADDRESS))
    asm.branch("jeq", R1, inv.ND_ROUTER, refuse)
    asm.branch("jeq", R1, inv.ND_REDIRECT, refuse)
    asm.jump("offload")
    for kind, body, option in (
        (inv.ND_ROUTER_SOLICITATION, 8, inv.ND_OPTION_SOURCE),
        (inv.ND_SOLICITATION, 24, inv.ND_OPTION_SOURCE),
        (inv.ND_ADVERTISEMENT, 24, inv.ND_OPTION_TARGET),
    ):
        asm.label(f"nd{kind}")
        load_field(asm, R3, _IP + 4, 2)
        asm.mov(R2, R3)
        asm.alu("add", R2, ETH + 40)
        asm.load(R1, R6, SKB_LEN, 4)
        asm.branch("jgt", R2, R1, _drop(Reason.MALFORMED))
        asm.branch("jeq", R3, body, f"nd{kind}_bare")
        asm.branch("jne", R3, body + 8, refuse)
        asm.load(R1, R10, _SCRATCH, 4)
        asm.branch("jne", R1, 0, refuse)
        load_bytes(asm, R8, body, _ICMP + 24, 8, refuse)
        asm.load(R1, R10, _ICMP + 24, 1)
        asm.branch("jne", R1, option, refuse)
        asm.load(R1, R10, _ICMP + 25, 1)
        asm.branch("jne", R1, 1, refuse)
        _same_mac(asm, _ICMP + 26, Reason.NEIGHBOUR)
        asm.label(f"nd{kind}_bare")
        asm.load(R1, R10, _SCRATCH, 4)
        if kind == inv.ND_ROUTER_SOLICITATION:
            asm.branch("jne", R1, 0, refuse)
        elif kind == inv.ND_SOLICITATION:
            asm.branch("jeq", R1, 0, "offload")
        else:
            asm.branch("jne", R1, 0, refuse)
        if kind != inv.ND_ROUTER_SOLICITATION:
            load_bytes(asm, R8, 0, _ICMP, 24, refuse)
            _known_address(asm, _ICMP + 8, 16, refuse)
        asm.jump("offload")


def _probe(asm: Assembler, base: Reg, offset: int, width: int) -> None:
    """Copy `width` bytes of the kernel's own structure to the scratch word; what cannot be read is refused."""
    asm.mov(R1, R10)
    asm.alu("add", R1, _SCRATCH)
    asm.mov(R2, width)
    asm.mov(R3, base)
    asm.alu("add", R3, offset)
    asm.call(PROBE_READ_KERNEL)
    asm.branch("jne", R0, 0, _drop(Reason.CHECKSUM))


def _offload(asm: Assembler, layout: SkbLayout) -> None:
    _probe(asm, R6, layout.ip_summed, 1)
    asm.load(R1, R10, _SCRATCH, 1)
    asm.alu("rsh", R1, layout.ip_summed_bit)
    asm.alu("and", R1, 3)
    asm.branch("jeq", R1, CHECKSUM_PARTIAL, "partial")
    asm.load(R1, R6, SKB_GSO_SIZE, 4)
    asm.branch("jne", R1, 0, _drop(Reason.SEGMENTATION))
    asm.jump(_drop(Reason.PASSED))
    asm.label("partial")
    asm.load(R9, R10, _CHECKSUM_AT, 4)
    asm.branch("jeq", R9, 0, _drop(Reason.CHECKSUM))
    _probe(asm, R6, layout.csum_offset, 2)
    asm.load(R1, R10, _SCRATCH, 2)
    asm.branch("jne", R1, R9, _drop(Reason.CHECKSUM))
    # Both count from the buffer's head; the frame begins at mac_header.
    _probe(asm, R6, layout.mac_header, 2)
    asm.load(R9, R10, _SCRATCH, 2)
    asm.alu("add", R9, R8)
    _probe(asm, R6, layout.csum_start, 2)
    asm.load(R1, R10, _SCRATCH, 2)
    asm.branch("jne", R1, R9, _drop(Reason.CHECKSUM))
    asm.load(R1, R6, SKB_GSO_SIZE, 4)
    asm.branch("jeq", R1, 0, _drop(Reason.PASSED))
    asm.branch("jlt", R1, inv.MIN_GSO, _drop(Reason.SEGMENTATION))
    _probe(asm, R6, layout.end, 4)
    asm.load(R9, R10, _SCRATCH, 4)
    _probe(asm, R6, layout.head, 8)
    asm.load(R1, R10, _SCRATCH, 8)
    asm.alu("add", R9, R1)
    _probe(asm, R9, layout.gso_type, 4)
    asm.load(R1, R10, _SCRATCH, 4)
    asm.alu("and", R1, ~(SKB_GSO_DODGY | SKB_GSO_TCP_ECN), bits=32)
    asm.branch("jeq", R1, 0, _drop(Reason.SEGMENTATION))
    asm.load(R2, R10, _SEGMENTED, 4)
    asm.branch("jne", R1, R2, _drop(Reason.SEGMENTATION))
    asm.jump(_drop(Reason.PASSED))


def _verdicts(asm: Assembler) -> None:
    asm.label("stranger")
    asm.mov(R7, maps.MAX_QUEUES)
    asm.jump(_drop(Reason.NO_SENDER))
    for reason in Reason:
        asm.label(_drop(reason))
        asm.mov(R8, reason.value)
        asm.jump("count")
    asm.label("count")
    asm.alu("mul", R7, maps.REASONS)
    asm.alu("add", R7, R8)
    asm.store(R10, _SCRATCH, R7, 4)
    look_up(asm, maps.SENT, _SCRATCH, "shot")
    asm.mov(R1, 1)
    add_to(asm, R0, 0, R1)
    asm.branch("jne", R8, 0, "shot")
    asm.mov(R0, ACT_OK)
    asm.exit()
    asm.label("shot")
    asm.mov(R0, ACT_SHOT)
    asm.exit()
