"""The phases of exchange.pxd, in the order in which a request meets them."""
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from lb._fastpath.access cimport log_exchange, log_refusal, note_failed_attempt
from lb._fastpath.announce cimport announce_client
from lb._fastpath.answers cimport http_date, send_answer, send_redirect
from lb._fastpath.balance cimport (
    PICK_FULL,
    balance_pick,
    balance_release,
    cursors_of,
    endpoint_answered,
    pick_reason,
    tried_bit,
)
from lb._fastpath.c.openssl cimport X509_V_OK
from lb._fastpath.c.sys cimport (
    LB_R_BAD_GRPC_WEB,
    LB_R_BAD_HEADER,
    LB_R_BAD_RESPONSE,
    LB_R_BODY_TOO_LARGE,
    LB_R_CLIENT_CLOSED,
    LB_R_CLIENT_IDLE_TIMEOUT,
    LB_R_CLIENT_RESET,
    LB_R_CONNECT_FAILED,
    LB_R_CONNECT_TIMEOUT,
    LB_R_GRPC_DEADLINE,
    LB_R_LOCAL_ANSWER,
    LB_R_MISDIRECTED,
    LB_R_NO_HOST,
    LB_R_NO_MEMORY,
    LB_R_NO_ROUTE,
    LB_R_NO_UPSTREAM,
    LB_R_OK,
    LB_R_QUEUE_FULL,
    LB_R_QUEUE_TIMEOUT,
    LB_R_REQUEST_TIMEOUT,
    LB_R_RESPONSE_TIMEOUT,
    LB_R_SHUTDOWN,
    LB_R_TUNNEL_TIMEOUT,
    LB_R_UPSTREAM_CLOSED,
    LB_R_UPSTREAM_IDLE_TIMEOUT,
    LB_R_UPSTREAM_REFUSED,
    LB_R_UPSTREAM_RESET,
    LB_R_UPSTREAM_TLS_FAILED,
    LB_TOKEN,
    lb_add_int,
    lb_class,
    lb_equal_nocase,
    lb_fence,
    lb_load_ptr,
    lb_peek_i64,
    lb_peek_int,
    lb_put_int,
    lb_reason_statuses,
)
from lb._fastpath.clock cimport monotonic_ns
from lb._fastpath.counters cimport (
    bump,
    bump_by,
    grpc_traffic,
    listener_traffic,
    observe,
    stats_block,
    stats_prefetch,
    traffic,
    upstream_traffic,
)
from lb._fastpath.forwarded cimport add_forwarded, is_secure, put_address
from lb._fastpath.grpc cimport GRPC_NONE, GRPC_STATUSES, keep_metadata, note_deadline, note_grpc, note_grpc_status
from lb._fastpath.grpc_web cimport (
    bridge_request,
    bridge_request_body,
    bridge_response,
    bridge_response_body,
    bridge_trailers,
)
from lb._fastpath.http2 cimport http2_set_calls
from lb._fastpath.http2_client cimport http2_client_leaves, http2_client_silent
from lb._fastpath.http2_server cimport http2_server_cut, http2_server_install
from lb._fastpath.http1 cimport (
    build_request,
    http1_set_calls,
    request_size,
)
from lb._fastpath.accept cimport client_gone
from lb._fastpath.memory cimport page_alloc, page_data, page_free, slab_alloc, slab_free
from lb._fastpath.pipes cimport pipe
from lb._fastpath.message cimport (
    FIELD_ACCEPT,
    FIELD_CONTENT_TYPE,
    FIELD_REFERER,
    FIELD_UPGRADE,
    FIELD_USER_AGENT,
    FIELD_X_REQUEST_ID,
    METHOD_DELETE,
    METHOD_GET,
    METHOD_HEAD,
    METHOD_OPTIONS,
    METHOD_PUT,
    METHOD_TRACE,
    field,
    head,
    head_add,
    pack_head,
    packed_size,
)
from lb._fastpath.reactor cimport (
    IO_BROKEN,
    IO_DEAD,
    IO_READABLE,
    RANDOM_ID_BYTES,
    io_enqueue,
    put_random_id,
    reactor_wake,
    table_pin_one,
    table_unpin_one,
)
from lb._fastpath.replay cimport between_attempts, replay_begin, replay_drop, replay_pass, replay_send
from lb._fastpath.ring cimport (
    TEXT_HOST,
    TEXT_METHOD,
    TEXT_REFERER,
    TEXT_ROUTE,
    TEXT_TARGET,
    TEXT_USER_AGENT,
    TEXT_VIRTUAL_HOST,
)
from lb._fastpath.table cimport (
    ACTION_RESPOND,
    NO_ROUTE,
    PROTOCOL_HTTP1,
    find_host,
    find_route,
    draw_target,
    route_at,
    target,
    text_at,
)
from lb._fastpath.proxy_protocol cimport PROXY_NONE
from lb._fastpath.timers cimport timer_cancel, timer_set
from lb._fastpath.tls cimport CLIENTS_REFUSED, CLIENTS_REQUIRED, tls_context, tls_lookup, tls_verify_result
from lb._fastpath.transport cimport (
    LEG_CLOSE,
    LEG_GOT_BYTES,
    LEG_REUSED,
    batch_flush,
    conn,
    conn_write_pipe,
    connect_calls,
    exchange_calls,
    family_for,
    outgoing,
)
from lb._fastpath.upstream cimport (
    connect_timed_out,
    is_ours,
    upstream_lease,
    upstream_set_calls,
    upstream_take_back,
)

cdef enum:
    LEFT_OUT_MOST = 16  # connections that may leave a request out, one after the other


# --------------------------------------------------------------------------------------------------------------- begin

cdef exchange* exchange_new(leg* d, listener_view* view) noexcept nogil:
    cdef conn* c = d.c
    cdef reactor* r = c.base.r
    cdef exchange* x = <exchange*>slab_alloc(&r.exchange_slab)
    if x == NULL:
        return NULL
    x.r = r
    x.d = d
    x.view = view
    x.slot = c.slot
    x.tls = c.tls
    x.client = c
    x.version = 20 if c.session != NULL else 11
    x.started_ns = r.now_ns
    x.mark_ns = r.now_ns
    x.progress_ms = r.now_ms
    x.first_byte_ns = -1
    x.grpc_status = GRPC_NONE
    x.request_deadline_ms = INT64_MAX
    x.wait_deadline_ms = INT64_MAX
    x.max_body = -1
    x.timer.owner = x
    x.timer.fire = on_timer
    x.listener_name = c.listener_name
    x.listener_name_size = c.listener_name_size
    x.client_port = c.peer_port
    if not c.local:
        x.client_text_size = <uint8_t>put_address(x.client_text, c.peer)
    d.exchange = x
    lb_put_int(&r.exchange_count, r.exchange_count + 1)
    bump(&r.counts.exchanges_started)
    x.t = r.serving
    if x.t != NULL:
        table_pin_one(r, x.t)
        x.generation = x.t.generation
    return x


