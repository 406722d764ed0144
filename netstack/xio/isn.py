# cython: language_level=3, annotation_typing=False, infer_types=False
"""Initial sequence numbers that nobody can guess (RFC 6528): a keyed hash of the four numbers, plus a clock.

The hash is SipHash-2-4 (Aumasson and Bernstein, 2012) over the sixteen octets that name a connection.
"""

from __future__ import annotations

import cython

if cython.compiled:

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    @cython.locals(x=cython.ulonglong, b=cython.int)
    @cython.returns(cython.ulonglong)
    def _rotate(x, b):  # type: ignore[no-untyped-def]
        return (x << b) | (x >> (64 - b))

else:
    from netstack.wire.octets import w32, w64

    # “somepseudorandomlygeneratedbytes”, and the length of the message in the last word.
    S0 = 0x736F6D6570736575
    S1 = 0x646F72616E646F6D
    S2 = 0x6C7967656E657261
    S3 = 0x7465646279746573
    S4 = 16 << 56

    def _rotate(x: int, b: int) -> int:
        return w64(x << b) | x >> (64 - b)


@cython.locals(
    v0=cython.ulonglong,
    v1=cython.ulonglong,
    v2=cython.ulonglong,
    v3=cython.ulonglong,
    word=cython.ulonglong,
    step=cython.int,
    rounds=cython.int,
)
def siphash(k0: int, k1: int, m0: int, m1: int) -> int:
    """SipHash-2-4 of the two words `m0`, `m1` under the key `k0`, `k1`; 64 bits."""
    v0 = k0 ^ S0
    v1 = k1 ^ S1
    v2 = k0 ^ S2
    v3 = k1 ^ S3
    for step in range(4):
        if step == 0:
            word = m0
        elif step == 1:
            word = m1
        elif step == 2:
            word = S4
        else:
            word = 0
            v2 ^= 0xFF
        v3 ^= word
        for rounds in range(4 if step == 3 else 2):  # noqa: B007
            v0 = w64(v0 + v1)
            v1 = _rotate(v1, 13) ^ v0
            v0 = _rotate(v0, 32)
            v2 = w64(v2 + v3)
            v3 = _rotate(v3, 16) ^ v2
            v0 = w64(v0 + v3)
            v3 = _rotate(v3, 21) ^ v0
            v2 = w64(v2 + v1)
            v1 = _rotate(v1, 17) ^ v2
            v2 = _rotate(v2, 32)
        v0 ^= word
    return v0 ^ v1 ^ v2 ^ v3


def initial_sequence(k0: int, k1: int, local: int, remote: int, ports: int, now: int) -> int:
    """ISN = M + F (section 3): M ticks every 4 µs, `now` is in µs; `ports` is local << 16 | remote."""
    return w32(siphash(k0, k1, w64(w64(local) << 32 | remote), ports) + (now >> 2))
