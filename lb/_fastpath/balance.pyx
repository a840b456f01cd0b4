"""The algorithms of balance.pxd."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from lb._fastpath.affinity cimport affinity_find, affinity_key, affinity_note
from lb._fastpath.c.sys cimport (
    LB_GOLDEN,
    LB_R_NO_CLIENT_ADDRESS,
    LB_R_NO_ENDPOINT,
    LB_R_NO_HEALTHY_ENDPOINT,
    LB_R_QUEUE_FULL,
    lb_add_int,
    lb_add_ordered_int,
    lb_add_u64,
    lb_cas_i64,
    lb_load_ptr,
    lb_peek_i64,
    lb_peek_int,
    lb_hash,
    lb_mix,
    lb_put_i64,
    lb_put_int,
    lb_random,
    lb_store_ptr,
    lb_swap_int,
    log,
)
from lb._fastpath.endpoint cimport (
    ADMIN_READY,
    EJECT_AFTER,
    EJECT_MOST_MS,
    EJECT_MS,
    HEALTH_FAILED,
    HEALTH_OK,
    HEALTH_UNTESTED,
    PROBE_GRACE_MS,
    endpoint,
    upstream_live,
)
from lb._fastpath.table cimport (
    BALANCE_LEAST_CONNECTIONS,
    BALANCE_MAGLEV,
    BALANCE_RANDOM_TWO,
    CHECKED_NOT,
    CHECKED_REFUSE,
    FULL_SHARE,
    HASH_FLOW,
    HASH_SOURCE,
    NO_SEAT,
    slow_share,
)

cdef enum:
    # A choice of two looks at so many that may not serve, a table of hashes likewise, before all endpoints are walked:
    # of those in rotation half may be out, and one walk in 250 choices is made.
    DRAWS = 8
    LOOKUPS = 32


cdef struct willing:
    # Who comes into question.
    uint64_t tried  # endpoints that this exchange has tried before, and those that share their bits (tried_bit)
    int family
    int worst_health
    bint ejected  # those as well
    bint with_place  # only those that no limit keeps from serving at once
    bint starting  # those that start slowly as often as all others, too
    bint held_back  # somebody was passed over because it starts slowly


cdef inline bint is_in_service(upstream_view* up, uint32_t i) noexcept nogil:
    """By its weight and the operator's word."""
    return up.weights[i] > 0 and lb_peek_int(&up.endpoints[i].admin) == ADMIN_READY


cdef inline bint may_serve(reactor* r, upstream_view* up, uint32_t i, willing* who) noexcept nogil:
    cdef endpoint* ep = up.endpoints[i]
    if not is_in_service(up, i) or lb_peek_int(&ep.health) > who.worst_health:
        return False
    if who.tried & tried_bit(i) or (who.family != ANY_FAMILY and ep.family != who.family):
        return False
    if not who.ejected and lb_peek_i64(&ep.ejected_until_ms) > r.now_ms:
        return False
    return who.starting or takes_part(r, up, ep, who)


cdef bint takes_part(reactor* r, const upstream_view* up, endpoint* ep, willing* who) noexcept nogil:
    """Whether an endpoint that starts slowly is looked at this time: as often as its share says."""
    cdef int share = slow_share(up, ep, r.now_ms)
    if share == FULL_SHARE or <int>((lb_random(r.random) >> 33) % FULL_SHARE) < share:
        return True
    who.held_back = True
    return False


cdef inline bint is_full(upstream_view* up, uint32_t i) noexcept nogil:
    return up.max_connections_per_endpoint > 0 and (
        lb_peek_int(&up.endpoints[i].active) >= up.max_connections_per_endpoint
    )


cdef bint reserve(upstream_view* up, uint32_t i) noexcept nogil:
    cdef endpoint* ep = up.endpoints[i]
    if lb_add_ordered_int(&ep.active, 1) > up.max_connections_per_endpoint and up.max_connections_per_endpoint:
        lb_add_ordered_int(&ep.active, -1)
        return False
    return True


