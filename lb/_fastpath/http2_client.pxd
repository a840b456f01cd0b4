"""HTTP/2 towards endpoints: many exchanges on one connection (http2.pxd).

Which connections there are, and who gets a stream on which, is up to upstream.pyx; this file tells it (`pool_calls`)
when that may have changed.
"""
from lb._fastpath.transport cimport conn, leg

cdef enum:
    CLIENT_STREAMS = 1048576  # on one connection, if nobody asks for fewer
    MAX_INTERIM_RESPONSES = 32

cdef struct pool_calls:
    void (*begin)(leg* l) noexcept nogil  # its exchange's turn: the peer can be spoken to
    void (*no_room)(leg* l) noexcept nogil  # its exchange has waited in vain
    void (*not_spoken)(conn* c, int reason) noexcept nogil  # it ends before the peer has said that it speaks HTTP/2
    void (*stream_ended)(conn* c) noexcept nogil  # one at least, since the last time, or the limit has changed
    void (*going_away)(conn* c) noexcept nogil  # no stream can begin any more; those that have, go on
    void (*connection_ended)(conn* c) noexcept nogil  # no exchange has a stream on it: close it

cdef void http2_set_pool_calls(pool_calls* given) noexcept nogil
cdef bint http2_client_open(conn* c) noexcept nogil
cdef void http2_client_connected(conn* c) noexcept nogil
cdef bint http2_client_leaves(const conn* c) noexcept nogil
cdef bint http2_client_begun(conn* c) noexcept nogil
cdef int http2_client_room(conn* c) noexcept nogil
cdef bint http2_client_silent(const leg* l) noexcept nogil
cdef int http2_client_streams(conn* c) noexcept nogil
cdef leg* http2_client_stream(conn* c, void* exchange) noexcept nogil
cdef void http2_client_each(conn* c, void (*f)(leg* l, int reason) noexcept nogil, int reason) noexcept nogil
cdef void http2_client_leave(conn* c) noexcept nogil
cdef void http2_client_close(conn* c) noexcept nogil
