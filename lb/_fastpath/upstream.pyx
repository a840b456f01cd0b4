"""Pools and connecting (upstream.pxd)."""
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

from lb._fastpath.c.sys cimport (
    AF_UNIX,
    EADDRNOTAVAIL,
    EAGAIN,
    ECONNRESET,
    EINPROGRESS,
    EINVAL,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENOMEM,
    EPOLL_CTL_DEL,
    IPPROTO_TCP,
    LB_R_BAD_RESPONSE,
    LB_R_CONNECT_FAILED,
    LB_R_NO_CLIENT_ADDRESS,
    LB_R_NO_DESCRIPTORS,
    LB_R_NO_PORT,
    LB_R_NO_MEMORY,
    LB_R_OK,
    LB_R_UPSTREAM_CLOSED,
    LB_R_UPSTREAM_PROTOCOL,
    LB_R_UPSTREAM_REFUSED,
    LB_R_UPSTREAM_RESET,
    LB_R_UPSTREAM_TLS_FAILED,
    SO_ERROR,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    close,
    connect,
    epoll_ctl,
    errno,
    getsockopt,
    lb_add_int,
    lb_cas_ptr,
    lb_load_ptr,
    lb_peek_int,
    lb_put_int,
    lb_store_int,
    lb_store_ptr,
    lb_swap_ptr,
    lb_try_lock,
    lb_unlock,
    setsockopt,
    sockaddr,
    socket,
    socklen_t,
)
from lb._fastpath.balance cimport endpoint_connect_failed, endpoint_connected, endpoint_connecting
from lb._fastpath.counters cimport bump
from lb._fastpath.endpoint cimport (
    ADMIN_DOWN,
    FAILED_BEFORE_SETTINGS,
    FAILED_NO_ANSWER,
    FAILED_NOT_HTTP2,
    FAILED_TLS,
    idle_pool,
)
from lb._fastpath.http1 cimport (
    CLIENT_UNUSED,
    client_resume,
    client_reusable,
    client_send_body,
    client_send_end,
    client_start,
    leg_full,
    leg_shut,
    leg_waiting,
)
from lb._fastpath.http2_client cimport (
    http2_client_begun,
    http2_client_close,
    http2_client_connected,
    http2_client_each,
    http2_client_leave,
    http2_client_open,
    http2_client_room,
    http2_client_stream,
    http2_client_streams,
    http2_set_pool_calls,
    pool_calls,
)
from lb._fastpath.reactor cimport (
    IO_BROKEN,
    IO_CONNECTING,
    IO_HALF_CLOSED,
    IO_QUEUED,
    IO_READABLE,
    IO_WRITABLE,
    descriptors_above,
    io,
    io_bury,
    io_enqueue,
    io_watch,
)
from lb._fastpath.table cimport PROTOCOL_BY_ALPN, PROTOCOL_HTTP1, PROTOCOL_HTTP2
from lb._fastpath.timers cimport timer, timer_cancel, timer_rest, timer_set
from lb._fastpath.tls cimport (
    OFFER_ALL,
    OFFER_HTTP1,
    OFFER_NOTHING,
    TLS_AGAIN,
    TLS_DONE,
    tls_context,
    tls_free,
    tls_move,
    tls_new_client,
)
from lb._fastpath.transport cimport (
    batch_flush,
    conn_close,
    conn_drain,
    conn_handshake,
    conn_leave,
    conn_new,
    conn_open,
    conn_quiet,
    LEG_FIRST,
    leg_calls,
    socket_as_client,
)

cdef connect_calls calls
cdef leg_calls no_calls  # of a connection that goes on without the exchange it was made for
cdef leg_calls http1_calls  # how an exchange drives an HTTP/1 connection to an endpoint