cdef void on_request_head(leg* d, head* h, listener_view* view) noexcept nogil:
    """Decide who serves the request, and send it there."""
    cdef reactor* r = d.c.base.r
    cdef exchange* x = exchange_new(d, view)
    cdef uint32_t rank
    if x == NULL:
        d.calls.refuse(d, LB_R_NO_MEMORY)
        return
    note_request(x, h)
    if h.target.size == 1 and h.target.at[0] == c"*":
        answer(x, 200, LB_R_LOCAL_ANSWER, NULL, 0)  # OPTIONS *: about this hop (RFC 9110 9.3.7)
        return
    x.host = find_host(view.hosts, h.hostname.at, h.hostname.size)
    if x.host == NULL:
        refuse(x, LB_R_NO_HOST)
        return
    if d.c.tls != NULL and view.tls != NULL and (view.tls.varied or view.tls.strict) and misdirected(d.c, view, h):
        refuse(x, LB_R_MISDIRECTED)
        return
    rank = find_route(
        x.host, h.target.at, h.path_size, h.target.at + h.path_size + 1,
        h.target.size - h.path_size - 1 if h.target.size > h.path_size else 0, h.target.size > h.path_size, h
    )
    if rank == NO_ROUTE:
        refuse(x, LB_R_NO_ROUTE)
        return
    x.rt = route_at(x.host, rank)
    x.route_id = x.rt.id
    x.routed = True
    if x.rt.grpc_web:
        bridge_request(x, h)
    if x.flags & X_GRPC and not note_deadline(x, h):
        refuse(x, LB_R_BAD_HEADER)
        return
    x.max_body = x.rt.max_body_bytes if x.rt.max_body_bytes >= 0 else view.max_body_bytes
    if x.max_body > 0 and h.content_length > x.max_body:
        refuse(x, LB_R_BODY_TOO_LARGE)
        return
    if x.rt.request_timeout_ms > 0 and r.now_ms + x.rt.request_timeout_ms < x.request_deadline_ms:
        x.flags &= ~<uint32_t>X_GRPC_DEADLINE
        x.request_deadline_ms = r.now_ms + x.rt.request_timeout_ms
    if x.rt.https_redirect and not is_secure(x, h):
        send_redirect(x, h)
        finish(x, LB_R_LOCAL_ANSWER)
        return
    if x.rt.action == ACTION_RESPOND:
        answer(x, x.rt.status, LB_R_LOCAL_ANSWER, text_at(x.host, x.rt.body), x.rt.body.size)
        return
    x.idle_timeout_ms = x.rt.idle_timeout_ms
    x.retries_left = x.rt.retries
    x.up = choose_upstream(x)
    if x.up == NULL:
        refuse(x, LB_R_NO_UPSTREAM)
        return
    x.live = x.up.live
    if not prepare_request(x, h):
        refuse(x, LB_R_NO_MEMORY)
        return
    dispatch(x)


cdef bint misdirected(const conn* c, const listener_view* view, const head* h) noexcept nogil:
    """Whether this host asks something else of its clients than the one the connection was made for (RFC 9110 15.5.20).

    Where all hosts ask the same, a change may have made them ask for a certificate that this client never had to show.
    """
    cdef const tls_context* context = tls_lookup(view.tls, h.hostname.at, h.hostname.size).context
    if context.id == c.tls.context_id:
        return False
    return view.tls.varied or (
        context.client_mode == CLIENTS_REFUSED
        or (context.client_mode == CLIENTS_REQUIRED and tls_verify_result(c.tls) != X509_V_OK)
    )


cdef void note_request(exchange* x, head* h) noexcept nogil:
    """What later phases need of a head that will be gone by then."""
    cdef int i
    cdef field* f
    x.method = <uint8_t>h.method
    x.version = <uint8_t>h.version
    x.bytes_in = h.size
    if h.has_body:
        x.flags |= X_HAS_BODY
        if h.chunked:
            x.flags |= X_CHUNKED
    else:
        x.flags |= X_REQUEST_DONE
    if h.method == METHOD_HEAD:
        x.flags |= X_HEAD
    if h.upgrade:
        x.flags |= X_UPGRADE
    if h.method in (METHOD_GET, METHOD_HEAD, METHOD_OPTIONS, METHOD_TRACE, METHOD_PUT, METHOD_DELETE):
        x.flags |= X_IDEMPOTENT  # RFC 9110 9.2.2
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.id == FIELD_CONTENT_TYPE:
            note_grpc(x, f)
        elif f.id == FIELD_ACCEPT:
            if mentions(f.value, f.value_size, b"application/json", 16):
                x.flags |= X_JSON
        elif f.id == FIELD_X_REQUEST_ID:
            take_request_id(x, f)
    if x.request_id_size == 0:
        make_request_id(x)
    if x.r.s.logging:
        note_texts(x, h)


cdef bint mentions(const char* text, size_t size, const char* word, size_t word_size) noexcept nogil:
    cdef size_t i = 0
    while i + word_size <= size:
        if lb_equal_nocase(text + i, word, word_size):
            return True
        i += 1
    return False


cdef void take_request_id(exchange* x, field* f) noexcept nogil:
    """A client's own id is kept when it is short and plain, so that a trace can begin further out."""
    cdef uint32_t i
    f.drop = True
    if f.value_size == 0 or f.value_size > REQUEST_ID_SIZE:
        return
    for i in range(f.value_size):
        if not lb_class[<uint8_t>f.value[i]] & LB_TOKEN:
            return
    memcpy(x.request_id, f.value, f.value_size)
    x.request_id_size = <uint8_t>f.value_size


cdef void make_request_id(exchange* x) noexcept nogil:
    put_random_id(x.r, x.request_id)
    x.request_id_size = RANDOM_ID_BYTES


