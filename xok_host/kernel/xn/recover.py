"""Reconstruction after an unclean stop (thesis 4.5): walk every tree from its root and see what the disk really holds.

    report = reconstruct(read_block, nblocks)        reads only; `read_block(db)` gives 4096 bytes, or MediaError
    steps = reconstruction(nblocks)                  the same as a generator, for hosts that read many blocks at once
    report.mod_refcnt(da, delta, writes)             mend a count that was found wrong
    for step in repair(report): …                    what to write so that the disk starts again

RECOVER-1  The free map that comes out is exact: in use is what XN itself, the catalogue and the trees use.
RECOVER-2  A count above the number of references is benign (ORDER-5 makes crashes err on that side): it is reported,
           and the libFS's patch program repairs it (`patching`).  Anything else that is wrong taints the root, which
           cannot be mounted then.
RECOVER-3  Nothing that the disk says is trusted: blocks may be owned twice, pointers may lead anywhere, UDFs may fault.
RECOVER-4  Of each tree the log keeps LOG_LIMIT errors, and the number of the others.
RECOVER-5  What reboot UDFs report as never written (`walk`, WALK-4) holds zeros before the disk is clean;
           while a log cannot be read or asked, the disk is not made clean.
RECOVER-6  The disk's own map never shows too little (FORMAT-2), so a walk that takes too long need not be ended before
           the disk is used, if there are no logs and nothing has been found wrong (`may_start`): `as_it_is` makes it
           clean.  Until a walk is ended the superblock says that the map may show too much.
RECOVER-7  A repair may write a map that is right only with its taint marks, and a patched tree block by block.  So
           before it writes anything the superblocks say that the next start has to walk, and its last write ends that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from xok_host.abi.calls import ErrorKind, FoundError
from xok_host.abi.errors import BadDisk, MediaError, NotClean, NotFound
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_FIRST_LIBFS, da_block
from xok_host.kernel.xn import privileged
from xok_host.kernel.xn.catalogue import FLAG_TAINTED, Catalogue
from xok_host.kernel.xn.format import BYTES_PER_SECTOR, Superblock, layout, newest, pack_freemap_sector, reserve
from xok_host.kernel.xn.freemap import FreeMap
from xok_host.kernel.xn.types import XnType
from xok_host.kernel.xn.walk import WALK_BATCH, Answers, Place, Steps, Walk, answered

ReadBlock = Callable[[int], bytes]

LOG_LIMIT = 1024
"""Errors of each tree that are kept."""
FREE_MAP = "(free map)"
"""Stands in the log where others have a root's name."""


