"""Looks (flows.pxd)."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memcmp, memcpy, memset

from lb._fastpath.c.sys cimport LB_R_ENDED_BY_OPERATOR, lb_mix, lb_peek_int, lb_store_int
from lb._fastpath.datagram cimport datagrams, is_leaving, session, session_end
from lb._fastpath.endpoint cimport endpoint, upstream_live
from lb._fastpath.reactor cimport command, reactor, reactor_post
from lb._fastpath.stream cimport (
    FLOW_CLIENT_ENDED,
    FLOW_CLIENT_RESET,
    FLOW_CONNECTED,
    FLOW_ENDPOINT_ENDED,
    FLOW_ENDPOINT_RESET,
    flow,
    flow_end,
    flow_of,
)
from lb._fastpath.table cimport in_networks
from lb._fastpath.transport cimport conn


cdef struct sight:
    # What questions, orders and totals are about.
    const flow* f  # one of the two
    const session* s
    uint32_t slot
    const unsigned char* peer  # NULL: it has come by a Unix socket
    const upstream_live* live
    const endpoint* ep
    int64_t started_ns
    int64_t since_ms
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t waits_for_endpoint
    uint64_t waits_for_client


cdef void run_look(reactor* r, command* c) noexcept nogil:
    """Look at some more, and go on in the next turn; `subject` is the reactor's look_part."""
    cdef look_part* p = <look_part*>c.subject
    cdef command* again
    cdef int left = LOOK_PER_TURN
    if not p.begun:
        p.begun = True
        r.looking = r.connections
    if not lb_peek_int(&p.question.cancelled) and not look_on(r, p, &left):
        again = <command*>calloc(1, sizeof(command))
        if again != NULL:
            again.run = run_look
            again.subject = p
            reactor_post(r, again)
            return
        p.failed = True
    r.looking = NULL
    lb_store_int(&p.done, 1)  # the last that is done with it: it may be gone now


cdef bint look_on(reactor* r, look_part* p, int* left) noexcept nogil:
    """True: all has been looked at, or there is no memory for what has been found."""
    if not p.past_connections:
        p.past_connections = look_at_connections(r, p, left)
    return p.failed or (p.past_connections and look_at_sessions(r, p, left))


cdef bint look_at_connections(reactor* r, look_part* p, int* left) noexcept nogil:
    cdef conn* c
    cdef const flow* f
    cdef sight seen
    while r.looking != NULL and left[0] > 0:
        c = <conn*>r.looking
        r.looking = c.next_all  # a flow that ends takes its connections off the list: the place stands behind them
        left[0] -= 1
        f = flow_of(c)
        if f == NULL:
            continue
        see_flow(f, &seen)
        if note(p, &seen) and p.question.ends:
            left[0] -= LOOK_END
            flow_end(c, LB_R_ENDED_BY_OPERATOR)
    return r.looking == NULL


cdef bint look_at_sessions(reactor* r, look_part* p, int* left) noexcept nogil:
    cdef const datagrams* d = <const datagrams*>r.datagrams
    cdef session* s
    cdef session* following
    cdef sight seen
    while d != NULL and left[0] > 0:
        left[0] -= 1
        s = d.buckets[p.bucket & d.mask]
        while s != NULL:
            following = s.next_same
            left[0] -= 1
            see_session(s, &seen)
            if note(p, &seen) and p.question.ends:
                left[0] -= LOOK_END
                session_end(s, LB_R_ENDED_BY_OPERATOR)
            s = following
        p.bucket = bucket_after(p.bucket, d.mask)
        if p.bucket == 0:
            return True
    return d == NULL


cdef uint64_t bucket_after(uint64_t bucket, uint64_t mask) noexcept nogil:
    """Counted from the highest bit down: when a table of twice the size splits each bucket in two, those of the ones
    that were looked at lie behind us, and those of the others before us. (Redis walks so with SCAN.) 0: that was all.
    """
    cdef uint64_t bit = (mask + 1) >> 1
    while bit and bucket & bit:
        bucket ^= bit
        bit >>= 1
    return bucket | bit


# ------------------------------------------------------------------------------------------------------------- seeing

