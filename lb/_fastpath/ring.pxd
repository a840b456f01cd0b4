"""Log records on their way to the writer thread: one single-producer, single-consumer byte ring a reactor.

A record is written whole or, when the writer is behind, dropped and counted; a reactor never waits for a disk.
"""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from lb._fastpath.c.sys cimport lb_load_u64, lb_store_u64

cdef struct log_record:
    # Fixed part; the texts follow in the order of their sizes.
    uint32_t size  # of the whole record, a multiple of 8; 0: go on at the ring's beginning
    int status
    int64_t end_realtime_ns
    int64_t duration_ns
    int64_t queue_ns
    int64_t connect_ns
    int64_t first_byte_ns  # -1: none came
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t generation
    uint16_t client_port
    uint16_t reason
    uint16_t attempts
    uint16_t version
    int grpc_status  # -1: none
    uint32_t text_sizes[25]

cdef enum:  # log_record.version, beside those of HTTP times ten
    VERSION_TCP = 0
    VERSION_UDP = 1

cdef enum:  # the texts, in order
    TEXT_CLIENT = 0
    TEXT_LISTENER
    TEXT_METHOD
    TEXT_HOST
    TEXT_TARGET
    TEXT_VIRTUAL_HOST
    TEXT_ROUTE
    TEXT_UPSTREAM
    TEXT_ENDPOINT
    TEXT_REQUEST_ID
    TEXT_USER_AGENT
    TEXT_REFERER
    TEXT_TLS_VERSION
    TEXT_TLS_CIPHER
    TEXT_SERVER_NAME
    TEXT_CLIENT_SUBJECT
    TEXT_CLIENT_VERIFY
    TEXT_CLIENT_SERIAL
    TEXT_CLIENT_FINGERPRINT
    TEXT_CLIENT_SAN
    TEXT_TLS_ERROR
    TEXT_ALPN
    TEXT_PROXY
    TEXT_PROXY_UNIQUE_ID
    TEXT_FAILED_ATTEMPTS
    TEXT_COUNT  # as many as log_record.text_sizes has

cdef struct ring:
    char* data
    uint64_t size  # a power of two
    uint64_t written  # producer; counts up for ever
    char padding[64]
    uint64_t taken  # consumer

cdef inline bint ring_half_full(ring* q) noexcept nogil:
    """What anybody can make lb write, without being served, ends here: the other half is for those who are."""
    return 2 * (q.written - lb_load_u64(&q.taken)) >= q.size

cdef inline char* ring_reserve(ring* q, uint64_t size) noexcept nogil:
    """Room for a record of `size` bytes (a multiple of 8) in one piece, or NULL. ring_commit makes it visible."""
    cdef uint64_t at = q.written & (q.size - 1)
    cdef uint64_t free_bytes = q.size - (q.written - lb_load_u64(&q.taken))
    if q.data == NULL:
        return NULL
    if at + size > q.size:  # would wrap: leave a mark and begin again
        if free_bytes < (q.size - at) + size:
            return NULL
        (<uint32_t*>(q.data + at))[0] = 0
        lb_store_u64(&q.written, q.written + (q.size - at))
        return q.data
    if free_bytes < size:
        return NULL
    return q.data + at

cdef inline void ring_commit(ring* q, uint64_t size) noexcept nogil:
    lb_store_u64(&q.written, q.written + size)
