"""The host kernel's eBPF facility: bpf(2) through ctypes, no more of it than DPF needs.

`Map` and `Program` own their descriptors.  A failure is an OSError naming the object; a program that the verifier
refuses is a `VerifierError` with its log.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from xok_host.abi.ebpf import BadProgram, Instruction, decode
from xok_host.kernel.dpf.maps import MAPS, PSEUDO_MAP, MapSpec

SOCKET_FILTER: Final = 1
SCHED_CLS: Final = 3
TCX_INGRESS: Final = 46
TCX_EGRESS: Final = 47

_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _PROG_LOAD, _TEST_RUN, _LINK_CREATE = 0, 1, 2, 3, 5, 10, 28
_SYS_BPF: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_LICENSE: Final = b"Dual MIT/GPL\0"
"""The host kernel lets only such programs call `bpf_probe_read_kernel`."""
_LOG_BYTES: Final = 1 << 20
_ATTR_BYTES: Final = 128

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class VerifierError(OSError):
    """The host kernel's verifier refused a program; the message ends with its log's last lines."""


def _bpf(command: int, attributes: bytes, what: str) -> int:
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) on {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, _ATTR_BYTES)
    while True:
        result = int(_libc.syscall(number, command, buffer, len(attributes)))
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, f"{os.strerror(code)}: {what}")


class _Owned:
    """A descriptor that is closed once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Map(_Owned):
    """A map.  Keys and values are bytes of exactly the declared size."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        name = f"xok_{spec.name}".encode()[:15]
        attributes = struct.pack(
            "<IIIIIII16s", spec.kind, spec.key_bytes, spec.value_bytes, spec.entries, spec.flags, 0, 0, name
        )
        super().__init__(_bpf(_MAP_CREATE, attributes, f"map {spec.name}"))
        self._key = ctypes.create_string_buffer(spec.key_bytes)
        self._value = ctypes.create_string_buffer(spec.value_bytes)
        key, value = ctypes.addressof(self._key), ctypes.addressof(self._value)
        self._of_value = struct.pack("<IIQQQ", self.fd, 0, key, value, 0)
        self._of_key = struct.pack("<IIQQQ", self.fd, 0, key, 0, 0)

    def _do(self, command: int, key: bytes) -> None:
        if len(key) != self.spec.key_bytes:
            raise ValueError(f"keys of map {self.spec.name} have {self.spec.key_bytes} bytes, not {len(key)}")
        self._key.raw = key
        attributes = self._of_key if command == _DELETE else self._of_value
        _bpf(command, attributes, f"map {self.spec.name}")

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if len(value) != self.spec.value_bytes:
            raise ValueError(f"values of map {self.spec.name} have {self.spec.value_bytes} bytes, not {len(value)}")
        self._value.raw = value
        self._do(_UPDATE, key)

    def __getitem__(self, key: bytes) -> bytes:
        """Raises KeyError if a hash map has no such key."""
        try:
            self._do(_LOOKUP, key)
        except FileNotFoundError:
            raise KeyError(key) from None
        return self._value.raw

    def __delitem__(self, key: bytes) -> None:
        try:
            self._do(_DELETE, key)
        except FileNotFoundError:
            raise KeyError(key) from None


def _relocate(code: bytes, descriptors: Mapping[str, int]) -> bytes:
    """Put map descriptors where the program names maps by number."""
    try:
        instructions = decode(code)
    except BadProgram as bad:
        raise ValueError(f"generated program is malformed: {bad}") from None
    out = bytearray()
    for instruction in instructions:
        if instruction.slots == 2 and instruction.src == PSEUDO_MAP:
            fd = descriptors[MAPS[instruction.imm].name]
            instruction = Instruction(instruction.code, instruction.dst, instruction.src, 0, fd)
        out += instruction.encode()
    return bytes(out)


class Program(_Owned):
    """A loaded program.  `kind` is SOCKET_FILTER or SCHED_CLS.  Raises VerifierError, or OSError without a log."""

    def __init__(self, name: str, kind: int, code: bytes, bound: Mapping[str, Map]) -> None:
        self.name = name
        code = _relocate(code, {key: one.fd for key, one in bound.items()})
        try:
            fd = self._load(kind, code, None)
        except OSError as first:
            if first.errno not in (errno.EACCES, errno.EINVAL, errno.E2BIG):
                raise
            log = ctypes.create_string_buffer(_LOG_BYTES)
            try:
                fd = self._load(kind, code, log)
            except OSError as refusal:
                tail = "\n".join(log.value.decode(errors="replace").splitlines()[-12:])
                raise VerifierError(refusal.errno, f"program {name} refused: {tail}") from None
        super().__init__(fd)

    def _load(self, kind: int, code: bytes, log: ctypes.Array[ctypes.c_char] | None) -> int:
        instructions = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(_LICENSE)
        attributes = struct.pack(
            "<IIQQIIQII16sII",
            kind,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(licence),
            1 if log is not None else 0,
            _LOG_BYTES if log is not None else 0,
            ctypes.addressof(log) if log is not None else 0,
            0,
            0,
            f"xok_{self.name}".encode()[:15],
            0,
            0,
        )
        return _bpf(_PROG_LOAD, attributes, f"program {self.name}")

    def test_run(self, frame: bytes, context: bytes = b"") -> tuple[int, bytes]:
        """Run once on a frame, without a device.  Returns (result, the context afterwards)."""
        data = ctypes.create_string_buffer(frame, len(frame))
        before = ctypes.create_string_buffer(context, max(len(context), 1))
        after = ctypes.create_string_buffer(max(len(context), 1))
        layout = struct.Struct("<IIIIQQIIIIQQIII")
        attributes = layout.pack(
            self.fd,
            0,
            len(frame),
            0,
            ctypes.addressof(data),
            0,
            1,
            0,
            len(context),
            len(context),
            ctypes.addressof(before) if context else 0,
            ctypes.addressof(after) if context else 0,
            0,
            0,
            0,
        )
        buffer = ctypes.create_string_buffer(attributes, _ATTR_BYTES)
        number = _SYS_BPF[platform.machine()]
        if _libc.syscall(number, _TEST_RUN, buffer, len(attributes)) < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{os.strerror(code)}: running program {self.name}")
        return int(layout.unpack(buffer.raw[: layout.size])[1]), after.raw[: len(context)]


class Link(_Owned):
    """A TCX attachment; it lasts as long as its descriptor (Linux 6.6)."""

    def __init__(self, program: Program, ifindex: int, attach_type: int) -> None:
        attributes = struct.pack("<IIIIIIQ", program.fd, ifindex, attach_type, 0, 0, 0, 0)
        super().__init__(_bpf(_LINK_CREATE, attributes, f"attaching program {program.name} by TCX"))


def close_all(owned: Sequence[_Owned]) -> None:
    for one in owned:
        one.close()