cdef void see_flow(const flow* f, sight* seen) noexcept nogil:
    memset(seen, 0, sizeof(sight))
    seen.f = f
    seen.slot = f.d.slot
    seen.peer = NULL if f.d.local else &f.d.peer[0]
    seen.live = f.live
    seen.ep = f.ep
    seen.started_ns = f.started_ns
    seen.since_ms = f.progress_ms if f.flags & FLOW_CONNECTED else f.mark_ns // 1000000
    seen.bytes_in = f.bytes_in
    seen.bytes_out = f.bytes_out
    if f.flags & FLOW_CONNECTED:
        seen.waits_for_client = f.d.out_bytes
        seen.waits_for_endpoint = f.u.out_bytes
    elif f.d.parked != NULL:  # right behind its handshake
        seen.waits_for_endpoint = f.d.parked.end - f.d.parked.start


cdef void see_session(const session* s, sight* seen) noexcept nogil:
    memset(seen, 0, sizeof(sight))
    seen.s = s
    seen.slot = s.slot
    seen.peer = &s.peer[0]
    seen.live = s.live
    seen.ep = s.ep
    seen.started_ns = s.started_ns
    seen.since_ms = s.progress_ms
    seen.bytes_in = s.bytes_in
    seen.bytes_out = s.bytes_out


cdef bint is_wanted(const look_question* q, const sight* seen) noexcept nogil:
    if q.slot >= 0 and q.slot != <int64_t>seen.slot:
        return False
    if q.upstream != NULL and q.upstream != seen.live:
        return False
    if q.local_only and seen.peer != NULL:
        return False
    if q.by_client and (seen.peer == NULL or not in_networks(&q.client, 1, seen.peer)):
        return False
    if q.endpoint == NULL:
        return True
    return seen.ep != NULL and seen.ep.key_size == q.endpoint_size and (
        memcmp(seen.ep.key, q.endpoint, q.endpoint_size) == 0
    )


cdef int64_t rank_of(const look_question* q, const sight* seen) noexcept nogil:
    """The greater, the sooner it is shown."""
    if q.order == LOOK_BY_IDLE:
        return -seen.since_ms
    if q.order == LOOK_BY_BYTES:
        return <int64_t>(seen.bytes_in + seen.bytes_out)
    return -seen.started_ns


cdef bint note(look_part* p, const sight* seen) noexcept nogil:
    """Whether it is wanted."""
    if not is_wanted(p.question, seen):
        return False
    p.matched += 1
    add_up(p, seen)
    keep(p, seen, rank_of(p.question, seen))
    return True


# ------------------------------------------------------------------------------------------------------------- totals

cdef void add_up(look_part* p, const sight* seen) noexcept nogil:
    cdef look_total* t = total_of(p, seen) if seen.ep != NULL and seen.live != NULL else NULL
    if t == NULL:
        return
    if seen.f != NULL:
        t.flows += 1
    else:
        t.sessions += 1
    t.bytes_in += seen.bytes_in
    t.bytes_out += seen.bytes_out
    t.waits_for_endpoint += seen.waits_for_endpoint
    t.waits_for_client += seen.waits_for_client


cdef look_total* total_of(look_part* p, const sight* seen) noexcept nogil:
    """By name, not by place: where an endpoint was another one may be in the next turn."""
    cdef uint64_t hash = lb_mix(seen.ep.hash + seen.live.id)
    cdef look_total** bucket = &p.totals[hash % LOOK_BUCKETS]
    cdef look_total* t = bucket[0]
    cdef uint32_t size = key_size(seen.ep)
    while t != NULL:
        if t.hash == hash and t.live == seen.live and t.key_size == size and memcmp(t.key, seen.ep.key, size) == 0:
            return t
        t = t.next
    t = <look_total*>calloc(1, sizeof(look_total))
    if t == NULL:
        p.failed = True
        return NULL
    t.hash = hash
    t.live = seen.live
    t.key_size = size
    memcpy(t.key, seen.ep.key, size)
    t.next = bucket[0]
    bucket[0] = t
    return t


cdef uint32_t key_size(const endpoint* ep) noexcept nogil:
    return ep.key_size if ep.key_size < LOOK_KEY else LOOK_KEY


# ------------------------------------------------------------------------------------------------------------- records

