"""The buckets of http2_meter.pxd."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from lb._fastpath.c.nghttp2 cimport (
    NGHTTP2_CONTINUATION,
    NGHTTP2_DATA,
    NGHTTP2_ENHANCE_YOUR_CALM,
    NGHTTP2_FLAG_END_HEADERS,
    NGHTTP2_FLAG_END_STREAM,
    NGHTTP2_FLAG_PADDED,
    NGHTTP2_HEADERS,
    NGHTTP2_PING,
    NGHTTP2_PRIORITY,
    NGHTTP2_PRIORITY_UPDATE,
    NGHTTP2_PROTOCOL_ERROR,
    NGHTTP2_RST_STREAM,
    NGHTTP2_SETTINGS,
    NGHTTP2_STREAM_CLOSED,
    NGHTTP2_WINDOW_UPDATE,
    nghttp2_session_get_last_proc_stream_id,
    nghttp2_session_get_stream_user_data,
)
from lb._fastpath.c.sys cimport (
    LB_R_H2_CONTINUATION_FLOOD,
    LB_R_H2_CONTROL_FLOOD,
    LB_R_H2_MADE_YOU_RESET,
    LB_R_H2_PROTOCOL_ERROR,
    LB_R_H2_RAPID_RESET,
    LB_R_H2_STREAM_FLOOD,
)

cdef enum:
    UNIT = 1000
    WINDOW_BURST = 4000  # and some more for what goes out
    MOST_GIVEN = 4000  # tokens that may be saved up: what has been sent is answered a round trip later, all at once
    WINDOW_PIECE = 256  # bytes of a window that are worth an update of the stream or of the connection


cdef int burst_of(int kind) noexcept nogil:
    if kind == METER_SETTINGS:
        return 50
    if kind == METER_RESET:
        return 200
    if kind == METER_PRIORITY:
        return 500
    if kind == METER_WINDOW:
        return WINDOW_BURST
    if kind == METER_REFUSED:
        return 1000
    return 100


cdef int rate_of(int kind) noexcept nogil:
    """A second."""
    if kind == METER_SETTINGS:
        return 5
    if kind == METER_RESET:
        return 20
    if kind == METER_PRIORITY or kind == METER_WINDOW:
        return 100
    return 10


cdef void meter_init(meter* m, nghttp2_session* ng, size_t preface, int64_t now_ms) noexcept nogil:
    """`preface`: bytes that come before the first frame."""
    cdef int kind
    memset(m, 0, sizeof(meter))
    m.ng = ng
    m.left = <uint32_t>preface
    for kind in range(METER_COUNT):
        m.tokens[kind] = <int64_t>burst_of(kind) * UNIT
        m.refilled_ms[kind] = now_ms


cdef bint meter_charge(meter* m, int kind, int64_t now_ms) noexcept nogil:
    """Take a token. False: there is none left."""
    cdef int64_t most = <int64_t>burst_of(kind) * UNIT
    if m.tokens[kind] < most:
        m.tokens[kind] += (now_ms - m.refilled_ms[kind]) * rate_of(kind) * UNIT // 1000
        if m.tokens[kind] > most:
            m.tokens[kind] = most
    m.refilled_ms[kind] = now_ms
    m.tokens[kind] -= UNIT
    return m.tokens[kind] >= 0


cdef void give(meter* m, int kind, int64_t count) noexcept nogil:
    if m.tokens[kind] < <int64_t>MOST_GIVEN * UNIT:
        m.tokens[kind] += count * UNIT


cdef void meter_data_sent(meter* m, size_t size, bint crumb) noexcept nogil:
    """Who takes data gives window back, for the stream and for the connection, once for each frame or more often; gRPC
    measures with a PING how fast it comes, in every round trip. `crumb`: the window let no more than a few bytes out.
    """
    if not crumb:
        give(m, METER_WINDOW, 2 + <int64_t>(size // WINDOW_PIECE))
    give(m, METER_PING, 1)


cdef void meter_stream_begun(meter* m) noexcept nogil:
    """Of ours: the peer may reset it without being a flood, and who answers early always does (RFC 9113 8.1)."""
    give(m, METER_RESET, 1)


cdef int meter_reason(int kind) noexcept nogil:
    """Why a connection ends that has no token of this kind left."""
    if kind == METER_RESET:
        return LB_R_H2_RAPID_RESET
    if kind == METER_FAULT:
        return LB_R_H2_MADE_YOU_RESET
    if kind == METER_REFUSED:
        return LB_R_H2_STREAM_FLOOD
    return LB_R_H2_CONTROL_FLOOD


cdef int kind_of(uint8_t type, uint8_t flags, uint32_t length) noexcept nogil:
    """What a frame is charged as; METER_COUNT: nothing."""
    if type == NGHTTP2_DATA:
        return METER_EMPTY if length == 0 and not flags & NGHTTP2_FLAG_END_STREAM else METER_COUNT
    if type == NGHTTP2_HEADERS or type == NGHTTP2_CONTINUATION:
        return METER_COUNT
    if type == NGHTTP2_WINDOW_UPDATE:
        return METER_WINDOW
    if type == NGHTTP2_RST_STREAM:
        return METER_RESET
    if type == NGHTTP2_SETTINGS:
        return METER_SETTINGS
    if type == NGHTTP2_PING:
        return METER_PING
    if type == NGHTTP2_PRIORITY or type == NGHTTP2_PRIORITY_UPDATE:
        return METER_PRIORITY
    return METER_OTHER


cdef void meter_note_reset(meter* m, int32_t stream_id) noexcept nogil:
    """We reset this stream, or are about to."""
    if m.reset_count <= RESET_IDS and was_reset(m, stream_id):
        return
    m.reset_ids[m.reset_count % RESET_IDS] = stream_id
    m.reset_count += 1


cdef int32_t stream_of(const uint8_t* h) noexcept nogil:
    return <int32_t>((<uint32_t>(h[5] & 127) << 24) | (<uint32_t>h[6] << 16) | (<uint32_t>h[7] << 8) | h[8])


cdef bint was_reset(const meter* m, int32_t stream_id) noexcept nogil:
    cdef uint32_t i
    for i in range(m.reset_count if m.reset_count < RESET_IDS else RESET_IDS):
        if m.reset_ids[i] == stream_id:
            return True
    return False


cdef bint on_closed(const meter* m, int32_t stream_id) noexcept nogil:
    """Whether the stream is over, and not by our will: whoever we have reset may not know yet. When there were more
    such than we remember, nobody is accused.
    """
    if m.ng == NULL or m.reset_count > RESET_IDS or stream_id == 0 or (
        stream_id > nghttp2_session_get_last_proc_stream_id(m.ng)
        or nghttp2_session_get_stream_user_data(m.ng, stream_id) != NULL
    ):
        return False
    return not was_reset(m, stream_id)


cdef int begin_frame(meter* m, const uint8_t* h, int64_t now_ms, int* heads_left, uint32_t* code) noexcept nogil:
    """A frame's head is complete. 0, or the reason why this is a flood."""
    cdef uint32_t length = (<uint32_t>h[0] << 16) | (<uint32_t>h[1] << 8) | h[2]
    cdef int kind = kind_of(h[3], h[4], length)
    cdef int32_t stream_id = stream_of(h)
    m.left = length
    m.padding_due = h[3] == NGHTTP2_DATA and length != 0 and h[4] & NGHTTP2_FLAG_PADDED
    m.ends_stream = (h[4] & NGHTTP2_FLAG_END_STREAM) != 0
    if h[3] == NGHTTP2_PRIORITY and stream_id == 0:
        code[0] = <uint32_t>NGHTTP2_PROTOCOL_ERROR
        return LB_R_H2_PROTOCOL_ERROR  # RFC 9113 6.3; nghttp2 looks at none of them
    if (h[3] == NGHTTP2_DATA or h[3] == NGHTTP2_HEADERS) and on_closed(m, stream_id):
        code[0] = <uint32_t>NGHTTP2_STREAM_CLOSED
        return LB_R_H2_PROTOCOL_ERROR
    if h[3] == NGHTTP2_RST_STREAM:
        m.reset_seen = True
    if h[3] == NGHTTP2_HEADERS:
        heads_left[0] -= 1
        if stream_id > m.newest_id:
            m.newest_id = stream_id
        m.block_id = stream_id
        m.continuations = 0
        m.block_bytes = length
        m.in_block = not h[4] & NGHTTP2_FLAG_END_HEADERS
    elif h[3] == NGHTTP2_CONTINUATION:
        m.continuations += 1
        m.block_bytes += length
        m.in_block = not h[4] & NGHTTP2_FLAG_END_HEADERS
        if m.continuations > MAX_CONTINUATIONS or m.block_bytes > MAX_HEADER_BLOCK:
            return LB_R_H2_CONTINUATION_FLOOD
    if kind != METER_COUNT and not meter_charge(m, kind, now_ms):
        return meter_reason(kind)
    return 0


