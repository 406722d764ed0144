"""A hostile libOS that leaves things behind, or takes more than its share: what others see of it."""

from __future__ import annotations

from tests.hostile.attack import battlefield


def test_a_block_without_contents_does_not_keep_the_disk_from_stopping() -> None:
    """START-5: an allocation that its owner never filled, below a root that is durable."""
    with battlefield() as field:
        results = field.attack(
            """
def main(env, argv):
    toy = Own("forgetful", env)
    toy.durable(toy.root)
    first, new = toy.free_block(700), toy.sector(toy.root, 0)
    new.pointers.append((first, 700, TYPE_XN_DB, 0))
    toy.transact(toy.modify(toy.root, 0, new, OpKind.ALLOC, db=first, count=700, type=TYPE_XN_DB))
    attempt("written", toy.writeback, toy.root)
    return report()
"""
        )
        assert results["written"] == "Tainted"
        field.xok("down")
        assert field.xok("check", field.xok.image).endswith("clean\n")
        field.xok.up()  # which a disk that is not clean would have to be reconstructed for
        assert "reconstructing" not in field.xok.log()