cdef void upstream_set_calls(connect_calls* given) noexcept nogil:
    cdef pool_calls sharing
    memset(&sharing, 0, sizeof(sharing))
    memcpy(&calls, given, sizeof(connect_calls))
    http1_calls.start = client_start
    http1_calls.send_body = client_send_body
    http1_calls.send_end = client_send_end
    http1_calls.shut = leg_shut
    http1_calls.resume = client_resume
    http1_calls.full = leg_full
    http1_calls.waiting = leg_waiting
    http1_calls.done = release_leg
    http1_calls.abort = close_leg
    no_calls.abort = keep_leg
    sharing.begin = shared_begins
    sharing.no_room = shared_is_full
    sharing.not_spoken = shared_not_spoken
    sharing.stream_ended = shared_rests
    sharing.going_away = shared_unlink
    sharing.connection_ended = shared_ended
    http2_set_pool_calls(&sharing)


# --------------------------------------------------------------------------------------------------------------- leases

cdef leg* upstream_lease(reactor* r, const upstream_view* view, endpoint* ep, void* exchange, const conn* client,
        bint fresh, bint first, bint must_be_open, bint* connecting, int* reason) noexcept nogil:
    """What carries one exchange of a client (NULL: it has gone) to the endpoint: a kept connection unless `fresh`, else
    a new one.

    While it is `connecting`, `connected` or `connect_failed` follow. With `must_be_open` a kept connection is looked at
    first: a request that cannot be repeated must not go out on one that has been closed meanwhile. `first`: of shared
    connections only one that has not begun, where it goes before the others. NULL with a reason when there is
    none to be had.
    """
    cdef conn* c = NULL
    connecting[0] = False
    if view.protocol != PROTOCOL_HTTP1:
        # `fresh` or not: one that fails or goes away has no room.
        c = shared_with_room(r, view, ep, first, must_be_open)
        # Where ALPN decides, what it has decided before is expected again, so that a burst shares its connections.
        if c != NULL or view.protocol == PROTOCOL_HTTP2 or ep.pools[r.index].streams:
            return shared_lease(r, view, ep, c, exchange, first, connecting, reason)
    if not fresh:
        c = pool_take(r, ep)
        # One that was made before its upstream's TLS changed is as good as closed.
        while c != NULL and (c.wire != view.wire or (must_be_open and not conn_quiet(c))):
            upstream_close(c)
            c = pool_take(r, ep)
    if c == NULL:
        c = upstream_connect(r, view, ep, exchange, client, &calls, reason)
        connecting[0] = True
    if c == NULL:
        return NULL
    c.leg.calls = &http1_calls
    c.leg.c = c
    return &c.leg


# -------------------------------------------------------------------------------------------------- shared connections

cdef conn* shared_with_room(reactor* r, const upstream_view* view, endpoint* ep, bint first,
        bint must_be_open) noexcept nogil:
    cdef conn* c = <conn*>ep.pools[r.index].shared
    while c != NULL and (not has_room(view, c, must_be_open) or (first and http2_client_begun(c))):
        c = c.older
    return c


cdef bint has_room(const upstream_view* view, conn* c, bint must_be_open) noexcept nogil:
    if c.wire != view.wire or c.base.flags & IO_HALF_CLOSED or http2_client_room(c) == 0:
        return False
    if view.max_requests_per_connection and c.requests >= <uint32_t>view.max_requests_per_connection:
        return False
    if view.max_streams_per_connection and http2_client_streams(c) >= view.max_streams_per_connection:
        return False
    # Whoever ends it in good order says so by a GOAWAY, and what has crossed that is sent again. Others just close it.
    return not must_be_open or not http2_client_begun(c) or http2_client_streams(c) or conn_open(c)


