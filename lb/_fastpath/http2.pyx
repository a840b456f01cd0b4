"""Sessions and streams of both sides (http2.pxd)."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from lb._fastpath.c.nghttp2 cimport (
    NGHTTP2_CANCEL,
    NGHTTP2_CONNECT_ERROR,
    NGHTTP2_DATA,
    NGHTTP2_DATA_FLAG_EOF,
    NGHTTP2_DATA_FLAG_NO_COPY,
    NGHTTP2_DATA_FLAG_NO_END_STREAM,
    NGHTTP2_ENHANCE_YOUR_CALM,
    NGHTTP2_ERR_DEFERRED,
    NGHTTP2_ERR_NOMEM,
    NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE,
    NGHTTP2_ERR_WOULDBLOCK,
    NGHTTP2_FLAG_END_STREAM,
    NGHTTP2_FLAG_NONE,
    NGHTTP2_GOAWAY,
    NGHTTP2_HEADERS,
    NGHTTP2_INTERNAL_ERROR,
    NGHTTP2_NO_ERROR,
    NGHTTP2_PROTOCOL_ERROR,
    NGHTTP2_REFUSED_STREAM,
    NGHTTP2_RST_STREAM,
    NGHTTP2_SETTINGS,
    nghttp2_data_source,
    nghttp2_frame,
    nghttp2_session_callbacks_new,
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback,
    nghttp2_session_callbacks_set_on_frame_send_callback,
    nghttp2_session_callbacks_set_on_header_callback,
    nghttp2_session_callbacks_set_on_invalid_header_callback,
    nghttp2_session_callbacks_set_on_stream_close_callback,
    nghttp2_session_callbacks_set_send_data_callback,
    nghttp2_session_consume_connection,
    nghttp2_session_consume_stream,
    nghttp2_session_del,
    nghttp2_session_get_last_proc_stream_id,
    nghttp2_session_get_outbound_queue_size,
    nghttp2_session_get_stream_user_data,
    nghttp2_session_mem_recv,
    nghttp2_session_mem_send,
    nghttp2_session_resume_data,
    nghttp2_session_set_local_window_size,
    nghttp2_session_want_read,
    nghttp2_session_want_write,
    nghttp2_submit_ping,
    nghttp2_submit_rst_stream,
    nghttp2_submit_trailer,
)
from lb._fastpath.c.sys cimport (
    LB_R_H2_HEADER_BOMB,
    LB_R_H2_PROTOCOL_ERROR,
    LB_R_NO_MEMORY,
    ssize_t,
)
from lb._fastpath.http2_fields cimport block_add, block_end, pairs, trailer_pairs
from lb._fastpath.http2_meter cimport (
    FRAME_HEAD,
    METER_FAULT,
    METER_REFUSED,
    meter_charge,
    meter_data_sent,
    meter_frames,
    meter_note_reset,
    meter_reason,
)
from lb._fastpath.memory cimport page_alloc, page_data, page_free, pages_append, pages_free, slab_alloc, slab_free
from lb._fastpath.message cimport pack_head, packed_size, unpack_head
from lb._fastpath.reactor cimport (
    IO_BROKEN,
    IO_CONNECTING,
    IO_CUT,
    IO_DEAD,
    IO_READABLE,
    SCRATCH_BYTES,
    io_enqueue,
    reactor,
)
from lb._fastpath.transport cimport (
    RECEIVE_AGAIN,
    RECEIVE_END,
    RECEIVE_ERROR,
    TURN_BYTES,
    batch_flush,
    conn_park,
    conn_receive,
    conn_write,
    conn_write_copy,
)

cdef enum:
    CRUMB_BYTES = 512  # a smaller frame, with more behind it, is as small as its window
    PARK_LIMIT = 131072  # one full read that is behind its time, and some more


cdef void http2_set_calls(exchange_calls* given) noexcept nogil:
    memcpy(&calls, given, sizeof(exchange_calls))


cdef bint http2_begins(const char* p, size_t n) noexcept nogil:
    """Whether these may be, or begin, the first bytes of an HTTP/2 client (RFC 9113 3.4)."""
    return memcmp(p, <const char*>b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", n if n < PREFACE_SIZE else PREFACE_SIZE) == 0


# ------------------------------------------------------------------------------------------------------------- sessions

cdef nghttp2_session_callbacks* new_callbacks() noexcept nogil:
    """Those that both sides have; the others are added by each. Made once, for ever."""
    cdef nghttp2_session_callbacks* made = NULL
    if nghttp2_session_callbacks_new(&made) != 0:
        return NULL
    nghttp2_session_callbacks_set_on_header_callback(made, on_header)
    nghttp2_session_callbacks_set_on_invalid_header_callback(made, on_invalid_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(made, on_data)
    nghttp2_session_callbacks_set_on_frame_send_callback(made, on_frame_sent)
    nghttp2_session_callbacks_set_on_stream_close_callback(made, on_stream_close)
    nghttp2_session_callbacks_set_send_data_callback(made, on_send_data)
    return made


cdef session* session_new(conn* c, const side* side) noexcept nogil:
    """The connection's session, still without nghttp2's own. NULL: no memory."""
    cdef session* s = <session*>calloc(1, sizeof(session))
    if s == NULL:
        return NULL
    s.c = c
    s.side = side
    c.session = s
    c.state = HTTP2_OPEN
    return s


cdef void session_free(session* s) noexcept nogil:
    """No exchange has a stream of it any more."""
    cdef stream* st = s.streams
    while st != NULL:
        s.streams = st.next
        stream_drop_output(st)
        stream_drop_input(st)
        slab_free(&s.c.base.r.stream_slab, st)
        st = s.streams
    block_end(&s.block, &s.c.base.r.pages)
    nghttp2_session_del(s.ng)
    s.c.session = NULL
    free(s)


cdef void session_doom(session* s, int reason, uint32_t code) noexcept nogil:
    """End it as soon as nghttp2 has returned; the first reason holds."""
    if s.reason == 0:
        s.reason = reason
        s.code = code
        io_enqueue(&s.c.base)


cdef void session_say_goodbye(session* s, uint32_t code) noexcept nogil:
    """GOAWAY by our own hand, whatever state nghttp2 is in; nothing may follow it, and SETTINGS must come before it
    (RFC 9113 3.4).
    """
    cdef uint8_t frame[17]
    cdef uint32_t last = <uint32_t>nghttp2_session_get_last_proc_stream_id(s.ng) if s.ng != NULL else 0
    cdef int i
    if s.flags & S_TOLD_END:
        return
    memset(frame, 0, sizeof(frame))
    if not s.flags & (S_SPOKEN | S_CLIENT):
        frame[3] = <uint8_t>NGHTTP2_SETTINGS
        conn_write_copy(s.c, frame, FRAME_HEAD)
    frame[2] = 8
    frame[3] = <uint8_t>NGHTTP2_GOAWAY
    for i in range(4):
        frame[9 + i] = <uint8_t>(last >> (24 - 8 * i))
        frame[13 + i] = <uint8_t>(code >> (24 - 8 * i))
    conn_write_copy(s.c, frame, 17)


cdef bint session_over(session* s) noexcept nogil:
    """Whether nghttp2 has nothing left to do: after a GOAWAY of either side, when the last stream is done."""
    return not nghttp2_session_want_read(s.ng) and not nghttp2_session_want_write(s.ng) and s.c.out_bytes == 0


# -------------------------------------------------------------------------------------------------------------- reading

cdef bint session_input(session* s, const char* p, size_t n) noexcept nogil:
    """Handle what was received. What is more than a turn's share is parked. False: the session is doomed."""
    cdef conn* c = s.c
    cdef size_t now
    while n and s.reason == 0:
        now = session_step(s, p, n)
        p += now
        n -= now
        if s.heads_left <= 0:
            break
    batch_flush(c.base.r)  # it may point to what has just been handled
    if s.reason == 0 and n:
        if conn_park(c, p, n, PARK_LIMIT):
            io_enqueue(&c.base)
        else:
            session_doom(s, LB_R_NO_MEMORY, <uint32_t>NGHTTP2_INTERNAL_ERROR)
    return s.reason == 0


