/* The bytes of bulk: what comes out at the other end is compared with them. The period is prime, so that a block that is
 * lost, repeated or out of order is seen.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { PATTERN_PERIOD = 65521, PATTERN_MOST = 262144 };

static unsigned char pattern[PATTERN_PERIOD + PATTERN_MOST];

static void make_pattern(void)
{
    uint32_t x = 2463534242u;
    for (size_t i = 0; i < sizeof pattern; i++) {
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        pattern[i] = i < PATTERN_PERIOD ? (unsigned char)x : pattern[i - PATTERN_PERIOD];
    }
}

/* PATTERN_MOST bytes from this place on. */
static const unsigned char *pattern_at(uint64_t place)
{
    return pattern + place % PATTERN_PERIOD;
}