cdef leg* shared_lease(reactor* r, const upstream_view* view, endpoint* ep, conn* c, void* exchange, bint first,
        bint* connecting, int* reason) noexcept nogil:
    """A stream of this connection, or of a new one."""
    cdef leg* l
    if c == NULL:
        c = upstream_connect(r, view, ep, NULL, NULL, &calls, reason)
        if c == NULL:
            return NULL
        c.idle_timeout_ms = view.idle_timeout_ms
        if not shared_begin(c):
            reason[0] = LB_R_NO_MEMORY
            upstream_close(c)
            return NULL
    timer_rest(&c.timer)
    connecting[0] = not http2_client_begun(c)
    l = http2_client_stream(c, exchange)
    if l == NULL:
        reason[0] = LB_R_NO_MEMORY
    elif first:
        l.flags |= LEG_FIRST
    return l


cdef bint shared_begin(conn* c) noexcept nogil:
    cdef idle_pool* pool = &c.ep.pools[c.base.r.index]
    if not http2_client_open(c):
        return False
    c.timer.fire = shared_timeout
    c.newer = NULL
    c.older = <conn*>pool.shared
    if c.older != NULL:
        c.older.newer = c
    pool.shared = c
    return True


cdef void shared_unlink(conn* c) noexcept nogil:
    """No exchange is to get a stream of it any more."""
    cdef idle_pool* pool = &c.ep.pools[c.base.r.index]
    if c.newer != NULL:
        c.newer.older = c.older
    else:
        pool.shared = c.older
    if c.older != NULL:
        c.older.newer = c.newer
    c.newer = NULL
    c.older = NULL


cdef void shared_ended(conn* c) noexcept nogil:
    upstream_close(c)


cdef void shared_rests(conn* c) noexcept nogil:
    """A stream has ended, or its limits have changed: keep the connection when it can be used again."""
    cdef endpoint* ep = c.ep
    cdef bint unused = http2_client_streams(c) == 0
    if lb_peek_int(&c.base.r.s.draining) or lb_peek_int(&ep.retired) or lb_peek_int(&ep.admin) == ADMIN_DOWN or (
        c.idle_timeout_ms <= 0 or (unused and http2_client_room(c) == 0)
    ):
        http2_client_leave(c)
    elif unused:
        timer_set(&c.base.r.timers, &c.timer, c.base.r.now_ms + c.idle_timeout_ms)


cdef void shared_timeout(timer* t) noexcept nogil:
    cdef conn* c = <conn*>t.owner
    if http2_client_streams(c) == 0:
        http2_client_leave(c)


cdef void shared_begins(leg* l) noexcept nogil:
    endpoint_connected(l.c.ep, l.c.base.r)
    calls.connected(l.exchange, l)


cdef void shared_is_full(leg* l) noexcept nogil:
    calls.connect_failed(l.exchange, LB_R_UPSTREAM_REFUSED)


cdef void shared_not_spoken(conn* c, int reason) noexcept nogil:
    cdef int why = FAILED_NOT_HTTP2
    if c.tls != NULL and c.tls.failed:
        why = FAILED_TLS
    elif reason == LB_R_UPSTREAM_CLOSED or reason == LB_R_UPSTREAM_RESET:
        why = FAILED_BEFORE_SETTINGS
    endpoint_connect_failed(c.ep, c.base.r, why)


cdef void tell_failed(leg* l, int reason) noexcept nogil:
    calls.connect_failed(l.exchange, reason)


# ------------------------------------------------------------------------------------------------------- legs of HTTP/1

cdef void release_leg(leg* l) noexcept nogil:
    upstream_release(l.c)


cdef void keep_leg(leg* l) noexcept nogil:
    pass


cdef void close_leg(leg* l) noexcept nogil:
    upstream_close(l.c)


# --------------------------------------------------------------------------------------------------------------- pools

cdef void pool_unlink(idle_pool* pool, conn* c) noexcept nogil:
    """Under the lock."""
    if c.newer != NULL:
        c.newer.older = c.older
    else:
        pool.newest = c.older
    if c.older != NULL:
        c.older.newer = c.newer
    else:
        pool.oldest = c.newer
    c.newer = NULL
    c.older = NULL
    lb_put_int(&pool.count, pool.count - 1)


