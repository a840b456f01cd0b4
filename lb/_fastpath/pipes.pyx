"""Pipes (pipes.pxd)."""
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from lb._fastpath.c.sys cimport (
    EAGAIN,
    EINTR,
    EINVAL,
    F_SETPIPE_SZ,
    O_CLOEXEC,
    O_NONBLOCK,
    SPLICE_F_MOVE,
    SPLICE_F_NONBLOCK,
    close,
    errno,
    fcntl,
    lb_add_int,
    pipe2,
    splice,
)
from lb._fastpath.reactor cimport IO_BROKEN, IO_HALF_CLOSED, IO_READABLE, IO_WRITABLE
from lb._fastpath.transport cimport RECEIVE_AGAIN, RECEIVE_END, RECEIVE_ERROR, conn_write_failed


cdef pipe* pipe_take(reactor* r) noexcept nogil:
    """An empty pipe, or NULL when all are in use, or the system has none of the size."""
    cdef pipe* p = <pipe*>r.pipes_unused
    if p != NULL:
        r.pipes_unused = p.next
        return p
    return pipe_new(r) if r.pipe_count < PIPES_MOST else NULL


cdef pipe* pipe_new(reactor* r) noexcept nogil:
    cdef pipe* p = <pipe*>calloc(1, sizeof(pipe))
    cdef int ends[2]
    if p == NULL or pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0:
        free(p)
        return NULL
    p.read_end = ends[0]
    p.write_end = ends[1]
    r.pipe_count += 1
    lb_add_int(&r.s.descriptors, 2)
    # Fails for who has many pipes already (fs.pipe-user-pages-soft): one of the usual size would gain nothing.
    if fcntl(p.write_end, F_SETPIPE_SZ, PIPE_BYTES) < 0:
        pipe_close(r, p)
        r.pipe_count = PIPES_MOST  # nor will there be others
        return NULL
    return p


cdef void pipe_close(reactor* r, pipe* p) noexcept nogil:
    close(p.read_end)
    close(p.write_end)
    lb_add_int(&r.s.descriptors, -2)
    r.pipe_count -= 1
    free(p)


cdef void pipe_give(reactor* r, pipe* p) noexcept nogil:
    """Back from a flow; with bytes in it, which nobody will take, it is of no more use."""
    if p.bytes:
        pipe_close(r, p)
        return
    p.next = <pipe*>r.pipes_unused
    r.pipes_unused = p


cdef ssize_t pipe_fill(pipe* p, conn* source) noexcept nogil:
    """As conn_receive, into an empty pipe."""
    cdef ssize_t n
    while True:
        n = splice(source.base.fd, NULL, p.write_end, NULL, PIPE_BYTES, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if n > 0:
            p.bytes = <uint32_t>n
            # A short one says nothing: it may be the pipe's slots that were full.
            return n
        if n == 0 or errno != EINTR:
            break
    if n < 0 and errno == EINVAL:
        return PIPE_UNFIT
    source.base.flags &= ~<uint32_t>IO_READABLE
    if n == 0:
        source.base.flags |= IO_HALF_CLOSED
        return RECEIVE_END
    if errno == EAGAIN:
        return RECEIVE_AGAIN
    source.base.flags |= IO_BROKEN
    return RECEIVE_ERROR


cdef void pipe_drain(pipe* p, conn* sink) noexcept nogil:
    """Pass on as much as the sink takes."""
    cdef ssize_t n
    while p.bytes and sink.base.flags & IO_WRITABLE and not sink.base.flags & IO_BROKEN:
        # Exactly what there is: more would make the kernel wait for it before it sends the last segment.
        n = splice(p.read_end, NULL, sink.base.fd, NULL, p.bytes, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if n > 0:
            p.bytes -= <uint32_t>n
        elif errno != EINTR:
            conn_write_failed(sink)


cdef void pipes_release(reactor* r) noexcept nogil:
    """After the reactor's thread has ended, and all its flows with it."""
    cdef pipe* p
    while r.pipes_unused != NULL:
        p = <pipe*>r.pipes_unused
        r.pipes_unused = p.next
        pipe_close(r, p)