@dataclass(slots=True, frozen=True)
class Violation:
    """Something that must not be: `kind` is a word, `root` the tree, `db` the block where it was seen."""

    kind: str
    root: str
    db: int
    detail: str
    error: FoundError

    @property
    def da(self) -> int:
        """Of the element, if it is about one."""
        return self.error.da

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
    said: int = 0
    """The map that the disk holds, as one number."""
    whole: bool = False
    """Everything was walked: what is said of leaks, counts and free blocks holds."""
    violations: list[Violation] = field(default_factory=list)
    """At most LOG_LIMIT of each tree (RECOVER-4)."""
    over_counts: list[tuple[str, int, int, int]] = field(default_factory=list)
    """(root, da on device 1, count, references): benign.  At most LOG_LIMIT of each tree."""
    totals: dict[str, list[int]] = field(default_factory=dict)
    """Root → [violations, over-counts], those that are not in the log included."""
    leaked: int = 0
    """Blocks that the disk's map had in use without need."""
    unmarked: int = 0
    """Blocks in use that the disk's map showed as free."""
    blocks: int = 0
    """In use by trees, roots and types."""
    expected: int = 0
    """What `blocks` will be at the end, as far as the disk's own map tells."""
    walking: str = ""
    """The tree that is being walked."""
    free: int = 0
    trees: dict[str, int] = field(default_factory=dict)
    """Blocks of each root's tree."""
    metadata: dict[int, Place] = field(default_factory=dict)
    """The metadata blocks of all trees."""
    unwritten: list[int] = field(default_factory=list)
    """Blocks that a tree owns and its logs report as never written: `repair` fills them with zeros."""
    logs: bool = True
    """There may be logs; False as soon as the types are known and none has a `reboot` program."""
    unheard: list[int] = field(default_factory=list)
    """Logs of a disk that is not clean that cannot be read or asked: nobody knows what was never written."""
    watched: bytearray = field(default_factory=bytearray)
    """Map of the blocks of the one tree that was watched."""
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
        return {root for root, (violations, _) in self.totals.items() if violations and root != FREE_MAP}

    @property
    def may_start(self) -> bool:
        """Whether the disk may be used as it is, as far as the walk has come (RECOVER-6)."""
        marked = any(entry.flags & FLAG_TAINTED for entry in self.catalogue.entries())
        if self.logs or marked or self.violations or self.unheard or self.patches or self.superblock.walk:
            return False
        return not int.from_bytes(self.bits[: (self.superblock.nblocks + 7) // 8], "little") & ~self.said

    def reason(self, root: str) -> str:
        """Why it is tainted, in a line; empty if it is not."""
        first = next((known.detail for known in self.violations if known.root == root), "")
        number = self.totals.get(root, (0, 0))[0]
        return f"{first}, and {number - 1} errors more" if number > 1 else first

    def log(self, root: str) -> list[FoundError]:
        """The errors of one tree that are kept: violations first."""
        found = [known.error for known in self.violations if known.root == root]
        for name, da, count, references in self.over_counts:
            if name == root:
                db = da_block(da)
                found.append(FoundError(ErrorKind.OVER_COUNT, db, db, da, count, references))
        return found

    def add(
        self,
        kind: ErrorKind,
        root: str,
        db: int,
        detail: str,
        *,
        parent: int = 0,
        da: int = 0,
        count: int = 0,
        references: int = 0,
        part: int = 0,
    ) -> None:
        """A violation; `detail` says of the block what is wrong with it."""
        totals = self.totals.setdefault(root, [0, 0])
        totals[0] += 1
        if totals[0] <= LOG_LIMIT:
            word = FoundError(kind, db, parent, da, count, references, part)
            self.violations.append(Violation(kind.word, root, db, detail, word))

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
        self.totals[root][count > references] -= 1
        self.over_counts = [known for known in self.over_counts if known[1] != da]
        self.violations = [known for known in self.violations if (known.kind, known.da) != ("under-count", da)]
        self.judge(da, root, count + delta, references, xtype)

    def judge(self, da: int, root: str, count: int, references: int, xtype: XnType) -> None:
        """RECOVER-2, for one element."""
        if count == references:
            return
        totals = self.totals.setdefault(root, [0, 0])
        if sum(totals) < 2 * LOG_LIMIT:
            self.wrong_counts[da] = (root, count, references, xtype)
        if count < references:
            detail = f"element {da:#x} has {references} references and counts {count}"
            db = da_block(da)
            self.add(ErrorKind.UNDER_COUNT, root, db, detail, parent=db, da=da, count=count, references=references)
            return
        totals[1] += 1
        if totals[1] <= LOG_LIMIT:
            self.over_counts.append((root, da, count, references))


def read_catalogue(read_block: ReadBlock, nblocks: int) -> tuple[Superblock, Catalogue]:
    """Superblock and catalogue of a disk.  Raises BadDisk when either is lost."""

    def read(wanted: list[int]) -> Answers:
        return [read_block(db) for db in wanted]

    found: tuple[Superblock, Catalogue] = answered(_catalogue(nblocks), read, lambda: None)
    return found


def reconstruct(read_block: ReadBlock, nblocks: int) -> Report:
    """Read the whole of what the catalogue leads to.  Raises BadDisk when the superblock or catalogue is lost."""

    def read(wanted: list[int]) -> Answers:
        out: list[bytes | MediaError] = []
        for db in wanted:
            try:
                out.append(read_block(db))
            except MediaError as error:
                out.append(error)
            except OSError as error:
                out.append(MediaError(str(error)))
        return out

    report: Report = answered(reconstruction(nblocks), read, lambda: None)
    report.read = read_block
    return report


def reconstruction(
    nblocks: int,
    *,
    watch: str = "",
    patches: Mapping[int, bytes] | None = None,
    began: Callable[[Report], None] = lambda report: None,
) -> Steps:
    """The steps of `walk` for a whole disk, XN's own structures included; gives the Report.

    `watch`: the tree whose blocks `report.watched` shows.  `patches`: what metadata blocks shall be taken to hold.
    `began` is given the report before the trees are walked."""
    superblock, catalogue = yield from _catalogue(nblocks)
    bits = bytearray(superblock.freemap_blocks * SECTORS * BYTES_PER_SECTOR)
    reserve(bits, superblock)
    report = Report(superblock, catalogue, bits, superblock.clean)
    if watch:
        report.watched = bytearray(len(bits))
    report.patches = dict(patches or {})
    said = report.said = yield from _map_of_the_disk(report)
    report.expected = max(0, said.bit_count() - int.from_bytes(bits[: (nblocks + 7) // 8], "little").bit_count())
    began(report)
    yield from Walk(report, report.patches, watch).steps()
    size = (nblocks + 7) // 8
    found = int.from_bytes(bits[:size], "little")
    report.leaked = (said & ~found).bit_count()
    report.unmarked = (found & ~said).bit_count()
    report.free = size * 8 - found.bit_count()
    report.whole = True
    return report


def _catalogue(nblocks: int) -> Steps:
    first, last = yield [0, nblocks - 1]
    if isinstance(first, MediaError) and isinstance(last, MediaError):
        raise first
    superblock = newest(*(bytes(BLOCK) if isinstance(raw, MediaError) else raw for raw in (first, last)))
    expected = layout(nblocks, bytes(16), TYPE_FIRST_LIBFS)
    if superblock.nblocks != nblocks or superblock.first != expected.first:
        raise BadDisk(f"it was formatted with {superblock.nblocks} blocks and has {nblocks}")
    catalogue = Catalogue(superblock)
    blocks = yield list(range(superblock.catalogue, superblock.catalogue + superblock.catalogue_blocks))
    for index, raw in enumerate(blocks):
        if isinstance(raw, MediaError):
            raise raw
        for sector in range(SECTORS):
            catalogue.load_sector(index * SECTORS + sector, raw[sector * SECTOR : sector * SECTOR + SECTOR])
    return superblock, catalogue


def _map_of_the_disk(report: Report) -> Steps:
    """The disk's own map as one integer."""
    superblock = report.superblock
    memory = memoryview(bytearray((superblock.nblocks + BLOCK * 8 - 1) // (BLOCK * 8) * BLOCK))
    disk = FreeMap(memory, superblock.nblocks, superblock.freemap)
    for at in range(0, superblock.freemap_blocks, WALK_BATCH):
        wanted = range(at, min(at + WALK_BATCH, superblock.freemap_blocks))
        blocks = yield [superblock.freemap + index for index in wanted]
        for index, raw in zip(wanted, blocks, strict=True):
            db = superblock.freemap + index
            if isinstance(raw, MediaError):
                report.add(ErrorKind.FREE_MAP, FREE_MAP, db, str(raw))
                continue
            for sector in range(SECTORS):
                try:
                    disk.load_sector(index * SECTORS + sector, raw[sector * SECTOR : sector * SECTOR + SECTOR])
                except BadDisk as error:
                    report.add(ErrorKind.FREE_MAP, FREE_MAP, db, str(error))
    return int.from_bytes(memory[: (superblock.nblocks + 7) // 8], "little")


def repair(report: Report) -> list[dict[int, bytes]]:
    """Sectors by number.  Each step must be durable before the next: superblocks that demand a walk; zeros, patches,
    the exact map and taint marks; clean superblocks.

    Raises MediaError if it is unknown what was never written (RECOVER-5)."""
    if not report.whole:
        raise ValueError("a map of half a walk would free what is in use")
    if report.unheard:
        raise MediaError(f"log block {report.unheard[0]} cannot be read or asked what was never written")
    superblock = report.superblock
    demand = replace(superblock.renewed(clean=False), walk=True)
    report.superblock = demand
    rest: dict[int, bytes] = {}
    for db in report.unwritten:
        for sector in range(SECTORS):
            rest[db * SECTORS + sector] = bytes(SECTOR)
    for db, patched in report.patches.items():
        for sector in range(SECTORS):
            rest[db * SECTORS + sector] = patched[sector * SECTOR : sector * SECTOR + SECTOR]
    for index in range(superblock.freemap_blocks * SECTORS):
        at = index * BYTES_PER_SECTOR
        bits = report.bits[at : at + BYTES_PER_SECTOR]
        rest[superblock.freemap * SECTORS + index] = pack_freemap_sector(index, bits)
    for entry in report.catalogue.entries():
        flags = entry.flags & ~FLAG_TAINTED | (FLAG_TAINTED if entry.name in report.tainted else 0)
        if flags != entry.flags:
            report.catalogue.change(entry.name, flags=flags)
    rest.update(report.catalogue.take_dirty()[0])
    return [_superblocks(demand), rest, _clean(report, surplus=False)]


def as_it_is(report: Report) -> dict[int, bytes]:
    """What `repair` would write if the walk were not ended: superblocks alone (RECOVER-6).  Raises NotClean unless the
    disk `may_start`."""
    if not report.may_start:
        raise NotClean("the trees must be walked before the disk is used")
    return _clean(report, surplus=True)


def _clean(report: Report, *, surplus: bool) -> dict[int, bytes]:
    superblock = report.superblock
    next_type = max(superblock.next_type, report.catalogue.next_type)
    return _superblocks(replace(superblock.renewed(clean=True, next_type=next_type), surplus=surplus, walk=False))


def _superblocks(superblock: Superblock) -> dict[int, bytes]:
    raw = superblock.pack()
    return {(superblock.nblocks - 1) * SECTORS: raw, 0: raw}
