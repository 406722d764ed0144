"""Reconstruction after an unclean stop (thesis 4.5): walk every tree from its root and see what the disk really holds.

    report = reconstruct(read_block, nblocks)        reads only; `read_block(db)` gives 4096 bytes, or MediaError
    report.mod_refcnt(da, delta, writes)             a patch program mends a count that was found wrong
    for sector, raw in repair(report): …             what to write so that the disk starts again

RECOVER-1  The free map that comes out is exact: in use is what XN itself, the catalogue and the trees use.
RECOVER-2  A count above the number of references is benign (ORDER-5 makes crashes err on that side): it is reported,
           and the libFS repairs it.  Anything else that is wrong taints the root, which cannot be mounted then.
RECOVER-3  Nothing that the disk says is trusted: blocks may be owned twice, pointers may lead anywhere, UDFs may fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from xok_host.abi.calls import CatalogueEntry
from xok_host.abi.errors import BadCall, BadDisk, MediaError, NotFound, XokError
from xok_host.abi.types import (
    BLOCK,
    SECTOR,
    SECTORS,
    TYPE_FIRST_LIBFS,
    TYPE_XN_DB,
    TYPE_XN_TYPE,
    da_block,
    disk_address,
)
from xok_host.kernel.xn import privileged, types, udf
from xok_host.kernel.xn.catalogue import FLAG_TAINTED, Catalogue
from xok_host.kernel.xn.format import BYTES_PER_SECTOR, Superblock, layout, newest, pack_freemap_sector, reserve
from xok_host.kernel.xn.freemap import FreeMap
from xok_host.kernel.xn.types import XnType

ReadBlock = Callable[[int], bytes]

_DEV = 1
"""Devices are numbered as they are attached; for the walk any number will do."""


@dataclass(slots=True, frozen=True)
class Violation:
    """Something that must not be: `kind` is a word, `root` the tree, `db` the block where it was seen."""

    kind: str
    root: str
    db: int
    detail: str
    da: int = 0
    """Of the element, if it is about one."""

    def __str__(self) -> str:
        return f"{self.root}: block {self.db}: {self.detail}"


@dataclass(slots=True)
class Report:
    """What reconstruction found."""

    superblock: Superblock
    catalogue: Catalogue
    bits: bytearray
    """The exact free map."""
    was_clean: bool
    violations: list[Violation] = field(default_factory=list)
    over_counts: list[tuple[str, int, int, int]] = field(default_factory=list)
    """(root, da on device 1, count, references): benign."""
    leaked: int = 0
    """Blocks that the disk's map had in use without need."""
    unmarked: int = 0
    """Blocks in use that the disk's map showed as free."""
    blocks: int = 0
    """In use by trees, roots and types."""
    free: int = 0
    trees: dict[str, int] = field(default_factory=dict)
    """Blocks of each root's tree."""
    wrong_counts: dict[int, tuple[str, int, int, XnType]] = field(default_factory=dict)
    """Elements whose count is not their number of references: root, count, references, type of the block."""
    patches: dict[int, bytes] = field(default_factory=dict)
    """Blocks that patch programs changed."""
    read: ReadBlock = field(default=lambda db: bytes(BLOCK), repr=False)

    @property
    def sound(self) -> bool:
        """No invariant is violated: at most benign leftovers of a crash."""
        return not self.violations and not self.unmarked

    @property
    def tainted(self) -> set[str]:
        return {violation.root for violation in self.violations}

    def mod_refcnt(self, da: int, delta: int, writes: Sequence[tuple[int, bytes]]) -> None:
        """`privileged.mod_refcnt` on what the disk holds; `repair` writes it.  When the count is right afterwards, the
        violation is gone.  Only counts that were found wrong can be changed."""
        if da not in self.wrong_counts:
            raise NotFound(f"nothing is wrong with the count of {da:#x}")
        root, count, references, xtype = self.wrong_counts[da]
        db = da_block(da)
        meta = self.patches.get(db) or self.read(db)
        self.patches[db] = privileged.mod_refcnt(xtype, meta, da, delta, writes)
        del self.wrong_counts[da]
        self.over_counts = [known for known in self.over_counts if known[1] != da]
        self.violations = [known for known in self.violations if (known.kind, known.da) != ("under-count", da)]
        self.judge(da, root, count + delta, references, xtype)

    def judge(self, da: int, root: str, count: int, references: int, xtype: XnType) -> None:
        """RECOVER-2, for one element."""
        if count == references:
            return
        self.wrong_counts[da] = (root, count, references, xtype)
        if count > references:
            self.over_counts.append((root, da, count, references))
        else:
            detail = f"element {da:#x} has {references} references and counts {count}"
            self.violations.append(Violation("under-count", root, da_block(da), detail, da))


