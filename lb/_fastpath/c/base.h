/* What Cython cannot say: atomics, constant tables, and the few C library pieces its own includes lack. */
#ifndef LB_BASE_H
#define LB_BASE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sock_diag.h>
#include <linux/tls.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Atomics, by name of what they order. Counters use the relaxed forms: they are only summed. */
#define lb_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define lb_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define lb_peek(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define lb_put(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define lb_add(p, v) __atomic_add_fetch((p), (v), __ATOMIC_RELAXED)
#define lb_add_ordered(p, v) __atomic_add_fetch((p), (v), __ATOMIC_SEQ_CST)
#define lb_swap(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
#define lb_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

static inline int lb_cas_ptr(void **p, void *expected, void *desired) {
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}
static inline int lb_cas_u64(uint64_t *p, uint64_t expected, uint64_t desired) {
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}
static inline int lb_cas_i64(int64_t *p, int64_t expected, int64_t desired) {
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
/* Locks are only ever tried: whoever finds one taken does something else (see upstream.pyx). */
static inline int lb_try_lock(int *lock) {
    return __atomic_load_n(lock, __ATOMIC_RELAXED) == 0 && __atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE) == 0;
}
static inline void lb_unlock(int *lock) { __atomic_store_n(lock, 0, __ATOMIC_RELEASE); }

#define lb_prefetch(p) __builtin_prefetch(p)

/* Zeroed memory that begins on a cache line, for what several threads write. */
static inline void *lb_line_alloc(size_t size) {
    void *p = NULL;
    size = (size + 63) & ~(size_t)63;
    if (posix_memalign(&p, 64, size)) return NULL;
    return memset(p, 0, size);
}

/* Zeroed memory on huge pages where it is large enough to matter: 100,000 small things on 4 KiB pages cost more in page
 * table walks than in anything else. free() gives it back. */
static inline void *lb_huge_alloc(size_t size) {
    void *p = NULL;
    if (size < 2097152) return calloc(1, size);
    size = (size + 2097151) & ~(size_t)2097151;
    if (posix_memalign(&p, 2097152, size)) return NULL;
    madvise(p, size, MADV_HUGEPAGE);
    memset(p, 0, size);
    return p;
}

