"""Accepting (accept.pxd)."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from lb._fastpath.announce cimport keep_header
from lb._fastpath.c.sys cimport (
    EAGAIN,
    ECONNABORTED,
    EINTR,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENOMEM,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLIN,
    LB_R_BAD_CLIENT_HELLO,
    LB_R_BAD_PROXY_HEADER,
    LB_R_CLIENT_CLOSED,
    LB_R_CLIENT_CONNECTION_RATE,
    LB_R_CLIENT_RESET,
    LB_R_CONNECTION_RATE,
    LB_R_NO_APPLICATION_PROTOCOL,
    LB_R_NO_DESCRIPTORS,
    LB_R_NO_MEMORY,
    LB_R_NO_UPSTREAM,
    LB_R_OK,
    LB_R_PRESSURE,
    LB_R_PROXY_HEADER_TIMEOUT,
    LB_R_PLAIN_HTTP,
    LB_R_TLS_HANDSHAKE_FAILED,
    LB_R_TLS_TIMEOUT,
    LB_R_TOO_MANY_CONNECTIONS,
    LB_R_TOO_MANY_FROM_CLIENT,
    LB_R_UNRECOGNIZED_NAME,
    SO_LINGER,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOL_SOCKET,
    accept4,
    close,
    epoll_ctl,
    epoll_event,
    errno,
    lb_add_int,
    lb_reason_statuses,
    linger_option,
    recv,
    send,
    setsockopt,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_PEEK,
    sockaddr,
    sockaddr_storage,
    socklen_t,
    ssize_t,
)
from lb._fastpath.client_hello cimport (
    HELLO_MORE,
    HELLO_MOST,
    HELLO_OK,
    client_hello,
    hello_note,
    hello_offers,
    hello_read,
    hello_texts,
)
from lb._fastpath.clients cimport clients_drain_idle
from lb._fastpath.counters cimport STATS_CHUNK, bump, listener_traffic, stats_block
from lb._fastpath.http1 cimport server_close, server_gone, server_open
from lb._fastpath.http2_server cimport http2_server_open
from lb._fastpath.limits cimport client_in_rate, count_client, forget_client, listener_in_rate
from lb._fastpath.memory cimport slab_alloc, slab_free
from lb._fastpath.proxy_protocol cimport PROXY_BAD, PROXY_MORE, PROXY_MOST, proxy_header, proxy_read
from lb._fastpath.reactor cimport (
    IO_BROKEN,
    IO_DEAD,
    IO_HALF_CLOSED,
    IO_QUEUED,
    IO_READABLE,
    IO_WRITABLE,
    FULL_PERCENT,
    SCRATCH_BYTES,
    SHORT_PERCENT,
    current_table,
    descriptors_above,
    io,
    io_bury,
    io_enqueue,
    io_watch,
    refusal,
    table_pin_one,
    table_unpin_one,
)
from lb._fastpath.ring cimport VERSION_TCP
from lb._fastpath.table cimport (
    MAX_HOST,
    find_host,
    in_networks,
    listener_at,
    listener_view,
    name_route,
    slot_at,
    stream_view,
    table,
    text_at,
    vhost,
)
from lb._fastpath.timers cimport timer, timer_cancel, timer_rest, timer_set
from lb._fastpath.tls cimport TLS_AGAIN, TLS_FAILED, tls_carry, tls_free, tls_new_server, tls_resumed
from lb._fastpath.transport cimport (
    TURN_BYTES,
    batch_flush,
    conn_drain,
    conn_handshake,
    conn_new,
    conn_receive,
    conn_shut,
    conn_write,
    listener_heir,
    note_address,
)


cdef listener_traffic* stats_of(reactor* r, uint32_t slot) noexcept nogil:
    return <listener_traffic*>stats_block(&r.listener_stats, slot, sizeof(listener_traffic))


# ----------------------------------------------------------------------------------------------------------- admission

cdef void client_gone(conn* c) noexcept nogil:
    """A client's connection has been closed."""
    cdef reactor* r = c.base.r
    cdef listener_traffic* stats = stats_of(r, c.slot)
    if c.counted:
        forget_client(r, c.peer, 0)
    if c.carried_by != NULL:
        table_unpin_one(r, c.carried_by)
        c.carried_by = NULL
    if c.hello != NULL:
        slab_free(&r.hello_slab, c.hello)
        c.hello = NULL
    lb_add_int(&r.s.connections, -1)
    bump(&r.counts.connections_closed)
    if stats != NULL:
        bump(&stats.closed)