cdef conn* pool_take(reactor* r, endpoint* ep) noexcept nogil:
    """An unused connection to the endpoint: of this reactor, else of a sibling, else NULL."""
    cdef idle_pool* pool = &ep.pools[r.index]
    cdef conn* c = NULL
    cdef int sibling
    while pool.count and lb_try_lock(&pool.lock):
        c = <conn*>pool.newest
        if c != NULL:
            pool_unlink(pool, c)
        lb_unlock(&pool.lock)
        if c == NULL:
            break
        if not c.base.flags & (IO_READABLE | IO_HALF_CLOSED | IO_BROKEN):
            timer_rest(&c.timer)
            return c
        upstream_close(c)  # it has ended, and idle_end could not get the lock
    for sibling in range(r.s.reactor_count):
        if sibling != r.index and lb_peek_int(&ep.pools[sibling].count) > 0:
            c = pool_steal(r, ep, sibling)
            if c != NULL:
                return c
    return NULL


cdef conn* pool_steal(reactor* r, endpoint* ep, int sibling) noexcept nogil:
    """Take a connection over: the descriptor moves to this reactor, the old struct goes back to its owner as an empty
    husk.

    Its owner may be handling an event of it right now. That event finds `taken` set (the lock orders both) and does
    nothing.
    """
    cdef idle_pool* pool = &ep.pools[sibling]
    cdef reactor* owner = &r.s.reactors[sibling]
    cdef conn* husk
    cdef conn* c
    if not lb_try_lock(&pool.lock):
        return NULL
    husk = <conn*>pool.newest
    if husk != NULL:
        pool_unlink(pool, husk)
        lb_store_int(&husk.taken, 1)
    lb_unlock(&pool.lock)
    if husk == NULL:
        return NULL
    epoll_ctl(owner.epfd, EPOLL_CTL_DEL, husk.base.fd, NULL)
    c = conn_new(r, husk.base.fd)
    lb_add_int(&r.s.descriptors, -1)  # the same descriptor, counted once
    if c != NULL:
        c.requests = husk.requests
        c.wire = husk.wire
        c.tls = husk.tls
        c.idle_timeout_ms = husk.idle_timeout_ms
        c.ep = ep
        c.base.flags = IO_WRITABLE
        c.timer.fire = idle_timeout
        if c.tls != NULL and not tls_move(c.tls, r):
            c.base.flags |= IO_BROKEN  # no goodbye: it would go by the way of the sibling, who uses it now
        if c.base.flags & IO_BROKEN or not io_watch(&c.base):
            upstream_close(c)
            c = NULL
        else:
            bump(&r.counts.upstream_stolen)
    else:
        close(husk.base.fd)
        tls_free(husk.tls)
        lb_add_int(&ep.connections, -1)
    husk.tls = NULL
    while True:
        husk.base.next_dead = <io*>lb_load_ptr(&owner.husks)
        if lb_cas_ptr(&owner.husks, husk.base.next_dead, husk):
            break
    return c


cdef void upstream_take_back(reactor* r) noexcept nogil:
    """Give back the memory of connections that siblings have taken over."""
    cdef io* source = <io*>lb_swap_ptr(&r.husks, NULL)
    cdef io* following
    while source != NULL:
        following = source.next_dead
        timer_cancel(&(<conn*>source).timer)
        conn_leave(<conn*>source)
        io_bury(source)
        source = following


