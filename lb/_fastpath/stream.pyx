"""Flows (stream.pxd)."""
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from lb._fastpath.accept cimport client_gone, log_refused
from lb._fastpath.access cimport log_flow, note_failed_attempt
from lb._fastpath.announce cimport announce_client, target_of
from lb._fastpath.balance cimport (
    balance_pick,
    balance_release,
    flow_hash,
    hashes_destination,
    pick_reason,
    tried_bit,
)
from lb._fastpath.c.sys cimport (
    AF_UNIX,
    IPPROTO_TCP,
    LB_R_CLIENT_IDLE_TIMEOUT,
    LB_R_CLIENT_RESET,
    LB_R_CONNECT_FAILED,
    LB_R_CONNECT_TIMEOUT,
    LB_R_ENDPOINT_REMOVED,
    LB_R_ENDPOINT_UNHEALTHY,
    LB_R_FLOW_TIMEOUT,
    LB_R_HALF_CLOSED_TIMEOUT,
    LB_R_NO_MEMORY,
    LB_R_NO_UPSTREAM,
    LB_R_OK,
    LB_R_SHUTDOWN,
    LB_R_SOURCE_REFUSED,
    LB_R_UPSTREAM_IDLE_TIMEOUT,
    LB_R_UPSTREAM_RESET,
    SOL_SOCKET,
    SO_ERROR,
    SO_KEEPALIVE,
    getsockopt,
    lb_peek_int,
    lb_put_int,
    setsockopt,
    socklen_t,
    ssize_t,
)
from lb._fastpath.clock cimport monotonic_ns
from lb._fastpath.counters cimport (
    bump,
    count_end,
    count_in,
    count_out,
    listener_traffic,
    stats_block,
    traffic,
    upstream_traffic,
)
from lb._fastpath.endpoint cimport idle_pool
from lb._fastpath.exchange cimport offer_place
from lb._fastpath.memory cimport page_data, page_free, slab_alloc, slab_free
from lb._fastpath.pipes cimport PIPE_BYTES, pipe, pipe_give, pipe_take
from lb._fastpath.proxy_protocol cimport (
    PROXY_NONE,
    TELL_UNIQUE_ID,
    VALUE_UNIQUE_ID,
    proxy_end,
    proxy_find,
    proxy_value,
)
from lb._fastpath.reactor cimport (
    IO_BROKEN,
    IO_CUT,
    IO_DEAD,
    IO_ERRED,
    IO_MUTED,
    IO_READABLE,
    IO_WRITABLE,
    RANDOM_ID_BYTES,
    SCRATCH_BYTES,
    current_table,
    io,
    io_enqueue,
    io_mute,
    io_unmute,
    put_random_id,
    table_pin_one,
    table_unpin_one,
)
from lb._fastpath.table cimport draw_target, in_networks, listener_at, listener_view, name_route, stream_view, target
from lb._fastpath.timers cimport timer, timer_set
from lb._fastpath.tls cimport tls_offer_same
from lb._fastpath.transport cimport (
    IO_FULL,
    RECEIVE_AGAIN,
    RECEIVE_END,
    RECEIVE_UNFIT,
    TURN_BYTES,
    batch_flush,
    conn_close,
    conn_drain,
    conn_receive,
    conn_receive_pipe,
    conn_shut,
    conn_unpark,
    conn_write,
    conn_write_pipe,
    connect_calls,
    family_for,
    kept_values,
    leg,
)
from lb._fastpath.upstream cimport connect_timed_out, is_ours, upstream_connect, upstream_end

cdef connect_calls connecting
cdef connect_calls passing


cdef void stream_install(shared* s) noexcept nogil:
    global passing
    connecting.opened = on_opened
    connecting.connected = on_connected
    connecting.connect_failed = on_connect_failed
    passing = connecting
    passing.passes = True
    s.open_flow = open_flow
    s.cut_flows = cut_flows


# --------------------------------------------------------------------------------------------------------------- begin

