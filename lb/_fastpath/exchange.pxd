"""The life of one request and its response, from the parsed head to the log record.

    request head -> host -> route -> limits -> endpoint -> connection -> relay -> response head -> relay -> account

An exchange knows its client and its endpoint as connections of some codec and itself no bytes of any protocol. It
pins the table it started with until it ends, or until it becomes a tunnel: a tunnel may live for days and needs
nothing of the table any more.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lb._fastpath.endpoint cimport endpoint, upstream_live
from lb._fastpath.memory cimport page
from lb._fastpath.reactor cimport reactor, shared
from lb._fastpath.ring cimport TEXT_COUNT
from lb._fastpath.table cimport listener_view, route, table, upstream_view, vhost
from lb._fastpath.timers cimport timer
from lb._fastpath.tls cimport tls
from lb._fastpath.transport cimport conn, leg

cdef enum:
    REQUEST_ID_SIZE = 64

cdef enum:  # exchange.flags
    X_HAS_BODY = 1
    X_CHUNKED = 2
    X_IDEMPOTENT = 4
    X_HEAD = 8
    X_JSON = 16  # the client prefers JSON
    X_REQUEST_DONE = 32
    X_RESPONSE_STARTED = 64
    X_RESPONSE_DONE = 128
    X_TUNNEL = 256
    X_WAITING = 512  # for a place on its upstream
    X_CONNECTING = 1024
    X_FRESH = 2048  # a reused connection has failed: only a new one will do
    X_UPGRADE = 4096
    X_BODY_SENT = 8192  # some of the body is gone: nothing can be repeated
    X_CLIENT_SHUT = 16384  # the client has ended its half of the tunnel, and the endpoint is still to be told
    X_UPSTREAM_SHUT = 32768
    X_CLIENT_ENDED = 65536
    X_UPSTREAM_ENDED = 131072
    X_RESERVED = 262144  # holds a place on an endpoint
    X_GRPC = 1048576
    X_GRPC_DEADLINE = 2097152  # the request's deadline is the client's own, from grpc-timeout
    X_GRPC_WEB = 4194304
    X_GRPC_WEB_TEXT = 8388608  # the request's body is base64
    X_PACKED = 524288  # the request waits as pack_head made it, not as HTTP/1
    X_KEEPS_BODY = 16777216  # all that has come of the body is kept (replay.pxd)
    X_GRPC_WEB_TEXT_OUT = 33554432  # the response's body will be
    X_LEFT_OUT = 67108864  # by a connection that went away: on the next one it is to be among the first

cdef struct exchange:
    reactor* r
    leg* d  # the client; NULL: gone
    leg* u  # the endpoint; NULL: none yet, or none any more
    # what it was matched to; the table is pinned while `t` is set
    table* t
    listener_view* view
    vhost* host
    const route* rt
    upstream_view* up
    endpoint* ep
    upstream_live* live
    uint32_t flags
    uint32_t slot
    # the request as it goes upstream, and behind it the texts for the log
    page* request
    uint32_t request_size
    uint32_t text_at
    uint32_t text_sizes[TEXT_COUNT]
    # its body, while it may have to be sent again
    page* replay_first
    page* replay_last
    page* failed_attempts  # the text for the log; NULL: none has failed
    uint64_t tried
    uint64_t client_hash
    uint16_t attempts
    uint16_t retries_left
    uint16_t status
    uint8_t reason
    uint8_t version  # 10, 11 or 20
    uint8_t method
    char request_id[REQUEST_ID_SIZE]
    char client_text[46]
    uint8_t client_text_size
    uint16_t client_port
    bint routed
    uint32_t route_id
    uint64_t generation
    const tls* tls  # of the client's connection, which outlives the exchange; NULL: plain
    const conn* client  # as well
    const char* listener_name
    uint32_t listener_name_size
    uint8_t request_id_size
    signed char grpc_status  # GRPC_NONE: none was seen
    uint8_t grpc_type_size
    char grpc_type[64]  # content type of its response
    char grpc_upstream_type[64]  # gRPC-Web: the one that the endpoint sees
    uint32_t base64_bits  # gRPC-Web: what the quartet that is not complete yet holds
    uint8_t base64_count
    uint8_t base64_padding
    # amounts and times
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t upstream_bytes_in
    uint64_t upstream_bytes_out
    int64_t body_seen
    int64_t max_body
    int64_t started_ns
    int64_t queued_ns
    int64_t connect_ns
    int64_t first_byte_ns
    int64_t mark_ns  # start of what is being waited for
    int64_t progress_ms  # the last byte in either direction
    int64_t request_deadline_ms
    int64_t wait_deadline_ms  # queue, connect or response head
    int idle_timeout_ms
    timer timer
    exchange* next_waiting
    exchange* previous_waiting

cdef void exchange_install(shared* s) noexcept nogil
cdef void offer_place(reactor* r, upstream_live* live) noexcept nogil
