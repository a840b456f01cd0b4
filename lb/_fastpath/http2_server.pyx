"""Clients that speak HTTP/2 (http2_server.pxd)."""
from libc.stdint cimport int64_t, uint8_t, uint32_t

from lb._fastpath.c.nghttp2 cimport (
    NGHTTP2_CANCEL,
    NGHTTP2_CONNECT_ERROR,
    NGHTTP2_DATA,
    NGHTTP2_ERR_HTTP_HEADER,
    NGHTTP2_FLAG_ACK,
    NGHTTP2_FLAG_END_STREAM,
    NGHTTP2_FLAG_NONE,
    NGHTTP2_HCAT_REQUEST,
    NGHTTP2_HEADERS,
    NGHTTP2_INTERNAL_ERROR,
    NGHTTP2_NO_ERROR,
    NGHTTP2_PING,
    NGHTTP2_PRIORITY_UPDATE,
    NGHTTP2_PROTOCOL_ERROR,
    NGHTTP2_REFUSED_STREAM,
    NGHTTP2_RST_STREAM,
    NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL,
    NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE,
    NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS,
    NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE,
    NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES,
    nghttp2_data_provider,
    nghttp2_frame,
    nghttp2_option,
    nghttp2_option_new,
    nghttp2_option_set_builtin_recv_extension_type,
    nghttp2_option_set_max_send_header_block_length,
    nghttp2_option_set_no_auto_window_update,
    nghttp2_option_set_no_closed_streams,
    nghttp2_session,
    nghttp2_session_callbacks,
    nghttp2_session_callbacks_set_on_begin_headers_callback,
    nghttp2_session_callbacks_set_on_frame_recv_callback,
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback,
    nghttp2_session_get_last_proc_stream_id,
    nghttp2_session_get_stream_user_data,
    nghttp2_session_server_new2,
    nghttp2_session_set_local_window_size,
    nghttp2_session_set_stream_user_data,
    nghttp2_settings_entry,
    nghttp2_submit_goaway,
    nghttp2_submit_headers,
    nghttp2_submit_response,
    nghttp2_submit_rst_stream,
    nghttp2_submit_settings,
    nghttp2_submit_shutdown_notice,
)
from lb._fastpath.c.sys cimport (
    LB_R_BAD_FRAMING,
    LB_R_BAD_HEADER,
    LB_R_CLIENT_CLOSED,
    LB_R_CLIENT_IDLE_TIMEOUT,
    LB_R_CLIENT_RESET,
    LB_R_DRAIN,
    LB_R_H2_WINDOW_STALL,
    LB_R_HEAD_TIMEOUT,
    LB_R_KEEPALIVE_TIMEOUT,
    LB_R_NO_MEMORY,
    LB_R_SHUTDOWN,
    lb_peek_int,
    ssize_t,
)
from lb._fastpath.clients cimport idle_link, idle_unlink, view_of
from lb._fastpath.counters cimport bump
from lb._fastpath.http2 cimport (
    CONNECTION_WINDOW,
    FIRST_WINDOW,
    HTTP2_CLOSING,
    HTTP2_LINGER,
    HTTP2_OPEN,
    MAX_SENT_BLOCK,
    MAX_STREAMS,
    PREFACE_SIZE,
    S_FINAL,
    S_NOTICED,
    S_PING_ACKED,
    ST_ANSWERED,
    ST_HELD,
    ST_IN_ENDED,
    ST_IN_TOLD,
    ST_NO_BODY,
    ST_OPEN,
    ST_OUT_ENDED,
    ST_OUT_SENT,
    ST_PAUSED,
    ST_PEER_RESET,
    ST_RESET,
    ST_RESET_AFTER,
    ST_TELLING,
    ST_TUNNEL,
    ST_WEBSOCKET,
    calls,
    new_callbacks,
    read_source,
    session,
    session_doom,
    session_flush,
    session_free,
    session_input,
    session_new,
    session_over,
    session_read,
    session_say_goodbye,
    session_settle,
    session_take_parked,
    side,
    stream,
    stream_ended_in,
    stream_full,
    stream_new,
    stream_release,
    stream_reset,
    stream_resume,
    stream_send_body,
    stream_send_end,
    stream_shut,
    stream_waiting,
)
from lb._fastpath.http2_fields cimport (
    MALFORMED,
    block_begin,
    block_end,
    pairs,
    request_from_block,
    response_pairs,
    trailers_from_block,
)
from lb._fastpath.http2_meter cimport FRAME_HEAD, HEADERS_PER_TURN, meter_init, meter_note_reset
from lb._fastpath.message cimport METHOD_HEAD, head
from lb._fastpath.reactor cimport (
    IO_BROKEN,
    IO_DEAD,
    IO_HALF_CLOSED,
    IO_READABLE,
    IO_WRITABLE,
    SCRATCH_BYTES,
    io,
    io_enqueue,
)
from lb._fastpath.table cimport listener_view
from lb._fastpath.timers cimport timer, timer_set
from lb._fastpath.transport cimport (
    RECEIVE_AGAIN,
    RECEIVE_END,
    TURN_BYTES,
    batch_flush,
    conn_close,
    conn_drain,
    conn_receive,
    conn_shut,
    leg,
    leg_calls,
)