cdef void balance_release(upstream_live* live, endpoint* ep) noexcept nogil:
    lb_add_ordered_int(&ep.active, -1)
    lb_add_ordered_int(&live.active, -1)


cdef int pick_in_turn(reactor* r, upstream_view* up, willing* who) noexcept nogil:
    """Smooth weighted round-robin: the period is laid out in the view, each reactor walks it from its own place."""
    cdef uint32_t* cursor = cursors_of(r, up, who.family)
    cdef uint32_t step, i
    cdef uint32_t offset = <uint32_t>r.index * up.sequence_size // <uint32_t>r.s.reactor_count
    cdef int result = PICK_NONE
    for step in range(up.sequence_size):
        i = up.sequence[(cursor[0] + offset + step) % up.sequence_size]
        if not may_serve(r, up, i, who):
            continue
        if reserve(up, i):
            cursor[0] = (cursor[0] + step + 1) % up.sequence_size
            return <int>i
        result = PICK_FULL
    return result


cdef inline int64_t load_of(reactor* r, upstream_view* up, uint32_t i) noexcept nogil:
    """What is under way on it. For one that starts slowly it counts as many times as its share is smaller: how often it
    is looked at bounds what comes while there is little to do, and this what comes while there is much.
    """
    cdef int64_t active = lb_peek_int(&up.endpoints[i].active)
    if up.slow_start_ms == 0:
        return active
    return active * FULL_SHARE // slow_share(up, up.endpoints[i], r.now_ms)


cdef int pick_least(reactor* r, upstream_view* up, willing* who) noexcept nogil:
    """The lowest (active + 1) / weight; equals take turns."""
    cdef uint32_t* cursor = cursors_of(r, up, who.family)
    cdef uint32_t step, i, best
    cdef int64_t load, weight, best_load, best_weight
    cdef bint full
    while True:
        full = False
        best = up.count
        best_load = 0
        best_weight = 1
        for step in range(up.count):
            i = (cursor[0] + step) % up.count
            if not may_serve(r, up, i, who):
                continue
            load = lb_peek_int(&up.endpoints[i].active) + 1
            if up.max_connections_per_endpoint and load > up.max_connections_per_endpoint:
                full = True
                continue
            if up.slow_start_ms:
                load = load_of(r, up, i) + 1
            weight = up.weights[i]
            if best == up.count or load * best_weight < best_load * weight:
                best = i
                best_load = load
                best_weight = weight
        if best == up.count:
            return PICK_FULL if full else PICK_NONE
        if reserve(up, best):
            cursor[0] = (best + 1) % up.count
            return <int>best
        # A sibling took the last place in between: look again.


cdef int pick_of_two(reactor* r, upstream_view* up, willing* who) noexcept nogil:
    """Power of two choices (Mitzenmacher 1996): of two drawn by weight the one with less under way by weight, and the
    first when both have as much, so that shares are exactly the weights' while there is little to do. (HAProxy's
    `random(2)` and nginx's `random two least_conn` choose so.)
    """
    cdef uint32_t i, best = up.count
    cdef int _
    if up.lots == NULL:
        return PICK_NONE
    for _ in range(DRAWS):
        i = draw_lot(r, up)
        if not may_serve(r, up, i, who):
            continue
        if best == up.count:
            best = i
            continue
        if load_of(r, up, i) * up.weights[best] < load_of(r, up, best) * up.weights[i]:
            best = i
        break
    if best != up.count and reserve(up, best):
        return <int>best
    return pick_least(r, up, who)


cdef inline uint32_t draw_lot(reactor* r, upstream_view* up) noexcept nogil:
    """An endpoint at random by weight. Scaling 32 random bits to `count` favours nobody by more than count / 2^32."""
    cdef uint64_t draw = lb_random(r.random)
    cdef uint32_t column = <uint32_t>(((draw >> 32) * up.count) >> 32)
    # The lowest bits of xoroshiro128+ are its weak ones, and those above are used up.
    if lb_random(r.random) >> 32 < up.lots[column].share:
        return column
    return up.lots[column].other


