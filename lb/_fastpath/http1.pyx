"""HTTP/1 connections (http1.pxd): the client's side first, then the upstream's."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from lb._fastpath.c.sys cimport (
    LB_R_BAD_CHUNK,
    LB_R_BAD_RESPONSE,
    LB_R_CLIENT_CLOSED,
    LB_R_CLIENT_IDLE_TIMEOUT,
    LB_R_CLIENT_RESET,
    LB_R_DRAIN,
    LB_R_HEAD_TIMEOUT,
    LB_R_KEEPALIVE_TIMEOUT,
    LB_R_NO_HOST,
    LB_R_NO_MEMORY,
    LB_R_UPSTREAM_CLOSED,
    LB_R_UPSTREAM_RESET,
    LB_R_UPSTREAM_TRUNCATED,
    lb_peek_int,
    ssize_t,
)
from lb._fastpath.clients cimport idle_link, idle_unlink, view_of
from lb._fastpath.counters cimport bump
from lb._fastpath.http1_parse cimport (
    CHUNK_BAD,
    CHUNK_DATA,
    CHUNK_TRAILERS,
    chunk_next,
    parse_request,
    parse_response,
    parse_trailers,
)
from lb._fastpath.http2 cimport PREFACE_SIZE, http2_begins
from lb._fastpath.http2_server cimport http2_server_preface
from lb._fastpath.memory cimport page, page_data, page_free
from lb._fastpath.message cimport METHOD_HEAD, field, status_phrase, unpack_head
from lb._fastpath.pipes cimport PIPE_BYTES, pipe, pipe_give, pipe_take
from lb._fastpath.reactor cimport (
    BULK_BYTES,
    IO_BROKEN,
    IO_CUT,
    IO_DEAD,
    IO_HALF_CLOSED,
    IO_READABLE,
    IO_WRITABLE,
    SCRATCH_BYTES,
    io_enqueue,
)
from lb._fastpath.table cimport listener_view
from lb._fastpath.timers cimport timer, timer_rest, timer_set
from lb._fastpath.transport cimport (
    IO_FULL,
    RECEIVE_AGAIN,
    RECEIVE_END,
    RECEIVE_ERROR,
    RECEIVE_UNFIT,
    TURN_BYTES,
    batch_flush,
    conn_close,
    conn_drain,
    conn_park,
    conn_quiet,
    conn_receive,
    conn_receive_pipe,
    conn_shut,
    conn_write,
    conn_write_copy,
    LEG_CLOSE,
    LEG_GOT_BYTES,
    LEG_REUSED,
    leg_calls,
    out_commit,
    out_reserve,
)

cdef enum:
    PARK_LIMIT = 262144  # a full head and a full read behind it, and some more

cdef exchange_calls calls
cdef leg_calls server_calls


cdef void http1_set_calls(exchange_calls* given) noexcept nogil:
    memcpy(&calls, given, sizeof(exchange_calls))
    server_calls.send_head = server_send_head
    server_calls.send_body = server_send_body
    server_calls.send_end = server_send_end
    server_calls.shut = leg_shut
    server_calls.resume = server_resume
    server_calls.full = leg_full
    server_calls.sink = server_sink
    server_calls.waiting = leg_waiting
    server_calls.done = server_done
    server_calls.refuse = server_no_answer
    server_calls.abort = server_abort


# --------------------------------------------------------------------------------------------- the client's side: life

cdef void server_open(conn* c) noexcept nogil:
    """A client has connected; everything but the codec's part is set."""
    c.leg.calls = &server_calls
    c.leg.c = c
    c.state = SERVER_IDLE
    c.base.ready = server_ready
    c.timer.fire = server_timeout
    rest(c)


cdef void server_close(conn* c, int reason) noexcept nogil:
    """The connection ends without an exchange that could say so."""
    if c.base.flags & IO_DEAD:
        return
    bump(&c.base.r.counts.reasons[reason])
    server_gone(c, False)


cdef void server_gone(conn* c, bint reset) noexcept nogil:
    if c.base.flags & IO_DEAD:
        return
    idle_unlink(c)
    conn_close(c, reset)
    calls.client_gone(c)


cdef void server_no_answer(leg* l, int reason) noexcept nogil:
    server_close(l.c, reason)


cdef void server_abort(leg* l) noexcept nogil:
    """The response cannot be completed: cut the connection so that the client does not take it for whole."""
    l.exchange = NULL
    server_gone(l.c, True)


cdef void server_timeout(timer* t) noexcept nogil:
    cdef conn* c = <conn*>t.owner
    if c.state == SERVER_IDLE and c.out_bytes:
        bump(&c.base.r.counts.reasons[LB_R_CLIENT_IDLE_TIMEOUT])
        server_gone(c, True)
    elif c.state == SERVER_IDLE:
        server_close(c, LB_R_KEEPALIVE_TIMEOUT)
    elif c.state == SERVER_HEAD:
        server_refuse(c, LB_R_HEAD_TIMEOUT, view_of(c))
        batch_flush(c.base.r)
    else:
        server_gone(c, c.out_bytes != 0)


