"""Endpoints that speak HTTP/2 (http2_client.pxd)."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from lb._fastpath.c.nghttp2 cimport (
    NGHTTP2_CANCEL,
    NGHTTP2_DATA,
    NGHTTP2_FLAG_ACK,
    NGHTTP2_FLAG_END_STREAM,
    NGHTTP2_FLAG_NONE,
    NGHTTP2_GOAWAY,
    NGHTTP2_HEADERS,
    NGHTTP2_NO_ERROR,
    NGHTTP2_REFUSED_STREAM,
    NGHTTP2_RST_STREAM,
    NGHTTP2_SETTINGS,
    NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL,
    NGHTTP2_SETTINGS_ENABLE_PUSH,
    NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE,
    NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS,
    nghttp2_data_provider,
    nghttp2_frame,
    nghttp2_option,
    nghttp2_option_new,
    nghttp2_option_set_max_send_header_block_length,
    nghttp2_option_set_no_auto_window_update,
    nghttp2_option_set_no_closed_streams,
    nghttp2_session,
    nghttp2_session_callbacks,
    nghttp2_session_callbacks_set_on_begin_headers_callback,
    nghttp2_session_callbacks_set_on_frame_recv_callback,
    nghttp2_session_check_request_allowed,
    nghttp2_session_client_new2,
    nghttp2_session_get_remote_settings,
    nghttp2_session_get_stream_user_data,
    nghttp2_session_set_local_window_size,
    nghttp2_settings_entry,
    nghttp2_submit_request,
    nghttp2_submit_settings,
)
from lb._fastpath.c.sys cimport (
    LB_R_BAD_RESPONSE,
    LB_R_H2_CONTINUATION_FLOOD,
    LB_R_NO_MEMORY,
    LB_R_RESPONSE_TOO_LARGE,
    LB_R_UPSTREAM_CLOSED,
    LB_R_UPSTREAM_NO_WEBSOCKET,
    LB_R_UPSTREAM_PROTOCOL,
    LB_R_UPSTREAM_REFUSED,
    LB_R_UPSTREAM_RESET,
    LB_R_UPSTREAM_TRUNCATED,
)
from lb._fastpath.http1_parse cimport MAX_RESPONSE_HEAD
from lb._fastpath.http2 cimport (
    CONNECTION_WINDOW,
    FIRST_WINDOW,
    MAX_SENT_BLOCK,
    S_BEGUN,
    S_CLIENT,
    S_DOOMED,
    S_PEER_AWAY,
    S_RECEIVING,
    S_SENDING,
    S_SETTLED,
    S_STREAM_ENDED,
    S_TOLD_AWAY,
    ST_LOST,
    ST_ANSWERED,
    ST_HELD,
    ST_IN_ENDED,
    ST_IN_TOLD,
    ST_NO_BODY,
    ST_OPEN,
    ST_OUT_ENDED,
    ST_PAUSED,
    ST_PEER_RESET,
    ST_TELLING,
    ST_TUNNEL,
    ST_WEBSOCKET,
    calls,
    deliver_waiting,
    lose,
    new_callbacks,
    read_source,
    session,
    session_free,
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
    stream_mark,
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
    ACCEPT_SIZE,
    asks_websocket,
    block_begin,
    block_end,
    pairs,
    request_pairs,
    response_from_block,
    trailers_from_block,
    websocket_accept,
)
from lb._fastpath.http2_meter cimport FRAME_HEAD, HEADERS_PER_TURN, meter_init, meter_stream_begun
from lb._fastpath.message cimport FIELD_UPGRADE, MAX_FIELDS, head, head_add, unpack_head
from lb._fastpath.reactor cimport IO_BROKEN, IO_DEAD, IO_HALF_CLOSED, IO_WRITABLE, io, io_enqueue, reactor
from lb._fastpath.transport cimport (
    LEG_CLOSE,
    LEG_GOT_BYTES,
    LEG_FIRST,
    LEG_REUSED,
    RECEIVE_AGAIN,
    RECEIVE_END,
    batch_flush,
    conn_drain,
    leg_calls,
    outgoing,
)

cdef nghttp2_session_callbacks* callbacks
cdef nghttp2_option* options
cdef side client_side
cdef leg_calls stream_calls
cdef pool_calls pool


cdef void http2_set_pool_calls(pool_calls* given) noexcept nogil:
    """Once, before the first connection."""
    global callbacks, options
    memcpy(&pool, given, sizeof(pool_calls))
    if callbacks == NULL:
        callbacks = new_callbacks()
        if callbacks != NULL:
            nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers)
            nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame)
    if options == NULL and nghttp2_option_new(&options) == 0:
        nghttp2_option_set_no_auto_window_update(options, 1)
        nghttp2_option_set_no_closed_streams(options, 1)
        nghttp2_option_set_max_send_header_block_length(options, MAX_SENT_BLOCK)
    client_side.deliver = deliver
    client_side.deliver_end = deliver_end
    client_side.other_full = client_is_full
    client_side.drained = drained
    client_side.lost = lost
    stream_calls.start = start
    stream_calls.send_body = stream_send_body
    stream_calls.send_end = stream_send_end
    stream_calls.shut = stream_shut
    stream_calls.resume = stream_resume
    stream_calls.full = stream_full
    stream_calls.waiting = stream_waiting
    stream_calls.done = done
    stream_calls.abort = abort


# ----------------------------------------------------------------------------------------------------------------- life

cdef bint http2_client_open(conn* c) noexcept nogil:
    """Give the connection its session. It may still be connecting: then nothing is sent before
    http2_client_connected. False: no memory.
    """
    cdef session* s
    cdef nghttp2_settings_entry settings[2]
    if callbacks == NULL or options == NULL:
        return False
    s = session_new(c, &client_side)
    if s == NULL:
        return False
    if nghttp2_session_client_new2(&s.ng, callbacks, s, options) != 0:
        session_free(s)
        return False
    s.flags = S_CLIENT
    meter_init(&s.meter, NULL, 0, c.base.r.now_ms)
    s.max_list_bytes = MAX_RESPONSE_HEAD
    s.max_fields = MAX_FIELDS - 16
    settings[0].settings_id = NGHTTP2_SETTINGS_ENABLE_PUSH
    settings[0].value = 0
    settings[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    settings[1].value = FIRST_WINDOW
    nghttp2_submit_settings(s.ng, <uint8_t>NGHTTP2_FLAG_NONE, settings, 2)
    nghttp2_session_set_local_window_size(s.ng, <uint8_t>NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW)
    return True


cdef void http2_client_connected(conn* c) noexcept nogil:
    """Events of the connection come here from now on. Requests begin when the peer's SETTINGS are there: they say how
    many there may be, and whether it knows extended CONNECT (RFC 8441 3). A peer sends them first of all (RFC 9113
    3.4), so nobody waits for long, and a hundred requests that meet on a new connection need not be refused.
    """
    c.base.ready = client_ready
    io_enqueue(&c.base)


cdef bint leaving(const session* s) noexcept nogil:
    return s.reason != 0 or (s.flags & (S_PEER_AWAY | S_TOLD_AWAY | S_DOOMED)) != 0


cdef bint http2_client_leaves(const conn* c) noexcept nogil:
    """Whether nothing more begins on it, because it is on its way out, not because it is full."""
    return c.session != NULL and leaving(<const session*>c.session)


cdef bint http2_client_begun(conn* c) noexcept nogil:
    """Whether a stream of it can begin at once."""
    return (<session*>c.session).flags & S_BEGUN != 0


cdef uint32_t allowed_streams(session* s) noexcept nogil:
    cdef uint32_t most = nghttp2_session_get_remote_settings(s.ng, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS)
    return most if most < CLIENT_STREAMS else CLIENT_STREAMS


cdef int http2_client_room(conn* c) noexcept nogil:
    """How many streams more it can carry now; of a new one, as the endpoint's last one could."""
    cdef session* s = <session*>c.session
    cdef int most
    if s == NULL or leaving(s) or c.base.flags & (IO_BROKEN | IO_DEAD) or not nghttp2_session_check_request_allowed(
        s.ng
    ):
        return 0
    if s.flags & S_SETTLED:
        most = <int>allowed_streams(s)
    else:
        most = c.ep.pools[c.base.r.index].streams
        if most == 0:
            most = CLIENT_STREAMS
    return most - s.stream_count if most > s.stream_count else 0