cdef int pick_by_lookup(reactor* r, upstream_view* up, willing* who, uint64_t hash) noexcept nogil:
    """Maglev: the slot of the hash, and while its endpoint may not serve or is full, that of the hash hashed again.
    So who loses an endpoint goes to any of the others, by their weights, and comes back when it does; nobody else
    moves.
    """
    cdef uint32_t step, i
    cdef int result = PICK_NONE, last
    if up.maglev_size == 0:
        return PICK_NONE
    for step in range(LOOKUPS):
        i = up.maglev[((lb_mix(hash + step * LB_GOLDEN) >> 32) * up.maglev_size) >> 32]
        if not may_serve(r, up, i, who):
            continue
        if reserve(up, i):
            return <int>i
        result = PICK_FULL
    # Next to nobody serves.
    who.with_place = True
    last = pick_by_client(r, up, who, hash)
    who.with_place = False
    return result if last == PICK_NONE else last


cdef int pick_with_affinity(reactor* r, upstream_view* up, willing* who, uint64_t client) noexcept nogil:
    """Whom the client was on last, while that one may serve and the client has not been silent for too long; else
    whoever its address leads to. A client waits for its endpoint when that is full.
    """
    cdef uint64_t key = affinity_key(r.s, up, client)
    cdef uint32_t i = affinity_find(r, up, key)
    cdef int result
    if i != NO_SEAT and may_serve(r, up, i, who):
        result = <int>i if reserve(up, i) else PICK_FULL
    else:
        result = pick_by_client(r, up, who, client)
    if result >= 0:
        affinity_note(r, up, key, <uint32_t>result)
    return result


cdef int pick_by_client(reactor* r, upstream_view* up, willing* who,
        uint64_t client) noexcept nogil:
    """Weighted rendezvous hashing: a client moves only when its own endpoint goes, and nothing has to be remembered."""
    cdef uint32_t i, best
    cdef double score, best_score
    cdef bint full
    while True:
        best = up.count
        best_score = 0
        full = False
        for i in range(up.count):
            if not may_serve(r, up, i, who):
                continue
            if who.with_place and is_full(up, i):
                full = True
                continue
            score = lb_mix(client ^ up.endpoints[i].hash) >> 11
            score = -<double>up.weights[i] / log((score + 0.5) / 9007199254740992.0)
            if best == up.count or score > best_score:
                best = i
                best_score = score
        if best == up.count:
            return PICK_FULL if full else PICK_NONE
        if reserve(up, best):
            return <int>best
        if not who.with_place:
            return PICK_FULL
        # A sibling took the last place in between: look again.


cdef int pick(reactor* r, upstream_view* up, willing* who, uint64_t client) noexcept nogil:
    cdef int result = choose(r, up, who, client)
    if result < 0 and who.held_back:
        # Nobody takes its place, so it need not wait: all of them have joined together, or the others are full.
        who.starting = True
        result = choose(r, up, who, client)
    return result


cdef int choose(reactor* r, upstream_view* up, willing* who, uint64_t client) noexcept nogil:
    if up.client_affinity:
        return pick_with_affinity(r, up, who, client)
    if up.balance == BALANCE_LEAST_CONNECTIONS:
        return pick_least(r, up, who)
    if up.balance == BALANCE_RANDOM_TWO:
        return pick_of_two(r, up, who)
    if up.balance == BALANCE_MAGLEV:
        return pick_by_lookup(r, up, who, client)
    return pick_in_turn(r, up, who)


cdef bint has_family(const upstream_view* up, int family) noexcept nogil:
    cdef uint32_t i
    for i in range(up.count):
        if up.endpoints[i].family == family:
            return True
    return False


cdef bint all_failed(upstream_view* up, int family) noexcept nogil:
    """Whether everybody in service fails their health checks, whomever this exchange has tried."""
    cdef uint32_t i
    cdef bint any = False
    for i in range(up.count):
        if not is_in_service(up, i) or (family != ANY_FAMILY and up.endpoints[i].family != family):
            continue
        if lb_peek_int(&up.endpoints[i].health) != HEALTH_FAILED:
            return False
        any = True
    return any