cdef size_t session_step(session* s, const char* p, size_t n) noexcept nogil:
    """Give nghttp2 as much as the meter allows; how many bytes are done with."""
    cdef int reason = 0
    cdef uint32_t code = 0
    cdef ssize_t used
    cdef size_t done = meter_frames(&s.meter, &p, &n, s.c.base.r.now_ms, &s.heads_left, &reason, &code)
    if reason:
        session_doom(s, reason, code)
    elif n:
        s.flags |= S_RECEIVING
        used = nghttp2_session_mem_recv(s.ng, <const uint8_t*>p, n)
        s.flags &= ~<uint32_t>S_RECEIVING
        if used < 0:
            session_doom(s, LB_R_NO_MEMORY if used == NGHTTP2_ERR_NOMEM else LB_R_H2_PROTOCOL_ERROR,
                         <uint32_t>NGHTTP2_PROTOCOL_ERROR)
    return done


cdef bint session_take_parked(session* s) noexcept nogil:
    cdef conn* c = s.c
    cdef page* p = c.parked
    cdef bint good
    c.parked = NULL
    good = session_input(s, page_data(p) + p.start, p.end - p.start)
    page_free(&c.base.r.pages, p)
    return good


cdef int session_read(session* s) noexcept nogil:
    """Read and handle what there is: RECEIVE_AGAIN when there is no more or it is others' turn, else RECEIVE_END or
    RECEIVE_ERROR. Nothing is read while the peer does not take our answers.
    """
    cdef conn* c = s.c
    cdef reactor* r = c.base.r
    cdef int64_t budget = TURN_BYTES
    cdef ssize_t n
    while c.base.flags & IO_READABLE and s.reason == 0 and c.parked == NULL:
        if nghttp2_session_get_outbound_queue_size(s.ng) > CONTROL_QUEUE:
            # Streams that are over by that give their places back, before new ones are counted.
            session_settle(s)
            batch_flush(r)
            if c.out_bytes or s.reason:
                return RECEIVE_AGAIN
        if budget <= 0:
            io_enqueue(&c.base)
            return RECEIVE_AGAIN
        batch_flush(r)
        n = conn_receive(c, r.scratch_in, SCRATCH_BYTES)
        if n == RECEIVE_END:
            # Cut off by TLS's measure only (no goodbye) it has ended: HTTP/2 itself says what is whole.
            return RECEIVE_ERROR if c.base.flags & IO_CUT and c.base.flags & IO_BROKEN else RECEIVE_END
        if n == RECEIVE_AGAIN:
            return RECEIVE_ERROR if c.base.flags & IO_BROKEN else RECEIVE_AGAIN
        if n < 0:
            return RECEIVE_ERROR
        budget -= n
        s.heard += 1
        if not session_input(s, r.scratch_in, <size_t>n):
            return RECEIVE_AGAIN
    return RECEIVE_AGAIN