cdef void open_flow(io* client) noexcept nogil:
    """A client has been let in: connect to where its bytes are carried. Its table is the one that it holds already, or
    `serving`.
    """
    cdef conn* d = <conn*>client
    cdef reactor* r = client.r
    cdef const stream_view* view = d.carried
    cdef flow* f = flow_new(d, view)
    if f == NULL:
        log_refused(d, LB_R_NO_MEMORY, 0)
        bump(&r.counts.reasons[LB_R_NO_MEMORY])
        conn_close(d, True)
        client_gone(d)
        return
    if view.allowed_count and not d.local and not in_networks(view.allowed, view.allowed_count, d.peer):
        finish(f, LB_R_SOURCE_REFUSED)
        return
    f.up = choose_upstream(f, view)
    if f.up == NULL:
        finish(f, LB_R_NO_UPSTREAM)
        return
    f.live = f.up.live
    f.stats.upstream = <upstream_traffic*>stats_block(&r.upstream_stats, f.live.id, sizeof(upstream_traffic))
    f.client_hash = hash_of(f)
    dispatch(f)


cdef flow* flow_new(conn* d, const stream_view* view) noexcept nogil:
    cdef reactor* r = d.base.r
    cdef flow* f = <flow*>slab_alloc(&r.flow_slab)
    if f == NULL:
        return NULL
    f.r = r
    f.d = d
    f.t = d.carried_by
    if f.t == NULL:
        f.t = r.serving
        table_pin_one(r, f.t)
    d.carried_by = NULL
    d.carried = NULL
    f.told = &passing if view.passes else &connecting
    f.generation = f.t.generation
    f.started_ns = r.now_ns
    f.first_byte_ns = -1
    f.route_id = view.route_id
    f.route_name = view.name
    f.route_name_size = view.name_size
    f.retries_left = <uint16_t>view.retries
    f.stats.listener = <listener_traffic*>stats_block(&r.listener_stats, d.slot, sizeof(listener_traffic))
    f.stats.route = <traffic*>stats_block(&r.route_stats, view.route_id, sizeof(traffic))
    f.idle_timeout_ms = view.idle_timeout_ms
    f.half_closed_timeout_ms = view.half_closed_timeout_ms
    f.drain_timeout_ms = view.drain_timeout_ms
    d.leg.c = d
    d.leg.exchange = f
    d.base.ready = waiting_ready
    d.timer.fire = on_timer
    lb_put_int(&r.exchange_count, r.exchange_count + 1)
    bump(&r.counts.exchanges_started)
    return f


cdef upstream_view* choose_upstream(flow* f, const stream_view* view) noexcept nogil:
    cdef const target* chosen = draw_target(view.targets, view.target_count, f.r.random)
    if chosen == NULL or chosen.slot >= f.t.upstream_count:
        return NULL
    return f.t.upstreams[chosen.slot]


cdef uint64_t hash_of(flow* f) noexcept nogil:
    """What its endpoint is chosen by. Where it was connected to is asked only if that counts."""
    cdef proxy_end wanted
    memset(&wanted, 0, sizeof(wanted))
    if hashes_destination(f.up):
        target_of(f.d, &wanted)
    return flow_hash(f.up, f.d.peer, f.d.peer_port, wanted.address, wanted.port, <uint8_t>IPPROTO_TCP)


cdef void waiting_ready(io* source) noexcept nogil:
    """The client of a flow that is not connected yet. What it has sent stays in its socket; only a reset counts, and
    that it takes what TLS has said.
    """
    if source.flags & IO_WRITABLE and (<conn*>source).out_bytes:
        conn_drain(<conn*>source)
    if source.flags & IO_BROKEN:
        finish(<flow*>(<conn*>source).leg.exchange, LB_R_CLIENT_RESET)


# ---------------------------------------------------------------------------------------------------------- connecting

cdef void dispatch(flow* f) noexcept nogil:
    """Choose an endpoint and connect to it."""
    cdef int family = family_for(f.up, NULL if f.d.local else &f.d.peer[0])
    cdef int i = balance_pick(f.r, f.up, family, f.tried, f.client_hash)
    if i < 0:
        # After failures their reason says more than that nobody is left.
        if f.reason == LB_R_OK:
            f.reason = <uint16_t>pick_reason(i)
        finish(f, f.reason)
        return
    f.ep = f.up.endpoints[i]
    f.flags |= FLOW_RESERVED
    f.tried |= tried_bit(<uint32_t>i)
    attempt(f)