cdef enum:
    SWEEP_MS = 1000

cdef nghttp2_session_callbacks* callbacks
cdef nghttp2_option* options
cdef side server_side
cdef leg_calls stream_calls  # how an exchange drives a stream
cdef leg_calls connection_calls  # how an idle connection is closed


cdef void http2_server_install() noexcept nogil:
    """Once, before the first connection. Without memory, connections are refused."""
    global callbacks, options
    if callbacks == NULL:
        callbacks = new_callbacks()
        if callbacks != NULL:
            nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers)
            nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame)
            nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, on_invalid_frame)
    if options == NULL and nghttp2_option_new(&options) == 0:
        nghttp2_option_set_no_auto_window_update(options, 1)
        nghttp2_option_set_no_closed_streams(options, 1)
        nghttp2_option_set_builtin_recv_extension_type(options, <uint8_t>NGHTTP2_PRIORITY_UPDATE)
        nghttp2_option_set_max_send_header_block_length(options, MAX_SENT_BLOCK)
    server_side.deliver = deliver
    server_side.deliver_end = deliver_end
    server_side.other_full = upstream_is_full
    server_side.drained = drained
    server_side.lost = lost
    stream_calls.send_head = send_head
    stream_calls.send_body = stream_send_body
    stream_calls.send_end = stream_send_end
    stream_calls.shut = stream_shut
    stream_calls.resume = stream_resume
    stream_calls.full = stream_full
    stream_calls.waiting = stream_waiting
    stream_calls.done = done
    stream_calls.refuse = refuse
    stream_calls.abort = abort
    connection_calls.refuse = hang_up


# ----------------------------------------------------------------------------------------------------------------- life