cdef int on_header(nghttp2_session* ng, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
        const uint8_t* value, size_t value_size, uint8_t flags, void* user_data) noexcept nogil:
    cdef session* s = <session*>user_data
    if s.heading == NULL or s.reason:
        return 0
    if not block_add(&s.block, &s.c.base.r.pages, <const char*>name, name_size, <const char*>value, value_size,
            s.max_list_bytes, s.max_fields):
        session_doom(s, LB_R_H2_HEADER_BOMB, <uint32_t>NGHTTP2_ENHANCE_YOUR_CALM)
        block_end(&s.block, &s.c.base.r.pages)
    return 0


cdef int on_invalid_header(nghttp2_session* ng, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
        const uint8_t* value, size_t value_size, uint8_t flags, void* user_data) noexcept nogil:
    """A field that nghttp2 would leave out: RFC 9113 8.2.1 calls the message malformed."""
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE


cdef int on_data(nghttp2_session* ng, uint8_t flags, int32_t stream_id, const uint8_t* data, size_t size,
        void* user_data) noexcept nogil:
    cdef session* s = <session*>user_data
    cdef stream* st = <stream*>nghttp2_session_get_stream_user_data(ng, stream_id)
    nghttp2_session_consume_connection(ng, size)
    if st == NULL or not st.flags & ST_HELD or st.flags & ST_RESET or s.reason:
        nghttp2_session_consume_stream(ng, stream_id, size)  # nobody wants it; the stream is about to be reset
        return 0
    if st.flags & ST_PAUSED or st.in_first != NULL:
        if not pages_append(&s.c.base.r.pages, &st.in_first, &st.in_last, <const char*>data, size):
            lose(st, LB_R_NO_MEMORY)
            return 0
        st.in_bytes += size
        return 0
    nghttp2_session_consume_stream(ng, stream_id, size)
    st.taken_bytes += size
    if st.taken_bytes >= FIRST_WINDOW and not st.flags & (ST_FAST | ST_IN_ENDED):
        st.flags |= ST_FAST
        nghttp2_session_set_local_window_size(ng, <uint8_t>NGHTTP2_FLAG_NONE, stream_id, STREAM_WINDOW)
    s.side.deliver(st, <const char*>data, size)
    if st.flags & ST_HELD and s.side.other_full(st):
        st.flags |= ST_PAUSED
    return 0