cdef int pick_worse(reactor* r, upstream_view* up, willing* who, uint64_t client) noexcept nogil:
    """Nobody is left who is healthy and not ejected: who else is a better answer than 503?"""
    cdef int result = PICK_NONE
    who.worst_health = HEALTH_UNTESTED
    if up.checked != CHECKED_NOT:
        result = pick(r, up, who, client)
    who.ejected = True
    if result == PICK_NONE:
        result = pick(r, up, who, client)
    if result != PICK_NONE or up.checked == CHECKED_NOT or not all_failed(up, who.family):
        return result
    if up.checked == CHECKED_REFUSE:
        return PICK_UNHEALTHY
    # That all are broken at once is less likely than a check that asks the wrong question (ALB fails open as well).
    who.worst_health = HEALTH_FAILED
    who.ejected = False
    result = pick(r, up, who, client)
    if result == PICK_NONE:
        who.ejected = True
        result = pick(r, up, who, client)
    return result


cdef int balance_pick(reactor* r, upstream_view* up, int family, uint64_t tried, uint64_t client) noexcept nogil:
    """Index of the endpoint, with a place on it and on the upstream reserved, or one of PICK_…. `family`: what it has
    to be of, unless ANY_FAMILY.
    """
    cdef int result
    cdef willing who
    if up.count == 0:
        return PICK_NONE
    if lb_add_ordered_int(&up.live.active, 1) > up.max_connections and up.max_connections:
        lb_add_ordered_int(&up.live.active, -1)
        return PICK_FULL
    who.tried = tried
    who.family = family
    who.worst_health = HEALTH_OK
    who.ejected = False
    who.with_place = False
    who.starting = up.slow_start_ms == 0
    who.held_back = False
    result = pick(r, up, &who, client)
    if result == PICK_NONE:
        result = pick_worse(r, up, &who, client)
    if result == PICK_NONE and family != ANY_FAMILY and not has_family(up, family):
        result = PICK_NO_FAMILY
    if result < 0:
        lb_add_ordered_int(&up.live.active, -1)
    else:
        lb_add_u64(&up.endpoints[result].requests, 1)
    return result


cdef int pick_reason(int picked) noexcept nogil:
    """Why somebody for whom there is no endpoint is not served."""
    if picked == PICK_FULL:
        return LB_R_QUEUE_FULL
    if picked == PICK_UNHEALTHY:
        return LB_R_NO_HEALTHY_ENDPOINT
    return LB_R_NO_CLIENT_ADDRESS if picked == PICK_NO_FAMILY else LB_R_NO_ENDPOINT


cdef uint64_t flow_hash(const upstream_view* up, const unsigned char* client, uint16_t client_port,
        const unsigned char* destination, uint16_t destination_port, uint8_t protocol) noexcept nogil:
    """What a flow's endpoint is chosen by, for balance_pick; 0 when the upstream chooses by nothing. Addresses of 16
    bytes, IPv4 as ::ffff:a.b.c.d; the destination is read only when hashes_destination says so. `protocol`: IPPROTO_…
    """
    cdef unsigned char key[37]
    if not up.client_affinity and up.balance != BALANCE_MAGLEV:
        return 0
    if up.client_affinity or up.hash_key == HASH_SOURCE:
        return lb_hash(<const char*>client, 16)
    memcpy(key, client, 16)
    key[16] = <unsigned char>(client_port >> 8)
    key[17] = <unsigned char>client_port
    if up.hash_key != HASH_FLOW:
        return lb_hash(<const char*>key, 18)
    memcpy(key + 18, destination, 16)
    key[34] = <unsigned char>(destination_port >> 8)
    key[35] = <unsigned char>destination_port
    key[36] = protocol
    return lb_hash(<const char*>key, 37)