cdef bint http2_client_silent(const leg* l) noexcept nogil:
    """Whether it is on a shared connection on which nothing at all has been read since its request was sent. Counted,
    because what came just before has the same time.
    """
    return l.c.session != NULL and (<session*>l.c.session).heard == (<const stream*>l).heard_before


cdef int http2_client_streams(conn* c) noexcept nogil:
    """How many streams it carries, those included that are about to end."""
    return (<session*>c.session).stream_count if c.session != NULL else 0


cdef leg* http2_client_stream(conn* c, void* exchange) noexcept nogil:
    """A stream for an exchange, which begins with `start`; NULL: no room, or no memory. The exchange waits for
    pool_calls.begin unless http2_client_begun.
    """
    cdef session* s = <session*>c.session
    cdef stream* st
    if http2_client_room(c) == 0:
        return NULL
    st = stream_new(s)
    if st == NULL:
        return NULL
    st.flags = ST_HELD
    st.leg.calls = &stream_calls
    st.leg.exchange = exchange
    if s.flags & S_BEGUN:
        st.leg.flags = LEG_REUSED
    c.requests += 1
    return &st.leg


cdef void http2_client_each(conn* c, void (*f)(leg* l, int reason) noexcept nogil, int reason) noexcept nogil:
    """For each exchange whose stream has not begun. `f` may end any of them."""
    cdef session* s = <session*>c.session
    cdef stream* st
    cdef stream* following
    if s == NULL:
        return
    st = s.streams
    while st != NULL:
        st.flags |= ST_TELLING
        if st.flags & ST_HELD and not st.flags & (ST_OPEN | ST_OUT_ENDED):
            f(&st.leg, reason)
        st.flags &= ~<uint32_t>ST_TELLING
        following = st.next
        stream_release(st)
        st = following