cdef void note_texts(exchange* x, head* h) noexcept nogil:
    """Keep the texts for the log record, in a page that the request will share."""
    cdef const char* at[TEXT_COUNT]
    cdef uint32_t total = 0
    cdef int i
    cdef char* out
    memset(at, 0, sizeof(at))
    at[TEXT_METHOD] = h.method_name.at
    x.text_sizes[TEXT_METHOD] = h.method_name.size
    at[TEXT_TARGET] = h.raw_target.at
    x.text_sizes[TEXT_TARGET] = h.raw_target.size
    at[TEXT_HOST] = h.host.at
    x.text_sizes[TEXT_HOST] = h.host.size
    for i in range(h.field_count):
        if h.fields[i].id == FIELD_USER_AGENT:
            at[TEXT_USER_AGENT] = h.fields[i].value
            x.text_sizes[TEXT_USER_AGENT] = h.fields[i].value_size
        elif h.fields[i].id == FIELD_REFERER:
            at[TEXT_REFERER] = h.fields[i].value
            x.text_sizes[TEXT_REFERER] = h.fields[i].value_size
    for i in range(TEXT_COUNT):
        total += x.text_sizes[i]
    x.request = page_alloc(&x.r.pages, total + request_size(h) + 2048)
    if x.request == NULL:
        memset(x.text_sizes, 0, sizeof(x.text_sizes))
        return
    out = page_data(x.request)
    for i in range(TEXT_COUNT):
        if x.text_sizes[i]:
            memcpy(out, at[i], x.text_sizes[i])
            out += x.text_sizes[i]
    x.request.end = total


cdef upstream_view* choose_upstream(exchange* x) noexcept nogil:
    """One of the route's weighted upstreams, at random in proportion to the weights."""
    cdef const target* targets = <const target*>(<const char*>x.host + x.rt.targets)
    cdef const target* chosen = draw_target(targets, x.rt.target_count, x.r.random)
    if chosen == NULL or chosen.slot >= x.t.upstream_count:
        return NULL
    return x.t.upstreams[chosen.slot]


# ------------------------------------------------------------------------------------------- the request as it goes on

cdef bint prepare_request(exchange* x, head* h) noexcept nogil:
    """Write the head as it goes upstream, behind the texts for the log. False: no memory."""
    cdef reactor* r = x.r
    cdef bint packed = x.up.protocol != PROTOCOL_HTTP1
    cdef size_t size
    cdef page* p
    cdef uint32_t texts = 0
    add_forwarded(x, h)
    head_add(h, b"X-Request-ID", 12, x.request_id, x.request_id_size)
    if x.request != NULL:
        texts = x.request.end
    size = packed_size(h) if packed else request_size(h)
    if x.request == NULL or x.request.capacity - sizeof(page) < texts + size:
        p = page_alloc(&r.pages, texts + size)
        if p == NULL:
            return False
        if x.request != NULL:
            memcpy(page_data(p), page_data(x.request), texts)
            page_free(&r.pages, x.request)
        x.request = p
    x.text_at = texts
    if packed:
        x.flags |= X_PACKED
        x.request_size = <uint32_t>pack_head(h, page_data(x.request) + texts)
    else:
        x.request_size = <uint32_t>build_request(h, page_data(x.request) + texts)
    return True


# ------------------------------------------------------------------------------------------------ endpoint and attempt

cdef void dispatch(exchange* x) noexcept nogil:
    """Choose an endpoint and start an attempt; queue when all are full; answer when there is none."""
    cdef reactor* r = x.r
    cdef int family = family_of(x)
    cdef int i = balance_pick(r, x.up, family, x.tried, x.client_hash)
    if i < 0 and i != PICK_FULL and x.tried and x.reason == LB_R_UPSTREAM_REFUSED:
        # All have refused it, and none has looked at it. On a new connection the next one may have better luck: an
        # endpoint that ends its connections every now and then refuses whatever crosses its goodbye.
        x.tried = 0
        i = balance_pick(r, x.up, family, x.tried, x.client_hash)
    if i == PICK_FULL:
        wait_for_place(x)
    else:
        start_on(x, i)


cdef int family_of(const exchange* x) noexcept nogil:
    """Of the endpoints that can serve it."""
    return family_for(x.up, NULL if x.d == NULL or x.d.c.local else &x.d.c.peer[0])


cdef void start_on(exchange* x, int i) noexcept nogil:
    """Start an attempt on the endpoint that was chosen, if any was."""
    if i < 0:
        # After failures their reason says more than that nobody is left.
        refuse(x, x.reason if x.reason != LB_R_OK else pick_reason(i))
        return
    x.ep = x.up.endpoints[i]
    x.flags |= X_RESERVED
    x.tried |= tried_bit(<uint32_t>i)
    attempt(x)


cdef void attempt(exchange* x) noexcept nogil:
    """One try on one endpoint: a kept connection, or a new one."""
    cdef reactor* r = x.r
    cdef upstream_traffic* stats = upstream_stats(x)
    cdef leg* u = NULL
    cdef int reason = LB_R_CONNECT_FAILED
    cdef bint connecting = False, fresh
    x.attempts += 1
    x.mark_ns = r.now_ns
    if stats != NULL:
        bump(&stats.attempts)
        if x.attempts > 1:
            bump(&stats.retries)
    fresh = (x.flags & X_FRESH) != 0 or x.up.for_one_client
    u = upstream_lease(
        r, x.up, x.ep, x, x.d.c if x.d != NULL else NULL, fresh, (x.flags & X_LEFT_OUT) != 0, not repeatable(x),
        &connecting, &reason
    )
    if u == NULL:
        if stats != NULL:
            bump(&stats.connects)
        attempt_failed(x, reason)
        return
    x.u = u
    if stats != NULL:
        # Of those who wait for a shared connection one has made it.
        bump(&stats.connects if connecting and u.c.requests <= 1 else &stats.reused)
    if connecting:
        x.flags |= X_CONNECTING
        wait_until(x, x.up.connect_timeout_ms)
    else:
        send_request(x)


cdef bint on_opened(void* exchange_pointer, conn* u) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    return x.up.proxy_protocol == PROXY_NONE or (
        x.d != NULL and announce_client(u, x.d.c, x.up, x.request_id, x.request_id_size)
    )


cdef void on_became_stream(void* exchange_pointer, leg* u) noexcept nogil:
    (<exchange*>exchange_pointer).u = u