cdef void turn_away(
    listening* l, const listener_view* view, int fd, int reason, const unsigned char* peer, uint16_t port
) noexcept nogil:
    """Say why in a few bytes that a fresh socket always takes, and close; where it is not known that the client speaks
    HTTP, reset.
    """
    cdef reactor* r = l.base.r
    cdef linger_option option
    cdef const char* text = (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 5\r\nConnection: close\r\n\r\n"
    )
    cdef size_t size = 0
    cdef int status = 0 if l.carries else 503
    if not l.carries and lb_reason_statuses[reason] == 429:
        status = 429
        text = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nRetry-After: 5\r\nConnection: close\r\n\r\n"
    bump(&r.counts.reasons[reason])
    if l.carries:
        option.l_onoff = 1
        option.l_linger = 0
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))
    else:
        while text[size]:
            size += 1
        send(fd, text, size, MSG_NOSIGNAL | MSG_DONTWAIT)
    close(fd)
    if r.s.logging:
        log_turned_away(l, view, peer, port, reason, status)


cdef void log_turned_away(
    listening* l, const listener_view* view, const unsigned char* peer, uint16_t port, int reason, int status
) noexcept nogil:
    cdef refusal what
    what.client = NULL
    what.listener_name = view.name if view != NULL else l.name
    what.listener_name_size = view.name_size if view != NULL else l.name_size
    what.peer = peer
    what.port = port
    what.reason = reason
    what.status = status
    what.version = VERSION_TCP
    l.base.r.s.log_refusal(l.base.r, &what)


cdef void log_refused(conn* c, int reason, int status) noexcept nogil:
    """A record of a connection that comes to its end before an exchange or a flow could have one."""
    cdef reactor* r = c.base.r
    cdef refusal what
    if not r.s.logging or c.base.flags & IO_DEAD:
        return
    what.client = &c.base
    what.listener_name = c.listener_name
    what.listener_name_size = c.listener_name_size
    what.peer = NULL if c.local else &c.peer[0]
    what.port = c.peer_port
    what.reason = reason
    what.status = status
    what.version = VERSION_TCP
    r.s.log_refusal(r, &what)


cdef void refuse(conn* c, int reason) noexcept nogil:
    """Close without an answer, and say why where who looks for the client can find it."""
    log_refused(c, reason, 0)
    server_close(c, reason)


# ----------------------------------------------------------------------------------------------------------- accepting

cdef listener_view* view_of(const listening* l, const table* t) noexcept nogil:
    """NULL when a change has removed the listener, or made it one of UDP: then this socket is about to be closed."""
    cdef listener_view* view = listener_at(t, l.place, l.slot)
    return view if view == NULL or view.datagram == NULL else NULL