cdef void upstream_release(conn* c) noexcept nogil:
    """The exchange is done with the connection: keep it when it can be used again."""
    cdef reactor* r = c.base.r
    cdef endpoint* ep = c.ep
    cdef idle_pool* pool = &ep.pools[r.index]
    c.leg.exchange = NULL
    if not client_reusable(c) or c.idle_timeout_ms <= 0 or lb_peek_int(&r.s.draining) or (
        lb_peek_int(&ep.retired) or lb_peek_int(&ep.admin) == ADMIN_DOWN or not lb_try_lock(&pool.lock)
    ):
        upstream_close(c)
        return
    c.state = CLIENT_UNUSED
    c.base.ready = idle_ready
    c.timer.fire = idle_timeout
    timer_set(&r.timers, &c.timer, r.now_ms + c.idle_timeout_ms)
    c.newer = NULL
    c.older = <conn*>pool.newest
    if c.older != NULL:
        c.older.newer = c
    else:
        pool.oldest = c
    pool.newest = c
    lb_put_int(&pool.count, pool.count + 1)
    lb_unlock(&pool.lock)  # from here on it may be a sibling's


cdef void idle_ready(io* source) noexcept nogil:
    """Something happened to an unused connection: its end, or bytes that nobody asked for. Both end its use."""
    if source.flags & (IO_HALF_CLOSED | IO_BROKEN):
        idle_end(<conn*>source)
    elif source.flags & IO_READABLE:
        idle_read(<conn*>source)


cdef void idle_read(conn* c) noexcept nogil:
    """TLS may bring tickets for the next connection while this one rests; anything else ends it."""
    cdef idle_pool* pool = &c.ep.pools[c.base.r.index]
    cdef bint quiet
    if c.tls == NULL:
        idle_end(c)
        return
    if not lb_try_lock(&pool.lock):
        io_enqueue(&c.base)  # a sibling is looking
        return
    quiet = c.taken or conn_quiet(c)
    lb_unlock(&pool.lock)
    if not quiet:
        idle_end(c)


cdef void idle_timeout(timer* t) noexcept nogil:
    idle_end(<conn*>t.owner)


cdef void idle_end(conn* c) noexcept nogil:
    cdef idle_pool* pool = &c.ep.pools[c.base.r.index]
    if not lb_try_lock(&pool.lock):
        io_enqueue(&c.base)  # a sibling is looking: see afterwards who has it
        c.base.flags |= IO_HALF_CLOSED
        return
    if c.taken:
        lb_unlock(&pool.lock)
        return
    pool_unlink(pool, c)
    lb_unlock(&pool.lock)
    upstream_close(c)


cdef void pool_close(reactor* r, endpoint* ep, int most) noexcept nogil:
    """Close unused connections of this reactor, the longest unused first."""
    cdef idle_pool* pool = &ep.pools[r.index]
    cdef conn* c
    while most > 0:
        if not lb_try_lock(&pool.lock):
            continue  # a sibling holds it for a few instructions; this is no hot path
        c = <conn*>pool.oldest
        if c != NULL:
            pool_unlink(pool, c)
        lb_unlock(&pool.lock)
        if c == NULL:
            break
        upstream_close(c)
        most -= 1
    pool_leave_shared(r, ep)


cdef void pool_leave_shared(reactor* r, endpoint* ep) noexcept nogil:
    """Shared connections end with their last stream."""
    cdef conn* c = <conn*>ep.pools[r.index].shared
    while c != NULL:
        http2_client_leave(c)
        c = c.older


# ---------------------------------------------------------------------------------------------------------- connecting

cdef void upstream_close(conn* c) noexcept nogil:
    upstream_end(c, False)


cdef void upstream_end(conn* c, bint reset) noexcept nogil:
    bump(&c.base.r.counts.upstream_closed)
    lb_add_int(&c.ep.connections, -1)
    c.leg.exchange = NULL
    conn_close(c, reset)