cdef void server_ready(io* source) noexcept nogil:
    cdef conn* c = <conn*>source
    cdef reactor* r = source.r
    if source.flags & IO_BROKEN:
        if c.state != SERVER_TUNNEL:
            server_broken(c)
            batch_flush(r)
            return
        # Both directions may just be shut: what the client sent last still counts, and reading tells an end from a
        # reset.
        source.flags |= IO_READABLE
    elif c.out_bytes and source.flags & IO_WRITABLE:
        conn_drain(c)
        if source.flags & IO_BROKEN:
            server_broken(c)
            batch_flush(r)
            return
        if c.leg.exchange != NULL:
            if not source.flags & IO_FULL:
                calls.client_drained(c.leg.exchange)
            else:
                calls.client_took(c.leg.exchange)
        elif c.state == SERVER_CLOSING:
            if c.out_bytes == 0:
                server_linger(c)
            else:
                linger_timer(c)
        elif c.state == SERVER_IDLE:
            if c.out_bytes == 0:
                rest(c)
            else:
                linger_timer(c)
    if not source.flags & IO_DEAD and c.parked != NULL:
        server_take_parked(c)
    if not source.flags & IO_DEAD and source.flags & IO_READABLE:
        server_read(c)
    batch_flush(r)


cdef void server_broken(conn* c) noexcept nogil:
    """A reset, or a write that failed."""
    cdef void* exchange = c.leg.exchange
    if exchange != NULL:
        c.leg.exchange = NULL
        calls.request_failed(exchange, LB_R_CLIENT_RESET)
        server_gone(c, False)
    elif c.state == SERVER_IDLE or c.state == SERVER_HEAD:
        server_close(c, LB_R_CLIENT_RESET)
    else:
        server_gone(c, False)


cdef void server_read(conn* c) noexcept nogil:
    cdef reactor* r = c.base.r
    cdef ssize_t n
    cdef int64_t budget = TURN_BYTES
    while c.base.flags & IO_READABLE and not c.base.flags & IO_DEAD:
        if c.session != NULL:  # it turned out to speak HTTP/2
            io_enqueue(&c.base)
            return
        if c.state == SERVER_WAIT:
            tell_half_closed(c)
            return
        if c.state == SERVER_IDLE and c.base.flags & IO_FULL:
            return
        if (c.state == SERVER_BODY or c.state == SERVER_TUNNEL):
            batch_flush(r)
            if not c.flags & H1_PAUSED and calls.upstream_full(c.leg.exchange):
                c.flags |= H1_PAUSED
            if c.flags & H1_PAUSED:
                tell_half_closed(c)
                return
        if budget <= 0:
            io_enqueue(&c.base)
            return
        batch_flush(r)
        n = conn_receive(c, r.scratch_in, SCRATCH_BYTES)
        if n == RECEIVE_ERROR or (n == RECEIVE_AGAIN and c.base.flags & IO_BROKEN) or (
            n == RECEIVE_END and c.base.flags & IO_CUT
        ):
            server_broken(c)
            return
        if n == RECEIVE_AGAIN:
            return
        if n == RECEIVE_END:
            server_end_of_input(c)
            return
        budget -= n
        server_input(c, r.scratch_in, <size_t>n)


cdef void tell_half_closed(conn* c) noexcept nogil:
    """Nothing is read now, but that there will be an end is known."""
    if c.base.flags & IO_HALF_CLOSED and c.leg.exchange != NULL:
        calls.client_half_closed(c.leg.exchange)


cdef void server_input(conn* c, const char* p, size_t n) noexcept nogil:
    cdef size_t used = 0
    if c.parked == NULL:
        used = server_consume(c, p, n)
        if c.base.flags & IO_DEAD or used == n:
            return
        batch_flush(c.base.r)
        if not conn_park(c, p + used, n - used, PARK_LIMIT):
            server_overrun(c)
        return
    if not conn_park(c, p, n, PARK_LIMIT):
        server_overrun(c)
        return
    server_take_parked(c)


cdef void server_overrun(conn* c) noexcept nogil:
    """No room for what the client has sent ahead."""
    cdef void* exchange = c.leg.exchange
    c.leg.exchange = NULL
    if exchange != NULL:
        calls.request_failed(exchange, LB_R_NO_MEMORY)
        server_gone(c, True)
    else:
        server_close(c, LB_R_NO_MEMORY)


cdef void server_take_parked(conn* c) noexcept nogil:
    """Handle what was read before its time. The page stays put until the batch, which may point into it, is out."""
    cdef page* p = c.parked
    cdef size_t used
    c.parked = NULL
    used = server_consume(c, page_data(p) + p.start, p.end - p.start)
    batch_flush(c.base.r)
    p.start += <uint32_t>used
    if c.base.flags & IO_DEAD or p.start == p.end:
        page_free(&c.base.r.pages, p)
    else:
        c.parked = p