cdef void admit(listening* l, int fd, const sockaddr_storage* address) noexcept nogil:
    cdef reactor* r = l.base.r
    cdef table* t = current_table(r)
    cdef listener_view* view = view_of(l, t)
    # Of nobody's place the table gives no slot that could be counted under.
    cdef uint32_t slot = slot_at(t, l.place, l.slot) if view != NULL else l.slot
    cdef listener_traffic* stats = stats_of(r, slot)
    cdef unsigned char peer[16]
    cdef uint16_t port = 0
    cdef bint local = not note_address(address, peer, &port)
    cdef bint proxied = view != NULL and view.proxies_count and in_networks(view.proxies, view.proxies_count, peer)
    cdef bint counted = False
    cdef conn* c
    cdef int reason = LB_R_OK
    cdef int open_now = lb_add_int(&r.s.connections, 1)
    if view != NULL:
        l.carries = view.carries
    if r.s.max_connections and open_now > r.s.max_connections:
        reason = LB_R_TOO_MANY_CONNECTIONS
    elif view != NULL:
        reason = why_not(r, view, slot, NULL if local or proxied else peer, &counted)
    elif l.carries:  # a change has removed it, and with it where its clients went
        reason = LB_R_NO_UPSTREAM
    if reason != LB_R_OK:
        lb_add_int(&r.s.connections, -1)
        turn_away(l, view, fd, reason, NULL if local else &peer[0], port)
        if stats != NULL and reason != LB_R_NO_UPSTREAM:
            bump(&stats.rejected)
        return
    c = conn_new(r, fd)
    if c == NULL:
        if counted:
            forget_client(r, peer, 0)
        lb_add_int(&r.s.connections, -1)
        turn_away(l, view, fd, LB_R_NO_MEMORY, NULL if local else &peer[0], port)
        return
    c.local = local
    memcpy(c.peer, peer, 16)
    c.peer_port = port
    c.counted = counted
    c.place = l.place
    c.slot = slot
    c.listener_name = view.name if view != NULL else l.name
    c.listener_name_size = view.name_size if view != NULL else l.name_size
    bump(&r.counts.connections_opened)
    if stats != NULL:
        bump(&stats.accepted)
    c.base.flags = IO_WRITABLE
    if descriptors_above(r, SHORT_PERCENT):
        relieve(r)  # before it counts as idle itself: who has just come has had no time to ask
    if proxied:
        begin_proxied(c, view)
    else:
        r.serving = t
        greet(c, view)


cdef int why_not(reactor* r, const listener_view* view, uint32_t slot, const unsigned char* peer,
        bint* counted) noexcept nogil:
    """Why a client is not let in, before any memory is spent on it. `peer` is NULL while it is not known who it is.

    Its own limits come first: a client that is over them takes nothing of what is there for all.
    """
    cdef int reason = LB_R_OK
    if view.max_connections and listener_active(r, slot) >= view.max_connections:
        return LB_R_TOO_MANY_CONNECTIONS
    if peer != NULL:
        reason = why_not_client(r, view, slot, peer, counted)
    if reason == LB_R_OK and view.max_connection_rate and not listener_in_rate(r, slot, view.max_connection_rate):
        if counted[0]:
            forget_client(r, peer, 0)
        reason = LB_R_CONNECTION_RATE
    return reason


cdef int why_not_client(reactor* r, const listener_view* view, uint32_t slot, const unsigned char* peer,
        bint* counted) noexcept nogil:
    """The limits of one client; `counted` tells whether it is one of those that it may have at a time."""
    if view.max_connection_rate_per_client and not (
        client_in_rate(r, peer, slot, view.max_connection_rate_per_client)
    ):
        return LB_R_CLIENT_CONNECTION_RATE
    if view.max_connections_per_client:
        counted[0] = count_client(r, peer, 0, view.max_connections_per_client)
        if not counted[0]:
            return LB_R_TOO_MANY_FROM_CLIENT
    return LB_R_OK


cdef void greet(conn* c, listener_view* view) noexcept nogil:
    """Begin with a client whose address is known: carry its bytes, or speak with it by TLS, or by HTTP at once."""
    if view != NULL and view.stream != NULL:
        if io_watch(&c.base):
            carry(c, view.stream)
        else:
            refuse(c, LB_R_NO_DESCRIPTORS)
        return
    if view != NULL and view.names != NULL:
        begin_hello(c, view)
    elif view != NULL and view.tls != NULL:
        begin_tls(c, view)
    else:
        server_open(c)
    if not io_watch(&c.base):
        refuse(c, LB_R_NO_DESCRIPTORS)


cdef void carry(conn* c, const stream_view* route) noexcept nogil:
    c.carried = route
    c.base.r.s.open_flow(&c.base)