cdef bint to_be_looked_at(const meter* m, const uint8_t* h) noexcept nogil:
    """Whether nghttp2 has to have all frames before this one, for us to know if its stream is closed."""
    cdef int32_t id = stream_of(h)
    if m.ng == NULL or (h[3] != NGHTTP2_DATA and h[3] != NGHTTP2_HEADERS):
        return False
    if m.reset_seen:
        return h[3] == NGHTTP2_DATA or id <= m.newest_id
    if h[3] == NGHTTP2_DATA and nghttp2_session_get_last_proc_stream_id(m.ng) < id == m.newest_id:
        return False  # begun right before
    return id <= m.newest_id and nghttp2_session_get_stream_user_data(m.ng, id) == NULL


cdef int look_at_padding(meter* m, uint8_t padding, int64_t now_ms, uint32_t* code) noexcept nogil:
    """The first byte of a padded DATA frame. nghttp2 looks at it only while the stream is open."""
    m.padding_due = False
    if padding >= m.left:
        code[0] = <uint32_t>NGHTTP2_PROTOCOL_ERROR
        return LB_R_H2_PROTOCOL_ERROR  # RFC 9113 6.1
    if <uint32_t>padding + 1 == m.left and not m.ends_stream and not meter_charge(m, METER_EMPTY, now_ms):
        return meter_reason(METER_EMPTY)
    return 0