cdef void attempt(flow* f) noexcept nogil:
    cdef reactor* r = f.r
    cdef upstream_traffic* stats = f.stats.upstream
    cdef int reason = LB_R_CONNECT_FAILED
    f.attempts += 1
    f.mark_ns = r.now_ns
    if stats != NULL:
        bump(&stats.attempts)
        bump(&stats.connects)
        if f.attempts > 1:
            bump(&stats.retries)
    f.u = upstream_connect(r, f.up, f.ep, f, f.d, f.told, &reason)
    if f.u == NULL:
        attempt_failed(f, reason)
        return
    link(f)
    f.connect_deadline_ms = r.now_ms + f.up.connect_timeout_ms if f.up.connect_timeout_ms > 0 else INT64_MAX
    set_timer(f)


cdef bint on_opened(void* flow_pointer, conn* u) noexcept nogil:
    cdef flow* f = <flow*>flow_pointer
    cdef int one = 1
    cdef uint32_t size
    if f.ep.family != AF_UNIX:  # a machine that has vanished says nothing, and nobody else may notice (idle_timeout 0)
        setsockopt(u.base.fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one))
    if u.tls != NULL and f.d.tls != NULL:
        tls_offer_same(u.tls, f.d.tls)
    if f.up.proxy_protocol == PROXY_NONE:
        return True
    size = unique_id(f)
    return announce_client(u, f.d, f.up, f.unique_id, size)


cdef uint32_t unique_id(flow* f) noexcept nogil:
    """The size of an id of lb's own, where the endpoint is to be told one and no proxy has given one before."""
    cdef proxy_value values = kept_values(f.d)
    if f.up.proxy_values & TELL_UNIQUE_ID and f.unique_id_size == 0 and (
        proxy_find(&values, VALUE_UNIQUE_ID).size == 0
    ):
        put_random_id(f.r, f.unique_id)
        f.unique_id_size = RANDOM_ID_BYTES
    return f.unique_id_size


cdef void on_connect_failed(void* flow_pointer, int reason) noexcept nogil:
    attempt_failed(<flow*>flow_pointer, reason)


cdef void attempt_failed(flow* f, int reason) noexcept nogil:
    if f.stats.upstream != NULL and not is_ours(reason):
        bump(&f.stats.upstream.connect_failures)
    try_another(f, reason)


cdef void try_another(flow* f, int reason) noexcept nogil:
    """Another endpoint, as long as some may be tried: nothing of the client's has been read yet."""
    if f.u != NULL:
        unlink(f)
        upstream_end(f.u, False)
        f.u = NULL
    f.drain_deadline_ms = 0  # it was that endpoint which has been removed
    f.reason = <uint16_t>reason
    release_place(f)
    if f.retries_left:
        note_failed_attempt(f.r, &f.failed_attempts, f.ep, reason)
        f.retries_left -= 1
        dispatch(f)
    else:
        finish(f, reason)


cdef void release_place(flow* f) noexcept nogil:
    if f.flags & FLOW_RESERVED:
        f.flags &= ~<uint32_t>FLOW_RESERVED
        balance_release(f.live, f.ep)
        if lb_peek_int(&f.live.queued):
            offer_place(f.r, f.live)


cdef void on_connected(void* flow_pointer, leg* l) noexcept nogil:
    cdef flow* f = <flow*>flow_pointer
    cdef conn* u = f.u
    cdef conn* d = f.d
    f.flags |= FLOW_CONNECTED
    f.reason = LB_R_OK
    f.connect_ns = monotonic_ns() - f.mark_ns
    f.mark_ns += f.connect_ns
    f.progress_ms = f.r.now_ms
    u.base.ready = flow_ready
    d.base.ready = flow_ready
    leave_table(f)
    if d.tls != NULL or u.tls != NULL:
        f.client_bulk = BULK_NEVER
        f.endpoint_bulk = BULK_NEVER
    if lb_peek_int(&f.ep.retired):
        begin_drain(f)
    set_timer(f)
    if u.parked != NULL:  # an endpoint that speaks first, behind its TLS handshake
        carry_parked(f, u, d)
    if d.parked != NULL:  # what a client has sent right behind its handshake
        carry_parked(f, d, u)
    if u.base.flags & IO_READABLE:
        io_enqueue(&u.base)
    carry(f, d, u)


