/* What the clients have in common: the clock, and waiting to be told to begin. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* What was written so far is read by then. */
static void wait_for_byte(void)
{
    char byte;
    fflush(stdout);
    if (read(0, &byte, 1) < 0)
        perror("stdin");
}