cdef void lose(stream* st, int reason) noexcept nogil:
    """The stream cannot go on, through no fault of the peer's."""
    st.reason = reason
    stream_reset(st, <uint32_t>NGHTTP2_INTERNAL_ERROR)
    stream_mark(st, ST_LOST)


cdef void stream_ended_in(stream* st, head* trailers) noexcept nogil:
    """END_STREAM has come, behind everything that waits."""
    cdef page* p
    cdef size_t size
    if st.flags & ST_RESET and st.flags & ST_HELD:
        return  # some of it has been lost
    st.flags |= ST_IN_ENDED
    if st.flags & ST_IN_TOLD or not st.flags & ST_HELD:
        return
    if not st.flags & ST_PAUSED and st.in_first == NULL:
        st.flags |= ST_IN_TOLD
        st.s.side.deliver_end(st, trailers)
        return
    if trailers == NULL or trailers.field_count == 0:
        return
    size = packed_size(trailers)
    p = page_alloc(&st.s.c.base.r.pages, size)
    if p == NULL:
        lose(st, LB_R_NO_MEMORY)
        return
    p.end = <uint32_t>pack_head(trailers, page_data(p))
    st.in_trailers = p


cdef void deliver_waiting(stream* st) noexcept nogil:
    """The exchange takes bytes again."""
    cdef session* s = st.s
    cdef reactor* r = s.c.base.r
    cdef page* p
    cdef size_t size
    while st.in_first != NULL and st.flags & ST_HELD and not st.flags & ST_PAUSED:
        p = st.in_first
        st.in_first = p.next
        if st.in_first == NULL:
            st.in_last = NULL
        size = p.end - p.start
        st.in_bytes -= size
        if st.flags & ST_OPEN:
            nghttp2_session_consume_stream(s.ng, st.id, size)
        batch_flush(r)
        s.side.deliver(st, page_data(p) + p.start, size)
        batch_flush(r)
        page_free(&r.pages, p)
        if st.flags & ST_HELD and s.side.other_full(st):
            st.flags |= ST_PAUSED
    if st.in_first == NULL and st.flags & ST_IN_ENDED and not st.flags & (ST_PAUSED | ST_IN_TOLD) and (
        st.flags & ST_HELD
    ):
        st.flags |= ST_IN_TOLD
        p = st.in_trailers
        st.in_trailers = NULL
        if p == NULL:
            s.side.deliver_end(st, NULL)
            return
        unpack_head(page_data(p), &r.message)
        s.side.deliver_end(st, &r.message)
        batch_flush(r)
        page_free(&r.pages, p)


