// Small-file operations, timed in C so that the client costs next to nothing.
//
// usage: fileops DIRECTORY COUNT PER_DIRECTORY SIZE
//
// Makes COUNT files of SIZE bytes, PER_DIRECTORY in a directory, then stats, reads, overwrites and removes them, in that
// order and each pass over all of them. Every file has bytes of its own, and reading checks them: a file system that
// answers fast but wrong ends the run with status 1. Prints one line of JSON: nanoseconds per file of each pass.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char path[4096];
static const char *root;
static long count, per_directory, size;
static unsigned char *wanted, *got;

static void fail(const char *what) {
    fprintf(stderr, "fileops: %s %s: %s\n", what, path, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void name_directory(long d) { snprintf(path, sizeof path, "%s/d%ld", root, d); }
static void name_file(long i) { snprintf(path, sizeof path, "%s/d%ld/file%ld", root, i / per_directory, i); }

static void fill(long i, int version) {
    unsigned x = (unsigned)i * 2654435761u + version;
    for (long k = 0; k < size; k++) { x = x * 1103515245u + 12345u; wanted[k] = x >> 16; }
}

static void write_file(long i, int flags, int version) {
    fill(i, version);
    int fd = open(path, flags, 0644);
    if (fd < 0) fail("open");
    if (write(fd, wanted, size) != size) fail("write");
    if (close(fd)) fail("close");
}

static void create(long i) { write_file(i, O_WRONLY | O_CREAT | O_EXCL, 0); }
static void overwrite(long i) { write_file(i, O_WRONLY, 1); }
static void remove_one(long i) { (void)i; if (unlink(path)) fail("unlink"); }

static void look(long i) {
    struct stat s;
    (void)i;
    if (stat(path, &s)) fail("stat");
    if (s.st_size != size) { errno = EIO; fail("size of"); }
}

static void read_one(long i) {
    fill(i, 0);
    int fd = open(path, O_RDONLY);
    if (fd < 0) fail("open");
    if (read(fd, got, size + 1) != size) fail("read");
    if (memcmp(wanted, got, size)) { errno = EIO; fail("content of"); }
    if (close(fd)) fail("close");
}

int main(int c, char **v) {
    static const struct { const char *name; void (*one)(long); } passes[] = {
        {"create", create}, {"stat", look}, {"read", read_one}, {"overwrite", overwrite}, {"delete", remove_one},
    };
    enum { PASSES = sizeof passes / sizeof *passes };
    if (c != 5) return fprintf(stderr, "usage: fileops DIRECTORY COUNT PER_DIRECTORY SIZE\n"), 2;
    root = v[1]; count = atol(v[2]); per_directory = atol(v[3]); size = atol(v[4]);
    if (count < 1 || per_directory < 1 || size < 1) return fprintf(stderr, "fileops: counts must be positive\n"), 2;
    wanted = malloc(size); got = malloc(size + 1);
    for (long d = 0; d * per_directory < count; d++) { name_directory(d); if (mkdir(path, 0755)) fail("mkdir"); }
    for (int p = 0; p < PASSES; p++) {
        double began = now();
        for (long i = 0; i < count; i++) { name_file(i); passes[p].one(i); }
        printf("%s\"%s\": %.0f", p ? ", " : "{", passes[p].name, (now() - began) / count);
    }
    printf("}\n");
    for (long d = 0; d * per_directory < count; d++) { name_directory(d); if (rmdir(path)) fail("rmdir"); }
    return 0;
}