cdef void server_end_of_input(conn* c) noexcept nogil:
    cdef void* exchange = c.leg.exchange
    if c.state == SERVER_TUNNEL:
        calls.request_end(exchange, NULL)
    elif c.state == SERVER_BODY:
        c.leg.exchange = NULL
        calls.request_failed(exchange, LB_R_CLIENT_CLOSED)
        server_gone(c, False)
    elif c.state == SERVER_IDLE or c.state == SERVER_HEAD:
        server_close(c, LB_R_CLIENT_CLOSED)
    elif c.state == SERVER_LINGER:
        server_gone(c, False)


# ----------------------------------------------------------------------------------------- the client's side: requests

cdef size_t server_consume(conn* c, const char* p, size_t n) noexcept nogil:
    """Handle as much as the state allows; how much that was."""
    cdef size_t at = 0, used
    while at < n and not c.base.flags & IO_DEAD:
        if c.state == SERVER_IDLE or c.state == SERVER_HEAD:
            if c.base.flags & IO_FULL:
                return at  # it has not taken the answers before
            used = server_head(c, p + at, n - at)
        elif c.state == SERVER_BODY:
            if c.flags & H1_PAUSED:
                return at
            used = server_body(c, p + at, n - at)
        elif c.state == SERVER_TUNNEL:
            if c.flags & H1_PAUSED:
                return at
            calls.request_body(c.leg.exchange, p + at, n - at)
            return n
        elif c.state == SERVER_WAIT:
            return at
        else:
            return n
        if used == 0:
            return at
        at += used
    return at


cdef size_t server_head(conn* c, const char* p, size_t n) noexcept nogil:
    """Parse a request head and start its exchange. 0: more is needed."""
    cdef reactor* r = c.base.r
    cdef head* h = &r.message
    cdef listener_view* view = view_of(c)
    cdef ssize_t used
    if view == NULL:
        server_refuse(c, LB_R_NO_HOST, NULL)
        return n
    if view.http2 and c.requests == 0 and c.tls == NULL and p[0] == c"P" and http2_begins(p, n):
        if n < PREFACE_SIZE:
            server_head_begun(c, view)
            return 0
        idle_unlink(c)
        http2_server_preface(c, p, n)
        return n
    batch_flush(r)  # scratch_text and scratch_out are about to be written
    used = parse_request(p, n, h, view, r.scratch_text)
    if used == 0:
        server_head_begun(c, view)
        return 0
    idle_unlink(c)
    timer_rest(&c.timer)
    if used < 0:
        server_refuse(c, <int>-used, view)
        return n
    c.requests += 1
    h.size = <uint32_t>used
    c.minor = <uint8_t>h.minor
    c.flags = 0
    c.leg.flags = 0
    if h.method == METHOD_HEAD:
        c.flags |= H1_NO_BODY
    if not h.keep_alive or lb_peek_int(&r.s.draining) or (
        view.max_requests_per_connection and c.requests >= <uint32_t>view.max_requests_per_connection
    ):
        c.leg.flags |= LEG_CLOSE
    elif h.minor == 0:
        c.flags |= H1_KEEP_ALIVE_10
    if h.has_body:
        c.state = SERVER_BODY
        c.flags |= H1_PAUSED  # until the exchange has somewhere to send it
        c.body_left = h.content_length
        if h.chunked:
            c.flags |= H1_CHUNKED_IN
            memset(&c.chunk, 0, sizeof(c.chunk))
    else:
        c.state = SERVER_WAIT
    calls.request_head(&c.leg, h, view)
    return <size_t>used


cdef void server_head_begun(conn* c, listener_view* view) noexcept nogil:
    if c.state == SERVER_IDLE:
        c.state = SERVER_HEAD
        idle_unlink(c)
        timer_set(&c.base.r.timers, &c.timer, c.base.r.now_ms + view.head_timeout_ms)


cdef void server_refuse(conn* c, int reason, listener_view* view) noexcept nogil:
    """A request that is not understood or not wanted: answer it if it can be answered, then close."""
    idle_unlink(c)
    timer_rest(&c.timer)
    c.flags = 0
    c.leg.flags = LEG_CLOSE
    c.minor = 1
    c.state = SERVER_BODY  # whatever follows is not the next request
    calls.request_refused(&c.leg, reason, view)