# -------------------------------------------------------------------------------------------------------------- streams

cdef stream* stream_new(session* s) noexcept nogil:
    """A stream that neither nghttp2 nor an exchange has yet. NULL: no memory."""
    cdef stream* st = <stream*>slab_alloc(&s.c.base.r.stream_slab)
    if st == NULL:
        return NULL
    st.s = s
    st.leg.c = s.c
    st.progress_ms = s.c.base.r.now_ms
    st.next = s.streams
    if st.next != NULL:
        st.next.previous = st
    s.streams = st
    s.stream_count += 1
    return st


cdef void stream_mark(stream* st, uint32_t flag) noexcept nogil:
    """Have session_settle look at it."""
    st.flags |= flag
    if not st.flags & ST_MARKED:
        st.flags |= ST_MARKED
        st.next_marked = st.s.marked
        st.s.marked = st
    io_enqueue(&st.s.c.base)


cdef void stream_drop_output(stream* st) noexcept nogil:
    cdef reactor* r = st.s.c.base.r
    pages_free(&r.pages, &st.out_first, &st.out_last)
    st.out_bytes = 0
    st.direct_size = 0
    if st.out_trailers != NULL:
        page_free(&r.pages, st.out_trailers)
        st.out_trailers = NULL


cdef void stream_drop_input(stream* st) noexcept nogil:
    cdef reactor* r = st.s.c.base.r
    pages_free(&r.pages, &st.in_first, &st.in_last)
    st.in_bytes = 0
    if st.in_trailers != NULL:
        page_free(&r.pages, st.in_trailers)
        st.in_trailers = NULL


cdef void stream_release(stream* st) noexcept nogil:
    """Give it back when neither its exchange nor nghttp2 has it any more."""
    cdef session* s = st.s
    if not st.flags & ST_HELD:
        stream_drop_input(st)
    if st.flags & (ST_HELD | ST_OPEN | ST_MARKED | ST_TELLING):
        return
    stream_drop_output(st)
    if st.previous != NULL:
        st.previous.next = st.next
    else:
        s.streams = st.next
    if st.next != NULL:
        st.next.previous = st.previous
    if s.heading == st:
        s.heading = NULL
    s.stream_count -= 1
    s.flags |= S_STREAM_ENDED
    io_enqueue(&s.c.base)
    slab_free(&s.c.base.r.stream_slab, st)


cdef void stream_reset(stream* st, uint32_t code) noexcept nogil:
    """RST_STREAM, by our own will."""
    if not st.flags & ST_OPEN or st.flags & ST_RESET:
        return
    st.flags |= ST_RESET
    stream_drop_output(st)
    nghttp2_submit_rst_stream(st.s.ng, <uint8_t>NGHTTP2_FLAG_NONE, st.id, code)
    io_enqueue(&st.s.c.base)


cdef int on_stream_close(nghttp2_session* ng, int32_t stream_id, uint32_t code, void* user_data) noexcept nogil:
    cdef stream* st = <stream*>nghttp2_session_get_stream_user_data(ng, stream_id)
    if st != NULL:
        st.close_code = code
        st.flags &= ~<uint32_t>ST_OPEN
        if st.s.heading == st:
            st.s.heading = NULL
        stream_mark(st, ST_LOST)
    return 0