cdef void http2_client_leave(conn* c) noexcept nogil:
    """Begin nothing more on it, and end it with its last stream."""
    cdef session* s = <session*>c.session
    if s != NULL:
        s.flags |= S_PEER_AWAY
        io_enqueue(&c.base)


cdef void http2_client_close(conn* c) noexcept nogil:
    """Close it, whatever is under way on it; at once, unless it is being handled."""
    cdef session* s = <session*>c.session
    if s == NULL:
        return
    if s.flags & (S_RECEIVING | S_SENDING):
        s.flags |= S_DOOMED
        io_enqueue(&c.base)
        return
    end_session(s, LB_R_UPSTREAM_CLOSED)


cdef void end_session(session* s, int reason) noexcept nogil:
    """The connection is lost to all exchanges that have a stream of it. What has come completely still counts."""
    cdef conn* c = s.c
    cdef stream* st
    cdef stream* following
    tell_away(s)
    st = s.streams
    while st != NULL:
        st.flags &= ~<uint32_t>ST_OPEN
        st.flags |= ST_TELLING
        while st.flags & ST_HELD and st.flags & ST_IN_ENDED and not st.flags & ST_IN_TOLD:
            st.flags &= ~<uint32_t>ST_PAUSED
            deliver_waiting(st)
        if st.flags & ST_HELD:
            fail(st, reason)
        st.flags &= ~<uint32_t>(ST_TELLING | ST_HELD)
        following = st.next
        st = following
    if c.base.ready == client_ready and not c.base.flags & (IO_BROKEN | IO_HALF_CLOSED):
        session_say_goodbye(s, s.code)  # before every end (RFC 9113 6.8)
        batch_flush(c.base.r)
    session_free(s)
    pool.connection_ended(c)


