"""Flows: a client's connection and one to an endpoint, whose bytes are carried as they come.

    let in -> upstream -> endpoint -> connect -> carry both ways -> end of each half -> account

What is read goes straight to the other side; what that does not take waits in pages and stops the reading. The end of
a half is passed on behind its last byte, a reset as a reset. A connect that fails moves on to another endpoint before
a byte of the client has been read. A flow pins its table only until it is connected: it may live for days.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lb._fastpath.counters cimport carried_traffic
from lb._fastpath.endpoint cimport endpoint, upstream_live
from lb._fastpath.memory cimport page
from lb._fastpath.reactor cimport RANDOM_ID_BYTES, reactor, shared
from lb._fastpath.table cimport table, upstream_view
from lb._fastpath.transport cimport conn, connect_calls

cdef enum:
    # So many reads of BULK_LEAST and more, without one of less than BULK_FEW between them, and bytes are spliced. (What
    # comes at once is read in full pages and a rest.) So many splices in a row of less than BULK_LEAST more, and they
    # are copied again.
    BULK_AFTER = 4
    BULK_FEW = 8192
    BULK_PATIENCE = 4
    BULK_LEAST = 32768
    BULK_NEVER = 255

cdef enum:
    RESETS_PER_TURN = 128  # of an endpoint's flows: some 2 ms

cdef enum:  # flow.flags
    FLOW_RESERVED = 1  # holds a place on its endpoint
    FLOW_CONNECTED = 2
    FLOW_CLIENT_ENDED = 4  # has ended its half, and all of it has been read
    FLOW_ENDPOINT_ENDED = 8
    FLOW_CLIENT_SHUT = 16  # the end of the other half has been passed on to it
    FLOW_ENDPOINT_SHUT = 32
    FLOW_CLIENT_RESET = 64  # has gone without an end; what it sent before is still on its way
    FLOW_ENDPOINT_RESET = 128

cdef struct flow:
    reactor* r
    conn* d  # the client
    conn* u  # the endpoint; NULL: none yet
    const connect_calls* told
    # what it was matched to; the table is pinned while `t` is set
    table* t
    upstream_view* up
    endpoint* ep
    upstream_live* live
    page* failed_attempts  # the text for the log; NULL: none has failed
    const char* route_name  # outlives the table
    uint32_t route_name_size
    uint32_t route_id
    uint32_t flags
    uint16_t attempts
    uint16_t retries_left
    uint16_t reason  # of the last attempt's failure, then of the end
    uint64_t tried
    uint64_t client_hash
    uint64_t generation
    # counters, which never move; NULL: there was no memory for them
    carried_traffic stats
    # amounts and times
    uint64_t bytes_in
    uint64_t bytes_out
    int64_t started_ns
    int64_t mark_ns  # start of what is being waited for
    int64_t connect_ns
    int64_t first_byte_ns  # of the endpoint; -1: none came
    int64_t progress_ms  # the last byte in either direction
    int64_t connect_deadline_ms
    int64_t drain_deadline_ms  # its endpoint has been removed; 0: it has not
    uint8_t unique_id_size
    char unique_id[RANDOM_ID_BYTES]  # which its endpoint is told by a PROXY header
    uint8_t client_bulk  # how far it is from being spliced, and from being copied again
    uint8_t endpoint_bulk
    int idle_timeout_ms
    int half_closed_timeout_ms
    int drain_timeout_ms  # of its listener when it began; whoever removes its endpoint may give another

cdef void stream_install(shared* s) noexcept nogil
cdef void flows_drain(reactor* r, endpoint* ep) noexcept nogil
cdef void flows_stay(reactor* r, endpoint* ep) noexcept nogil
cdef void flows_begin_reset(reactor* r, endpoint* ep) noexcept nogil
cdef bint flows_reset(reactor* r, endpoint* ep) noexcept nogil
cdef void flow_end(conn* client, int reason) noexcept nogil
cdef const flow* flow_of(const conn* c) noexcept nogil