cdef void keep(look_part* p, const sight* seen, int64_t rank) noexcept nogil:
    """Among the best `limit` ones, in place of the worst of them."""
    cdef uint32_t record, at
    if p.question.limit == 0:
        return
    if p.count < p.question.limit:
        record = p.count
        at = p.count
        p.count += 1
        while at and p.heap[(at - 1) // 2].rank > rank:
            p.heap[at] = p.heap[(at - 1) // 2]
            at = (at - 1) // 2
    elif rank > p.heap[0].rank:
        record = p.heap[0].record
        at = place_from_top(p, rank)
    else:
        return
    p.heap[at].rank = rank
    p.heap[at].record = record
    fill(&p.records[record], seen, rank)


cdef uint32_t place_from_top(look_part* p, int64_t rank) noexcept nogil:
    """The top has gone: the place for one of this rank, the others moved up."""
    cdef uint32_t at = 0, child = 1
    while child < p.count:
        if child + 1 < p.count and p.heap[child + 1].rank < p.heap[child].rank:
            child += 1
        if p.heap[child].rank >= rank:
            break
        p.heap[at] = p.heap[child]
        at = child
        child = 2 * at + 1
    return at


cdef void fill(carried_record* record, const sight* seen, int64_t rank) noexcept nogil:
    memset(record, 0, sizeof(carried_record))
    record.rank = rank
    record.slot = seen.slot
    record.live = seen.live
    if seen.peer == NULL:
        record.local = True
    else:
        memcpy(record.peer, seen.peer, 16)
    if seen.ep != NULL:
        record.key_size = key_size(seen.ep)
        memcpy(record.key, seen.ep.key, record.key_size)
    record.started_ns = seen.started_ns
    record.since_ms = seen.since_ms
    record.bytes_in = seen.bytes_in
    record.bytes_out = seen.bytes_out
    record.waits_for_endpoint = seen.waits_for_endpoint
    record.waits_for_client = seen.waits_for_client
    if seen.f != NULL:
        fill_flow(record, seen.f)
    else:
        fill_session(record, seen.s)


cdef void fill_flow(carried_record* record, const flow* f) noexcept nogil:
    cdef const conn* d = f.d
    record.state = flow_state(f)
    record.peer_port = d.peer_port
    record.route_name = f.route_name
    record.route_name_size = f.route_name_size
    record.attempts = f.attempts
    if f.drain_deadline_ms and lb_peek_int(&f.ep.retired):
        record.drain_deadline_ms = f.drain_deadline_ms
    if d.proxied != NULL:
        record.has_proxy = True
        record.proxy_known = d.proxied.proxy_known
        memcpy(record.proxy, d.proxied.proxy, 16)
    if d.hello != NULL:
        record.name_size = d.hello.name_size
        memcpy(record.name, d.hello.name, d.hello.name_size)


cdef int flow_state(const flow* f) noexcept nogil:
    cdef uint32_t ended = f.flags & (FLOW_CLIENT_ENDED | FLOW_ENDPOINT_ENDED)
    if not f.flags & FLOW_CONNECTED:
        return CARRIED_CONNECTING
    if f.flags & FLOW_CLIENT_RESET:
        return CARRIED_CLIENT_RESET
    if f.flags & FLOW_ENDPOINT_RESET:
        return CARRIED_ENDPOINT_RESET
    if ended == (FLOW_CLIENT_ENDED | FLOW_ENDPOINT_ENDED):
        return CARRIED_BOTH_ENDED
    if ended:
        return CARRIED_CLIENT_ENDED if ended == FLOW_CLIENT_ENDED else CARRIED_ENDPOINT_ENDED
    return CARRIED_OPEN


cdef void fill_session(carried_record* record, const session* s) noexcept nogil:
    record.is_session = True
    record.state = CARRIED_OPEN if s.datagrams_out else CARRIED_UNANSWERED
    record.peer_port = s.peer_port
    record.route_name = s.route_name
    record.route_name_size = s.route_name_size
    record.datagrams_in = s.datagrams_in
    record.datagrams_out = s.datagrams_out
    record.attempts = s.attempts
    if s.drain_deadline_ms and is_leaving(s):
        record.drain_deadline_ms = s.drain_deadline_ms