class _Walk:
    def __init__(self, read_block: ReadBlock, report: Report) -> None:
        self._read = read_block
        self._report = report
        self._types: dict[int, XnType] = types.builtin()
        self._counts: dict[int, tuple[str, int, XnType]] = {}
        self._references: dict[int, list[str]] = {}
        self._owner: dict[int, str] = {}

    def run(self) -> None:
        entries = self._report.catalogue.entries()
        for entry in entries:
            if entry.kind == CatalogueEntry.TYPE:
                self._load_type(entry)
        for entry in entries:
            if entry.kind == CatalogueEntry.ROOT:
                self._tree(entry)
        self._compare_counts()

    def _violation(self, kind: str, root: str, db: int, detail: str) -> None:
        self._report.violations.append(Violation(kind, root, db, detail))

    def _claim(self, root: str, db: int, count: int) -> bool:
        """Mark as in use; False (and a violation) if part of it is not on the disk or somebody's already."""
        report = self._report
        try:
            taken = privileged.db_alloc(report.superblock, report.bits, db, count)
        except BadCall as error:
            self._violation("range", root, db, error.detail)
            return False
        for block in taken:
            self._violation("double", root, block, "is owned twice")
        report.blocks += count
        report.trees[root] = report.trees.get(root, 0) + count
        return not taken

    def _load_type(self, entry: CatalogueEntry) -> None:
        if not self._claim(entry.name, entry.db, entry.count):
            return
        try:
            raw = b"".join(self._read(db) for db in range(entry.db, entry.db + entry.count))
            self._types[entry.type] = types.load(entry.type, entry.name, raw)
        except (OSError, MediaError) as error:
            self._violation("unreadable", entry.name, entry.db, str(error))
        except XokError as error:
            self._violation("type", entry.name, entry.db, str(error))

    def _tree(self, entry: CatalogueEntry) -> None:
        self._report.trees.setdefault(entry.name, 0)
        if not self._claim(entry.name, entry.db, entry.count):
            return
        todo = [(db, entry.type) for db in range(entry.db, entry.db + entry.count)]
        while todo:
            db, type_id = todo.pop()
            xtype = self._types.get(type_id)
            if xtype is None or type_id == TYPE_XN_TYPE:
                self._violation("type", entry.name, db, f"is of type {type_id}, which does not exist")
                continue
            if type_id == TYPE_XN_DB or xtype.template is None:
                continue
            try:
                meta = self._read(db)
            except (OSError, MediaError) as error:
                self._violation("unreadable", entry.name, db, str(error))
                continue
            todo += self._block(entry.name, db, xtype, meta)

    def _block(self, root: str, db: int, xtype: XnType, meta: bytes) -> list[tuple[int, int]]:
        """Take stock of one metadata block; gives the metadata blocks that it owns."""
        template = xtype.template
        assert template is not None
        da = disk_address(_DEV, db)
        children: list[tuple[int, int]] = []
        for part in range(template.parts):
            try:
                owned = udf.extents(template.owns(meta, part))
                references = template.refs(meta, part, da)[0::3]
                counts = udf.counts(template.refcnt(meta, part, da))
            except XokError as error:
                self._violation("udf", root, db, f"partition {part}: {error}")
                continue
            for start, count, type_id in owned:
                if not self._claim(root, start, count):
                    continue
                child = self._types.get(type_id)
                if child is None or not child.data:
                    children += [(block, type_id) for block in range(start, start + count)]
            for target in references:
                self._references.setdefault(target, []).append(root)
            for target, count in counts.items():
                self._counts[target] = (root, count, xtype)
        return children

    def _compare_counts(self) -> None:
        for target, roots in self._references.items():
            if target not in self._counts:
                self._violation("dangling", roots[0], da_block(target), f"a reference to {target:#x} leads nowhere")
        for target, (root, count, xtype) in self._counts.items():
            references = len(self._references.get(target, ()))
            self._report.judge(target, root, count, references, xtype)