cdef void on_connected(void* exchange_pointer, leg* u) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    x.flags &= ~<uint32_t>X_CONNECTING
    x.connect_ns = monotonic_ns() - x.mark_ns
    send_request(x)
    if x.u == u and u.c.base.flags & (IO_READABLE | IO_BROKEN):
        io_enqueue(&u.c.base)


cdef void on_connect_failed(void* exchange_pointer, int reason) noexcept nogil:
    attempt_failed(<exchange*>exchange_pointer, reason)


cdef bint repeatable(exchange* x) noexcept nogil:
    """Nobody can tell whether an endpoint has acted on what it did not answer, so only what may be done twice is
    repeated.
    """
    return x.flags & X_IDEMPOTENT and not x.flags & (X_HAS_BODY | X_UPGRADE)


cdef void attempt_failed(exchange* x, int reason) noexcept nogil:
    """The attempt is over before any response: another endpoint, a new connection, or the end."""
    cdef upstream_traffic* stats = upstream_stats(x)
    cdef leg* u = x.u
    cdef bint connecting = (x.flags & X_CONNECTING) != 0 or u == NULL
    cdef bint reused = u != NULL and (u.flags & LEG_REUSED) != 0
    # Refused means: not looked at (RFC 9113 8.7), so that anything may be repeated that is still there.
    cdef bint whole = not x.flags & X_BODY_SENT or (x.flags & X_KEEPS_BODY) != 0
    cdef bint refused = reason == LB_R_UPSTREAM_REFUSED and whole
    # A connection that goes away leaves out what has crossed its goodbye. Under load the next one may do so again:
    # others were first. That says nothing about the request, nor about the endpoint, and counts as no retry. Who
    # refuses on a connection that stays means it.
    cdef bint left_out = refused and not connecting and http2_client_leaves(u.c)
    x.u = NULL
    x.flags &= ~<uint32_t>X_CONNECTING
    if u != NULL:
        u.calls.abort(u)
    if connecting and stats != NULL and reason != LB_R_UPSTREAM_REFUSED and not is_ours(reason):
        bump(&stats.connect_failures)
    x.reason = <uint8_t>reason
    if left_out and x.attempts < LEFT_OUT_MOST and x.d != NULL:
        note_failed_attempt(x.r, &x.failed_attempts, x.ep, reason)
        x.flags |= X_LEFT_OUT
        attempt(x)
        return
    if ((reused and repeatable(x)) or refused) and not x.flags & X_FRESH and x.d != NULL:
        note_failed_attempt(x.r, &x.failed_attempts, x.ep, reason)
        x.flags |= X_FRESH
        attempt(x)
        return
    release_place(x)
    x.flags &= ~<uint32_t>(X_FRESH | X_LEFT_OUT)
    if x.retries_left and (refused or (connecting and whole) or repeatable(x)) and x.d != NULL:
        note_failed_attempt(x.r, &x.failed_attempts, x.ep, reason)
        x.retries_left -= 1
        dispatch(x)
        return
    refuse(x, reason)


cdef void release_place(exchange* x) noexcept nogil:
    if x.flags & X_RESERVED:
        x.flags &= ~<uint32_t>X_RESERVED
        balance_release(x.live, x.ep)
        if lb_peek_int(&x.live.queued):
            offer_place(x.r, x.live)


cdef void send_request(exchange* x) noexcept nogil:
    """The connection is there: send the head, and let the body come."""
    cdef leg* u = x.u
    cdef outgoing request
    request.at = page_data(x.request) + x.text_at
    request.size = x.request_size
    request.packed = (x.flags & X_PACKED) != 0
    request.no_body_expected = (x.flags & X_HEAD) != 0
    request.upgrade = (x.flags & X_UPGRADE) != 0
    request.chunked = (x.flags & X_CHUNKED) != 0
    request.ended = x.flags & X_REQUEST_DONE and x.replay_first == NULL
    u.c.idle_timeout_ms = x.up.idle_timeout_ms
    x.upstream_bytes_out += x.request_size
    x.mark_ns = monotonic_ns()
    x.progress_ms = x.r.now_ms
    stats_prefetch(&x.r.route_stats, x.route_id)  # while the endpoint thinks
    u.calls.start(u, x, &request)
    replay_begin(x)
    if x.replay_first != NULL:
        replay_send(x)
        if x.flags & X_REQUEST_DONE:
            u.calls.send_end(u, NULL)
    if x.flags & X_REQUEST_DONE:
        wait_until(x, x.rt.response_timeout_ms)
    else:
        wait_until(x, 0)
        x.d.calls.resume(x.d)


# ------------------------------------------------------------------------------------------------------------- waiting

cdef void wait_for_place(exchange* x) noexcept nogil:
    """All endpoints are at their limit: stand in line, first come first served."""
    cdef reactor* r = x.r
    if lb_add_int(&x.live.queued, 1) > x.up.max_queue:
        lb_add_int(&x.live.queued, -1)
        refuse(x, LB_R_QUEUE_FULL)
        return
    x.flags |= X_WAITING
    x.mark_ns = r.now_ns
    x.next_waiting = NULL
    x.previous_waiting = <exchange*>r.waiting_last
    if r.waiting_last != NULL:
        (<exchange*>r.waiting_last).next_waiting = x
    else:
        r.waiting_first = x
    r.waiting_last = x
    if x.attempts:
        # A client that has ended its half while an endpoint had the request was told of to nobody who waits: once more.
        io_enqueue(&x.d.c.base)
    # A place that came free since the choice was offered to nobody: look once more, now that we can be seen.
    lb_fence()
    lb_put_int(&r.waiting_poked, 1)
    wait_until(x, x.up.queue_timeout_ms)


cdef void leave_line(exchange* x) noexcept nogil:
    cdef reactor* r = x.r
    if not x.flags & X_WAITING:
        return
    x.flags &= ~<uint32_t>X_WAITING
    lb_add_int(&x.live.queued, -1)
    x.queued_ns += monotonic_ns() - x.mark_ns
    if x.previous_waiting != NULL:
        x.previous_waiting.next_waiting = x.next_waiting
    else:
        r.waiting_first = x.next_waiting
    if x.next_waiting != NULL:
        x.next_waiting.previous_waiting = x.previous_waiting
    else:
        r.waiting_last = x.previous_waiting