static inline uint64_t lb_load64(const char *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

/* Byte classes of HTTP/1 (RFC 9110 5.6.2, 5.5; RFC 3986). Bits: */
#define LB_TOKEN 1   /* tchar */
#define LB_VALUE 2   /* VCHAR, obs-text, SP, HTAB */
#define LB_TARGET 4  /* printable ASCII without SP, `#`; what a request target may hold */
#define LB_UNRESERVED 16
#define LB_HEX 32
#define LB_DIGIT 64

static unsigned char lb_class[256];
static unsigned char lb_lower[256];
static signed char lb_hexval[256];

__attribute__((constructor)) static void lb_init_tables(void) {
    for (int c = 0; c < 256; c++) {
        unsigned char bits = 0;
        int alpha = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        int digit = c >= '0' && c <= '9';
        if (alpha || digit || (c && c < 128 && strchr("!#$%&'*+-.^_`|~", c))) bits |= LB_TOKEN;
        if (c == '\t' || (c >= 0x20 && c != 0x7f)) bits |= LB_VALUE;
        if (c > 0x20 && c < 0x7f && c != '#') bits |= LB_TARGET;
        if (alpha || digit || c == '-' || c == '.' || c == '_' || c == '~') bits |= LB_UNRESERVED;
        if (digit || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) bits |= LB_HEX;
        if (digit) bits |= LB_DIGIT;
        lb_class[c] = bits;
        lb_lower[c] = (c >= 'A' && c <= 'Z') ? c + 32 : c;
        lb_hexval[c] = digit ? c - '0' : (c >= 'a' && c <= 'f') ? c - 'a' + 10 : (c >= 'A' && c <= 'F') ? c - 'A' + 10 : -1;
    }
}

/* Whether a descriptor takes bytes within so many milliseconds. */
static inline int lb_writable(int fd, int timeout_ms) {
    struct pollfd wanted = {.fd = fd, .events = POLLOUT};
    return poll(&wanted, 1, timeout_ms) > 0;
}

/* Length of the leading run of bytes a header value may hold, eight at a time: stops at controls but HTAB, and at DEL. */
static inline size_t lb_value_run(const char *p, size_t n) {
    size_t i = 0;
    const uint64_t ones = 0x0101010101010101ULL, high = 0x8080808080808080ULL;
    while (i + 8 <= n) {
        uint64_t w = lb_load64(p + i);
        uint64_t low = (w - ones * 0x20) & ~w & high;              /* bytes < 0x20 */
        uint64_t x = w ^ (ones * 0x7f);
        uint64_t del = (x - ones) & ~x & high;                     /* bytes == 0x7f */
        if (low | del) break;
        i += 8;
    }
    while (i < n && (lb_class[(unsigned char)p[i]] & LB_VALUE)) i++;
    return i;
}

static inline int lb_equal_nocase(const char *a, const char *lower, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (lb_lower[(unsigned char)a[i]] != (unsigned char)lower[i]) return 0;
    return 1;
}

/* FNV-1a with a final mix: the keys are the operator's own hostnames, so no keyed hash is needed. */
static inline uint64_t lb_hash(const char *p, size_t n) {
    uint64_t h = 0xcbf29ce484222325ULL;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 0x100000001b3ULL;
    h ^= h >> 32;
    h *= 0x9e3779b97f4a7c15ULL;
    return h ^ (h >> 29);
}

/* SipHash-1-3 (Aumasson and Bernstein) of whole words: who does not know the secret cannot choose what falls together. */
#define LB_ROTATE(x, n) (((x) << (n)) | ((x) >> (64 - (n))))
#define LB_SIP_ROUND                                                                             \
    (a += b, b = LB_ROTATE(b, 13) ^ a, a = LB_ROTATE(a, 32), c += d, d = LB_ROTATE(d, 16) ^ c,   \
     a += d, d = LB_ROTATE(d, 21) ^ a, c += b, b = LB_ROTATE(b, 17) ^ c, c = LB_ROTATE(c, 32))
static inline uint64_t lb_keyed_hash(const char *p, size_t n, uint64_t secret) {
    uint64_t other = secret * 0x9e3779b97f4a7c15ULL, end = (uint64_t)n << 56;
    uint64_t a = secret ^ 0x736f6d6570736575ULL, b = other ^ 0x646f72616e646f6dULL;
    uint64_t c = secret ^ 0x6c7967656e657261ULL, d = other ^ 0x7465646279746573ULL;
    for (size_t i = 0; i + 8 <= n; i += 8) {
        uint64_t word = lb_load64(p + i);
        d ^= word;
        LB_SIP_ROUND;
        a ^= word;
    }
    d ^= end;
    LB_SIP_ROUND;
    a ^= end;
    c ^= 0xff;
    LB_SIP_ROUND;
    LB_SIP_ROUND;
    LB_SIP_ROUND;
    return a ^ b ^ c ^ d;
}

/* A number as good as random for each number; each bit depends on all bits. */
#define LB_GOLDEN 0x9e3779b97f4a7c15ULL
static inline uint64_t lb_mix(uint64_t h) {
    h *= LB_GOLDEN;
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93ULL;
    return h ^ (h >> 32);
}

static inline uint64_t lb_random(uint64_t state[2]) { /* xoroshiro128+, Blackman and Vigna */
    uint64_t a = state[0], b = state[1], sum = a + b;
    b ^= a;
    state[0] = ((a << 24) | (a >> 40)) ^ b ^ (b << 16);
    state[1] = (b << 37) | (b >> 27);
    return sum;
}

#endif