def read_catalogue(read_block: ReadBlock, nblocks: int) -> tuple[Superblock, Catalogue]:
    """Superblock and catalogue of a disk.  Raises BadDisk when either is lost."""
    superblock = newest(read_block(0), read_block(nblocks - 1))
    expected = layout(nblocks, bytes(16), TYPE_FIRST_LIBFS)
    if superblock.nblocks != nblocks or superblock.first != expected.first:
        raise BadDisk(f"it was formatted with {superblock.nblocks} blocks and has {nblocks}")
    catalogue = Catalogue(superblock)
    for index in range(superblock.catalogue_blocks):
        raw = read_block(superblock.catalogue + index)
        for sector in range(SECTORS):
            catalogue.load_sector(index * SECTORS + sector, raw[sector * SECTOR : sector * SECTOR + SECTOR])
    return superblock, catalogue


def reconstruct(read_block: ReadBlock, nblocks: int) -> Report:
    """Read the whole of what the catalogue leads to.  Raises BadDisk when the superblock or catalogue is lost."""
    superblock, catalogue = read_catalogue(read_block, nblocks)
    bits = bytearray(superblock.freemap_blocks * SECTORS * BYTES_PER_SECTOR)
    reserve(bits, superblock)
    report = Report(superblock, catalogue, bits, superblock.clean, read=read_block)
    _Walk(read_block, report).run()
    _compare_maps(read_block, report)
    return report


def _compare_maps(read_block: ReadBlock, report: Report) -> None:
    """What the disk's own map says beside what was found."""
    superblock = report.superblock
    memory = memoryview(bytearray((superblock.nblocks + BLOCK * 8 - 1) // (BLOCK * 8) * BLOCK))
    disk = FreeMap(memory, superblock.nblocks, superblock.freemap)
    for index in range(superblock.freemap_blocks):
        raw = read_block(superblock.freemap + index)
        for sector in range(SECTORS):
            try:
                disk.load_sector(index * SECTORS + sector, raw[sector * SECTOR : sector * SECTOR + SECTOR])
            except BadDisk as error:
                db = superblock.freemap + index
                report.violations.append(Violation("free map", "(free map)", db, str(error)))
    size = (superblock.nblocks + 7) // 8
    found = int.from_bytes(report.bits[:size], "little")
    said = int.from_bytes(memory[:size], "little")
    report.leaked = (said & ~found).bit_count()
    report.unmarked = (found & ~said).bit_count()
    report.free = size * 8 - found.bit_count()


def repair(report: Report) -> Iterator[tuple[int, bytes]]:
    """(sector, 512 bytes) to write, in this order: patches, the exact map, taint marks, then clean superblocks."""
    superblock = report.superblock
    for db, patched in report.patches.items():
        for sector in range(SECTORS):
            yield db * SECTORS + sector, patched[sector * SECTOR : sector * SECTOR + SECTOR]
    for index in range(superblock.freemap_blocks * SECTORS):
        at = index * BYTES_PER_SECTOR
        yield superblock.freemap * SECTORS + index, pack_freemap_sector(index, report.bits[at : at + BYTES_PER_SECTOR])
    for entry in report.catalogue.entries():
        flags = entry.flags & ~FLAG_TAINTED | (FLAG_TAINTED if entry.name in report.tainted else 0)
        if flags != entry.flags:
            report.catalogue.change(entry.name, flags=flags)
    yield from report.catalogue.take_dirty()[0]
    clean = superblock.renewed(clean=True, next_type=max(superblock.next_type, report.catalogue.next_type))
    yield (superblock.nblocks - 1) * SECTORS, clean.pack()
    yield 0, clean.pack()