cdef void leave_table(flow* f) noexcept nogil:
    """What is still needed of it is known by now."""
    f.up = NULL
    if f.t != NULL:
        table_unpin_one(f.r, f.t)
        f.t = NULL


# ------------------------------------------------------------------------------------------------------------ carrying

cdef void flow_ready(io* source) noexcept nogil:
    """Something happened on one side: it takes bytes again, it has sent some, or it has ended."""
    cdef conn* c = <conn*>source
    cdef flow* f = <flow*>c.leg.exchange
    cdef conn* other = f.u if c == f.d else f.d
    if source.flags & IO_BROKEN:
        source.flags |= IO_READABLE  # reading tells what has happened
    if source.flags & IO_WRITABLE and c.out_bytes:
        conn_drain(c)
        f.progress_ms = f.r.now_ms
        if not settle(f):
            return
        if not source.flags & IO_FULL and other.base.flags & IO_READABLE and not carry(f, other, c):
            return
    if other.base.flags & IO_FULL and source.flags & IO_READABLE and not source.flags & IO_MUTED:
        io_mute(source)
    carry(f, c, other)


cdef bint carry(flow* f, conn* source, conn* sink) noexcept nogil:
    """Pass on what one side has sent. False: the flow is over."""
    cdef int64_t budget = TURN_BYTES
    cdef ssize_t n
    cdef bint closed
    if f.flags & (FLOW_CLIENT_RESET | FLOW_ENDPOINT_RESET):
        return settle(f)
    while source.base.flags & IO_READABLE:
        # A Unix socket that is closed has ended, like one that is only shut down, and is broken as well.
        closed = sink.base.flags & IO_BROKEN and f.flags & (FLOW_CLIENT_ENDED if sink == f.d else FLOW_ENDPOINT_ENDED)
        if sink.base.flags & (IO_FULL | IO_BROKEN) and not closed:
            if source.base.flags & sink.base.flags & IO_BROKEN:
                return reset_by(f, source)
            return True  # goes on when the sink has drained, or when its own end is looked at
        if budget <= 0:
            io_enqueue(&source.base)
            return True
        if BULK_AFTER <= bulk_of(f, source)[0] != BULK_NEVER and sink.out_bytes == 0:
            n = carry_bulk(f, source, sink)
        else:
            n = carry_page(f, source, sink)
        if n > 0:
            if closed:
                return reset_by(f, sink)
            budget -= n
        elif n == RECEIVE_END and not was_reset(source):
            f.flags |= FLOW_CLIENT_ENDED if source == f.d else FLOW_ENDPOINT_ENDED
            set_timer(f)
            return settle(f)
        elif n == RECEIVE_AGAIN and source.base.flags & IO_BROKEN and not source.base.flags & IO_CUT:
            finish(f, LB_R_NO_MEMORY)  # the socket is sound: there was no page for what waits to be written to it
            return False
        elif n != RECEIVE_AGAIN or source.base.flags & IO_BROKEN:
            return reset_by(f, source)
    if source.base.flags & IO_MUTED:
        io_unmute(&source.base)  # all that had come has been read: what comes next is to be told
    return True


cdef uint8_t* bulk_of(flow* f, const conn* source) noexcept nogil:
    return &f.client_bulk if source == f.d else &f.endpoint_bulk


