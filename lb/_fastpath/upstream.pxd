"""Connections to endpoints: making them, keeping them, taking them over from a sibling reactor.

An unused connection lies in the pool of its endpoint and its reactor, the last used on top. A reactor that has none
looks into its siblings' pools before it connects anew, because a connection that exists is the cheapest one. Pools
have locks that are only tried on the way of a request: whoever finds one taken goes on without, so no request ever
waits for another reactor.
"""
from lb._fastpath.endpoint cimport endpoint
from lb._fastpath.reactor cimport reactor
from lb._fastpath.transport cimport conn

cdef struct connect_calls:
    void (*connected)(void* exchange, conn* c) noexcept nogil
    void (*connect_failed)(void* exchange, int reason) noexcept nogil

cdef void upstream_set_calls(connect_calls* given) noexcept nogil
cdef conn* pool_take(reactor* r, endpoint* ep) noexcept nogil
cdef conn* upstream_connect(reactor* r, endpoint* ep, void* exchange, int* reason) noexcept nogil
cdef void upstream_release(conn* c) noexcept nogil
cdef void upstream_close(conn* c) noexcept nogil
cdef void upstream_take_back(reactor* r) noexcept nogil
cdef void pool_close(reactor* r, endpoint* ep, int most) noexcept nogil
