"""Sessions (datagram.pxd)."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from lb._fastpath.access cimport log_session
from lb._fastpath.balance cimport (
    PICK_FULL,
    PICK_UNHEALTHY,
    balance_pick,
    balance_release,
    endpoint_connect_failed,
    endpoint_connected,
    flow_hash,
    tried_bit,
)
from lb._fastpath.c.sys cimport (
    AF_INET,
    AF_UNIX,
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_LEN,
    CMSG_NXTHDR,
    CMSG_SPACE,
    EADDRNOTAVAIL,
    EAGAIN,
    EINTR,
    EINVAL,
    EIO,
    EMFILE,
    EMSGSIZE,
    ENFILE,
    ENOBUFS,
    ENOMEM,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLIN,
    IP_PKTINFO,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_UDP,
    IPV6_PKTINFO,
    IPV6_RECVPKTINFO,
    LB_R_CLIENT_UNREACHABLE,
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
    LB_R_NO_ENDPOINT,
    LB_R_NO_HEALTHY_ENDPOINT,
    LB_R_NO_MEMORY,
    LB_R_NO_UPSTREAM,
    LB_R_OK,
    LB_R_QUEUE_FULL,
    LB_R_RECEIVE_BUFFER_FULL,
    LB_R_SEND_BUFFER_FULL,
    LB_R_SESSION_EVICTED,
    LB_R_SESSION_TIMEOUT,
    LB_R_SHUTDOWN,
    LB_R_SOURCE_REFUSED,
    LB_R_TOO_MANY_FROM_CLIENT,
    LB_R_UPSTREAM_RESET,
    LB_SK_MEMINFO_DROPS,
    LB_SK_MEMINFO_VARS,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_TRUNC,
    SO_ERROR,
    SO_MEMINFO,
    SO_RCVBUF,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOL_SOCKET,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    close,
    cmsghdr,
    connect,
    epoll_ctl,
    epoll_event,
    errno,
    getsockname,
    getsockopt,
    in6_pktinfo,
    in_pktinfo,
    lb_add_int,
    lb_keyed_hash,
    lb_line_alloc,
    lb_peek_int,
    lb_put_int,
    mmsghdr,
    msghdr,
    recv,
    recvmmsg,
    send,
    sendmmsg,
    setsockopt,
    sockaddr,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_storage,
    socket,
    socklen_t,
    ssize_t,
)
from lb._fastpath.clock cimport monotonic_ns
from lb._fastpath.counters cimport bump, bump_by, observe, stats_block
from lb._fastpath.endpoint cimport ADMIN_DOWN, HEALTH_FAILED, idle_pool
from lb._fastpath.exchange cimport offer_place
from lb._fastpath.limits cimport client_in_rate, count_client, forget_client, listener_in_rate
from lb._fastpath.memory cimport slab_alloc, slab_free, slab_init, slab_release
from lb._fastpath.reactor cimport IO_BROKEN, current_table, io_bury, io_enqueue
from lb._fastpath.table cimport datagram_view, draw_target, in_networks, listener_view, table, target, upstream_view
from lb._fastpath.timers cimport timer_cancel, timer_set
from lb._fastpath.transport cimport note_address, socket_as_client

cdef extern from *:
    """
    /* As large as the administrator's net.core.rmem_max lets it be: what a burst brings waits here or is lost. */
    #define LB_UDP_RECEIVE_BYTES 2097152
    """
    int RECEIVE_BYTES "LB_UDP_RECEIVE_BYTES"


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
        n = receive_batch(l, b)
        carry_batch(l, b, n)
        turn += 1


cdef int take_error(io* source) noexcept nogil:
    """What stands against the socket (ICMP), which epoll would tell again and again."""
    cdef int error = 0
    cdef socklen_t size = sizeof(error)
    getsockopt(source.fd, SOL_SOCKET, SO_ERROR, &error, &size)
    return error


cdef int receive_batch(datagram_socket* l, received* b) noexcept nogil:
    """How many messages have come. A message is a datagram, or a train of them from one client."""
    cdef int i, n
    cdef msghdr* message
    for i in range(b.used):
        message = &b.messages[i].msg_hdr
        message.msg_namelen = sizeof(sockaddr_in6)
        message.msg_control = &b.controls[i]
        message.msg_controllen = CONTROL_BYTES
        message.msg_flags = 0
        b.pieces[i].iov_len = SLOT_BYTES
    b.used = 0
    n = recvmmsg(l.base.fd, b.messages, RECEIVE_BATCH, MSG_DONTWAIT, NULL)
    if n <= 0:
        return 0
    b.used = n
    for i in range(n):
        b.pieces[i].iov_len = b.messages[i].msg_len
        read_message(l, b, i)
    return n


cdef void read_message(datagram_socket* l, received* b, int i) noexcept nogil:
    """Whose it is, which address it asks, and whether it is a train."""
    cdef msghdr* message = &b.messages[i].msg_hdr
    cdef session_key* key = &b.keys[i]
    cdef cmsghdr* c = CMSG_FIRSTHDR(message)
    memset(key, 0, sizeof(session_key))
    memcpy(&key.client, &b.names[i], l.client_size)
    key.listener = <uint64_t>l
    b.train_pieces[i] = 0
    while c != NULL:
        if c.cmsg_level == SOL_UDP and c.cmsg_type == UDP_GRO:
            b.train_pieces[i] = train_piece(c, b.messages[i].msg_len)
        elif l.wildcard:
            read_asked(c, key.asked)
        c = CMSG_NXTHDR(message, c)


cdef uint16_t train_piece(cmsghdr* c, uint32_t size) noexcept nogil:
    """The length of a train's pieces; 0: it is one datagram. Source: udp(7), UDP_GRO."""
    cdef int piece
    memcpy(&piece, CMSG_DATA(c), sizeof(piece))
    return <uint16_t>piece if 0 < piece < <int>size else 0