cdef size_t server_body(conn* c, const char* p, size_t n) noexcept nogil:
    cdef size_t used = 0, size = 0
    cdef const char* data = NULL
    cdef ssize_t trailers
    cdef int step
    cdef void* exchange = c.leg.exchange
    if exchange == NULL:
        return n
    if not c.flags & H1_CHUNKED_IN:
        if <int64_t>n > c.body_left:
            n = <size_t>c.body_left
        c.body_left -= <int64_t>n
        if c.body_left == 0:
            c.state = SERVER_WAIT
        calls.request_body(exchange, p, n)
        if c.state == SERVER_WAIT and c.leg.exchange == exchange:
            calls.request_end(exchange, NULL)
        return n
    step = chunk_next(&c.chunk, p, n, &used, &data, &size)
    if step == CHUNK_DATA:
        calls.request_body(exchange, data, size)
        return used
    if step == CHUNK_TRAILERS:
        trailers = parse_trailers(p + used, n - used, &c.base.r.message)
        if trailers > 0:
            c.state = SERVER_WAIT
            calls.request_end(exchange, &c.base.r.message)
            return used + <size_t>trailers
        if trailers == 0:
            return used
        step = CHUNK_BAD
    if step == CHUNK_BAD:
        c.leg.flags |= LEG_CLOSE
        calls.request_failed(exchange, LB_R_BAD_CHUNK)
        return n
    return used


cdef void server_resume(leg* l) noexcept nogil:
    """The exchange takes body bytes again."""
    cdef conn* c = l.c
    if c.flags & H1_PAUSED:
        c.flags &= ~<uint16_t>H1_PAUSED
        if c.parked != NULL or c.base.flags & IO_READABLE:
            io_enqueue(&c.base)


# ---------------------------------------------------------------------------------------- the client's side: responses

cdef char* put(char* out, const char* data, size_t size) noexcept nogil:
    if size:  # `data` may be NULL: a request without Host
        memcpy(out, data, size)
    return out + size


cdef char* put_fields(char* out, const head* h) noexcept nogil:
    """The fields that go on, as `name: value CRLF` whatever blanks and line ends they came with."""
    cdef int i
    cdef const field* f
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.drop:
            continue
        memcpy(out, f.name, f.name_size)
        out += f.name_size
        out[0] = c":"
        out[1] = c" "
        memcpy(out + 2, f.value, f.value_size)
        out += f.value_size + 2
        out[0] = c"\r"
        out[1] = c"\n"
        out += 2
    return out


cdef size_t fields_size(const head* h) noexcept nogil:
    cdef size_t size = 0
    cdef int i
    for i in range(h.field_count):
        if not h.fields[i].drop:
            size += <size_t>h.fields[i].name_size + h.fields[i].value_size + 4
    return size


cdef char* put_number(char* out, uint64_t value) noexcept nogil:
    cdef char digits[20]
    cdef int count = 0
    while True:
        digits[count] = <char>(c"0" + value % 10)
        count += 1
        value //= 10
        if value == 0:
            break
    while count:
        count -= 1
        out[0] = digits[count]
        out += 1
    return out


cdef size_t server_send_head(leg* l, head* h) noexcept nogil:
    """A response head, with the framing this client understands. A status below 200 is an interim response; after 101
    the connection is a tunnel.
    """
    cdef conn* c = l.c
    cdef reactor* r = c.base.r
    cdef char* start
    cdef char* out
    cdef const char* phrase = h.reason_phrase.at
    cdef size_t phrase_size = h.reason_phrase.size
    cdef bint bodyless
    if phrase == NULL:
        phrase = status_phrase(h.status)
        while phrase[phrase_size]:
            phrase_size += 1
    start = out_reserve(r, fields_size(h) + phrase_size + 160)
    out = put(start, b"HTTP/1.1 ", 9)
    out = put_number(out, <uint64_t>h.status)
    out[0] = c" "
    out = put(out + 1, phrase, phrase_size)
    out = put(out, b"\r\n", 2)
    out = put_fields(out, h)
    if h.status >= 200:
        bodyless = h.status == 204 or h.status == 304 or (c.flags & H1_NO_BODY) != 0
        if h.content_length >= 0:
            # A 304 and an answer to HEAD may say the length of the body they do not have; a 204 may not (RFC 9110 8.6).
            if h.status != 204:
                out = put(out, b"Content-Length: ", 16)
                out = put_number(out, <uint64_t>h.content_length)
                out = put(out, b"\r\n", 2)
        elif not bodyless:
            if c.minor >= 1:
                c.flags |= H1_CHUNKED_OUT
                out = put(out, b"Transfer-Encoding: chunked\r\n", 28)
            else:
                c.leg.flags |= LEG_CLOSE
        elif h.chunked and h.status == 200 and c.minor >= 1:
            out = put(out, b"Transfer-Encoding: chunked\r\n", 28)
        if lb_peek_int(&r.s.draining):
            c.leg.flags |= LEG_CLOSE
        if c.leg.flags & LEG_CLOSE:
            out = put(out, b"Connection: close\r\n", 19)
        elif c.flags & H1_KEEP_ALIVE_10:
            out = put(out, b"Connection: keep-alive\r\n", 24)
    elif h.status == 101:
        out = put(out, b"Connection: upgrade\r\n", 21)
        c.leg.flags |= LEG_CLOSE
        c.state = SERVER_TUNNEL
        if c.parked != NULL or c.base.flags & IO_READABLE:
            io_enqueue(&c.base)
    out = put(out, b"\r\n", 2)
    out_commit(c, <size_t>(out - start))
    return <size_t>(out - start)