cdef void session_settle(session* s) noexcept nogil:
    """Do what callbacks and exchanges have asked for, and send what came of it."""
    cdef stream* st
    cdef uint32_t flags
    while True:
        while s.marked != NULL and s.reason == 0:
            st = s.marked
            s.marked = st.next_marked
            flags = st.flags
            st.flags &= ~<uint32_t>(ST_MARKED | ST_RESUMED | ST_DRAINED | ST_LOST)
            st.flags |= ST_TELLING
            if flags & ST_LOST and st.flags & ST_HELD:
                s.side.lost(st)
            if flags & ST_RESUMED and st.flags & ST_HELD:
                deliver_waiting(st)
            if flags & ST_DRAINED and st.flags & ST_HELD:
                s.side.drained(st)
            st.flags &= ~<uint32_t>ST_TELLING
            stream_release(st)
        if s.reason:
            return
        session_flush(s)
        if s.marked == NULL or s.reason:
            return


# -------------------------------------------------------------------------------------------------------------- sending

cdef void session_flush(session* s) noexcept nogil:
    """Send what nghttp2 has, for as long as the peer takes it. What it does not take stays where it is."""
    cdef conn* c = s.c
    cdef const uint8_t* data
    cdef ssize_t n
    if s.flags & (S_RECEIVING | S_SENDING) or c.state != HTTP2_OPEN or c.base.flags & IO_CONNECTING:
        return
    s.flags |= S_SENDING
    while c.out_bytes == 0 and not c.base.flags & (IO_BROKEN | IO_DEAD) and s.reason == 0:
        n = nghttp2_session_mem_send(s.ng, &data)
        if n < 0:
            session_doom(s, LB_R_NO_MEMORY, <uint32_t>NGHTTP2_INTERNAL_ERROR)
        if n <= 0:
            break
        s.flags |= S_SPOKEN
        if n == FRAME_HEAD and data[3] == NGHTTP2_HEADERS:
            write_end(c, data)
        else:
            conn_write_copy(c, data, <size_t>n)
    s.flags &= ~<uint32_t>S_SENDING


cdef void write_end(conn* c, const uint8_t* frame_head) noexcept nogil:
    """Empty trailers (submit_end) as the empty DATA frame that they stand for: not all peers know the former."""
    cdef uint8_t frame[FRAME_HEAD]
    memcpy(frame, frame_head, FRAME_HEAD)
    frame[3] = <uint8_t>NGHTTP2_DATA
    frame[4] = <uint8_t>NGHTTP2_FLAG_END_STREAM
    conn_write_copy(c, frame, FRAME_HEAD)


cdef ssize_t read_source(nghttp2_session* ng, int32_t stream_id, uint8_t* buf, size_t size, uint32_t* flags,
        nghttp2_data_source* source, void* user_data) noexcept nogil:
    """How much of the stream's body goes into the next frame; on_send_data takes it from there."""
    cdef stream* st = <stream*>source.ptr
    cdef size_t there = st.out_bytes + st.direct_size
    if there == 0 and not st.flags & ST_OUT_ENDED:
        st.flags |= ST_DEFERRED
        return NGHTTP2_ERR_DEFERRED
    flags[0] |= <uint32_t>NGHTTP2_DATA_FLAG_NO_COPY
    if there > size:
        return <ssize_t>size
    if st.flags & ST_OUT_ENDED:
        flags[0] |= <uint32_t>NGHTTP2_DATA_FLAG_EOF
        if st.out_trailers != NULL and submit_trailers(st):
            flags[0] |= <uint32_t>NGHTTP2_DATA_FLAG_NO_END_STREAM
    return <ssize_t>there


cdef bint submit_trailers(stream* st) noexcept nogil:
    cdef head* h = &st.s.c.base.r.message
    cdef pairs out
    cdef page* p = st.out_trailers
    st.out_trailers = NULL
    unpack_head(page_data(p), h)
    trailer_pairs(&out, h)
    if out.count:
        nghttp2_submit_trailer(st.s.ng, st.id, out.list, out.count)
    page_free(&st.s.c.base.r.pages, p)
    return out.count != 0