# ------------------------------------------------------------------------------------------------------ PROXY protocol

cdef void begin_proxied(conn* c, listener_view* view) noexcept nogil:
    """First comes the header of a proxy that is believed; only then is it known who the client is."""
    c.base.ready = proxied_ready
    c.timer.fire = proxied_timeout
    timer_set(&c.base.r.timers, &c.timer, c.base.r.now_ms + view.head_timeout_ms)
    if not io_watch(&c.base):
        refuse(c, LB_R_NO_DESCRIPTORS)


cdef void proxied_timeout(timer* t) noexcept nogil:
    refuse(<conn*>t.owner, LB_R_PROXY_HEADER_TIMEOUT)


cdef void proxied_ready(io* source) noexcept nogil:
    """Look at what has come without taking it, and take the header alone: what is behind it is for who comes next."""
    cdef conn* c = <conn*>source
    cdef reactor* r = source.r
    cdef table* t = current_table(r)
    cdef listener_view* view = listener_at(t, c.place, c.slot)
    cdef proxy_header header
    cdef ssize_t n
    cdef int size = PROXY_MORE
    if not source.flags & IO_READABLE:
        return
    n = recv(source.fd, r.scratch_in, PROXY_MOST, MSG_PEEK | MSG_DONTWAIT)
    if n > 0:
        size = proxy_read(r.scratch_in, <size_t>n, &header)
    elif n == 0 or errno != EAGAIN:
        size = PROXY_BAD
    if view == NULL or size == PROXY_BAD or (size == PROXY_MORE and source.flags & (IO_HALF_CLOSED | IO_BROKEN)):
        if n > 0:  # who goes without a word, as a check of the port does, is only counted
            log_refused(c, LB_R_BAD_PROXY_HEADER, 0)
        server_close(c, LB_R_BAD_PROXY_HEADER)
        return
    if size == PROXY_MORE:
        source.flags &= ~<uint32_t>IO_READABLE
        return
    if not keep_header(c, &header):
        refuse(c, LB_R_NO_MEMORY)
        return
    recv(source.fd, r.scratch_in, <size_t>size, MSG_DONTWAIT)
    timer_rest(&c.timer)
    r.serving = t
    proceed(c, view)


cdef void proceed(conn* c, listener_view* view) noexcept nogil:
    """The client behind a proxy is known: its limits, and then what every client begins with."""
    cdef bint counted = False
    cdef int reason = LB_R_OK if c.local else why_not_client(c.base.r, view, c.slot, c.peer, &counted)
    c.counted = counted
    if reason != LB_R_OK:
        refuse(c, reason)
        return
    if view.stream != NULL:
        carry(c, view.stream)
    elif view.names != NULL:
        begin_hello(c, view)
    elif view.tls != NULL:
        begin_tls(c, view)
    else:
        server_open(c)
    if not c.base.flags & IO_DEAD and c.base.flags & IO_READABLE:
        io_enqueue(&c.base)