cdef void put_chunk(conn* c, const char* data, size_t size) noexcept nogil:
    """One chunk. The data stays where it is; only its frame is copied."""
    cdef const char* digits = b"0123456789abcdef"  # a literal is a Python object until it has a C type
    cdef char frame[20]
    cdef int at = 18
    cdef size_t rest = size
    frame[18] = c"\r"
    frame[19] = c"\n"
    while rest:
        at -= 1
        frame[at] = digits[rest & 15]
        rest >>= 4
    conn_write_copy(c, frame + at, <size_t>(20 - at))
    conn_write(c, data, size)
    conn_write_copy(c, b"\r\n", 2)


cdef void put_last_chunk(conn* c, head* trailers) noexcept nogil:
    cdef char* start
    cdef char* out
    if trailers == NULL or trailers.field_count == 0:
        conn_write_copy(c, b"0\r\n\r\n", 5)
        return
    start = out_reserve(c.base.r, fields_size(trailers) + 8)
    out = put(start, b"0\r\n", 3)
    out = put_fields(out, trailers)
    out = put(out, b"\r\n", 2)
    out_commit(c, <size_t>(out - start))


cdef void server_send_body(leg* l, const char* data, size_t size) noexcept nogil:
    cdef conn* c = l.c
    if size == 0:
        return
    if c.flags & H1_CHUNKED_OUT:
        put_chunk(c, data, size)
    else:
        conn_write(c, data, size)


cdef conn* server_sink(leg* l) noexcept nogil:
    cdef conn* c = l.c
    if c.tls != NULL or c.out_bytes or c.flags & (H1_CHUNKED_OUT | H1_NO_BODY) or c.base.flags & IO_BROKEN:
        return NULL
    return c


cdef void server_send_end(leg* l, head* trailers) noexcept nogil:
    if l.c.flags & H1_CHUNKED_OUT:
        put_last_chunk(l.c, trailers)


cdef void leg_shut(leg* l) noexcept nogil:
    conn_shut(l.c)


cdef bint leg_full(leg* l) noexcept nogil:
    return (l.c.base.flags & IO_FULL) != 0


cdef size_t leg_waiting(leg* l) noexcept nogil:
    return l.c.out_bytes


cdef void server_done(leg* l) noexcept nogil:
    """The exchange is over and its response is on its way."""
    cdef conn* c = l.c
    cdef reactor* r = c.base.r
    l.exchange = NULL
    if c.base.flags & IO_DEAD:
        return
    if c.state == SERVER_WAIT and not c.leg.flags & LEG_CLOSE:
        c.state = SERVER_IDLE
        batch_flush(r)
        if c.out_bytes == 0:
            rest(c)
        else:
            linger_timer(c)  # not idle before it has taken its answer
        if c.parked != NULL or c.base.flags & IO_READABLE:
            io_enqueue(&c.base)
        return
    # The request may not have been read to its end: the rest must not be taken for another one.
    if c.state == SERVER_WAIT and c.parked == NULL and not c.base.flags & IO_READABLE:
        c.state = SERVER_CLOSING
        batch_flush(r)
        if c.out_bytes == 0:
            server_gone(c, False)
            return
    c.state = SERVER_CLOSING
    batch_flush(r)
    if c.out_bytes == 0:
        server_linger(c)
    else:
        linger_timer(c)


cdef void rest(conn* c) noexcept nogil:
    """Idle from now on: waiting for a request, and the first to go when room is needed."""
    cdef listener_view* view = view_of(c)
    timer_set(&c.base.r.timers, &c.timer, c.base.r.now_ms + (view.keepalive_timeout_ms if view != NULL else 0))
    idle_link(c)
    if c.requests and lb_peek_int(&c.base.r.s.draining) and c.parked == NULL and not c.base.flags & IO_READABLE:
        server_close(c, LB_R_DRAIN)


cdef void linger_timer(conn* c) noexcept nogil:
    """A client that does not read its last bytes is given as long as one whose body stands still."""
    cdef listener_view* view = view_of(c)
    timer_set(&c.base.r.timers, &c.timer, c.base.r.now_ms + (view.idle_timeout_ms if view != NULL else 1000))


cdef void server_linger(conn* c) noexcept nogil:
    """Say that nothing more comes, and read on for a while: closing on unread bytes would reset the connection, and
    the client
    would lose the answer (RFC 9112 9.6)."""
    cdef listener_view* view = view_of(c)
    if c.base.flags & IO_DEAD:
        return
    c.state = SERVER_LINGER
    conn_shut(c)
    timer_set(&c.base.r.timers, &c.timer, c.base.r.now_ms + (view.linger_timeout_ms if view != NULL else 1000))
    if c.base.flags & IO_READABLE or c.parked != NULL:
        io_enqueue(&c.base)