cdef int on_send_data(nghttp2_session* ng, nghttp2_frame* frame, const uint8_t* frame_head, size_t size,
        nghttp2_data_source* source, void* user_data) noexcept nogil:
    cdef stream* st = <stream*>source.ptr
    cdef session* s = st.s
    cdef conn* c = s.c
    cdef page* p
    cdef size_t n, frame_size = size
    if c.out_bytes or c.base.flags & (IO_BROKEN | IO_DEAD):
        return NGHTTP2_ERR_WOULDBLOCK
    if size > st.out_bytes + st.direct_size:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE  # it was reset while the frame waited
    conn_write_copy(c, frame_head, 9)
    while size and st.out_first != NULL:
        p = st.out_first
        n = p.end - p.start
        if n > size:
            n = size
        conn_write_copy(c, page_data(p) + p.start, n)
        p.start += <uint32_t>n
        st.out_bytes -= n
        size -= n
        if p.start == p.end:
            st.out_first = p.next
            if st.out_first == NULL:
                st.out_last = NULL
            page_free(&c.base.r.pages, p)
    if size:
        conn_write(c, st.direct, size)
        st.direct += size
        st.direct_size -= size
    st.progress_ms = c.base.r.now_ms
    # Who opens its window by a few bytes at a time gets no more updates for that (CVE-2019-9511).
    meter_data_sent(&s.meter, frame_size, frame_size < CRUMB_BYTES and st.out_bytes + st.direct_size != 0)
    if st.flags & ST_FULL and st.out_bytes <= STREAM_LOW_WATER:
        st.flags &= ~<uint32_t>ST_FULL
        stream_mark(st, ST_DRAINED)
    elif st.flags & ST_TUNNEL and st.out_bytes == 0:
        stream_mark(st, ST_DRAINED)
    return 0


cdef bint by_our_will(uint32_t code) noexcept nogil:
    """Whether streams are reset with this code for what we want, not for what has come on them."""
    return code in (NGHTTP2_NO_ERROR, NGHTTP2_CANCEL, NGHTTP2_INTERNAL_ERROR, NGHTTP2_CONNECT_ERROR)


