"""Connections to endpoints: making them, keeping them, taking them over from a sibling reactor.

An unused connection lies in the pool of its endpoint and its reactor, the last used on top. A reactor that has none
looks into its siblings' pools before it connects anew, because a connection that exists is the cheapest one. Pools
have locks that are only tried on the way of a request: whoever finds one taken goes on without, so no request ever
waits for another reactor.

Connections that speak HTTP/2 are never in a pool: they are shared by the exchanges of their reactor, each of which has
a stream, and a new one is made when all are full. Whether an endpoint speaks it is configured, or found out by ALPN.
Connecting ends with the endpoint's SETTINGS: an endpoint that sends none in time, or something else, does not speak it.
"""
from lb._fastpath.c.sys cimport LB_R_NO_DESCRIPTORS, LB_R_NO_PORT
from lb._fastpath.endpoint cimport endpoint
from lb._fastpath.reactor cimport reactor
from lb._fastpath.table cimport upstream_view
from lb._fastpath.transport cimport conn, connect_calls, leg

cdef inline bint is_ours(int reason) noexcept nogil:
    """Whether it was this machine that lacked what it takes to connect: nothing has failed at the endpoint."""
    return reason == LB_R_NO_DESCRIPTORS or reason == LB_R_NO_PORT

cdef void upstream_set_calls(connect_calls* given) noexcept nogil
cdef leg* upstream_lease(reactor* r, const upstream_view* view, endpoint* ep, void* exchange, const conn* client,
        bint fresh, bint first, bint must_be_open, bint* connecting, int* reason) noexcept nogil
cdef conn* upstream_connect(reactor* r, const upstream_view* view, endpoint* ep, void* exchange, const conn* client,
        const connect_calls* told, int* reason) noexcept nogil
cdef void connect_timed_out(conn* c) noexcept nogil
cdef void upstream_end(conn* c, bint reset) noexcept nogil
cdef void upstream_take_back(reactor* r) noexcept nogil
cdef void pool_close(reactor* r, endpoint* ep, int most) noexcept nogil