# ------------------------------------------------------------------------------------------------- the upstream's side

cdef size_t request_size(const head* h) noexcept nogil:
    """Room that build_request needs."""
    return fields_size(h) + h.method_name.size + h.target.size + h.host.size + 128


cdef size_t build_request(const head* h, char* out) noexcept nogil:
    """A request head for an upstream: always HTTP/1.1, Host first, one framing field of our own making."""
    cdef char* start = out
    out = put(out, h.method_name.at, h.method_name.size)
    out[0] = c" "
    out = put(out + 1, h.target.at, h.target.size)
    out = put(out, b" HTTP/1.1\r\nHost: ", 17)
    out = put(out, h.host.at, h.host.size)
    out = put(out, b"\r\n", 2)
    out = put_fields(out, h)
    if h.chunked:
        out = put(out, b"Transfer-Encoding: chunked\r\n", 28)
    elif h.content_length >= 0:
        out = put(out, b"Content-Length: ", 16)
        out = put_number(out, <uint64_t>h.content_length)
        out = put(out, b"\r\n", 2)
    if h.upgrade:
        out = put(out, b"Connection: upgrade\r\n", 21)
    elif h.te_trailers:
        out = put(out, b"TE: trailers\r\nConnection: TE\r\n", 30)
    out = put(out, b"\r\n", 2)
    return <size_t>(out - start)


cdef void client_start(leg* l, void* exchange, const outgoing* request) noexcept nogil:
    """Begin an exchange on a connected upstream connection."""
    cdef conn* c = l.c
    cdef head* h
    cdef char* out
    l.exchange = exchange
    l.flags = LEG_REUSED if c.requests else 0
    c.base.ready = client_ready
    c.state = CLIENT_HEAD
    c.flags = 0
    if request.no_body_expected:
        c.flags |= H1_NO_BODY
    if request.upgrade:
        c.flags |= H1_UPGRADE
    if request.chunked:
        c.flags |= H1_CHUNKED_OUT
    c.requests += 1
    c.body_left = 0
    c.minor = 0  # interim responses seen
    if request.packed:
        h = &c.base.r.outgoing
        unpack_head(request.at, h)
        out = out_reserve(c.base.r, request_size(h))
        out_commit(c, build_request(h, out))
    else:
        conn_write(c, request.at, request.size)
    if request.chunked and request.ended:  # an empty body, which ended before there was a connection for it
        put_last_chunk(c, NULL)


cdef void client_ready(io* source) noexcept nogil:
    cdef conn* c = <conn*>source
    cdef reactor* r = source.r
    if c.out_bytes and source.flags & IO_WRITABLE and not source.flags & IO_BROKEN:
        conn_drain(c)
        if not source.flags & (IO_BROKEN | IO_FULL) and c.leg.exchange != NULL:
            calls.upstream_drained(c.leg.exchange)
    if not source.flags & IO_DEAD and c.parked != NULL and not c.flags & H1_PAUSED:
        client_take_parked(c)
    # A server may answer and reset at once: what it said is read before the reset counts.
    if not source.flags & IO_DEAD and source.flags & (IO_READABLE | IO_BROKEN):
        client_read(c)
    batch_flush(r)


cdef void client_read(conn* c) noexcept nogil:
    cdef reactor* r = c.base.r
    cdef ssize_t n
    cdef bint piped
    cdef int64_t budget = TURN_BYTES
    while c.base.flags & (IO_READABLE | IO_BROKEN) and not c.base.flags & IO_DEAD and c.leg.exchange != NULL:
        batch_flush(r)
        if not c.flags & H1_PAUSED and calls.client_full(c.leg.exchange):
            c.flags |= H1_PAUSED
        if c.flags & H1_PAUSED:
            return
        if budget <= 0:
            io_enqueue(&c.base)
            return
        n = pass_by_pipe(c) if c.flags & H1_BULK else RECEIVE_UNFIT
        piped = n != RECEIVE_UNFIT
        if not piped:
            n = conn_receive(c, r.scratch_in, BULK_BYTES if c.flags & H1_BULK else SCRATCH_BYTES)
        if n == RECEIVE_AGAIN:
            if c.base.flags & IO_BROKEN:
                client_failed(c, LB_R_UPSTREAM_RESET)
            return
        if n == RECEIVE_END and not c.base.flags & IO_CUT:
            client_end_of_input(c)
            return
        if n == RECEIVE_END and not c.base.flags & IO_BROKEN:
            client_failed(c, LB_R_UPSTREAM_CLOSED)  # without TLS's goodbye, as many servers do
            return
        if n == RECEIVE_END or n == RECEIVE_ERROR:
            client_failed(c, LB_R_UPSTREAM_RESET)
            return
        budget -= n
        if not piped:
            client_input(c, r.scratch_in, <size_t>n)
        if n >= SCRATCH_BYTES and c.tls == NULL:
            batch_flush(r)
            note_bulk(c)


