"""Frames of HTTP/2 counted before anything else looks at them: what a peer may send for nothing, and how fast.

A frame costs its sender nine bytes and its reader some work. Most kinds are needed now and then, so each has a bucket
of tokens: a burst at once, and a rate for ever. The numbers are far above what browsers, gRPC and load generators send.

Frames that nghttp2 would silently leave out are found here as well: what comes on streams that their peer itself has
closed or passed over (RFC 9113 5.1, 5.1.1).
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from lb._fastpath.c.nghttp2 cimport nghttp2_session

cdef enum:
    PREFACE_SIZE = 24
    FRAME_HEAD = 9
    MAX_CONTINUATIONS = 8  # frames behind one HEADERS
    MAX_HEADER_BLOCK = 65536  # compressed bytes
    RESET_IDS = 64
    HEADERS_PER_TURN = 100  # of one connection before others get their turn

cdef enum:  # what is counted
    METER_SETTINGS = 0
    METER_PING
    METER_PRIORITY  # PRIORITY and PRIORITY_UPDATE
    METER_WINDOW
    METER_EMPTY  # DATA without a byte that does not end its stream
    METER_OTHER  # unknown kinds and GOAWAY
    METER_RESET  # streams the peer has cancelled
    METER_FAULT  # streams that were reset because of what the peer has sent on them
    METER_REFUSED  # streams over the limit: for a moment nobody can know it, and then everybody does
    METER_COUNT

cdef struct meter:
    nghttp2_session* ng  # NULL: streams are not looked at
    int32_t reset_ids[RESET_IDS]  # streams that we have reset: what still comes on them is no fault
    uint32_t reset_count
    int32_t newest_id  # of the streams that the peer has begun
    int32_t block_id  # whose header block came last
    bint reset_seen  # among the bytes that nghttp2 has not had yet
    uint8_t begun[FRAME_HEAD]  # a frame's head that reads have cut: nghttp2 gets heads whole
    uint8_t begun_size
    bint padding_due  # the current frame's first byte says how much padding it has
    bint ends_stream
    uint8_t continuations
    bint in_block  # between HEADERS and its END_HEADERS
    uint32_t left  # of the current frame's payload
    uint32_t block_bytes
    int64_t tokens[METER_COUNT]  # thousandths
    int64_t refilled_ms[METER_COUNT]

cdef void meter_init(meter* m, nghttp2_session* ng, size_t preface, int64_t now_ms) noexcept nogil
cdef bint meter_charge(meter* m, int kind, int64_t now_ms) noexcept nogil
cdef int meter_reason(int kind) noexcept nogil
cdef void meter_data_sent(meter* m, size_t size, bint crumb) noexcept nogil
cdef void meter_stream_begun(meter* m) noexcept nogil
cdef size_t meter_frames(meter* m, const char** p, size_t* n, int64_t now_ms, int* heads_left,
        int* reason, uint32_t* code) noexcept nogil
cdef void meter_note_reset(meter* m, int32_t stream_id) noexcept nogil
