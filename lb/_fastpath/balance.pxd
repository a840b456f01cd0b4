"""Choosing an endpoint: round-robin, least connections, client affinity.

A choice reserves: the endpoint's and the upstream's count of exchanges under way are raised before anybody else
chooses, so least-connections and all limits are exact over all reactors. balance_release gives the reservation back.
"""
from libc.stdint cimport uint64_t

from lb._fastpath.endpoint cimport endpoint, upstream_live
from lb._fastpath.reactor cimport reactor
from lb._fastpath.table cimport upstream_view

cdef enum:
    PICK_NONE = -1  # no endpoint may get anything new
    PICK_FULL = -2  # some could, but a limit is reached
    PICK_UNHEALTHY = -3  # all fail their health checks, and the upstream wants none of those

cdef int balance_pick(reactor* r, upstream_view* up, uint64_t tried, uint64_t client) noexcept nogil
cdef void balance_release(upstream_live* live, endpoint* ep) noexcept nogil
cdef void endpoint_connect_failed(endpoint* ep, reactor* r) noexcept nogil
cdef void endpoint_connected(endpoint* ep) noexcept nogil