cdef void note_bulk(conn* c) noexcept nogil:
    """Few large reads cost less than many small ones, but what the client does not take has to be copied."""
    if c.base.flags & IO_DEAD or c.leg.exchange == NULL:
        return
    if calls.client_waits(c.leg.exchange):
        c.flags &= ~<uint16_t>H1_BULK
    else:
        c.flags |= H1_BULK


cdef ssize_t pass_by_pipe(conn* c) noexcept nogil:
    """As conn_receive, but what comes of a body goes on through the kernel. RECEIVE_UNFIT: not here, or not now."""
    cdef void* exchange = c.leg.exchange
    cdef pipe* p
    cdef ssize_t n
    if c.state != CLIENT_BODY or c.flags & (H1_CHUNKED_IN | H1_UNTIL_CLOSE) or c.body_left < BULK_BYTES or (
        c.parked != NULL or calls.client_sink(exchange) == NULL
    ):
        return RECEIVE_UNFIT
    p = pipe_take(c.base.r)
    if p == NULL:
        return RECEIVE_UNFIT
    n = conn_receive_pipe(c, p, <size_t>c.body_left if c.body_left < PIPE_BYTES else PIPE_BYTES)
    if n <= 0:
        pipe_give(c.base.r, p)
        return n
    c.body_left -= n
    calls.response_piped(exchange, p)
    if c.body_left == 0 and c.leg.exchange == exchange:
        c.state = CLIENT_DONE
        calls.response_end(exchange, NULL)
    return n


cdef void client_failed(conn* c, int reason) noexcept nogil:
    cdef void* exchange = c.leg.exchange
    if exchange == NULL:
        return
    if c.state == CLIENT_BODY and (reason == LB_R_UPSTREAM_RESET or reason == LB_R_UPSTREAM_CLOSED):
        reason = LB_R_UPSTREAM_TRUNCATED
    calls.response_failed(exchange, reason)


cdef void client_end_of_input(conn* c) noexcept nogil:
    if c.state == CLIENT_TUNNEL or (c.state == CLIENT_BODY and c.flags & H1_UNTIL_CLOSE):
        if c.state == CLIENT_BODY:
            c.state = CLIENT_DONE
        c.leg.flags |= LEG_CLOSE
        calls.response_end(c.leg.exchange, NULL)
    else:
        client_failed(c, LB_R_UPSTREAM_CLOSED)


cdef void client_input(conn* c, const char* p, size_t n) noexcept nogil:
    cdef size_t used = 0
    if c.parked == NULL:
        used = client_consume(c, p, n)
        if c.base.flags & IO_DEAD or c.leg.exchange == NULL or used == n:
            return
        batch_flush(c.base.r)
        if not conn_park(c, p + used, n - used, PARK_LIMIT):
            client_failed(c, LB_R_NO_MEMORY)
        return
    if not conn_park(c, p, n, PARK_LIMIT):
        client_failed(c, LB_R_NO_MEMORY)
        return
    client_take_parked(c)


cdef void client_take_parked(conn* c) noexcept nogil:
    cdef reactor* r = c.base.r
    cdef page* p = c.parked
    cdef size_t used
    c.parked = NULL
    used = client_consume(c, page_data(p) + p.start, p.end - p.start)
    batch_flush(r)
    p.start += <uint32_t>used
    if c.base.flags & IO_DEAD or c.leg.exchange == NULL or p.start == p.end:
        page_free(&r.pages, p)
    else:
        c.parked = p


cdef size_t client_consume(conn* c, const char* p, size_t n) noexcept nogil:
    """Handle as much as the state allows. After the end of the response the connection may already be somebody
    else's: then
    `c.leg.exchange` has changed, and what is left over has already made it unfit for reuse."""
    cdef size_t at = 0, used
    cdef void* exchange = c.leg.exchange
    while at < n and not c.base.flags & IO_DEAD and c.leg.exchange == exchange:
        if c.flags & H1_PAUSED:
            return at
        if c.state == CLIENT_HEAD:
            used = client_head(c, p + at, n - at)
        elif c.state == CLIENT_BODY:
            used = client_body(c, p + at, n - at)
        elif c.state == CLIENT_TUNNEL:
            calls.response_body(exchange, p + at, n - at)
            return n
        else:
            return n
        if used == 0:
            return at
        at += used
    return n


