"""Counters and latency histograms: written by one reactor each, summed by the control plane when somebody looks.

A writer only stores (no atomic read-modify-write): each block has one writer, and readers accept a sum that is a
moment old. Blocks of routes and upstreams are made at their first use, so that 100,000 idle routes cost a pointer
each.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport LB_REASON_COUNT, lb_prefetch, lb_put_u64

cdef enum:
    BUCKETS = 18
    MAX_REASONS = 128
    # Blocks are found through chunks of this many pointers, so that the space of ids grows without moving.
    STATS_CHUNK = 1024
    STATS_CHUNKS = 1024

cdef extern from *:
    """ /* Upper bounds in microseconds; the last bucket is open. OpenTelemetry's advised bounds and finer ones below.
    */ static const unsigned lb_bounds_us[17] = {100, 250, 500, 1000, 2500, 5000, 10000, 25000, 50000, 75000, 100000,
    250000,
                                              500000, 1000000, 2500000, 5000000, 10000000};
    """
    const unsigned int lb_bounds_us[17]

cdef struct traffic:
    # What every exchange writes stands in the first cache line; it then touches one bucket.
    uint64_t responses[5]  # By status class, 1xx first.
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t nanoseconds
    uint64_t buckets[BUCKETS]

cdef struct upstream_traffic:
    traffic base
    uint64_t attempts
    uint64_t retries
    uint64_t connects
    uint64_t connect_failures
    uint64_t reused

cdef struct listener_traffic:
    traffic base
    uint64_t accepted
    uint64_t rejected
    uint64_t requests
    uint64_t closed
    uint64_t tls_failed

cdef struct datagram_traffic:
    # Of a UDP listener, beside its listener_traffic, where sessions stand for connections.
    uint64_t datagrams_in
    uint64_t datagrams_out
    uint64_t evicted
    uint64_t dropped[MAX_REASONS]  # datagrams, either way

cdef struct carried_traffic:
    # Where a flow or a session is counted. Blocks never move; NULL: there was no memory, or it has not come so far.
    listener_traffic* listener
    traffic* route
    upstream_traffic* upstream

cdef struct grpc_traffic:
    # Of a route: gRPC statuses 0 to 16, and behind them calls that ended without any.
    uint64_t statuses[18]

cdef struct counters:
    # The process-wide counts of one reactor.
    uint64_t reasons[MAX_REASONS]
    uint64_t connections_opened
    uint64_t connections_closed
    uint64_t upstream_opened
    uint64_t upstream_closed
    uint64_t upstream_stolen
    uint64_t exchanges_started
    uint64_t exchanges_ended
    uint64_t log_dropped
    uint64_t accept_pauses
    uint64_t idle_closed_by_pressure
    uint64_t tls_handshakes
    uint64_t tls_resumed
    uint64_t tls_failed
    uint64_t tls_deferred
    uint64_t tls_by_kernel
    uint64_t tls_passed
    uint64_t turns
    uint64_t events

cdef struct stats_space:
    # The blocks lie side by side in a few large pieces: with 100,000 routes it is the page tables that cost.
    char* piece
    size_t piece_left
    void* pieces  # all of them, each beginning with a pointer to the one before
    # Blocks by id. The chunk pointers are set by the control plane before an id is used, the blocks by the reactor.
    void** chunks[STATS_CHUNKS]

cdef void* stats_new(stats_space* space, uint32_t id, size_t size) noexcept nogil
cdef void stats_release(stats_space* space) noexcept nogil

cdef inline void* stats_block(stats_space* space, uint32_t id, size_t size) noexcept nogil:
    """The block of `id`, zeroed at first use; NULL when memory is out."""
    cdef void* block = space.chunks[id // STATS_CHUNK][id % STATS_CHUNK]
    if block == NULL:
        return stats_new(space, id, size)
    return block

cdef inline void stats_prefetch(stats_space* space, uint32_t id) noexcept nogil:
    """Have the block at hand when the exchange ends."""
    cdef char* block = <char*>space.chunks[id // STATS_CHUNK][id % STATS_CHUNK]
    if block != NULL:
        lb_prefetch(block)
        lb_prefetch(block + 64)

cdef inline void bump(uint64_t* counter) noexcept nogil:
    lb_put_u64(counter, counter[0] + 1)

cdef inline void bump_by(uint64_t* counter, uint64_t amount) noexcept nogil:
    lb_put_u64(counter, counter[0] + amount)

cdef inline void observe(traffic* t, int status, uint64_t bytes_in, uint64_t bytes_out, int64_t ns) noexcept nogil:
    cdef int status_class = status // 100 - 1
    cdef int64_t us = ns // 1000
    cdef int i = 0
    if 0 <= status_class < 5:
        bump(&t.responses[status_class])
    bump_by(&t.bytes_in, bytes_in)
    bump_by(&t.bytes_out, bytes_out)
    while i < BUCKETS - 1 and us > <int64_t>lb_bounds_us[i]:
        i += 1
    bump(&t.buckets[i])
    bump_by(&t.nanoseconds, <uint64_t>ns)

cdef inline void count_in(const carried_traffic* t, uint64_t bytes) noexcept nogil:
    """From the client. Counted as they pass: what is carried may last for days, and is not to show up at its end."""
    if t.listener != NULL:
        bump_by(&t.listener.base.bytes_in, bytes)
    if t.route != NULL:
        bump_by(&t.route.bytes_in, bytes)
    if t.upstream != NULL:
        bump_by(&t.upstream.base.bytes_in, bytes)

cdef inline void count_out(const carried_traffic* t, uint64_t bytes) noexcept nogil:
    """To the client."""
    if t.listener != NULL:
        bump_by(&t.listener.base.bytes_out, bytes)
    if t.route != NULL:
        bump_by(&t.route.bytes_out, bytes)
    if t.upstream != NULL:
        bump_by(&t.upstream.base.bytes_out, bytes)

cdef inline void count_end(const carried_traffic* t, int64_t duration, int64_t first_byte_ns) noexcept nogil:
    """How long it took, and the endpoint's first byte; -1: none came."""
    if t.listener != NULL:
        observe(&t.listener.base, 0, 0, 0, duration)
    if t.route != NULL:
        observe(t.route, 0, 0, 0, duration)
    if t.upstream != NULL and first_byte_ns >= 0:
        observe(&t.upstream.base, 0, 0, 0, first_byte_ns)