cdef void offer_place(reactor* r, upstream_live* live) noexcept nogil:
    """A place has come free on a full upstream: those who wait are looked at next turn, here and on every sibling."""
    cdef int i
    lb_put_int(&r.waiting_poked, 1)
    for i in range(r.s.reactor_count):
        if i != r.index and lb_load_ptr(&r.s.reactors[i].waiting_first) != NULL:
            lb_put_int(&r.s.reactors[i].waiting_poked, 1)
            reactor_wake(&r.s.reactors[i])


cdef void retry_waiting(reactor* r) noexcept nogil:
    cdef exchange* x = <exchange*>r.waiting_first
    cdef exchange* following
    cdef uint32_t* full_in
    cdef int i, family
    r.waiting_pass += 1
    while x != NULL:
        following = x.next_waiting
        family = family_of(x)
        full_in = &cursors_of(r, x.up, family)[1]
        if full_in[0] != r.waiting_pass:
            i = balance_pick(r, x.up, family, x.tried, x.client_hash)
            if i != PICK_FULL:
                leave_line(x)
                start_on(x, i)
                batch_flush(r)
            elif not (x.tried or x.up.client_affinity):
                full_in[0] = r.waiting_pass  # nor is there a place for those behind it
        x = following


# -------------------------------------------------------------------------------------------------------- request body

cdef void on_request_body(void* exchange_pointer, const char* data, size_t size) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    cdef int reason = 0
    x.bytes_in += size
    x.progress_ms = x.r.now_ms
    if x.flags & X_TUNNEL:
        if x.u != NULL:
            x.upstream_bytes_out += size
            x.u.calls.send_body(x.u, data, size)
        return
    x.body_seen += <int64_t>size
    if x.max_body > 0 and x.body_seen > x.max_body:
        fail(x, LB_R_BODY_TOO_LARGE)
        return
    x.flags |= X_BODY_SENT
    if x.flags & X_GRPC_WEB_TEXT:
        reason = bridge_request_body(x, data, size)
    elif not replay_pass(x, data, size):
        reason = LB_R_NO_MEMORY
    if reason:
        fail(x, reason)


cdef void on_request_end(void* exchange_pointer, head* trailers) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    if x.flags & X_TUNNEL:
        x.flags |= X_CLIENT_ENDED | X_CLIENT_SHUT
        pass_tunnel_ends(x)
        return
    if x.base64_count:
        fail(x, LB_R_BAD_GRPC_WEB)  # cut off inside a quartet
        return
    x.flags |= X_REQUEST_DONE
    if between_attempts(x):
        return  # what was kept goes without trailers: they may be left out (RFC 9110 6.5.1)
    if trailers != NULL and x.flags & X_GRPC:
        keep_metadata(trailers)
    x.u.calls.send_end(x.u, trailers)
    if not x.flags & X_RESPONSE_STARTED:
        wait_until(x, x.rt.response_timeout_ms)


cdef void on_request_failed(void* exchange_pointer, int reason) noexcept nogil:
    """The request cannot go on: the client is gone, or what it sent is wrong."""
    cdef exchange* x = <exchange*>exchange_pointer
    if reason in (LB_R_CLIENT_CLOSED, LB_R_CLIENT_RESET, LB_R_NO_MEMORY, LB_R_SHUTDOWN):
        x.d = NULL
        if x.flags & X_TUNNEL and x.flags & X_CLIENT_ENDED:
            reason = LB_R_OK
        elif x.status == 0 and reason != LB_R_SHUTDOWN:
            x.status = 499
        finish(x, reason)
    else:
        fail(x, reason)


cdef void on_client_half_closed(void* exchange_pointer) noexcept nogil:
    """A client that shuts its side down may still want its answer, so only what has not begun is given up."""
    cdef exchange* x = <exchange*>exchange_pointer
    cdef leg* d = x.d
    if not x.flags & X_WAITING or d == NULL:
        return
    x.status = 499
    x.d = NULL
    d.exchange = NULL
    finish(x, LB_R_CLIENT_CLOSED)
    d.calls.abort(d)


cdef bint on_upstream_full(void* exchange_pointer) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    return x != NULL and (between_attempts(x) or x.u.calls.full(x.u))


cdef void on_upstream_drained(void* exchange_pointer) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    x.progress_ms = x.r.now_ms
    if x.d != NULL:
        x.d.calls.resume(x.d)
    if x.flags & X_TUNNEL:
        pass_tunnel_ends(x)


# ------------------------------------------------------------------------------------------------------------ response

cdef void on_response_head(void* exchange_pointer, head* h) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    cdef leg* d = x.d
    cdef leg* u = x.u
    cdef int i
    cdef int64_t now
    x.progress_ms = x.r.now_ms
    x.upstream_bytes_in += h.size
    if h.status < 200 and h.status != 101:
        # Interim responses go to those who know them (RFC 9110 15.2), and the wait goes on.
        if x.version > 10:
            x.bytes_out += d.calls.send_head(d, h)
        return
    now = monotonic_ns()
    x.first_byte_ns = now - x.mark_ns
    x.status = <uint16_t>h.status
    x.reason = LB_R_OK
    x.flags |= X_RESPONSE_STARTED
    x.wait_deadline_ms = INT64_MAX
    if lb_peek_i64(&x.ep.ejected_until_ms):
        endpoint_answered(x.ep, x.r)
    replay_drop(x)
    if not x.flags & X_REQUEST_DONE:
        # An early answer: the rest of the body will not be relayed, so the client is told that this is the end.
        d.flags |= LEG_CLOSE
    if h.keep_alive_timeout > 0 and h.keep_alive_timeout * 1000 - 500 < u.c.idle_timeout_ms:
        u.c.idle_timeout_ms = h.keep_alive_timeout * 1000 - 500
    if not has_date(h):
        head_add(h, b"Date", 4, http_date(x.r), 29)
    if x.view != NULL and x.view.hsts_size and d.c.tls != NULL:
        head_add(h, b"Strict-Transport-Security", 25, x.view.hsts, x.view.hsts_size)
    if x.flags & X_GRPC:
        note_grpc_status(x, h)
    if h.status == 101:
        x.bytes_out += d.calls.send_head(d, h)
        open_tunnel(x)
        return
    for i in range(h.field_count):
        if h.fields[i].id == FIELD_UPGRADE:
            h.fields[i].drop = True
    if x.flags & X_GRPC_WEB:
        bridge_response(x, h)
    x.bytes_out += d.calls.send_head(d, h)
    wait_until(x, 0)