cdef size_t client_head(conn* c, const char* p, size_t n) noexcept nogil:
    cdef head* h = &c.base.r.message
    cdef void* exchange = c.leg.exchange
    cdef ssize_t used
    batch_flush(c.base.r)
    used = parse_response(p, n, h)
    if used == 0:
        c.leg.flags |= LEG_GOT_BYTES
        return 0
    c.leg.flags |= LEG_GOT_BYTES
    if used < 0:
        client_failed(c, <int>-used)
        return n
    h.size = <uint32_t>used
    if h.status < 200:
        return client_interim(c, h, <size_t>used)
    c.state = CLIENT_BODY
    if not h.keep_alive:
        c.leg.flags |= LEG_CLOSE
    # Who announces a body and must not have one may send it all the same: never use that connection again.
    if c.flags & H1_NO_BODY or h.status == 204 or h.status == 304:
        if h.has_body and not c.flags & H1_NO_BODY and h.status == 204:
            c.leg.flags |= LEG_CLOSE
        h.has_body = False
        c.flags |= H1_NO_BODY
        c.state = CLIENT_DONE
    elif h.chunked:
        c.flags |= H1_CHUNKED_IN
        memset(&c.chunk, 0, sizeof(c.chunk))
    elif h.content_length >= 0:
        c.body_left = h.content_length
        if h.content_length == 0:
            c.state = CLIENT_DONE
    else:
        c.flags |= H1_UNTIL_CLOSE
        c.leg.flags |= LEG_CLOSE
        h.has_body = True
    if c.state == CLIENT_DONE and <size_t>used < n:
        c.leg.flags |= LEG_CLOSE  # bytes behind the response: nobody asked for them
    calls.response_head(exchange, h)
    if c.leg.exchange == exchange and c.state == CLIENT_DONE and not c.base.flags & IO_DEAD:
        calls.response_end(exchange, NULL)
    return <size_t>used


cdef size_t client_interim(conn* c, head* h, size_t used) noexcept nogil:
    """1xx: pass it on and go on waiting; 101 opens the tunnel, if one was asked for."""
    c.minor += 1
    if h.status == 101:
        if not (c.flags & H1_UPGRADE and h.upgrade):
            client_failed(c, LB_R_BAD_RESPONSE)
            return used
        c.state = CLIENT_TUNNEL
        c.leg.flags |= LEG_CLOSE
    elif c.minor > MAX_INTERIM_RESPONSES:
        client_failed(c, LB_R_BAD_RESPONSE)
        return used
    calls.response_head(c.leg.exchange, h)
    return used


cdef size_t client_body(conn* c, const char* p, size_t n) noexcept nogil:
    cdef size_t used = 0, size = 0, take = n
    cdef const char* data = NULL
    cdef ssize_t trailers
    cdef int step
    cdef void* exchange = c.leg.exchange
    if c.flags & H1_UNTIL_CLOSE:
        calls.response_body(exchange, p, n)
        return n
    if not c.flags & H1_CHUNKED_IN:
        if <int64_t>take > c.body_left:
            take = <size_t>c.body_left
        c.body_left -= <int64_t>take
        calls.response_body(exchange, p, take)
        if c.body_left == 0 and c.leg.exchange == exchange:
            if take < n:
                c.leg.flags |= LEG_CLOSE
            c.state = CLIENT_DONE
            calls.response_end(exchange, NULL)
        return take
    step = chunk_next(&c.chunk, p, n, &used, &data, &size)
    if step == CHUNK_DATA:
        calls.response_body(exchange, data, size)
        return used
    if step == CHUNK_TRAILERS:
        trailers = parse_trailers(p + used, n - used, &c.base.r.message)
        if trailers > 0:
            used += <size_t>trailers
            if used < n:
                c.leg.flags |= LEG_CLOSE
            c.state = CLIENT_DONE
            calls.response_end(exchange, &c.base.r.message)
            return used
        if trailers == 0:
            return used
        step = CHUNK_BAD
    if step == CHUNK_BAD:
        client_failed(c, LB_R_UPSTREAM_TRUNCATED)
        return n
    return used


cdef void client_send_body(leg* l, const char* data, size_t size) noexcept nogil:
    cdef conn* c = l.c
    if size == 0:
        return
    if c.flags & H1_CHUNKED_OUT:
        put_chunk(c, data, size)
    else:
        conn_write(c, data, size)


cdef void client_send_end(leg* l, head* trailers) noexcept nogil:
    if l.c.flags & H1_CHUNKED_OUT:
        put_last_chunk(l.c, trailers)


cdef void client_resume(leg* l) noexcept nogil:
    cdef conn* c = l.c
    if c.flags & H1_PAUSED:
        c.flags &= ~<uint16_t>H1_PAUSED
        if c.parked != NULL or c.base.flags & (IO_READABLE | IO_BROKEN):
            io_enqueue(&c.base)


cdef bint client_reusable(conn* c) noexcept nogil:
    """Whether the connection can serve another exchange: its response was complete and framed, and nothing came
    behind it.
    """
    if c.state != CLIENT_DONE or c.leg.flags & LEG_CLOSE or c.out_bytes or c.parked != NULL:
        return False
    if c.base.flags & (IO_BROKEN | IO_HALF_CLOSED | IO_DEAD):
        return False
    # The last read was exactly as long as the room for it: there may be more, or an end.
    return not c.base.flags & IO_READABLE or conn_quiet(c)
