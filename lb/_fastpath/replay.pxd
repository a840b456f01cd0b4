"""Request bodies that are kept until the endpoint answers, so that a request it has not looked at can be sent again.

HTTP/2 has two ways to say so (RFC 9113 8.7): REFUSED_STREAM, and a GOAWAY that leaves the stream out. Every server that
closes its connections says it to whatever has crossed its GOAWAY on the way, and nearly all gRPC requests have a body.
So what is sent of a body is kept as well, up to REPLAY_BYTES; a longer one is let go, and goes out once.
"""
from lb._fastpath.exchange cimport X_CONNECTING, exchange

cdef enum:
    REPLAY_BYTES = 65536

cdef void replay_begin(exchange* x) noexcept nogil
cdef bint replay_pass(exchange* x, const char* data, size_t size) noexcept nogil
cdef void replay_send(exchange* x) noexcept nogil
cdef void replay_drop(exchange* x) noexcept nogil

cdef inline bint between_attempts(const exchange* x) noexcept nogil:
    """No endpoint takes the body now: what comes of it waits here, and its client is to stop."""
    return x.u == NULL or (x.flags & X_CONNECTING) != 0
