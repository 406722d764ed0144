/* A sector with eight inodes and eight names: what tests/udf/test_udf_derive.py declares, written by hand. */
#include "xok.h"

#define DATA 1

struct inode {
    u32 nlink;
    u32 size;
    u64 block;
};

struct name {
    u64 inode; /* disk address */
    char text[24];
};

struct sector {
    struct inode inodes[8];
    struct name names[8];
};

XOK_INLINE const struct sector *sector_of(const void *meta, u64 part)
{
    return (const struct sector *)((const u8 *)meta + part * XOK_SECTOR);
}

XOK_PROGRAM(owns)
{
    const struct sector *sector = sector_of(meta, part);
    for (int i = 0; i < 8; i++)
        if (sector->inodes[i].block)
            xok_emit(sector->inodes[i].block, 1, DATA);
    return 0;
}

XOK_PROGRAM(refs)
{
    const struct sector *sector = sector_of(meta, part);
    for (int i = 0; i < 8; i++)
        if (sector->names[i].inode)
            xok_emit_ref(sector->names[i].inode);
    return 0;
}

XOK_PROGRAM(refcnt)
{
    const struct sector *sector = sector_of(meta, part);
    for (int i = 0; i < 8; i++)
        if (sector->inodes[i].nlink)
            xok_emit(r5 + part * XOK_SECTOR + i * sizeof(struct inode), sector->inodes[i].nlink, 0);
    return 0;
}

XOK_PROGRAM(guard)
{
    xok_emit_cap(r4, 3);
    return 0;
}