cdef ssize_t carry_page(flow* f, conn* source, conn* sink) noexcept nogil:
    """By way of the scratch page: what small exchanges need, and all that is encrypted on one side."""
    cdef reactor* r = f.r
    cdef uint8_t* bulk = bulk_of(f, source)
    cdef ssize_t n = conn_receive(source, r.scratch_in, SCRATCH_BYTES)
    if n <= 0:
        return n
    note_bytes(f, source, <uint64_t>n)
    conn_write(sink, r.scratch_in, <size_t>n)
    batch_flush(r)
    if n < BULK_FEW and bulk[0] != BULK_NEVER:
        bulk[0] = 0
    elif n >= BULK_LEAST and bulk[0] < BULK_AFTER:
        bulk[0] += 1
        if bulk[0] == BULK_AFTER:
            bulk[0] += BULK_PATIENCE
    return n


cdef ssize_t carry_bulk(flow* f, conn* source, conn* sink) noexcept nogil:
    """Through a pipe, where there is one to be had."""
    cdef uint8_t* bulk = bulk_of(f, source)
    cdef pipe* p = pipe_take(f.r)
    cdef ssize_t n
    if p == NULL:
        return carry_page(f, source, sink)
    n = conn_receive_pipe(source, p, PIPE_BYTES)
    if n == RECEIVE_UNFIT:
        pipe_give(f.r, p)
        bulk[0] = BULK_NEVER
        return carry_page(f, source, sink)
    if n > 0:
        note_bytes(f, source, <uint64_t>n)
        bulk[0] = BULK_AFTER + BULK_PATIENCE if n >= BULK_LEAST else bulk[0] - 1 if bulk[0] > BULK_AFTER else 0
        conn_write_pipe(sink, p)
        return n
    pipe_give(f.r, p)
    return n


cdef bint was_reset(const conn* c) noexcept nogil:
    """Whether what reads like an end is none: of a reset behind a FIN only SO_ERROR tells. Who has just hung up (both
    halves have ended) is not asked.
    """
    cdef int error = 0
    cdef socklen_t size = sizeof(error)
    if c.base.flags & IO_CUT or not c.base.flags & IO_ERRED:
        return (c.base.flags & IO_CUT) != 0
    getsockopt(c.base.fd, SOL_SOCKET, SO_ERROR, &error, &size)
    return error != 0


cdef void carry_parked(flow* f, conn* source, conn* sink) noexcept nogil:
    cdef uint32_t size = source.parked.end - source.parked.start
    note_bytes(f, source, size)
    conn_write(sink, page_data(source.parked) + source.parked.start, size)
    batch_flush(f.r)
    conn_unpark(source)


cdef void note_bytes(flow* f, const conn* source, uint64_t count) noexcept nogil:
    f.progress_ms = f.r.now_ms
    if source == f.d:
        f.bytes_in += count
        count_in(&f.stats, count)
        return
    f.bytes_out += count
    count_out(&f.stats, count)
    if f.first_byte_ns < 0:
        f.first_byte_ns = monotonic_ns() - f.mark_ns


cdef bint settle(flow* f) noexcept nogil:
    """Pass ends on once the last byte before them is out. False: both halves have ended, and the flow is over."""
    if f.flags & FLOW_CLIENT_RESET:
        return finish_when(f, f.u, LB_R_CLIENT_RESET)
    if f.flags & FLOW_ENDPOINT_RESET:
        return finish_when(f, f.d, LB_R_UPSTREAM_RESET)
    if (f.flags & FLOW_CLIENT_ENDED and f.flags & FLOW_ENDPOINT_ENDED) and not (f.u.out_bytes or f.d.out_bytes):
        finish(f, LB_R_OK)
        return False
    if f.flags & FLOW_CLIENT_ENDED and not f.flags & FLOW_ENDPOINT_SHUT and not f.u.out_bytes:
        f.flags |= FLOW_ENDPOINT_SHUT
        conn_shut(f.u)
    if f.flags & FLOW_ENDPOINT_ENDED and not f.flags & FLOW_CLIENT_SHUT and not f.d.out_bytes:
        f.flags |= FLOW_CLIENT_SHUT
        conn_shut(f.d)
    return True


cdef bint reset_by(flow* f, conn* source) noexcept nogil:
    """One side is gone without an end: the other one gets what came before, and then a reset as well."""
    f.flags |= FLOW_CLIENT_RESET if source == f.d else FLOW_ENDPOINT_RESET
    set_timer(f)
    return settle(f)