cdef int new_socket(const upstream_view* view, const endpoint* ep, const conn* client, bint same_port,
        int* reason) noexcept nogil:
    """A socket towards an endpoint, or -1 with a reason."""
    cdef int one = 1
    cdef int fd = socket(ep.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    reason[0] = LB_R_CONNECT_FAILED
    if fd < 0:
        if errno == EMFILE or errno == ENFILE:
            reason[0] = LB_R_NO_DESCRIPTORS
        return -1
    if ep.family != AF_UNIX:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    if view.transparent:
        reason[0] = LB_R_NO_CLIENT_ADDRESS
        if client != NULL and not client.local:
            reason[0] = socket_as_client(fd, ep, True, client.peer, client.peer_port if same_port else 0)
        if reason[0] != LB_R_OK:
            close(fd)
            return -1
        reason[0] = LB_R_CONNECT_FAILED
    return fd


cdef bint begin_to_connect(int fd, const endpoint* ep) noexcept nogil:
    return connect(fd, <sockaddr*>&ep.address, ep.address_size) == 0 or errno == EINPROGRESS


cdef conn* upstream_connect(reactor* r, const upstream_view* view, endpoint* ep, void* exchange, const conn* client,
        const connect_calls* told, int* reason) noexcept nogil:
    """Begin to connect for a client; one call of `told` follows. NULL with a reason when it cannot even begin."""
    cdef int offer = OFFER_ALL
    cdef int fd
    cdef bint begun
    cdef conn* c
    if descriptors_above(r, 100):
        reason[0] = LB_R_NO_DESCRIPTORS
        return NULL
    fd = new_socket(view, ep, client, True, reason)
    if fd < 0:
        return NULL
    endpoint_connecting(ep, r, view.connect_timeout_ms)
    begun = begin_to_connect(fd, ep)
    if not begun and errno == EADDRNOTAVAIL and view.transparent:
        # From the client's port there is a connection to this endpoint already: another one of it, or one in TIME_WAIT.
        close(fd)
        fd = new_socket(view, ep, client, False, reason)
        if fd < 0:
            return NULL
        begun = begin_to_connect(fd, ep)
    if not begun:
        # What this machine lacks (ports, buffers) is not held against the endpoint, nor where its client is: a loopback
        # address leaves no host.
        if errno == EINVAL and view.transparent:
            reason[0] = LB_R_NO_CLIENT_ADDRESS
        elif errno == EADDRNOTAVAIL:
            reason[0] = LB_R_NO_PORT
        elif errno != ENOBUFS and errno != ENOMEM and errno != EAGAIN:
            endpoint_connect_failed(ep, r, errno)
        close(fd)
        return NULL
    c = conn_new(r, fd)
    if c == NULL:
        close(fd)
        reason[0] = LB_R_NO_MEMORY
        return NULL
    c.ep = ep
    c.leg.exchange = exchange
    c.leg.c = c
    c.told = told
    c.wire = view.wire
    c.base.flags = IO_CONNECTING
    c.base.ready = connect_ready
    lb_add_int(&ep.connections, 1)
    bump(&r.counts.upstream_opened)
    if view.tls != NULL and not told.passes:
        if told != &calls:
            offer = OFFER_NOTHING
        elif view.protocol == PROTOCOL_HTTP1:
            offer = OFFER_HTTP1
        c.tls = tls_new_client(r, <tls_context*>view.tls, offer)
        if c.tls == NULL:
            reason[0] = LB_R_NO_MEMORY
            upstream_close(c)
            return NULL
    if not io_watch(&c.base):
        upstream_close(c)
        return NULL
    return c


cdef void connect_ready(io* source) noexcept nogil:
    cdef conn* c = <conn*>source
    cdef int error = 0
    cdef socklen_t size = sizeof(error)
    if c.session != NULL and http2_client_streams(c) == 0:
        http2_client_close(c)  # those who waited for it have given up
        return
    if not source.flags & (IO_WRITABLE | IO_BROKEN):
        return
    if source.flags & IO_BROKEN:
        getsockopt(source.fd, SOL_SOCKET, SO_ERROR, &error, &size)
        # Connected and closed again by the peer is no connect failure; the exchange will read what there is.
        if error != 0 or not source.flags & IO_HALF_CLOSED:
            endpoint_connect_failed(c.ep, source.r, error if error else ECONNRESET)
            not_connected(c, LB_R_CONNECT_FAILED)
            return
    source.flags &= ~<uint32_t>IO_CONNECTING
    if c.session == NULL and not c.told.opened(c.leg.exchange, c):
        not_connected(c, LB_R_CONNECT_FAILED)
        return
    if c.tls != NULL:
        source.ready = handshake_ready
        handshake_ready(source)
    else:
        established(c)


cdef void handshake_ready(io* source) noexcept nogil:
    cdef conn* c = <conn*>source
    cdef int result
    if c.session != NULL and http2_client_streams(c) == 0:
        http2_client_close(c)
        return
    if c.out_bytes and source.flags & IO_WRITABLE:
        conn_drain(c)
    result = conn_handshake(c, NULL)
    if result == TLS_AGAIN and not source.flags & IO_BROKEN:
        return
    if result == TLS_DONE:
        established(c)
        return
    lb_store_ptr(&c.ep.tls_error, <void*>(c.tls.why if c.tls.why != NULL else <const char*>b"it closed the connection"))
    endpoint_connect_failed(c.ep, source.r, FAILED_TLS)
    not_connected(c, LB_R_UPSTREAM_TLS_FAILED)


cdef void connect_timed_out(conn* c) noexcept nogil:
    """Time for connecting is up. A node that is gone answers no SYN; but a handshake that stands in line has run out of
    our own time, which says nothing about the endpoint.
    """
    if c.tls == NULL or not c.base.flags & IO_QUEUED:
        endpoint_connect_failed(c.ep, c.base.r, FAILED_NO_ANSWER)


cdef void not_connected(conn* c, int reason) noexcept nogil:
    """Tell those who wait for the connection, and let it go."""
    cdef reactor* r = c.base.r
    if c.session != NULL:
        http2_client_leave(c)  # none of them shall try it again
        http2_client_each(c, tell_failed, reason)
        http2_client_close(c)
    else:
        c.told.connect_failed(c.leg.exchange, reason)
    batch_flush(r)


cdef void share(conn* c, void* exchange) noexcept nogil:
    """ALPN has chosen HTTP/2: whom the connection was made for gets its first stream."""
    cdef leg* l
    c.leg.exchange = NULL
    if not shared_begin(c):
        calls.connect_failed(exchange, LB_R_NO_MEMORY)
        return
    http2_client_connected(c)
    l = http2_client_stream(c, exchange)
    if l == NULL:
        http2_client_leave(c)
        c.leg.calls = &no_calls
        calls.connect_failed(exchange, LB_R_NO_MEMORY)
    else:
        calls.became_stream(exchange, l)


cdef void established(conn* c) noexcept nogil:
    """The connection is there, and it is known what it speaks."""
    cdef reactor* r = c.base.r
    cdef bint http = c.told == &calls
    cdef bint h2 = http and c.tls != NULL and c.tls.h2
    cdef void* exchange = c.leg.exchange
    cdef leg* l = &c.leg
    if c.session != NULL and c.tls != NULL and not h2 and c.wire & 3 == PROTOCOL_BY_ALPN:
        c.ep.pools[r.index].streams = 0
        not_connected(c, LB_R_UPSTREAM_REFUSED)  # HTTP/2 is what it spoke before: they try again without expecting it
        return
    if c.session != NULL and c.tls != NULL and not h2:
        endpoint_connect_failed(c.ep, r, FAILED_NOT_HTTP2)
        not_connected(c, LB_R_UPSTREAM_PROTOCOL)  # HTTP/2 is what was asked for
        return
    if c.session == NULL and http and not h2 and c.parked != NULL:
        not_connected(c, LB_R_BAD_RESPONSE)  # an answer before there was a question
        return
    if c.session != NULL:
        http2_client_connected(c)
    elif h2:
        share(c, exchange)
    else:
        endpoint_connected(c.ep, r)
        c.told.connected(exchange, l)
    batch_flush(r)
