"""How a libOS brings a type of its own to a device (thesis, chapter 8, B.1).

`env` is an environment (`client.Environment`).  The steps: raw blocks in the root catalogue, the packed template as
their contents, made durable, then `type_import`, which turns the blocks into a type for good.
"""

from __future__ import annotations

from typing import Any

from xok_host.abi.calls import Op, OpKind, pack_extents, pack_transaction
from xok_host.abi.types import BLOCK, TYPE_XN_DB, disk_address

NO_PARTITION = 0xFFFF_FFFF
"""Of a root extent of plain data, whose blocks have no parent."""
_RESULT_BYTES = 256


def install_type(env: Any, dev: int, name: str, raw: bytes) -> int:
    """Import the packed template `raw` as the type `name`; its id, the reserved one if the caller reserved the name.

    Raises Exists when the name is taken, TypeInvalid with the reason when XN does not accept the template."""
    count = (len(raw) + BLOCK - 1) // BLOCK
    made = env.call("install_mount", dev, 0, count, int(TYPE_XN_DB), data=name.encode(), out_bytes=_RESULT_BYTES)
    first, cap = made.r0, made.r1
    ops = []
    for index in range(count):
        given = env.call("page_alloc", 1, cap=cap, out_bytes=_RESULT_BYTES)
        page = int.from_bytes(given.data[:8], "little")
        env.page(page)[:] = raw[index * BLOCK : (index + 1) * BLOCK].ljust(BLOCK, b"\0")
        db = first + index
        ops.append(Op(OpKind.PUBLISH, disk_address(dev, first), NO_PARTITION, db, 1, int(TYPE_XN_DB), page))
    env.call("transact", cap=cap, data=pack_transaction(ops), out_bytes=_RESULT_BYTES)
    env.call("writebackv", dev, data=pack_extents([(first, count, 0)]), out_bytes=_RESULT_BYTES)
    env.call("flush", dev, out_bytes=_RESULT_BYTES)
    return int(env.call("type_import", dev, data=name.encode(), out_bytes=_RESULT_BYTES).r0)
