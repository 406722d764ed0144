// What it costs that two processes wake one another: no crossing between two processes can cost less.
//
// usage: pingpong ROUND_TRIPS
//
// Prints µs for a round trip over two eventfds, the median of ten measurements.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define MEASUREMENTS 10

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void add(int fd) {
    uint64_t one = 1;
    if (write(fd, &one, sizeof one) != sizeof one)
        fail("write");
}

static void await(int fd) {
    uint64_t count;
    if (read(fd, &count, sizeof count) != sizeof count)
        fail("read");
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    int trips = argc > 1 ? atoi(argv[1]) : 0;
    if (trips < 1) {
        fprintf(stderr, "usage: pingpong ROUND_TRIPS\n");
        return 2;
    }
    int there = eventfd(0, 0), back = eventfd(0, 0);
    if (there < 0 || back < 0)
        fail("eventfd");
    pid_t other = fork();
    if (other < 0)
        fail("fork");
    if (!other) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
            await(there);
            add(back);
        }
    }
    double took[MEASUREMENTS];
    for (int i = 0; i < MEASUREMENTS; i++) {
        double began = now();
        for (int trip = 0; trip < trips; trip++) {
            add(there);
            await(back);
        }
        took[i] = (now() - began) / trips;
    }
    kill(other, SIGKILL);
    qsort(took, MEASUREMENTS, sizeof *took, ascending);
    printf("%.3f\n", took[MEASUREMENTS / 2]);
    return 0;
}