cdef bint finish_when(flow* f, const conn* sink, int reason) noexcept nogil:
    """The end, as soon as nothing waits for the sink, or when it can take nothing any more."""
    if sink.out_bytes and not sink.base.flags & IO_BROKEN:
        return True
    finish(f, reason)
    return False


# ------------------------------------------------------------------------------------------------------- time and drain

cdef int64_t deadline_of(const flow* f) noexcept nogil:
    cdef int64_t deadline
    if not f.flags & FLOW_CONNECTED:
        return f.connect_deadline_ms
    deadline = f.progress_ms + (f.half_closed_timeout_ms if half_closed(f) else f.idle_timeout_ms)
    if f.drain_deadline_ms and f.drain_deadline_ms < deadline:
        return f.drain_deadline_ms
    return deadline


cdef bint half_closed(const flow* f) noexcept nogil:
    return (f.flags & (FLOW_CLIENT_ENDED | FLOW_ENDPOINT_ENDED | FLOW_CLIENT_RESET | FLOW_ENDPOINT_RESET)) != 0


cdef void set_timer(flow* f) noexcept nogil:
    timer_set(&f.r.timers, &f.d.timer, deadline_of(f))


cdef void on_timer(timer* t) noexcept nogil:
    cdef flow* f = <flow*>(<conn*>t.owner).leg.exchange
    cdef reactor* r = f.r
    if f.drain_deadline_ms and not lb_peek_int(&f.ep.retired):
        f.drain_deadline_ms = 0  # the endpoint has come back
    if r.now_ms < deadline_of(f):
        set_timer(f)
    elif not f.flags & FLOW_CONNECTED:
        connect_timed_out(f.u)
        attempt_failed(f, LB_R_CONNECT_TIMEOUT)
    else:
        finish(f, timeout_reason(f))


cdef int timeout_reason(flow* f) noexcept nogil:
    """Whose fault the standstill is, where one of them does not take what is there for it."""
    if f.drain_deadline_ms and f.r.now_ms >= f.drain_deadline_ms:
        return LB_R_ENDPOINT_REMOVED
    if f.d.out_bytes:
        return LB_R_CLIENT_IDLE_TIMEOUT
    if f.u.out_bytes:
        return LB_R_UPSTREAM_IDLE_TIMEOUT
    return LB_R_HALF_CLOSED_TIMEOUT if half_closed(f) else LB_R_FLOW_TIMEOUT


cdef void begin_drain(flow* f) noexcept nogil:
    """It has the time that its listener gives now; where that is gone or carries nothing, what it gave at the start."""
    cdef const stream_view* view
    if f.drain_deadline_ms == 0:
        view = carried_by(listener_at(current_table(f.r), f.d.place, f.d.slot))
        if view != NULL:
            f.drain_timeout_ms = view.drain_timeout_ms
        f.drain_deadline_ms = f.r.now_ms + f.drain_timeout_ms
        set_timer(f)


cdef const stream_view* carried_by(const listener_view* v) noexcept nogil:
    """What a listener says of connections that it carries, all of them or those of some server name: all have the same
    times. NULL: it carries none, or it is gone.
    """
    cdef uint32_t i
    if v == NULL or v.stream != NULL:
        return v.stream if v != NULL else NULL
    if v.names == NULL:
        return NULL
    if v.names.fallback != NULL:
        return (<const name_route*>v.names.fallback.payload).stream
    for i in range(v.names.mask + 1):
        if v.names.entries[i].host != NULL:
            return (<const name_route*>v.names.entries[i].host.payload).stream
    return NULL


cdef void flows_drain(reactor* r, endpoint* ep) noexcept nogil:
    """An endpoint is no longer served: its flows may go on for their time. May be said more than once."""
    cdef conn* u = <conn*>ep.pools[r.index].flows
    if not lb_peek_int(&ep.retired):
        return
    while u != NULL:
        begin_drain(<flow*>u.leg.exchange)
        u = u.older


cdef void flows_stay(reactor* r, endpoint* ep) noexcept nogil:
    """An endpoint is served again: if it goes once more, its flows have the whole time once more."""
    cdef conn* u = <conn*>ep.pools[r.index].flows
    while u != NULL:
        (<flow*>u.leg.exchange).drain_deadline_ms = 0
        u = u.older