cdef void http2_server_open(conn* c) noexcept nogil:
    """A client that has chosen HTTP/2 (ALPN); everything but the codec's part is set."""
    cdef listener_view* view = view_of(c)
    cdef session* s = session_new(c, &server_side)
    cdef nghttp2_settings_entry settings[5]
    c.leg.calls = &connection_calls
    c.leg.c = c
    c.base.ready = server_ready
    c.timer.fire = server_timeout
    c.flags = 0
    if s == NULL or callbacks == NULL or options == NULL or view == NULL or (
        nghttp2_session_server_new2(&s.ng, callbacks, s, options) != 0
    ):
        close_now(c, LB_R_NO_MEMORY)
        return
    meter_init(&s.meter, s.ng, PREFACE_SIZE, c.base.r.now_ms)
    s.max_list_bytes = view.max_head_bytes
    s.max_fields = view.max_headers if view.max_headers < 240 else 240
    s.sweep_ms = c.base.r.now_ms + SWEEP_MS
    settings[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    settings[0].value = MAX_STREAMS
    settings[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    settings[1].value = FIRST_WINDOW
    settings[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    settings[2].value = <uint32_t>view.max_head_bytes
    settings[3].settings_id = NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL
    settings[3].value = 1
    settings[4].settings_id = NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES
    settings[4].value = 1
    nghttp2_submit_settings(s.ng, <uint8_t>NGHTTP2_FLAG_NONE, settings, 5)
    nghttp2_session_set_local_window_size(s.ng, <uint8_t>NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW)
    set_timer(s)
    io_enqueue(&c.base)


cdef void http2_server_preface(conn* c, const char* data, size_t n) noexcept nogil:
    """The first bytes of an HTTP/1 connection turned out to be HTTP/2's; all of them are taken."""
    http2_server_open(c)
    if c.base.flags & IO_DEAD:
        return
    (<session*>c.session).heads_left = HEADERS_PER_TURN
    session_input(<session*>c.session, data, n)
    io_enqueue(&c.base)


cdef void close_now(conn* c, int reason) noexcept nogil:
    bump(&c.base.r.counts.reasons[reason])
    gone(c, False)


cdef void gone(conn* c, bint reset) noexcept nogil:
    """The end of the connection; no exchange has a stream of it."""
    if c.base.flags & IO_DEAD:
        return
    if c.session != NULL:
        session_free(<session*>c.session)
    idle_unlink(c)
    conn_close(c, reset)
    calls.client_gone(c)


cdef void tell_all(session* s, int reason) noexcept nogil:
    """The connection is lost to all of its exchanges, and they to it."""
    cdef stream* st = s.streams
    cdef void* exchange
    if reason != LB_R_CLIENT_CLOSED and reason != LB_R_SHUTDOWN:
        reason = LB_R_CLIENT_RESET
    while st != NULL:
        st.flags = (st.flags & ~<uint32_t>ST_OPEN) | ST_TELLING  # it goes with the session, not before
        st = st.next
    st = s.streams
    while st != NULL:
        if st.flags & ST_HELD:
            exchange = st.leg.exchange
            st.leg.exchange = NULL
            st.flags &= ~<uint32_t>ST_HELD
            if exchange != NULL:
                calls.request_failed(exchange, reason)
        st = st.next


cdef void http2_server_cut(conn* c, int reason) noexcept nogil:
    """End all exchanges of the connection; it is closed with its descriptor when the daemon ends."""
    cdef session* s = <session*>c.session
    if s != NULL:
        tell_all(s, reason)
        session_free(s)
        c.state = HTTP2_LINGER


cdef void lose_client(conn* c, int reason) noexcept nogil:
    cdef session* s = <session*>c.session
    if s != NULL:
        if s.stream_count == 0:
            bump(&c.base.r.counts.reasons[reason])
        tell_all(s, reason)
    gone(c, False)


cdef void end_session(session* s) noexcept nogil:
    """Say GOAWAY with the reason's code, take nothing more, and close when that is out."""
    cdef conn* c = s.c
    if s.reason:
        bump(&c.base.r.counts.reasons[s.reason])
        tell_all(s, LB_R_CLIENT_RESET)
        session_say_goodbye(s, s.code)
    else:
        tell_all(s, LB_R_CLIENT_RESET)
    session_free(s)
    idle_unlink(c)
    c.state = HTTP2_CLOSING
    batch_flush(c.base.r)
    if c.out_bytes == 0 or c.base.flags & IO_BROKEN:
        linger(c)
    else:
        closing_timer(c)


cdef void closing_timer(conn* c) noexcept nogil:
    cdef listener_view* view = view_of(c)
    timer_set(&c.base.r.timers, &c.timer, c.base.r.now_ms + (view.idle_timeout_ms if view != NULL else 1000))


cdef void linger(conn* c) noexcept nogil:
    """Closing on unread bytes would reset the connection, and the client would lose what we said last (RFC 9112 9.6
    tells the same of HTTP/1).
    """
    cdef listener_view* view = view_of(c)
    c.state = HTTP2_LINGER
    conn_shut(c)
    timer_set(&c.base.r.timers, &c.timer, c.base.r.now_ms + (view.linger_timeout_ms if view != NULL else 1000))
    if c.base.flags & IO_READABLE:
        io_enqueue(&c.base)


cdef void server_ready(io* source) noexcept nogil:
    cdef conn* c = <conn*>source
    cdef session* s = <session*>c.session
    cdef uint32_t waiting = c.out_bytes
    cdef int result
    if source.flags & IO_BROKEN:
        lose_client(c, LB_R_CLIENT_RESET)
        batch_flush(source.r)
        return
    if c.out_bytes and source.flags & IO_WRITABLE:
        conn_drain(c)
        if source.flags & IO_BROKEN:
            lose_client(c, LB_R_CLIENT_RESET)
            batch_flush(source.r)
            return
    if c.state != HTTP2_OPEN:
        last_words(c)
        return
    if c.out_bytes < waiting:
        s.progress_ms = source.r.now_ms
    s.heads_left = HEADERS_PER_TURN
    if c.parked != NULL:
        session_take_parked(s)
    result = session_read(s)
    if result != RECEIVE_AGAIN:
        lose_client(c, LB_R_CLIENT_CLOSED if result == RECEIVE_END else LB_R_CLIENT_RESET)
        batch_flush(source.r)
        return
    carry_on(s)


cdef void carry_on(session* s) noexcept nogil:
    """After anything happened: send, and see whether that was the end."""
    cdef conn* c = s.c
    if s.reason == 0:
        session_settle(s)
    if s.reason == 0 and s.flags & S_NOTICED and not s.flags & S_FINAL and (
        s.flags & S_PING_ACKED or c.base.r.now_ms >= s.drain_deadline_ms
    ):
        s.flags |= S_FINAL
        nghttp2_submit_goaway(
            s.ng, <uint8_t>NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(s.ng),
            <uint32_t>NGHTTP2_NO_ERROR, NULL, 0)
        session_flush(s)
    batch_flush(c.base.r)
    if c.base.flags & IO_BROKEN:
        return  # and enqueued
    if s.reason or session_over(s):
        if s.reason == 0 and s.flags & S_NOTICED:
            bump(&c.base.r.counts.reasons[LB_R_DRAIN])
        end_session(s)
        return
    set_timer(s)


cdef void last_words(conn* c) noexcept nogil:
    """GOAWAY is on its way or out: nothing that comes is looked at."""
    cdef int64_t budget = TURN_BYTES
    cdef ssize_t n = 1
    if c.state == HTTP2_CLOSING and c.out_bytes == 0:
        linger(c)
    while c.base.flags & IO_READABLE and n > 0 and budget > 0:
        n = conn_receive(c, c.base.r.scratch_in, SCRATCH_BYTES)
        budget -= n
    if budget <= 0:
        io_enqueue(&c.base)
    if c.base.flags & IO_BROKEN or (c.state == HTTP2_LINGER and c.base.flags & IO_HALF_CLOSED):
        gone(c, False)


cdef void hang_up(leg* l, int reason) noexcept nogil:
    """Close an idle connection."""
    cdef session* s = <session*>l.c.session
    if s == NULL:
        return
    if reason == LB_R_DRAIN:
        begin_drain(s)
        return
    session_doom(s, reason, <uint32_t>NGHTTP2_NO_ERROR)
    end_session(s)


cdef void begin_drain(session* s) noexcept nogil:
    """Lossless in both directions (RFC 9113 6.8): first the notice that there will be an end; when the client must
    have seen it, since it has answered the PING behind it (on_frame_sent), which streams were the last.
    """
    if s.flags & S_NOTICED:
        return
    s.flags |= S_NOTICED
    s.drain_deadline_ms = s.c.base.r.now_ms + DRAIN_NOTICE_MS
    nghttp2_submit_shutdown_notice(s.ng)
    io_enqueue(&s.c.base)


cdef void http2_server_drain(reactor* r) noexcept nogil:
    """Let all clients know that they should go elsewhere; what they have begun is finished."""
    cdef conn* c = <conn*>r.connections
    while c != NULL:
        if c.session != NULL and c.ep == NULL and c.state == HTTP2_OPEN:
            begin_drain(<session*>c.session)
        c = c.next_all


# --------------------------------------------------------------------------------------------------------------- timers

cdef void set_timer(session* s) noexcept nogil:
    cdef conn* c = s.c
    cdef listener_view* view
    cdef int64_t deadline
    if s.stream_count == 0 and s.heading == NULL and c.out_bytes == 0 and c.parked == NULL:
        if s.idle_deadline_ms == 0:
            view = view_of(c)
            s.idle_deadline_ms = c.base.r.now_ms + (view.keepalive_timeout_ms if view != NULL else 0)
            idle_link(c)
            if lb_peek_int(&c.base.r.s.draining):
                begin_drain(s)
        deadline = s.idle_deadline_ms
    else:
        s.idle_deadline_ms = 0
        idle_unlink(c)
        deadline = s.sweep_ms
        if s.heading != NULL and s.head_deadline_ms < deadline:
            deadline = s.head_deadline_ms
    if s.flags & S_NOTICED and not s.flags & S_FINAL and s.drain_deadline_ms < deadline:
        deadline = s.drain_deadline_ms
    timer_set(&c.base.r.timers, &c.timer, deadline)


cdef void server_timeout(timer* t) noexcept nogil:
    cdef conn* c = <conn*>t.owner
    cdef session* s = <session*>c.session
    cdef int64_t now = c.base.r.now_ms
    if c.state != HTTP2_OPEN:
        gone(c, c.out_bytes != 0)
        return
    if s.idle_deadline_ms and now >= s.idle_deadline_ms:
        session_doom(s, LB_R_KEEPALIVE_TIMEOUT, <uint32_t>NGHTTP2_NO_ERROR)
    elif s.heading != NULL and now >= s.head_deadline_ms:
        session_doom(s, LB_R_HEAD_TIMEOUT, <uint32_t>NGHTTP2_PROTOCOL_ERROR)
    elif now >= s.sweep_ms:
        s.sweep_ms = now + SWEEP_MS
        if sweep(s, now):
            lose_client(c, LB_R_CLIENT_IDLE_TIMEOUT)
            batch_flush(c.base.r)
            return
    carry_on(s)


cdef bint sweep(session* s, int64_t now) noexcept nogil:
    """End what the client lets stand still. An exchange looks after its own stream; those whose response is complete
    are left to us. True: the client takes nothing at all.
    """
    cdef conn* c = s.c
    cdef listener_view* view = view_of(c)
    cdef int64_t limit = view.idle_timeout_ms if view != NULL and view.idle_timeout_ms > 0 else 30000
    cdef stream* st = s.streams
    if c.out_bytes:
        return now - s.progress_ms > limit
    s.progress_ms = now
    while st != NULL:
        if not st.flags & ST_HELD and st.flags & ST_OPEN and st.out_bytes and now - st.progress_ms > limit:
            bump(&c.base.r.counts.reasons[LB_R_H2_WINDOW_STALL])
            stream_reset(st, <uint32_t>NGHTTP2_CANCEL)
        st = st.next
    return False


# ------------------------------------------------------------------------------------------------------------- requests

cdef int on_begin_headers(nghttp2_session* ng, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    cdef session* s = <session*>user_data
    cdef stream* st
    cdef listener_view* view
    s.heading = NULL
    if frame.hd.type != NGHTTP2_HEADERS:
        return 0
    if frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        st = NULL
        # A stream that was cancelled keeps its place until its exchange is over.
        if s.stream_count < MAX_STREAMS:
            st = stream_new(s)
        if st == NULL:
            nghttp2_submit_rst_stream(ng, <uint8_t>NGHTTP2_FLAG_NONE, frame.hd.stream_id,
                                      <uint32_t>NGHTTP2_REFUSED_STREAM)
            meter_note_reset(&s.meter, frame.hd.stream_id)
            return 0
        st.id = frame.hd.stream_id
        st.flags = ST_OPEN
        st.leg.calls = &stream_calls
        nghttp2_session_set_stream_user_data(ng, st.id, st)
    else:
        st = <stream*>nghttp2_session_get_stream_user_data(ng, frame.hd.stream_id)
        if st == NULL:
            return 0
    s.heading = st
    view = view_of(s.c)
    s.head_deadline_ms = s.c.base.r.now_ms + (view.head_timeout_ms if view != NULL else 1000)
    block_begin(&s.block, &s.c.base.r.pages)
    return 0


cdef int on_frame(nghttp2_session* ng, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    cdef session* s = <session*>user_data
    cdef stream* st
    if s.reason:
        return 0  # bytes have been thrown away since: nothing that ends now is whole
    if frame.hd.type == NGHTTP2_HEADERS:
        st = s.heading
        s.heading = NULL
        if st == NULL:
            return 0
        if frame.headers.cat == NGHTTP2_HCAT_REQUEST:
            on_request(st, frame.hd.length, (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) != 0)
        else:
            on_trailers(st)
        block_end(&s.block, &s.c.base.r.pages)
    elif frame.hd.type == NGHTTP2_DATA:
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            st = <stream*>nghttp2_session_get_stream_user_data(ng, frame.hd.stream_id)
            if st != NULL:
                stream_ended_in(st, NULL)
    elif frame.hd.type == NGHTTP2_RST_STREAM:
        st = <stream*>nghttp2_session_get_stream_user_data(ng, frame.hd.stream_id)
        if st != NULL:
            st.flags |= ST_PEER_RESET
    elif frame.hd.type == NGHTTP2_PING and frame.hd.flags & NGHTTP2_FLAG_ACK:
        s.flags |= S_PING_ACKED
    return 0


cdef int on_invalid_frame(nghttp2_session* ng, const nghttp2_frame* frame, int error, void* user_data) noexcept nogil:
    """nghttp2 has found a frame wrong, and resets its stream or ends the session."""
    cdef session* s = <session*>user_data
    cdef stream* st = s.heading
    if frame.hd.type == NGHTTP2_HEADERS and st != NULL and st.id == frame.hd.stream_id:
        s.heading = NULL
        block_end(&s.block, &s.c.base.r.pages)
        if frame.headers.cat == NGHTTP2_HCAT_REQUEST:
            malformed(st)
        elif error == NGHTTP2_ERR_HTTP_HEADER:
            st.reason = LB_R_BAD_HEADER
    return 0


cdef void malformed(stream* st) noexcept nogil:
    """A request's head that has no meaning; its stream ends with PROTOCOL_ERROR."""
    cdef listener_view* view = view_of(st.s.c)
    if view != NULL:
        calls.request_malformed(&st.leg, LB_R_BAD_HEADER, view)


cdef void fault(stream* st) noexcept nogil:
    """What came on the stream breaks the protocol: it ends, and that is counted against the client."""
    nghttp2_submit_rst_stream(st.s.ng, <uint8_t>NGHTTP2_FLAG_NONE, st.id, <uint32_t>NGHTTP2_PROTOCOL_ERROR)
    io_enqueue(&st.s.c.base)


cdef void on_request(stream* st, size_t size, bint ended) noexcept nogil:
    """A request's head, of `size` compressed bytes, is complete: start its exchange."""
    cdef session* s = st.s
    cdef conn* c = s.c
    cdef reactor* r = c.base.r
    cdef head* h = &r.message
    cdef listener_view* view = view_of(c)
    cdef bint websocket = False
    cdef int result
    if view == NULL:
        stream_reset(st, <uint32_t>NGHTTP2_REFUSED_STREAM)
        begin_drain(s)
        return
    batch_flush(r)  # scratch_text and scratch_out are about to be written
    s.max_list_bytes = view.max_head_bytes
    result = request_from_block(&s.block, h, view, r.scratch_text, r.random, &websocket)
    if result == MALFORMED:
        fault(st)
        malformed(st)
        return
    c.requests += 1
    h.size = <uint32_t>(size + FRAME_HEAD)
    h.has_body = not ended and not websocket and h.content_length != 0
    h.chunked = h.has_body and h.content_length < 0
    st.flags |= ST_HELD | ST_PAUSED  # until the exchange has somewhere to send a body
    if websocket:
        st.flags |= ST_WEBSOCKET
    elif not h.has_body:
        st.flags |= ST_IN_TOLD
    if ended:
        st.flags |= ST_IN_ENDED
    if h.method == METHOD_HEAD:
        st.flags |= ST_NO_BODY
    if result:
        calls.request_refused(&st.leg, result, view)
    else:
        calls.request_head(&st.leg, h, view)
    if lb_peek_int(&r.s.draining) or (
        view.max_requests_per_connection and c.requests >= <uint32_t>view.max_requests_per_connection
    ):
        begin_drain(s)


cdef void on_trailers(stream* st) noexcept nogil:
    cdef head* h = &st.s.c.base.r.message
    batch_flush(st.s.c.base.r)
    if trailers_from_block(&st.s.block, h) == MALFORMED:
        st.reason = LB_R_BAD_HEADER
        fault(st)
        return
    stream_ended_in(st, h)


cdef void deliver(stream* st, const char* data, size_t size) noexcept nogil:
    calls.request_body(st.leg.exchange, data, size)


cdef void deliver_end(stream* st, head* trailers) noexcept nogil:
    calls.request_end(st.leg.exchange, trailers)


cdef bint upstream_is_full(stream* st) noexcept nogil:
    return calls.upstream_full(st.leg.exchange)


cdef void drained(stream* st) noexcept nogil:
    calls.client_drained(st.leg.exchange)


cdef void lost(stream* st) noexcept nogil:
    """The stream is closed, and its exchange is not over."""
    cdef void* exchange = st.leg.exchange
    cdef int reason = st.reason
    if st.close_code == NGHTTP2_NO_ERROR and st.flags & ST_IN_ENDED and st.flags & ST_OUT_SENT:
        return  # a tunnel that has ended in both directions, and whose last bytes are on their way to the endpoint
    if st.flags & ST_PEER_RESET:
        reason = LB_R_CLIENT_RESET
    elif reason == 0:
        reason = LB_R_BAD_FRAMING  # nghttp2 has found the message wrong: a length that does not fit, mostly
    st.flags &= ~<uint32_t>ST_HELD
    if reason == LB_R_BAD_FRAMING or reason == LB_R_BAD_HEADER:
        calls.request_malformed(&st.leg, reason, NULL)
        return
    st.leg.exchange = NULL
    calls.request_failed(exchange, reason)


# ------------------------------------------------------------------------------------------------------------ responses

cdef size_t send_head(leg* l, head* h) noexcept nogil:
    """A response head; how many bytes its fields have. 1xx are interim, 101 opens the tunnel of extended CONNECT."""
    cdef stream* st = <stream*>l
    cdef session* s = st.s
    cdef pairs out
    cdef nghttp2_data_provider provider
    cdef bint ended
    if not st.flags & ST_OPEN or st.flags & (ST_RESET | ST_ANSWERED):
        return 0
    response_pairs(&out, h)
    io_enqueue(&s.c.base)
    if h.status < 200 and h.status != 101:
        nghttp2_submit_headers(s.ng, <uint8_t>NGHTTP2_FLAG_NONE, st.id, NULL, out.list, out.count, NULL)
        return out.bytes
    st.flags |= ST_ANSWERED
    ended = h.status != 101 and (
        not h.has_body or h.content_length == 0 or st.flags & ST_NO_BODY or h.status == 204 or h.status == 304
    )
    if h.status == 101:
        st.flags |= ST_TUNNEL
    if ended:
        st.flags |= ST_OUT_ENDED
    provider.source.ptr = st
    provider.read_callback = read_source
    if nghttp2_submit_response(s.ng, st.id, out.list, out.count, NULL if ended else &provider) != 0:
        stream_reset(st, <uint32_t>NGHTTP2_INTERNAL_ERROR)
    return out.bytes


cdef uint32_t cut_code(const stream* st) noexcept nogil:
    """Of what ends in the middle (RFC 9113 8.5 for tunnels)."""
    return <uint32_t>(NGHTTP2_CONNECT_ERROR if st.flags & ST_TUNNEL else NGHTTP2_INTERNAL_ERROR)


cdef void done(leg* l) noexcept nogil:
    """The exchange is over; what is left of its response goes out by itself."""
    cdef stream* st = <stream*>l
    l.exchange = NULL
    st.flags &= ~<uint32_t>ST_HELD
    if st.flags & ST_OPEN:
        if not st.flags & ST_OUT_ENDED:
            stream_reset(st, cut_code(st))
        elif not st.flags & ST_IN_ENDED:
            # The rest of the request is not wanted (RFC 9113 8.1).
            if st.flags & ST_OUT_SENT:
                stream_reset(st, <uint32_t>NGHTTP2_NO_ERROR)
            else:
                st.flags |= ST_RESET_AFTER
    stream_release(st)


cdef void refuse(leg* l, int reason) noexcept nogil:
    """A request that gets no answer."""
    cdef stream* st = <stream*>l
    bump(&l.c.base.r.counts.reasons[reason])
    l.exchange = NULL
    st.flags &= ~<uint32_t>ST_HELD
    stream_reset(st, <uint32_t>NGHTTP2_REFUSED_STREAM)
    stream_release(st)


cdef void abort(leg* l) noexcept nogil:
    """The response cannot be completed: the client must not take it for whole."""
    cdef stream* st = <stream*>l
    l.exchange = NULL
    st.flags &= ~<uint32_t>ST_HELD
    stream_reset(st, cut_code(st))
    stream_release(st)
