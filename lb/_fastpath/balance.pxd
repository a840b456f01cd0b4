"""Choosing an endpoint: round-robin, least connections, random two, Maglev, client affinity.

A choice reserves: the endpoint's and the upstream's count of exchanges under way are raised before anybody else
chooses, so least-connections and all limits are exact over all reactors. balance_release gives the reservation back.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport AF_INET6
from lb._fastpath.endpoint cimport CURSOR_WORDS, FAMILY_WORDS, endpoint, upstream_live
from lb._fastpath.reactor cimport reactor, shared
from lb._fastpath.table cimport BALANCE_MAGLEV, HASH_FLOW, upstream_view

cdef enum:
    PICK_NONE = -1  # no endpoint may get anything new
    PICK_FULL = -2  # some could, but a limit is reached
    PICK_UNHEALTHY = -3  # all fail their health checks, and the upstream wants none of those
    PICK_NO_FAMILY = -4  # none is of the family that it has to be

cdef enum:  # of endpoints, besides AF_INET and AF_INET6
    ANY_FAMILY = 0
    NO_FAMILY = -1

cdef int balance_pick(reactor* r, upstream_view* up, int family, uint64_t tried, uint64_t client) noexcept nogil
cdef int pick_reason(int picked) noexcept nogil
cdef void balance_release(upstream_live* live, endpoint* ep) noexcept nogil
cdef void endpoint_connecting(endpoint* ep, reactor* r, int timeout_ms) noexcept nogil
cdef void endpoint_connect_failed(endpoint* ep, reactor* r, int why) noexcept nogil
cdef void endpoint_connected(endpoint* ep, reactor* r) noexcept nogil
cdef void endpoint_answered(endpoint* ep, reactor* r) noexcept nogil
cdef bint endpoint_ejected(endpoint* ep) noexcept nogil
cdef void endpoint_forgive(shared* s, endpoint* ep) noexcept nogil
cdef uint64_t flow_hash(const upstream_view* up, const unsigned char* client, uint16_t client_port,
        const unsigned char* destination, uint16_t destination_port, uint8_t protocol) noexcept nogil

cdef inline bint hashes_destination(const upstream_view* up) noexcept nogil:
    """Whether flow_hash reads where a client connects to."""
    return up.balance == BALANCE_MAGLEV and up.hash_key == HASH_FLOW and not up.client_affinity

cdef inline uint32_t* cursors_of(reactor* r, const upstream_view* up, int family) noexcept nogil:
    """What this reactor knows of an upstream. Clients of two families that are served by endpoints of theirs alone take
    turns, and wait, as if there were two upstreams.
    """
    return &up.live.cursors[r.index * CURSOR_WORDS + (FAMILY_WORDS if family == AF_INET6 else 0)]

cdef inline uint64_t tried_bit(uint32_t i) noexcept nogil:
    """Of the set of endpoints that have been tried. From the 65th on several share a bit: who passes over them loses
    little, but who forgot that one has been tried would choose it again when choosing by a hash.
    """
    return <uint64_t>1 << (i & 63)
