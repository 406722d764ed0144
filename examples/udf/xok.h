/* UDFs in C: compile with `clang -target bpf -O2 -c`, see docs/udf.md.
 *
 * A program is one function, XOK_PROGRAM(owns) { ...; return 0; }, in a section of its name.  It is given `meta` (the
 * instance), `length` (its bytes), `part`, `r4` (guard: the tree's capability; acl, method: the caller's) and `r5`
 * (refs, refcnt: the instance's disk address; acl, method: the time in ns).
 *
 * It has no data and calls nothing but the helpers; other functions are inlined by XOK_INLINE.  Return 0, except from
 * `acl`, `method` and `size`, whose result counts.
 */
#ifndef XOK_H
#define XOK_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

#define XOK_UNUSED __attribute__((unused))
#define XOK_PROGRAM(name) \
    __attribute__((section(#name), used)) u64 xok_##name(                                                    \
        XOK_UNUSED const void *meta, XOK_UNUSED u64 length, XOK_UNUSED u64 part, XOK_UNUSED u64 r4, XOK_UNUSED u64 r5)
#define XOK_INLINE static inline __attribute__((always_inline))

#define XOK_SECTOR 512

/* What `acl` and `method` are shown besides META, which is the first argument. */
#define XOK_NEW ((const void *)0x300000000ULL)
#define XOK_CONTEXT ((const void *)0x400000000ULL)

/* A disk address: device, block, byte. */
#define XOK_DA_DEVICE (0xffULL << 56)

/* Helpers.  owns: (block, count, type id); refcnt: (da, count, 0); access: (offset, bytes, 0); uses, whose `part` is a
 * sector: (offset, bytes, partitions that read them). */
static void (*const xok_emit)(u64 block, u64 count, u64 type) = (void *)1;
/* refs */
static void (*const xok_emit_ref)(u64 da) = (void *)2;
/* guard: rights 1 read, 2 write */
static void (*const xok_emit_cap)(u64 capability, u64 rights) = (void *)3;

#endif
