"""Sessions (datagram.pxd)."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from lb._fastpath.access cimport log_refusal, log_session, note_failed_attempt
from lb._fastpath.balance cimport (
    balance_pick,
    balance_release,
    endpoint_connect_failed,
    endpoint_connected,
    flow_hash,
    pick_reason,
    tried_bit,
)
from lb._fastpath.batches cimport (
    RECEIVE_BATCH,
    REPLY_BATCH,
    SLOT_BYTES,
    batches_init,
    batches_release,
    count_of,
    drop,
    drop_messages,
    flush_replies,
    is_full,
    prepare_socket,
    put_replies,
    receive_batch,
    receive_replies,
    received,
    replies,
    send_messages,
    send_pieces,
    session_key,
    slot_of,
    take_error,
)
from lb._fastpath.c.sys cimport (
    AF_UNIX,
    EADDRNOTAVAIL,
    EAGAIN,
    EINTR,
    EINVAL,
    EMFILE,
    EMSGSIZE,
    ENFILE,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLIN,
    IPPROTO_UDP,
    LB_R_CLIENT_CONNECTION_RATE,
    LB_R_CONNECTION_RATE,
    LB_R_CONNECT_FAILED,
    LB_R_DATAGRAM_TOO_LONG,
    LB_R_DATAGRAM_TRUNCATED,
    LB_R_DRAIN,
    LB_R_ENDPOINT_REMOVED,
    LB_R_ENDPOINT_UNHEALTHY,
    LB_R_LISTENER_REMOVED,
    LB_R_NO_CLIENT_ADDRESS,
    LB_R_NO_DESCRIPTORS,
    LB_R_NO_MEMORY,
    LB_R_NO_UPSTREAM,
    LB_R_OK,
    LB_R_SEND_BUFFER_FULL,
    LB_R_SESSION_EVICTED,
    LB_R_SESSION_TIMEOUT,
    LB_R_SHUTDOWN,
    LB_R_SOURCE_REFUSED,
    LB_R_TOO_MANY_FROM_CLIENT,
    LB_R_UPSTREAM_RESET,
    MSG_DONTWAIT,
    MSG_TRUNC,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOL_UDP,
    UDP_GRO,
    close,
    connect,
    epoll_ctl,
    epoll_event,
    errno,
    lb_add_int,
    lb_keyed_hash,
    lb_line_alloc,
    lb_peek_int,
    lb_put_int,
    recv,
    setsockopt,
    sockaddr,
    sockaddr_storage,
    socket,
    ssize_t,
)
from lb._fastpath.clock cimport monotonic_ns
from lb._fastpath.counters cimport (
    bump,
    bump_by,
    count_end,
    count_in,
    count_out,
    listener_traffic,
    stats_block,
    traffic,
    upstream_traffic,
)
from lb._fastpath.endpoint cimport ADMIN_DOWN, HEALTH_FAILED, idle_pool
from lb._fastpath.exchange cimport offer_place
from lb._fastpath.limits cimport client_in_rate, count_client, filled, forget_client, listener_in_rate
from lb._fastpath.memory cimport page_free, slab_alloc, slab_free, slab_init, slab_release
from lb._fastpath.reactor cimport (
    IO_BROKEN,
    SHORT_PERCENT,
    current_table,
    descriptors_above,
    io_bury,
    io_enqueue,
    refusal,
)
from lb._fastpath.ring cimport VERSION_UDP
from lb._fastpath.table cimport (
    datagram_view,
    draw_target,
    in_networks,
    listener_at,
    listener_view,
    table,
    target,
    upstream_view,
)
from lb._fastpath.timers cimport timer_cancel, timer_set
from lb._fastpath.transport cimport family_for, listener_heir, note_address, socket_as_client


cdef void datagram_install(shared* s) noexcept nogil:
    s.cut_sessions = cut_sessions


cdef inline datagrams* state_of(reactor* r) noexcept nogil:
    return <datagrams*>r.datagrams


# ----------------------------------------------------------------------------------------------------------- receiving

cdef void socket_ready(io* source) noexcept nogil:
    """Clients have sent something."""
    cdef datagram_socket* l = <datagram_socket*>source
    cdef received* b = &state_of(source.r).in_batch
    cdef int n = RECEIVE_BATCH, turn = 0
    if source.flags & IO_BROKEN:
        source.flags &= ~<uint32_t>IO_BROKEN
        take_error(source)
    while n == RECEIVE_BATCH and turn < RECEIVES_PER_TURN:
        n = receive_batch(&l.udp, b)
        carry_batch(l, b, n)
        turn += 1


cdef void carry_batch(datagram_socket* l, received* b, int n) noexcept nogil:
    cdef int i = 0, j
    while i < n:
        if b.messages[i].msg_hdr.msg_flags & MSG_TRUNC:
            drop(&l.udp, LB_R_DATAGRAM_TRUNCATED, 1)
            i += 1
            continue
        j = i + 1
        while j < n and memcmp(&b.keys[i], &b.keys[j], sizeof(session_key)) == 0 and not (
            b.messages[j].msg_hdr.msg_flags & MSG_TRUNC
        ):
            j += 1
        carry_run(l, b, i, j)
        i = j


cdef void carry_run(datagram_socket* l, received* b, int i, int j) noexcept nogil:
    """The messages from `i` until `j` are of one session."""
    cdef uint64_t hash = lb_keyed_hash(<const char*>&b.keys[i], sizeof(session_key), l.udp.base.r.s.secret)
    cdef session* s = session_find(state_of(l.udp.base.r), &b.keys[i], hash)
    while s == NULL and i < j:
        s = session_begin(l, b, i, hash)
        i += 1
    if s != NULL and i < j:
        forward(s, b, i, j)


# ------------------------------------------------------------------------------------------------------------ sessions

cdef session* session_find(datagrams* d, const session_key* key, uint64_t hash) noexcept nogil:
    cdef session* s = d.buckets[hash & d.mask]
    while s != NULL and (s.hash != hash or memcmp(&s.key, key, sizeof(session_key)) != 0):
        s = s.next_same
    return s


cdef session* session_begin(datagram_socket* l, received* b, int i, uint64_t hash) noexcept nogil:
    """Begin a session with its first datagram. NULL: it is dropped, and counted."""
    cdef reactor* r = l.udp.base.r
    cdef table* t = current_table(r)
    cdef const listener_view* v = listener_at(t, l.place, l.slot)
    cdef const datagram_view* view = v.datagram if v != NULL else NULL
    cdef unsigned char peer[16]
    cdef uint16_t port = 0
    cdef session* s = NULL
    cdef int reason
    cdef bint known
    note_address(<const sockaddr_storage*>&b.names[i], peer, &port)
    reason = why_not(l, view, peer)
    if reason == LB_R_OK:
        reason = make_room(l, view)
        s = session_new(l, view, &b.keys[i], hash) if reason == LB_R_OK else NULL
        if s == NULL and view.max_sessions_per_client:
            forget_client(r, peer, l.slot + 1)
    if s == NULL:
        if reason == LB_R_OK:
            reason = LB_R_NO_MEMORY
        drop_messages(&l.udp, b, i, i + 1, reason)
        log_refused(l, peer, port, reason)
        return NULL
    memcpy(s.peer, peer, 16)
    s.peer_port = port
    s.generation = t.generation
    if view.max_sessions_per_client:
        s.flags |= SESSION_COUNTED
    begin_counting(s, view)
    hold(s, b, i)
    known = choose_upstream(s, t, view)
    note_received(s, b.messages[i].msg_len, count_of(b.messages[i].msg_len, b.train_pieces[i]))
    if not known:
        finish(s, LB_R_NO_UPSTREAM)
        return NULL
    return s if launch(s) else NULL


cdef int why_not(datagram_socket* l, const datagram_view* view, const unsigned char* peer) noexcept nogil:
    """Why a client may not begin a session; it has been counted if it may."""
    cdef reactor* r = l.udp.base.r
    if view == NULL:
        return LB_R_NO_UPSTREAM
    if view.to.allowed_count and not in_networks(view.to.allowed, view.to.allowed_count, peer):
        return LB_R_SOURCE_REFUSED
    if view.max_session_rate_per_client and not client_in_rate(r, peer, l.slot, view.max_session_rate_per_client):
        return LB_R_CLIENT_CONNECTION_RATE
    if view.max_sessions_per_client and not count_client(r, peer, l.slot + 1, view.max_sessions_per_client):
        return LB_R_TOO_MANY_FROM_CLIENT
    if view.max_session_rate and not listener_in_rate(r, l.slot, view.max_session_rate):
        if view.max_sessions_per_client:
            forget_client(r, peer, l.slot + 1)
        return LB_R_CONNECTION_RATE
    return LB_R_OK


cdef void log_refused(datagram_socket* l, const unsigned char* peer, uint16_t port, int reason) noexcept nogil:
    """A record of some of those who are refused; the counters have them all."""
    cdef reactor* r = l.udp.base.r
    cdef refusal what
    cdef int64_t full_ns = filled(l.refusals_full_ns, r.now_ns, REFUSALS_LOGGED) if r.s.logging else 0
    if full_ns == 0:
        return
    l.refusals_full_ns = full_ns
    what.client = NULL
    what.listener_name = l.name
    what.listener_name_size = l.name_size
    what.peer = peer
    what.port = port
    what.reason = reason
    what.status = 0
    what.version = VERSION_UDP
    log_refusal(r, &what)


cdef int make_room(datagram_socket* l, const datagram_view* view) noexcept nogil:
    cdef reactor* r = l.udp.base.r
    if descriptors_above(r, SHORT_PERCENT):
        # The last of them are for connections: a session takes the place of another one.
        return LB_R_OK if evict(l, 1) else LB_R_NO_DESCRIPTORS
    if view.max_sessions:
        evict(l, share_of(l, view))
    return LB_R_OK


cdef uint32_t share_of(const datagram_socket* l, const datagram_view* view) noexcept nogil:
    """How many sessions this reactor may have: clients spread evenly over those that share a listener."""
    cdef int share = view.max_sessions // l.sharers
    return <uint32_t>share if share > 0 else 1


cdef bint evict(datagram_socket* l, uint32_t share) noexcept nogil:
    """End the session that has been silent longest, when there are as many as there may be. False: nothing to end.

    A quarter is left to clients that have not shown yet that they are where they say they are, and no more is taken
    from the others while those have it: whoever invents addresses cannot push out everybody (conntrack's early drop
    spares what is ASSURED).
    """
    cdef bint proven = l.counts[0] == 0 or (l.counts[1] and l.counts[0] * 4 < share and older_is_proven(l))
    cdef session* s = l.oldest[1 if proven else 0]
    if l.counts[0] + l.counts[1] < share:
        return True
    if s == NULL:
        return False
    if l.udp.stats != NULL:
        bump(&l.udp.stats.evicted)
    finish(s, LB_R_SESSION_EVICTED)
    return True


cdef bint older_is_proven(const datagram_socket* l) noexcept nogil:
    return l.oldest[1].progress_ms < l.oldest[0].progress_ms


cdef session* session_new(
    datagram_socket* l, const datagram_view* view, const session_key* key, uint64_t hash
) noexcept nogil:
    cdef reactor* r = l.udp.base.r
    cdef datagrams* d = state_of(r)
    cdef session* s = <session*>slab_alloc(&d.sessions)
    if s == NULL:
        return NULL
    buckets_grow(d)
    s.base.r = r
    s.base.fd = -1
    s.base.ready = session_ready
    s.base.release = session_release
    s.timer.owner = s
    s.timer.fire = on_timer
    s.l = l
    s.key = key[0]
    s.hash = hash
    s.started_ns = r.now_ns
    s.progress_ms = r.now_ms
    s.first_byte_ns = -1
    s.burst = 1
    s.route_name = view.to.name
    s.route_name_size = view.to.name_size
    s.retries_left = <uint16_t>view.to.retries
    s.idle_timeout_ms = view.to.idle_timeout_ms
    s.drain_timeout_ms = view.to.drain_timeout_ms
    s.responses = view.responses
    s.next_same = d.buckets[hash & d.mask]
    d.buckets[hash & d.mask] = s
    d.count += 1
    list_add(s)
    return s


cdef void begin_counting(session* s, const datagram_view* view) noexcept nogil:
    cdef reactor* r = s.base.r
    s.slot = s.l.slot
    s.listener_name = s.l.name
    s.listener_name_size = s.l.name_size
    s.datagram_stats = s.l.udp.stats
    s.stats.listener = <listener_traffic*>stats_block(&r.listener_stats, s.slot, sizeof(listener_traffic))
    s.stats.route = <traffic*>stats_block(&r.route_stats, view.to.route_id, sizeof(traffic))
    if s.stats.listener != NULL:
        bump(&s.stats.listener.accepted)
    if r.s.draining:
        # Served for as long as lb is there, because no datagram tells its sender to go elsewhere.
        s.flags |= SESSION_LATE
    else:
        lb_put_int(&r.exchange_count, r.exchange_count + 1)
    bump(&r.counts.exchanges_started)


cdef void buckets_grow(datagrams* d) noexcept nogil:
    """Room for one more; where there is no memory for it, the chains get longer."""
    cdef uint64_t size = 2 * (d.mask + 1), i
    cdef session** wider
    cdef session* s
    cdef session* following
    if d.count <= d.mask:
        return
    wider = <session**>calloc(size, sizeof(session*))
    if wider == NULL:
        return
    for i in range(d.mask + 1):
        s = d.buckets[i]
        while s != NULL:
            following = s.next_same
            s.next_same = wider[s.hash & (size - 1)]
            wider[s.hash & (size - 1)] = s
            s = following
    free(d.buckets)
    d.buckets = wider
    d.mask = size - 1


cdef void list_add(session* s) noexcept nogil:
    """As the one that spoke last."""
    cdef datagram_socket* l = s.l
    cdef int which = 1 if s.flags & SESSION_PROVEN else 0
    s.newer = NULL
    s.older = l.newest[which]
    if s.older != NULL:
        s.older.newer = s
    else:
        l.oldest[which] = s
    l.newest[which] = s
    l.counts[which] += 1


cdef void list_remove(session* s) noexcept nogil:
    cdef datagram_socket* l = s.l
    cdef int which = 1 if s.flags & SESSION_PROVEN else 0
    if s.newer != NULL:
        s.newer.older = s.older
    else:
        l.newest[which] = s.older
    if s.older != NULL:
        s.older.newer = s.newer
    else:
        l.oldest[which] = s.newer
    l.counts[which] -= 1


cdef void touch(session* s, bint proven) noexcept nogil:
    """It has just spoken."""
    s.progress_ms = s.base.r.now_ms
    if proven and not s.flags & SESSION_PROVEN:
        list_remove(s)
        s.flags |= SESSION_PROVEN
        list_add(s)
    elif s.newer != NULL:
        list_remove(s)
        list_add(s)


# ----------------------------------------------------------------------------------------------------------- endpoints

cdef bint choose_upstream(session* s, table* t, const datagram_view* view) noexcept nogil:
    cdef const unsigned char* destination
    cdef const target* chosen = draw_target(view.to.targets, view.to.target_count, s.base.r.random)
    if chosen == NULL or chosen.slot >= t.upstream_count or t.upstreams[chosen.slot] == NULL:
        return False
    s.live = t.upstreams[chosen.slot].live
    destination = &s.key.asked[0] if s.l.udp.wildcard else &s.l.udp.address[0]
    s.client_hash = flow_hash(
        t.upstreams[chosen.slot], s.peer, s.peer_port, destination, s.l.udp.port, <uint8_t>IPPROTO_UDP)
    s.stats.upstream = <upstream_traffic*>stats_block(
        &s.base.r.upstream_stats, s.live.id, sizeof(upstream_traffic))
    return True


cdef bint launch(session* s) noexcept nogil:
    """Choose an endpoint and send it the first datagram, as long as some may be tried. False: the session is over."""
    cdef int reason
    cdef bint made_way = False
    while True:
        reason = choose_endpoint(s)
        if reason != LB_R_OK:
            # After failures their reason says more than that nobody is left.
            finish(s, s.reason if s.reason != LB_R_OK else reason)
            return False
        reason = attach(s)
        if reason == LB_R_OK:
            reason = send_held(s)
        if reason == LB_R_OK:
            s.reason = LB_R_OK
            timer_set(&s.base.r.timers, &s.timer, deadline_of(s))
            return True
        if reason == LB_R_NO_DESCRIPTORS and not made_way and make_way(s):
            made_way = True
            s.tried = 0
            detach(s)
        elif not try_another(s, reason):
            return False


cdef bint make_way(session* s) noexcept nogil:
    """Descriptors or ports are used up: another session of the listener ends. False: there is none."""
    cdef datagram_socket* l = s.l
    cdef session* victim = l.oldest[0] if l.oldest[0] != s else l.oldest[1]
    if victim == NULL:
        return False
    if l.udp.stats != NULL:
        bump(&l.udp.stats.evicted)
    finish(victim, LB_R_SESSION_EVICTED)
    return True


cdef bint try_another(session* s, int reason) noexcept nogil:
    """Leave an endpoint that does not take the first datagram. False: the session is over."""
    if s.stats.upstream != NULL and reason == LB_R_CONNECT_FAILED:
        bump(&s.stats.upstream.connect_failures)
    s.reason = <uint16_t>reason
    if (reason != LB_R_CONNECT_FAILED and reason != LB_R_NO_CLIENT_ADDRESS) or not s.retries_left:
        finish(s, reason)
        return False
    s.retries_left -= 1
    note_failed_attempt(s.base.r, &s.failed_attempts, s.ep, reason)
    detach(s)
    return True


cdef int choose_endpoint(session* s) noexcept nogil:
    cdef reactor* r = s.base.r
    cdef table* t = current_table(r)
    cdef upstream_view* up = t.upstreams[s.live.id] if s.live.id < t.upstream_count else NULL
    cdef int i
    if up == NULL:
        return LB_R_NO_UPSTREAM
    if s.generation != t.generation:  # the places of endpoints may be others
        s.tried = 0
        s.generation = t.generation
    i = balance_pick(r, up, family_for(up, s.peer), s.tried, s.client_hash)
    if i < 0:
        return pick_reason(i)
    s.ep = up.endpoints[i]
    s.flags |= SESSION_RESERVED
    if up.transparent:
        s.flags |= SESSION_TRANSPARENT
    else:
        s.flags &= ~<uint32_t>SESSION_TRANSPARENT
    s.tried |= tried_bit(<uint32_t>i)
    s.attempts += 1
    if s.stats.upstream != NULL:
        bump(&s.stats.upstream.attempts)
        if s.attempts > 1:
            bump(&s.stats.upstream.retries)
    return LB_R_OK


cdef int attach(session* s) noexcept nogil:
    """A socket of the session's own towards its endpoint: what comes there is for this client, and so are errors."""
    cdef reactor* r = s.base.r
    cdef epoll_event event
    cdef int fd, error
    if s.ep.family == AF_UNIX:
        return LB_R_CONNECT_FAILED
    fd = socket(s.ep.family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        return LB_R_NO_DESCRIPTORS if errno == EMFILE or errno == ENFILE else LB_R_NO_MEMORY
    if s.flags & SESSION_TRANSPARENT:
        error = socket_as_client(fd, s.ep, False, s.peer, s.peer_port)
        if error != LB_R_OK:
            close(fd)
            return error
    if connect(fd, <sockaddr*>&s.ep.address, s.ep.address_size) != 0:
        error = errno
        close(fd)
        # No port is left (net.ipv4.ip_local_port_range), or no memory: nothing of it is the endpoint's fault.
        if is_full(error) or error == EADDRNOTAVAIL:
            return LB_R_NO_DESCRIPTORS
        if error == EINVAL and s.flags & SESSION_TRANSPARENT:
            return LB_R_NO_CLIENT_ADDRESS  # a loopback address leaves no host
        endpoint_connect_failed(s.ep, r, error)
        return LB_R_CONNECT_FAILED
    # Level-triggered: an answer that is left for the next turn needs no second look now.
    event.events = EPOLLIN
    event.data.ptr = s
    if epoll_ctl(r.epfd, EPOLL_CTL_ADD, fd, &event) != 0:
        close(fd)
        return LB_R_NO_DESCRIPTORS
    s.base.fd = fd
    s.base.flags = 0
    s.flags &= ~<uint32_t>(SESSION_GRO | SESSION_NO_TRAINS)
    lb_add_int(&r.s.descriptors, 1)
    link_endpoint(s)
    if is_leaving(s):
        begin_leaving(s)
    return LB_R_OK


cdef void detach(session* s) noexcept nogil:
    cdef reactor* r = s.base.r
    if s.flags & SESSION_LINKED:
        unlink_endpoint(s)
    if s.base.fd >= 0:
        close(s.base.fd)
        s.base.fd = -1
        lb_add_int(&r.s.descriptors, -1)
    if s.flags & SESSION_RESERVED:
        s.flags &= ~<uint32_t>SESSION_RESERVED
        balance_release(s.live, s.ep)
        if lb_peek_int(&s.live.queued):
            offer_place(r, s.live)


cdef void link_endpoint(session* s) noexcept nogil:
    """Among the sessions of its endpoint on this reactor."""
    cdef idle_pool* pool = &s.ep.pools[s.base.r.index]
    s.previous_of_endpoint = NULL
    s.next_of_endpoint = <session*>pool.sessions
    if s.next_of_endpoint != NULL:
        s.next_of_endpoint.previous_of_endpoint = s
    pool.sessions = s
    s.flags |= SESSION_LINKED


cdef void unlink_endpoint(session* s) noexcept nogil:
    if s.previous_of_endpoint != NULL:
        s.previous_of_endpoint.next_of_endpoint = s.next_of_endpoint
    else:
        s.ep.pools[s.base.r.index].sessions = s.next_of_endpoint
    if s.next_of_endpoint != NULL:
        s.next_of_endpoint.previous_of_endpoint = s.previous_of_endpoint
    s.flags &= ~<uint32_t>SESSION_LINKED


cdef bint endpoint_refused(session* s, int error) noexcept nogil:
    """The endpoint's host says that nobody is there (ICMP). Before an answer another one may have the session, with its
    first datagram; afterwards it is over, since nobody else knows what was said. False: it is over.
    """
    endpoint_connect_failed(s.ep, s.base.r, error)
    if s.datagrams_out:
        finish(s, LB_R_UPSTREAM_RESET)
        return False
    return try_another(s, LB_R_CONNECT_FAILED) and launch(s)


# ----------------------------------------------------------------------------------------------- the first datagram

cdef void hold(session* s, const received* b, int i) noexcept nogil:
    """Keep the first datagram for other endpoints until so many bytes of others have come that it is overwritten."""
    cdef datagrams* d = state_of(s.base.r)
    cdef uint32_t size = b.messages[i].msg_len
    cdef uint64_t at = d.held_written % HELD_BYTES
    if at + size > HELD_BYTES:
        d.held_written += HELD_BYTES - at
        at = 0
    memcpy(d.held + at, b.pieces[i].iov_base, size)
    s.held_at = d.held_written
    s.held_size = size
    s.held_piece = b.train_pieces[i]
    d.held_written += size


cdef int send_held(session* s) noexcept nogil:
    """Send the first datagram to the endpoint; what is lost on the way is counted, and no failure."""
    cdef datagrams* d = state_of(s.base.r)
    cdef uint64_t count = count_of(s.held_size, s.held_piece)
    if d.held_written - s.held_at > HELD_BYTES:
        drop(&s.l.udp, LB_R_CONNECT_FAILED, count)
        return LB_R_OK
    if send_pieces(s.base.fd, d.held + s.held_at % HELD_BYTES, s.held_size, s.held_piece):
        return LB_R_OK
    if is_full(errno):
        drop(&s.l.udp, LB_R_SEND_BUFFER_FULL, count)
        return LB_R_OK
    if errno == EMSGSIZE:
        drop(&s.l.udp, LB_R_DATAGRAM_TOO_LONG, count)
        return LB_R_OK
    endpoint_connect_failed(s.ep, s.base.r, errno)
    return LB_R_CONNECT_FAILED


# --------------------------------------------------------------------------------------------------------- to endpoints

cdef void forward(session* s, received* b, int i, int j) noexcept nogil:
    """Send messages of the client to the endpoint: what it does not take at once is dropped."""
    cdef int k, taken, error
    cdef bint apart
    if s.generation != current_table(s.base.r).generation:
        look_again(s)
    touch(s, s.datagrams_out > 0)
    s.unasked = 0
    for k in range(i, j):
        note_received(s, b.messages[k].msg_len, count_of(b.messages[k].msg_len, b.train_pieces[k]))
    while i < j:
        apart = s.flags & SESSION_NO_TRAINS
        taken = send_messages(s.base.fd, b, i, j, &apart)
        if apart:
            s.flags |= SESSION_NO_TRAINS
        if taken > 0:
            i += taken
            continue
        error = errno
        if error == EINTR:
            continue
        if is_full(error):
            drop_messages(&s.l.udp, b, i, j, LB_R_SEND_BUFFER_FULL)
            return
        if error == EMSGSIZE:
            drop_messages(&s.l.udp, b, i, i + 1, LB_R_DATAGRAM_TOO_LONG)
            i += 1
        elif not endpoint_refused(s, error):
            drop_messages(&s.l.udp, b, i, j, LB_R_CONNECT_FAILED)
            return


cdef void note_received(session* s, uint64_t bytes, uint64_t count) noexcept nogil:
    s.flags |= SESSION_ASKED
    s.bytes_in += bytes
    s.datagrams_in += count
    if s.datagram_stats != NULL:
        bump_by(&s.datagram_stats.datagrams_in, count)
    count_in(&s.stats, bytes)


cdef void look_again(session* s) noexcept nogil:
    """A table has come since: does the listener still lead to this upstream?"""
    cdef table* t = current_table(s.base.r)
    cdef const listener_view* v = listener_at(t, s.l.place, s.l.slot)
    cdef uint32_t i
    s.generation = t.generation
    s.tried = 0
    if v == NULL or v.datagram == NULL:
        return  # the listener is about to be closed
    for i in range(v.datagram.to.target_count):
        if v.datagram.to.targets[i].slot == s.live.id:
            s.flags &= ~<uint32_t>SESSION_ASTRAY
            return
    s.flags |= SESSION_ASTRAY
    begin_leaving(s)


# ----------------------------------------------------------------------------------------------------------- to clients

cdef void session_ready(io* source) noexcept nogil:
    """The endpoint has answered, or its host has refused a datagram."""
    cdef session* s = <session*>source
    cdef int error = 0
    if source.flags & IO_BROKEN:
        source.flags &= ~<uint32_t>IO_BROKEN
        error = take_error(source)
    if take_answers(s) and error and error != EMSGSIZE:
        endpoint_refused(s, error)


cdef bint take_answers(session* s) noexcept nogil:
    """Read answers into the slots behind those of other sessions. False: the session is over."""
    cdef datagrams* d = state_of(s.base.r)
    cdef replies* o = &d.out
    cdef int first, n
    if o.u != &s.l.udp or o.used == REPLY_BATCH:
        flush_replies(&d.out)
        o.u = &s.l.udp
    first = o.used
    n = read_answers(s, o)
    if n < 0:
        return errno == EAGAIN or errno == EINTR or errno == EMSGSIZE or endpoint_refused(s, errno)
    o.used += n
    if n == 0:
        return True
    put_answers(s, o, first)
    io_enqueue(&d.flusher)
    if s.first_byte_ns < 0:
        s.first_byte_ns = monotonic_ns() - s.started_ns
        endpoint_connected(s.ep, s.base.r)
    touch(s, False)
    s.flags &= ~<uint32_t>SESSION_ASKED
    if s.drain_deadline_ms and s.base.r.now_ms >= s.drain_deadline_ms and is_leaving(s):
        finish(s, LB_R_ENDPOINT_REMOVED)  # this was what it has stayed for
        return False
    if s.responses and s.datagrams_out >= <uint64_t>s.responses * s.datagrams_in:
        finish(s, LB_R_OK)
        return False
    return True


cdef int read_answers(session* s, replies* o) noexcept nogil:
    """How many slots have been filled; -1 with errno."""
    cdef int want = s.burst if s.burst < REPLY_BATCH - o.used else REPLY_BATCH - o.used
    cdef int first = o.used, n
    cdef ssize_t size
    if want == 1 and not s.flags & SESSION_GRO:
        size = recv(s.base.fd, slot_of(o, first), SLOT_BYTES, MSG_DONTWAIT | MSG_TRUNC)
        if size < 0:
            return -1
        if size > SLOT_BYTES:
            drop(&s.l.udp, LB_R_DATAGRAM_TRUNCATED, 1)
            return 0
        o.pieces[first].iov_len = <size_t>size
        o.train_pieces[first] = 0
        s.unasked += 1
        if s.unasked > 1:
            s.burst = 2
        return 1
    n = receive_replies(o, s.base.fd, want, s.flags & SESSION_GRO)
    if n < 0:
        s.burst = 1
        return -1
    expect(s, n, want)
    return n


cdef void expect(session* s, int got, int wanted) noexcept nogil:
    """How many answers to ask for next time; an endpoint that sends much is read in trains."""
    cdef int one = 1
    if got == wanted:
        s.burst = <uint16_t>(2 * wanted if 2 * wanted < BURST_MOST else BURST_MOST)
    else:
        s.burst = <uint16_t>(got if got > 0 else 1)
    if got >= BURST_MOST // 4 and not s.flags & (SESSION_GRO | SESSION_NO_REPLY_TRAINS):
        if setsockopt(s.base.fd, SOL_UDP, UDP_GRO, &one, sizeof(one)) == 0:
            s.flags |= SESSION_GRO


cdef void put_answers(session* s, replies* o, int first) noexcept nogil:
    """Send the client what lies in the slots from `first` on. It needs nothing of the session afterwards."""
    cdef uint64_t bytes = 0, count = 0
    cdef int i
    for i in range(first, o.used):
        bytes += o.pieces[i].iov_len
        count += count_of(o.pieces[i].iov_len, o.train_pieces[i])
    put_replies(o, first, &s.key, s.hash, s.flags & SESSION_NO_REPLY_TRAINS)
    note_sent(s, bytes, count)


cdef void note_sent(session* s, uint64_t bytes, uint64_t count) noexcept nogil:
    s.bytes_out += bytes
    s.datagrams_out += count
    if s.datagram_stats != NULL:
        bump_by(&s.datagram_stats.datagrams_out, count)
    count_out(&s.stats, bytes)


cdef void flush_ready(io* source) noexcept nogil:
    flush_replies(&state_of(source.r).out)


cdef void forgo_trains(reactor* r, uint64_t hash) noexcept nogil:
    """The way to this client takes none: its session, if there still is one, makes none from now on. It still gets
    those of its endpoint: were UDP_GRO taken back, trains that wait in its socket would be read as one datagram each.
    """
    cdef datagrams* d = state_of(r)
    cdef session* s = d.buckets[hash & d.mask]
    while s != NULL and s.hash != hash:
        s = s.next_same
    if s != NULL:
        s.flags |= SESSION_NO_REPLY_TRAINS


# ------------------------------------------------------------------------------------------------------- time and drain

cdef int64_t deadline_of(const session* s) noexcept nogil:
    cdef int64_t silence = s.idle_timeout_ms
    if s.base.r.s.draining and silence > DRAIN_SILENCE_MS:
        silence = DRAIN_SILENCE_MS
    if s.drain_deadline_ms and leaves_at(s) < s.progress_ms + silence:
        return leaves_at(s)
    return s.progress_ms + silence


cdef int64_t leaves_at(const session* s) noexcept nogil:
    """When a session leaves a removed endpoint: its time is over, but who has just asked is still answered. Nobody
    waits for an answer for ever.
    """
    cdef int64_t answered_by = s.progress_ms + ANSWER_MS
    if not s.flags & SESSION_ASKED or answered_by < s.drain_deadline_ms:
        return s.drain_deadline_ms
    return min(answered_by, s.drain_deadline_ms + ANSWER_MS)


cdef void on_timer(timer* t) noexcept nogil:
    cdef session* s = <session*>t.owner
    cdef reactor* r = s.base.r
    if s.drain_deadline_ms and not is_leaving(s):
        s.drain_deadline_ms = 0  # the endpoint has come back
    if r.now_ms < deadline_of(s):
        timer_set(&r.timers, t, deadline_of(s))
    elif s.drain_deadline_ms and r.now_ms >= leaves_at(s):
        finish(s, LB_R_ENDPOINT_REMOVED)
    else:
        finish(s, LB_R_DRAIN if r.s.draining else LB_R_SESSION_TIMEOUT)


cdef bint is_leaving(const session* s) noexcept nogil:
    return s.flags & SESSION_ASTRAY or lb_peek_int(&s.ep.retired) or lb_peek_int(&s.ep.admin) == ADMIN_DOWN


cdef void begin_leaving(session* s) noexcept nogil:
    """Its endpoint is not for it any more: it may stay for the time that its listener gives now."""
    cdef const listener_view* v
    if s.drain_deadline_ms == 0:
        v = listener_at(current_table(s.base.r), s.l.place, s.l.slot)
        if v != NULL and v.datagram != NULL:
            s.drain_timeout_ms = v.datagram.to.drain_timeout_ms
        s.drain_deadline_ms = s.base.r.now_ms + s.drain_timeout_ms
        timer_set(&s.base.r.timers, &s.timer, deadline_of(s))


cdef void sessions_leave(reactor* r, endpoint* ep) noexcept nogil:
    """An endpoint is no longer served, or is down, or fails its health checks. May be said more than once.

    Nobody tells a UDP client that its endpoint is dead: it would send there as long as it has something to send. So
    sessions of one that fails end, and their clients' next datagrams go elsewhere (as Envoy does it).
    """
    cdef session* s = <session*>ep.pools[r.index].sessions
    cdef session* following
    while s != NULL:
        following = s.next_of_endpoint
        if is_leaving(s):
            begin_leaving(s)
        elif lb_peek_int(&ep.health) == HEALTH_FAILED:
            finish(s, LB_R_ENDPOINT_UNHEALTHY)
        s = following


cdef void sessions_stay(reactor* r, endpoint* ep) noexcept nogil:
    """An endpoint is served again, or not down any more: if it goes once more, its sessions have the whole time."""
    cdef session* s = <session*>ep.pools[r.index].sessions
    while s != NULL:
        if not s.flags & SESSION_ASTRAY and lb_peek_int(&ep.admin) != ADMIN_DOWN:
            s.drain_deadline_ms = 0
        s = s.next_of_endpoint


cdef void sessions_drain(reactor* r) noexcept nogil:
    """lb stops: sessions end as soon as they are silent for a moment."""
    cdef datagrams* d = state_of(r)
    cdef datagram_socket* l = d.sockets if d != NULL else NULL
    cdef session* s
    cdef int which
    while l != NULL:
        for which in range(2):
            s = l.newest[which]
            while s != NULL:
                timer_set(&r.timers, &s.timer, deadline_of(s))
                s = s.older
        l = l.next


# ----------------------------------------------------------------------------------------------------------------- end

cdef void session_forget(session* s) noexcept nogil:
    """Take it from where it can be found."""
    cdef datagrams* d = state_of(s.base.r)
    cdef session** link = &d.buckets[s.hash & d.mask]
    while link[0] != s:
        link = &link[0].next_same
    link[0] = s.next_same
    d.count -= 1
    list_remove(s)


cdef void finish(session* s, int reason) noexcept nogil:
    cdef reactor* r = s.base.r
    s.reason = <uint16_t>reason
    account(s)  # before anything is given back: a removed endpoint may go with its last session
    detach(s)
    if s.flags & SESSION_COUNTED:
        forget_client(r, s.peer, s.slot + 1)
    session_forget(s)
    timer_cancel(&s.timer)
    if s.failed_attempts != NULL:
        page_free(&r.pages, s.failed_attempts)
    if not s.flags & SESSION_LATE:
        lb_put_int(&r.exchange_count, r.exchange_count - 1)
    bump(&r.counts.exchanges_ended)
    io_bury(&s.base)


cdef void session_end(session* s, int reason) noexcept nogil:
    """Somebody wants it to end."""
    finish(s, reason)


cdef void session_release(io* source) noexcept nogil:
    slab_free(&state_of(source.r).sessions, source)


cdef void account(session* s) noexcept nogil:
    cdef reactor* r = s.base.r
    cdef int64_t duration = monotonic_ns() - s.started_ns
    bump(&r.counts.reasons[s.reason])
    count_end(&s.stats, duration, s.first_byte_ns)
    if r.s.logging:
        log_session(s, duration)
    if s.stats.listener != NULL:  # last: nothing keeps the name of a listener that is gone but its sessions
        bump(&s.stats.listener.closed)


cdef void end_all(datagram_socket* l, int reason) noexcept nogil:
    while l.newest[0] != NULL:
        finish(l.newest[0], reason)
    while l.newest[1] != NULL:
        finish(l.newest[1], reason)


cdef void cut_sessions(reactor* r) noexcept nogil:
    """The daemon stops: what is under way ends with a reason and a log record like everything else."""
    cdef datagrams* d = state_of(r)
    cdef datagram_socket* l = d.sockets if d != NULL else NULL
    if d != NULL:
        flush_replies(&d.out)
    while l != NULL:
        end_all(l, LB_R_SHUTDOWN)
        l = l.next


# ------------------------------------------------------------------------------------------------------------ sockets

cdef datagrams* datagrams_new(reactor* r) noexcept nogil:
    """The memory of a reactor's first UDP listener, which is used for all of them. NULL: there is none."""
    cdef datagrams* d = <datagrams*>lb_line_alloc(sizeof(datagrams))
    if d == NULL:
        return NULL
    slab_init(&d.sessions, sizeof(session))
    d.buckets = <session**>calloc(BUCKETS_LEAST, sizeof(session*))
    d.mask = BUCKETS_LEAST - 1
    d.held = <char*>malloc(HELD_BYTES)
    if not batches_init(&d.in_batch, &d.out) or d.buckets == NULL or d.held == NULL:
        datagrams_free(d)
        return NULL
    d.out.unfit = forgo_trains
    d.flusher.fd = -1
    d.flusher.r = r
    d.flusher.ready = flush_ready
    return d


cdef void datagrams_free(datagrams* d) noexcept nogil:
    slab_release(&d.sessions)
    free(d.buckets)
    free(d.held)
    batches_release(&d.in_batch, &d.out)
    free(d)


cdef void datagrams_release(reactor* r) noexcept nogil:
    """After its thread has ended."""
    cdef datagrams* d = state_of(r)
    cdef datagram_socket* l = d.sockets if d != NULL else NULL
    cdef datagram_socket* following
    while l != NULL:
        following = l.next
        close(l.udp.base.fd)
        free(l)
        l = following
    if d != NULL:
        datagrams_free(d)
    r.datagrams = NULL


cdef void run_open_datagrams(reactor* r, command* c) noexcept nogil:
    """Serve a UDP socket; `subject` is the datagram_socket prepared by the control plane."""
    cdef datagram_socket* l = <datagram_socket*>c.subject
    cdef datagrams* d = state_of(r)
    cdef epoll_event event
    l.udp.base.r = r
    l.udp.base.ready = socket_ready
    l.udp.base.release = socket_release
    l.udp.stats = <datagram_traffic*>stats_block(&r.datagram_stats, l.slot, sizeof(datagram_traffic))
    l.next = d.sockets
    d.sockets = l
    prepare_socket(&l.udp)
    event.events = EPOLLIN
    event.data.ptr = l
    epoll_ctl(r.epfd, EPOLL_CTL_ADD, l.udp.base.fd, &event)


cdef void socket_release(io* source) noexcept nogil:
    free(source)


cdef void run_pass_datagrams(reactor* r, command* c) noexcept nogil:
    """The sockets of a place are those of `subject` from now on. Their sessions keep the name that they have."""
    cdef listener_heir* heir = <listener_heir*>c.subject
    cdef datagrams* d = state_of(r)
    cdef datagram_socket* l = d.sockets if d != NULL else NULL
    while l != NULL:
        if l.place == heir.place:
            l.slot = heir.slot
            l.name = heir.name
            l.name_size = heir.name_size
            l.udp.stats = <datagram_traffic*>stats_block(&r.datagram_stats, l.slot, sizeof(datagram_traffic))
        l = l.next
    free(heir)


cdef void run_close_datagrams(reactor* r, command* c) noexcept nogil:
    """Close the sockets of the place `number`, and with them its sessions: their answers would have no way back to
    their clients.
    """
    cdef datagrams* d = state_of(r)
    cdef datagram_socket** link = &d.sockets if d != NULL else NULL
    cdef datagram_socket* l
    while link != NULL and link[0] != NULL:
        l = link[0]
        if l.place != <uint32_t>c.number:
            link = &l.next
            continue
        link[0] = l.next
        close_socket(d, l)


cdef void close_socket(datagrams* d, datagram_socket* l) noexcept nogil:
    cdef reactor* r = l.udp.base.r
    flush_replies(&d.out)
    d.out.u = NULL
    end_all(l, LB_R_LISTENER_REMOVED)
    timer_cancel(&l.udp.watch)
    epoll_ctl(r.epfd, EPOLL_CTL_DEL, l.udp.base.fd, NULL)  # systemd may hold the same socket
    close(l.udp.base.fd)
    lb_add_int(&r.s.descriptors, -1)
    io_bury(&l.udp.base)
