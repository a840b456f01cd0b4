"""Connections of clients (clients.pxd)."""
from libc.stdint cimport uint16_t

from lb._fastpath.c.sys cimport MSG_DONTWAIT, MSG_PEEK, recv
from lb._fastpath.reactor cimport IO_READABLE, current_table
from lb._fastpath.table cimport listener_at, table


cdef listener_view* view_of(conn* c) noexcept nogil:
    """The listener as the current table has it; NULL when a change has removed it.

    An exchange that begins with this view pins the same table (`serving`): a second look at the current one could find
    another.
    """
    cdef table* t = current_table(c.base.r)
    cdef listener_view* view
    c.base.r.serving = t
    view = listener_at(t, c.place, c.slot)
    # Where the port has become another kind of port, nothing that was made of the old one is served any more: HTTP in
    # front of what carries bytes, nor, where TLS says who may come, a client that never spoke it.
    if view != NULL and (view.carries or view.datagram != NULL or (view.tls != NULL and c.tls == NULL)):
        return NULL
    return view


cdef void idle_link(conn* c) noexcept nogil:
    """The newest of those that idle. To link one that is linked moves nothing."""
    cdef reactor* r = c.base.r
    if c.flags & CLIENT_LISTED:
        return
    c.flags |= CLIENT_LISTED
    c.older = <conn*>r.idle_clients_newest
    c.newer = NULL
    if c.older != NULL:
        c.older.newer = c
    else:
        r.idle_clients_oldest = c
    r.idle_clients_newest = c
    r.idle_client_count += 1


cdef void idle_unlink(conn* c) noexcept nogil:
    cdef reactor* r = c.base.r
    if not c.flags & CLIENT_LISTED:
        return
    c.flags &= ~<uint16_t>CLIENT_LISTED
    if c.newer != NULL:
        c.newer.older = c.older
    else:
        r.idle_clients_newest = c.older
    if c.older != NULL:
        c.older.newer = c.newer
    else:
        r.idle_clients_oldest = c.newer
    c.newer = NULL
    c.older = NULL
    r.idle_client_count -= 1


cdef void clients_drain_idle(reactor* r, int reason, int most) noexcept nogil:
    """Close idle clients, the longest idle first, each as its codec does it (`refuse` of the connection's own leg). So
    many are looked at, at most.
    """
    cdef conn* c = <conn*>r.idle_clients_oldest
    cdef conn* newer
    while c != NULL and most > 0:
        newer = c.newer
        # A client whose next request has arrived already is not idle.
        if not c.base.flags & IO_READABLE and c.parked == NULL:
            most -= 1
            if not has_sent(c):
                c.leg.calls.refuse(&c.leg, reason)
        c = newer


cdef bint has_sent(conn* c) noexcept nogil:
    """Whether there is something of it that no event has told of yet."""
    cdef char first
    return recv(c.base.fd, &first, 1, MSG_PEEK | MSG_DONTWAIT) > 0