cdef void flows_begin_reset(reactor* r, endpoint* ep) noexcept nogil:
    """Its health checks have failed: the flows that it has now are to be reset. Those that come later, because all
    fail and serve all the same, come in before them.
    """
    cdef idle_pool* pool = &ep.pools[r.index]
    pool.resetting = pool.flows


cdef bint flows_reset(reactor* r, endpoint* ep) noexcept nogil:
    """Reset some of these flows; one that is not connected yet goes on to another endpoint. False: more are left."""
    cdef idle_pool* pool = &ep.pools[r.index]
    cdef int left = RESETS_PER_TURN
    cdef flow* f
    while pool.resetting != NULL and left > 0:
        left -= 1
        f = <flow*>(<conn*>pool.resetting).leg.exchange
        if f.flags & FLOW_CONNECTED:
            finish(f, LB_R_ENDPOINT_UNHEALTHY)
        else:
            try_another(f, LB_R_ENDPOINT_UNHEALTHY)
    return pool.resetting == NULL


cdef void link(flow* f) noexcept nogil:
    """Among the flows of its endpoint on this reactor, as the newest."""
    cdef idle_pool* pool = &f.ep.pools[f.r.index]
    cdef conn* u = f.u
    u.newer = NULL
    u.older = <conn*>pool.flows
    if u.older != NULL:
        u.older.newer = u
    pool.flows = u


cdef void unlink(flow* f) noexcept nogil:
    cdef idle_pool* pool = &f.ep.pools[f.r.index]
    cdef conn* u = f.u
    if pool.resetting == u:
        pool.resetting = u.older
    if u.newer != NULL:
        u.newer.older = u.older
    else:
        pool.flows = u.older
    if u.older != NULL:
        u.older.newer = u.newer


# ----------------------------------------------------------------------------------------------------------------- end

cdef void finish(flow* f, int reason) noexcept nogil:
    """Close both sides, in order or by a reset; count, log, give everything back."""
    cdef reactor* r = f.r
    cdef conn* d = f.d
    cdef conn* u = f.u
    cdef bint reset = reason != LB_R_OK
    f.reason = <uint16_t>reason
    batch_flush(r)
    account(f)  # before anything is given back: a removed endpoint may go with its last flow
    if u != NULL:
        unlink(f)
        upstream_end(u, reset)
    release_place(f)
    leave_table(f)
    lb_put_int(&r.exchange_count, r.exchange_count - 1)
    bump(&r.counts.exchanges_ended)
    if f.failed_attempts != NULL:
        page_free(&r.pages, f.failed_attempts)
    slab_free(&r.flow_slab, f)
    d.leg.exchange = NULL
    conn_close(d, reset)
    client_gone(d)


cdef void flow_end(conn* client, int reason) noexcept nogil:
    """Somebody wants the flow of this client to end (flow_of)."""
    finish(<flow*>client.leg.exchange, reason)


cdef void account(flow* f) noexcept nogil:
    cdef reactor* r = f.r
    cdef int64_t duration = monotonic_ns() - f.started_ns
    bump(&r.counts.reasons[f.reason])
    count_end(&f.stats, duration, f.first_byte_ns)
    if r.s.logging:
        log_flow(f, duration)


cdef const flow* flow_of(const conn* c) noexcept nogil:
    """The flow of a client's connection; NULL: it has none, or is one to an endpoint."""
    if c.ep != NULL or (c.base.ready != flow_ready and c.base.ready != waiting_ready):
        return NULL
    return <const flow*>c.leg.exchange


cdef void cut_flows(reactor* r) noexcept nogil:
    """The daemon stops: what is under way ends with a reason and a log record like everything else."""
    cdef conn* c = <conn*>r.connections
    while c != NULL:
        # Those that end with it leave the list, but still point on along it until the end of the turn.
        if not c.base.flags & IO_DEAD and flow_of(c) != NULL:
            finish(<flow*>c.leg.exchange, LB_R_SHUTDOWN)
        c = c.next_all