cdef bint has_date(const head* h) noexcept nogil:
    cdef int i
    for i in range(h.field_count):
        if h.fields[i].name_size == 4 and lb_equal_nocase(h.fields[i].name, b"date", 4):
            return True
    return False


cdef void on_response_body(void* exchange_pointer, const char* data, size_t size) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    x.upstream_bytes_in += size
    x.progress_ms = x.r.now_ms
    if x.d == NULL:
        return
    if x.flags & X_GRPC_WEB:
        x.bytes_out += bridge_response_body(x, data, size)
        return
    x.bytes_out += size
    x.d.calls.send_body(x.d, data, size)


cdef void on_response_end(void* exchange_pointer, head* trailers) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    if x.flags & X_TUNNEL:
        x.flags |= X_UPSTREAM_ENDED | X_UPSTREAM_SHUT
        pass_tunnel_ends(x)
        return
    x.flags |= X_RESPONSE_DONE
    if trailers != NULL and x.flags & X_GRPC:
        keep_metadata(trailers)
        note_grpc_status(x, trailers)
    if trailers != NULL and x.d != NULL and x.flags & X_GRPC_WEB:
        x.bytes_out += bridge_trailers(x, trailers)
        trailers = NULL
    if x.d != NULL:
        x.d.calls.send_end(x.d, trailers)
    finish(x, LB_R_OK)


cdef bint tls_refused(const exchange* x) noexcept nogil:
    """Whether TLS has failed before an endpoint said anything. With TLS 1.3 the handshake is over for us before the
    other side has looked at our certificate, or has missed it (RFC 8446 4.4.2.4).
    """
    cdef const conn* u = x.u.c
    if u.requests > 1 and not x.flags & X_CONNECTING:
        return False
    return u.tls != NULL and u.tls.failed and u.tls.why != NULL


cdef void on_response_failed(void* exchange_pointer, int reason) noexcept nogil:
    """The endpoint cannot go on."""
    cdef exchange* x = <exchange*>exchange_pointer
    cdef bint silent = (x.u.flags & LEG_GOT_BYTES) == 0
    if reason == LB_R_UPSTREAM_RESET and silent and tls_refused(x):
        reason = LB_R_UPSTREAM_TLS_FAILED
    if x.flags & X_TUNNEL:
        finish(x, LB_R_OK if x.flags & (X_UPSTREAM_ENDED | X_CLIENT_ENDED) else reason)
    elif x.flags & X_CONNECTING:
        attempt_failed(x, reason)
    elif not x.flags & X_RESPONSE_STARTED and silent and reason in (
        # Bad and silent: what another stream was sent has ended their connection.
        LB_R_UPSTREAM_CLOSED, LB_R_UPSTREAM_RESET, LB_R_UPSTREAM_REFUSED, LB_R_BAD_RESPONSE, LB_R_UPSTREAM_TLS_FAILED
    ):
        attempt_failed(x, reason)
    else:
        fail(x, reason)


cdef bint on_client_full(void* exchange_pointer) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    if x.d == NULL or not x.d.calls.full(x.d):
        return False
    set_timer(x)  # from now on the client's patience counts, not the endpoint's
    return True


cdef conn* on_client_sink(void* exchange_pointer) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    if x.d == NULL or x.d.calls.sink == NULL or x.flags & X_GRPC_WEB:
        return NULL
    return x.d.calls.sink(x.d)


cdef void on_response_piped(void* exchange_pointer, pipe* p) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    x.upstream_bytes_in += p.bytes
    x.bytes_out += p.bytes
    x.progress_ms = x.r.now_ms
    conn_write_pipe(x.d.c, p)


cdef void on_client_took(void* exchange_pointer) noexcept nogil:
    (<exchange*>exchange_pointer).progress_ms = (<exchange*>exchange_pointer).r.now_ms


cdef bint on_client_waits(void* exchange_pointer) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    return x.d == NULL or x.d.calls.waiting(x.d) != 0


cdef void on_client_drained(void* exchange_pointer) noexcept nogil:
    cdef exchange* x = <exchange*>exchange_pointer
    x.progress_ms = x.r.now_ms
    if x.u != NULL:
        x.u.calls.resume(x.u)
    if x.flags & X_TUNNEL:
        pass_tunnel_ends(x)


# -------------------------------------------------------------------------------------------------------------- tunnel

cdef void open_tunnel(exchange* x) noexcept nogil:
    """101: from here on bytes pass both ways untouched. The table is not needed any more."""
    x.flags |= X_TUNNEL
    x.idle_timeout_ms = x.rt.tunnel_timeout_ms
    x.request_deadline_ms = INT64_MAX
    leave_table(x)
    wait_until(x, 0)
    x.d.calls.resume(x.d)


cdef void leave_table(exchange* x) noexcept nogil:
    """Copy the names that the log record will want, and let the table go."""
    cdef reactor* r = x.r
    cdef const vhost* host = x.host
    cdef page* p = NULL
    cdef char* out
    cdef const char* texts = page_data(x.request)
    cdef uint32_t i, total = host.hostname.size + x.rt.name.size
    if r.s.logging:
        for i in range(TEXT_COUNT):
            total += x.text_sizes[i]
        p = page_alloc(&r.pages, total)
    if p != NULL:
        out = page_data(p)
        for i in range(TEXT_COUNT):
            if x.text_sizes[i]:
                memcpy(out, texts, x.text_sizes[i])
                out += x.text_sizes[i]
                texts += x.text_sizes[i]
            elif i == TEXT_VIRTUAL_HOST:
                x.text_sizes[i] = host.hostname.size
                memcpy(out, text_at(host, host.hostname), x.text_sizes[i])
                out += x.text_sizes[i]
            elif i == TEXT_ROUTE:
                x.text_sizes[i] = x.rt.name.size
                memcpy(out, text_at(host, x.rt.name), x.text_sizes[i])
                out += x.text_sizes[i]
    else:
        memset(x.text_sizes, 0, sizeof(x.text_sizes))
    page_free(&r.pages, x.request)
    x.request = p
    x.host = NULL
    x.rt = NULL
    x.up = NULL
    x.view = NULL
    if x.t != NULL:
        table_unpin_one(r, x.t)
        x.t = NULL