cdef void read_asked(cmsghdr* c, uint8_t* asked) noexcept nogil:
    """Source: ip(7) IP_PKTINFO, RFC 3542 6. A socket of both families tells of IPv4 in the form of IPv6, too."""
    cdef in_pktinfo v4
    cdef in6_pktinfo v6
    if c.cmsg_level == IPPROTO_IPV6 and c.cmsg_type == IPV6_PKTINFO:
        memcpy(&v6, CMSG_DATA(c), sizeof(v6))
        memcpy(asked, &v6.ipi6_addr, 16)
    elif c.cmsg_level == IPPROTO_IP and c.cmsg_type == IP_PKTINFO:
        memcpy(&v4, CMSG_DATA(c), sizeof(v4))
        asked[10] = 0xff
        asked[11] = 0xff
        memcpy(asked + 12, &v4.ipi_spec_dst, 4)


cdef void carry_batch(datagram_socket* l, received* b, int n) noexcept nogil:
    cdef int i = 0, j
    while i < n:
        if b.messages[i].msg_hdr.msg_flags & MSG_TRUNC:
            drop(l, LB_R_DATAGRAM_TRUNCATED, 1)
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
    cdef uint64_t hash = lb_keyed_hash(<const char*>&b.keys[i], sizeof(session_key), l.base.r.s.secret)
    cdef session* s = session_find(state_of(l.base.r), &b.keys[i], hash)
    while s == NULL and i < j:
        s = session_begin(l, b, i, hash)
        i += 1
    if s != NULL and i < j:
        forward(s, b, i, j)


cdef uint64_t count_of(uint64_t size, uint16_t piece) noexcept nogil:
    """Datagrams of a message."""
    return (size + piece - 1) // piece if piece else 1


cdef void drop(datagram_socket* l, int reason, uint64_t count) noexcept nogil:
    if l.stats != NULL:
        bump_by(&l.stats.dropped[reason], count)


# ------------------------------------------------------------------------------------------------------------ sessions

cdef session* session_find(datagrams* d, const session_key* key, uint64_t hash) noexcept nogil:
    cdef session* s = d.buckets[hash & d.mask]
    while s != NULL and (s.hash != hash or memcmp(&s.key, key, sizeof(session_key)) != 0):
        s = s.next_same
    return s


cdef session* session_begin(datagram_socket* l, received* b, int i, uint64_t hash) noexcept nogil:
    """Begin a session with its first datagram. NULL: it is dropped, and counted."""
    cdef reactor* r = l.base.r
    cdef table* t = current_table(r)
    cdef const listener_view* v = t.listeners[l.slot] if t != NULL and l.slot < t.listener_count else NULL
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
        drop(l, reason if reason != LB_R_OK else LB_R_NO_MEMORY, count_of(b.messages[i].msg_len, b.train_pieces[i]))
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
    cdef reactor* r = l.base.r
    if r.s.draining:
        return LB_R_DRAIN
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


cdef int make_room(datagram_socket* l, const datagram_view* view) noexcept nogil:
    cdef reactor* r = l.base.r
    if r.s.descriptor_limit and lb_peek_int(&r.s.descriptors) > r.s.descriptor_limit - r.s.descriptor_limit // 10:
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
    if l.stats != NULL:
        bump(&l.stats.evicted)
    finish(s, LB_R_SESSION_EVICTED)
    return True


cdef bint older_is_proven(const datagram_socket* l) noexcept nogil:
    return l.oldest[1].progress_ms < l.oldest[0].progress_ms


