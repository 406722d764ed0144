"""Steering: DPF's programs on the TAP, and their maps kept in step with the filter table (DESIGN.md 5).

    clsact or TCX egress   entry → classifier      drops what nobody claims, counts, sets mark
    TAP steering           steering                queue = mark - 1
    TAP filter             assertion               drops if they disagree
    clsact or TCX ingress  inverse                 drops what a sender may not send

ST-1  A change of the table is written entry by entry in the trie's order, so that a filter is there whole or not at
      all (TR-2).  A new shape first gets its entries, then its program, by one store.
ST-2  When xokd is gone, the host kernel empties the map of programs within moments, and nothing is delivered any more.
ST-3  A deleted entry of a hash map may be used again at once.  A packet that is being classified just then may take
      the new entry for the old, and is then delivered to a live receiver that did not claim it or dropped: one packet,
      at the moment when two filters change.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from dataclasses import dataclass
from typing import Any, Final

from pyroute2 import IPRoute  # type: ignore[attr-defined, unused-ignore]
from pyroute2.netlink.exceptions import NetlinkError

from xok_host.host import bpf
from xok_host.host.btf import NoBtf, skb_layout
from xok_host.host.tap import Tap
from xok_host.kernel.dpf import compile as programs
from xok_host.kernel.dpf import maps
from xok_host.kernel.dpf.classify import Plan
from xok_host.kernel.dpf.inverse import Reason, Sender
from xok_host.kernel.dpf.inverse_compile import inverse
from xok_host.kernel.dpf.trie import Trie

_INDEX: Final = struct.Struct("<I")
_INGRESS, _EGRESS = "ffff:fff2", "ffff:fff3"


class Unavailable(Exception):
    """The host cannot run DPF's programs; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class PortCounters:
    packets: int
    bytes: int
    dropped: int
    """Claimed by a filter of a port that has no receiver."""


