"""Draw examples/site/poster.png and favicon.ico: a disk as a Hilbert curve, a spot as an icon.

    python examples/poster.py [FOLDER]

Only the standard library. The drawing depends on nothing but SEED, so it comes out the same everywhere.
"""

from __future__ import annotations

import random
import struct
import sys
import zlib
from pathlib import Path

SEED = 1998
ORDER = 9  # 512 x 512 blocks
SCALE = 2  # pixels a block, each way

FREE, SEAM = (27, 25, 19), (14, 13, 10)
DIRECTORY = (222, 128, 44)
SAND = ((240, 214, 166), (229, 196, 140), (246, 226, 186), (214, 178, 122))
TEAL = ((31, 111, 120), (43, 128, 136), (24, 92, 101), (60, 146, 150))

Colour = tuple[int, int, int]


def hilbert(step: int) -> tuple[int, int]:
    """Column and row of the `step`-th block along the curve."""
    x = y = 0
    side = 1
    while side < 1 << ORDER:
        right, up = step >> 1 & 1, (step ^ step >> 1) & 1
        if not up:
            if right:
                x, y = side - 1 - x, side - 1 - y
            x, y = y, x
        x, y = x + side * right, y + side * up
        step >>= 2
        side *= 2
    return x, y


def disk(total: int) -> list[Colour]:
    """The colour of every block: directories, groups of small files, large files, free stretches, seams."""
    dice = random.Random(SEED)
    blocks: list[Colour] = []
    while len(blocks) < total:
        kind = dice.random()
        if kind < 0.55:  # a directory, then groups of sixteen with its small files
            blocks += [DIRECTORY] * dice.choice((1, 1, 2, 4))
            for _ in range(dice.randint(1, 30)):
                tint = dice.choice(SAND)
                blocks += [tuple(c - dice.randint(0, 9) for c in tint)] * 15 + [DIRECTORY]
        elif kind < 0.8:  # one large file, its extents in neighbouring tints
            for _ in range(dice.randint(1, 6)):
                tint = dice.choice(TEAL)
                blocks += [tuple(c + dice.randint(-4, 4) for c in tint) for _ in range(dice.randint(60, 900))]
        elif kind < 0.93:
            blocks += [FREE] * dice.randint(40, 1500)
        else:
            blocks += [SEAM] * dice.randint(10, 120)
    return blocks[:total]


def png(width: int, height: int, rows: list[bytes], alpha: bool = False) -> bytes:
    """A PNG of 8 bits a channel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6 if alpha else 2, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def poster() -> bytes:
    """The landscape."""
    side = 1 << ORDER
    picture = [[FREE] * side for _ in range(side)]
    for step, colour in enumerate(disk(side * side)):
        x, y = hilbert(step)
        picture[y][x] = colour
    rows = []
    for line in picture:
        row = b"".join(bytes(max(0, min(255, c)) for c in colour) * SCALE for colour in line)
        rows += [row] * SCALE
    return png(side * SCALE, side * SCALE, rows)


def icon(side: int = 32) -> bytes:
    """A Windows icon holding one PNG: four spots on amber."""
    spots = ((10, 10, 5.2, 3.9), (22, 20, 4.7, 5.2), (9.5, 22, 3.2, 3.2), (22.5, 8.5, 2.2, 2.2))
    rows = []
    for y in range(side):
        row = b""
        for x in range(side):
            cx, cy = max(8, min(side - 8, x + 0.5)), max(8, min(side - 8, y + 0.5))
            inside = (x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 <= 64
            dark = any(((x + 0.5 - a) / w) ** 2 + ((y + 0.5 - b) / h) ** 2 <= 1 for a, b, w, h in spots)
            row += bytes((43, 36, 24, 255) if dark and inside else (208, 118, 43, 255 if inside else 0))
        rows.append(row)
    image = png(side, side, rows, alpha=True)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, side, side, 0, 0, 1, 32, len(image), 22) + image


def main() -> None:
    """Write both files into FOLDER (the site by default)."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "site"
    (folder / "poster.png").write_bytes(poster())
    (folder / "favicon.ico").write_bytes(icon())


if __name__ == "__main__":
    main()
