"""HTTP/1: bytes to messages and back, on both sides.

Knows framing, connection management and what RFC 9112 allows; knows nothing of routes, endpoints or retries. What
happens to a message is decided above, through `exchange_calls`; the exchange in turn drives the codec with the
functions below. The rules for what is rejected are stricter than the RFC wherever implementations disagree, because
disagreement is what smuggling lives on.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport ssize_t
from lb._fastpath.message cimport head
from lb._fastpath.reactor cimport io, reactor
from lb._fastpath.transport cimport conn, exchange_calls, leg, outgoing

cdef enum:
    MAX_INTERIM_RESPONSES = 32

cdef enum:  # conn.state, client side
    SERVER_IDLE = 0  # waits for a request
    SERVER_HEAD  # a head has begun
    SERVER_BODY  # the exchange runs, its request body is being read
    SERVER_WAIT  # the request is complete, its response is not
    SERVER_TUNNEL
    SERVER_CLOSING  # the last bytes wait to be written
    SERVER_LINGER  # all is written; what still comes is thrown away

cdef enum:  # conn.state, upstream side
    CLIENT_HEAD = 16  # waits for a response
    CLIENT_BODY
    CLIENT_TUNNEL
    CLIENT_DONE  # the response is complete
    CLIENT_UNUSED  # in the idle pool

cdef enum:  # conn.flags
    H1_CHUNKED_IN = 1
    H1_CHUNKED_OUT = 2
    H1_NO_BODY = 8  # what is being received (upstream) or sent (client) has no body whatever its head says
    H1_PAUSED = 16  # stop reading: the other side is full or not there yet
    H1_UNTIL_CLOSE = 32  # the body ends with the connection
    H1_BULK = 64  # upstream: much comes, and the client takes it as it comes
    H1_UPGRADE = 128  # the request asked for an upgrade
    # 512: CLIENT_LISTED
    H1_KEEP_ALIVE_10 = 1024  # an HTTP/1.0 client that asked for keep-alive

cdef void http1_set_calls(exchange_calls* calls) noexcept nogil

# Both sides
cdef void leg_shut(leg* l) noexcept nogil
cdef bint leg_full(leg* l) noexcept nogil
cdef size_t leg_waiting(leg* l) noexcept nogil

# The client's side
cdef void server_open(conn* c) noexcept nogil
cdef void server_close(conn* c, int reason) noexcept nogil
cdef void server_gone(conn* c, bint reset) noexcept nogil

# The upstream's side
cdef size_t request_size(const head* h) noexcept nogil
cdef size_t build_request(const head* h, char* out) noexcept nogil
cdef void client_start(leg* l, void* exchange, const outgoing* request) noexcept nogil
cdef void client_send_body(leg* l, const char* data, size_t size) noexcept nogil
cdef void client_send_end(leg* l, head* trailers) noexcept nogil
cdef void client_resume(leg* l) noexcept nogil
cdef bint client_reusable(conn* c) noexcept nogil