cdef int64_t listener_active(reactor* r, uint32_t slot) noexcept nogil:
    """Connections of a listener over all reactors."""
    cdef int64_t total = 0
    cdef int i
    cdef listener_traffic* stats
    for i in range(r.s.reactor_count):
        stats = <listener_traffic*>r.s.reactors[i].listener_stats.chunks[slot // STATS_CHUNK][slot % STATS_CHUNK]
        if stats != NULL:
            total += <int64_t>(stats.accepted - stats.closed)
    return total


cdef void relieve(reactor* r) noexcept nogil:
    """Make room: idle clients are the cheapest to lose, they only have to connect again."""
    cdef int before = r.idle_client_count
    clients_drain_idle(r, LB_R_PRESSURE, PRESSURE_BATCH)
    r.counts.idle_closed_by_pressure += <unsigned long long>(before - r.idle_client_count)


cdef void accept_ready(io* source) noexcept nogil:
    accept_some(<listening*>source, ACCEPTS_PER_TURN)


cdef void accept_some(listening* l, int most) noexcept nogil:
    cdef io* source = &l.base
    cdef sockaddr_storage address
    cdef socklen_t size
    cdef int fd, count = 0
    while count < most:
        if descriptors_above(source.r, FULL_PERCENT):
            hold_off(l)
            return
        size = sizeof(address)
        fd = accept4(source.fd, <sockaddr*>&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0:
            admit(l, fd, &address)
            count += 1
            continue
        if errno == EINTR or errno == ECONNABORTED:
            continue
        if errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
            hold_off(l)
        return


cdef void hold_off(listening* l) noexcept nogil:
    """There are no descriptors for more clients, or no memory: let them wait in the kernel's queue for a moment."""
    cdef reactor* r = l.base.r
    bump(&r.counts.reasons[LB_R_NO_DESCRIPTORS])
    bump(&r.counts.accept_pauses)
    relieve(r)
    pause(l)


cdef void pause(listening* l) noexcept nogil:
    """Stop listening for a moment: the socket stays readable, and level-triggered events would spin."""
    if l.stopped:
        return
    l.stopped = True
    epoll_ctl(l.base.r.epfd, EPOLL_CTL_DEL, l.base.fd, NULL)
    timer_set(&l.base.r.timers, &l.pause, l.base.r.now_ms + PAUSE_MS)


cdef bint watch(listening* l) noexcept nogil:
    # Level-triggered, unlike all others: what one turn leaves in the queue is announced again.
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.ptr = l
    l.stopped = False
    return epoll_ctl(l.base.r.epfd, EPOLL_CTL_ADD, l.base.fd, &event) == 0


cdef void resume(timer* t) noexcept nogil:
    cdef listening* l = <listening*>t.owner
    if not watch(l):
        timer_set(&l.base.r.timers, &l.pause, l.base.r.now_ms + PAUSE_MS)
        l.stopped = True


# -------------------------------------------------------------------------------------------------------- server names

cdef void begin_hello(conn* c, listener_view* view) noexcept nogil:
    """Whom the client wants is looked at before anybody answers it: it may be for an endpoint to do so."""
    c.base.ready = hello_ready
    c.timer.fire = handshake_timeout
    timer_set(&c.base.r.timers, &c.timer, c.base.r.now_ms + view.head_timeout_ms)


cdef void hello_ready(io* source) noexcept nogil:
    """Look at the client's first message without taking it. Each piece that comes is an edge of its own, so what is not
    whole yet is looked at again when there is more, and not before.
    """
    cdef conn* c = <conn*>source
    cdef reactor* r = source.r
    cdef table* t = current_table(r)
    cdef listener_view* view = listener_at(t, c.place, c.slot)
    cdef const name_route* route = NULL
    cdef bint known = False
    cdef client_hello hello
    cdef ssize_t n
    cdef int result = HELLO_MORE
    if not source.flags & IO_READABLE:
        return
    if view == NULL:
        refuse(c, LB_R_NO_UPSTREAM)
        return
    n = recv(source.fd, r.scratch_in, HELLO_MOST, MSG_PEEK | MSG_DONTWAIT)
    if n > 0:
        result = hello_read(<uint8_t*>r.scratch_in, <size_t>n, &hello)
    if result == HELLO_MORE and n != 0 and not source.flags & (IO_HALF_CLOSED | IO_BROKEN):
        source.flags &= ~<uint32_t>IO_READABLE
        return
    if result == HELLO_OK and view.names != NULL:
        route = choose_route(view, &hello, &known)
    if route != NULL:
        follow(c, t, view, route, &hello)
    elif not view.carries:
        # For a host of HTTP; and of what is no such message, OpenSSL says what is wrong with it.
        if view.tls != NULL:
            shake_hands(c, view)
        else:
            timer_rest(&c.timer)
            server_open(c)
        io_enqueue(source)
    elif n <= 0:
        server_close(c, LB_R_CLIENT_CLOSED if n == 0 else LB_R_CLIENT_RESET)
    elif result == HELLO_OK:
        note_hello(c, &hello)
        refuse_hello(c, view, LB_R_NO_APPLICATION_PROTOCOL if known else LB_R_UNRECOGNIZED_NAME)
    else:
        refuse_hello(c, view, LB_R_PLAIN_HTTP if begins_like_http(r.scratch_in, n) else LB_R_BAD_CLIENT_HELLO)


cdef const name_route* choose_route(const listener_view* view, const client_hello* hello, bint* known) noexcept nogil:
    """Where the connection goes; NULL when no name is for it, or a host of HTTP is more specific, or none of the name's
    routes takes what the client offers (`known`). lb/model/match.py, match_name, is its oracle.
    """
    cdef const vhost* entry = find_host(view.names, hello.name, hello.name_size)
    cdef const vhost* host
    cdef const name_route* route
    if entry == NULL:
        return NULL
    if not view.carries:
        host = find_host(view.hosts, hello.name, hello.name_size)
        if host != NULL and specificity(host) > specificity(entry):
            return NULL
    known[0] = True
    route = <const name_route*>entry.payload
    while route.alpn_size and hello_offers(hello, route.alpn, route.alpn_size) == NULL:
        if route.last:
            return NULL
        route += 1
    return route


cdef uint32_t specificity(const vhost* host) noexcept nogil:
    """Exact names come before wildcards, longer ones before shorter ones."""
    return host.hostname.size + (0 if text_at(host, host.hostname)[0] == c"*" else MAX_HOST)


cdef void note_hello(conn* c, const client_hello* hello) noexcept nogil:
    """For the log, which does without when there is no memory."""
    if c.hello == NULL:
        c.hello = <hello_texts*>slab_alloc(&c.base.r.hello_slab)
    if c.hello != NULL:
        hello_note(hello, c.hello)


cdef void follow(conn* c, table* t, listener_view* view, const name_route* route,
        const client_hello* hello) noexcept nogil:
    """The bytes of this client are carried: as they are, or when lb has shaken hands with it. Until that is done the
    table stays that says where they go.
    """
    cdef reactor* r = c.base.r
    note_hello(c, hello)
    if route.terminates:
        c.carried = route.stream
        c.carried_by = t
        table_pin_one(r, t)
        shake_hands(c, view)
        tls_carry(c.tls, route.alpn, route.alpn_size)
    else:
        bump(&r.counts.tls_passed)
        timer_rest(&c.timer)
        r.serving = t
        carry(c, route.stream)
    io_enqueue(&c.base)


cdef void refuse_hello(conn* c, listener_view* view, int reason) noexcept nogil:
    """Nobody is there for this client: say so as TLS does. Who speaks no TLS would not understand it."""
    cdef const char* alert = b"\x15\x03\x03\x00\x02\x02\x32"  # fatal: decode_error (RFC 8446 6.2)
    if reason == LB_R_UNRECOGNIZED_NAME:
        alert = b"\x15\x03\x03\x00\x02\x02\x70"
    elif reason == LB_R_NO_APPLICATION_PROTOCOL:
        alert = b"\x15\x03\x03\x00\x02\x02\x78"
    if reason != LB_R_PLAIN_HTTP:
        conn_write(c, alert, 7)
        batch_flush(c.base.r)
    refuse_handshake(c, view, reason)


# ----------------------------------------------------------------------------------------------------------------- TLS

cdef void begin_tls(conn* c, listener_view* view) noexcept nogil:
    """The handshake comes first; only then is it known which codec takes the connection."""
    shake_hands(c, view)
    c.timer.fire = handshake_timeout
    timer_set(&c.base.r.timers, &c.timer, c.base.r.now_ms + view.head_timeout_ms)


cdef void shake_hands(conn* c, listener_view* view) noexcept nogil:
    """Until the timer fires that has been set."""
    c.tls = tls_new_server(c.base.r, view.tls)
    c.base.ready = handshake_ready


cdef void handshake_timeout(timer* t) noexcept nogil:
    log_refused(<conn*>t.owner, LB_R_TLS_TIMEOUT, 0)
    end_handshake(<conn*>t.owner, LB_R_TLS_TIMEOUT)


cdef void count_failed(conn* c) noexcept nogil:
    cdef listener_traffic* stats = stats_of(c.base.r, c.slot)
    bump(&c.base.r.counts.tls_failed)
    if stats != NULL:
        bump(&stats.tls_failed)


cdef void end_handshake(conn* c, int reason) noexcept nogil:
    count_failed(c)
    server_close(c, reason)


cdef void refuse_handshake(conn* c, listener_view* view, int reason) noexcept nogil:
    """Our last words are out or on their way. What the client has sent meanwhile (with TLS 1.3 it may speak right
    behind its handshake) is read for a while and thrown away: closing on unread bytes would reset the connection, and
    the client would lose the alert that says what is wrong (RFC 9112 9.6 tells the same of HTTP).
    """
    cdef reactor* r = c.base.r
    if c.tls == NULL or c.tls.why != NULL:  # a client that just goes away is only counted
        log_refused(c, reason, lb_reason_statuses[reason])
    if c.base.flags & IO_BROKEN:
        end_handshake(c, reason)
        return
    count_failed(c)
    bump(&r.counts.reasons[reason])
    tls_free(c.tls)
    c.tls = NULL
    c.base.ready = lingering_ready
    c.timer.fire = lingering_timeout
    timer_set(&r.timers, &c.timer, r.now_ms + view.linger_timeout_ms)
    if c.out_bytes == 0:
        conn_shut(c)
    if c.base.flags & IO_READABLE:
        io_enqueue(&c.base)
    elif c.base.flags & IO_HALF_CLOSED and c.out_bytes == 0:
        server_gone(c, False)


cdef void lingering_timeout(timer* t) noexcept nogil:
    server_gone(<conn*>t.owner, False)


cdef void lingering_ready(io* source) noexcept nogil:
    cdef conn* c = <conn*>source
    cdef int64_t budget = TURN_BYTES
    cdef ssize_t n = 1
    if c.out_bytes and source.flags & IO_WRITABLE:
        conn_drain(c)
        if c.out_bytes == 0:
            conn_shut(c)
    while source.flags & IO_READABLE and n > 0 and budget > 0:
        n = conn_receive(c, source.r.scratch_in, SCRATCH_BYTES)
        budget -= n
    if source.flags & IO_HALF_CLOSED and not source.flags & IO_READABLE and c.out_bytes == 0:
        source.flags |= IO_BROKEN  # both have said all
    if source.flags & IO_BROKEN:
        server_gone(c, False)
    elif source.flags & IO_READABLE:
        io_enqueue(source)


cdef void handshake_ready(io* source) noexcept nogil:
    cdef conn* c = <conn*>source
    cdef reactor* r = source.r
    cdef table* t = c.carried_by if c.carried_by != NULL else current_table(r)
    cdef listener_view* view = listener_at(t, c.place, c.slot)
    cdef int result
    if c.tls == NULL:
        log_refused(c, LB_R_NO_MEMORY, 0)
        end_handshake(c, LB_R_NO_MEMORY)
        return
    if view == NULL or view.tls == NULL:
        log_refused(c, LB_R_TLS_HANDSHAKE_FAILED, 0)
        end_handshake(c, LB_R_TLS_HANDSHAKE_FAILED)
        return
    if c.out_bytes and source.flags & IO_WRITABLE and not source.flags & IO_BROKEN:
        conn_drain(c)
    # Also when the connection is broken: a client that refuses us says why, and resets it for what it has not read.
    result = conn_handshake(c, view.tls)
    if result == TLS_AGAIN:
        if source.flags & IO_BROKEN and not source.flags & IO_QUEUED:
            end_handshake(c, LB_R_TLS_HANDSHAKE_FAILED)
        return
    if result == TLS_FAILED:
        if spoke_http(c):
            answer_plain_http(c)
            refuse_handshake(c, view, LB_R_PLAIN_HTTP)
        else:
            refuse_handshake(c, view, LB_R_TLS_HANDSHAKE_FAILED)
        return
    bump(&r.counts.tls_handshakes)
    if tls_resumed(c.tls):
        bump(&r.counts.tls_resumed)
    timer_rest(&c.timer)
    if c.carried != NULL:
        carry(c, c.carried)
    elif c.tls.h2:
        http2_server_open(c)
    else:
        server_open(c)
    if c.parked != NULL or source.flags & IO_READABLE:
        io_enqueue(source)


cdef bint spoke_http(const conn* c) noexcept nogil:
    """Whether what was received last begins like a request."""
    return begins_like_http(c.base.r.tls_in, c.tls.in_end - c.base.r.tls_in)


cdef bint begins_like_http(const char* p, ssize_t size) noexcept nogil:
    """TLS never begins with a letter."""
    return size >= 2 and c"A" <= p[0] <= c"Z" and c"A" <= p[1] <= c"Z"


cdef void answer_plain_http(conn* c) noexcept nogil:
    cdef const char* text = (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 58\r\n"
        b"Connection: close\r\n\r\n400 Bad Request: plain HTTP on a port that speaks HTTPS.\r\n"
    )
    cdef size_t size = 0
    while text[size]:
        size += 1
    tls_free(c.tls)  # what goes out is plain
    c.tls = NULL
    c.base.flags &= ~<uint32_t>IO_BROKEN
    conn_write(c, text, size)
    batch_flush(c.base.r)


# ------------------------------------------------------------------------------------------------------------ commands

cdef void listening_release(io* source) noexcept nogil:
    free(source)


cdef void run_listen(reactor* r, command* c) noexcept nogil:
    """Accept on descriptor `number`; `subject` is the listening prepared by the control plane."""
    cdef listening* l = <listening*>c.subject
    cdef listener_view* view = view_of(l, current_table(r))
    l.base.r = r
    l.carries = view != NULL and view.carries
    l.base.ready = accept_ready
    l.base.release = listening_release
    l.pause.owner = l
    l.pause.fire = resume
    l.next = <listening*>r.listeners
    r.listeners = l
    if not watch(l):
        timer_set(&r.timers, &l.pause, r.now_ms + PAUSE_MS)


cdef void run_pass_listener(reactor* r, command* c) noexcept nogil:
    """The sockets of a place are those of `subject` from now on."""
    cdef listener_heir* heir = <listener_heir*>c.subject
    cdef listening* l = <listening*>r.listeners
    while l != NULL:
        if l.place == heir.place:
            l.slot = heir.slot
            l.name = heir.name
            l.name_size = heir.name_size
        l = l.next
    free(heir)


cdef void stop_listening(reactor* r, listening* l) noexcept nogil:
    """Take what has connected already, then close: a client in the queue must not be reset."""
    accept_some(l, QUEUE_MOST)
    timer_cancel(&l.pause)
    # Others may hold the same socket (systemd, the control plane, siblings), and epoll forgets it only with the last
    # of them.
    epoll_ctl(r.epfd, EPOLL_CTL_DEL, l.base.fd, NULL)
    close(l.base.fd)
    lb_add_int(&r.s.descriptors, -1)
    io_bury(&l.base)


cdef void run_close_listener(reactor* r, command* c) noexcept nogil:
    """Stop accepting at the place `number`."""
    cdef listening* l = <listening*>r.listeners
    cdef listening* kept = NULL
    cdef listening* following
    while l != NULL:
        following = l.next
        if l.place == <uint32_t>c.number:
            stop_listening(r, l)
        else:
            l.next = kept
            kept = l
        l = following
    r.listeners = kept


cdef void run_stop_accepting(reactor* r, command* c) noexcept nogil:
    cdef listening* l = <listening*>r.listeners
    cdef listening* following
    r.listeners = NULL
    while l != NULL:
        following = l.next
        stop_listening(r, l)
        l = following