cdef session* session_new(
    datagram_socket* l, const datagram_view* view, const session_key* key, uint64_t hash
) noexcept nogil:
    cdef reactor* r = l.base.r
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
    s.datagram_stats = s.l.stats
    s.listener_stats = <listener_traffic*>stats_block(&r.listener_stats, s.l.slot, sizeof(listener_traffic))
    s.route_stats = <traffic*>stats_block(&r.route_stats, view.to.route_id, sizeof(traffic))
    if s.listener_stats != NULL:
        bump(&s.listener_stats.accepted)
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
    destination = &s.key.asked[0] if s.l.wildcard else &s.l.address[0]
    s.client_hash = flow_hash(
        t.upstreams[chosen.slot], s.peer, s.peer_port, destination, s.l.port, <uint8_t>IPPROTO_UDP)
    s.upstream_stats = <upstream_traffic*>stats_block(
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
    if l.stats != NULL:
        bump(&l.stats.evicted)
    finish(victim, LB_R_SESSION_EVICTED)
    return True


cdef bint try_another(session* s, int reason) noexcept nogil:
    """Leave an endpoint that does not take the first datagram. False: the session is over."""
    if s.upstream_stats != NULL and reason == LB_R_CONNECT_FAILED:
        bump(&s.upstream_stats.connect_failures)
    s.reason = <uint16_t>reason
    if (reason != LB_R_CONNECT_FAILED and reason != LB_R_NO_CLIENT_ADDRESS) or not s.retries_left:
        finish(s, reason)
        return False
    s.retries_left -= 1
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
    i = balance_pick(r, up, s.tried, s.client_hash)
    if i == PICK_FULL:
        return LB_R_QUEUE_FULL
    if i < 0:
        return LB_R_NO_HEALTHY_ENDPOINT if i == PICK_UNHEALTHY else LB_R_NO_ENDPOINT
    s.ep = up.endpoints[i]
    s.flags |= SESSION_RESERVED
    if up.transparent:
        s.flags |= SESSION_TRANSPARENT
    else:
        s.flags &= ~<uint32_t>SESSION_TRANSPARENT
    s.tried |= tried_bit(<uint32_t>i)
    s.attempts += 1
    if s.upstream_stats != NULL:
        bump(&s.upstream_stats.attempts)
        if s.attempts > 1:
            bump(&s.upstream_stats.retries)
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
        error = socket_as_client(fd, s.ep.family, False, s.peer, s.peer_port)
        if error != LB_R_OK:
            close(fd)
            return error
    if connect(fd, <sockaddr*>&s.ep.address, s.ep.address_size) != 0:
        error = errno
        close(fd)
        # No port is left (net.ipv4.ip_local_port_range), or no memory: nothing of it is the endpoint's fault.
        if is_full(error) or error == EADDRNOTAVAIL:
            return LB_R_NO_DESCRIPTORS
        endpoint_connect_failed(s.ep, r)
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


cdef bint endpoint_refused(session* s) noexcept nogil:
    """The endpoint's host says that nobody is there (ICMP). Before an answer another one may have the session, with its
    first datagram; afterwards it is over, since nobody else knows what was said. False: it is over.
    """
    endpoint_connect_failed(s.ep, s.base.r)
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
        drop(s.l, LB_R_CONNECT_FAILED, count)
        return LB_R_OK
    if send_pieces(s, d.held + s.held_at % HELD_BYTES, s.held_size, s.held_piece):
        return LB_R_OK
    if is_full(errno):
        drop(s.l, LB_R_SEND_BUFFER_FULL, count)
        return LB_R_OK
    if errno == EMSGSIZE:
        drop(s.l, LB_R_DATAGRAM_TOO_LONG, count)
        return LB_R_OK
    endpoint_connect_failed(s.ep, s.base.r)
    return LB_R_CONNECT_FAILED


cdef bint send_pieces(session* s, const char* data, uint32_t size, uint16_t piece) noexcept nogil:
    """One datagram, or a train one by one."""
    cdef uint32_t at = 0, length
    if piece == 0:
        return send(s.base.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0
    while at < size:
        length = piece if size - at > piece else size - at
        if send(s.base.fd, data + at, length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
            return False
        at += length
    return True


cdef bint is_full(int error) noexcept nogil:
    return error == EAGAIN or error == ENOBUFS or error == ENOMEM


# --------------------------------------------------------------------------------------------------------- to endpoints

cdef void forward(session* s, received* b, int i, int j) noexcept nogil:
    """Send messages of the client to the endpoint: what it does not take at once is dropped."""
    cdef int k, taken, error
    if s.generation != current_table(s.base.r).generation:
        look_again(s)
    touch(s, s.datagrams_out > 0)
    s.unasked = 0
    for k in range(i, j):
        note_received(s, b.messages[k].msg_len, count_of(b.messages[k].msg_len, b.train_pieces[k]))
    while i < j:
        taken = send_some(s, b, i, j)
        if taken > 0:
            i += taken
            continue
        error = errno
        if error == EINTR:
            continue
        if is_full(error):
            drop_messages(s.l, b, i, j, LB_R_SEND_BUFFER_FULL)
            return
        if error == EMSGSIZE:
            drop_messages(s.l, b, i, i + 1, LB_R_DATAGRAM_TOO_LONG)
            i += 1
        elif not endpoint_refused(s):
            drop_messages(s.l, b, i, j, LB_R_CONNECT_FAILED)
            return


cdef void drop_messages(datagram_socket* l, const received* b, int i, int j, int reason) noexcept nogil:
    cdef int k
    for k in range(i, j):
        drop(l, reason, count_of(b.messages[k].msg_len, b.train_pieces[k]))


cdef int send_some(session* s, received* b, int i, int j) noexcept nogil:
    """How many messages the endpoint's socket has taken; -1 with errno."""
    cdef mmsghdr messages[RECEIVE_BATCH]
    cdef control controls[RECEIVE_BATCH]
    cdef int ends[RECEIVE_BATCH]
    cdef int count = 0, k = i, n
    if s.flags & SESSION_NO_TRAINS or (j == i + 1 and b.train_pieces[i] == 0):
        return 1 if send_pieces(s, <const char*>b.pieces[i].iov_base, b.messages[i].msg_len, b.train_pieces[i]) else -1
    while k < j:
        n = train_length(b.pieces, b.train_pieces, k, j)
        memset(&messages[count], 0, sizeof(mmsghdr))
        messages[count].msg_hdr.msg_iov = &b.pieces[k]
        messages[count].msg_hdr.msg_iovlen = <size_t>n
        if n > 1 or b.train_pieces[k]:
            put_control(&messages[count].msg_hdr, &controls[count], NULL,
                        b.train_pieces[k] if b.train_pieces[k] else <uint16_t>b.pieces[k].iov_len)
        k += n
        ends[count] = k
        count += 1
    n = sendmmsg(s.base.fd, messages, <unsigned int>count, MSG_DONTWAIT | MSG_NOSIGNAL)
    if n > 0:
        return ends[n - 1] - i
    if messages[0].msg_hdr.msg_control != NULL and is_unfit_train(errno):
        s.flags |= SESSION_NO_TRAINS
        return send_some(s, b, i, j)
    return -1


cdef bint is_unfit_train(int error) noexcept nogil:
    """The route has a smaller MTU than the pieces need, or cannot cut them (udp_send_skb in Linux)."""
    return error == EINVAL or error == EIO or error == EMSGSIZE


cdef int train_length(const iovec* pieces, const uint16_t* train_pieces, int i, int end) noexcept nogil:
    """How many messages from `i` on make one train: all of one length, but for the last, which may be shorter."""
    cdef size_t piece = pieces[i].iov_len, total = piece
    cdef int k = i + 1
    if train_pieces[i] or piece == 0 or piece > TRAIN_PIECE_MOST:
        return 1
    while k < end and k - i < TRAIN_COUNT and not train_pieces[k] and 0 < pieces[k].iov_len <= piece:
        total += pieces[k].iov_len
        if total > TRAIN_MOST:
            break
        k += 1
        if pieces[k - 1].iov_len < piece:
            break
    return k - i


cdef void put_control(msghdr* message, control* space, const session* s, uint16_t piece) noexcept nogil:
    """Say from which address a message to a client leaves (`s`), and that it is to be cut into pieces (`piece`)."""
    cdef cmsghdr* c
    cdef size_t used = 0
    cdef in_pktinfo* v4
    cdef in6_pktinfo* v6
    memset(space, 0, sizeof(control))
    message.msg_control = space
    message.msg_controllen = CONTROL_BYTES
    c = CMSG_FIRSTHDR(message)
    if s != NULL and s.l.wildcard and s.l.family == AF_INET:
        v4 = <in_pktinfo*>CMSG_DATA(c)
        memcpy(&v4.ipi_spec_dst, s.key.asked + 12, 4)
        used += put_header(c, IPPROTO_IP, IP_PKTINFO, sizeof(in_pktinfo))
    elif s != NULL and s.l.wildcard:
        v6 = <in6_pktinfo*>CMSG_DATA(c)
        memcpy(&v6.ipi6_addr, s.key.asked, 16)
        used += put_header(c, IPPROTO_IPV6, IPV6_PKTINFO, sizeof(in6_pktinfo))
    if piece:
        c = <cmsghdr*>(space.bytes + used)
        memcpy(CMSG_DATA(c), &piece, sizeof(piece))
        used += put_header(c, SOL_UDP, UDP_SEGMENT, sizeof(piece))
    message.msg_controllen = used
    if used == 0:
        message.msg_control = NULL


cdef size_t put_header(cmsghdr* c, int level, int kind, size_t size) noexcept nogil:
    c.cmsg_level = level
    c.cmsg_type = kind
    c.cmsg_len = CMSG_LEN(size)
    return CMSG_SPACE(size)


cdef void note_received(session* s, uint64_t bytes, uint64_t count) noexcept nogil:
    """Counted as they pass: a session may last for days."""
    s.bytes_in += bytes
    s.datagrams_in += count
    if s.datagram_stats != NULL:
        bump_by(&s.datagram_stats.datagrams_in, count)
    if s.listener_stats != NULL:
        bump_by(&s.listener_stats.base.bytes_in, bytes)
    if s.route_stats != NULL:
        bump_by(&s.route_stats.bytes_in, bytes)
    if s.upstream_stats != NULL:
        bump_by(&s.upstream_stats.base.bytes_in, bytes)


cdef void look_again(session* s) noexcept nogil:
    """A table has come since: does the listener still lead to this upstream?"""
    cdef table* t = current_table(s.base.r)
    cdef const listener_view* v = t.listeners[s.l.slot] if s.l.slot < t.listener_count else NULL
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
        endpoint_refused(s)


cdef bint take_answers(session* s) noexcept nogil:
    """Read answers into the slots behind those of other sessions. False: the session is over."""
    cdef datagrams* d = state_of(s.base.r)
    cdef replies* o = &d.out
    cdef int first, n
    if o.l != s.l or o.used == REPLY_BATCH:
        flush(d)
        o.l = s.l
    first = o.used
    n = read_answers(s, o)
    if n < 0:
        return errno == EAGAIN or errno == EINTR or errno == EMSGSIZE or endpoint_refused(s)
    o.used += n
    if n == 0:
        return True
    put_answers(s, o, first)
    io_enqueue(&d.flusher)
    if s.first_byte_ns < 0:
        s.first_byte_ns = monotonic_ns() - s.started_ns
        endpoint_connected(s.ep, s.base.r)
    touch(s, False)
    if s.responses and s.datagrams_out >= <uint64_t>s.responses * s.datagrams_in:
        finish(s, LB_R_OK)
        return False
    return True


cdef int read_answers(session* s, replies* o) noexcept nogil:
    """How many slots have been filled; -1 with errno."""
    cdef int want = s.burst if s.burst < REPLY_BATCH - o.used else REPLY_BATCH - o.used
    cdef int first = o.used, i, n
    cdef ssize_t size
    if want == 1 and not s.flags & SESSION_GRO:
        size = recv(s.base.fd, slot_of(o, first), SLOT_BYTES, MSG_DONTWAIT | MSG_TRUNC)
        if size < 0:
            return -1
        if size > SLOT_BYTES:
            drop(s.l, LB_R_DATAGRAM_TRUNCATED, 1)
            return 0
        o.pieces[first].iov_len = <size_t>size
        o.train_pieces[first] = 0
        s.unasked += 1
        if s.unasked > 1:
            s.burst = 2
        return 1
    for i in range(first, first + want):
        o.pieces[i].iov_base = slot_of(o, i)
        o.pieces[i].iov_len = SLOT_BYTES
        memset(&o.messages[i], 0, sizeof(mmsghdr))
        o.messages[i].msg_hdr.msg_iov = &o.pieces[i]
        o.messages[i].msg_hdr.msg_iovlen = 1
        if s.flags & SESSION_GRO:
            o.messages[i].msg_hdr.msg_control = &o.controls[i]
            o.messages[i].msg_hdr.msg_controllen = CONTROL_BYTES
    n = recvmmsg(s.base.fd, &o.messages[first], <unsigned int>want, MSG_DONTWAIT, NULL)
    if n < 0:
        s.burst = 1
        return -1
    for i in range(first, first + n):
        o.pieces[i].iov_len = o.messages[i].msg_len
        o.train_pieces[i] = answer_piece(&o.messages[i])
    expect(s, n, want)
    return n


cdef inline char* slot_of(replies* o, int i) noexcept nogil:
    return o.slots + <size_t>i * SLOT_BYTES


cdef uint16_t answer_piece(mmsghdr* m) noexcept nogil:
    cdef cmsghdr* c = CMSG_FIRSTHDR(&m.msg_hdr)
    while c != NULL:
        if c.cmsg_level == SOL_UDP and c.cmsg_type == UDP_GRO:
            return train_piece(c, m.msg_len)
        c = CMSG_NXTHDR(&m.msg_hdr, c)
    return 0


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
    """Messages of what lies in the slots from `first` on. They need nothing of the session afterwards."""
    cdef int i = first, n
    cdef uint16_t piece
    cdef uint64_t bytes = 0, count = 0
    cdef msghdr* message
    while i < o.used:
        bytes += o.pieces[i].iov_len
        count += count_of(o.pieces[i].iov_len, o.train_pieces[i])
        i += 1
    i = first
    while i < o.used:
        n = 1 if s.flags & SESSION_NO_REPLY_TRAINS else train_length(o.pieces, o.train_pieces, i, o.used)
        piece = o.train_pieces[i]
        if n > 1:
            piece = <uint16_t>o.pieces[i].iov_len
        o.pieces[i].iov_base = slot_of(o, i)
        # As many messages as slots at most, so nothing is overwritten that has not been read.
        message = &o.messages[o.count].msg_hdr
        memset(message, 0, sizeof(msghdr))
        memcpy(&o.names[o.count], &s.key.client, sizeof(sockaddr_in6))
        message.msg_name = &o.names[o.count]
        message.msg_namelen = s.l.client_size
        message.msg_iov = &o.pieces[i]
        message.msg_iovlen = <size_t>n
        put_control(message, &o.controls[o.count], s, piece)
        o.trains[o.count] = piece
        o.hashes[o.count] = s.hash
        o.count += 1
        i += n
    note_sent(s, bytes, count)


cdef void note_sent(session* s, uint64_t bytes, uint64_t count) noexcept nogil:
    s.bytes_out += bytes
    s.datagrams_out += count
    if s.datagram_stats != NULL:
        bump_by(&s.datagram_stats.datagrams_out, count)
    if s.listener_stats != NULL:
        bump_by(&s.listener_stats.base.bytes_out, bytes)
    if s.route_stats != NULL:
        bump_by(&s.route_stats.bytes_out, bytes)
    if s.upstream_stats != NULL:
        bump_by(&s.upstream_stats.base.bytes_out, bytes)


cdef void flush_ready(io* source) noexcept nogil:
    flush(state_of(source.r))


cdef void flush(datagrams* d) noexcept nogil:
    """Send what waits for clients; what the socket does not take is dropped."""
    cdef replies* o = &d.out
    cdef int done = 0, n
    while done < o.count:
        n = sendmmsg(o.l.base.fd, &o.messages[done], <unsigned int>(o.count - done), MSG_DONTWAIT | MSG_NOSIGNAL)
        if n > 0:
            done += n
        elif errno == EINTR:
            continue
        elif o.trains[done] and is_unfit_train(errno):
            forgo_trains(d, o.hashes[done])
            send_apart(o, done)
            done += 1
        elif is_full(errno):
            drop_replies(o, done, o.count, LB_R_SEND_BUFFER_FULL)
            break
        else:
            drop_replies(o, done, done + 1,
                         LB_R_DATAGRAM_TOO_LONG if errno == EMSGSIZE else LB_R_CLIENT_UNREACHABLE)
            done += 1
    o.count = 0
    o.used = 0


cdef void forgo_trains(datagrams* d, uint64_t hash) noexcept nogil:
    """The way to this client takes none: its session, if there still is one, sends single datagrams from now on."""
    cdef session* s = d.buckets[hash & d.mask]
    cdef int off = 0
    while s != NULL and s.hash != hash:
        s = s.next_same
    if s == NULL:
        return
    s.flags |= SESSION_NO_REPLY_TRAINS
    if s.flags & SESSION_GRO:
        s.flags &= ~<uint32_t>SESSION_GRO
        setsockopt(s.base.fd, SOL_UDP, UDP_GRO, &off, sizeof(off))


cdef uint64_t reply_count(const replies* o, int i) noexcept nogil:
    cdef const msghdr* message = &o.messages[i].msg_hdr
    if message.msg_iovlen > 1:
        return message.msg_iovlen
    return count_of(message.msg_iov[0].iov_len, o.trains[i])


cdef void drop_replies(const replies* o, int i, int j, int reason) noexcept nogil:
    cdef int k
    for k in range(i, j):
        drop(o.l, reason, reply_count(o, k))


cdef void send_apart(replies* o, int i) noexcept nogil:
    """A train that cannot go as one: its datagrams one by one."""
    cdef msghdr* message = &o.messages[i].msg_hdr
    cdef iovec* pieces = message.msg_iov
    cdef size_t count = message.msg_iovlen, k, at, size
    cdef iovec one
    cdef mmsghdr alone
    for k in range(count):
        at = 0
        while at < pieces[k].iov_len:
            size = pieces[k].iov_len - at
            one.iov_base = <char*>pieces[k].iov_base + at
            one.iov_len = size if size < o.trains[i] else o.trains[i]
            alone.msg_hdr = message[0]
            alone.msg_hdr.msg_iov = &one
            alone.msg_hdr.msg_iovlen = 1
            strip_segment(&alone.msg_hdr)
            if sendmmsg(o.l.base.fd, &alone, 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1:
                drop(o.l, LB_R_SEND_BUFFER_FULL if is_full(errno) else LB_R_CLIENT_UNREACHABLE, 1)
            at += one.iov_len


cdef void strip_segment(msghdr* message) noexcept nogil:
    """UDP_SEGMENT stands last among what goes with a message."""
    message.msg_controllen -= CMSG_SPACE(sizeof(uint16_t))
    if message.msg_controllen == 0:
        message.msg_control = NULL


# ------------------------------------------------------------------------------------------------------- time and drain

cdef int64_t deadline_of(const session* s) noexcept nogil:
    cdef int64_t silence = s.idle_timeout_ms
    if s.base.r.s.draining and silence > DRAIN_SILENCE_MS:
        silence = DRAIN_SILENCE_MS
    if s.drain_deadline_ms and s.drain_deadline_ms < s.progress_ms + silence:
        return s.drain_deadline_ms
    return s.progress_ms + silence


cdef void on_timer(timer* t) noexcept nogil:
    cdef session* s = <session*>t.owner
    cdef reactor* r = s.base.r
    if s.drain_deadline_ms and not is_leaving(s):
        s.drain_deadline_ms = 0  # the endpoint has come back
    if r.now_ms < deadline_of(s):
        timer_set(&r.timers, t, deadline_of(s))
    elif s.drain_deadline_ms and r.now_ms >= s.drain_deadline_ms:
        finish(s, LB_R_ENDPOINT_REMOVED)
    else:
        finish(s, LB_R_DRAIN if r.s.draining else LB_R_SESSION_TIMEOUT)


cdef bint is_leaving(const session* s) noexcept nogil:
    return s.flags & SESSION_ASTRAY or lb_peek_int(&s.ep.retired) or lb_peek_int(&s.ep.admin) == ADMIN_DOWN


cdef void begin_leaving(session* s) noexcept nogil:
    """Its endpoint is not for it any more: it may stay for its time."""
    if s.drain_deadline_ms == 0:
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
        forget_client(r, s.peer, s.l.slot + 1)
    session_forget(s)
    timer_cancel(&s.timer)
    lb_put_int(&r.exchange_count, r.exchange_count - 1)
    bump(&r.counts.exchanges_ended)
    io_bury(&s.base)


cdef void session_release(io* source) noexcept nogil:
    slab_free(&state_of(source.r).sessions, source)


cdef void account(session* s) noexcept nogil:
    cdef reactor* r = s.base.r
    cdef int64_t duration = monotonic_ns() - s.started_ns
    bump(&r.counts.reasons[s.reason])
    if s.listener_stats != NULL:
        observe(&s.listener_stats.base, 0, 0, 0, duration)
        bump(&s.listener_stats.closed)
    if s.route_stats != NULL:
        observe(s.route_stats, 0, 0, 0, duration)
    if s.upstream_stats != NULL and s.first_byte_ns >= 0:
        observe(&s.upstream_stats.base, 0, 0, 0, s.first_byte_ns)
    if r.s.logging:
        log_session(s, duration)


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
        flush(d)
    while l != NULL:
        end_all(l, LB_R_SHUTDOWN)
        l = l.next


# ------------------------------------------------------------------------------------------------------------ sockets

cdef datagrams* datagrams_new(reactor* r) noexcept nogil:
    """The memory of a reactor's first UDP listener, which is used for all of them. NULL: there is none."""
    cdef datagrams* d = <datagrams*>lb_line_alloc(sizeof(datagrams))
    cdef int i
    if d == NULL:
        return NULL
    slab_init(&d.sessions, sizeof(session))
    d.buckets = <session**>calloc(BUCKETS_LEAST, sizeof(session*))
    d.mask = BUCKETS_LEAST - 1
    d.held = <char*>malloc(HELD_BYTES)
    d.in_batch.slots = <char*>malloc(<size_t>RECEIVE_BATCH * SLOT_BYTES)
    d.out.slots = <char*>malloc(<size_t>REPLY_BATCH * SLOT_BYTES)
    if d.buckets == NULL or d.held == NULL or d.in_batch.slots == NULL or d.out.slots == NULL:
        datagrams_free(d)
        return NULL
    d.flusher.fd = -1
    d.flusher.r = r
    d.flusher.ready = flush_ready
    for i in range(RECEIVE_BATCH):
        d.in_batch.pieces[i].iov_base = d.in_batch.slots + <size_t>i * SLOT_BYTES
        d.in_batch.messages[i].msg_hdr.msg_iov = &d.in_batch.pieces[i]
        d.in_batch.messages[i].msg_hdr.msg_iovlen = 1
        d.in_batch.messages[i].msg_hdr.msg_name = &d.in_batch.names[i]
    d.in_batch.used = RECEIVE_BATCH
    return d


cdef void datagrams_free(datagrams* d) noexcept nogil:
    slab_release(&d.sessions)
    free(d.buckets)
    free(d.held)
    free(d.in_batch.slots)
    free(d.out.slots)
    free(d)


cdef void datagrams_release(reactor* r) noexcept nogil:
    """After its thread has ended."""
    cdef datagrams* d = state_of(r)
    cdef datagram_socket* l = d.sockets if d != NULL else NULL
    cdef datagram_socket* following
    while l != NULL:
        following = l.next
        close(l.base.fd)
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
    l.base.r = r
    l.base.ready = socket_ready
    l.base.release = socket_release
    l.watch.owner = l
    l.watch.fire = watch_drops
    l.stats = <datagram_traffic*>stats_block(&r.datagram_stats, l.slot, sizeof(datagram_traffic))
    l.next = d.sockets
    d.sockets = l
    prepare_socket(l)
    l.kernel_drops = kernel_drops(l)
    timer_set(&r.timers, &l.watch, r.now_ms + WATCH_MS)
    event.events = EPOLLIN
    event.data.ptr = l
    epoll_ctl(r.epfd, EPOLL_CTL_ADD, l.base.fd, &event)


cdef void prepare_socket(datagram_socket* l) noexcept nogil:
    """Where a listener has many addresses, its datagrams are to tell which one they ask."""
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(address)
    cdef int one = 1, room = RECEIVE_BYTES
    cdef unsigned char nothing[16]
    memset(&address, 0, sizeof(address))
    memset(nothing, 0, sizeof(nothing))
    getsockname(l.base.fd, <sockaddr*>&address, &size)
    note_address(&address, l.address, &l.port)
    l.family = address.ss_family
    l.client_size = sizeof(sockaddr_in) if l.family == AF_INET else sizeof(sockaddr_in6)
    l.wildcard = memcmp(&l.address[12], nothing, 4) == 0 and (
        l.family == AF_INET or memcmp(l.address, nothing, 12) == 0
    )
    if l.wildcard and l.family == AF_INET:
        setsockopt(l.base.fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof(one))
    elif l.wildcard:
        setsockopt(l.base.fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof(one))
    setsockopt(l.base.fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room))
    setsockopt(l.base.fd, SOL_UDP, UDP_GRO, &one, sizeof(one))  # a kernel that does not know it gives them one by one


cdef uint32_t kernel_drops(const datagram_socket* l) noexcept nogil:
    """What the socket has had no room for since it was opened."""
    cdef uint32_t values[LB_SK_MEMINFO_VARS]
    cdef socklen_t size = sizeof(values)
    memset(values, 0, sizeof(values))
    getsockopt(l.base.fd, SOL_SOCKET, SO_MEMINFO, values, &size)
    return values[LB_SK_MEMINFO_DROPS]


cdef void watch_drops(timer* t) noexcept nogil:
    cdef datagram_socket* l = <datagram_socket*>t.owner
    cdef uint32_t now = kernel_drops(l)
    if now != l.kernel_drops:
        drop(l, LB_R_RECEIVE_BUFFER_FULL, now - l.kernel_drops)
        l.kernel_drops = now
    timer_set(&l.base.r.timers, t, l.base.r.now_ms + WATCH_MS)


cdef void socket_release(io* source) noexcept nogil:
    free(source)


cdef void run_close_datagrams(reactor* r, command* c) noexcept nogil:
    """Close the sockets of the listener in slot `number`, and with them its sessions: their answers would have no way
    back to their clients.
    """
    cdef datagrams* d = state_of(r)
    cdef datagram_socket** link = &d.sockets if d != NULL else NULL
    cdef datagram_socket* l
    while link != NULL and link[0] != NULL:
        l = link[0]
        if l.slot != <uint32_t>c.number:
            link = &l.next
            continue
        link[0] = l.next
        close_socket(d, l)


cdef void close_socket(datagrams* d, datagram_socket* l) noexcept nogil:
    cdef reactor* r = l.base.r
    flush(d)
    d.out.l = NULL
    end_all(l, LB_R_LISTENER_REMOVED)
    timer_cancel(&l.watch)
    epoll_ctl(r.epfd, EPOLL_CTL_DEL, l.base.fd, NULL)  # systemd may hold the same socket
    close(l.base.fd)
    io_bury(&l.base)