cdef void pass_tunnel_ends(exchange* x) noexcept nogil:
    """Pass a half's end on once its last byte is out; the tunnel is over when both halves have ended."""
    batch_flush(x.r)
    if x.flags & X_CLIENT_SHUT and x.u != NULL and x.u.calls.waiting(x.u) == 0:
        x.flags &= ~<uint32_t>X_CLIENT_SHUT
        x.u.calls.shut(x.u)
    if x.flags & X_UPSTREAM_SHUT and x.d != NULL and x.d.calls.waiting(x.d) == 0:
        x.flags &= ~<uint32_t>X_UPSTREAM_SHUT
        x.d.calls.shut(x.d)
    if (x.flags & (X_CLIENT_ENDED | X_UPSTREAM_ENDED)) == (X_CLIENT_ENDED | X_UPSTREAM_ENDED) and not (
        x.flags & (X_CLIENT_SHUT | X_UPSTREAM_SHUT)
    ):
        finish(x, LB_R_OK)


# ------------------------------------------------------------------------------------------------- refusal and failure

cdef void on_request_refused(leg* d, int reason, listener_view* view) noexcept nogil:
    """A request whose head is not understood: an exchange without host and route, so that it is counted and logged."""
    cdef exchange* x
    if lb_reason_statuses[reason] == 0 or view == NULL:
        d.calls.refuse(d, reason)
        return
    x = exchange_new(d, view)
    if x == NULL:
        d.calls.refuse(d, LB_R_NO_MEMORY)
        return
    make_request_id(x)
    refuse(x, reason)


cdef void on_request_malformed(leg* d, int reason, listener_view* view) noexcept nogil:
    """A request that its codec ends without a response, for its head or for what came behind it."""
    cdef exchange* x = <exchange*>d.exchange
    if x == NULL:
        x = exchange_new(d, view)
        if x == NULL:
            bump(&d.c.base.r.counts.reasons[reason])
            return
        make_request_id(x)
    x.d = NULL
    d.exchange = NULL
    finish(x, reason)


cdef void refuse(exchange* x, int reason) noexcept nogil:
    """Answer with the status that belongs to the reason. Nothing has been sent yet."""
    cdef int status = lb_reason_statuses[reason]
    if x.d == NULL:
        finish(x, reason)
    elif status == 0:
        abort_client(x, reason)
    else:
        answer(x, status, reason, NULL, 0)


cdef void fail(exchange* x, int reason) noexcept nogil:
    """End it now: with an answer when none has begun, else by cutting the connection."""
    if not x.flags & X_RESPONSE_STARTED and x.d != NULL:
        drop_upstream(x)
        refuse(x, reason)
    else:
        abort_client(x, reason)


cdef void abort_client(exchange* x, int reason) noexcept nogil:
    cdef leg* d = x.d
    x.d = NULL
    if d != NULL:
        d.exchange = NULL
    finish(x, reason)
    if d != NULL:
        d.calls.abort(d)


cdef void answer(exchange* x, int status, int reason, const char* body, size_t size) noexcept nogil:
    send_answer(x, status, reason, body, size)
    finish(x, reason)


cdef void drop_upstream(exchange* x) noexcept nogil:
    cdef leg* u = x.u
    x.u = NULL
    if u != NULL:
        u.calls.abort(u)
    release_place(x)


# -------------------------------------------------------------------------------------------------------------- timers

cdef void wait_until(exchange* x, int timeout_ms) noexcept nogil:
    """Wait for one thing at most this long (0: without bound), besides the deadlines that always hold."""
    x.wait_deadline_ms = x.r.now_ms + timeout_ms if timeout_ms > 0 else INT64_MAX
    set_timer(x)


cdef int64_t idle_deadline(exchange* x) noexcept nogil:
    """When the standstill of what should be moving is too long."""
    cdef int limit = x.idle_timeout_ms
    if x.flags & (X_WAITING | X_CONNECTING):
        return INT64_MAX
    if not x.flags & (X_TUNNEL | X_REQUEST_DONE | X_RESPONSE_STARTED) and x.view != NULL:
        limit = x.view.idle_timeout_ms
    elif not x.flags & (X_TUNNEL | X_RESPONSE_STARTED):
        return INT64_MAX  # the response's own timeout holds
    elif x.view != NULL and x.d != NULL and x.d.calls.waiting(x.d) and 0 < x.view.idle_timeout_ms < limit:
        limit = x.view.idle_timeout_ms  # it is the client that does not take what is there
    return x.progress_ms + limit if limit > 0 else INT64_MAX


cdef void set_timer(exchange* x) noexcept nogil:
    cdef int64_t deadline = idle_deadline(x)
    if x.wait_deadline_ms < deadline:
        deadline = x.wait_deadline_ms
    if x.request_deadline_ms < deadline:
        deadline = x.request_deadline_ms
    timer_set(&x.r.timers, &x.timer, deadline)


cdef void on_timer(timer* t) noexcept nogil:
    cdef exchange* x = <exchange*>t.owner
    cdef reactor* r = x.r
    if r.now_ms >= x.request_deadline_ms:
        leave_line(x)
        doubt_connection(x)
        fail(x, LB_R_GRPC_DEADLINE if x.flags & X_GRPC_DEADLINE else LB_R_REQUEST_TIMEOUT)
    elif r.now_ms >= x.wait_deadline_ms:
        if x.flags & X_WAITING:
            leave_line(x)
            refuse(x, LB_R_QUEUE_TIMEOUT)
        elif x.flags & X_CONNECTING:
            connect_timed_out(x.u.c)
            attempt_failed(x, LB_R_CONNECT_TIMEOUT)
        else:
            doubt_connection(x)
            fail(x, LB_R_RESPONSE_TIMEOUT)
    elif r.now_ms >= idle_deadline(x):
        fail(x, idle_reason(x))
    else:
        set_timer(x)
    batch_flush(r)


cdef void doubt_connection(exchange* x) noexcept nogil:
    """Time is up. A shared connection on which nothing has come all the while may lead to a machine that is gone, which
    the kernel finds out after a quarter of an hour: nothing new begins on it. One that only this exchange has ends with
    it anyway.
    """
    if x.u != NULL and not x.flags & X_CONNECTING and http2_client_silent(x.u):
        x.u.flags |= LEG_CLOSE