cdef int on_frame_sent(nghttp2_session* ng, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    cdef session* s = <session*>user_data
    cdef stream* st
    cdef bint fault
    cdef int kind
    if frame.hd.type == NGHTTP2_DATA or frame.hd.type == NGHTTP2_HEADERS:
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            st = <stream*>nghttp2_session_get_stream_user_data(ng, frame.hd.stream_id)
            if st != NULL:
                st.flags |= ST_OUT_SENT
                if st.flags & ST_RESET_AFTER and not st.flags & ST_IN_ENDED:
                    stream_reset(st, <uint32_t>NGHTTP2_NO_ERROR)
    elif frame.hd.type == NGHTTP2_RST_STREAM:
        meter_note_reset(&s.meter, frame.hd.stream_id)
        st = <stream*>nghttp2_session_get_stream_user_data(ng, frame.hd.stream_id)
        # A stream that we cut because of what came on it costs the peer as much as one it cuts itself. One that is
        # gone may have been cut by both sides at once.
        fault = not by_our_will(frame.rst_stream.error_code) if st == NULL else not st.flags & ST_RESET
        kind = METER_REFUSED if frame.rst_stream.error_code == NGHTTP2_REFUSED_STREAM else METER_FAULT
        if fault and not meter_charge(&s.meter, kind, s.c.base.r.now_ms):
            session_doom(s, meter_reason(kind), <uint32_t>NGHTTP2_ENHANCE_YOUR_CALM)
    elif frame.hd.type == NGHTTP2_GOAWAY and frame.goaway.error_code != NGHTTP2_NO_ERROR:
        s.flags |= S_TOLD_END
        session_doom(s, LB_R_H2_PROTOCOL_ERROR, frame.goaway.error_code)
    elif frame.hd.type == NGHTTP2_GOAWAY and s.flags & S_NOTICED and not s.flags & S_FINAL:
        # Only now: nghttp2 would send a PING before the notice, and its answer would say nothing.
        nghttp2_submit_ping(ng, <uint8_t>NGHTTP2_FLAG_NONE, NULL)
    return 0


cdef void wake_output(stream* st) noexcept nogil:
    if st.flags & ST_DEFERRED:
        st.flags &= ~<uint32_t>ST_DEFERRED
        nghttp2_session_resume_data(st.s.ng, st.id)
    io_enqueue(&st.s.c.base)


cdef void stream_send_body(leg* l, const char* data, size_t size) noexcept nogil:
    cdef stream* st = <stream*>l
    cdef session* s = st.s
    if size == 0 or not st.flags & ST_OPEN or st.flags & (ST_RESET | ST_OUT_ENDED):
        return
    if st.out_bytes == 0:
        st.progress_ms = s.c.base.r.now_ms
    wake_output(st)
    if size >= DIRECT_BYTES and s.c.out_bytes == 0 and not s.flags & (S_RECEIVING | S_SENDING):
        st.direct = data
        st.direct_size = size
        session_flush(s)
        data = st.direct
        size = st.direct_size
        st.direct_size = 0
        if not st.flags & ST_OPEN or st.flags & ST_RESET:
            return
    if not pages_append(&s.c.base.r.pages, &st.out_first, &st.out_last, data, size):
        lose(st, LB_R_NO_MEMORY)
        return
    st.out_bytes += size
    if st.out_bytes > STREAM_HIGH_WATER:
        st.flags |= ST_FULL


cdef void submit_end(stream* st, const head* trailers) noexcept nogil:
    """The end of a stream of which nothing waits any more. nghttp2 sends no DATA while the window is closed, not even
    an empty frame, which may go (RFC 9113 6.9.1). Trailers always go; when there are none, empty ones do (write_end).
    """
    cdef pairs out
    out.count = 0
    if trailers != NULL:
        trailer_pairs(&out, trailers)
    if nghttp2_submit_trailer(st.s.ng, st.id, out.list, out.count) != 0:
        lose(st, LB_R_NO_MEMORY)
    io_enqueue(&st.s.c.base)


cdef void stream_send_end(leg* l, head* trailers) noexcept nogil:
    cdef stream* st = <stream*>l
    cdef page* p
    if not st.flags & ST_OPEN or st.flags & (ST_RESET | ST_OUT_ENDED):
        return
    st.flags |= ST_OUT_ENDED
    if st.out_bytes == 0 and nghttp2_session_get_stream_user_data(st.s.ng, st.id) == st:
        submit_end(st, trailers)
        return
    # What waits goes first, and so does the head of a request that is not out yet.
    if trailers != NULL and trailers.field_count:
        trailers.method_name.size = 0
        trailers.target.size = 0
        trailers.host.size = 0
        p = page_alloc(&st.s.c.base.r.pages, packed_size(trailers))
        if p == NULL:
            lose(st, LB_R_NO_MEMORY)
            return
        p.end = <uint32_t>pack_head(trailers, page_data(p))
        st.out_trailers = p
    wake_output(st)


cdef void stream_shut(leg* l) noexcept nogil:
    stream_send_end(l, NULL)


cdef void stream_resume(leg* l) noexcept nogil:
    cdef stream* st = <stream*>l
    if st.flags & ST_PAUSED:
        st.flags &= ~<uint32_t>ST_PAUSED
        if st.in_first != NULL or (st.flags & ST_IN_ENDED and not st.flags & ST_IN_TOLD):
            stream_mark(st, ST_RESUMED)


cdef bint stream_full(leg* l) noexcept nogil:
    return ((<stream*>l).flags & ST_FULL) != 0


cdef size_t stream_waiting(leg* l) noexcept nogil:
    return (<stream*>l).out_bytes
