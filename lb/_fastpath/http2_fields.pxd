"""Header blocks of HTTP/2 and the heads of message.pxd: one made into the other, in both directions.

What comes in by HTTP/2 may go on as HTTP/1, so it has to satisfy the rules of both (RFC 9113 8.2, 8.3 and 10.3): names
are lower-case tokens, values hold no controls, nothing speaks of this connection, there is one authority. Extended
CONNECT (RFC 8441) becomes the neutral form of a websocket handshake, `GET` with `Upgrade: websocket`, and back.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from lb._fastpath.c.nghttp2 cimport nghttp2_nv
from lb._fastpath.memory cimport memory, page
from lb._fastpath.message cimport EXTRA_FIELDS, MAX_FIELDS, head
from lb._fastpath.table cimport listener_view

cdef enum:
    MALFORMED = -1  # results besides 0 and reasons: the stream ends with PROTOCOL_ERROR
    MAX_PAIRS = MAX_FIELDS + EXTRA_FIELDS + 8
    ACCEPT_SIZE = 28  # of a Sec-WebSocket-Accept

cdef struct field_block:
    # The fields of one header block, in the order in which they were decoded.
    page* bytes
    uint32_t count
    uint32_t list_bytes  # as RFC 9113 6.5.2 counts: 32 for each field
    int refused  # reason, when it is too large

cdef struct pairs:
    # Fields as nghttp2 takes them, and the texts that are not in the head.
    nghttp2_nv list[MAX_PAIRS]
    size_t count
    size_t bytes
    char length[24]
    char status[4]

cdef void block_begin(field_block* b, memory* m) noexcept nogil
cdef bint block_add(field_block* b, memory* m, const char* name, size_t name_size, const char* value,
        size_t value_size, int max_bytes, int max_fields) noexcept nogil
cdef void block_end(field_block* b, memory* m) noexcept nogil

# In: 0, a reason, or MALFORMED. The head points into the block and into `work` (SCRATCH_BYTES).
cdef int request_from_block(const field_block* b, head* h, const listener_view* view, char* work, uint64_t* random,
        bint* websocket) noexcept nogil
cdef int response_from_block(const field_block* b, head* h) noexcept nogil
cdef int trailers_from_block(const field_block* b, head* h) noexcept nogil

# Out
cdef void response_pairs(pairs* out, const head* h) noexcept nogil
cdef void request_pairs(pairs* out, const head* h, bint secure) noexcept nogil
cdef void trailer_pairs(pairs* out, const head* h) noexcept nogil
cdef bint websocket_accept(const head* h, char* out) noexcept nogil
cdef bint asks_websocket(const head* h) noexcept nogil