cdef int idle_reason(exchange* x) noexcept nogil:
    """Whose fault the standstill is: who does not take what is there for it, else who does not send what it owes."""
    if x.flags & X_TUNNEL:
        return LB_R_TUNNEL_TIMEOUT
    if x.d != NULL and x.d.calls.waiting(x.d):
        return LB_R_CLIENT_IDLE_TIMEOUT
    if x.flags & X_RESPONSE_STARTED or (x.u != NULL and x.u.calls.waiting(x.u)):
        return LB_R_UPSTREAM_IDLE_TIMEOUT
    return LB_R_CLIENT_IDLE_TIMEOUT


# --------------------------------------------------------------------------------------------------------------------
# -- end

cdef upstream_traffic* upstream_stats(exchange* x) noexcept nogil:
    if x.live == NULL:
        return NULL
    return <upstream_traffic*>stats_block(&x.r.upstream_stats, x.live.id, sizeof(upstream_traffic))


cdef void finish(exchange* x, int reason) noexcept nogil:
    """Give everything back, count, log, and let the client's connection go on."""
    cdef reactor* r = x.r
    cdef leg* d = x.d
    cdef leg* u = x.u
    leave_line(x)
    timer_cancel(&x.timer)
    x.reason = <uint8_t>reason
    batch_flush(r)
    account(x)  # before anything is given back: a removed endpoint may go with its last exchange
    x.u = NULL
    if u != NULL:
        # A response that is complete while its request is not leaves the connection out of step.
        if x.flags & X_RESPONSE_DONE and x.flags & X_REQUEST_DONE and reason == LB_R_OK:
            if x.up.max_requests_per_connection and u.c.requests >= <uint32_t>x.up.max_requests_per_connection:
                u.flags |= LEG_CLOSE
            if x.up.for_one_client:
                u.flags |= LEG_CLOSE
            u.calls.done(u)
        else:
            u.calls.abort(u)
    release_place(x)
    replay_drop(x)
    if x.request != NULL:
        page_free(&r.pages, x.request)
    if x.failed_attempts != NULL:
        page_free(&r.pages, x.failed_attempts)
    if x.t != NULL:
        table_unpin_one(r, x.t)
    lb_put_int(&r.exchange_count, r.exchange_count - 1)
    bump(&r.counts.exchanges_ended)
    slab_free(&r.exchange_slab, x)
    if d != NULL:
        d.calls.done(d)


cdef void account(exchange* x) noexcept nogil:
    cdef reactor* r = x.r
    cdef int64_t duration = monotonic_ns() - x.started_ns
    cdef listener_traffic* of_listener
    cdef traffic* of_route
    cdef upstream_traffic* of_upstream
    bump(&r.counts.reasons[x.reason])
    of_listener = <listener_traffic*>stats_block(&r.listener_stats, x.slot, sizeof(listener_traffic))
    if of_listener != NULL:
        observe(&of_listener.base, x.status, x.bytes_in, x.bytes_out, duration)
        bump(&of_listener.requests)
    if x.flags & X_GRPC:
        count_grpc(x)
    if x.routed:
        of_route = <traffic*>stats_block(&r.route_stats, x.route_id, sizeof(traffic))
        if of_route != NULL:
            observe(of_route, x.status, x.bytes_in, x.bytes_out, duration)
    if x.live != NULL and x.attempts:
        of_upstream = upstream_stats(x)
        if of_upstream != NULL and x.first_byte_ns >= 0:
            observe(&of_upstream.base, x.status, x.upstream_bytes_out, x.upstream_bytes_in, x.first_byte_ns)
        elif of_upstream != NULL:  # what lb answers in the endpoint's place is no response of it
            bump_by(&of_upstream.base.bytes_in, x.upstream_bytes_out)
    if r.s.logging:
        log_exchange(x, duration)


cdef void count_grpc(exchange* x) noexcept nogil:
    cdef grpc_traffic* of_route
    if not x.routed:
        return
    of_route = <grpc_traffic*>stats_block(&x.r.grpc_stats, x.route_id, sizeof(grpc_traffic))
    if of_route != NULL:
        bump(&of_route.statuses[x.grpc_status if x.grpc_status >= 0 else GRPC_STATUSES])


cdef void cut_off(reactor* r) noexcept nogil:
    """The daemon stops: what is under way ends with a reason and a log record like everything else."""
    cdef conn* c = <conn*>r.connections
    cdef void* exchange
    while c != NULL:
        # An exchange that ends closes connections of its own. They leave the list, but still point on along it, and
        # their memory stays until the end of the turn.
        if c.ep == NULL and c.leg.exchange != NULL and not c.base.flags & IO_DEAD:
            exchange = c.leg.exchange
            c.leg.exchange = NULL
            on_request_failed(exchange, LB_R_SHUTDOWN)
        elif c.ep == NULL and c.session != NULL:
            http2_server_cut(c, LB_R_SHUTDOWN)
        c = c.next_all


cdef void exchange_install(shared* s) noexcept nogil:
    """Give the layers below their way up."""
    cdef exchange_calls codec
    cdef connect_calls connecting
    memset(&codec, 0, sizeof(codec))
    memset(&connecting, 0, sizeof(connecting))  # what is not set below is not meant
    codec.request_head = on_request_head
    codec.request_refused = on_request_refused
    codec.request_malformed = on_request_malformed
    codec.request_body = on_request_body
    codec.request_end = on_request_end
    codec.request_failed = on_request_failed
    codec.client_half_closed = on_client_half_closed
    codec.client_drained = on_client_drained
    codec.upstream_full = on_upstream_full
    codec.upstream_drained = on_upstream_drained
    codec.response_head = on_response_head
    codec.response_body = on_response_body
    codec.response_end = on_response_end
    codec.response_failed = on_response_failed
    codec.client_full = on_client_full
    codec.client_waits = on_client_waits
    codec.client_sink = on_client_sink
    codec.client_took = on_client_took
    codec.response_piped = on_response_piped
    codec.client_gone = client_gone
    http1_set_calls(&codec)
    http2_set_calls(&codec)
    http2_server_install()
    connecting.opened = on_opened
    connecting.became_stream = on_became_stream
    connecting.connected = on_connected
    connecting.connect_failed = on_connect_failed
    upstream_set_calls(&connecting)
    s.retry_waiting = retry_waiting
    s.take_back = upstream_take_back
    s.cut_off = cut_off
    s.log_refusal = log_refusal