class Steering:
    """The programs of one TAP.  Raises Unavailable, with nothing left attached, if one cannot be had."""

    def __init__(self, tap: Tap, without: frozenset[str] = frozenset()) -> None:
        if "ebpf" in without:
            raise Unavailable("XOK_WITHOUT names ebpf")
        self.tap = tap
        self.attachment = ""
        """"tcx" or "clsact"."""
        self._owned: list[Any] = []
        self._shape_version = -1
        self._classifier: bpf.Program | None = None
        self._addresses: dict[int, frozenset[bytes]] = {}
        try:
            self._open(without)
        except Unavailable:
            self.close()
            raise
        except (OSError, NetlinkError) as failure:
            self.close()
            raise Unavailable(str(failure)) from failure

    def _open(self, without: frozenset[str]) -> None:
        if "btf" in without:
            raise Unavailable("XOK_WITHOUT names btf")
        try:
            layout = skb_layout()
        except NoBtf as missing:
            raise Unavailable(f"the offload header cannot be checked: {missing}") from None
        self.maps: dict[str, bpf.Map] = {}
        for spec in maps.MAPS:
            self.maps[spec.name] = self._keep(bpf.Map(spec))
        load = self._load
        self._inverse = self._keep(load("inverse", bpf.SCHED_CLS, inverse(layout)))
        self._entry = self._keep(load("entry", bpf.SCHED_CLS, programs.entry()))
        steering = self._keep(load("steering", bpf.SOCKET_FILTER, programs.steering()))
        assertion = self._keep(load("assertion", bpf.SOCKET_FILTER, programs.assertion()))
        self.sync(Trie())
        self._attach(without)
        self.tap.set_programs(steering.fd, assertion.fd)

    def _keep(self, owned: Any) -> Any:
        self._owned.append(owned)
        return owned

    def _load(self, name: str, kind: int, code: bytes) -> bpf.Program:
        return bpf.Program(name, kind, code, self.maps)

    def _attach(self, without: frozenset[str]) -> None:
        if "tcx" not in without:
            try:
                links = [bpf.Link(self._inverse, self.tap.ifindex, bpf.TCX_INGRESS)]
                self._keep(links[0])
                self._keep(bpf.Link(self._entry, self.tap.ifindex, bpf.TCX_EGRESS))
            except OSError as refusal:
                # Linux before 6.6 does not know the command for this kind of program.
                if refusal.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
                    raise
            else:
                self.attachment = "tcx"
                return
        with IPRoute() as netlink:
            try:
                netlink.tc("del", "clsact", self.tap.ifindex)
            except NetlinkError as absent:
                if absent.code not in (errno.ENOENT, errno.EINVAL):
                    raise
            netlink.tc("add", "clsact", self.tap.ifindex)
            for program, parent in ((self._inverse, _INGRESS), (self._entry, _EGRESS)):
                netlink.tc(
                    "add-filter",
                    "bpf",
                    self.tap.ifindex,
                    parent=parent,
                    fd=program.fd,
                    name=f"xok_{program.name}",
                    classid=1,
                    direct_action=True,
                )
        self.attachment = "clsact"

    # ---- incoming

    def sync(self, trie: Trie) -> None:
        """Bring the maps, and if shapes are new the program, up to the trie (ST-1)."""
        table = self.maps[maps.TRIE.name]
        for key, value in trie.drain():
            if value is not None:
                table[maps.trie_key(key)] = maps.trie_value(value)
            else:
                # A write that failed may have left it out; what counts is that it is not there.
                with contextlib.suppress(KeyError):
                    del table[maps.trie_key(key)]
        if self._shape_version != trie.shape_version:
            fresh = self._load("classifier", bpf.SCHED_CLS, programs.classifier(Plan(trie)))
            self.maps[maps.PROGRAMS.name][_INDEX.pack(0)] = _INDEX.pack(fresh.fd)
            if self._classifier is not None:
                self._classifier.close()
            self._classifier = fresh
            self._shape_version = trie.shape_version

    def set_port(self, port: int, queue: int | None) -> None:
        """Deliver what a port claims to a queue, from zeroed counters; None: drop it."""
        value = maps.PORT.pack(0 if queue is None else queue + 1, 0, 0, 0, 0)
        self.maps[maps.PORTS.name][_INDEX.pack(port)] = value

    def port_counters(self, port: int) -> PortCounters:
        _, _, packets, octets, dropped = maps.PORT.unpack(self.maps[maps.PORTS.name][_INDEX.pack(port)])
        return PortCounters(packets, octets, dropped)

    def unclaimed(self) -> tuple[int, int]:
        """(packets, bytes) that nobody claimed."""
        packets, octets = struct.unpack("<QQ", self.maps[maps.UNCLAIMED.name][_INDEX.pack(0)])
        return packets, octets

    # ---- outgoing

    def set_sender(self, queue: int, sender: Sender | None, trusted: bool = False) -> None:
        """What a queue may send; None: nothing.  `trusted` is for xokd's own queue, whose packets it has checked."""
        senders, known = self.maps[maps.SENDERS.name], self.maps[maps.ADDRESSES.name]
        number = _INDEX.pack(queue)
        # Closed while it changes, so that no packet is judged by half of the old and half of the new.
        senders[number] = maps.SENDER.pack(bytes(6), 0, 0)
        for address in self._addresses.pop(queue, frozenset()):
            del known[maps.ADDRESS.pack(queue, address)]
        if trusted:
            senders[number] = maps.SENDER.pack(bytes(6), maps.SENDER_TRUSTED, 0)
        elif sender is not None:
            for address in sender.addresses:
                known[maps.ADDRESS.pack(queue, address)] = _INDEX.pack(1)
            self._addresses[queue] = sender.addresses
            senders[number] = maps.SENDER.pack(sender.mac, maps.SENDER_CHECKED, 0)

    def sent(self, queue: int) -> dict[Reason, int]:
        """Packets that a queue's holder wrote, by what became of them.  Queue MAX_QUEUES: from no queue at all."""
        counters = self.maps[maps.SENT.name]
        return {reason: _u64(counters[_INDEX.pack(queue * maps.REASONS + reason)]) for reason in Reason}

    def reset_sent(self, queue: int) -> None:
        for reason in Reason:
            self.maps[maps.SENT.name][_INDEX.pack(queue * maps.REASONS + reason)] = bytes(8)

    def close(self) -> None:
        """Let go of programs and maps.  What is attached by clsact stays with the TAP, and drops everything (ST-2)."""
        if self._classifier is not None:
            self._classifier.close()
            self._classifier = None
        bpf.close_all(self._owned)
        self._owned.clear()


def _u64(raw: bytes) -> int:
    return int.from_bytes(raw, "little")
