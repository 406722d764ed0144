# C types of classify.py's walk; the source is the same compiled and not.

cimport cython


@cython.locals(value="long long", index="long long")
cdef long long _field(const unsigned char[:] data, long long offset, long long width) except -2


@cython.locals(
    best="long long", at="long long", row="long long", depth="long long", here="long long", base="long long",
    value="long long", index="long long", operand="long long", verdict="long long", onward="long long",
    nodes=list, branches=list, bases=list, found=tuple,
)
cpdef long long walk(
    const unsigned char[:] data,
    dict table,
    long long count,
    long long[:] rows,
    long long[:] masks,
    long long[:] ops,
    long long[:] op_masks,
) except -1