cdef void lose_connection(session* s, int reason) noexcept nogil:
    """By the peer's doing, or by what it has sent."""
    if not s.flags & S_BEGUN:
        pool.not_spoken(s.c, reason)
    end_session(s, reason)


cdef void tell_away(session* s) noexcept nogil:
    if not s.flags & S_TOLD_AWAY:
        s.flags |= S_TOLD_AWAY
        pool.going_away(s.c)


cdef void fail(stream* st, int reason) noexcept nogil:
    if st.flags & ST_ANSWERED and reason in (LB_R_UPSTREAM_RESET, LB_R_UPSTREAM_CLOSED, LB_R_UPSTREAM_REFUSED):
        reason = LB_R_UPSTREAM_TRUNCATED
    if st.leg.exchange != NULL:
        calls.response_failed(st.leg.exchange, reason)


cdef void client_ready(io* source) noexcept nogil:
    cdef conn* c = <conn*>source
    cdef session* s = <session*>c.session
    cdef int result
    if c.out_bytes and source.flags & IO_WRITABLE and not source.flags & IO_BROKEN:
        conn_drain(c)
    s.heads_left = HEADERS_PER_TURN
    if c.parked != NULL:
        session_take_parked(s)
    # A server may answer and reset at once: what it said is read before the reset counts.
    result = session_read(s)
    if result != RECEIVE_AGAIN or source.flags & IO_BROKEN:
        session_settle(s)
        lose_connection(s, LB_R_UPSTREAM_CLOSED if result == RECEIVE_END else LB_R_UPSTREAM_RESET)
        batch_flush(source.r)
        return
    if s.reason == 0 and s.flags & S_SETTLED and not s.flags & S_BEGUN:
        begin_waiting(s)
    if s.reason == 0:
        session_settle(s)
    batch_flush(source.r)
    if source.flags & IO_BROKEN:
        return  # and enqueued
    if s.reason:
        blame(s)
        lose_connection(s, reason_of(s))
        return
    if s.flags & S_PEER_AWAY:
        tell_away(s)
    if s.flags & S_DOOMED or session_over(s) or (s.flags & S_TOLD_AWAY and s.stream_count == 0 and c.out_bytes == 0):
        end_session(s, LB_R_UPSTREAM_CLOSED)
        return
    if s.flags & S_STREAM_ENDED:
        s.flags &= ~<uint32_t>S_STREAM_ENDED
        pool.stream_ended(c)


cdef void blame(session* s) noexcept nogil:
    """A head that was not even begun to be read is an answer as well: whose it is, is not asked for again."""
    cdef stream* st
    if s.reason == LB_R_H2_CONTINUATION_FLOOD:
        st = <stream*>nghttp2_session_get_stream_user_data(s.ng, s.meter.block_id)
        if st != NULL:
            st.leg.flags |= LEG_GOT_BYTES


cdef int reason_of(const session* s) noexcept nogil:
    """What the exchanges of a connection are told is wrong with it. Who does not begin with SETTINGS speaks something
    else.
    """
    if s.reason == LB_R_NO_MEMORY:
        return LB_R_NO_MEMORY
    return LB_R_BAD_RESPONSE if s.flags & S_SETTLED else LB_R_UPSTREAM_PROTOCOL


# ------------------------------------------------------------------------------------------------------------- requests

cdef void begin_waiting(session* s) noexcept nogil:
    """Tell those who have waited for SETTINGS: whom another connection has left out, then first come first served."""
    cdef uint32_t room = allowed_streams(s)
    s.flags |= S_BEGUN
    begin_some(s, LEG_FIRST, &room)
    begin_some(s, 0, &room)


cdef void begin_some(session* s, uint32_t wanted, uint32_t* room) noexcept nogil:
    """Those of them whose legs have the flag `wanted`; 0: all that are left."""
    cdef stream* st = s.streams
    cdef stream* following
    while st != NULL and st.next != NULL:
        st = st.next
    while st != NULL:
        st.flags |= ST_TELLING
        if st.flags & ST_HELD and not st.flags & (ST_OPEN | ST_OUT_ENDED | ST_LOST) and st.leg.flags & wanted == wanted:
            if room[0]:
                room[0] -= 1
                pool.begin(&st.leg)
            else:
                pool.no_room(&st.leg)
        st.flags &= ~<uint32_t>ST_TELLING
        following = st.previous
        stream_release(st)
        st = following