cdef void endpoint_connecting(endpoint* ep, reactor* r, int timeout_ms) noexcept nogil:
    """A new connection to it begins. The first one after an ejection is a probe: until it is known what becomes of it
    all others go elsewhere. A node that is gone costs one client its connect_timeout, not all that come meanwhile.

    Should the probe's client give up, its time passes, and the next connection is the probe.
    """
    cdef int64_t until = lb_peek_i64(&ep.ejected_until_ms)
    if until == 0 or until > r.now_ms:
        return
    if timeout_ms <= 0:
        timeout_ms = EJECT_MS
    if lb_cas_i64(&ep.ejected_until_ms, until, r.now_ms + timeout_ms + PROBE_GRACE_MS):
        lb_put_int(&ep.probing, 1)


cdef void endpoint_connect_failed(endpoint* ep, reactor* r, int why) noexcept nogil:
    lb_add_u64(&ep.failures, 1)
    lb_put_int(&ep.last_failure, why)
    if lb_add_int(&ep.failures_in_row, 1) >= EJECT_AFTER:
        eject(ep, r)


cdef void eject(endpoint* ep, reactor* r) noexcept nogil:
    """Who is ejected already stays so for no longer: what fails now began before that, or nobody else was left."""
    cdef int64_t before = lb_peek_i64(&ep.ejected_until_ms), until
    cdef bint probed = lb_swap_int(&ep.probing, 0)
    if before > r.now_ms and not probed:
        return
    until = r.now_ms + ejection_ms(lb_peek_int(&ep.ejections_in_row))
    if not lb_cas_i64(&ep.ejected_until_ms, before, until):
        return  # another reactor was faster
    lb_put_i64(&ep.joined_ms, until)
    lb_add_int(&ep.ejections_in_row, 1)
    lb_add_u64(&ep.upstream.ejections, 1)
    if lb_swap_int(&ep.answering, 0) or before == 0:
        lb_add_int(&r.s.ejection_changes, 1)


cdef int64_t ejection_ms(int before) noexcept nogil:
    """How long an ejection lasts after so many others in a row (Envoy's grow with their number as well)."""
    cdef int64_t doubled = <int64_t>EJECT_MS << (before if before < 8 else 8)
    return doubled if doubled < EJECT_MOST_MS else EJECT_MOST_MS


cdef void endpoint_connected(endpoint* ep, reactor* r) noexcept nogil:
    # Another thread may have forgiven what one was just ejecting it for: then it is ejected, and nothing has failed.
    if lb_peek_int(&ep.failures_in_row) or lb_peek_i64(&ep.ejected_until_ms):
        if lb_peek_i64(&ep.ejected_until_ms) > r.now_ms:
            lb_put_i64(&ep.joined_ms, r.now_ms)
        endpoint_forgive(r.s, ep)
    if lb_load_ptr(&ep.tls_error) != NULL:
        lb_store_ptr(&ep.tls_error, NULL)


cdef void endpoint_answered(endpoint* ep, reactor* r) noexcept nogil:
    """A request was answered on a kept connection, by one that has been ejected. When its time is over it serves, and
    nobody need be told that it does not. That it can be connected to is not known by that (a full backlog, a filter for
    new connections): the next connection is a probe all the same, and what it fails by counts as before.
    """
    cdef int64_t until = lb_peek_i64(&ep.ejected_until_ms)
    if until == 0 or until > r.now_ms or lb_peek_int(&ep.answering):
        return
    if not lb_swap_int(&ep.answering, 1):
        lb_add_int(&r.s.ejection_changes, 1)


cdef bint endpoint_ejected(endpoint* ep) noexcept nogil:
    """Whether people are told that it is ejected: until it can be connected to, or serves without."""
    return lb_peek_i64(&ep.ejected_until_ms) != 0 and not lb_peek_int(&ep.answering)


cdef void endpoint_forgive(shared* s, endpoint* ep) noexcept nogil:
    """The failures before say nothing any more."""
    lb_put_int(&ep.failures_in_row, 0)
    lb_put_int(&ep.ejections_in_row, 0)
    lb_put_int(&ep.probing, 0)
    lb_put_int(&ep.answering, 0)
    if lb_peek_i64(&ep.ejected_until_ms):
        lb_put_i64(&ep.ejected_until_ms, 0)
        lb_add_int(&s.ejection_changes, 1)
