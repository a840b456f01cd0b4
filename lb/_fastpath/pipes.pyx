"""Pipes (pipes.pxd)."""
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from lb._fastpath.c.sys cimport (
    EINTR,
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
from lb._fastpath.reactor cimport SHORT_PERCENT, descriptors_above

cdef enum:
    REFUSED_MS = 10000  # who was refused a pipe asks no more for so long


cdef pipe* pipe_take(reactor* r) noexcept nogil:
    """An empty pipe, or NULL when all are in use, or the system has none of the size."""
    cdef pipe* p = <pipe*>r.pipes_unused
    if p != NULL:
        r.pipes_unused = p.next
        return p
    if r.pipe_count >= PIPES_MOST or r.now_ms < r.pipes_after_ms or descriptors_above(r, SHORT_PERCENT):
        return NULL
    return pipe_new(r)


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
        r.pipes_after_ms = r.now_ms + REFUSED_MS
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


cdef ssize_t pipe_fill(pipe* p, int fd, size_t most) noexcept nogil:
    """Take up to `most` bytes of a socket into an empty pipe: how many, 0 at its end, or -1 with errno. EINVAL: this
    socket cannot be spliced. A short one says nothing: it may be the pipe's slots that were full.
    """
    cdef ssize_t n
    while True:
        n = splice(fd, NULL, p.write_end, NULL, most, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if n > 0:
            p.bytes = <uint32_t>n
        if n >= 0 or errno != EINTR:
            return n


cdef ssize_t pipe_pour(pipe* p, int fd) noexcept nogil:
    """Pass on what the socket takes at once: how much, or -1 with errno."""
    cdef ssize_t n
    while True:
        # Exactly what there is: more would make the kernel wait for it before it sends the last segment.
        n = splice(p.read_end, NULL, fd, NULL, p.bytes, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if n > 0:
            p.bytes -= <uint32_t>n
        if n >= 0 or errno != EINTR:
            return n


cdef void pipes_release(reactor* r) noexcept nogil:
    """After the reactor's thread has ended, and all its flows with it."""
    cdef pipe* p
    while r.pipes_unused != NULL:
        p = <pipe*>r.pipes_unused
        r.pipes_unused = p.next
        pipe_close(r, p)