cdef void start(leg* l, void* exchange, const outgoing* q) noexcept nogil:
    """Send the request's head."""
    cdef stream* st = <stream*>l
    cdef session* s = st.s
    cdef head* h = &s.c.base.r.message
    cdef pairs out
    cdef nghttp2_data_provider provider
    cdef bint ended = q.ended and not q.upgrade
    l.exchange = exchange
    st.heard_before = s.heard
    if q.no_body_expected:
        st.flags |= ST_NO_BODY
    unpack_head(q.at, h)
    h.upgrade = q.upgrade
    if q.upgrade:
        # A handshake with a body has no form there: its bytes would be the tunnel's.
        if not q.ended or not asks_websocket(h) or not websocket_accept(h, st.accept) or not (
            nghttp2_session_get_remote_settings(s.ng, NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL)
        ):
            st.reason = LB_R_UPSTREAM_NO_WEBSOCKET
            stream_mark(st, ST_LOST)
            return
        st.flags |= ST_WEBSOCKET
    request_pairs(&out, h, s.c.tls != NULL)
    provider.source.ptr = st
    provider.read_callback = read_source
    st.id = nghttp2_submit_request(s.ng, NULL, out.list, out.count, NULL if ended else &provider, st)
    if st.id < 0:
        st.reason = LB_R_NO_MEMORY if http2_client_room(s.c) else LB_R_UPSTREAM_REFUSED
        stream_mark(st, ST_LOST)
        return
    st.flags |= ST_OPEN
    meter_stream_begun(&s.meter)
    if ended:
        st.flags |= ST_OUT_ENDED
    io_enqueue(&s.c.base)


# ------------------------------------------------------------------------------------------------------------ responses

