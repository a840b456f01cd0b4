"""The table of affinity.pxd.

An entry is two words. `key` says whose it is; it is written last and taken away first, so what is read between two
equal looks at it belongs to that client. `seat` is endpoint and time in one word, changed by compare-and-swap: who was
too late leaves it. A client that is not noted because two reactors wanted the same entry is noted by its next choice.
"""
from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport lb_cas_u64, lb_load_u64, lb_mix, lb_store_u64
from lb._fastpath.endpoint cimport AFFINITY_BUSY, AFFINITY_FREE, affinity_entry
from lb._fastpath.table cimport NO_SEAT, seat_of, seat_tag


cdef inline uint32_t tick(int64_t now_ms) noexcept nogil:
    return <uint32_t>(now_ms >> TICK_BITS)


cdef inline affinity_entry* set_of(const shared* s, uint64_t key) noexcept nogil:
    return &s.affinity[(key >> 49) * AFFINITY_WAYS]


cdef uint64_t affinity_key(const shared* s, upstream_view* up, uint64_t client) noexcept nogil:
    """Of a client at an upstream. Keyed with what nobody knows, or clients could be chosen that fill one set."""
    return lb_mix(lb_mix(client ^ s.secret) + up.live.id) | 2  # neither AFFINITY_FREE nor AFFINITY_BUSY


cdef uint32_t affinity_find(reactor* r, upstream_view* up, uint64_t key) noexcept nogil:
    """The index of the endpoint that the client was on; NO_SEAT when there is none, or it was long ago."""
    cdef uint64_t seat = 0
    if not read_seat(r.s, key, &seat) or is_over(r.now_ms, up, seat):
        return NO_SEAT
    return seat_of(up, <uint32_t>(seat >> 32))


cdef remembered affinity_tell(shared* s, int64_t now_ms, upstream_view* up, uint64_t client) noexcept nogil:
    """The same for whoever asks; nothing is noted by it."""
    cdef remembered told
    cdef uint64_t seat = 0
    told.index = NO_SEAT
    told.silent_ms = 0
    if s.affinity == NULL or up.count == 0 or not read_seat(s, affinity_key(s, up, client), &seat):
        return told
    if not is_over(now_ms, up, seat):
        told.index = seat_of(up, <uint32_t>(seat >> 32))
        told.silent_ms = <int64_t>age_of(now_ms, seat) << TICK_BITS
    return told


cdef inline bint read_seat(const shared* s, uint64_t key, uint64_t* seat) noexcept nogil:
    cdef affinity_entry* entries = set_of(s, key)
    cdef uint32_t way
    for way in range(AFFINITY_WAYS):
        if lb_load_u64(&entries[way].key) == key:
            seat[0] = lb_load_u64(&entries[way].seat)
            return lb_load_u64(&entries[way].key) == key
    return False


cdef inline bint is_over(int64_t now_ms, upstream_view* up, uint64_t seat) noexcept nogil:
    """Whether the client has been silent for longer than the upstream keeps it. (A sibling's clock may be ahead.)"""
    cdef int64_t most = (<int64_t>up.affinity_timeout_ms + (1 << TICK_BITS) - 1) >> TICK_BITS
    return up.affinity_timeout_ms > 0 and age_of(now_ms, seat) > most


cdef inline int age_of(int64_t now_ms, uint64_t seat) noexcept nogil:
    return <int>(tick(now_ms) - <uint32_t>seat)


cdef void affinity_note(reactor* r, upstream_view* up, uint64_t key, uint32_t i) noexcept nogil:
    """The client is on this endpoint now."""
    cdef affinity_entry* entries = set_of(r.s, key)
    cdef affinity_entry* oldest = NULL
    cdef uint64_t seat = <uint64_t>seat_tag(up.endpoints[i]) << 32 | tick(r.now_ms), found, before, oldest_key = 0
    cdef uint32_t way
    cdef int age, oldest_age = 0
    for way in range(AFFINITY_WAYS):
        found = lb_load_u64(&entries[way].key)
        before = lb_load_u64(&entries[way].seat)
        if found == key:
            if before != seat and lb_load_u64(&entries[way].key) == key:
                lb_cas_u64(&entries[way].seat, before, seat)
            return
        age = INT_MAX if found == AFFINITY_FREE else age_of(r.now_ms, before)
        if found != AFFINITY_BUSY and (oldest == NULL or age > oldest_age):
            oldest = &entries[way]
            oldest_key = found
            oldest_age = age
    if oldest == NULL or not lb_cas_u64(&oldest.key, oldest_key, AFFINITY_BUSY):
        return  # a sibling puts somebody there: the client's next choice is noted
    lb_store_u64(&oldest.seat, seat)
    lb_store_u64(&oldest.key, key)
