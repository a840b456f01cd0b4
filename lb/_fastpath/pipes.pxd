"""Pipes: how bulk passes from one socket to another without a copy (splice(2)).

A pipe is lent to a connection only while bytes are in it, so that a few serve all of a reactor's. There are at most
PIPES_MOST; who gets none copies.
"""
from libc.stdint cimport int64_t, uint32_t

from lb._fastpath.c.sys cimport ssize_t
from lb._fastpath.reactor cimport reactor

cdef enum:
    PIPES_MOST = 16
    # The largest that the kernel lets everybody have (fs.pipe-max-size). What splicing gains grows with it: against
    # copying 64 KiB at a time, CPU time per GiB is 0.85 with 64 KiB and 0.45 with 1 MiB.
    PIPE_BYTES = 1048576

cdef struct pipe:
    int read_end
    int write_end
    uint32_t bytes  # in it
    pipe* next

cdef pipe* pipe_take(reactor* r) noexcept nogil
cdef void pipe_give(reactor* r, pipe* p) noexcept nogil
cdef ssize_t pipe_fill(pipe* p, int fd, size_t most) noexcept nogil
cdef ssize_t pipe_pour(pipe* p, int fd) noexcept nogil
cdef void pipes_release(reactor* r) noexcept nogil