cdef int on_begin_headers(nghttp2_session* ng, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    cdef session* s = <session*>user_data
    s.heading = NULL
    if frame.hd.type == NGHTTP2_HEADERS:
        s.heading = <stream*>nghttp2_session_get_stream_user_data(ng, frame.hd.stream_id)
    if s.heading != NULL:
        s.heading.leg.flags |= LEG_GOT_BYTES
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
        if st.flags & ST_HELD:
            if st.flags & ST_ANSWERED:
                on_trailers(st)
            else:
                on_response(st, frame.hd.length, (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) != 0)
        block_end(&s.block, &s.c.base.r.pages)
    elif frame.hd.type == NGHTTP2_DATA:
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            st = <stream*>nghttp2_session_get_stream_user_data(ng, frame.hd.stream_id)
            if st != NULL and st.flags & ST_ANSWERED:
                stream_ended_in(st, NULL)
    elif frame.hd.type == NGHTTP2_RST_STREAM:
        st = <stream*>nghttp2_session_get_stream_user_data(ng, frame.hd.stream_id)
        if st != NULL:
            st.flags |= ST_PEER_RESET
    elif frame.hd.type == NGHTTP2_GOAWAY:
        s.flags |= S_PEER_AWAY
        io_enqueue(&s.c.base)
    elif frame.hd.type == NGHTTP2_SETTINGS and not frame.hd.flags & NGHTTP2_FLAG_ACK:
        on_settings(s)
    return 0


cdef void on_settings(session* s) noexcept nogil:
    cdef uint32_t most = allowed_streams(s)
    # Who allows none on this connection may allow some on the next one.
    s.c.ep.pools[s.c.base.r.index].streams = <int>most if most else 1
    s.flags |= S_SETTLED | S_STREAM_ENDED


cdef void on_response(stream* st, size_t size, bint ended) noexcept nogil:
    """A response's head, of `size` compressed bytes, is complete."""
    cdef reactor* r = st.s.c.base.r
    cdef head* h = &r.message
    cdef int result
    batch_flush(r)
    result = response_from_block(&st.s.block, h)
    if result:
        if result > 0 and result != LB_R_NO_MEMORY:
            result = LB_R_RESPONSE_TOO_LARGE
        lose(st, result if result > 0 else LB_R_BAD_RESPONSE)
        return
    h.size = <uint32_t>(size + FRAME_HEAD)
    if h.status < 200:
        st.interim += 1
        if st.interim > MAX_INTERIM_RESPONSES:
            lose(st, LB_R_BAD_RESPONSE)
        else:
            calls.response_head(st.leg.exchange, h)
        return
    st.flags |= ST_ANSWERED
    h.has_body = not ended and not st.flags & ST_NO_BODY
    if st.flags & ST_WEBSOCKET and h.status < 300:
        # The neutral form of what RFC 8441 5 answers with 200.
        st.flags |= ST_TUNNEL
        h.status = 101
        h.upgrade = True
        h.content_length = -1
        head_add(h, b"Upgrade", 7, b"websocket", 9).id = FIELD_UPGRADE
        head_add(h, b"Sec-WebSocket-Accept", 20, st.accept, ACCEPT_SIZE)
    calls.response_head(st.leg.exchange, h)
    if ended:
        stream_ended_in(st, NULL)


cdef void on_trailers(stream* st) noexcept nogil:
    cdef head* h = &st.s.c.base.r.message
    batch_flush(st.s.c.base.r)
    if trailers_from_block(&st.s.block, h):
        lose(st, LB_R_UPSTREAM_TRUNCATED)
        return
    stream_ended_in(st, h)


cdef void deliver(stream* st, const char* data, size_t size) noexcept nogil:
    calls.response_body(st.leg.exchange, data, size)


cdef void deliver_end(stream* st, head* trailers) noexcept nogil:
    calls.response_end(st.leg.exchange, trailers)


cdef bint client_is_full(stream* st) noexcept nogil:
    return calls.client_full(st.leg.exchange)


cdef void drained(stream* st) noexcept nogil:
    calls.upstream_drained(st.leg.exchange)


cdef void lost(stream* st) noexcept nogil:
    """The stream is closed, and its exchange is not over."""
    cdef int reason = st.reason
    if st.flags & ST_IN_ENDED and reason == 0:
        return  # all has come, and some of it still waits for the client
    if reason == 0:
        if st.close_code == NGHTTP2_REFUSED_STREAM:
            reason = LB_R_UPSTREAM_REFUSED  # by name, or by a GOAWAY that leaves it out: it was not looked at
        elif st.flags & ST_PEER_RESET:
            reason = LB_R_UPSTREAM_RESET
        else:
            reason = LB_R_BAD_RESPONSE
    fail(st, reason)


cdef void let_go(stream* st) noexcept nogil:
    st.leg.exchange = NULL
    st.flags &= ~<uint32_t>ST_HELD
    # Who has waited for SETTINGS in vain leaves nobody behind to do the same.
    if st.leg.flags & LEG_CLOSE or not st.s.flags & S_BEGUN:
        http2_client_leave(st.s.c)


cdef void done(leg* l) noexcept nogil:
    """The exchange is over and complete."""
    cdef stream* st = <stream*>l
    let_go(st)
    if st.flags & ST_OPEN and not (st.flags & ST_IN_ENDED and st.flags & ST_OUT_ENDED and st.out_bytes == 0):
        stream_reset(st, <uint32_t>(NGHTTP2_NO_ERROR if st.flags & ST_IN_ENDED else NGHTTP2_CANCEL))
    stream_release(st)


cdef void abort(leg* l) noexcept nogil:
    """The exchange gives up: the endpoint may stop."""
    cdef stream* st = <stream*>l
    let_go(st)
    if not (st.flags & ST_IN_ENDED and st.flags & ST_OUT_ENDED):
        stream_reset(st, <uint32_t>NGHTTP2_CANCEL)
    stream_release(st)
