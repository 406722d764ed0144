"""A call's operand list of extents, read where it lies: (first block, count, partition or sector mask) each.

EXTENTS-1  `data` is the kernel's own copy of the operand (CH-1), and its form has been checked.
"""

from __future__ import annotations

import cython

from xok_host.abi.calls import EXTENT, unpack_extents

_BYTES = cython.declare(cython.Py_ssize_t, EXTENT.size)

# EXTENT as C has it.
ExtentWords = cython.struct(db=cython.ulonglong, count=cython.uint, third=cython.uint)


class Extents:
    """As many extents as `n` says.  Raises BadCall for bytes that are no list of them."""

    __slots__ = ("_data", "_list", "n")

    def __init__(self, data: bytes) -> None:
        if not cython.compiled or len(data) % _BYTES or len(data) > _BYTES:
            self._list = unpack_extents(data)  # which says what is wrong
        self._data = data
        self.n = len(data) // _BYTES

    def db(self, i: cython.Py_ssize_t) -> cython.ulonglong:
        """The first block of extent `i`, which there is."""
        if cython.compiled:
            return cython.cast(cython.pointer(ExtentWords), cython.cast(cython.p_char, self._data))[i].db
        else:
            return self._list[i][0]

    def count(self, i: cython.Py_ssize_t) -> cython.ulonglong:
        """Its blocks, which may be none."""
        if cython.compiled:
            return cython.cast(cython.pointer(ExtentWords), cython.cast(cython.p_char, self._data))[i].count
        else:
            return self._list[i][1]

    def third(self, i: cython.Py_ssize_t) -> cython.uint:
        """A partition or a sector mask, as the call says."""
        if cython.compiled:
            return cython.cast(cython.pointer(ExtentWords), cython.cast(cython.p_char, self._data))[i].third
        else:
            return self._list[i][2]

    def total(self) -> cython.ulonglong:
        """All blocks; an extent of none counts as one, because it is work as well."""
        i: cython.Py_ssize_t
        blocks: cython.ulonglong = 0
        for i in range(self.n):
            blocks += self.count(i) or 1
        return blocks
