"""The algorithms of balance.pxd."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport (
    lb_add_int,
    lb_add_ordered_int,
    lb_add_u64,
    lb_load_ptr,
    lb_peek_i64,
    lb_peek_int,
    lb_put_i64,
    lb_put_int,
    lb_store_ptr,
    log,
)
from lb._fastpath.endpoint cimport (
    ADMIN_READY,
    CURSOR_WORDS,
    EJECT_AFTER,
    EJECT_MS,
    HEALTH_FAILED,
    HEALTH_OK,
    HEALTH_UNTESTED,
    endpoint,
    upstream_live,
)
from lb._fastpath.table cimport CHECKED_NOT, CHECKED_REFUSE

cdef extern from *:
    """
    #define LB_MIX_A 0x9e3779b97f4a7c15ULL
    #define LB_MIX_B 0xd6e8feb86659fd93ULL
    """
    uint64_t MIX_A "LB_MIX_A"
    uint64_t MIX_B "LB_MIX_B"


cdef struct willing:
    # Who comes into question.
    uint64_t tried  # endpoints that this exchange has tried before (only the first 64 are remembered)
    int worst_health
    bint ejected  # those as well


cdef bint is_in_service(upstream_view* up, uint32_t i) noexcept nogil:
    """By its weight and the operator's word."""
    return up.weights[i] > 0 and lb_peek_int(&up.endpoints[i].admin) == ADMIN_READY


cdef bint may_serve(reactor* r, upstream_view* up, uint32_t i, willing* who) noexcept nogil:
    cdef endpoint* ep = up.endpoints[i]
    if not is_in_service(up, i) or lb_peek_int(&ep.health) > who.worst_health:
        return False
    if i < 64 and (who.tried >> i) & 1:
        return False
    return who.ejected or lb_peek_i64(&ep.ejected_until_ms) <= r.now_ms


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
    cdef uint32_t* cursor = &up.live.cursors[r.index * CURSOR_WORDS]
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


cdef int pick_least(reactor* r, upstream_view* up, willing* who) noexcept nogil:
    """The lowest (active + 1) / weight; equals take turns."""
    cdef uint32_t* cursor = &up.live.cursors[r.index * CURSOR_WORDS]
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


cdef int pick_by_client(reactor* r, upstream_view* up, willing* who,
        uint64_t client) noexcept nogil:
    """Weighted rendezvous hashing: a client moves only when its own endpoint goes, and nothing has to be remembered."""
    cdef uint32_t i, best = up.count
    cdef uint64_t h
    cdef double score, best_score = 0
    for i in range(up.count):
        if not may_serve(r, up, i, who):
            continue
        h = (client ^ up.endpoints[i].hash) * MIX_A
        h = (h ^ (h >> 32)) * MIX_B
        h ^= h >> 32
        score = -<double>up.weights[i] / log((<double>(h >> 11) + 0.5) / 9007199254740992.0)
        if best == up.count or score > best_score:
            best = i
            best_score = score
    if best == up.count:
        return PICK_NONE
    return <int>best if reserve(up, best) else PICK_FULL


cdef int pick(reactor* r, upstream_view* up, willing* who, uint64_t client) noexcept nogil:
    if up.client_affinity:
        return pick_by_client(r, up, who, client)
    if up.least_connections:
        return pick_least(r, up, who)
    return pick_in_turn(r, up, who)


cdef bint all_failed(upstream_view* up) noexcept nogil:
    """Whether everybody in service fails their health checks, whomever this exchange has tried."""
    cdef uint32_t i
    cdef bint any = False
    for i in range(up.count):
        if not is_in_service(up, i):
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
    if result != PICK_NONE or up.checked == CHECKED_NOT or not all_failed(up):
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


cdef int balance_pick(reactor* r, upstream_view* up, uint64_t tried, uint64_t client) noexcept nogil:
    """Index of the endpoint, with a place on it and on the upstream reserved, or one of PICK_…."""
    cdef int result
    cdef willing who
    if up.count == 0:
        return PICK_NONE
    if lb_add_ordered_int(&up.live.active, 1) > up.max_connections and up.max_connections:
        lb_add_ordered_int(&up.live.active, -1)
        return PICK_FULL
    who.tried = tried
    who.worst_health = HEALTH_OK
    who.ejected = False
    result = pick(r, up, &who, client)
    if result == PICK_NONE:
        result = pick_worse(r, up, &who, client)
    if result < 0:
        lb_add_ordered_int(&up.live.active, -1)
    else:
        lb_add_u64(&up.endpoints[result].requests, 1)
    return result


cdef void endpoint_connect_failed(endpoint* ep, reactor* r) noexcept nogil:
    lb_add_u64(&ep.failures, 1)
    if lb_add_int(&ep.failures_in_row, 1) >= EJECT_AFTER:
        lb_put_i64(&ep.ejected_until_ms, r.now_ms + EJECT_MS)


cdef void endpoint_connected(endpoint* ep) noexcept nogil:
    if lb_peek_int(&ep.failures_in_row):
        lb_put_int(&ep.failures_in_row, 0)
        lb_put_i64(&ep.ejected_until_ms, 0)
    if lb_load_ptr(&ep.tls_error) != NULL:
        lb_store_ptr(&ep.tls_error, NULL)
