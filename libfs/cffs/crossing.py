"""Crossing: what the overlay holds becomes transactions, batched (docs/cffs.md section 4).

CROSS-1  A sector crosses with all that its change owns, references and counts: transactions balance by themselves.
CROSS-2  A block's allocation crosses before, or in one transaction with, the first change inside it.
CROSS-3  What XN refuses after it was answered is an error of the inodes concerned (`errors`), and what is in core of
         them is dropped in favour of what XN has.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from libfs.api import NotInCore
from libfs.cffs.choosing import MAX_CHOICES, MAX_TRIES, Choosing, Part, rewrite
from libfs.cffs.extents import ExtentMap
from libfs.cffs.inode import Node
from libfs.cffs.layout import DIRECT, INODE_BYTES
from libfs.cffs.overlay import Sector
from libfs.cffs.requests import Fetch
from xok_host.abi import errors as e
from xok_host.abi.calls import MAX_OPS, OP_HEADER, OpKind
from xok_host.abi.types import TYPE_XN_DB, LockMode

_FREE = int(OpKind.FREE)
_DATA = int(TYPE_XN_DB)

Refused = Callable[[list[list[Part]], e.XokError], None]
"""What is done about a transaction that XN refuses for good."""


class Crossing(Choosing):
    """Turning the overlay into transactions."""

    def cross(self) -> None:
        """Everything answered so far crosses.  Never raises what an operation did not ask for: see CROSS-3."""
        while self.dirty or self.overlay:
            self._cross_once()

    def cross_gain(self, node: Node, gained: list[tuple[int, int]]) -> None:
        """A directory gets blocks: (block, logical block) for holes of its table.

        The sector of its inode crosses for that, with those joined to it, and no more if it can be helped.  If XN
        refuses, the gain has not happened and nothing else is lost.  Raises XN's error, or NotInCore: try again."""
        extents = node.extents
        assert extents is not None
        key = node.ino >> 2
        keys = self._joined(key)
        undo = None
        if self._can_be_undone(extents, gained, keys):
            undo = partial(self._undo_gain, node)
        else:
            self._cross_around(key)  # so that a refusal concerns nothing but the gain
            if self.nodes.get(node.ino) is not node:
                raise NotInCore([])  # the directory itself was refused
        for db, logical in gained:
            extents.insert(logical, 1, db)
            self.new_blocks[db] = self.homes[db] = node.ino
        node.gained = gained
        self.dirty[node.ino] = node
        errors, self.errors = self.errors, {}
        self._cross_once(keys, undo)
        refusals, self.errors = self.errors, errors
        for error in refusals.values():
            if error.errno == errno.EBUSY:
                raise NotInCore([])  # another environment was faster
            raise error
        self.free -= len(gained)
        for db, _ in gained:
            self.order.add_child(key, db)

    def _joined(self, key: int) -> set[int]:
        """The sector, and those that cross in one transaction with it."""
        changed = self.overlay.get(key)
        return set(changed.links) if changed is not None and changed.links is not None else {key}

    def _cross_around(self, key: int) -> None:
        """A sector crosses with those that are joined to it, or with everything if the volume's rules want that."""
        if self.rules.crosses_whole:
            self.cross()
        while key in self.overlay or self._dirty_in({key}):
            self._cross_once(self._joined(key))

    def _dirty_in(self, keys: Iterable[int]) -> list[Node]:
        inos = (key << 2 | slot for key in keys for slot in (1, 2, 3))
        return [self.dirty[ino] for ino in inos if ino in self.dirty]

    def _can_be_undone(self, extents: ExtentMap, gained: list[tuple[int, int]], keys: set[int]) -> bool:
        """Whether a gain and what crosses with it can be taken back: it comes last in a table without a tree, and
        nothing is chosen for or given up by the inodes around it."""
        last = extents.keys[-1] if extents.keys else -1
        return (
            not self.rules.crosses_whole
            and extents.embedded
            and len(extents.keys) + len(gained) <= DIRECT
            and last < gained[0][1]
            and not any(node.pages or node.lost or node.gained for node in self._dirty_in(keys))
            and all(node.extents is None or node.extents.embedded for node in self._dirty_in(keys))
        )

    def _undo_gain(self, node: Node, transaction: list[list[Part]], error: e.XokError) -> None:
        """A refused gain is taken back, with all that crossed together with it."""
        self.errors[node.ino] = OSError(error.errno, str(error))
        self._undo(transaction)
        self.drop_gained(node)

    def _undo(self, transaction: list[list[Part]]) -> None:
        """What a refused transaction consists of is as it was before it crossed (CHOOSE-1)."""
        for component in transaction:
            for part in component:
                self.take_back(part)
                self.dirty.update((node.ino, node) for node in part.nodes)
                self.overlay[part.key] = part.changed

    def _cross_once(self, keys: Iterable[int] | None = None, refused: Refused | None = None) -> None:
        """One round: every changed sector, or only these, with the inodes in them; `refused` in place of CROSS-3."""
        parts: dict[int, Part] = {}
        if keys is None:
            dirty, self.dirty = self.dirty, {}
        else:
            dirty = {node.ino: self.dirty.pop(node.ino) for node in self._dirty_in(keys)}
        for node in dirty.values():
            key = node.ino >> 2
            changed = self.overlay.get(key) or self.now(self.sector, key)
            part = parts.get(key)
            if part is None:
                part = parts[key] = Part(key, changed)
            if not self._node_crosses(node, part, changed, parts):
                continue
            node.pack_into(changed.data, (node.ino & 3) * INODE_BYTES)
            self.rules.stamp(self, node, changed)
            part.nodes.append(node)
        if keys is None:
            overlay, self.overlay = self.overlay, {}
        else:
            overlay = {key: self.overlay.pop(key) for key in keys if key in self.overlay}
        base = self.dev << 56
        for key, changed in overlay.items():
            part = parts.get(key)
            if part is None:
                part = parts[key] = Part(key, changed)
            part.ops.insert(0, rewrite(base | (key >> 3) << 12, key & 7, changed.data))
            for start, count, holder, own, kind in changed.frees:
                self._free(part, holder, own, start, count, kind)
            for lost, kind in changed.nodes_freed:
                self._free_node(part, lost, kind)
        self._submit(self.rules.arrange(self, overlay, parts), refused or self._refused)

    def _node_crosses(self, node: Node, part: Part, changed: Sector, parts: dict[int, Part]) -> bool:
        """Append an inode's operations to its sector's part; False if that cannot be, and it was given up."""
        ops, sent, blocks, taken = len(part.ops), len(part.sent), len(part.blocks), len(part.taken)
        for without in (False, True):
            try:
                if self._node_ops(node, part, changed):
                    self.dirty[node.ino] = node
                return True
            except OSError as error:
                self.errors[node.ino] = error
                del part.ops[ops:], part.sent[sent:], part.blocks[blocks:]
                self.take_back(part, taken)
                self._forget_chosen(parts)
                if error.errno != errno.ENOSPC or without:
                    break
                self.do_without(node)
        self._give_up(node)
        return False

    def _forget_chosen(self, parts: dict[int, Part]) -> None:
        """Blocks that were chosen for an inode that does not cross are free again."""
        self.grouping.taken &= {db for part in parts.values() for db in part.blocks} | self.new_blocks.keys()

    # ---- transactions

    def arrange(self, overlay: dict[int, Sector], parts: dict[int, Part]) -> list[list[list[Part]]]:
        """Transactions, each a list of components, each a list of parts, in an order that obeys CROSS-1 and CROSS-2."""
        transactions: list[list[list[Part]]] = []
        done: set[int] = set()
        room = 0
        new_blocks = self.new_blocks
        for key, changed in overlay.items():
            if key in done:
                continue
            if changed.links is None and key >> 3 not in new_blocks:
                done.add(key)
                component = [parts[key]]
            else:
                keys: set[int] = set()
                self._gather(key, overlay, done, keys)
                component = []
                while keys:
                    self._emit(next(iter(keys)), keys, parts, component)
            need = sum(len(part.ops) for part in component)
            if need > room:
                transactions.append([])
                room = MAX_OPS
            transactions[-1].append(component)
            room -= need
        return transactions

    def _gather(self, key: int, overlay: dict[int, Sector], done: set[int], keys: set[int]) -> None:
        """The sectors that must cross with `key` or, not having crossed yet, before it."""
        if key in done or key not in overlay:
            return
        done.add(key)
        keys.add(key)
        owner = self.new_blocks.get(key >> 3)
        if owner is not None:
            self._gather(owner >> 2, overlay, done, keys)
        for other in overlay[key].links or ():
            self._gather(other, overlay, done, keys)

    def _emit(self, key: int, keys: set[int], parts: dict[int, Part], component: list[Part]) -> None:
        """Append a sector of a component, its block's allocation first (CROSS-2)."""
        if key not in keys:
            return
        keys.discard(key)
        owner = self.new_blocks.get(key >> 3)
        if owner is not None:
            self._emit(owner >> 2, keys, parts, component)
        component.append(parts[key])

    def _data_of(self, transaction: list[list[Part]]) -> bytes:
        """The call's operands: all operations, then what the methods are to see, some of it allocated by them."""
        ops = b"".join(op for component in transaction for part in component for op in part.ops)
        return ops + self.rules.witnesses(self, transaction)

    def _submit(self, transactions: list[list[list[Part]]], refused: Refused) -> None:
        datas = [self._data_of(transaction) for transaction in transactions]
        with self.env.batch() as batch:
            for data in datas:
                batch.add("transact", cap=self.cap, data=data)
        for transaction, data, completion in zip(transactions, datas, batch.results, strict=True):
            if completion.code == 0 or self._try_again(transaction, data, completion, refused):
                for component in transaction:
                    for part in component:
                        self._crossed(part)
        if self.locks_to_take:
            self._take_new_locks()

    def _crossed(self, part: Part) -> None:
        self.unwritten.update(part.blocks)
        taken, new_blocks = self.grouping.taken, self.new_blocks
        for node, logicals, promised in part.sent:
            pages = node.pages
            if len(logicals) == len(pages):
                node.pages = {}
            else:
                for logical in logicals:
                    del pages[logical]
            node.promised -= promised
            self.promised -= promised
            self.free -= promised
        for node in part.nodes:
            node.crossed = True
        for db in part.blocks:
            taken.discard(db)
            if new_blocks:
                new_blocks.pop(db, None)

    # ---- refusals

    def _try_again(self, transaction: list[list[Part]], data: bytes, completion: Any, refused: Refused) -> bool:
        """XN refused: do what it asks for and try again.  False: the error is final, and recorded (CROSS-3)."""
        from xok_host.abi.client import refusal

        error: e.XokError = refusal(completion)
        for _ in range(MAX_TRIES):
            try:
                if isinstance(error, e.NotInCore):
                    self._bring_in(transaction)
                elif isinstance(error, (e.WouldCycle, e.Tainted, e.NoSpace, e.LimitReached)):
                    self.write_all_now()
                else:
                    break
                self.env.call("transact", cap=self.cap, data=data)
                return True
            except e.XokError as again:
                error = again
            except OSError:
                break
        if len(transaction) > 1:
            # One bad apple: the others cross by themselves.
            for component in transaction:
                alone = self._data_of([component])
                (result,) = self._one(alone)
                if result.code == 0 or self._try_again([component], alone, result, refused):
                    for part in component:
                        self._crossed(part)
            return False
        refused(transaction, error)
        return False

    def _one(self, data: bytes) -> list[Any]:
        with self.env.batch() as batch:
            batch.add("transact", cap=self.cap, data=data)
        return list(batch.results)

    def _bring_in(self, transaction: list[list[Part]]) -> None:
        """Fetch the metadata blocks that a transaction names."""
        for component in transaction:
            for part in component:
                for block in (part.key >> 3, *part.shown):
                    if block in self.homes and block not in self.new_blocks and self.page_of(block) < 0:
                        self.fetch([self.fetch_of(block)])
                for ino in {self.homes.get(block, 0) for block in part.shown} & set(self.nodes):
                    self.now(self._read_nodes, self.nodes[ino])
                for node in part.nodes:
                    self.now(self._read_nodes, node)
                for op in part.ops:
                    kind, _, _, own, da, db, count, type_id, _ = OP_HEADER.unpack_from(op)
                    if kind == _FREE and type_id != _DATA:
                        for block in range(db, db + count):
                            if self.page_of(block) < 0:
                                self.fetch([Fetch(da >> 12 & (1 << 44) - 1, ((block, 1, own),))])

    def _read_nodes(self, node: Node) -> None:
        """Raises NotInCore for an extent node that is not in core."""
        for tree in node.extents.nodes() if node.extents is not None else ():
            if tree.block not in self.grouping.taken and self.page_of(tree.block) < 0:
                block, own = tree.holder()
                if not block:
                    block, own = node.ino >> 5, node.ino >> 2 & 7
                raise NotInCore([Fetch(block, ((tree.block, 1, own),))])

    def write_all_now(self) -> None:
        """Make everything that has crossed durable, waiting for it here."""
        raise NotImplementedError

    def _refused(self, transaction: list[list[Part]], error: e.XokError, choices: int = MAX_CHOICES) -> None:
        """Other blocks if some were somebody else's; else CROSS-3."""
        if isinstance(error, e.NotFree) and choices and self._choose_again(transaction, error, choices - 1):
            return
        failure = OSError(errno.EIO if isinstance(error, e.NotFound) else error.errno, str(error))  # the disk has gone
        for component in transaction:
            for part in component:
                for node, logicals, promised in part.sent:
                    for logical in logicals:
                        self.return_pages(node.pages.pop(logical))
                    node.promised -= promised
                    self.promised -= promised
                for node in part.nodes:
                    self.errors[node.ino] = failure
                    self._give_up(node)
                    self.errors[node.home] = failure
                    home = self.nodes.get(node.home)
                    if home is not None:
                        home.directory = None
                owner = self.nodes.get(self.homes.get(part.key >> 3, 0))
                if owner is not None:
                    owner.directory = None
                for db in part.blocks[1:]:
                    self.grouping.taken.discard(db)
                    if self.new_blocks.pop(db, None) is not None:
                        self.homes.pop(db, None)

    def _choose_again(self, transaction: list[list[Part]], error: e.XokError, choices: int) -> bool:
        """Another libFS was faster: the transaction's inodes cross with other blocks (CHOOSE-1).

        What a directory gains was chosen by who waits for it (`cross_gain`), and has to be chosen there again."""
        parts = [part for component in transaction for part in component]
        if any(self.nodes.get(node.ino) is not node for part in parts for node in part.nodes):
            return False
        self._undo(transaction)
        for part in parts:
            for node in part.nodes:
                if node.gained:
                    self.errors[node.ino] = OSError(error.errno, str(error))
                    self.drop_gained(node)
        self.count_free()
        self._cross_once([part.key for part in parts], partial(self._refused, choices=choices))
        return True

    def _give_up(self, node: Node) -> None:
        """Drop what is in core of an inode that cannot cross as it is."""
        for page in node.pages.values():
            self.return_pages(page)
        self.promised -= node.promised
        node.pages, node.promised = {}, 0
        self.nodes.pop(node.ino, None)
        self.dirty.pop(node.ino, None)

    def _take_new_locks(self) -> None:
        """Locks on blocks that exist now: nobody else can have heard of them."""
        blocks, self.locks_to_take = self.locks_to_take, []
        with self.env.batch() as batch:
            for block in blocks:
                batch.add("lock", self.dev << 56 | block << 12, int(LockMode.EXCLUSIVE), cap=self.cap)
        for block, completion in zip(blocks, batch.results, strict=True):
            if completion.code:
                self.locks.pop(block, None)