cdef size_t collect_head(meter* m, const char* p, size_t n) noexcept nogil:
    """Take of a frame's head what is there; how many bytes that is."""
    cdef size_t size = <size_t>(FRAME_HEAD - m.begun_size)
    if size > n:
        size = n
    memcpy(m.begun + m.begun_size, p, size)
    m.begun_size += <uint8_t>size
    return size


cdef size_t meter_frames(meter* m, const char** p, size_t* n, int64_t now_ms, int* heads_left,
        int* reason, uint32_t* code) noexcept nogil:
    """Look through `n` received bytes: how many of them are done with, which are all, mostly. `p` and `n` become what
    nghttp2 gets of that before it is asked again. When `heads_left` is used up it is others' turn. With a `reason` the
    connection is to be ended instead, with this error code.
    """
    cdef size_t at = 0
    cdef size_t size = n[0]
    cdef const char* start = p[0]
    reason[0] = 0
    code[0] = <uint32_t>NGHTTP2_ENHANCE_YOUR_CALM
    if m.left == 0:
        m.reset_seen = False  # nghttp2 has had all of it
    if m.left == 0 and size and (m.begun_size or size < FRAME_HEAD):
        n[0] = 0
        if m.begun_size == 0 and heads_left[0] <= 0 and not m.in_block:
            return 0
        at = collect_head(m, start, size)
        if m.begun_size == FRAME_HEAD:
            m.begun_size = 0
            p[0] = <const char*>m.begun
            n[0] = FRAME_HEAD
            reason[0] = begin_frame(m, m.begun, now_ms, heads_left, code)
        return at
    while at < size and reason[0] == 0:
        if m.padding_due:
            reason[0] = look_at_padding(m, <uint8_t>start[at], now_ms, code)
        if m.left > size - at:
            m.left -= <uint32_t>(size - at)
            at = size
        elif m.left:
            at += m.left
            m.left = 0
        elif size - at < FRAME_HEAD or (heads_left[0] <= 0 and not m.in_block) or (
            at and to_be_looked_at(m, <const uint8_t*>start + at)
        ):
            break
        else:
            reason[0] = begin_frame(m, <const uint8_t*>start + at, now_ms, heads_left, code)
            at += FRAME_HEAD
    n[0] = at
    return at
