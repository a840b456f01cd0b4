"""Bodies that are sent again (replay.pxd)."""
from libc.stdint cimport uint32_t

from lb._fastpath.exchange cimport X_BODY_SENT, X_HAS_BODY, X_KEEPS_BODY, X_PACKED, X_UPGRADE
from lb._fastpath.memory cimport page, page_data, pages_append, pages_free
from lb._fastpath.transport cimport batch_flush


cdef void replay_begin(exchange* x) noexcept nogil:
    """Keep the body that follows, if it may be wanted again: only HTTP/2 says what was not looked at."""
    if x.flags & X_PACKED and x.flags & X_HAS_BODY and not x.flags & (X_UPGRADE | X_BODY_SENT):
        x.flags |= X_KEEPS_BODY


cdef bint replay_pass(exchange* x, const char* data, size_t size) noexcept nogil:
    """Send a piece on, and keep it as long as it may be wanted again. False: nobody has it."""
    if x.flags & X_KEEPS_BODY:
        keep(x, data, size)
    if between_attempts(x):
        return (x.flags & X_KEEPS_BODY) != 0
    x.upstream_bytes_out += size
    x.u.calls.send_body(x.u, data, size)
    return True


cdef void keep(exchange* x, const char* data, size_t size) noexcept nogil:
    """Keep a piece. When there is too much of it, or no memory, all of it is let go, and with it the second chance.
    Between attempts there is no such limit, because nobody else has the bytes; the client has been stopped then.
    """
    if (x.body_seen > REPLAY_BYTES and not between_attempts(x)) or not pages_append(
        &x.r.pages, &x.replay_first, &x.replay_last, data, size
    ):
        replay_drop(x)


cdef void replay_send(exchange* x) noexcept nogil:
    """Give a new attempt what the one before it had."""
    cdef page* p = x.replay_first
    while p != NULL:
        x.upstream_bytes_out += p.end
        x.u.calls.send_body(x.u, page_data(p), p.end)
        p = p.next


cdef void replay_drop(exchange* x) noexcept nogil:
    if x.replay_first != NULL:
        batch_flush(x.r)  # it may point into them
    pages_free(&x.r.pages, &x.replay_first, &x.replay_last)
    x.flags &= ~<uint32_t>X_KEEPS_BODY
